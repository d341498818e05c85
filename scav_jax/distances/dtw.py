"""Dynamic time warping and its differentiable soft variant (paper section III-C, distance 2).

Costs are squared differences of steps, averaged over channels. A path goes from the first to the
last cell of the `[N, M]` costs by steps to the right, down or diagonally, and costs what its cells
cost. DTW is the cheapest path. Soft-DTW is the soft minimum over all paths,
`-gamma log sum_paths exp(-cost / gamma)` (Cuturi and Blondel 2017), which is smooth. The paper
trains with the soft one and ranks by DTW. No normalisation by the path's length.

Both are one recursion: with S[i, j] what remains to be paid from cell (i, j) to the last one,

    S[i, j] = cost[i, j] + softmin(S[i, j+1], S[i+1, j], S[i+1, j+1]),    d = S[0, 0].

This file has it cell by cell for one pair (the definition), the alignments and paths for plotting,
and the fast form of all pairs: tiles of pairs, whose costs are one matrix product each and whose
recursion is `warping.py`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scav_jax.distances import warping
from scav_jax.errors import InputError
from scav_jax.sequences import Sequences, zero_padding

# TF32 and bf16, the accelerators' defaults, lose what the z-score then amplifies.
FULL_PRECISION = jax.lax.Precision.HIGHEST


# -- one pair: the definition ---------------------------------------------------------------------


def soft_dtw(visual: Sequences, audio: Sequences, *, gamma: float = 0.1) -> Float[Array, ""]:
    """Soft-DTW of one pair, the training form; can be negative.

    Args:
      visual: one sequence `[N, C]`.
      audio: one sequence `[M, C]`.
      gamma: smoothing > 0, in units of the channel-averaged cost; towards 0 it is DTW.

    Raises:
      InputError: gamma is not above 0.
    """
    _check(gamma)
    return _costs_to_go(visual, audio, gamma)[0, 0]


def dtw(visual: Sequences, audio: Sequences) -> Float[Array, ""]:
    """DTW of one pair: the cost of the cheapest monotone alignment, the retrieval form."""
    return _costs_to_go(visual, audio, None)[0, 0]


def step_costs(visual: Sequences, audio: Sequences) -> Float[Array, "N M"]:
    """Squared difference of every visual step to every audio step, averaged over channels.

    Both are centred by one vector first, which changes no difference and avoids cancellation.
    """
    v, a = _centred(visual, audio)
    products = jnp.matmul(v, a.T, precision=FULL_PRECISION)
    squared = jnp.sum(v * v, 1)[:, None] + jnp.sum(a * a, 1)[None, :] - 2.0 * products
    return jnp.maximum(squared, 0.0) / v.shape[-1]


def _centred(visual: Sequences, audio: Sequences):
    """Both `[..., T, C]` less the mean of all their real steps, 0 in padding.

    The mean is a constant of the gradient too: moving all steps alike moves no difference.
    """
    values = [zero_padding(x.values, x.lengths) for x in (visual, audio)]
    steps = sum(jnp.sum(x.lengths) for x in (visual, audio)).astype(values[0].dtype)
    total = sum(jnp.sum(x, axis=tuple(range(x.ndim - 1))) for x in values)
    centre = jax.lax.stop_gradient(total / steps)
    return [
        zero_padding(x - centre.reshape((1,) * (x.ndim - 1) + (-1,)), stream.lengths)
        for x, stream in zip(values, (visual, audio), strict=True)
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


def _check(gamma: float) -> None:
    if not 0 < gamma < float("inf"):
        raise InputError(
            f"soft-DTW: gamma should be a number above 0, got {gamma}; its limit at 0 is 'dtw'"
        )


# -- one pair: for plotting -----------------------------------------------------------------------


def soft_alignment(
    visual: Sequences, audio: Sequences, *, gamma: float = 0.1
) -> Float[Array, "N M"]:
    """The expected alignment under soft-DTW: the gradient with respect to the costs, in [0, 1]."""
    _check(gamma)
    return _alignment(visual, audio, gamma)


def hard_alignment(visual: Sequences, audio: Sequences) -> Float[Array, "N M"]:
    """The cells of the cheapest path (1 on it, shared among equally cheap ones)."""
    return _alignment(visual, audio, None)


def _alignment(visual: Sequences, audio: Sequences, gamma: float | None) -> Float[Array, "N M"]:
    costs = step_costs(visual, audio)[:, None, :, None]
    lengths = [x.lengths.reshape(1, 1) for x in (visual, audio)]
    return warping.tile_alignments(costs, *lengths, gamma)[1][:, 0, :, 0]


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
      memory_bytes: of what lives beside inputs, D and gradients, forward and backward.
      gamma: as in `soft_dtw`.

    Raises:
      InputError: gamma is not above 0.
    """
    _check(gamma)
    return _matrix(visual, audio, block, memory_bytes, gamma), {}


def dtw_matrix(
    visual: Sequences, audio: Sequences, *, block: int | None, memory_bytes: int
) -> tuple[Float[Array, "Q K"], dict]:
    """DTW of all pairs, equal to `dtw` of each; arguments as in `soft_dtw_matrix`."""
    return _matrix(visual, audio, block, memory_bytes, None), {}


