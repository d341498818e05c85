"""Dynamic time warping and its differentiable soft variant (paper section III-C, distance 2).

Costs are squared differences averaged over channels. With
`softmin(x) = -gamma log sum exp(-x / gamma)` (Cuturi and Blondel 2017)

    R[i, j] = cost[i, j] + softmin(R[i-1, j-1], R[i-1, j], R[i, j-1]),    d = R[n, m]

and `min` instead of `softmin` in DTW proper, which the paper uses for retrieval. No normalisation
by the path's length. The recursion runs over anti-diagonals by `lax.scan`; the gradient goes
through the stored soft-min probabilities, never through differences of R, which float32 loses.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scav_jax.sequences import Sequences, zero_padding

FULL_PRECISION = jax.lax.Precision.HIGHEST
BIG = 1e10  # 'unreachable', finite so that no inf - inf arises


def step_costs(visual: Sequences, audio: Sequences) -> Float[Array, "N M"]:
    """Squared difference of every visual step to every audio step, averaged over channels.

    Both are centred by one vector first, which changes no difference and avoids cancellation.
    """
    v = zero_padding(visual.values, visual.lengths)
    a = zero_padding(audio.values, audio.lengths)
    counts = (visual.lengths + audio.lengths).astype(v.dtype)
    centre = jax.lax.stop_gradient((jnp.sum(v, 0) + jnp.sum(a, 0)) / counts)[None]
    v, a = zero_padding(v - centre, visual.lengths), zero_padding(a - centre, audio.lengths)
    products = jnp.matmul(v, a.T, precision=FULL_PRECISION)
    squared = jnp.sum(v * v, 1)[:, None] + jnp.sum(a * a, 1)[None, :] - 2.0 * products
    return jnp.maximum(squared, 0.0) / v.shape[-1]


def soft_dtw(visual: Sequences, audio: Sequences, *, gamma: float = 0.1) -> Float[Array, ""]:
    """Soft-DTW of one pair, the training form; can be negative.

    Args:
      visual: one sequence `[N, C]`.
      audio: one sequence `[M, C]`.
      gamma: smoothing > 0, in units of the channel-averaged cost; towards 0 it is DTW.
    """
    if not gamma > 0:
        raise ValueError(f"soft-DTW: gamma should be > 0, got {gamma}; 'dtw' is its limit at 0")
    costs = step_costs(visual, audio)
    return warping_cost(costs, visual.lengths, audio.lengths, gamma)


def dtw(visual: Sequences, audio: Sequences) -> Float[Array, ""]:
    """DTW of one pair: the cost of the cheapest monotone alignment, the retrieval form."""
    return warping_cost(step_costs(visual, audio), visual.lengths, audio.lengths, None)


def warping_cost(
    costs: Float[Array, "N M"],
    rows: Int[Array, ""],
    columns: Int[Array, ""],
    gamma: float | None,
) -> Float[Array, ""]:
    """The recursion over given costs, read at the true lengths; `gamma=None` is hard DTW."""
    if costs.shape[0] > costs.shape[1]:  # the shorter side is the width of a diagonal
        costs, rows, columns = costs.T, columns, rows
    height = costs.shape[0]
    diagonals = _diagonals(costs)
    row = jnp.arange(height)
    big = jnp.full((height,), BIG, costs.dtype)
    first = jnp.where(row == 0, diagonals[0], big)
    end = rows + columns - 2  # the diagonal of the last real cell

    def step(carry, inputs):
        before, last, value = carry
        index, cost = inputs
        above = jnp.concatenate([big[:1], last[:-1]])
        corner = jnp.concatenate([big[:1], before[:-1]])
        current = jnp.minimum(cost + _softmin(last, above, corner, gamma), BIG)
        value = jnp.where(index == end, current[rows - 1], value)
        return (last, current, value), None

    indices = jnp.arange(1, len(diagonals), dtype=end.dtype)
    (_, _, value), _ = jax.lax.scan(step, (big, first, first[0]), (indices, diagonals[1:]))
    return value


def _diagonals(costs: Float[Array, "N M"]) -> Float[Array, "D N"]:
    """Anti-diagonals: `result[d, i] = costs[i, d - i]`, BIG outside the matrix."""
    height, width = costs.shape
    padded = jnp.pad(costs, ((0, 0), (0, height)), constant_values=BIG)
    skewed = padded.reshape(-1)[: height * (width + height - 1)]
    return skewed.reshape(height, width + height - 1).T


def _softmin(left, above, corner, gamma: float | None):
    """The (soft) minimum of three arrays, elementwise."""
    lowest = jnp.minimum(jnp.minimum(left, above), corner)
    if gamma is None:
        return lowest
    lowest = jax.lax.stop_gradient(lowest)
    total = sum(jnp.exp((lowest - x) / gamma) for x in (left, above, corner))
    return lowest - gamma * jnp.log(total)


def soft_alignment(
    visual: Sequences, audio: Sequences, *, gamma: float = 0.1
) -> Float[Array, "N M"]:
    """The expected alignment under soft-DTW: the gradient with respect to the costs, in [0, 1]."""
    costs = step_costs(visual, audio)
    return jax.grad(warping_cost)(costs, visual.lengths, audio.lengths, gamma)


def hard_alignment(visual: Sequences, audio: Sequences) -> Float[Array, "N M"]:
    """The cells of the cheapest path (1 on it, shared among equally cheap ones)."""
    costs = step_costs(visual, audio)
    return jax.grad(warping_cost)(costs, visual.lengths, audio.lengths, None)
