"""The symmetric cross-entropy of a matrix of distances, with no other matrix in memory.

Automatic differentiation of z-score and softmax along both axes keeps a dozen matrices as large as
D, 1 GiB each for 16,384 clips. Written out, value and gradient are sums along one axis and one
formula for each entry, taken some rows or columns at a time: D and its gradient are all there is.

Along an axis of n entries with mean m, `r = 1 / sqrt(variance + floor)`, `z = (d - m) r`,
`p = softmax(-z / lambda)`, and `g = (1[own pair] - p) / lambda` the gradient for z:

    gradient for d = r (g - mean(g) - z sum(g z) / (n - 1))

where `mean(g)` is 0, and the gradient for lambda is `-sum(g z) / lambda`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from scav_jax.base.errors import InputError
from scav_jax.base.ranges import divisors

VARIANCE_FLOOR = 1e-12  # far below the spread of MSE distances; only a constant row notices it
BLOCK_BYTES = 2**26  # of D that are worked on at once
FLOAT = 4  # bytes


def statistics(
    distances: Float[Array, "B K"], axis: int
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Mean and 1 / standard deviation (unbiased) along an axis, which stays with size 1."""
    mean = jnp.mean(distances, axis=axis, keepdims=True)
    degrees = max(distances.shape[axis] - 1, 1)
    squares = jnp.sum((distances - mean) ** 2, axis=axis, keepdims=True)
    return mean, jax.lax.rsqrt(squares / degrees + VARIANCE_FLOOR)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def symmetric_cross_entropy(
    distances: Float[Array, "B B"], scale: Float[Array, ""], normalize: bool
) -> Float[Array, ""]:
    """The mean over rows and columns of `-log softmax(-z / scale)` at the diagonal.

    Args:
      distances: D, matching pairs on the diagonal.
      scale: lambda, the temperature.
      normalize: False takes D for z in both directions.

    Raises:
      InputError: D is not square.
    """
    return _forward(distances, scale, normalize)[0]


def _forward(distances, scale, normalize: bool):
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1]:
        raise InputError(
            f"loss: expected D of as many visual as audio clips, got shape {distances.shape}; "
            "matching pairs lie on its diagonal"
        )
    total = jnp.zeros((), distances.dtype)
    for axis in (0, 1):

        def add(number, total, axis=axis):
            some, own = block_of(distances, axis, number)
            log_p = jax.nn.log_softmax(-_z(some, axis, normalize) / scale, axis=axis)
            return total - jnp.sum(jnp.where(own, log_p, jnp.zeros((), log_p.dtype)))

        total = over_blocks(distances, add, total)
    return total / (2 * len(distances)), (distances, scale)


def _backward(normalize: bool, residuals, cotangent: Float[Array, ""]):
    distances, scale = residuals
    weight = 0.5 * cotangent / (len(distances) * scale)
    zero = jnp.zeros((), distances.dtype)
    gradients = jnp.zeros_like(distances), zero
    for axis in (0, 1):

        def add(number, gradients, axis=axis):
            of_distances, of_scale = gradients
            some, own = block_of(distances, axis, number)
            z = _z(some, axis, normalize)
            g = weight * (own.astype(z.dtype) - jax.nn.softmax(-z / scale, axis=axis))
            along = jnp.sum(g * z, axis=axis, keepdims=True)
            if normalize:
                _, inverse = statistics(some, axis)
                g = inverse * (g - z * along / max(len(distances) - 1, 1))
            return _add_block(of_distances, g, axis, number), of_scale - jnp.sum(along) / scale

        gradients = over_blocks(distances, add, gradients)
    return gradients


symmetric_cross_entropy.defvjp(_forward, _backward)


def _z(some: Float[Array, "B K"], axis: int, normalize: bool) -> Float[Array, "B K"]:
    if not normalize:
        return some
    mean, inverse = statistics(some, axis)
    return (some - mean) * inverse


# -- blocks of whole rows (axis 1) or whole columns (axis 0) ---------------------------------------


def count_blocks(distances: Float[Array, "B B"]) -> int:
    """How many blocks D is cut into: a divisor of B, 1 for small ones."""
    return _blocks(len(distances), distances.size * distances.dtype.itemsize)


def _blocks(size: int, matrix_bytes: int) -> int:
    fewest = min(-(-matrix_bytes // BLOCK_BYTES), size)  # a row may be larger than a block
    return next(n for n in divisors(size) if n >= fewest)


class MatricesHeld(NamedTuple):
    """How many matrices as large as D XLA keeps for a loss (`scripts/benchmarks/plan_memory.py`).

    Attributes:
      at_once: z-scores, logits, softmaxes, what metrics read, where D is one block.
      whole: D, its gradient and what it is updated from, where D is cut into blocks.
      of_block: of the size of a block, besides.
    """

    at_once: float
    whole: float
    of_block: float


def memory_of_losses(clips: int, rows: float, *kept: MatricesHeld) -> float:
    """Bytes of value, gradient and metrics.

    Args:
      clips: in a global batch.
      rows: of D on this device.
      kept: by each loss; XLA computes one after the other, but what is whole of each stays.
    """
    blocks = _blocks(clips, clips * clips * FLOAT)
    if blocks == 1:
        matrices = max(loss.at_once for loss in kept)
    else:
        matrices = sum(loss.whole + loss.of_block / blocks for loss in kept)
    return FLOAT * rows * clips * matrices


def over_blocks(distances: Float[Array, "B B"], add, start: PyTree) -> PyTree:
    """`add(number, total)` for each block, one after the other."""
    blocks = count_blocks(distances)
    if blocks == 1:
        return add(jnp.zeros((), jnp.int32), start)
    return jax.lax.fori_loop(0, blocks, add, start)


def block_of(distances: Float[Array, "B B"], axis: int, number: Int[Array, ""]):
    """A block of D, and where its entries are matching pairs.

    Rows are number, number + blocks, ... so that each device has some, where D is cut over them.
    """
    size, blocks = len(distances), count_blocks(distances)
    everyone = jnp.arange(size, dtype=jnp.int32)
    if axis == 1:
        cut = distances.reshape(-1, blocks, size)
        rows = everyone[: size // blocks] * blocks + number
        some = jax.lax.dynamic_index_in_dim(cut, number, 1, keepdims=False)
        return some, rows[:, None] == everyone[None]
    start = number * (size // blocks)
    some = jax.lax.dynamic_slice_in_dim(distances, start, size // blocks, 1)
    return some, everyone[:, None] == start + everyone[None, : size // blocks]


def _add_block(
    total: Float[Array, "B B"], some: Float[Array, "b K"], axis: int, number: Int[Array, ""]
) -> Float[Array, "B B"]:
    """`total` with a block added, in place where the caller's loop allows."""
    size, blocks = len(total), count_blocks(total)
    before, _ = block_of(total, axis, number)
    if axis == 1:
        cut = total.reshape(-1, blocks, size)
        return jax.lax.dynamic_update_index_in_dim(cut, before + some, number, 1).reshape(
            size, size
        )
    start = number * (size // blocks)
    return jax.lax.dynamic_update_slice_in_dim(total, before + some, start, 1)
