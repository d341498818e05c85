"""The distance of a picture and a sound for every shift of the sound, on features cut anew.

A model compares clips, so each shift makes clips: the sound's window, moved by the shift, and the
part of the picture that lies under it then, both cut to the time that they share. The picture is
read at fractions of a step, so shifts may be finer than either stream's steps. Cutting latents
instead would compare what the towers saw of steps that no longer belong to the clip.

Many windows of a long sound, each at its own shift, lie on the same part of the picture, and a
window is the same sound at all of them. Each part of a stream is encoded once.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from scav_jax.base.errors import InputError
from scav_jax.base.progress import progress_bar
from scav_jax.features.batches import Padding, stack
from scav_jax.features.clip import Clip, all_finite, overlap_window, shared_span, trim
from scav_jax.retrieval.embed import encode, filled, padded_steps
from scav_jax.retrieve import own_distances
from scav_jax.sequences import STREAMS, Sequences
from scav_jax.training.runs import Run

AT_ONCE = 64  # parts that are encoded together, or pairs that are compared
PAIRS = 1024  # that are cut together
KEPT_NUMBERS = 2**26  # of latents of each stream, for pairs that come later: 256 MiB
MANY = 2000  # shifts, from which on a bar shows them
LEAST_S = 1.0  # shared by both at least
LEAST_SHARE = 0.5  # of the shorter of both, shared at least
DIGITS = 6  # of seconds and of steps, to which parts that are the same agree


class Track(NamedTuple):
    """Features of one stream of a recording, or of a window of it.

    Attributes:
      values: `[T, D]`, as they are stored; rows of NaN where a stretch cannot be used.
      span: (begin, end), the seconds of the recording that the T steps cover evenly.
    """

    values: Num[np.ndarray, "T D"]
    span: tuple[float, float]


class Shifted(NamedTuple):
    """W windows of a sound under a picture, at S shifts.

    Attributes:
      distances: `[W, S]`, the model's; NaN where too little is shared, or nothing to compare.
      cosines: `[W, S]`, of the embeddings.
      seconds: `[W, S]`, shared by picture and window; 0 where the distance is NaN.
    """

    distances: Float[np.ndarray, "W S"]
    cosines: Float[np.ndarray, "W S"]
    seconds: Float[np.ndarray, "W S"]


def shifted(
    run: Run, visual: Track, audio: Sequence[Track], shifts: Float[np.ndarray, " S"]
) -> Shifted:
    """The distance for every window of a sound and every shift.

    Args:
      run: the model.
      visual: the picture.
      audio: windows of the sound, each of at most the clip length that the model knows.
      shifts: in seconds; with d, second t of the sound lies on second t + d of the picture.
    """
    shape = (len(audio), len(shifts))
    distances, cosines, seconds = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape)
    places, parts = _places(visual, audio, shifts), _Parts(run, visual, audio)
    with progress_bar("shifts", len(places), "shift", shown=len(places) > MANY) as bar:
        for first in range(0, len(places), PAIRS):
            some = places[first : first + PAIRS]
            made = [_cut(visual, audio[window], float(shifts[shift])) for window, shift in some]
            enough = [number for number, cut in enumerate(made) if cut is not None]
            cuts, at = [made[number] for number in enough], tuple(some[enough].T)
            distances[at], cosines[at] = parts.compared(cuts, at[0], shifts[at[1]]).T
            shared = np.array([cut.end - cut.begin for cut in cuts])
            seconds[at] = np.where(np.isnan(distances[at]), 0.0, shared)
            bar.update(len(some))
    return Shifted(distances, cosines, seconds)


class Cut(NamedTuple):
    """The clip that a shift makes, and what both streams of it share, in the picture's seconds."""

    clip: Clip
    begin: float
    end: float


def cut_at(visual: Track, audio: Track, shift: float) -> Cut | None:
    """The clip that a shift makes.

    None where picture and sound share too little, or features are missing.
    """
    cut = _cut(visual, audio, shift)
    if cut is None or not (all_finite(cut.clip.visual) and all_finite(cut.clip.audio)):
        return None
    return cut


def _cut(visual: Track, audio: Track, shift: float) -> Cut | None:
    """None where too little is shared."""
    moved = (audio.span[0] + shift, audio.span[1] + shift)
    begin, end = shared_span(visual.span, moved)
    shorter = min(visual.span[1] - visual.span[0], moved[1] - moved[0])
    if end - begin < max(LEAST_S, LEAST_SHARE * shorter) - 1e-6:
        return None
    picture = _steps(visual, (begin, end))
    sound = _steps(Track(audio.values, moved), (begin, end))
    return Cut(Clip("shifted", *picture, *sound, "", 0.0, 0.0, shared=(begin, end)), begin, end)


def _steps(track: Track, shared: tuple[float, float]) -> Track:
    """The steps of a track that lie in some seconds."""
    steps, _ = overlap_window(track.span, len(track.values), shared)
    begin, end = track.span
    step_s = (end - begin) / len(track.values)
    return Track(track.values[steps], (begin + steps.start * step_s, begin + steps.stop * step_s))


