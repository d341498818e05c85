"""What the fast forms of the Euclidean distance share: blocks of sequences, products, norms."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scav_jax.base.ranges import divisors
from scav_jax.distances import resampling
from scav_jax.distances.resampling import Grid, InPlace, grid_of
from scav_jax.sequences import Sequences, zero_padding

# TF32 and bf16, the accelerators' defaults, lose what the z-score then amplifies.
FULL_PRECISION = jax.lax.Precision.HIGHEST


class Plan(NamedTuple):
    """The static options, see `euclidean_matrix`."""

    resample: str
    block: int | None
    memory_bytes: int


def moved_and_target(visual, audio, resample: str):
    """What is interpolated, and what it is interpolated to; its own inverse."""
    return (visual, audio) if resample == "visual_to_audio" else (audio, visual)


def divisor(count: int, wanted: float, limit: float) -> int:
    """The divisor of `count` nearest to `wanted` of those up to `limit`; 1 where there is none."""
    fitting = [d for d in divisors(count) if d <= limit or d == 1]
    return min(fitting, key=lambda d: max(d / wanted, wanted / d))


class StreamPart(NamedTuple):
    """Some sequences of a stream: where they are read, and their `[B]` grids."""

    block: InPlace
    grid: Grid

    def __len__(self) -> int:
        return len(self.grid.lengths)


def part_of(stream: Sequences, rows: int, number: Int[Array, ""], centre=None) -> StreamPart:
    """Block `number` of a stream: the sequences number, number + blocks, number + 2 blocks, ...

    So every block holds sequences of all devices, where they are sharded over these.
    """
    if rows == len(stream.lengths):
        return whole(stream, centre)
    cut = jax.tree.map(lambda leaf: leaf.reshape(rows, -1, *leaf.shape[1:]), stream)
    take = partial(jax.lax.dynamic_index_in_dim, index=number, axis=1, keepdims=False)
    return StreamPart(InPlace(cut.values, number, centre), jax.tree.map(take, grid_of(cut)))


def whole(stream: Sequences, centre=None) -> StreamPart:
    """The whole stream as one block."""
    return StreamPart(InPlace(stream.values, None, centre), grid_of(stream))


def distances_by_block(rows: int, queries: int, distances_of) -> Float[Array, "Q K"]:
    """D from `distances_of(number)` of `[rows, K]`, one block of rows after the other."""
    if rows == queries:
        return distances_of(jnp.zeros((), jnp.int32))
    blocks = jax.lax.map(distances_of, jnp.arange(queries // rows, dtype=jnp.int32))
    return jnp.moveaxis(blocks, 0, 1).reshape(queries, -1)


def gradients_by_block(
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


def rows_of_block(
    matrix: Float[Array, "Q K"], rows: int, number: Int[Array, ""]
) -> Float[Array, "rows K"]:
    """The rows of D that belong to one block, see `part_of`."""
    if rows == len(matrix):
        return matrix
    cut = matrix.reshape(rows, -1, matrix.shape[1])
    return jax.lax.dynamic_index_in_dim(cut, number, 1, keepdims=False)


# -- products and norms ---------------------------------------------------------------------------


def sum_dtype(stream: Sequences) -> jnp.dtype:
    """What sums and results are in: float32 for rounded latents."""
    return wide(stream.values.dtype)


def wide(dtype: jnp.dtype) -> jnp.dtype:
    """float32 for what has fewer bits."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)


def centre_of(audio: Sequences) -> Float[Array, " C"]:
    """The mean of all real audio steps. What the visual ones have beyond it is in D anyway."""
    values = zero_padding(audio.values.astype(sum_dtype(audio)), audio.lengths)
    return jnp.sum(values, (0, 1)) / jnp.sum(audio.lengths).astype(values.dtype)


def centred(stream: Sequences, centre: Float[Array, " C"]) -> Float[Array, "B T C"]:
    """The values less one vector, 0 in padding. Resampling commutes with it."""
    return zero_padding(stream.values.astype(centre.dtype) - centre[None, None], stream.lengths)


def product(x: Float[Array, "X ..."], y: Float[Array, "Y ..."]) -> Float[Array, "X Y"]:
    """Inner products over all axes but the first, summed in float32 at least."""
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    dtype = wide(x.dtype)
    return jnp.matmul(x, y.T, precision=FULL_PRECISION, preferred_element_type=dtype)


def combine(weights: Float[Array, "X Y"], y: Float[Array, "Y ..."]) -> Float[Array, "X ..."]:
    """Weighted sums over the first axis."""
    flat = y.reshape(len(y), -1).astype(weights.dtype)
    sums = jnp.matmul(weights, flat, precision=FULL_PRECISION)
    return sums.reshape(len(weights), *y.shape[1:])


def norms(values: Float[Array, "B T C"]) -> Float[Array, " B"]:
    """Squared norms of whole sequences."""
    values = values.astype(wide(values.dtype))
    return jnp.sum(values * values, axis=(1, 2))


def difference_gradients(
    weights: Float[Array, "X Y"], x: Float[Array, "X T C"], y: Float[Array, "Y T C"]
) -> tuple[Float[Array, "X T C"], Float[Array, "Y T C"]]:
    """`sum_j w_ij (x_i - y_j)` and `sum_i w_ij (y_j - x_i)`."""
    of_x = jnp.sum(weights, 1)[:, None, None] * x.astype(weights.dtype) - combine(weights, y)
    of_y = jnp.sum(weights, 0)[:, None, None] * y.astype(weights.dtype) - combine(weights.T, x)
    return of_x, of_y
