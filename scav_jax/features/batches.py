"""Features on disk -> padded batches in memory: order, buckets, padding, shards, resuming.

Everything that is random is decided on indices, by batch number, before a feature is read:
`BatchPlan[number]` says which clips are in a batch and to what shape they are padded. So the state
of the pipeline is one integer, a restart continues exactly, and every process of a pod draws its
rows of the same global batch without talking to the others. The features of a batch are read,
trimmed to the time that both streams cover, and padded by grain's read threads while the devices
compute. Stored float16 becomes float32 here, or stays as it is (`dtype="float16"`), half of the
host's work and of the copy to the devices; the towers widen it there to the same float32. Pixels,
which are stored as uint8, stay uint8 in any case. Grain is imported where batches are made: plans
and padding need none.
"""

import math
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from scav_jax.base.errors import InputError
from scav_jax.base.ranges import check_multiple
from scav_jax.features.clip import (
    PIXELS_DTYPE,
    Clip,
    Window,
    all_finite,
    check_resampled,
    overlap_window,
    shared_span,
    trim,
    used_span,
)
from scav_jax.features.options import check_options
from scav_jax.sequences import AudioVisual, Batch, Sequences

if TYPE_CHECKING:
    import grain

    from scav_jax.features.store import Split


class Padding(NamedTuple):
    """The static shape that the clips of a batch are padded to, in steps."""

    visual_steps: int
    audio_steps: int


def trimmed_lengths(split: "Split", align: str = "time") -> Int[np.ndarray, "clips 2"]:
    """How many (visual, audio) steps `trim` keeps of each clip, without reading a feature."""
    if align == "index":
        return np.stack([split.visual_lengths, split.audio_lengths], axis=1).astype(np.int32)
    return _by_geometry(split, _kept_lengths).astype(np.int32)


def covered_seconds(split: "Split") -> Float[np.ndarray, "clips 2"]:
    """(begin, end) of the seconds that kept steps of both streams of each clip cover.

    As `views.covered` finds them in a batch, without reading a feature.
    """
    return _by_geometry(split, _covered_seconds)


def _by_geometry(split: "Split", of_one) -> np.ndarray:
    """What follows from each clip's step counts and spans."""
    stored = np.stack([split.visual_lengths, split.audio_lengths], axis=1).astype(np.int32)
    # Records hold spans as float32; in other digits a step at an edge could fall the other way.
    spans = np.concatenate([split.visual_spans, split.audio_spans], axis=1).astype(np.float32)
    # Most clips share one geometry, so the exact rule runs once for each that differs.
    geometries, which = np.unique(
        np.concatenate([stored, spans], axis=1), axis=0, return_inverse=True
    )
    found = [
        of_one(((tuple(seconds[:2]), int(n)), (tuple(seconds[2:]), int(m))))
        for n, m, *seconds in geometries.tolist()
    ]
    return np.asarray(found).reshape(len(found), -1)[which.reshape(-1)]


def _kept_lengths(streams) -> tuple[int, ...]:
    shared = shared_span(*(span for span, _ in streams))
    kept = (overlap_window(span, steps, shared)[0] for span, steps in streams)
    return tuple(part.stop - part.start for part in kept)


def _covered_seconds(streams) -> tuple[float, float]:
    begin, end = shared_span(*(span for span, _ in streams))
    for span, steps in streams:
        kept, step_s = overlap_window(span, steps, (begin, end))[0], (span[1] - span[0]) / steps
        begin = max(begin, span[0] + kept.start * step_s)
        end = min(end, span[0] + kept.stop * step_s)
    return begin, end


def choose_paddings(lengths: Int[np.ndarray, "clips 2"], buckets: int) -> list[Padding]:
    """At most `buckets` padded shapes, each at least as large in both streams as the one before.

    Clips are sorted by length and cut into parts of equal count; a part is padded to the longest
    streams seen up to its end. Few distinct lengths give fewer shapes, one length gives one.
    """
    order = np.lexsort((lengths[:, 1], lengths[:, 0]))
    longest = np.maximum.accumulate(lengths[order], axis=0)
    ends = [math.ceil(len(order) * (part + 1) / buckets) - 1 for part in range(buckets)]
    return sorted({Padding(*longest[end].tolist()) for end in ends if end >= 0})


