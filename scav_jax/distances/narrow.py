"""Latents in 16 bits: distances are computed in float32.

A float16 squared is 0 below 2e-4 and infinite above 256, and what is summed over a clip much sooner
so. bfloat16 has the range of float32 and three digits: what is summed of it, or solved, loses them.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax.numpy as jnp

from scav_jax.sequences import Sequences

NARROW = (jnp.float16, jnp.bfloat16)


def widened(stream: Sequences) -> Sequences:
    """The same sequences with values of 16 bits as float32, exactly; others as they are."""
    if stream.values.dtype not in NARROW:
        return stream
    windows = stream.windows.astype(jnp.promote_types(stream.windows.dtype, jnp.float32))
    return stream.replace(values=stream.values.astype(jnp.float32), windows=windows)


def in_float32(of_streams: Callable[..., Any]) -> Callable[..., Any]:
    """A function of two streams that computes those of 16 bits in float32.

    Args:
      of_streams: `(visual, audio, **options) -> array`; what it returns has the dtype of its
        streams again.
    """

    @wraps(of_streams)
    def wide(visual: Sequences, audio: Sequences, **options):
        dtype = visual.values.dtype
        if dtype not in NARROW:
            return of_streams(visual, audio, **options)
        return of_streams(widened(visual), widened(audio), **options).astype(dtype)

    return wide
