"""Linear resampling between many time grids at once, and its adjoint.

A grid says where the steps of a sequence lie: its length and window. `resample` of `sequences.py`
brings one sequence to one grid; here the operator W that does so is applied to a batch of
sequences, with one side's grid shared by all of them:

    read      x -> W x      two rows of the source for every target step
    collect   y -> W' y     what every source step is read for, gathered: for few source steps
    scatter   y -> W' y     the same, scattered: for few target steps

W has two entries a row, `1 - weight` at `left` and `weight` at `right = left + 1`; rows sum to 1,
so that a constant goes through W unchanged. W'W is tridiagonal.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from scav_jax.sequences import Sequences

MARGIN = 0.01  # of a step: beyond the rounding of positions of up to 10,000 steps in float32
PACE_PARTS = 2**12  # times the number of a step: below 2**31
MAX_PACE = 2.0**16
TAPS_AT_ONCE = 8  # terms of one pass of `collect`: enough to be bound by arithmetic, not by memory


class Grid(NamedTuple):
    """Where the steps of sequences lie.

    Attributes:
      lengths: `[...]`, real steps.
      windows: `[..., 2]`, (begin, extent) in steps; see `Sequences`.
    """

    lengths: Int[Array, "*batch"]
    windows: Float[Array, "*batch 2"]


class Taps(NamedTuple):
    """The rows of W: what each of T target steps reads of S source steps.

    Attributes:
      left: the source step before it, in 0..last.
      right: the source step after it, in 0..last.
      weight: of the right one, in 0..1; 0 where both are the same.
      real: False in the target's padding.
    """

    left: Int[Array, "*batch T"]
    right: Int[Array, "*batch T"]
    weight: Float[Array, "*batch T"]
    real: Bool[Array, "*batch T"]


def grid_of(stream: Sequences) -> Grid:
    """The grids of all sequences of a stream."""
    return Grid(stream.lengths, stream.windows)


def same_grid(grid: Grid, other: Grid) -> Bool[Array, " B"]:
    """Which of `[B]` grids are the other's, `[B]` or `[1]`."""
    return (grid.lengths == other.lengths) & jnp.all(grid.windows == other.windows, axis=-1)


def all_on_one(grid: Grid, other: Grid) -> Bool[Array, ""]:
    """Whether all grids are the first one of another stream, or of their own."""
    return jnp.all(same_grid(grid, jax.tree.map(lambda leaf: leaf[:1], other)))


# -- where to read --------------------------------------------------------------------------------


def taps_of_many(sources: Grid, targets: Grid, steps: Int[Array, " T"], dtype: jnp.dtype) -> Taps:
    """The rows of W for some target steps of a batch of pairs of grids.

    As `sequences.resample`, but exact where that is rounded: of position 290.4, the fraction has
    seven digits here and five there. Not to be lifted by vmap, see `apart`.

    Args:
      sources: `[B]` grids, or one for all.
      targets: `[B]` grids, or one for all.
      steps: which target steps, from 0.
      dtype: of the weights.

    Returns:
      `[B, T]` each.
    """
    (batch,) = jnp.broadcast_shapes(sources.lengths.shape, targets.lengths.shape)

    def of_all(grid: Grid) -> Grid:
        one = grid.lengths.ndim == 0
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (batch, *leaf.shape)) if one else leaf, grid
        )

    sources, targets = of_all(sources), of_all(targets)
    always = jnp.max(targets.lengths) > 0

    def positions() -> tuple[Int[Array, "B T"], Float[Array, "B T"]]:
        windows = sources.windows.astype(dtype), targets.windows.astype(dtype)
        return jax.vmap(_positions, (0, 0, None))(*windows, steps)

    # By itself: where XLA computes a position twice, with two roundings, the floor of the one and
    # the fraction of the other can be a whole step apart.
    read_from = apart(positions, always)
    taps = partial(jax.vmap(_taps, (0, 0, 0, None)), sources, targets, read_from, steps)
    return apart(taps, always)


def _taps(source: Grid, target: Grid, position, steps: Int[Array, " T"]) -> Taps:
    """The rows of W of one pair of grids, from its positions."""
    whole, part = position
    last = jnp.maximum(source.lengths - 1, 0)
    left = whole + jnp.floor(part).astype(jnp.int32)
    inside = (left >= 0) & (left < last)
    left = jnp.clip(left, 0, last)
    return Taps(
        left=left,
        right=jnp.minimum(left + 1, last),
        weight=jnp.where(inside, part - jnp.floor(part), jnp.zeros((), part.dtype)),
        real=steps < target.lengths,
    )


