"""Many warping problems at once, from given costs: the recursion behind soft-DTW and DTW.

It is written as a cost-to-go. With `softmin(x) = -gamma log sum exp(-x / gamma)`

    S[i, j] = cost[i, j] + softmin(S[i, j+1], S[i+1, j], S[i+1, j+1]),    d = S[0, 0],

where S of the last real cell is its cost; `min` instead of `softmin` is DTW. A path costs the same
in both directions, so this is Cuturi and Blondel's recursion (2017), which starts at the first
cell. Started at the last, pairs of different lengths begin at different places and all end at
(0, 0): the result lies in one place whatever the lengths.

The gradient with respect to the costs is the expected alignment. From (0, 0) a path steps right,
down or diagonally with the probabilities that the soft minimum gave to the three; E[i, j] is the
probability that it visits (i, j):

    E[0, 0] = 1,    E[i, j] = E[i, j-1] p_right[i, j-1] + E[i-1, j] p_down[i-1, j] + ...

The probabilities of a cell come from the three stored numbers that its soft minimum came from, so
they sum to 1 and float32 loses no mass on the way. (Differences of S, as in the usual form of the
recursion, lose 1e-2 on paths of 300 steps at gamma 1e-3.)

How it is computed. The cells of an anti-diagonal do not depend on each other: a `lax.scan` takes
one diagonal after the other. Pairs lie on the last axis ("lanes"), which vector units work on.
T problems follow one another along the columns (costs `[N, T, M, P]`), so that when a row has
finished its last column of one it begins the next: no row of a diagonal is idle. A diagonal of
`[N, T * M]` cells is a strided slice of the costs; nothing is copied to skew them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

UNREACHABLE = 1e37  # a cost-to-go; finite also in sums, so that no inf - inf arises
REACHABLE = 1e36  # what is less is a real one

# On a CPU: pairs side by side, of which a diagonal stays in the nearest cache; and cells of the
# costs at once, whose tables stay in the last one. An accelerator takes what the memory allows.
CPU_LANES = 32
CPU_CELLS = 2**21
# On an accelerator: diagonals of one pass of a loop. Each pass counts, and copies what it hands on.
DIAGONALS_AT_ONCE = 4


class Tiling(NamedTuple):
    """How queries x candidates pairs are cut into tiles.

    Attributes:
      stream: how many groups of queries follow one another within one recursion.
      group: how many queries lie side by side on the lanes, ...
      across: ... each with how many candidates.
    """

    stream: int
    group: int
    across: int


class _Problems(NamedTuple):
    """Costs as the recursion reads them.

    Attributes:
      costs: `[N, T * M, P]` in units of gamma, less the minimum of their column; UNREACHABLE in
        padding.
      minima: `[N - 1 + T * M + N - 1, P]`, those minima from the last column to the first, between
        zeros, so that the columns of a diagonal are a slice; None where nothing was taken away.
      offsets: `[T, P]`, the sum of a problem's minima, or None.
      columns: M, of one problem.
    """

    costs: Float[Array, "N L P"]
    minima: Float[Array, "W P"] | None
    offsets: Float[Array, "T P"] | None
    columns: int


def fast_block(n: int, m: int, itemsize: int, memory_bytes: int) -> int:
    """How many pairs of `[n, m]` costs are computed at once: what is fast within the memory."""
    fits = max(1, memory_bytes // tile_bytes(n, m, itemsize))
    if jax.default_backend() == "cpu":
        return min(fits, max(1, CPU_CELLS // (n * m)))
    return fits


def tile_bytes(n: int, m: int, itemsize: int) -> int:
    """Memory per pair of a tile: its costs, masked costs, two tables and alignments."""
    return itemsize * n * (6 * m + 2 * n)


def _at_once() -> int:
    """Diagonals of one pass of a loop; a CPU gains nothing by more."""
    return 1 if jax.default_backend() == "cpu" else DIAGONALS_AT_ONCE


def tiling(queries: int, candidates: int, block: int) -> Tiling:
    """Tiles of at most `block` pairs, as equal as possible, so that little is computed in vain."""
    lanes = min(block, CPU_LANES) if jax.default_backend() == "cpu" else block
    across = _even(candidates, lanes)
    group = _even(queries, max(1, lanes // across))
    stream = _even(-(-queries // group), max(1, block // (across * group)))
    return Tiling(stream, group, across)


def _even(items: int, most: int) -> int:
    """The size of equal parts of `items`, each at most `most`."""
    parts = -(-items // most)
    return -(-items // parts)


def solve_tile(
    costs: Float[Array, "N T M P"],
    rows: Int[Array, "T P"],
    columns: Int[Array, "T P"],
    gamma: float | None,
    *,
    aligned: bool,
) -> tuple[Float[Array, "T P"], Float[Array, "N T M P"] | None]:
    """The warping costs of T * P pairs, in the layout of the recursion; not differentiable.

    Args:
      costs: finite, also in the padding. It is faster with N <= M.
      rows: how many of the N steps of each pair are real, at least 1.
      columns: how many of the M, at least 1.
      gamma: smoothing > 0 in units of the costs, or None for DTW.
      aligned: whether to compute the alignments too.

    Returns:
      The values; and their gradient for the costs, the expected alignments in [0, 1], 0 in padding
      (or None). For DTW it is a subgradient: equally cheap steps have equal shares.
    """
    problems = _problems(costs, rows, columns, gamma)
    values, table = _costs_to_go(problems, gamma, keep=aligned)
    alignments = _walk(problems, table, gamma).reshape(costs.shape) if aligned else None
    return values if gamma is None else gamma * (values + problems.offsets), alignments


def _problems(costs, rows, columns, gamma) -> _Problems:
    """Masked costs in units of gamma, relative to the least cost of their column.

    Every path enters every column once, so taking a constant away from that step moves all paths
    alike. What is left is small next to the costs themselves, and float32 resolves it better:
    gradients at gamma 1e-3 came out 3 to 100 times more accurate.
    """
    n, tiles, m, lanes = costs.shape
    row = jnp.arange(n, dtype=rows.dtype).reshape(n, 1, 1, 1)
    column = jnp.arange(m, dtype=columns.dtype).reshape(1, 1, m, 1)
    real = (row < rows[None, :, None, :]) & (column < columns[None, :, None, :])
    if gamma is None:
        masked = jnp.where(real, costs, UNREACHABLE)
        return _Problems(masked.reshape(n, tiles * m, lanes), None, None, m)
    scaled = costs * (1.0 / gamma)
    minima = jnp.min(jnp.where(real, scaled, UNREACHABLE), axis=0, keepdims=True)
    minima = jnp.where(real[:1], minima, 0.0)
    masked = jnp.where(real, scaled - minima, UNREACHABLE)
    backwards = minima.reshape(tiles * m, lanes)[::-1]
    return _Problems(
        costs=masked.reshape(n, tiles * m, lanes),
        minima=jnp.pad(backwards, ((n - 1, n - 1), (0, 0))),
        offsets=jnp.sum(minima[0], axis=1),
        columns=m,
    )


def _costs_to_go(problems: _Problems, gamma, *, keep: bool):
    """All diagonals from the last to the first.

    Returns:
      S[0, 0] `[T, P]`, and if `keep` what `_walk` needs: S of diagonal 1 and, for every diagonal
      d, S of diagonal d + 2 `[D, N, P]`.
    """
    schedule = _schedule(problems)

    def step(carry, inputs):
        following, after = carry  # diagonals d + 1 and d + 2
        diagonal, in_last_column = inputs
        costs = _diagonal_of(problems.costs, diagonal)
        ahead = _ahead(following, after, in_last_column, _minima_of(problems, diagonal))
        current = costs + _soft_minimum(*ahead, gamma)[0]
        return (current, following), (following[0], after if keep else None)

    beyond = jnp.full_like(_diagonal_of(problems.costs, 0), UNREACHABLE)
    (current, following), (corners, table) = jax.lax.scan(
        step,
        (beyond, beyond),
        (schedule.diagonals, schedule.in_last_column),
        reverse=True,
        unroll=_at_once(),
    )
    corners = jnp.concatenate([current[:1], corners[:-1]])  # S of row 0, by diagonal
    return corners[: problems.costs.shape[1] : problems.columns], (following, table)


def _walk(problems: _Problems, table, gamma) -> Float[Array, "N L P"]:
    """The probability that a path visits each cell, from the first diagonal to the last."""
    n, length, _ = problems.costs.shape
    schedule = _schedule(problems)
    following, afters = table
    first_row = (jnp.arange(n) == 0).reshape(n, 1)

    def step(carry, inputs):
        arriving, arriving_next, following = carry
        diagonal, in_last_column, begins, after = inputs
        visits = jnp.where(first_row & begins, 1.0, arriving)
        ahead = _ahead(following, after, in_last_column, _minima_of(problems, diagonal))
        _, (right, down, diagonally), total = _soft_minimum(*ahead, gamma)
        share = visits / total
        arriving = arriving_next + share * right + _to_row_below(share * down)
        return (arriving, _to_row_below(share * diagonally), after), visits

    nowhere = jnp.zeros_like(following)
    _, visits = jax.lax.scan(
        step,
        (nowhere, nowhere, following),
        (schedule.diagonals, schedule.in_last_column, schedule.begins, afters),
        unroll=_at_once(),
    )

    def row_of(row):  # cell (i, j) lies on diagonal i + j
        return jax.lax.dynamic_slice_in_dim(visits[:, row], row, length)

    return jax.vmap(row_of)(jnp.arange(n))


class _Schedule(NamedTuple):
    """What each of the D = L + N - 1 diagonals is.

    Attributes:
      diagonals: `[D]`, their numbers.
      in_last_column: `[D, N, 1]`, whether the cell of row i is in the last column of a problem.
      begins: `[D]`, whether the cell of row 0 is a problem's first.
    """

    diagonals: np.ndarray
    in_last_column: np.ndarray
    begins: np.ndarray


def _schedule(problems: _Problems) -> _Schedule:
    n, length, _ = problems.costs.shape
    diagonals = np.arange(length + n - 1, dtype=np.int32)
    column = (diagonals[:, None] - np.arange(n)) % problems.columns
    begins = (column[:, 0] == 0) & (diagonals < length)
    return _Schedule(diagonals, (column == problems.columns - 1)[..., None], begins)


def _diagonal_of(costs: Float[Array, "N L P"], diagonal) -> Float[Array, "N P"]:
    """Cells (i, diagonal - i); where that lies outside, some other cell.

    Such cells are never read: what they lead to lies outside too, and in the first and the last
    column nobody looks to the side.
    """
    n, length, lanes = costs.shape
    cells = costs.reshape(n * length, lanes)
    reach = (n - 1) * (length - 1) + 1
    window = jax.lax.dynamic_slice_in_dim(cells, diagonal, reach)
    # Of a single column, row by row, every diagonal is one cell.
    return window[:: length - 1] if length > 1 else jnp.broadcast_to(window, (n, lanes))


def _minima_of(problems: _Problems, diagonal) -> Float[Array, "N P"] | None:
    """The minima of the columns that the cells of a diagonal are in."""
    if problems.minima is None:
        return None
    n, length, _ = problems.costs.shape
    return jax.lax.dynamic_slice_in_dim(problems.minima, length + n - 2 - diagonal, n)


def _ahead(following, after, in_last_column, minima):
    """What a path can go to from each cell: to the right, down, diagonally."""
    right = jnp.where(in_last_column, UNREACHABLE, following)
    down = _from_row_below(following)
    if minima is not None:
        down = down + minima  # a minimum was taken away from every cell, but is owed once a column
    return right, down, jnp.where(in_last_column, UNREACHABLE, _from_row_below(after))


def _from_row_below(cells: Float[Array, "N P"]) -> Float[Array, "N P"]:
    return jnp.concatenate([cells[1:], jnp.full_like(cells[:1], UNREACHABLE)])


def _to_row_below(cells: Float[Array, "N P"]) -> Float[Array, "N P"]:
    return jnp.concatenate([jnp.zeros_like(cells[:1]), cells[:-1]])


def _soft_minimum(right, down, diagonally, gamma):
    """The (soft) minimum of what lies ahead, and the three shares with their total >= 1.

    Where nothing can be reached nothing remains to be paid, and no path goes on: that is the last
    real cell, or padding, whose own cost is UNREACHABLE.
    """
    ahead = (right, down, diagonally)
    lowest = jnp.minimum(jnp.minimum(jnp.minimum(right, down), diagonally), REACHABLE)
    if gamma is None:
        shares = [(x == lowest).astype(lowest.dtype) for x in ahead]
    else:
        shares = [jnp.exp(lowest - x) for x in ahead]
    total = jnp.maximum(shares[0] + shares[1] + shares[2], 1.0)
    least = lowest if gamma is None else lowest - jnp.log(total)
    return jnp.where(lowest >= REACHABLE, 0.0, least), shares, total
