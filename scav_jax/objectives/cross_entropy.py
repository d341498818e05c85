"""The symmetric cross-entropy of a matrix of distances, with no other matrix in memory.

Automatic differentiation of z-score and softmax along both axes keeps a dozen matrices as large as
D, 1 GiB each for 16,384 clips. Written out, value and gradient are sums along one axis and one
formula for each entry, so D and its gradient are all there is.

Along an axis of n entries with mean m, `r = 1 / sqrt(variance + floor)`, `z = (d - m) r`,
`p = softmax(-z / lambda)`, and `g = (1[own pair] - p) / lambda` the gradient for z:

    gradient for d = r (g - mean(g) - z sum(g z) / (n - 1))

where `mean(g)` is 0, and the gradient for lambda is `-sum(g z) / lambda`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

VARIANCE_FLOOR = 1e-12  # far below the spread of MSE distances; only a constant row notices it


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
    """
    return _forward(distances, scale, normalize)[0]


def _z(distances: Float[Array, "B B"], axis: int, normalize: bool) -> Float[Array, "B B"]:
    if not normalize:
        return distances
    mean, inverse = statistics(distances, axis)
    return (distances - mean) * inverse


def _forward(distances, scale, normalize: bool):
    total = jnp.zeros((), distances.dtype)
    for axis in (0, 1):
        log_p = jax.nn.log_softmax(-_z(distances, axis, normalize) / scale, axis=axis)
        total = total - jnp.mean(jnp.diagonal(log_p))
    return 0.5 * total, (distances, scale)


def _backward(normalize: bool, residuals, cotangent: Float[Array, ""]):
    distances, scale = residuals
    own = jnp.eye(len(distances), dtype=bool)
    of_distances, of_scale = jnp.zeros((), distances.dtype), jnp.zeros((), distances.dtype)
    for axis in (0, 1):
        z = _z(distances, axis, normalize)
        p = jax.nn.softmax(-z / scale, axis=axis)
        g = (own.astype(p.dtype) - p) * (0.5 * cotangent / (len(distances) * scale))
        along = jnp.sum(g * z, axis=axis, keepdims=True)
        of_scale = of_scale - jnp.sum(along) / scale
        if normalize:
            _, inverse = statistics(distances, axis)
            g = inverse * (g - z * along / max(len(distances) - 1, 1))
        of_distances = of_distances + g
    return of_distances, of_scale


symmetric_cross_entropy.defvjp(_forward, _backward)
