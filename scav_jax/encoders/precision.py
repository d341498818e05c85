"""What towers compute and store in, by `Encoders.precision`.

In `precision="bfloat16"` matrix products and activations are bfloat16; parameters, statistics of
norms and attention's softmax are float32, whatever the precision.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PyTree

from scav_jax.base.errors import check_one_of

# What products are multiplied in, by `Encoders.precision`. HIGHEST is float32 on every device;
# DEFAULT is TF32 on a GPU that has it, and bfloat16 on a TPU.
MATMUL_PRECISIONS = {
    "float32": jax.lax.Precision.HIGHEST,
    "tensorfloat32": jax.lax.Precision.DEFAULT,
    "bfloat16": jax.lax.Precision.DEFAULT,
}
# Towers compute in multiples of so many steps: products of half precision come in tiles of eight
# numbers, and XLA would pad and cut each product alone.
STEP_MULTIPLES = {"float32": 1, "tensorfloat32": 1, "bfloat16": 8}


def check_precision(precision: str) -> None:
    """Raises `InputError` for what is no key of `MATMUL_PRECISIONS`."""
    check_one_of("train.precision", precision, MATMUL_PRECISIONS)


def wide(x: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Half precision and whole numbers as float32, anything else as it is."""
    return x.astype(jnp.float32) if x.dtype.itemsize <= 2 else x


def heads_first(precision: str) -> bool:
    """Whether attention's arrays are `[B, H, T, d]` in memory too, `[B, T, H, d]` otherwise.

    XLA copies the latter on a GPU into an order of its own for each product: a twentieth of all
    bytes of a bfloat16 step. Float32 waits for products, and its gradients are summed by steps.
    """
    return precision == "bfloat16"


def laid_out(x: Num[Array, "*shape"]) -> Num[Array, "*shape"]:
    """x; bfloat16 is written as it is here, rounded and in its order, before anything reads it."""
    return jax.lax.optimization_barrier(x) if x.dtype == jnp.bfloat16 else x


def stored(x: Num[Array, "*shape"]) -> Num[Array, "*shape"]:
    """x for a gradient: bfloat16 as its bits, which no compiler widens on the way through a loop.

    XLA's CPU compiler (jax 0.10) has no slices of bfloat16: each block would widen all blocks'.
    """
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def loaded(x: Num[Array, "*shape"]) -> Num[Array, "*shape"]:
    """What was `stored`."""
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def as_multiplied(towers: Any, params: PyTree) -> PyTree:
    """Parameters of towers, or of one, with the kernels in what products are multiplied in."""
    if towers.precision != "bfloat16":
        return params

    def of(path: tuple, leaf: Array) -> Array:
        return leaf.astype(jnp.bfloat16) if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(of, params)
