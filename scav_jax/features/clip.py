"""What one clip is on disk: keys, shapes, units, format version and the extractor's fingerprint.

The first of the two seams that are file formats. A data set of clips is a TFDS data set in
array_record form; `scav_jax.features.store` writes and reads it, this module says what is in it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Num

from scav_jax.base.documents import checksum, flatten
from scav_jax.base.errors import InputError

FORMAT_VERSION = 3
STREAMS = ("visual", "audio")  # as in `sequences`, which needs jax; workers do without
STORED_DTYPE = np.float16
SMALLEST_NORMAL = float(np.finfo(STORED_DTYPE).smallest_normal)  # 6.1e-5; digits are lost below
LARGEST = float(np.finfo(STORED_DTYPE).max)
DEFAULT_SPLIT = "all"  # of clips of which nobody says another
PIXELS_DTYPE = np.uint8  # of a stream of pictures as they are
IMPORTED = "imported"  # key of a backbone's fingerprint: nothing here can make such features
DIFFERENCES_SHOWN = 6
Window = tuple[float, float]  # (begin, extent) in steps, see `sequences.Sequences.windows`
FINITE_PIECE = 2**15
MAX_CLIP_S = 600.0  # a clip is held in memory whole; half a second more is let pass
MIN_OVERLAP_S = 0.5  # streams of one clip that share less time than this have nothing to contrast


@dataclass(frozen=True)
class Clip:
    """One clip's features.

    A data set may have one stream only, where its backbone sees or hears alone: the other one then
    has no steps, width 0 and the span (0, 0).

    Attributes:
      id: unique in the data set.
      visual: `[N, Dv]` float16, one step a frame at the video's native rate; of pixels uint8, and
        as many steps as the backbone takes frames.
      visual_span: (begin, end) in seconds from the clip's start that the N steps cover evenly.
      audio: `[M, Da]` float16, a step for each `audio_step_s` of the fingerprint.
      audio_span: the same for the M audio steps; shorter than the clip by up to one step.
      source: the video file, relative to the folder it was extracted from.
      start: where the clip starts in the source, in seconds.
      end: where it ends, in seconds.
      label: its class, or "" where none is known.
      shared: of a resampled copy, whose streams lie on one grid: the seconds that both streams of
        the original covered; else None.
    """

    id: str
    visual: Num[np.ndarray, "N Dv"]
    visual_span: tuple[float, float]
    audio: Num[np.ndarray, "M Da"]
    audio_span: tuple[float, float]
    source: str
    start: float
    end: float
    label: str = ""
    shared: tuple[float, float] | None = None


def streams_of(visual_width: int, audio_width: int) -> tuple[str, ...]:
    """Which streams features of these widths have."""
    widths = {"visual": visual_width, "audio": audio_width}
    return tuple(name for name in STREAMS if widths[name])


def check_clip(clip: Clip, streams: Sequence[str] = STREAMS) -> None:
    """Raises `InputError` if a clip cannot be used; the message names the clip and the reason.

    Args:
      clip: with features.
      streams: which of them it should have; the others are not looked at.
    """
    for name in streams:
        values, (begin, end) = getattr(clip, name), getattr(clip, f"{name}_span")
        if values.ndim != 2 or 0 in values.shape:
            raise InputError(
                f"clip {clip.id!r}: {name} features should be [steps, width] with at least one "
                f"step, got shape {values.shape}; extract it again"
            )
        if not all_finite(values):
            bad = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
            raise InputError(
                f"clip {clip.id!r}: {name} features should be finite, step {bad} of "
                f"{len(values)} holds NaN or infinity; extract it again or drop it from the data"
            )
        if not end > begin:
            raise InputError(
                f"clip {clip.id!r}: its {name} span should end after it begins, got "
                f"{begin:g}..{end:g} s; extract it again"
            )
    begin, end = used_span(clip)
    overlap = end - begin
    if len(streams) == len(STREAMS) and overlap < MIN_OVERLAP_S:
        raise InputError(
            f"clip {clip.id!r}: its streams should share at least {MIN_OVERLAP_S:g} s, they share "
            f"{max(overlap, 0.0):.3g} s; drop it from the data"
        )


def check_scale(values: np.ndarray, name: str) -> None:
    """Raises `InputError` where float16 would round a clip's features away, or to infinity.

    That is where the largest magnitude, though not 0, is below float16's smallest normal number:
    all of them would become 0 or lose digits. Small values beside larger ones may, and what is
    float16 or uint8 already is stored as it is. Or where it is above float16's largest.

    Args:
      values: of one stream, of any numeric dtype; NaN and infinity are for `check_clip`.
      name: of the file or the stream, for the message.
    """
    if values.size == 0 or values.dtype in (STORED_DTYPE, PIXELS_DTYPE):
        return
    largest = max(abs(float(values.max())), abs(float(values.min())))
    if 0 < largest < SMALLEST_NORMAL or LARGEST < largest < np.inf:
        raise InputError(
            f"{name}: expected features that float16 can hold, from {SMALLEST_NORMAL:.2g} to "
            f"{LARGEST:,.0f}, got {largest:.2g} at most; scale those of all clips by one factor, "
            "to about 1"
        )


def check_splits(names: Collection[str], where: str) -> None:
    """Raises `InputError` where a list gives some of its clips a split, and others none."""
    others = sorted({*names} - {DEFAULT_SPLIT})
    if others and DEFAULT_SPLIT in names:
        raise InputError(
            f"{where}: the split {DEFAULT_SPLIT!r} (also given to rows without one) means every "
            f"clip, so it cannot stand beside {others}; give every row a split of its own, or none"
        )


def as_stored(values: np.ndarray) -> np.ndarray:
    """Features in the dtype that they have on disk: pixels uint8, all else float16."""
    return values if values.dtype == PIXELS_DTYPE else values.astype(STORED_DTYPE)


def all_finite(values: np.ndarray) -> bool:
    """`np.isfinite(values).all()`; 20 times as fast for float16, which NumPy widens one by one."""
    if values.dtype == PIXELS_DTYPE:
        return True
    if values.dtype != np.float16 or not values.flags.c_contiguous:
        return bool(np.isfinite(values).all())
    octets, exponent = values.reshape(-1).view(np.uint8), 0x7C00  # its bits are all set
    if not values.flags.aligned:  # NumPy is slow there; one byte on, high bytes come first
        if octets[-1] & 0x7C == 0x7C:
            return False
        octets, exponent = octets[1:-1], 0x007C
    words = octets.view(np.uint16)
    # In pieces, so that no large array is made, whose memory would have to be cleared first.
    pieces = (words[at : at + FINITE_PIECE] for at in range(0, len(words), FINITE_PIECE))
    return all(int((piece & exponent).max()) != exponent for piece in pieces)


def overlap_window(
    span: tuple[float, float], steps: int, shared: tuple[float, float]
) -> tuple[slice, tuple[float, float]]:
    """The steps of one stream that lie in the time that both streams cover.

    A step is kept when its centre lies in the shared time, so what is kept differs from the
    shared time by up to half a step at each end; the window says by how much.

    Args:
      span: the seconds that the stream's steps cover.
      steps: how many steps it has.
      shared: the seconds that both streams cover.

    Returns:
      The slice of steps to keep, and the shared time as (begin, extent) in steps of the kept
      part, fractional (see `sequences.Sequences.windows`).
    """
    seconds_a_step = (span[1] - span[0]) / steps
    begin = (shared[0] - span[0]) / seconds_a_step
    end = (shared[1] - span[0]) / seconds_a_step
    # Spans are stored in float32: without the tolerance, rounding would drop a whole step.
    tolerance = 1e-3
    first = max(int(np.ceil(begin - 0.5 - tolerance)), 0)
    stop = min(int(np.floor(end - 0.5 + tolerance)) + 1, steps)
    if stop <= first:  # the shared time is shorter than a step: keep the step it lies in
        first = min(max(int((begin + end) / 2), 0), steps - 1)
        stop = first + 1
    return slice(first, stop), (begin - first, end - begin)


def shared_span(
    visual_span: tuple[float, float], audio_span: tuple[float, float]
) -> tuple[float, float]:
    """The seconds that both streams of a clip cover."""
    return max(visual_span[0], audio_span[0]), min(visual_span[1], audio_span[1])


def used_span(clip: Clip) -> tuple[float, float]:
    """The seconds that both streams of a clip cover; of a copy, that those of the original did."""
    return clip.shared or shared_span(clip.visual_span, clip.audio_span)


def trim(
    clip: Clip, align: str = "time"
) -> tuple[Num[np.ndarray, "n Dv"], Window, Num[np.ndarray, "m Da"], Window]:
    """The steps of a clip that are used, and the windows that lay its streams onto each other.

    Args:
      clip: one clip as stored.
      align: "time" keeps the steps whose centre lies in the seconds that both streams cover, with
        windows that say so to a fraction of a step; "index" keeps both streams whole, with whole
        windows (the paper's wording, section III-C: the whole of one is stretched onto the other).

    Returns:
      Visual `[n, Dv]`, its window, audio `[m, Da]`, its window. Views of the clip's arrays.
    """
    if align == "index":
        n, m = len(clip.visual), len(clip.audio)
        return clip.visual, (0.0, float(n)), clip.audio, (0.0, float(m))
    shared = used_span(clip)
    visual_steps, visual_window = overlap_window(clip.visual_span, len(clip.visual), shared)
    audio_steps, audio_window = overlap_window(clip.audio_span, len(clip.audio), shared)
    return clip.visual[visual_steps], visual_window, clip.audio[audio_steps], audio_window


def fingerprint_id(fingerprint: dict) -> str:
    """16 hexadecimal digits that name an extractor: the same settings give the same digits.

    >>> fingerprint_id({"rate_hz": 16000}) == fingerprint_id({"rate_hz": 16000.5})
    False
    """
    return checksum(fingerprint)


def fingerprint_difference(expected: dict, got: dict) -> str:
    """Which settings of two extractors differ, in words: `key: expected x, got y; ...`.

    >>> fingerprint_difference({"clip": {"dtype": "float32"}}, {"clip": {"dtype": "bfloat16"}})
    "clip.dtype: expected 'float32', got 'bfloat16'"
    """
    one, other = flatten(expected), flatten(got)
    keys = [key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]
    keys.sort(key=lambda key: (not key.endswith("name"), key))  # another model first of all
    words = [
        f"{key}: expected {one.get(key)!r}, got {other.get(key)!r}"
        for key in keys[:DIFFERENCES_SHOWN]
    ]
    if len(keys) > DIFFERENCES_SHOWN:
        words.append(f"and {len(keys) - DIFFERENCES_SHOWN} more")
    return "; ".join(words)


def side_of(fingerprint: Mapping[str, Any], stream: str) -> Mapping[str, Any]:
    """What an extractor's fingerprint says of the side of a stream; nothing where it has none."""
    sides = fingerprint.get("backbone")
    return sides.get(stream, {}) if isinstance(sides, Mapping) else {}


def check_resampled(fingerprint: dict, **wanted: str | float | None) -> None:
    """Raises `InputError` where a resampled copy does not hold what is wanted.

    Args:
      fingerprint: of the data set; originals serve every purpose.
      wanted: `align` ("time" or "index"), and the towers' `reading`: `direction` as in
        `encoders.pre_resample`, where None means that nothing is resampled before them.
    """
    made = fingerprint.get("resampled")
    if made is None:
        return
    differs = fingerprint_difference({key: made.get(key) for key in wanted}, wanted)
    if differs:
        raise InputError(
            f"a resampled copy of features serves the settings that it was made with only "
            f"({differs}); use those, or the original features"
        )


def original(fingerprint: dict) -> dict:
    """The fingerprint of the features that a resampled copy was made of."""
    return {key: value for key, value in fingerprint.items() if key != "resampled"}