def _places(
    visual: Track, audio: Sequence[Track], shifts: Float[np.ndarray, " S"]
) -> Int[np.ndarray, "K 2"]:
    """(window, shift) of all pairs that may share enough, by where in the picture they lie."""
    begins, ends = (
        np.array([track.span[at] for track in audio]).reshape(-1, 1) + shifts for at in (0, 1)
    )
    shared = np.minimum(visual.span[1], ends) - np.maximum(visual.span[0], begins)
    places = np.argwhere(shared >= LEAST_S - 1e-3)
    return places[np.argsort(begins[tuple(places.T)], kind="stable")]


_Latents = tuple[Sequences, Num[Array | np.ndarray, "..."]]  # of parts, and their embeddings


class _Parts:
    """Compares cuts of a picture and a sound, and encodes every part of each once.

    What a tower makes of a part hangs on nothing else but, where streams are resampled before the
    towers, on how many steps the other one has there, and where they lie.
    """

    def __init__(self, run: Run, visual: Track, audio: Sequence[Track]):
        self._run, self._align = run, run.config["data"]["align"]
        (begin, end), count = visual.span, len(visual.values)
        longest = max((track.span[1] - track.span[0] for track in audio), default=0.0)
        seen = min(int(longest / (end - begin) * count + 2e-3) + 1, count)
        heard = max((len(track.values) for track in audio), default=0)
        self._padding = Padding(padded_steps(seen), padded_steps(heard))
        self._kept: dict[str, dict[tuple, _Latents | None]] = {name: {} for name in STREAMS}

    def compared(
        self, cuts: Sequence[Cut], windows: Int[np.ndarray, " K"], shifts: Float[np.ndarray, " K"]
    ) -> Float[np.ndarray, "K 2"]:
        """The distance and the cosine of each cut; NaN where features are missing.

        Raises:
          InputError: the model holds NaN.
        """
        keys = list(map(self._keys, cuts, windows.tolist(), shifts.tolist()))
        found = np.full((len(cuts), 2), np.nan)
        streams = (
            self._encoded(stream, [one[stream] for one in keys], [cut.clip for cut in cuts])
            for stream in STREAMS
        )
        pairs = [(n, pair) for n, pair in enumerate(zip(*streams, strict=True)) if all(pair)]
        name, options = self._run.objective.ranks_by()
        for first in range(0, len(pairs), AT_ONCE):
            numbers, some = zip(*pairs[first : first + AT_ONCE], strict=True)
            full = jax.tree.map(lambda *leaves: filled(np.stack(leaves), AT_ONCE), *some)
            values = np.array(_compare((name, tuple(sorted(options.items()))), *full))
            found[list(numbers)] = values[: len(numbers)]
            if not np.isfinite(values).all():
                raise InputError(
                    "expected finite distances, the model holds NaN: look at its training log"
                )
        return found

    def _keys(self, cut: Cut, window: int, shift: float) -> dict[str, tuple]:
        """What says which parts of both streams a cut has, to `DIGITS`."""
        picture, lies, sound, sounds = trim(cut.clip, self._align)
        keys = {
            "visual": (cut.begin, cut.end),
            "audio": (window, cut.begin - shift, cut.end - shift),
        }
        direction = self._run.encoders.reading["direction"]
        if direction == "visual_to_audio":
            keys["visual"] += (len(sound), *sounds)
        if direction == "audio_to_visual":
            keys["audio"] += (len(picture), *lies)
        return {name: tuple(round(one, DIGITS) for one in key) for name, key in keys.items()}

    def _encoded(
        self, stream: str, keys: Sequence[tuple], clips: Sequence[Clip]
    ) -> list[_Latents | None]:
        """The latents of parts; None where features are missing."""
        kept = self._kept[stream]
        new = {key: clip for key, clip in zip(keys, clips, strict=True) if key not in kept}
        kept |= dict.fromkeys(new)
        new = {key: clip for key, clip in new.items() if all_finite(getattr(clip, stream))}
        for first in range(0, len(new), AT_ONCE):
            some = list(new)[first : first + AT_ONCE]
            kept |= zip(some, self._encode(stream, [new[key] for key in some]), strict=True)
        for key in keys:  # what was wanted last stays longest
            kept[key] = kept.pop(key)
        found = [kept[key] for key in keys]
        numbers = max((latents[0].values.size for latents in found if latents), default=1)
        for key in list(kept)[: max(len(kept) - KEPT_NUMBERS // numbers, 0)]:
            del kept[key]
        return found

    def _encode(self, stream: str, clips: Sequence[Clip]) -> list[_Latents]:
        run, some = self._run, np.arange(len(clips))
        widths = clips[0].visual.shape[1], clips[0].audio.shape[1]
        batch = stack(clips, some, widths, self._padding, self._align)
        full = jax.tree.map(partial(filled, size=AT_ONCE), batch)
        encoded = encode(run.encoders, run.objective, (stream,), run.params, full)[stream]
        encoded = jax.device_get(encoded)
        return [jax.tree.map(lambda leaf, n=n: leaf[n].copy(), encoded) for n in some]


@partial(jax.jit, static_argnums=0)
def _compare(distance: tuple, visual: _Latents, audio: _Latents) -> Float[Array, "B 2"]:
    """The distance of each pair and the cosine of its embeddings."""
    (seen, picture), (heard, sound) = visual, audio
    name, options = distance
    distances = own_distances(seen, heard, name, dict(options))
    norms = jnp.linalg.norm(picture, axis=-1) * jnp.linalg.norm(sound, axis=-1)
    return jnp.stack([distances, jnp.sum(picture * sound, axis=-1) / norms], axis=1)
