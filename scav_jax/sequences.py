"""Padded sequences and their lengths: masks, means and resampling in time.

Conventions of the whole package. A sequence is `[T, C]`: steps, then channels; functions take one
sequence and are lifted by `jax.vmap`, unless a docstring says `[..., T, C]`. Padding is a suffix,
its content is never read (it may be NaN), and data carries `lengths`; a mask (True = real) lives
inside functions. Step `t` covers `[t, t + 1)` and its centre is `t + 0.5`.
"""

from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from scav_jax.base.errors import InputError

AnyArray: TypeAlias = Array | np.ndarray  # batches are NumPy until they are put on a device
RESAMPLINGS = ("visual_to_audio", "audio_to_visual")
# How far below a step, in steps, it is read from that step on. A compiler may work a position out
# twice and round it in two ways; grids meet at whole steps, so no step may begin just there.
BELOW = 2.3e-4


@flax.struct.dataclass
class Sequences:
    """Sequences of one stream, padded to one length; any number of leading axes, or none.

    Attributes:
      values: `[..., T, C]`; what lies at or beyond a sequence's length is never read.
      lengths: `[...]`, how many steps are real, in 1..T.
      windows: `[..., 2]`, (begin, extent) in steps, fractional: the part of this sequence that the
        other stream of the same clip covers, so that both windows show the same stretch of time.
        The whole sequence is (0, length).
    """

    values: Num[AnyArray, "*batch steps channels"]  # pixels are uint8, all else floating
    lengths: Int[AnyArray, "*batch"]
    windows: Float[AnyArray, "*batch 2"]

    if TYPE_CHECKING:  # flax makes it

        def replace(self, **changes) -> "Sequences": ...


class AudioVisual(NamedTuple):
    """Both streams of the same clips: features before the encoders, latents after them."""

    visual: Sequences
    audio: Sequences


STREAMS = AudioVisual._fields


class Batch(NamedTuple):
    """B clips of a batch.

    Attributes:
      features: both streams, padded.
      numbers: `[B]` int32, which clip of its split each is: what is random in a view follows from
        it, so that microbatches, devices and a resume change nothing.
      seconds: `[B, 2]` float32, begin and end of what both windows cover, from the clip's start;
        NaN where streams are not laid onto each other by time.
      targets: `[B, C]` float32, what each clip's label says of C classes; () where nobody asks.
    """

    features: AudioVisual
    numbers: Int[Array, " B"]
    seconds: Float[Array, "B 2"]
    targets: Float[Array, "B C"] | tuple = ()


def as_batch(features: AudioVisual) -> Batch:
    """Features as a batch of clips that are numbered in order, with no clock."""
    size = len(features.visual.lengths)
    seconds = jnp.full((size, 2), jnp.nan, jnp.float32)
    return Batch(features, jnp.arange(size, dtype=jnp.int32), seconds)


def sequences(
    values: Num[Array, "*batch steps channels"],
    lengths: Int[Array, "*batch"] | None = None,
    windows: Float[Array, "*batch 2"] | None = None,
) -> Sequences:
    """`Sequences` with what is left out filled in: every step real, the whole of it covered.

    Raises:
      InputError: values that are no array `[..., T, C]`, or lengths that are no integers `[...]`.

    >>> sequences(jnp.ones((2, 5, 3))).lengths
    Array([5, 5], dtype=int32)
    """
    shape = getattr(values, "shape", None)
    if shape is None or len(shape) < 2:
        raise InputError(
            "sequences: expected an array [..., steps, channels], got "
            f"{type(values).__name__ if shape is None else f'shape {shape}'}; stack equally long "
            "sequences, pad others and say their lengths"
        )
    if lengths is None:
        lengths = jnp.full(shape[:-2], shape[-2], jnp.int32)
    lengths = jnp.asarray(lengths)
    if lengths.shape != shape[:-2] or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise InputError(
            f"sequences: expected lengths as integers of shape {shape[:-2]} for values {shape}, "
            f"got {lengths.dtype} of shape {lengths.shape}"
        )
    lengths = lengths.astype(jnp.int32)
    if windows is None:
        windows = whole_windows(lengths)
    return Sequences(values=values, lengths=lengths, windows=windows)