def smallest_fitting(
    lengths: Int[np.ndarray, "clips 2"], paddings: list[Padding]
) -> Int[np.ndarray, " clips"]:
    """For each row of lengths, which of the nested paddings is the first that holds it."""
    fits = (lengths[:, None, :] <= np.asarray(paddings)[None]).all(axis=-1)
    return fits.argmax(axis=1)


class BatchPlan:
    """Which clips are in which training batch, by batch number, for ever.

    Numbers run through one epoch after another; each epoch is a new permutation. In an epoch every
    clip is drawn once, but for `dropped_per_epoch` of them, other ones each time, that do not fill
    a batch. Clips are grouped by padded shape, and what is left of one shape joins the next larger
    one, so a rare length is drawn as often as any other.

    Attributes:
      paddings: the padded shapes, the smallest first.
      batches_per_epoch: how many batches an epoch has.
      dropped_per_epoch: how many clips an epoch leaves out.
    """

    def __init__(
        self, lengths: Int[np.ndarray, "clips 2"], *, batch_size: int, seed: int, buckets: int
    ):
        self.paddings = choose_paddings(lengths, buckets)
        self.batches_per_epoch, self.dropped_per_epoch = divmod(len(lengths), batch_size)
        self._bucket_of_clip = smallest_fitting(lengths, self.paddings)
        self._batch_size = batch_size
        self._seed = seed
        # An epoch and its batches; one tuple, so threads may race for it.
        self._latest: tuple[int, list] = (-1, [])

    def __len__(self) -> int:
        return sys.maxsize  # training says when to stop, not the data

    def __getitem__(self, number: int) -> tuple[Int[np.ndarray, " batch"], Padding]:
        epoch, position = divmod(number, self.batches_per_epoch)
        latest, batches = self._latest
        if latest != epoch:
            batches = self.epoch(epoch)
            self._latest = (epoch, batches)
        return batches[position]

    def epoch(self, epoch: int) -> list[tuple[Int[np.ndarray, " batch"], Padding]]:
        """The batches of one epoch: indices of clips, and the shape they are padded to."""
        rng = np.random.default_rng([self._seed, epoch])
        used = self.batches_per_epoch * self._batch_size
        clips = rng.permutation(len(self._bucket_of_clip))[:used]
        bucket_of_clip = self._bucket_of_clip[clips]
        batches, left_over = [], clips[:0]
        for bucket, padding in enumerate(self.paddings):
            members = np.concatenate([left_over, clips[bucket_of_clip == bucket]])
            full = len(members) - len(members) % self._batch_size
            batches += [(b, padding) for b in members[:full].reshape(-1, self._batch_size)]
            left_over = members[full:]
        return [batches[position] for position in rng.permutation(len(batches))]


def _check_clips(batch_size: int, clips: int) -> None:
    """Raises `InputError` unless there are clips for a batch."""
    if clips == 0:
        raise InputError("expected clips to train on, the split is empty; choose another one")
    if batch_size > clips:
        raise InputError(
            f"data.batch_size: expected at most the {clips} clips of the split, got {batch_size}; "
            "lower it or extract more clips"
        )


def plan_training(
    split: "Split", *, batch_size: int, seed: int, align: str = "time", buckets: int = 4
) -> BatchPlan:
    """The plan that `training_batches` follows: its shapes, epochs and padding waste.

    Raises:
      InputError: the split is empty or smaller than a batch, or an option is not valid.
    """
    check_options(batch_size=batch_size, align=align, buckets=buckets)
    _check_clips(batch_size, len(split))
    check_resampled(split.fingerprint, align=align)
    if seed < 0:
        raise InputError(f"seed: expected 0 or more, got {seed}")
    lengths = trimmed_lengths(split, align)
    return BatchPlan(lengths, batch_size=batch_size, seed=seed, buckets=buckets)