def _positions(
    source: Float[Array, "2"], target: Float[Array, "2"], steps: Int[Array, " T"]
) -> tuple[Int[Array, " T"], Float[Array, " T"]]:
    """`source_begin + (t + 0.5 - target_begin) * pace - 0.5`, with pace = the ratio of extents.

    The pace is taken apart into an integer, 4096ths and a small rest, all three nearly exact
    because remainders are; so what grows with t is counted in integers. No step depends on how a
    product is rounded: compilers contract products and sums, which breaks compensated arithmetic.

    Returns:
      A whole part, and what is to be added to it.
    """
    dtype = source.dtype
    (source_begin, source_extent), (target_begin, target_extent) = source, target
    remainder = jax.lax.rem(source_extent, target_extent)
    fine_remainder = jax.lax.rem(remainder * PACE_PARTS, target_extent)
    whole = _integer((source_extent - remainder) / target_extent)
    parts = _integer((remainder * PACE_PARTS - fine_remainder) / target_extent)
    rest = fine_remainder / target_extent / PACE_PARTS
    half = jnp.asarray(0.5, dtype)
    # Two equal windows: pace 1, and these two cancel, so that every step reads itself.
    begin = (half - target_begin) * (source_extent / target_extent) + (source_begin - half)
    counted = steps * parts
    fraction = (counted % PACE_PARTS).astype(dtype) / PACE_PARTS
    return steps * whole + counted // PACE_PARTS, fraction + (steps.astype(dtype) * rest + begin)


def _integer(quotient: Float[Array, ""]) -> Int[Array, ""]:
    """The nearest integer; a pace beyond `MAX_PACE` leaves every source after one step anyway."""
    return jnp.round(jnp.minimum(quotient, MAX_PACE)).astype(jnp.int32)


