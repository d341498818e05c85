"""The Euclidean distance where targets lie on many grids: a product for each audio grid."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scav_jax.distances import resampling
from scav_jax.distances.cost import FLOAT
from scav_jax.distances.euclidean_blocks import (
    Plan,
    StreamPart,
    centre_of,
    centred,
    combine,
    difference_gradients,
    distances_by_block,
    divisor,
    gradients_by_block,
    moved_and_target,
    norms,
    part_of,
    product,
    rows_of_block,
    sum_dtype,
)
from scav_jax.distances.resampling import (
    Grid,
    InPlace,
    collect,
    grid_of,
    read,
    scatter,
    slice_of,
    taps_of_many,
)
from scav_jax.sequences import Sequences, zero_padding

TILE_WIDTHS = (1, 8, 64)  # audio sequences that share a grid, per product
CPU_BLOCK_BYTES = 4 * 2**20  # of visual latents: what a core's caches keep between audio grids
# Of a block on both grids, by whether on a CPU: values and gradient, and the two shares of each
# step that are scattered; a GPU fuses most of that (0.9 of a copy was seen), and few blocks are few
# launches.
COPIES = {True: 4, False: 1.5}
TILES = 4  # as cut, as multiplied, gradients as they are and with what was there


class _SortedAudio(NamedTuple):
    """Audio sequences, centred and 0 in padding.

    Attributes:
      values: `[B, M, C]`.
      grid: `[B]` grids.
      squares: `[B, M]`, the squared norm of each step.
      neighbours: `[B, M]`, the inner product of each step with the next one.
    """

    values: Float[Array, "B M C"]
    grid: Grid
    squares: Float[Array, "B M"]
    neighbours: Float[Array, "B M"]


def _sorted_audio(audio: Sequences) -> tuple[_SortedAudio, Int[Array, " K"], Float[Array, " C"]]:
    """The audio sequences grid by grid, the order that made it so, and the centre."""
    centre = centre_of(audio)
    order = resampling.sort_by_grid(grid_of(audio))
    audio = jax.tree.map(lambda leaf: leaf[order], audio)
    stored = centred(audio, centre).astype(audio.values.dtype)
    values = stored.astype(centre.dtype)
    neighbours = jnp.pad(jnp.sum(values[:, :-1] * values[:, 1:], -1), ((0, 0), (0, 1)))
    side = _SortedAudio(stored, grid_of(audio), jnp.sum(values * values, -1), neighbours)
    return side, order, centre


def ragged_distances(plan: Plan, visual: Sequences, audio: Sequences) -> Float[Array, "Q K"]:
    """One product for each audio grid, of the visual sequences brought to it."""
    sorted_audio, order, centre = _sorted_audio(audio)
    rows = _ragged_rows(plan, visual, audio)
    tile_distances = _TILE_DISTANCES[plan.resample]

    def distances_of(number: Int[Array, ""]) -> Float[Array, "rows K"]:
        some = part_of(visual, rows, number, centre)

        def fill(distances, start, tile, grid, chosen):
            before = jax.lax.dynamic_slice_in_dim(distances, start, len(chosen), 1)
            new = jnp.where(chosen[None], tile_distances(some, tile, grid), before)
            return jax.lax.dynamic_update_slice_in_dim(distances, new, start, 1)

        shape = rows, len(audio.lengths)
        empty = resampling.zeros(shape, centre.dtype, like=visual.lengths)
        return _for_each_tile(sorted_audio, empty, fill)

    squared = distances_by_block(rows, len(visual.lengths), distances_of)
    squared = squared[:, jnp.argsort(order)]
    if plan.resample == "audio_to_visual":
        squared += norms(centred(visual, centre).astype(visual.values.dtype))[:, None]
    return jnp.maximum(squared, 0.0) / _counts(plan, visual, audio, squared.dtype)


def distances_by_pairs(plan: Plan, visual: Sequences, audio: Sequences) -> Float[Array, "Q K"]:
    """As it is defined: what is moved is read once for every target.

    Differences need no centring.
    """
    moved, target = moved_and_target(visual, audio, plan.resample)
    squared = _squared_by_pairs(plan, moved, target)
    squared = squared if plan.resample == "visual_to_audio" else squared.T
    return squared / _counts(plan, visual, audio, squared.dtype)


def _squared_by_pairs(plan: Plan, moved: Sequences, target: Sequences) -> Float[Array, "X Y"]:
    """`|W x - y|^2` of every moved x and target y."""
    (total, _, width), (targets, length, _) = moved.values.shape, target.values.shape
    dtype = sum_dtype(moved)
    pair_bytes = targets * length * width * dtype.itemsize  # where XLA does not fuse it all
    on_cpu = jax.default_backend() == "cpu"
    rows = 1 if on_cpu else divisor(total, total, plan.memory_bytes // pair_bytes)
    steps = jnp.arange(length, dtype=jnp.int32)

    def distances_of(number: Int[Array, ""]) -> Float[Array, "rows Y"]:
        some = part_of(moved, rows, number)

        def each(sequences: Grid, axis: int) -> Grid:
            shape = (targets, rows)
            return jax.tree.map(
                lambda leaf: jnp.broadcast_to(
                    jnp.expand_dims(leaf, axis), (*shape, *leaf.shape[1:])
                ).reshape(-1, *leaf.shape[1:]),
                sequences,
            )

        def squared(values: Float[Array, "T C"], taps: resampling.Taps) -> Float[Array, " rows"]:
            difference = read(some.block, taps) - values.astype(dtype)[None]
            return jnp.sum(jnp.where(taps.real[..., None], difference**2, 0.0), (1, 2))

        taps = taps_of_many(each(some.grid, 0), each(grid_of(target), 1), steps, dtype)
        taps = jax.tree.map(lambda leaf: leaf.reshape(targets, rows, *leaf.shape[1:]), taps)
        return jax.vmap(squared)(target.values, taps).T

    return distances_by_block(rows, total, distances_of)


def _counts(plan: Plan, visual: Sequences, audio: Sequences, dtype: jnp.dtype):
    """How many differences D is the mean of: `[1, K]` or `[Q, 1]`."""
    axis = 0 if plan.resample == "visual_to_audio" else 1
    target = moved_and_target(visual, audio, plan.resample)[1]
    return jnp.expand_dims(target.lengths * visual.values.shape[-1], axis).astype(dtype)


def ragged_gradients(
    plan: Plan, visual: Sequences, audio: Sequences, cotangent: Float[Array, "Q K"]
) -> tuple[Float[Array, "Q N C"], Float[Array, "K M C"]]:
    """The gradients of `ragged_distances`; what was brought to a grid is computed once more."""
    sorted_audio, order, centre = _sorted_audio(audio)
    rows = _ragged_rows(plan, visual, audio)
    weights = 2.0 * cotangent / _counts(plan, visual, audio, cotangent.dtype)
    tile_gradients = _TILE_GRADIENTS[plan.resample]

    def gradients_of(number: Int[Array, ""], of_audio: Float[Array, "K M C"]):
        some = part_of(visual, rows, number, centre)
        of_block = rows_of_block(weights[:, order], rows, number)

        def add(gradients, start, tile, grid, chosen):
            own, of_audio = gradients
            of_tile = jax.lax.dynamic_slice_in_dim(of_block, start, len(chosen), 1)
            of_tile = jnp.where(chosen[None], of_tile, 0.0)
            own, part = tile_gradients(some, tile, grid, of_tile, own)
            before = jax.lax.dynamic_slice_in_dim(of_audio, start, len(chosen), 0)
            return own, jax.lax.dynamic_update_slice_in_dim(of_audio, before + part, start, 0)

        own = resampling.zeros((rows, *visual.values.shape[1:]), weights.dtype, like=visual.lengths)
        if plan.resample == "audio_to_visual":  # what |V|^2 gives
            own += jnp.sum(of_block, 1)[:, None, None] * _block_values(some)
        return _for_each_tile(sorted_audio, (own, of_audio), add)

    gradients = gradients_by_block(rows, visual, audio, cotangent.dtype, gradients_of)
    return gradients[0], gradients[1][jnp.argsort(order)]


def _block_values(some: StreamPart) -> Float[Array, "B T C"]:
    """The values of a block, centred and 0 in padding."""
    steps, centre = some.block.values.shape[-2], some.block.centre
    values = slice_of(some.block, jnp.zeros((), jnp.int32), steps).astype(centre.dtype)
    return zero_padding(values - centre[None, None], some.grid.lengths)


def _ragged_rows(plan: Plan, visual: Sequences, audio: Sequences) -> int:
    """How many visual sequences are brought to an audio grid at a time."""
    (queries, n, width), (candidates, m, _) = visual.values.shape, audio.values.shape
    step_bytes, on_cpu = width * sum_dtype(visual).itemsize, jax.default_backend() == "cpu"
    return rows_at_a_time(plan, (queries, candidates), (n, m), step_bytes, on_cpu=on_cpu)


def rows_at_a_time(
    plan: Plan, clips: tuple[int, int], steps: tuple[int, int], step_bytes: int, *, on_cpu: bool
) -> int:
    """The same of so many sequences of so many steps, of so many bytes each."""
    queries, candidates = clips
    if plan.block is not None:
        return divisor(queries, queries, plan.block // candidates)
    wanted = CPU_BLOCK_BYTES / (steps[0] * step_bytes) if on_cpu else queries
    return divisor(queries, wanted, plan.memory_bytes // (COPIES[on_cpu] * sum(steps) * step_bytes))


def planned_bytes(
    plan: Plan, clips: tuple[int, int], steps: tuple[int, int], step_bytes: int, *, on_cpu: bool
) -> float:
    """Bytes at the gradient's fullest moment, beside latents and their gradients: for `plan`.

    D, its gradient, on a GPU also in the order of grids; the sorted audio sequences, whose place
    the visual gradient takes when it is put into order; a block on both grids, and tiles.
    """
    queries, candidates = clips
    rows = rows_at_a_time(plan, clips, steps, step_bytes, on_cpu=on_cpu)
    in_order = queries * steps[0] if rows < queries else 0
    tiles = TILES * min(max(TILE_WIDTHS), candidates) * steps[1]
    block = COPIES[on_cpu] * rows * sum(steps)
    again = max(candidates * steps[1], in_order)
    matrices = 2 if on_cpu else 3
    return matrices * FLOAT * queries * candidates + (again + block + tiles) * step_bytes


def _for_each_tile(audio: _SortedAudio, carry, step):
    """`step(carry, start, tile, grid, chosen)` for runs of sorted audio that share a grid.

    The tile is `[width]` sequences from `start`; those `chosen` are the run.
    """
    candidates = len(audio.squares)
    widths = sorted({min(width, candidates) for width in TILE_WIDTHS})
    for tiles in resampling.tiles(audio.grid, tuple(widths)):

        def body(number, carry, tiles=tiles):
            first = tiles.start[number]
            start = jnp.minimum(first, candidates - tiles.width)
            take = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=tiles.width)
            grid = jax.tree.map(lambda leaf: leaf[first], audio.grid)
            columns = start + jnp.arange(tiles.width, dtype=start.dtype)
            chosen = (columns >= first) & (columns < first + tiles.size[number])
            return step(carry, start, jax.tree.map(take, audio), grid, chosen)

        carry = jax.lax.fori_loop(0, tiles.count, body, carry)
    return carry


def _read_distances(visual: StreamPart, audio: _SortedAudio, grid: Grid) -> Float[Array, "Q w"]:
    """`|W V - A|^2`, all audio on one grid."""
    on_grid, _ = _read_block(visual, audio, grid)
    squares = norms(on_grid)[:, None] + jnp.sum(audio.squares, 1)[None]
    return squares - 2.0 * product(on_grid, audio.values)


def _read_gradients(visual: StreamPart, audio: _SortedAudio, grid: Grid, weights, of_visual):
    on_grid, taps = _read_block(visual, audio, grid)
    of_grid, of_audio = difference_gradients(weights, on_grid, audio.values)
    return scatter(of_visual, of_grid, taps), of_audio


def _read_block(visual: StreamPart, audio: _SortedAudio, grid: Grid):
    """W V on one audio grid, and its taps."""
    steps = jnp.arange(audio.values.shape[1], dtype=jnp.int32)
    taps = taps_of_many(visual.grid, grid, steps, visual.block.centre.dtype)

    def on_grid() -> Float[Array, "Q M C"]:
        return read(visual.block, taps).astype(audio.values.dtype)

    return resampling.apart(on_grid, grid.lengths > 0), taps


def _collect_distances(visual: StreamPart, audio: _SortedAudio, grid: Grid) -> Float[Array, "Q w"]:
    """`|V - W A|^2 - |V|^2 = |W A|^2 - 2 <W' V, A>`, all audio on one grid."""
    collected, _ = _collect_block(visual, audio, grid)
    squares = product(collected.own, audio.squares) + product(collected.next, audio.neighbours)
    return squares - 2.0 * product(collected.values.astype(audio.values.dtype), audio.values)


def _collect_gradients(visual: StreamPart, audio: _SortedAudio, grid: Grid, weights, of_visual):
    collected, taps = _collect_block(visual, audio, grid)
    values = audio.values.astype(weights.dtype)
    own = combine(weights.T, collected.own)[..., None]
    following = 0.5 * combine(weights.T, collected.next)[:, :-1, None]
    of_audio = own * values - combine(weights.T, collected.values)
    of_audio = of_audio.at[:, :-1].add(following * values[:, 1:])
    of_audio = of_audio.at[:, 1:].add(following * values[:, :-1])
    of_grid = InPlace(combine(weights, values), None, None)
    return of_visual - read(of_grid, taps), of_audio


def _collect_block(visual: StreamPart, audio: _SortedAudio, grid: Grid):
    """W' V on one audio grid with W' W, and the taps of W."""
    visual_steps = visual.block.values.shape[-2]
    steps = jnp.arange(visual_steps, dtype=jnp.int32)
    taps = taps_of_many(grid, visual.grid, steps, visual.block.centre.dtype)
    return collect(visual.block, taps, grid, visual.grid, audio.values.shape[1]), taps


_TILE_DISTANCES = {"visual_to_audio": _read_distances, "audio_to_visual": _collect_distances}
_TILE_GRADIENTS = {"visual_to_audio": _read_gradients, "audio_to_visual": _collect_gradients}
