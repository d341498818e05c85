"""From one pair to all pairs, within a memory budget."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from scav_jax.sequences import Sequences

PairFunction = Callable[[Sequences, Sequences], Float[Array, ""]]


def all_pairs(
    pair: PairFunction,
    visual: Sequences,
    audio: Sequences,
    *,
    pair_bytes: int,
    block_bytes: int,
) -> Float[Array, "Q K"]:
    """`D[i, j] = pair(visual[i], audio[j])`, as many rows at a time as the budget allows.

    The values do not depend on the budget; a block's intermediate results are recomputed in the
    backward pass, so that memory does not grow with the number of blocks.

    Args:
      pair: distance of one visual `[N, C]` and one audio sequence `[M, C]`.
      visual: Q sequences `[Q, N, C]`.
      audio: K sequences `[K, M, C]`.
      pair_bytes: roughly what one pair needs while it is computed.
      block_bytes: the budget; at least one row is computed at a time.
    """
    queries, candidates = len(visual.lengths), len(audio.lengths)

    def row(one: Sequences) -> Float[Array, "K"]:
        return jax.vmap(lambda other: pair(one, other))(audio)

    rows = max(1, block_bytes // max(1, candidates * pair_bytes))
    if rows >= queries:
        return jax.vmap(row)(visual)
    return jax.lax.map(jax.checkpoint(row), visual, batch_size=rows)