def apart(compute, always: Bool[Array, ""]):
    """`compute()`, by itself: what takes its result reads it from memory.

    XLA fuses small computations into large ones, here those of a step into every channel of it. A
    barrier keeps them apart, but on the CPU it is dropped. There XLA does not look into a branch,
    which elsewhere the host would have to choose. Under `vmap` a branch is none: call it outside.

    Args:
      compute: a function of nothing to arrays.
      always: a condition that is true and that XLA does not know to be.
    """
    if jax.default_backend() != "cpu":
        return jax.lax.optimization_barrier(compute())
    shapes = jax.eval_shape(compute)
    nothing = partial(jax.tree.map, lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.cond(always, compute, nothing)


# -- W and its adjoint, for a batch ---------------------------------------------------------------


class InPlace(NamedTuple):
    """Sequences that are read in place: a copy would cost as much as its use.

    Attributes:
      values: `[B, S, C]`, or `[B, blocks, S, C]` of which every `blocks`-th sequence is meant.
      number: which block, or None where there is one.
      centre: `[C]`, taken off what is read, or None.
    """

    values: Float[Array, "B S C"] | Float[Array, "B blocks S C"]
    number: Int[Array, ""] | None
    centre: Float[Array, " C"] | None


def rows_of(block: InPlace, steps: Int[Array, "B T"], dtype: jnp.dtype) -> Float[Array, "B T C"]:
    """Steps of every sequence by number, centred; the numbers must be in range."""

    def one(values: Float[Array, "*blocks S C"], steps: Int[Array, " T"]):
        index = steps if block.number is None else (block.number, steps)
        return values.at[index].get(mode="promise_in_bounds")

    rows = jax.vmap(one)(block.values, steps).astype(dtype)
    return rows if block.centre is None else rows - block.centre[None, None]


def slice_of(block: InPlace, start: Int[Array, ""], size: int) -> Float[Array, "B size C"]:
    """Consecutive steps of every sequence, as they are."""
    values = jax.lax.dynamic_slice_in_dim(block.values, start, size, axis=-2)
    if block.number is None:
        return values
    return jax.lax.dynamic_index_in_dim(values, block.number, 1, keepdims=False)


def read(block: InPlace, taps: Taps) -> Float[Array, "B T C"]:
    """W x for every sequence; 0 in the target's padding, the source's padding is not read."""
    dtype = taps.weight.dtype
    lower, upper = rows_of(block, taps.left, dtype), rows_of(block, taps.right, dtype)
    # By value and difference, so that a constant sequence stays exactly constant.
    result = lower + taps.weight[..., None] * (upper - lower)
    return jnp.where(taps.real[..., None], result, jnp.zeros((), result.dtype))


def scatter(
    total: Float[Array, "B S C"], values: Float[Array, "B T C"], taps: Taps
) -> Float[Array, "B S C"]:
    """`total + W' y` for every sequence; y must be 0 in its padding."""
    weights = jnp.stack([1 - taps.weight, taps.weight], axis=-1)
    shares = values[:, :, None, :] * weights[..., None]
    steps = jnp.stack([taps.left, taps.right], axis=-1)

    def one(rows: Float[Array, "S C"], steps: Int[Array, "T 2"], shares: Float[Array, "T 2 C"]):
        # Flat: one scatter of 2 T rows is much faster on the CPU than two of T.
        return rows.at[steps.reshape(-1)].add(
            shares.reshape(-1, shares.shape[-1]), mode="promise_in_bounds"
        )

    return jax.vmap(one)(total, steps, shares)


class Collected(NamedTuple):
    """`W' y` and the tridiagonal `W'W` for every sequence.

    Attributes:
      values: `W' y`.
      own: the diagonal of `W'W`.
      next: twice its second diagonal, so that `|W x|^2 = sum own |x_s|^2 + next <x_s, x_s+1>`.
    """

    values: Float[Array, "B S C"]
    own: Float[Array, "B S"]
    next: Float[Array, "B S"]


def collect(block: InPlace, taps: Taps, source: Grid, targets: Grid, steps: int) -> Collected:
    """`W' y` for every sequence of a block, and `W'W`; padding is not read.

    Source step s is read by consecutive target steps, since positions grow with them; how many is
    known at run time only, so passes of a few of them are added up.

    Args:
      block: sequences y on the target grids.
      taps: `[B, T]`, of all target steps.
      source: the grid of the source steps, one for all B.
      targets: `[B]` grids.
      steps: S, how many source steps are returned.
    """
    batch, target_steps = taps.left.shape
    width, dtype = block.values.shape[-1], taps.weight.dtype
    first, passes = _readers(source, targets, target_steps, steps, dtype)
    sources = jnp.arange(steps, dtype=jnp.int32)[None, :, None]
    within = jnp.arange(TAPS_AT_ONCE, dtype=jnp.int32)[None, None]
    last = (targets.lengths - 1)[:, None, None]

    def shares(number: Int[Array, ""]):
        """Of one pass: the steps that are read `[B, S, taps]`, their weights, the terms of W'W."""
        readers = (first + number * TAPS_AT_ONCE)[..., None] + within
        steps_read = jnp.minimum(readers, last)
        left, weight = (
            jax.vmap(lambda one, numbers: one[numbers])(leaf, steps_read)
            for leaf in (taps.left, taps.weight)
        )
        zero = jnp.zeros((), dtype)
        as_left = jnp.where((readers <= last) & (left == sources), 1 - weight, zero)
        as_right = jnp.where((readers <= last) & (left == sources - 1), weight, zero)
        weights = as_left + as_right
        return steps_read, weights, jnp.sum(weights**2, -1), 2 * jnp.sum(as_left * weight, -1)

    def add(number: Int[Array, ""], total: Collected) -> Collected:
        steps_read, weights, own, following = apart(lambda: shares(number), passes > 0)
        collected = total.values
        for tap in range(TAPS_AT_ONCE):
            collected += weights[..., tap, None] * rows_of(block, steps_read[..., tap], dtype)
        return Collected(collected, total.own + own, total.next + following)

    shapes = (batch, steps, width), (batch, steps), (batch, steps)
    nothing = Collected(*(zeros(shape, dtype, like=targets.lengths) for shape in shapes))
    return jax.lax.fori_loop(0, passes, add, nothing)


def _readers(
    source: Grid, targets: Grid, target_steps: int, steps: int, dtype: jnp.dtype
) -> tuple[Int[Array, "B S"], Int[Array, ""]]:
    """The first target step that can read each source step, and how many passes cover all."""
    begin, pace = source.windows[0], source.windows[1] / targets.windows[:, 1]
    at_zero = begin - targets.windows[:, 0] * pace + 0.5 * pace - 0.5  # position of target step 0
    sources = jnp.arange(steps, dtype=at_zero.dtype)[None, :]
    last = (source.lengths - 1).astype(at_zero.dtype)
    before = jnp.where(sources == 0, -jnp.inf, (sources - 1 - at_zero[:, None]) / pace[:, None])
    after = jnp.where(sources >= last, jnp.inf, (sources + 1 - at_zero[:, None]) / pace[:, None])
    # A margin: these positions are rounded, those of `taps` are not.
    ends = (targets.lengths - 1)[:, None].astype(at_zero.dtype)
    first = jnp.clip(jnp.ceil(before - MARGIN), 0, ends)
    beyond = jnp.clip(jnp.floor(after + MARGIN), -1, ends) + 1
    longest = jnp.max(jnp.where(sources <= last, beyond - first, 0))
    passes = jnp.clip(jnp.ceil(longest / TAPS_AT_ONCE), 0, -(-target_steps // TAPS_AT_ONCE))
    return first.astype(jnp.int32), passes.astype(jnp.int32)


def zeros(shape: tuple[int, ...], dtype: jnp.dtype, *, like: Int[Array, " B"]) -> Array:
    """Zeros for a loop to add to."""
    return vary(jnp.zeros(shape, dtype), like)


def vary(array: Array, like: Int[Array, " B"]) -> Array:
    """The same array; `jax.shard_map` knows that it may differ between devices where `like` does.

    Adding what compiles to the constant 0 says so in every version of JAX.
    """
    return array + (like[0] * 0).astype(array.dtype)


# -- sequences that share a grid ------------------------------------------------------------------


class Tiles(NamedTuple):
    """Runs of sequences that share a grid, in the order of `sort_by_grid`.

    Attributes:
      width: the most sequences of a run (static).
      start: `[B]`, the first sequence of each run; only the first `count` are runs.
      size: `[B]`, how many sequences each run has, at most `width`.
      count: how many runs there are.
    """

    width: int
    start: Int[Array, " B"]
    size: Int[Array, " B"]
    count: Int[Array, ""]


def sort_by_grid(grid: Grid) -> Int[Array, " B"]:
    """An order of the sequences in which those that share a grid are neighbours."""
    # XLA takes seconds to sort constants, as lengths are that a function closes over.
    grid = jax.lax.optimization_barrier(grid)
    return jnp.lexsort((grid.windows[:, 1], grid.windows[:, 0], grid.lengths))


def count_grids(grid: Grid) -> Int[Array, ""]:
    """How many distinct grids there are."""
    ordered = jax.tree.map(lambda leaf: leaf[sort_by_grid(grid)], grid)
    return jnp.sum(_starts_group(ordered), dtype=jnp.int32)


def tiles(grid: Grid, widths: tuple[int, ...]) -> list[Tiles]:
    """Sorted `[B]` grids cut into runs that share one, each run as narrow as it may be.

    Args:
      grid: sorted by `sort_by_grid`.
      widths: ascending; a group is cut into runs of the first width that holds it, or of the last.

    Returns:
      The runs of each width; all together they hold every sequence once.
    """
    (count,) = grid.lengths.shape
    numbers = jnp.arange(count, dtype=jnp.int32)
    starts = _starts_group(grid)
    group = jnp.cumsum(starts, dtype=jnp.int32) - 1
    sizes = jnp.zeros(count, jnp.int32).at[group].add(1)[group]
    begins = jax.lax.cummax(jnp.where(starts, numbers, 0))
    result, lower = [], 0
    for width in widths:
        fits = (sizes > lower) & ((sizes <= width) | (width == widths[-1]))
        is_start = fits & ((numbers - begins) % width == 0)
        (start,) = jnp.nonzero(is_start, size=count, fill_value=0)
        left_over = (begins + sizes - numbers)[start]
        size = jnp.minimum(left_over, width)
        result.append(
            Tiles(width, start.astype(jnp.int32), size, jnp.sum(is_start, dtype=jnp.int32))
        )
        lower = width
    return result


def _starts_group(grid: Grid) -> Bool[Array, " B"]:
    """Where a sorted grid differs from the one before it; the first always does."""
    before = jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), grid)
    return ~same_grid(grid, before) | (jnp.arange(len(grid.lengths)) == 0)
