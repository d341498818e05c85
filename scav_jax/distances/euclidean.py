"""Interpolated Euclidean distance (paper section III-C, distance 1).

One sequence is linearly interpolated to the steps of the other, and the squared differences of
paired steps are averaged over steps and channels:

    d(V, A) = 1/(m C) sum_t |(W V)_t - A_t|^2      resample="visual_to_audio", m audio steps
    d(V, A) = 1/(n C) sum_t |V_t - (W A)_t|^2      resample="audio_to_visual", n visual steps

The mean over channels too (the plain mean squared error) matters only without the z-score: then
the ablation of the paper's Table IV falls to CAV's level only under this scale.

All pairs are products of matrices, `|x - y|^2 = |x|^2 + |y|^2 - 2<x, y>`, in one of two forms that
are chosen at run time, since lengths are data. Where all targets lie on one grid (clips of one
duration), every sequence is resampled once and one product serves all pairs (`_OneGrid`). Else the
audio sequences are taken grid by grid, and the visual ones are brought to each audio grid
(`_Ragged`): by W itself for visual_to_audio, and by its adjoint for audio_to_visual, since

    |V - W A|^2 = |V|^2 - 2 <W' V, A> + |W A|^2

where W'W is tridiagonal. So distinct visual lengths cost nothing, and products run over the audio
steps, which are few. Both forms centre the latents first, which changes no difference and takes
away the cancellation that a common part would cause, and keep only the latents for the gradient.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scav_jax.distances import resampling
from scav_jax.distances.resampling import Block, Grid, collect, grid_of, read, spread, taps_of_many
from scav_jax.errors import InputError, did_you_mean
from scav_jax.sequences import (
    DIRECTIONS,
    Sequences,
    resample_like,
    resample_positions,
    zero_padding,
)

# TF32 and bf16, the accelerators' defaults, lose what the z-score then amplifies.
FULL_PRECISION = jax.lax.Precision.HIGHEST
STORAGES = ("float32", "bfloat16")
TILE_WIDTHS = (1, 8, 64)  # audio sequences that share a grid, per product
FEW_GRIDS = 0.4  # audio grids per audio sequence, beyond which a product serves too few of them
CPU_BLOCK_BYTES = 4 * 2**20  # of visual latents: what a core's caches keep between audio grids


# -- one pair: the definition ---------------------------------------------------------------------


def euclidean(
    visual: Sequences,
    audio: Sequences,
    *,
    resample: str = "visual_to_audio",
    storage: str = "float32",
) -> Float[Array, ""]:
    """The distance of one pair; the definition that every faster form is tested against.

    Args:
      visual: one sequence `[N, C]`.
      audio: one sequence `[M, C]`.
      resample: which stream is interpolated to the steps of which.
      storage: of `euclidean_matrix`; one pair is computed as it comes.

    Returns:
      A scalar >= 0, smaller is closer; padding is not read.

    Raises:
      InputError: an unknown `resample` or `storage`.

    >>> from scav_jax.sequences import sequences
    >>> v, a = sequences(jnp.array([[0.0], [2.0]])), sequences(jnp.array([[1.0]]))
    >>> float(euclidean(v, a)), float(euclidean(v, a, resample="audio_to_visual"))
    (0.0, 1.0)
    """
    _check(resample, storage)
    moved, target = _moved_and_target(visual, audio, resample)
    difference = resample_like(moved, target).values - target.values
    squared = jnp.sum(zero_padding(difference, target.lengths) ** 2)
    return squared / (target.lengths * target.values.shape[-1]).astype(squared.dtype)


def interpolation_weights(
    visual: Sequences,
    audio: Sequences,
    *,
    resample: str = "visual_to_audio",
    storage: str = "float32",
) -> Float[Array, "N M"]:
    """How much each target step reads of each source step, for plotting; target steps sum to 1."""
    _check(resample, storage)
    moved, target = _moved_and_target(visual, audio, resample)
    steps, last = moved.values.shape[-2], moved.lengths - 1
    positions = resample_positions(moved.windows, target.windows, target.values.shape[-2])
    positions = jnp.clip(positions, 0.0, last.astype(positions.dtype))
    numbers = jnp.arange(steps, dtype=positions.dtype)
    weights = jnp.maximum(1.0 - jnp.abs(positions[:, None] - numbers[None, :]), 0.0)
    weights = zero_padding(weights, target.lengths)  # [target, moved]
    return weights.T if resample == "visual_to_audio" else weights


def _moved_and_target(visual, audio, resample: str):
    return (visual, audio) if resample == "visual_to_audio" else (audio, visual)


def _check(resample: str, storage: str) -> None:
    for name, value, known in (("resample", resample, DIRECTIONS), ("storage", storage, STORAGES)):
        if value not in known:
            raise InputError(
                f"euclidean: {name}: expected {' or '.join(known)}, got {value!r}."
                + did_you_mean(str(value), known)
            )


# -- all pairs ------------------------------------------------------------------------------------


def euclidean_matrix(
    visual: Sequences,
    audio: Sequences,
    *,
    block: int | None,
    memory_bytes: int,
    resample: str = "visual_to_audio",
    storage: str = "float32",
) -> tuple[Float[Array, "Q K"], dict]:
    """All pairs of `[Q, N, C]` x `[K, M, C]` as products of matrices, exact for ragged lengths.

    Windows are data: no gradient flows to them.

    Args:
      visual: Q sequences.
      audio: K sequences.
      block: pairs at a time, at least one visual sequence with every audio; or None for as many as
        is fast within `memory_bytes`.
      memory_bytes: of what lives beside latents, result and gradients. One copy of the audio
        latents in another order comes on top where their grids differ.
      resample: which stream is interpolated to the steps of which.
      storage: "float32" computes with the latents as they are. "bfloat16" centres and rounds them
        first and keeps the rounded ones for the gradient, half the memory; products are summed
        and norms taken in float32.

    Returns:
      D, >= 0, and no further results.

    Raises:
      InputError: an unknown `resample` or `storage`.
    """
    _check(resample, storage)
    audio = jax.tree.map(lambda leaf: resampling.vary(leaf, visual.lengths), audio)
    plan = _Plan(resample, storage, block, memory_bytes)
    return _all_pairs(plan, _in_range(visual), _in_range(audio)), {}


class _Plan(NamedTuple):
    """The static options, see `euclidean_matrix`."""

    resample: str
    storage: str
    block: int | None
    memory_bytes: int


def _in_range(stream: Sequences) -> Sequences:
    """Lengths that the array can hold: rows are read unchecked, whatever comes."""
    return stream.replace(lengths=jnp.clip(stream.lengths, 1, stream.values.shape[1]))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _all_pairs(plan: _Plan, visual: Sequences, audio: Sequences) -> Float[Array, "Q K"]:
    return _all_pairs_forward(plan, visual, audio)[0]


def _all_pairs_forward(plan: _Plan, visual: Sequences, audio: Sequences):
    dtype = visual.values.dtype
    if plan.storage == "bfloat16":
        visual, audio = _rounded(visual, audio)
    forms = [_aligned_distances, _one_grid_distances, _ragged_distances, _read_by_pairs]
    distances = _switch(_form(plan, visual, audio), plan, forms, visual, audio)
    return distances.astype(dtype), (visual, audio)


def _all_pairs_backward(plan: _Plan, residuals, cotangent: Float[Array, "Q K"]):
    visual, audio = residuals
    forms = [_aligned_gradients, _one_grid_gradients, _ragged_gradients]
    sums = cotangent.astype(_sum_dtype(visual))
    gradients = _switch(_form(plan, visual, audio), plan, forms, visual, audio, sums)
    return tuple(
        stream.replace(values=gradient.astype(cotangent.dtype), lengths=None, windows=None)
        for stream, gradient in zip((visual, audio), gradients, strict=True)
    )


_all_pairs.defvjp(_all_pairs_forward, _all_pairs_backward)


def _switch(form: Int[Array, ""], plan: _Plan, forms, *arguments):
    """The form with that number, or the last one."""
    last = 3 if plan.resample == "visual_to_audio" else 2
    branches = [partial(one, plan) for one in forms[: last + 1]]
    return jax.lax.switch(jnp.minimum(form, len(branches) - 1), branches, *arguments)


def _form(plan: _Plan, visual: Sequences, audio: Sequences) -> Int[Array, ""]:
    """0: every sequence lies on one grid; 1: every target does; 2: neither; 3: nor do the audio.

    For audio_to_visual, one visual grid is worth a product over its steps only where the audio
    grids together have as many. For visual_to_audio, products of one or two audio sequences are
    slower than differences, but their gradients are not.
    """
    moved, target = _moved_and_target(grid_of(visual), grid_of(audio), plan.resample)
    grids = resampling.count_grids(grid_of(audio))
    is_one = resampling.all_on_one(target, target)
    aligned = is_one & resampling.all_on_one(moved, target)
    if plan.resample == "audio_to_visual":
        is_one &= target.lengths[0] <= grids * jnp.max(audio.lengths)
        ragged = jnp.asarray(2, jnp.int32)
    else:
        ragged = jnp.where(grids > int(FEW_GRIDS * len(audio.lengths)), 3, 2)
    return jnp.where(aligned, 0, jnp.where(is_one, 1, ragged)).astype(jnp.int32)


def _first(grid: Grid) -> Grid:
    return jax.tree.map(lambda leaf: leaf[0], grid)


def _sum_dtype(stream: Sequences) -> jnp.dtype:
    """What sums and results are in: float32 for rounded latents."""
    return _wide(stream.values.dtype)


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.dtype(jnp.float32) if dtype == jnp.bfloat16 else jnp.dtype(dtype)


def _rounded(visual: Sequences, audio: Sequences) -> tuple[Sequences, Sequences]:
    """Both centred, then in bfloat16: its three digits are of the differences."""
    centre = _centre(audio)
    return tuple(
        stream.replace(values=_centred(stream, centre).astype(jnp.bfloat16))
        for stream in (visual, audio)
    )


def _centre(audio: Sequences) -> Float[Array, " C"]:
    """The mean of all real audio steps. What the visual ones have beyond it is in D anyway."""
    values = zero_padding(audio.values.astype(_sum_dtype(audio)), audio.lengths)
    return jnp.sum(values, (0, 1)) / jnp.sum(audio.lengths).astype(values.dtype)


def _centred(stream: Sequences, centre: Float[Array, " C"]) -> Float[Array, "B T C"]:
    """The values less one vector, 0 in padding. Resampling commutes with it."""
    return zero_padding(stream.values.astype(centre.dtype) - centre[None, None], stream.lengths)


def _product(x: Float[Array, "X ..."], y: Float[Array, "Y ..."]) -> Float[Array, "X Y"]:
    """Inner products over all axes but the first, summed in float32 at least."""
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    dtype = _wide(x.dtype)
    return jnp.matmul(x, y.T, precision=FULL_PRECISION, preferred_element_type=dtype)


def _combine(weights: Float[Array, "X Y"], y: Float[Array, "Y ..."]) -> Float[Array, "X ..."]:
    """Weighted sums over the first axis."""
    flat = y.reshape(len(y), -1).astype(weights.dtype)
    sums = jnp.matmul(weights, flat, precision=FULL_PRECISION)
    return sums.reshape(len(weights), *y.shape[1:])


# -- blocks of visual sequences -------------------------------------------------------------------


def _divisor(count: int, wanted: float, limit: float) -> int:
    """The divisor of `count` nearest to `wanted` of those up to `limit`; 1 where there is none."""
    fitting = [d for d in range(1, count + 1) if count % d == 0 and (d <= limit or d == 1)]
    return min(fitting, key=lambda d: max(d / wanted, wanted / d))


class _Some(NamedTuple):
    """Some sequences of a stream: where they are read, and their `[B]` grids."""

    block: Block
    grid: Grid

    def __len__(self) -> int:
        return len(self.grid.lengths)


def _some(stream: Sequences, rows: int, number: Int[Array, ""], centre=None) -> _Some:
    """Block `number` of a stream: the sequences number, number + blocks, number + 2 blocks, ...

    So every block holds sequences of all devices, where they are sharded over these.
    """
    cut = jax.tree.map(lambda leaf: leaf.reshape(rows, -1, *leaf.shape[1:]), stream)
    take = partial(jax.lax.dynamic_index_in_dim, index=number, axis=1, keepdims=False)
    return _Some(Block(cut.values, number, centre), jax.tree.map(take, grid_of(cut)))


def _all(stream: Sequences, centre=None) -> _Some:
    """The whole stream as one block."""
    return _some(stream, len(stream.lengths), jnp.zeros((), jnp.int32), centre)


def _distances_by_block(rows: int, queries: int, distances_of) -> Float[Array, "Q K"]:
    """D from `distances_of(number)` of `[rows, K]`, one block of rows after the other."""
    if rows == queries:
        return distances_of(jnp.zeros((), jnp.int32))
    blocks = jax.lax.map(distances_of, jnp.arange(queries // rows, dtype=jnp.int32))
    return jnp.moveaxis(blocks, 0, 1).reshape(queries, -1)


def _gradients_by_block(
    rows: int, visual: Sequences, audio: Sequences, dtype: jnp.dtype, gradients_of
) -> tuple[Float[Array, "Q N C"], Float[Array, "K M C"]]:
    """Both gradients from `gradients_of(number, of_audio)`, one block after the other.

    It returns the gradient of its block of visual, `[rows, N, C]`, and what it was given for audio
    with the block's share added.
    """
    zeros = partial(resampling.zeros, dtype=dtype, like=visual.lengths)
    shape, of_audio = visual.values.shape, zeros(audio.values.shape)
    if rows == shape[0]:
        return gradients_of(jnp.zeros((), jnp.int32), of_audio)

    def add(number, gradients):
        of_visual, of_audio = gradients
        own, of_audio = gradients_of(number, of_audio)
        return jax.lax.dynamic_update_index_in_dim(of_visual, own, number, 1), of_audio

    start = zeros((rows, shape[0] // rows, *shape[1:])), of_audio
    of_visual, of_audio = jax.lax.fori_loop(0, shape[0] // rows, add, start)
    return of_visual.reshape(shape), of_audio


# -- all targets on one grid ----------------------------------------------------------------------


def _one_grid_distances(
    plan: _Plan, visual: Sequences, audio: Sequences, *, aligned: bool = False
) -> Float[Array, "Q K"]:
    """One product over the steps of the one target grid, some steps at a time.

    Args:
      aligned: whether the moved sequences lie on that grid too, so that W is the identity.
    """
    rows, size = _one_grid_sizes(plan, visual, audio, aligned)
    zeros = partial(resampling.zeros, dtype=_sum_dtype(visual), like=visual.lengths)

    def distances_of(number: Int[Array, ""]) -> Float[Array, "rows K"]:
        pair = _some(visual, rows, number), _all(audio)
        moved, target = _moved_and_target(*pair, plan.resample)
        length = target.grid.lengths[0]

        def add(part, sums):
            products, of_visual, of_audio = sums
            x, y, _ = _paired_steps(moved, target, part * size, size, aligned)
            v, a = _moved_and_target(x, y, plan.resample)
            return products + _product(v, a), of_visual + _norm(v), of_audio + _norm(a)

        start = zeros((rows, len(audio.lengths))), zeros((rows,)), zeros(audio.lengths.shape)
        sums = jax.lax.fori_loop(0, -(-length // size), add, start)
        return _mean_square(*sums, length * visual.values.shape[-1])

    return _distances_by_block(rows, len(visual.lengths), distances_of)


def _one_grid_gradients(
    plan: _Plan,
    visual: Sequences,
    audio: Sequences,
    cotangent: Float[Array, "Q K"],
    *,
    aligned: bool = False,
) -> tuple[Float[Array, "Q N C"], Float[Array, "K M C"]]:
    """`dx = 2/(T C) sum_j G_ij (x_i - y_j)` and the like for y, some steps at a time."""
    rows, size = _one_grid_sizes(plan, visual, audio, aligned)

    def gradients_of(number: Int[Array, ""], of_audio: Float[Array, "K M C"]):
        pair = _some(visual, rows, number), _all(audio)
        moved, target = _moved_and_target(*pair, plan.resample)
        length = target.grid.lengths[0]
        weights = _rows(cotangent, rows, number)
        weights = 2.0 * weights / (length * visual.values.shape[-1]).astype(weights.dtype)

        def add(part, gradients):
            start = part * size
            x, y, taps = _paired_steps(moved, target, start, size, aligned)
            v, a = _moved_and_target(x, y, plan.resample)
            dx, dy = _moved_and_target(*_difference_gradients(weights, v, a), plan.resample)
            of_moved, of_target = _moved_and_target(*gradients, plan.resample)
            of_moved = _add_steps(of_moved, dx, start) if aligned else spread(of_moved, dx, taps)
            return _moved_and_target(of_moved, _add_steps(of_target, dy, start), plan.resample)

        shape = rows, *visual.values.shape[1:]
        own = resampling.zeros(shape, weights.dtype, like=visual.lengths)
        return jax.lax.fori_loop(0, -(-length // size), add, (own, of_audio))

    return _gradients_by_block(rows, visual, audio, cotangent.dtype, gradients_of)


_aligned_distances = partial(_one_grid_distances, aligned=True)
_aligned_gradients = partial(_one_grid_gradients, aligned=True)


def _one_grid_sizes(
    plan: _Plan, visual: Sequences, audio: Sequences, aligned: bool
) -> tuple[int, int]:
    """How many visual sequences and how many steps are taken at a time."""
    (queries, n, width), (candidates, m, _) = visual.values.shape, audio.values.shape
    total = min(n, m) if aligned else (m if plan.resample == "visual_to_audio" else n)
    # Of one step of one sequence: what is read, what is multiplied, the gradient.
    step_bytes = 4 * width * _sum_dtype(visual).itemsize
    limit = plan.memory_bytes // step_bytes - candidates
    rows = _divisor(queries, queries, limit if plan.block is None else plan.block // candidates)
    if jax.default_backend() == "cpu":
        return rows, 1  # operands stay in the cache: 1.5 times as fast as all steps at once
    return rows, _divisor(total, total, plan.memory_bytes // (step_bytes * (rows + candidates)))


def _rows(matrix: Float[Array, "Q K"], rows: int, number: Int[Array, ""]) -> Float[Array, "rows K"]:
    """The rows of one block."""
    cut = matrix.reshape(rows, -1, matrix.shape[1])
    return jax.lax.dynamic_index_in_dim(cut, number, 1, keepdims=False)


def _paired_steps(moved: _Some, target: _Some, start: Int[Array, ""], size: int, aligned: bool):
    """`size` steps of the target grid, of both streams.

    Returns:
      x `[X, size, C]` and y `[Y, size, C]`, less the mean of all y step by step and 0 in padding;
      and the taps that x was read by, or None if aligned.
    """
    steps = start + jnp.arange(size, dtype=jnp.int32)
    y, taps = _slice_steps(target.block, start, size), None
    if aligned:
        x = _slice_steps(moved.block, start, size)
    else:
        taps = taps_of_many(moved.grid, _first(target.grid), steps, y.dtype)
        x = read(moved.block, taps)
    real = (steps < target.grid.lengths[0])[None, :, None]
    centre = jnp.mean(y, 0, keepdims=True)
    stored = target.block.values.dtype
    return (*(jnp.where(real, z - centre, 0.0).astype(stored) for z in (x, y)), taps)


def _slice_steps(block: Block, start: Int[Array, ""], size: int) -> Float[Array, "B size C"]:
    """Consecutive steps, as they are."""
    batch, _, _, width = block.values.shape
    zero = jnp.zeros_like(start)
    sizes = batch, 1, size, width
    part = jax.lax.dynamic_slice(block.values, (zero, block.number, start, zero), sizes)
    return part[:, 0].astype(_wide(part.dtype))


def _norm(values: Float[Array, "B T C"]) -> Float[Array, " B"]:
    """Squared norms of whole sequences."""
    wide = values.astype(_wide(values.dtype))
    return jnp.sum(wide * wide, axis=(1, 2))


def _mean_square(
    products: Float[Array, "X Y"],
    x_squares: Float[Array, " X"],
    y_squares: Float[Array, " Y"],
    count: Int[Array, ""],
) -> Float[Array, "X Y"]:
    """`|x - y|^2 / count`, at least 0."""
    squared = x_squares[:, None] + y_squares[None, :] - 2.0 * products
    return jnp.maximum(squared, 0.0) / count.astype(squared.dtype)


def _difference_gradients(
    weights: Float[Array, "X Y"], x: Float[Array, "X T C"], y: Float[Array, "Y T C"]
) -> tuple[Float[Array, "X T C"], Float[Array, "Y T C"]]:
    """`sum_j w_ij (x_i - y_j)` and `sum_i w_ij (y_j - x_i)`."""
    of_x = jnp.sum(weights, 1)[:, None, None] * x.astype(weights.dtype) - _combine(weights, y)
    of_y = jnp.sum(weights, 0)[:, None, None] * y.astype(weights.dtype) - _combine(weights.T, x)
    return of_x, of_y


def _add_steps(
    total: Float[Array, "B T C"], part: Float[Array, "B size C"], start: Int[Array, ""]
) -> Float[Array, "B T C"]:
    """`total` with `part` added from step `start` on."""
    before = jax.lax.dynamic_slice_in_dim(total, start, part.shape[1], 1)
    return jax.lax.dynamic_update_slice_in_dim(total, before + part, start, 1)


# -- targets on many grids ------------------------------------------------------------------------


class _Audio(NamedTuple):
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


def _sorted_audio(audio: Sequences) -> tuple[_Audio, Int[Array, " K"], Float[Array, " C"]]:
    """The audio sequences grid by grid, the order that made it so, and the centre."""
    centre = _centre(audio)
    order = resampling.sort_by_grid(grid_of(audio))
    audio = jax.tree.map(lambda leaf: leaf[order], audio)
    stored = _centred(audio, centre).astype(audio.values.dtype)
    values = stored.astype(centre.dtype)
    neighbours = jnp.pad(jnp.sum(values[:, :-1] * values[:, 1:], -1), ((0, 0), (0, 1)))
    side = _Audio(stored, grid_of(audio), jnp.sum(values * values, -1), neighbours)
    return side, order, centre


def _ragged_distances(plan: _Plan, visual: Sequences, audio: Sequences) -> Float[Array, "Q K"]:
    """One product for each audio grid, of the visual sequences brought to it."""
    sorted_audio, order, centre = _sorted_audio(audio)
    rows = _ragged_rows(plan, visual, audio)
    tile_distances = _TILE_DISTANCES[plan.resample]

    def distances_of(number: Int[Array, ""]) -> Float[Array, "rows K"]:
        some = _some(visual, rows, number, centre)

        def fill(distances, start, tile, grid, chosen):
            before = jax.lax.dynamic_slice_in_dim(distances, start, len(chosen), 1)
            new = jnp.where(chosen[None], tile_distances(some, tile, grid), before)
            return jax.lax.dynamic_update_slice_in_dim(distances, new, start, 1)

        shape = rows, len(audio.lengths)
        empty = resampling.zeros(shape, centre.dtype, like=visual.lengths)
        return _for_each_tile(sorted_audio, empty, fill)

    squared = _distances_by_block(rows, len(visual.lengths), distances_of)
    squared = squared[:, jnp.argsort(order)]
    if plan.resample == "audio_to_visual":
        squared += _norm(_centred(visual, centre).astype(visual.values.dtype))[:, None]
    return jnp.maximum(squared, 0.0) / _counts(plan, visual, audio, squared.dtype)


def _read_by_pairs(plan: _Plan, visual: Sequences, audio: Sequences) -> Float[Array, "Q K"]:
    """visual_to_audio as it is defined: a visual sequence is read once for every audio one.

    Differences need no centring.
    """
    (queries, _, width), (candidates, m, _) = visual.values.shape, audio.values.shape
    dtype = _sum_dtype(visual)
    pair_bytes = candidates * m * width * dtype.itemsize  # where XLA does not fuse it all
    on_cpu = jax.default_backend() == "cpu"
    rows = 1 if on_cpu else _divisor(queries, queries, plan.memory_bytes // pair_bytes)
    steps = jnp.arange(m, dtype=jnp.int32)

    def distances_of(number: Int[Array, ""]) -> Float[Array, "rows K"]:
        some = _some(visual, rows, number)

        def all_taps() -> resampling.Taps:
            return jax.vmap(lambda grid: taps_of_many(some.grid, grid, steps, dtype))(
                grid_of(audio)
            )

        def squared(values: Float[Array, "M C"], taps: resampling.Taps) -> Float[Array, " rows"]:
            difference = read(some.block, taps) - values.astype(dtype)[None]
            return jnp.sum(jnp.where(taps.real[..., None], difference**2, 0.0), (1, 2))

        taps = resampling.apart(all_taps, jnp.max(audio.lengths) > 0)
        return jax.vmap(squared)(audio.values, taps).T

    squared = _distances_by_block(rows, queries, distances_of)
    return squared / _counts(plan, visual, audio, dtype)


def _counts(plan: _Plan, visual: Sequences, audio: Sequences, dtype: jnp.dtype):
    """How many differences D is the mean of: `[1, K]` or `[Q, 1]`."""
    axis = 0 if plan.resample == "visual_to_audio" else 1
    target = _moved_and_target(visual, audio, plan.resample)[1]
    return jnp.expand_dims(target.lengths * visual.values.shape[-1], axis).astype(dtype)


def _ragged_gradients(
    plan: _Plan, visual: Sequences, audio: Sequences, cotangent: Float[Array, "Q K"]
) -> tuple[Float[Array, "Q N C"], Float[Array, "K M C"]]:
    """The gradients of `_ragged_distances`; what was brought to a grid is computed once more."""
    sorted_audio, order, centre = _sorted_audio(audio)
    rows = _ragged_rows(plan, visual, audio)
    weights = 2.0 * cotangent / _counts(plan, visual, audio, cotangent.dtype)
    tile_gradients = _TILE_GRADIENTS[plan.resample]

    def gradients_of(number: Int[Array, ""], of_audio: Float[Array, "K M C"]):
        some = _some(visual, rows, number, centre)
        of_block = _rows(weights[:, order], rows, number)

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

    gradients = _gradients_by_block(rows, visual, audio, cotangent.dtype, gradients_of)
    return gradients[0], gradients[1][jnp.argsort(order)]


def _block_values(some: _Some) -> Float[Array, "B T C"]:
    """The values of a block, centred and 0 in padding."""
    block = some.block
    values = jax.lax.dynamic_index_in_dim(block.values, block.number, 1, keepdims=False)
    return zero_padding(
        values.astype(block.centre.dtype) - block.centre[None, None], some.grid.lengths
    )


def _ragged_rows(plan: _Plan, visual: Sequences, audio: Sequences) -> int:
    """How many visual sequences are brought to an audio grid at a time."""
    (queries, n, width), (candidates, m, _) = visual.values.shape, audio.values.shape
    itemsize = _sum_dtype(visual).itemsize
    # Values and gradient on both grids, and the two shares of each step that are scattered.
    limit = plan.memory_bytes // (4 * (n + m) * width * itemsize)
    if plan.block is not None:
        limit = plan.block // candidates
    on_cpu = jax.default_backend() == "cpu" and plan.block is None
    wanted = CPU_BLOCK_BYTES / (n * width * itemsize) if on_cpu else queries
    return _divisor(queries, wanted, limit)


def _for_each_tile(audio: _Audio, carry, step):
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


def _read_distances(visual: _Some, audio: _Audio, grid: Grid) -> Float[Array, "Q w"]:
    """`|W V - A|^2`, all audio on one grid."""
    on_grid, _ = _read_block(visual, audio, grid)
    squares = _norm(on_grid)[:, None] + jnp.sum(audio.squares, 1)[None]
    return squares - 2.0 * _product(on_grid, audio.values)


def _read_gradients(visual: _Some, audio: _Audio, grid: Grid, weights, of_visual):
    on_grid, taps = _read_block(visual, audio, grid)
    of_grid, of_audio = _difference_gradients(weights, on_grid, audio.values)
    return spread(of_visual, of_grid, taps), of_audio


def _read_block(visual: _Some, audio: _Audio, grid: Grid):
    """W V on one audio grid, and its taps."""
    steps = jnp.arange(audio.values.shape[1], dtype=jnp.int32)
    taps = taps_of_many(visual.grid, grid, steps, visual.block.centre.dtype)

    def on_grid() -> Float[Array, "Q M C"]:
        return read(visual.block, taps).astype(audio.values.dtype)

    return resampling.apart(on_grid, grid.lengths > 0), taps


def _collect_distances(visual: _Some, audio: _Audio, grid: Grid) -> Float[Array, "Q w"]:
    """`|V - W A|^2 - |V|^2 = |W A|^2 - 2 <W' V, A>`, all audio on one grid."""
    collected, _ = _collect_block(visual, audio, grid)
    squares = _product(collected.own, audio.squares) + _product(collected.next, audio.neighbours)
    return squares - 2.0 * _product(collected.values.astype(audio.values.dtype), audio.values)


def _collect_gradients(visual: _Some, audio: _Audio, grid: Grid, weights, of_visual):
    collected, taps = _collect_block(visual, audio, grid)
    values = audio.values.astype(weights.dtype)
    own = _combine(weights.T, collected.own)[..., None]
    following = 0.5 * _combine(weights.T, collected.next)[:, :-1, None]
    of_audio = own * values - _combine(weights.T, collected.values)
    of_audio = of_audio.at[:, :-1].add(following * values[:, 1:])
    of_audio = of_audio.at[:, 1:].add(following * values[:, :-1])
    of_grid = Block(_combine(weights, values)[:, None], jnp.zeros((), jnp.int32), None)
    return of_visual - read(of_grid, taps), of_audio


def _collect_block(visual: _Some, audio: _Audio, grid: Grid):
    """W' V on one audio grid with W' W, and the taps of W."""
    _, _, visual_steps, _ = visual.block.values.shape
    steps = jnp.arange(visual_steps, dtype=jnp.int32)
    taps = taps_of_many(grid, visual.grid, steps, visual.block.centre.dtype)
    return collect(visual.block, taps, grid, visual.grid, audio.values.shape[1]), taps


_TILE_DISTANCES = {"visual_to_audio": _read_distances, "audio_to_visual": _collect_distances}
_TILE_GRADIENTS = {"visual_to_audio": _read_gradients, "audio_to_visual": _collect_gradients}
