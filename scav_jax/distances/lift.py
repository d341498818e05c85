"""From one pair to all pairs, by the definition itself: for a distance without a faster form."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from scav_jax.base.errors import InputError
from scav_jax.sequences import Sequences

PairFunction = Callable[..., Float[Array, ""]]
COPIES = 8  # of what a pair takes, while it is differentiated; a guess that sets the block only


def all_pairs(
    pair: PairFunction,
    visual: Sequences,
    audio: Sequences,
    *,
    block: int | None,
    memory_bytes: int,
    **options,
) -> tuple[Float[Array, "Q K"], dict]:
    """`D[i, j] = pair(visual[i], audio[j])`, a block of pairs at a time.

    A block's intermediate results are computed again in the backward pass, so that memory does not
    grow with the number of blocks.

    Args:
      pair: distance of one visual `[N, C]` and one audio sequence `[M, C]`.
      visual: Q sequences `[Q, N, C]`.
      audio: K sequences `[K, M, C]`.
      block: pairs at a time, or None for as many as the memory allows.
      memory_bytes: of intermediate results, roughly.
      **options: of the pair function.

    Returns:
      D, and no further results.

    Raises:
      InputError: the pair function gives no single number.
    """
    queries, candidates = len(visual.lengths), len(audio.lengths)

    def one(v: Sequences, a: Sequences) -> Float[Array, ""]:
        distance = pair(v, a, **options)
        problem = _problem(distance)
        if problem:
            raise InputError(f"distance {getattr(pair, '__name__', pair)}: expected {problem}")
        return distance

    if block is None:
        (n, width), m = visual.values.shape[-2:], audio.values.shape[-2]
        entries = (n + m) * width + (n + m) * max(n, m)  # that a definition may keep of a pair
        block = max(1, memory_bytes // (COPIES * entries * visual.values.dtype.itemsize))
    if block >= queries * candidates:
        return jax.vmap(lambda v: jax.vmap(lambda a: one(v, a))(audio))(visual), {}

    @jax.checkpoint
    def numbered(number: Int[Array, ""]) -> Float[Array, ""]:
        v = jax.tree.map(lambda leaf: leaf[number // candidates], visual)
        a = jax.tree.map(lambda leaf: leaf[number % candidates], audio)
        return one(v, a)

    numbers = jnp.arange(queries * candidates)
    distances = jax.lax.map(numbered, numbers, batch_size=block)
    return distances.reshape(queries, candidates), {}


def _problem(distance: object) -> str:
    """What is wrong with what a pair function returned, or the empty string."""
    if not isinstance(distance, jax.Array | np.generic | np.ndarray | float):
        return f"a number for a pair, got a {type(distance).__name__}; return one, of jax.numpy"
    if jnp.shape(distance):  # [1] would be spread over the pairs of a batch
        return (
            f"a number for a pair, got an array of shape {jnp.shape(distance)}; return its mean or "
            "sum"
        )
    dtype = jnp.result_type(distance)
    if jnp.issubdtype(dtype, jnp.floating):
        return ""
    return f"a real number in floating point, got {dtype}: nothing could be learned through it"
