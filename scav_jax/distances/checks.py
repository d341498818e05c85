"""What a pair of streams must be before any distance sees it.

Shapes are known when a function is traced, so they are checked then. Lengths and values are data:
outside of `jit` they are checked too, inside they can only be flagged (`usable`).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from scav_jax.base.errors import InputError
from scav_jax.sequences import Sequences, step_mask

LEAST_BITS = 16  # of a number of latents


def check_streams(visual: Sequences, audio: Sequences) -> None:
    """Raises `InputError` for streams that no distance can compare.

    Shapes always; lengths, windows and values of a stream where they are known, that is where it
    is not what `jit`, `grad` or `vmap` traces.
    """
    for name, stream in (("visual", visual), ("audio", audio)):
        if not isinstance(stream, Sequences):
            raise InputError(
                f"{name}: expected Sequences, got {type(stream).__name__}; "
                "`scav_jax.sequences.sequences(values, lengths)` makes them of an array"
            )
        shape = stream.values.shape
        if len(shape) != 3 or 0 in shape:
            raise InputError(
                f"{name}: expected latents [batch, steps, channels], none of them 0, got {shape}"
            )
        expected = {"lengths": shape[:1], "windows": (*shape[:1], 2)}
        for field, wanted in expected.items():
            got = getattr(stream, field).shape
            if got != wanted:
                raise InputError(f"{name}.{field}: expected shape {wanted}, got {got}")
    if visual.values.shape[-1] != audio.values.shape[-1]:
        raise InputError(
            f"both streams should have one width, got visual {visual.values.shape} and audio "
            f"{audio.values.shape}; encode them first"
        )
    dtype = visual.values.dtype
    if not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits < LEAST_BITS:
        raise InputError(
            f"visual: expected latents in float16, bfloat16, float32 or float64, got {dtype}; cast "
            "both streams"
        )
    if dtype != audio.values.dtype:
        raise InputError(
            f"both streams should have one dtype, got visual {dtype} and audio "
            f"{audio.values.dtype}; cast one of them"
        )
    for name, stream in (("visual", visual), ("audio", audio)):
        if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(stream)):
            _check_content(name, stream)


def _check_content(name: str, stream: Sequences) -> None:
    steps = stream.values.shape[-2]
    lengths, windows = np.asarray(stream.lengths), np.asarray(stream.windows)
    bad = np.flatnonzero((lengths < 1) | (lengths > steps))
    if bad.size:
        raise InputError(
            f"{name}.lengths: expected 1 to {steps} (the steps of the array), got "
            f"{lengths[bad[0]]} for number {bad[0]}; leave out what is empty"
        )
    bad = np.flatnonzero(~np.isfinite(windows).all(axis=1) | ~(windows[:, 1] > 0))
    if bad.size:
        raise InputError(
            f"{name}.windows: expected (begin, extent) with an extent above 0, got "
            f"{tuple(windows[bad[0]].tolist())} for number {bad[0]}"
        )
    with jax.ensure_compile_time_eval():  # it may be a constant of what is traced
        bad = np.flatnonzero(~np.asarray(jax.jit(usable)(stream)))
    if bad.size:
        raise InputError(
            f"{name}: expected finite latents, number {bad[0]} holds NaN or infinity within its "
            f"{lengths[bad[0]]} steps ({bad.size} of {len(lengths)} do); look at the encoder"
        )


def in_range(stream: Sequences) -> Bool[Array, " B"]:
    """Which sequences have a length that the array can hold, and a window that is not empty."""
    steps = stream.values.shape[-2]
    whole = (stream.lengths >= 1) & (stream.lengths <= steps)
    return whole & jnp.isfinite(stream.windows[:, 0]) & (stream.windows[:, 1] > 0)


def usable(stream: Sequences) -> Bool[Array, " B"]:
    """Which sequences have a length and a window in range, and finite values."""
    padding = ~step_mask(stream.lengths, stream.values.shape[-2])
    finite = jnp.all(jnp.isfinite(stream.values), axis=-1) | padding
    return in_range(stream) & jnp.all(finite, axis=-1)
