"""Dynamic time warping and its differentiable soft variant (paper section III-C, distance 2).

Costs are squared differences of steps, averaged over channels. A path goes from the first to the
last cell of the `[N, M]` costs by steps to the right, down or diagonally, and costs what its cells
cost. DTW is the cheapest path. Soft-DTW is the soft minimum over all paths,
`-gamma log sum_paths exp(-cost / gamma)` (Cuturi and Blondel 2017), which is smooth. The paper
trains with the soft one and ranks by DTW. No normalisation by the path's length.

Both are one recursion: with S[i, j] what remains to be paid from cell (i, j) to the last one,

    S[i, j] = cost[i, j] + softmin(S[i, j+1], S[i+1, j], S[i+1, j+1]),    d = S[0, 0].

Costs of pairs are products of matrices, for which latents are centred. Where clips lie in groups
that are far apart, no centre helps: then costs are made of differences, channel by channel, several
times slower.

This file has it cell by cell for one pair (the definition), the alignments and paths for plotting,
and the fast form of all pairs: tiles of pairs, whose costs are one matrix product each and whose
recursion is `warping.py`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from scav_jax.base.errors import InputError
from scav_jax.distances import warping
from scav_jax.distances.centre import scattered, typical
from scav_jax.distances.forms import chosen
from scav_jax.distances.narrow import in_float32
from scav_jax.sequences import Sequences, masked_mean, zero_padding

# TF32 and bf16, the accelerators' defaults, lose what the z-score then amplifies.
FULL_PRECISION = jax.lax.Precision.HIGHEST


# -- one pair: the definition ---------------------------------------------------------------------


@in_float32
def soft_dtw(visual: Sequences, audio: Sequences, *, gamma: float = 0.1) -> Float[Array, ""]:
    """Soft-DTW of one pair, the training form; can be negative.

    Args:
      visual: one sequence `[N, C]`.
      audio: one sequence `[M, C]`.
      gamma: smoothing > 0, in units of the channel-averaged cost; towards 0 it is DTW.

    Raises:
      InputError: gamma is not above 0.
    """
    check_options(gamma)
    return _costs_to_go(visual, audio, gamma)[0, 0]


@in_float32
def dtw(visual: Sequences, audio: Sequences) -> Float[Array, ""]:
    """DTW of one pair: the cost of the cheapest monotone alignment, the retrieval form."""
    return _costs_to_go(visual, audio, None)[0, 0]


@in_float32
def step_costs(visual: Sequences, audio: Sequences) -> Float[Array, "N M"]:
    """Squared difference of every visual step to every audio step, averaged over channels.

    Both are centred by one vector first, which changes no difference and avoids cancellation.
    """
    v, a = _centred(visual, audio)
    return _squared_differences(v, a) / v.shape[-1]


def _squared_differences(x: Float[Array, "X C"], y: Float[Array, "Y C"]) -> Float[Array, "X Y"]:
    """Of every row of x to every row of y, >= 0."""
    squares = jnp.sum(x * x, 1)[:, None] + jnp.sum(y * y, 1)[None, :]
    return jnp.maximum(squares - 2.0 * _product(x, y.T), 0.0)


def _by_channels(x: Float[Array, "X C"], y: Float[Array, "Y C"]) -> Float[Array, "X Y"]:
    """The same of differences, of which none is rounded away."""

    def add(total: Float[Array, "X Y"], channel: tuple[Array, Array]):
        of_x, of_y = channel
        return total + (of_x[:, None] - of_y[None, :]) ** 2, None

    # 0 that varies over devices as x and y do.
    nothing = 0.0 * (x[:, :1] + y[None, :, 0])
    return jax.lax.scan(add, nothing, (x.T, y.T))[0]


def _product(x: Float[Array, "X C"], y: Float[Array, "C Y"]) -> Float[Array, "X Y"]:
    return jnp.matmul(x, y, precision=FULL_PRECISION)


def _centred(visual: Sequences, audio: Sequences):
    """Both `[..., T, C]` less a centre of what all of them hold, 0 in padding.

    The centre is a constant of the gradient too: moving all steps alike moves no difference.
    """
    means = [jnp.atleast_2d(masked_mean(x.values, x.lengths)) for x in (visual, audio)]
    centre = typical(jnp.concatenate(means))
    return [
        zero_padding(x.values - jnp.broadcast_to(centre, x.values.shape), x.lengths)
        for x in (visual, audio)
    ]


def _costs_to_go(visual: Sequences, audio: Sequences, gamma: float | None) -> Float[Array, "N M"]:
    """S, cell by cell from the last row and column; `gamma=None` is hard DTW."""
    costs = step_costs(visual, audio)
    big = jnp.asarray(warping.UNREACHABLE, costs.dtype)
    rows, columns = visual.lengths, audio.lengths

    def row_step(row_below, row):
        i, row_costs = row

        def cell_step(carry, cell):
            right, diagonal = carry  # S[i, j+1] and S[i+1, j+1]
            j, cost, down = cell
            least = _soft_minimum(right, down, diagonal, gamma)
            least = jnp.where((i == rows - 1) & (j == columns - 1), 0.0, least)
            to_go = jnp.where((i < rows) & (j < columns), cost + least, big)
            return (to_go, down), to_go

        cells = (jnp.arange(len(row_costs), dtype=columns.dtype), row_costs, row_below)
        _, to_go = jax.lax.scan(cell_step, (big, big), cells, reverse=True)
        return to_go, to_go

    nothing = jnp.full_like(costs[0], big)
    numbers = jnp.arange(len(costs), dtype=rows.dtype)
    _, table = jax.lax.scan(row_step, nothing, (numbers, costs), reverse=True)
    return table


def _soft_minimum(right, down, diagonal, gamma: float | None):
    """The (soft) minimum of three numbers."""
    three = jnp.stack([right, down, diagonal])
    if gamma is None:
        return jnp.min(three)
    lowest = jax.lax.stop_gradient(jnp.min(three))
    return lowest - gamma * jnp.log(jnp.sum(jnp.exp((lowest - three) / gamma)))


def check_options(gamma: float) -> None:
    """Raises `InputError` for a gamma that is not above 0."""
    if not 0 < gamma < float("inf"):
        raise InputError(
            f"soft-DTW: gamma should be a number above 0, got {gamma}; its limit at 0 is 'dtw'"
        )


# -- one pair: for plotting -----------------------------------------------------------------------


@in_float32
def soft_alignment(
    visual: Sequences, audio: Sequences, *, gamma: float = 0.1
) -> Float[Array, "N M"]:
    """The expected alignment under soft-DTW: the gradient with respect to the costs, in [0, 1]."""
    check_options(gamma)
    return _alignment(visual, audio, gamma)


@in_float32
def hard_alignment(visual: Sequences, audio: Sequences) -> Float[Array, "N M"]:
    """The cells of the cheapest path (1 on it, shared among equally cheap ones)."""
    return _alignment(visual, audio, None)


def _alignment(visual: Sequences, audio: Sequences, gamma: float | None) -> Float[Array, "N M"]:
    costs = step_costs(visual, audio)[:, None, :, None]
    lengths = [x.lengths.reshape(1, 1) for x in (visual, audio)]
    return warping.solve_tile(costs, *lengths, gamma, aligned=True)[1][:, 0, :, 0]


def hard_path(visual: Sequences, audio: Sequences) -> tuple[Int[Array, "L 2"], Int[Array, ""]]:
    """The cheapest path of DTW, cell by cell; where steps are equally cheap, the diagonal one.

    Args:
      visual: one sequence `[N, C]`.
      audio: one sequence `[M, C]`.

    Returns:
      Its (visual step, audio step) rows, from (0, 0) to the last real steps, of which the last is
      repeated up to L = N + M - 1; and how many cells the path has.

    >>> from scav_jax.sequences import sequences
    >>> v, a = sequences(jnp.array([[0.0], [1.0], [1.0]])), sequences(jnp.array([[0.0], [1.0]]))
    >>> path, cells = hard_path(v, a)
    >>> path[:cells].tolist()
    [[0, 0], [1, 1], [2, 1]]
    """
    table = _costs_to_go(visual, audio, None)
    most = sum(table.shape) - 1
    table = jnp.pad(table, ((0, 1), (0, 1)), constant_values=warping.UNREACHABLE)
    last = jnp.stack([visual.lengths, audio.lengths]) - 1
    moves = jnp.array([[1, 1], [0, 1], [1, 0]], last.dtype)

    def step(cell, _):
        targets = cell[None] + moves
        best = jnp.argmin(table[targets[:, 0], targets[:, 1]])
        return jnp.where(jnp.all(cell == last), cell, targets[best]), cell

    _, path = jax.lax.scan(step, jnp.zeros_like(last), length=most)
    before_last = jnp.any(path != last[None], axis=1)
    return path, jnp.sum(before_last) + 1


# -- all pairs ------------------------------------------------------------------------------------


def soft_dtw_matrix(
    visual: Sequences,
    audio: Sequences,
    *,
    block: int | None,
    memory_bytes: int,
    gamma: float = 0.1,
) -> tuple[Float[Array, "Q K"], dict]:
    """Soft-DTW of all pairs, equal to `soft_dtw` of each; see `_all_pairs` for how.

    Args:
      visual: Q sequences `[Q, N, C]`.
      audio: K sequences `[K, M, C]`.
      block: pairs at a time, or None for as many as is fast within the memory.
      memory_bytes: of what is kept of pairs, forward and backward (costs, tables, alignments).
        Beside it there are D, the gradients and a few copies of the latents.
      gamma: as in `soft_dtw`.

    Raises:
      InputError: gamma is not above 0.
    """
    check_options(gamma)
    return _matrix(visual, audio, block, memory_bytes, gamma), {}


def dtw_matrix(
    visual: Sequences, audio: Sequences, *, block: int | None, memory_bytes: int
) -> tuple[Float[Array, "Q K"], dict]:
    """DTW of all pairs, equal to `dtw` of each; arguments as in `soft_dtw_matrix`."""
    return _matrix(visual, audio, block, memory_bytes, None), {}


class _Plan(NamedTuple):
    """The tiles of pairs (see `warping.Tiling`), and what the backward pass finds.

    Attributes:
      stream: how many groups of row items (of the stream with fewer steps) follow one another.
      group: how many of them lie side by side on the lanes, ...
      across: ... each with how many column items (of the other stream).
      keep: whether a derivative's forward pass keeps the alignments of all pairs for its backward
        pass; else that computes them again, tile by tile.
    """

    stream: int
    group: int
    across: int
    keep: bool


def _matrix(visual, audio, block, memory_bytes, gamma) -> Float[Array, "Q K"]:
    """Chooses the tiles: rows of the costs are steps of x, columns are steps of y."""
    if visual.values.shape[1] > audio.values.shape[1]:  # the shorter one is a diagonal's width
        return _matrix(audio, visual, block, memory_bytes, gamma).T
    x, y = _centred(visual, audio)
    (queries, n, _), (candidates, m, _), itemsize = x.shape, y.shape, x.dtype.itemsize
    fast, pairs = partial(warping.fast_block, n, m, itemsize), queries * candidates
    kept_bytes, of_pair = pairs * n * m * itemsize, warping.tile_bytes(n, m, itemsize)
    # On an accelerator tiles take all that there is: half of it is left for what is kept.
    keep = kept_bytes + min(block or fast(memory_bytes // 2), pairs) * of_pair <= memory_bytes
    block = min(block or fast(memory_bytes - keep * kept_bytes), pairs)
    plan = _Plan(*warping.tiling(queries, candidates, block), keep=keep)
    apart = scattered(visual.replace(values=x), audio.replace(values=y))
    return _all_pairs(x, visual.lengths, y, audio.lengths, apart, gamma, plan)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _all_pairs(x, rows, y, columns, apart, gamma, plan: _Plan) -> Float[Array, "Q K"]:
    """Warping costs of all pairs of centred latents `[Q, N, C]` and `[K, M, C]`.

    The costs of a tile of pairs are one matrix product, laid out so that the recursion reads them
    as they come. The gradient follows from the expected alignments E of the tile: for x_i it is
    `2/C sum_j E_ij (x_i - y_j)`, again a matrix product. `apart`: costs are made of differences.
    """
    values, _ = _by_tiles(x, rows, y, columns, apart, gamma, plan, aligned=False)
    return _joined(values, len(x), len(y), plan)


def _all_pairs_forward(x, rows, y, columns, apart, gamma, plan):
    values, alignments = _by_tiles(x, rows, y, columns, apart, gamma, plan, aligned=plan.keep)
    return _joined(values, len(x), len(y), plan), (x, rows, y, columns, apart, alignments)


def _all_pairs_backward(gamma, plan, residuals, cotangent):
    x, rows, y, columns, apart, alignments = residuals
    row_tiles, column_tiles = _row_tiles(x, rows, plan), _column_tiles(y, columns, plan)

    def for_columns(x_gradients, tiles):
        column_tile, *per_row = tiles

        def for_pairs(y_gradient, tiles):
            row_tile, cotangent, alignment = tiles
            if alignment is None:
                _, alignment = _tile(row_tile, column_tile, apart, gamma, aligned=True)
            x_part, y_part = _tile_gradients(row_tile[0], column_tile[0], alignment, cotangent)
            return y_gradient + y_part, x_part

        y_gradient = jnp.zeros_like(column_tile[0])
        y_gradient, x_parts = jax.lax.scan(for_pairs, y_gradient, (row_tiles, *per_row))
        return x_gradients + x_parts, y_gradient

    x_gradients, y_gradients = jax.lax.scan(
        for_columns,
        jnp.zeros_like(row_tiles[0]),
        (column_tiles, _cut(cotangent, plan), alignments),
    )
    x_gradients = x_gradients.transpose(0, 2, 3, 1, 4).reshape(-1, *x.shape[1:])[: len(x)]
    y_gradients = y_gradients.transpose(0, 2, 1, 3).reshape(-1, *y.shape[1:])[: len(y)]
    return x_gradients, None, y_gradients, None, None


_all_pairs.defvjp(_all_pairs_forward, _all_pairs_backward)


def _by_tiles(x, rows, y, columns, apart, gamma, plan: _Plan, *, aligned: bool):
    """(values, alignments or None) of all tiles, `[column tiles, row tiles, ...]` each."""
    row_tiles = _row_tiles(x, rows, plan)

    def for_columns(column_tile):
        solve = partial(_tile, column_tile=column_tile, apart=apart, gamma=gamma, aligned=aligned)
        return jax.lax.map(solve, row_tiles)

    return jax.lax.map(for_columns, _column_tiles(y, columns, plan))


def _tile(row_tile, column_tile, apart, gamma, aligned: bool):
    """(values `[S, P]`, alignments or None) of every pair of two tiles; P = G * K lanes."""
    (x, rows), (y, columns) = row_tile, column_tile
    shape = *rows.shape, *columns.shape  # [S, G, K]
    rows = jnp.broadcast_to(rows[:, :, None], shape).reshape(len(rows), -1)
    columns = jnp.broadcast_to(columns[None, None, :], shape).reshape(len(rows), -1)
    return warping.solve_tile(_tile_costs(x, y, apart), rows, columns, gamma, aligned=aligned)


def _tile_costs(
    x: Float[Array, "N S G C"], y: Float[Array, "M K C"], apart: Bool[Array, ""]
) -> Float[Array, "N S M P"]:
    """Squared differences averaged over channels."""
    (n, stream, group, width), (m, across, _) = x.shape, y.shape
    rows = x.reshape(-1, width), y.reshape(-1, width)
    costs = chosen(apart, (_squared_differences, _by_channels), *rows) * (1.0 / width)
    costs = costs.reshape(n, stream, group, m, across).transpose(0, 1, 3, 2, 4)
    return costs.reshape(n, stream, m, group * across)


def _tile_gradients(x, y, alignment, cotangent):
    """Of `sum(cotangent * warping cost)` over a tile, for its x and for its y."""
    (n, stream, group, width), (m, across, _) = x.shape, y.shape
    weights = (alignment * cotangent[None, :, None, :]).reshape(n, stream, m, group, across)
    weights = weights.transpose(0, 1, 3, 2, 4).reshape(n * stream * group, m * across)
    x_rows, y_rows = x.reshape(-1, width), y.reshape(-1, width)
    # Sums as products with ones: XLA's reductions take three times as long on a CPU.
    x_sums = jnp.matmul(weights, jnp.ones_like(weights[0]), precision=FULL_PRECISION)
    y_sums = jnp.matmul(jnp.ones_like(weights[:, 0]), weights, precision=FULL_PRECISION)
    for_x = x_sums[:, None] * x_rows - _product(weights, y_rows)
    for_y = y_sums[:, None] * y_rows - _product(weights.T, x_rows)
    scale = 2.0 / width
    return (scale * for_x).reshape(x.shape), (scale * for_y).reshape(y.shape)


def _row_tiles(x, rows, plan: _Plan):
    """`[Q, N, C]` -> `[tiles, N, S, G, C]`, and their lengths `[Q]` -> `[tiles, S, G]`."""
    x, rows = _filled_up(x, rows, plan.stream * plan.group)
    tiles = x.reshape(-1, plan.stream, plan.group, *x.shape[1:]).transpose(0, 3, 1, 2, 4)
    return tiles, rows.reshape(-1, plan.stream, plan.group)


def _column_tiles(y, columns, plan: _Plan):
    """`[K, M, C]` -> `[tiles, M, across, C]`, and their lengths `[K]` -> `[tiles, across]`."""
    y, columns = _filled_up(y, columns, plan.across)
    tiles = y.reshape(-1, plan.across, *y.shape[1:]).transpose(0, 2, 1, 3)
    return tiles, columns.reshape(-1, plan.across)


def _filled_up(values, lengths, size: int):
    """With items of one zero step, until `size` divides their number."""
    missing = -len(lengths) % size
    values = jnp.pad(values, ((0, missing), (0, 0), (0, 0)))
    return values, jnp.pad(lengths, (0, missing), constant_values=1)


def _joined(values: Float[Array, "B A S P"], queries: int, candidates: int, plan: _Plan):
    """The values of all tiles as one matrix `[Q, K]`."""
    tiles = values.reshape(*values.shape[:3], plan.group, plan.across).transpose(1, 2, 3, 0, 4)
    return tiles.reshape(-1, tiles.shape[3] * plan.across)[:queries, :candidates]


def _cut(matrix: Float[Array, "Q K"], plan: _Plan) -> Float[Array, "B A S P"]:
    """`_joined` backwards, with zeros for the items that fill up the last tiles."""
    sizes = plan.stream * plan.group, plan.across
    missing = [-items % size for items, size in zip(matrix.shape, sizes, strict=True)]
    matrix = jnp.pad(matrix, [(0, count) for count in missing])
    tiles = matrix.reshape(-1, plan.stream, plan.group, matrix.shape[1] // plan.across, plan.across)
    return tiles.transpose(3, 0, 1, 2, 4).reshape(
        tiles.shape[3], -1, plan.stream, sizes[1] * plan.group
    )
