"""Inner products whose sums lose nothing: right to the rounding of the result.

A float32 product of width 512 sums 512 rounded terms, and ends some ten roundings away. At an
epsilon of 0.0025 that decides ties of transport. Here each vector is taken apart,

    x = high + low      high = unit(x) * integers of at most `bits` bits

so that the products of two high parts and their sums are integers that float32 holds exactly; what
is left is small, and so is what it loses (the splitting of Ozaki et al. 2012, with two parts).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def inner_products(subscripts: str, x: Float[Array, "*X C"], y: Float[Array, "*Y C"]) -> Array:
    """`einsum(subscripts, x, y)` over the last axis of both, right to a rounding of the result.

    Three matrix products. A coordinate far above the others of its vector takes digits from them:
    with next to all in one coordinate it is as good as one matrix product. Derivatives are those of
    plain products.
    """
    (x_high, x_low), (y_high, y_low) = _parts(x), _parts(y)
    product = partial(plain_products, subscripts)
    return product(x_high, y_high) + (product(x_high, y_low) + product(x_low, y))


@inner_products.defjvp
def _(subscripts, primals, tangents):
    (x, y), (dx, dy) = primals, tangents
    value = inner_products(subscripts, x, y)
    return value, plain_products(subscripts, dx, y) + plain_products(subscripts, x, dy)


def plain_products(subscripts: str, x: Array, y: Array) -> Array:
    """`einsum` at the full precision of the type, whatever the device's default."""
    return jnp.einsum(subscripts, x, y, precision=jax.lax.Precision.HIGHEST)


def _parts(x):
    """(multiples of each vector's own unit, what is left)."""
    digits = jnp.finfo(x.dtype).nmant + 1
    bits = (digits - (x.shape[-1] - 1).bit_length()) // 2
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    exponent = jnp.maximum(jnp.frexp(largest)[1], jnp.finfo(x.dtype).minexp // 2)
    unit = jnp.ldexp(jnp.ones_like(largest), exponent - bits)
    high = jnp.round(x / unit) * unit
    return high, x - high