def check_both_streams(features: AudioVisual, what: str) -> None:
    """Raises `InputError` unless both streams of a batch, `[B, T, C]` each, are there."""
    streams = features if isinstance(features, tuple) else ()
    found = [one.values.shape for one in streams if isinstance(one, Sequences)]
    if len(found) != len(STREAMS) or any(len(shape) != 3 for shape in found):
        names = found or type(features).__name__
        raise InputError(
            f"{what}: expected AudioVisual(visual, audio) of Sequences with values [batch, steps, "
            f"channels], got {names}; `scav_jax.sequences.sequences(values, lengths)` makes them"
        )


def whole_windows(lengths: Int[AnyArray, "*batch"]) -> Float[Array, "*batch 2"]:
    """The windows that cover whole sequences: (0, length) in steps."""
    extents = lengths.astype(jnp.float32)
    return jnp.stack([jnp.zeros_like(extents), extents], axis=-1)


def step_mask(lengths: Int[Array, "*batch"], steps: int) -> Bool[Array, "*batch steps"]:
    """True where a step is real.

    >>> step_mask(jnp.array([1, 3]), 3).astype(int)
    Array([[1, 0, 0],
           [1, 1, 1]], dtype=int32)
    """
    lengths = jnp.expand_dims(lengths, -1)
    return (
        jnp.arange(steps, dtype=lengths.dtype).reshape((1,) * (lengths.ndim - 1) + (-1,)) < lengths
    )


def zero_padding(
    values: Float[Array, "*batch steps channels"], lengths: Int[Array, "*batch"]
) -> Float[Array, "*batch steps channels"]:
    """The same values with zeros in the padding; no gradient reaches the padding, NaN included."""
    mask = step_mask(lengths, values.shape[-2])
    return jnp.where(mask[..., None], values, jnp.zeros((), values.dtype))


def masked_mean(
    values: Float[Array, "*batch steps channels"], lengths: Int[Array, "*batch"]
) -> Float[Array, "*batch channels"]:
    """The mean over real steps: the paper's temporal aggregation (section III-B)."""
    total = jnp.sum(zero_padding(values, lengths), axis=-2)
    return total / jnp.expand_dims(lengths, -1).astype(values.dtype)


def window_mean(stream: Sequences) -> Float[Array, "*batch channels"]:
    """The mean over the part of a sequence that the other stream covers, its `window`.

    A step counts with the share of it that lies in the window; where the window is the whole
    sequence, this is `masked_mean`.

    Args:
      stream: `[..., T, C]`, of any floating dtype; float32 at least comes back.
    """
    values = jnp.asarray(stream.values)
    values = values.astype(jnp.float32) if values.dtype.itemsize <= 2 else values
    lengths, windows = jnp.asarray(stream.lengths), jnp.asarray(stream.windows, values.dtype)
    begin, extent = (jnp.expand_dims(windows[..., i], -1) for i in (0, 1))
    steps = jnp.arange(values.shape[-2], dtype=values.dtype)
    steps = steps.reshape((1,) * (begin.ndim - 1) + (-1,))
    one = jnp.ones((), values.dtype)
    inside = jnp.minimum(steps + one, begin + extent) - jnp.maximum(steps, begin)
    share = jnp.where(step_mask(lengths, values.shape[-2]), jnp.clip(inside, 0.0, 1.0), 0.0)
    total = jnp.sum(zero_padding(values, lengths) * share[..., None], axis=-2)
    return total / jnp.sum(share, axis=-1, keepdims=True)


def less(stream: Sequences, mean: Float[Array, "*batch channels"]) -> Sequences:
    """A sequence `[..., T, C]` less a vector, zero in the padding."""
    values = jnp.asarray(stream.values).astype(mean.dtype)
    moved = zero_padding(values - mean[..., None, :], jnp.asarray(stream.lengths))
    return stream.replace(values=moved)


def unit(embeddings: Float[np.ndarray, "K C"], stream: str = "") -> Float[np.ndarray, "K C"]:
    """Embeddings of length 1, float32; `stream` is what an error calls them.

    Raises:
      InputError: an embedding without a direction (all zero, or not finite).
    """
    embeddings = np.asarray(embeddings, np.float64)
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))
    if bad.size:
        what = f"{stream} embeddings".strip()
        raise InputError(
            f"expected {what} with a finite, positive length, got {norms[bad[0], 0]} for number "
            f"{bad[0]} ({bad.size} of {len(norms)}); the model or its features hold NaN, or clips "
            "are alike: look at the training log and at `scav inspect`"
        )
    return (embeddings / norms).astype(np.float32)


