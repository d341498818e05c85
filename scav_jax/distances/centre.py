"""One centre for all clips, taken off before products: no difference changes, nothing cancels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

FAR = 16.0  # times the median squared distance from the mean


def typical(points: Float[Array, "N C"]) -> Float[Array, " C"]:
    """The mean of points, but for those far from the others; held in gradients.

    One broken clip, far away or not finite, shall not take the digits of all others.
    """
    points = jax.lax.stop_gradient(points)
    mean = _mean_of(points, jnp.all(jnp.isfinite(points), axis=1))
    apart = jnp.sum((points - mean[None]) ** 2, axis=1)
    apart = jnp.where(jnp.isfinite(apart), apart, jnp.inf)
    return _mean_of(points, (apart <= FAR * jnp.median(apart)) & jnp.isfinite(apart))


def _mean_of(points, chosen) -> Float[Array, " C"]:
    total = jnp.sum(jnp.where(chosen[:, None], points, 0.0), axis=0)
    return total / jnp.maximum(jnp.sum(chosen), 1).astype(points.dtype)