def load_batch(
    split: "Split",
    indices: Int[np.ndarray, " batch"],
    padding: Padding,
    align: str = "time",
    dtype: str = "float32",
) -> Batch:
    """Reads, trims and pads the clips of one batch.

    Args:
      split: the clips.
      indices: which of them.
      padding: the shape.
      align: "time" or "index", see `trim`.
      dtype: "float32", or "float16" as stored, for the device to widen; exact either way. Pixels
        stay uint8.

    Returns:
      NumPy leaves: values `[batch, steps, width]` of `dtype` with zeros in the padding, lengths
      `[batch]` int32, windows `[batch, 2]` float32 in steps; numbers and seconds, see `Batch`.

    Raises:
      InputError: a clip is broken (`split` says which, and why) or longer than the plan says.
    """
    clips = (split[index] for index in indices.tolist())
    widths = split.visual_width, split.audio_width
    return stack(clips, indices, widths, padding, align, dtype)


def stack(
    clips: Iterable[Clip],
    numbers: Int[np.ndarray, " batch"],
    widths: tuple[int, int],
    padding: Padding,
    align: str,
    dtype: str = "float32",
) -> Batch:
    """Trims and pads clips; see `load_batch`."""
    seconds = np.full((len(numbers), 2), np.nan, np.float32)
    for row, clip in enumerate(clips):
        if row == 0:
            visual, audio = (
                _empty(len(numbers), steps, width, _in_batch(values, dtype))
                for steps, width, values in zip(
                    padding, widths, (clip.visual, clip.audio), strict=True
                )
            )
        visual_values, visual_window, audio_values, audio_window = trim(clip, align)
        _put(visual, row, visual_values, visual_window, f"clip {clip.id!r}: visual")
        _put(audio, row, audio_values, audio_window, f"clip {clip.id!r}: audio")
        if align == "time":
            seconds[row] = used_span(clip)
    return Batch(AudioVisual(visual, audio), numbers.astype(np.int32), seconds)


def _in_batch(stored: np.ndarray, dtype: str) -> np.dtype:
    return stored.dtype if stored.dtype == PIXELS_DTYPE else np.dtype(dtype)


def _empty(batch: int, steps: int, width: int, dtype: np.dtype) -> Sequences:
    return Sequences(
        values=np.empty((batch, steps, width), dtype),  # `_put` writes all of it
        lengths=np.zeros((batch,), np.int32),
        windows=np.zeros((batch, 2), np.float32),
    )


def _put(into: Sequences, row: int, values: np.ndarray, window: Window, what: str) -> None:
    _, steps, width = into.values.shape
    if (
        len(values) > steps
        or values.shape[1] != width
        or (values.dtype == PIXELS_DTYPE) != (into.values.dtype == PIXELS_DTYPE)
    ):
        raise InputError(
            f"{what} features: expected at most {steps} steps of width {width} as the data set's "
            f"list of clips says, got {values.shape[0]} of {values.shape[1]}; extract it again"
        )
    _copy(values, into.values[row, : len(values)])
    into.values[row, len(values) :] = 0
    into.lengths[row] = len(values)
    into.windows[row] = window


def _copy(stored: np.ndarray, out: np.ndarray) -> None:
    """`out[:] = stored`; what is stored in float32 and asked for in float16 is rounded."""
    if out.dtype == np.float32:
        widen(stored, out)
    elif stored.dtype == out.dtype and stored.flags.c_contiguous:
        out.view(np.uint8)[:] = stored.view(np.uint8)  # wherever it begins in its record
    else:
        out[:] = stored