def resample_positions(
    source_window: Float[Array, "2"],
    target_window: Float[Array, "2"],
    target_steps: int,
) -> Float[Array, " target_steps"]:
    """Where each target step reads the source, in source steps (0 = centre of the first step).

    The windows of both are laid onto each other, so target step t, whose centre lies at the share
    `u = (t + 0.5 - target_begin) / target_extent` of its window, reads the source at
    `source_begin + u * source_extent - 0.5`. For the two streams of one clip that is the same
    moment in time; with whole windows it is linear interpolation with `align_corners=False`.
    """
    dtype = source_window.dtype
    centres = jnp.arange(target_steps, dtype=dtype) + jnp.asarray(0.5, dtype)
    # The ratio first: on two equal grids it is exactly 1, and every step reads itself.
    pace = source_window[1] / target_window[1]
    return source_window[0] + (centres - target_window[0]) * pace - jnp.asarray(0.5, dtype)


def resample(
    source: Sequences,
    target_length: Int[Array, ""],
    target_window: Float[Array, "2"],
    target_steps: int,
) -> Float[Array, "target_steps channels"]:
    """One sequence, linearly interpolated at the steps of another (paper section III-C).

    Two taps a target step, no antialiasing; positions before the first or after the last real
    step read that step. Exact for any lengths; steps at or beyond `target_length` are zero.

    Args:
      source: one sequence `[S, C]`.
      target_length: how many target steps are real.
      target_window: (begin, extent) of the target, in target steps.
      target_steps: the static length T of the result.

    Returns:
      `[T, C]`, zero in the padding.
    """
    last = jnp.maximum(source.lengths - 1, 0)
    values = zero_padding(source.values, source.lengths)
    positions = resample_positions(source.windows, target_window, target_steps)
    positions = jnp.clip(positions, 0.0, last.astype(positions.dtype))
    left = jnp.minimum(jnp.floor(positions + BELOW).astype(jnp.int32), last)
    right = jnp.minimum(left + 1, last)
    weight = (positions - left.astype(positions.dtype)).astype(values.dtype)[:, None]
    # By value and difference, so that a constant sequence stays exactly constant.
    lower, upper = values[left], values[right]
    return zero_padding(lower + weight * (upper - lower), target_length)


def resample_like(
    source: Sequences, target: Sequences, points: int = 1, join: str = "beside"
) -> Sequences:
    """One `source` at the steps of one `target`: its values, the target's length and window.

    Args:
      source, target: one sequence each.
      points: at how many moments, evenly over each step of the target, the source is read; 1 is the
        centre.
      join: "beside" lays what was read at them side by side, `[T, points C]`; "mean" averages it,
        which is antialiased.
    """
    steps = target.values.shape[-2]
    finer = target.lengths * points, target.windows * points, steps * points
    values = resample(source, *finer).reshape(steps, points, -1)
    values = jnp.mean(values, axis=1) if join == "mean" else values.reshape(steps, -1)
    return Sequences(values=values, lengths=target.lengths, windows=target.windows)


def resample_pairs(
    batch: AudioVisual, direction: str, points: int = 1, join: str = "beside"
) -> AudioVisual:
    """Each clip's own streams `[B, T, C]` brought to one length (the paper's 'pre').

    Args:
      batch: both streams of B clips.
      direction: which stream is resampled to the steps of which, one of `RESAMPLINGS`.
      points, join: as for `resample_like`; the paper reads one point a step.
    """
    visual, audio = batch
    read = jax.vmap(partial(resample_like, points=points, join=join))
    if direction == "visual_to_audio":
        return AudioVisual(read(visual, audio), audio)
    if direction == "audio_to_visual":
        return AudioVisual(visual, read(audio, visual))
    raise ValueError(f"resampling direction: expected one of {RESAMPLINGS}, got {direction!r}")


def with_rises(stream: Sequences, gain: float) -> Sequences:
    """Beside each feature how much it rose since the step before, times `gain`: `[..., T, 2 C]`.

    An onset is a rise; a difference without its sign is a fall as well. The first step has none.
    """
    values = jnp.asarray(stream.values)
    before = jnp.concatenate([values[..., :1, :], values[..., :-1, :]], axis=-2)
    rises = jnp.maximum(values - before, 0.0) * jnp.asarray(gain, values.dtype)
    return stream.replace(values=jnp.concatenate([values, rises], axis=-1))