def _matrix(visual, audio, block, memory_bytes, gamma) -> Float[Array, "Q K"]:
    if visual.values.shape[1] > audio.values.shape[1]:  # the shorter one is a diagonal's width
        return _matrix(audio, visual, block, memory_bytes, gamma).T
    x, y = _centred(visual, audio)
    plan = _plan(len(x), len(y), x.shape[1], y.shape[1], x.dtype.itemsize, block, memory_bytes)
    return _all_pairs(x, visual.lengths, y, audio.lengths, gamma, plan)


class _Plan(NamedTuple):
    """How all pairs are cut into tiles of `stream * group` rows items x `candidates` columns items.

    Attributes:
      stream: how many groups of items follow one another within one recursion.
      group: how many items lie side by side on the lanes, ...
      candidates: ... each with how many items of the other stream.
      keep: whether the forward pass of a derivative keeps all alignments for the backward pass;
        else that computes them again, tile by tile.
    """

    stream: int
    group: int
    candidates: int
    keep: bool


CPU_LANES = 64  # pairs side by side: a diagonal of them stays in the first level of the cache,
CPU_CELLS = 2**20  # and the tables of a tile in the last


def _plan(queries, candidates, n, m, itemsize, block, memory_bytes) -> _Plan:
    """The tiles that are fast on this backend, within the budget, and as even as possible."""
    on_cpu = jax.default_backend() == "cpu"
    alignment_bytes = itemsize * n * m
    tile_bytes = itemsize * n * (6 * m + 2 * n)  # costs, tables and alignments of one pair
    pairs = block or max(1, memory_bytes // tile_bytes)
    if block is None and on_cpu:
        pairs = min(pairs, max(1, CPU_CELLS // (n * m)))
    lanes = min(pairs, CPU_LANES) if on_cpu else pairs
    across = _even(candidates, lanes)
    group = _even(queries, max(1, lanes // across))
    stream = _even(-(-queries // group), max(1, pairs // (across * group)))
    tile = stream * group * across
    keep = queries * candidates * alignment_bytes + tile * tile_bytes <= memory_bytes
    return _Plan(stream, group, across, keep)


def _even(items: int, most: int) -> int:
    """The size of equal parts of `items`, each at most `most`."""
    parts = -(-items // most)
    return -(-items // parts)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _all_pairs(x, rows, y, columns, gamma, plan) -> Float[Array, "Q K"]:
    """Warping costs of all pairs of centred latents `[Q, N, C]` and `[K, M, C]`.

    For each tile of pairs the costs are one matrix product (`_tile_costs`), laid out so that the
    recursion reads them as they come. Its gradient for the latents follows from the alignments E
    of the tile: `2/C sum_j E_ij (x_i - y_j)` for x_i, again matrix products.
    """
    values, _ = _by_tiles(warping.tile_values, x, rows, y, columns, gamma, plan)
    return _joined(values, len(x), len(y), plan)


def _all_pairs_forward(x, rows, y, columns, gamma, plan):
    tile = warping.tile_alignments if plan.keep else warping.tile_values
    values, alignments = _by_tiles(tile, x, rows, y, columns, gamma, plan)
    return _joined(values, len(x), len(y), plan), (x, rows, y, columns, alignments)


def _all_pairs_backward(gamma, plan, residuals, cotangent):
    x, rows, y, columns, alignments = residuals
    x_tiles, rows_tiles = _row_tiles(x, plan), _row_tiles(rows, plan, fill=1)
    y_tiles, columns_tiles = _column_tiles(y, plan), _column_tiles(columns, plan, fill=1)

    def per_columns(x_gradients, tiles):
        y_tile, columns_tile, cotangents, kept = tiles

        def per_rows(y_gradient, tiles):
            x_tile, rows_tile, cotangent, alignment = tiles
            if alignment is None:
                costs = _tile_costs(x_tile, y_tile)
                lengths = _tile_lengths(rows_tile, columns_tile)
                _, alignment = warping.tile_alignments(costs, *lengths, gamma)
            for_x, for_y = _tile_gradients(x_tile, y_tile, alignment, cotangent)
            return y_gradient + for_y, for_x

        y_gradient, for_x = jax.lax.scan(
            per_rows, jnp.zeros_like(y_tile), (x_tiles, rows_tiles, cotangents, kept)
        )
        return x_gradients + for_x, y_gradient

    cotangents = _split(cotangent, plan)
    x_gradients, y_gradients = jax.lax.scan(
        per_columns,
        jnp.zeros_like(x_tiles),
        (y_tiles, columns_tiles, cotangents, alignments),
    )
    return _from_row_tiles(x_gradients, len(x)), None, _from_column_tiles(y_gradients, len(y)), None


_all_pairs.defvjp(_all_pairs_forward, _all_pairs_backward)


def _by_tiles(recursion, x, rows, y, columns, gamma, plan: _Plan):
    """What the recursion returns for each tile: `[column tiles, row tiles, ...]`."""
    row_tiles = _row_tiles(x, plan), _row_tiles(rows, plan, fill=1)
    column_tiles = _column_tiles(y, plan), _column_tiles(columns, plan, fill=1)

    def tile(row_tile, column_tile):
        (x_tile, rows_tile), (y_tile, columns_tile) = row_tile, column_tile
        lengths = _tile_lengths(rows_tile, columns_tile)
        result = recursion(_tile_costs(x_tile, y_tile), *lengths, gamma)
        return result if isinstance(result, tuple) else (result, None)

    return jax.lax.map(
        lambda column_tile: jax.lax.map(lambda row_tile: tile(row_tile, column_tile), row_tiles),
        column_tiles,
    )


def _tile_costs(x: Float[Array, "N S G C"], y: Float[Array, "M K C"]) -> Float[Array, "N S M P"]:
    """Squared differences averaged over channels; P = G * K lanes."""
    n, stream, group, width = x.shape
    m, across, _ = y.shape
    products = jnp.einsum("nsgc,mkc->nsmgk", x, y, precision=FULL_PRECISION)
    x_squares = jnp.sum(x * x, axis=-1).reshape(n, stream, 1, group, 1)
    y_squares = jnp.sum(y * y, axis=-1).reshape(1, 1, m, 1, across)
    costs = jnp.maximum(x_squares + y_squares - 2.0 * products, 0.0) * (1.0 / width)
    return costs.reshape(n, stream, m, group * across)


def _tile_gradients(x, y, alignment, cotangent):
    """Of `sum(cotangent * warping cost)` over a tile, for its x and its y."""
    n, stream, group, width = x.shape
    m, across, _ = y.shape
    weights = (alignment * cotangent[None, :, None, :]).reshape(n, stream, m, group, across)
    scale = 2.0 / width
    x_weights = jnp.sum(weights, axis=(2, 4))[..., None]
    y_weights = jnp.sum(weights, axis=(0, 1, 3))[..., None]
    x_others = jnp.einsum("nsmgk,mkc->nsgc", weights, y, precision=FULL_PRECISION)
    y_others = jnp.einsum("nsmgk,nsgc->mkc", weights, x, precision=FULL_PRECISION)
    return scale * (x_weights * x - x_others), scale * (y_weights * y - y_others)


def _tile_lengths(rows: Int[Array, "S G"], columns: Int[Array, "K"]):
    """The lengths of each pair of a tile, `[S, P]` each."""
    (stream, group), (across,) = rows.shape, columns.shape
    shape = stream, group, across
    rows = jnp.broadcast_to(rows[:, :, None], shape)
    columns = jnp.broadcast_to(columns[None, None, :], shape)
    return rows.reshape(stream, -1), columns.reshape(stream, -1)


def _padded(items: Array, size: int, fill=0) -> Array:
    """With further items, until `size` divides their number."""
    missing = -len(items) % size
    return jnp.pad(items, ((0, missing), *((0, 0),) * (items.ndim - 1)), constant_values=fill)


def _row_tiles(items, plan: _Plan, fill=0):
    """`[Q, N, C]` -> `[tiles, N, S, G, C]`, and `[Q]` -> `[tiles, S, G]`."""
    items = _padded(items, plan.stream * plan.group, fill)
    tiles = items.reshape(-1, plan.stream, plan.group, *items.shape[1:])
    return tiles if items.ndim == 1 else tiles.transpose(0, 3, 1, 2, 4)


def _column_tiles(items, plan: _Plan, fill=0):
    """`[K, M, C]` -> `[tiles, M, K', C]`, and `[K]` -> `[tiles, K']`."""
    items = _padded(items, plan.candidates, fill)
    tiles = items.reshape(-1, plan.candidates, *items.shape[1:])
    return tiles if items.ndim == 1 else tiles.transpose(0, 2, 1, 3)


def _from_row_tiles(tiles, queries: int):
    items = tiles.transpose(0, 2, 3, 1, 4)
    return items.reshape(-1, *items.shape[3:])[:queries]


def _from_column_tiles(tiles, candidates: int):
    items = tiles.transpose(0, 2, 1, 3)
    return items.reshape(-1, *items.shape[2:])[:candidates]


def _joined(values: Float[Array, "B A S P"], queries: int, candidates: int, plan: _Plan):
    """The values of all tiles as one matrix `[Q, K]`."""
    tiles = values.reshape(*values.shape[:3], plan.group, plan.candidates)
    rows = tiles.transpose(1, 2, 3, 0, 4)
    matrix = rows.reshape(-1, rows.shape[3] * rows.shape[4])
    return matrix[:queries, :candidates]


def _split(matrix: Float[Array, "Q K"], plan: _Plan) -> Float[Array, "B A S P"]:
    """`_joined` backwards, with zeros for the items that fill up the last tiles."""
    matrix = _padded(_padded(matrix, plan.stream * plan.group).T, plan.candidates).T
    columns = matrix.shape[1] // plan.candidates
    tiles = matrix.reshape(-1, plan.stream, plan.group, columns, plan.candidates)
    tiles = tiles.transpose(3, 0, 1, 2, 4)
    return tiles.reshape(*tiles.shape[:3], -1)