def widen(stored: np.ndarray, out: Float[np.ndarray, "T C"]) -> None:
    """Writes stored features into `out` as float32, exactly.

    What `out[:] = stored` does, 7 times as fast for finite float16: NumPy converts half precision
    one value at a time on common builds, which would take half of the pipeline's time. Shifting
    the 10 + 5 bits of mantissa and exponent into float32's place leaves a value that is 2^112 too
    small, subnormal numbers included; sign extension brings the sign along.
    """
    if stored.dtype != np.float16 or not all_finite(stored):
        out[:] = stored
        return
    bits = out.view(np.int32)
    bits[:] = stored.view(np.int16)
    bits <<= 13
    bits &= np.int32(-0x70002000)  # 0x8FFFE000: the sign, 5 bits of exponent, 10 of mantissa
    out *= np.float32(2.0**112)


def _read_options(read_threads: int) -> "grain.ReadOptions":
    import grain

    # A thread makes a whole batch, and batches are large (0.6 GB for 256 clips of VGGSound): no
    # more are kept ready than threads work on. No threads: read when asked, as in a debugger.
    return grain.ReadOptions(num_threads=read_threads, prefetch_buffer_size=read_threads)


def training_batches(
    split: "Split",
    *,
    batch_size: int,
    seed: int,
    align: str = "time",
    buckets: int = 4,
    process: tuple[int, int] = (0, 1),
    read_threads: int = 2,
    dtype: str = "float32",
) -> "grain.IterDataset[Batch]":
    """Shuffled training batches without end; what a restart needs is the iterator's one integer.

    Args:
      split: the clips, as `scav_jax.features.store.read` opens them.
      batch_size: clips in a global batch, over all processes.
      seed: the same seed gives the same batches, whatever the number of processes or threads.
      align: "time" or "index", see `trim`.
      buckets: at most this many padded shapes, hence compiled programs.
      process: which one this is, and how many share a batch; each yields its `batch_size / count`
        consecutive rows.
      read_threads: how many threads read ahead.
      dtype: of the features, "float32" or "float16" (as stored).

    Returns:
      A grain dataset of `Batch` with NumPy leaves (see `load_batch`). Its iterators have
      `get_state()` and `set_state()`.

    Raises:
      InputError: here, if no such batch can be made; from the iterator, if a clip is broken.
    """
    import grain

    plan = plan_training(split, batch_size=batch_size, seed=seed, align=align, buckets=buckets)
    check_options(features=dtype, read_threads=read_threads)
    index, count = process
    check_multiple("data.batch_size", batch_size, count, "processes", least=2, most=len(split))
    rows = batch_size // count
    own = slice(index * rows, (index + 1) * rows)

    def load(planned: tuple[np.ndarray, Padding]) -> Batch:
        indices, padding = planned
        return load_batch(split, indices[own], padding, align, dtype)

    return grain.MapDataset.source(plan).map(load).to_iter_dataset(_read_options(read_threads))


def evaluation_batches(
    split: "Split",
    *,
    batch_size: int,
    align: str = "time",
    buckets: int = 4,
    read_threads: int = 2,
) -> Iterator[Batch]:
    """All clips once, in the order of the split; the last batch is smaller.

    A batch has the smallest of at most `buckets` padded shapes that holds its clips, so few
    programs are compiled. Args as for `training_batches`.

    Raises:
      InputError: here, if the split is empty; from the iterator, if a clip is broken.
    """
    import grain

    check_options(align=align, buckets=buckets)
    if batch_size < 1:
        raise InputError(f"batch size: expected at least 1, got {batch_size}")
    if len(split) == 0:
        raise InputError(f"expected clips to evaluate, split {split.split!r} is empty")
    check_resampled(split.fingerprint, align=align)
    lengths = trimmed_lengths(split, align)
    paddings = choose_paddings(lengths, buckets)
    firsts = range(0, len(split), batch_size)
    longest = np.maximum.reduceat(lengths, firsts, axis=0)
    planned = [
        (np.arange(first, min(first + batch_size, len(split))), paddings[bucket])
        for first, bucket in zip(firsts, smallest_fitting(longest, paddings), strict=True)
    ]

    def load(batch: tuple[np.ndarray, Padding]) -> Batch:
        indices, padding = batch
        return load_batch(split, indices, padding, align)

    dataset = grain.MapDataset.source(planned).map(load)
    return iter(dataset.to_iter_dataset(_read_options(read_threads)))
