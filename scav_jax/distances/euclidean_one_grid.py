"""The Euclidean distance where all targets lie on one grid: one product for all pairs."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scav_jax.distances import resampling
from scav_jax.distances.cost import FLOAT
from scav_jax.distances.euclidean_blocks import (
    Plan,
    StreamPart,
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
    whole,
    wide,
)
from scav_jax.distances.resampling import read, scatter, slice_of, taps_of_many
from scav_jax.sequences import Sequences

READ = 4  # arrays of what is compared at a time: as read, as multiplied, both gradients


def one_grid_distances(
    plan: Plan, visual: Sequences, audio: Sequences, *, aligned: bool = False
) -> Float[Array, "Q K"]:
    """One product over the steps of the one target grid, some steps at a time.

    Args:
      aligned: whether the moved sequences lie on that grid too, so that W is the identity.
    """
    rows, size = _one_grid_sizes(plan, visual, audio, aligned)
    zeros = partial(resampling.zeros, dtype=sum_dtype(visual), like=visual.lengths)

    def distances_of(number: Int[Array, ""]) -> Float[Array, "rows K"]:
        pair = part_of(visual, rows, number), whole(audio)
        moved, target = moved_and_target(*pair, plan.resample)
        length = target.grid.lengths[0]

        def add(number, sums):
            products, of_visual, of_audio = sums
            x, y, _ = _paired_steps(moved, target, number * size, size, aligned)
            v, a = moved_and_target(x, y, plan.resample)
            return products + product(v, a), of_visual + norms(v), of_audio + norms(a)

        start = zeros((rows, len(audio.lengths))), zeros((rows,)), zeros(audio.lengths.shape)
        sums = jax.lax.fori_loop(0, -(-length // size), add, start)
        return _mean_square(*sums, length * visual.values.shape[-1])

    return distances_by_block(rows, len(visual.lengths), distances_of)


def one_grid_gradients(
    plan: Plan,
    visual: Sequences,
    audio: Sequences,
    cotangent: Float[Array, "Q K"],
    *,
    aligned: bool = False,
) -> tuple[Float[Array, "Q N C"], Float[Array, "K M C"]]:
    """`dx = 2/(T C) sum_j G_ij (x_i - y_j)` and the like for y, some steps at a time."""
    rows, size = _one_grid_sizes(plan, visual, audio, aligned)

    def gradients_of(number: Int[Array, ""], of_audio: Float[Array, "K M C"]):
        pair = part_of(visual, rows, number), whole(audio)
        moved, target = moved_and_target(*pair, plan.resample)
        length = target.grid.lengths[0]
        weights = rows_of_block(cotangent, rows, number)
        weights = 2.0 * weights / (length * visual.values.shape[-1]).astype(weights.dtype)

        def add(number, gradients):
            start = number * size
            x, y, taps = _paired_steps(moved, target, start, size, aligned)
            v, a = moved_and_target(x, y, plan.resample)
            dx, dy = moved_and_target(*difference_gradients(weights, v, a), plan.resample)
            of_moved, of_target = moved_and_target(*gradients, plan.resample)
            of_moved = _add_steps(of_moved, dx, start) if aligned else scatter(of_moved, dx, taps)
            return moved_and_target(of_moved, _add_steps(of_target, dy, start), plan.resample)

        shape = rows, *visual.values.shape[1:]
        own = resampling.zeros(shape, weights.dtype, like=visual.lengths)
        return jax.lax.fori_loop(0, -(-length // size), add, (own, of_audio))

    return gradients_by_block(rows, visual, audio, cotangent.dtype, gradients_of)


aligned_distances = partial(one_grid_distances, aligned=True)
aligned_gradients = partial(one_grid_gradients, aligned=True)


def _one_grid_sizes(
    plan: Plan, visual: Sequences, audio: Sequences, aligned: bool
) -> tuple[int, int]:
    """How many visual sequences and how many steps are taken at a time."""
    (queries, n, width), (candidates, m, _) = visual.values.shape, audio.values.shape
    total = min(n, m) if aligned else (m if plan.resample == "visual_to_audio" else n)
    step_bytes = width * sum_dtype(visual).itemsize
    on_cpu = jax.default_backend() == "cpu"
    return sizes(plan, queries, candidates, total, step_bytes, on_cpu=on_cpu)


def sizes(
    plan: Plan, queries: int, candidates: int, steps: int, step_bytes: int, *, on_cpu: bool
) -> tuple[int, int]:
    """The same of so many sequences on a grid of `steps`, of so many bytes each."""
    limit = plan.memory_bytes // (READ * step_bytes) - candidates
    rows = divisor(queries, queries, limit if plan.block is None else plan.block // candidates)
    if on_cpu:
        return rows, 1  # operands stay in the cache: 1.5 times as fast as all steps at once
    limit = plan.memory_bytes // (READ * step_bytes * (rows + candidates))
    return rows, divisor(steps, steps, limit)


def planned_bytes(
    plan: Plan, clips: tuple[int, int], steps: tuple[int, int], step_bytes: int, *, on_cpu: bool
) -> float:
    """Bytes at the gradient's fullest moment, beside latents and their gradients: for `plan`.

    D, its gradient and what is read; the visual gradient once more where it comes in blocks.
    """
    queries, candidates = clips
    total = steps[1] if plan.resample == "visual_to_audio" else steps[0]
    rows, size = sizes(plan, queries, candidates, total, step_bytes, on_cpu=on_cpu)
    in_order = queries * steps[0] * step_bytes if rows < queries else 0
    read = READ * size * (rows + candidates) * step_bytes
    return 2 * FLOAT * queries * candidates + read + in_order


def _paired_steps(
    moved: StreamPart, target: StreamPart, start: Int[Array, ""], size: int, aligned: bool
):
    """`size` steps of the target grid, of both streams.

    Returns:
      x `[X, size, C]` and y `[Y, size, C]`, less the mean of all y step by step and 0 in padding;
      and the taps that x was read by, or None if aligned.
    """
    stored = target.block.values.dtype
    dtype = wide(stored)
    steps = start + jnp.arange(size, dtype=jnp.int32)
    y, taps = slice_of(target.block, start, size).astype(dtype), None
    if aligned:
        x = slice_of(moved.block, start, size).astype(dtype)
    else:
        grid = jax.tree.map(lambda leaf: leaf[0], target.grid)
        taps = taps_of_many(moved.grid, grid, steps, dtype)
        x = read(moved.block, taps)
    real = (steps < target.grid.lengths[0])[None, :, None]
    centre = jnp.mean(y, 0, keepdims=True)
    return (*(jnp.where(real, z - centre, 0.0).astype(stored) for z in (x, y)), taps)


def _mean_square(
    products: Float[Array, "X Y"],
    x_squares: Float[Array, " X"],
    y_squares: Float[Array, " Y"],
    count: Int[Array, ""],
) -> Float[Array, "X Y"]:
    """`|x - y|^2 / count`, at least 0."""
    squared = x_squares[:, None] + y_squares[None, :] - 2.0 * products
    return jnp.maximum(squared, 0.0) / count.astype(squared.dtype)


def _add_steps(
    total: Float[Array, "B T C"], part: Float[Array, "B size C"], start: Int[Array, ""]
) -> Float[Array, "B T C"]:
    """`total` with `part` added from step `start` on."""
    before = jax.lax.dynamic_slice_in_dim(total, start, part.shape[1], 1)
    return jax.lax.dynamic_update_slice_in_dim(total, before + part, start, 1)
