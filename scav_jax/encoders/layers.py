"""What the blocks of both kinds of towers are made of: precision, norm, GELU, masks, attention.

In `precision="bfloat16"` matrix products and activations are bfloat16; parameters, statistics of
norms and attention's softmax are float32, whatever the precision.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from scav_jax.base.errors import check_one_of
from scav_jax.sequences import AudioVisual

LAYER_NORM_EPSILON = 1e-5  # torch's default, which the papers' codes inherit; flax has 1e-6
# What products are multiplied in, by `Encoders.precision`. HIGHEST is float32 on every device;
# DEFAULT is TF32 on a GPU that has it, and bfloat16 on a TPU.
MATMUL_PRECISIONS = {
    "float32": jax.lax.Precision.HIGHEST,
    "tensorfloat32": jax.lax.Precision.DEFAULT,
    "bfloat16": jax.lax.Precision.DEFAULT,
}


def check_precision(precision: str) -> None:
    """Raises `InputError` for what is no key of `MATMUL_PRECISIONS`."""
    check_one_of("train.precision", precision, MATMUL_PRECISIONS)


def products_in(precision: str) -> dict[str, Any]:
    """The arguments of a layer that say what it computes in; None is the dtype of its inputs."""
    dtype = jnp.bfloat16 if precision == "bfloat16" else None
    return {"dtype": dtype, "precision": MATMUL_PRECISIONS[precision]}


def wide(x: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Half precision and whole numbers as float32, anything else as it is."""
    return x.astype(jnp.float32) if x.dtype.itemsize <= 2 else x


def row_numbers(features: AudioVisual) -> Int[Array, " B"]:
    """The rows of clips that are all of a batch."""
    return jnp.arange(len(features.visual.lengths), dtype=jnp.int32)


def layer_norm(x: Float[Array, "B T C"], name: str) -> Float[Array, "B T C"]:
    """LayerNorm with statistics in float32, in a compact module; keeps the dtype of x."""
    return nn.LayerNorm(LAYER_NORM_EPSILON, name=name)(wide(x)).astype(x.dtype)


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU, `x Phi(x)`. Its gradient keeps `x` only; autodiff would keep three arrays."""
    return nn.gelu(x, approximate=False)


def _gelu_forward(x):
    return gelu(x), x


def _gelu_backward(x, cotangent):
    # In terms of erf, where the forward pass has erfc: or XLA would share, and so keep, its result.
    wide = x if x.dtype.itemsize > 2 else x.astype(jnp.float32)
    phi = 0.5 * (1.0 + jax.lax.erf(wide * 0.5**0.5))
    density = jnp.exp(-0.5 * wide * wide) * (2.0 * math.pi) ** -0.5
    return (cotangent * (phi + wide * density).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


class Dropout(nn.Module):
    """Dropout whose mask belongs to the clip, not to the array that the clip is in.

    A mask follows from the module, the step's key and the clip's row in the global batch. So it is
    the same however a batch is cut into microbatches or over devices, which `nn.Dropout` is not.

    Attributes:
      rate: the share of numbers that become zero; the others are scaled up.
      whole: all numbers of a clip or none (of a residual: stochastic depth).
    """

    rate: float
    whole: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "B ..."], rows: Int[Array, " B"], deterministic: bool
    ) -> Float[Array, "B ..."]:
        if deterministic or self.rate == 0.0:
            return x
        if self.rate == 1.0:
            return jnp.zeros_like(x)
        keys = jax.vmap(partial(jax.random.fold_in, self.make_rng("dropout")))(rows)
        shape = () if self.whole else x.shape[1:]
        keep = jax.vmap(partial(jax.random.bernoulli, p=1.0 - self.rate, shape=shape))(keys)
        keep = keep.reshape(keep.shape + (1,) * (x.ndim - keep.ndim))
        return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros((), x.dtype))


def attend(
    query: Float[Array, "B T H d"],
    key: Float[Array, "B T H d"],
    value: Float[Array, "B T H d"],
    mask: Bool[Array, "B T"],
    *,
    precision: str,
    bias: Float[Array, "B H T T"] | None = None,
    drop: Callable[[Array], Array] | None = None,
) -> Float[Array, "B T H d"]:
    """`softmax_j(q_i.k_j / sqrt(d) + bias_ij) v_j` over the steps j of the mask.

    Args:
      query, key, value: of each step and head.
      mask: which steps are real.
      precision: of the products, a key of `MATMUL_PRECISIONS`.
      bias: float32, added before the softmax.
      drop: what becomes of the weights behind it.
    """
    products = MATMUL_PRECISIONS[precision]
    # Rounded to bfloat16 before the softmax, or the gradient's products would be in float32.
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, precision=products)
    logits = wide(logits) / math.sqrt(query.shape[-1])
    if bias is not None:
        logits = logits + bias
    logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(logits.dtype).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    if drop is not None:
        weights = drop(weights)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value, precision=products)
