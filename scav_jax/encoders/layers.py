"""What the blocks of both kinds of towers are made of: precision, norm, GELU, masks, attention.

In `precision="bfloat16"` matrix products and activations are bfloat16; parameters, statistics of
norms and attention's softmax are float32, whatever the precision.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Num, PyTree

from scav_jax.base.errors import check_one_of
from scav_jax.encoders.dropout import Draws, draws_of, dropout
from scav_jax.sequences import STREAMS, AudioVisual

LECUN = nn.initializers.lecun_normal()
LAYER_NORM_EPSILON = 1e-5  # torch's default, which the papers' codes inherit; flax has 1e-6
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
KEPT = "kept"
# Which results inside of a block its gradient finds stored, by `Encoders.remat`; None is none of
# them. What products, attention and statistics give is dear to compute; norms, GELUs and dropout
# are cheaper to compute again than to write and read, and half of all numbers.
REMATS = {
    "none": jax.checkpoint_policies.everything_saveable,
    "elementwise": jax.checkpoint_policies.save_only_these_names(KEPT),
    "blocks": None,
}


def check_precision(precision: str) -> None:
    """Raises `InputError` for what is no key of `MATMUL_PRECISIONS`."""
    check_one_of("train.precision", precision, MATMUL_PRECISIONS)


def check_remat(remat: str) -> None:
    """Raises `InputError` for what is no key of `REMATS`."""
    check_one_of("train.remat", remat, REMATS)


def dear(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x, which `remat="elementwise"` keeps for the gradient."""
    return checkpoint_name(x, KEPT)


def products_in(precision: str) -> dict[str, Any]:
    """The arguments of a layer that say what it computes in; None is the dtype of its inputs."""
    dtype = jnp.bfloat16 if precision == "bfloat16" else None
    return {"dtype": dtype, "precision": MATMUL_PRECISIONS[precision]}


def wide(x: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Half precision and whole numbers as float32, anything else as it is."""
    return x.astype(jnp.float32) if x.dtype.itemsize <= 2 else x


def stored(x: Num[Array, "*shape"]) -> Num[Array, "*shape"]:
    """x for a gradient: bfloat16 as its bits, which no compiler widens on the way through a loop.

    XLA's CPU compiler (jax 0.10) has no slices of bfloat16: each block would widen all blocks'.
    """
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def loaded(x: Num[Array, "*shape"]) -> Num[Array, "*shape"]:
    """What was `stored`."""
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def both_towers(
    encoders: nn.Module, features: AudioVisual, rows: Int[Array, " B"] | None, dropped: bool
) -> AudioVisual:
    """Each stream through its tower (`encoders.tower`), with dropout masks of its own if `dropped`.

    `rows` of the global batch are those of the clips; None where they are all of it.
    """
    draws: list[Draws | None] = [None, None]
    if dropped:
        key = encoders.make_rng("dropout")
        rows = jnp.arange(len(features.visual.lengths), dtype=jnp.int32) if rows is None else rows
        draws = [draws_of(key, rows, tower) for tower in range(2)]
    visual, audio = (encoders.tower(name, name=name) for name in STREAMS)
    return AudioVisual(visual(features.visual, draws[0]), audio(features.audio, draws[1]))


class LayerNorm(nn.Module):
    """LayerNorm over channels with float32 statistics.

    Its gradient keeps x and two numbers a step; autodiff would keep four arrays of x's size.

    Attributes:
      widens: the result is float32 where x is bfloat16.
    """

    widens: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return _normalized(wide(x).dtype if self.widens else x.dtype, x, scale, bias)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalized(dtype, x, scale, bias):
    return _normalized_forward(dtype, x, scale, bias)[0]


def _normalized_forward(dtype, x, scale, bias):
    values = wide(x)
    mean = values.mean(-1, keepdims=True)
    square = (values * values).mean(-1, keepdims=True)
    deviation = jax.lax.rsqrt(jnp.maximum(0.0, square - mean * mean) + LAYER_NORM_EPSILON)
    mean, deviation = dear(mean), dear(deviation)
    result = (values - mean) * (deviation * scale[None, None]) + bias[None, None]
    return result.astype(dtype), (stored(x), mean, deviation, scale)


def _normalized_backward(dtype, kept, cotangent):
    x, mean, deviation, scale = kept
    x = loaded(x)
    cotangent, normal = wide(cotangent), (wide(x) - mean) * deviation
    of_scale, of_bias = jnp.sum(cotangent * normal, (0, 1)), jnp.sum(cotangent, (0, 1))
    of_normal = cotangent * scale[None, None]
    along = (of_normal * normal).mean(-1, keepdims=True)
    of_x = deviation * (of_normal - of_normal.mean(-1, keepdims=True) - normal * along)
    return of_x.astype(x.dtype), of_scale, of_bias


_normalized.defvjp(_normalized_forward, _normalized_backward)


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU, `x Phi(x)`. Its gradient keeps `x` only; autodiff would keep three arrays."""
    return nn.gelu(x, approximate=False)


def _gelu_forward(x):
    return gelu(x), stored(x)


def _gelu_backward(kept, cotangent):
    x = loaded(kept)
    # In terms of erf, where the forward pass has erfc: or XLA would share, and so keep, its result.
    values = wide(x)
    phi = 0.5 * (1.0 + jax.lax.erf(values * 0.5**0.5))
    density = jnp.exp(-0.5 * values * values) * (2.0 * math.pi) ** -0.5
    return (cotangent * (phi + values * density).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


class Dense(nn.Module):
    """An affine map of the last axes; its bias's gradient is summed in float32.

    Attributes:
      features: the axes that come out.
      precision: of the product, a key of `MATMUL_PRECISIONS`.
      axes: how many axes of x it takes.
      start: of the kernel, as a matrix.
    """

    features: int | tuple[int, ...]
    precision: str
    axes: int = 1
    start: Callable = LECUN

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        features = (self.features,) if isinstance(self.features, int) else self.features
        before, taken = x.shape[: -self.axes], x.shape[-self.axes :]
        kernel, bias = _weights(self, taken, features, self.start)
        x = x.reshape(*before, math.prod(taken))
        return affine(x, [kernel], [bias], self.precision).reshape(*before, *features)


class KernelAndBias(nn.Module):
    """The kernel and the bias of a `Dense`, for products that are made together."""

    taken: tuple[int, ...]
    features: tuple[int, ...]
    start: Callable = LECUN

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        return _weights(self, self.taken, self.features, self.start)


def _weights(module: nn.Module, taken, features, start: Callable) -> tuple[Array, Array]:
    def of_matrix(key: Array, shape: tuple[int, ...]) -> Array:  # what fans are counted of
        return start(key, (math.prod(taken), math.prod(features))).reshape(shape)

    kernel = module.param("kernel", of_matrix, (*taken, *features))
    return kernel, module.param("bias", nn.initializers.zeros, features)


def query_key_value(
    x: Float[Array, "B T C"],
    heads: int,
    precision: str,
    start: Callable = LECUN,
) -> tuple[Float[Array, "B T H d"], ...]:
    """All three of each step and head by one product, in a compact module."""
    width = x.shape[-1]
    features, names = (heads, width // heads), ("query", "key", "value")
    weights = [KernelAndBias((width,), features, start, name=name)() for name in names]
    kernels, biases = zip(*weights, strict=True)
    parts = jnp.split(affine(x, kernels, biases, precision), 3, axis=-1)
    return tuple(part.reshape(*x.shape[:-1], *features) for part in parts)


def affine(
    x: Float[Array, "*batch C"], kernels: Sequence[Array], biases: Sequence[Array], precision: str
) -> Float[Array, "*batch D"]:
    """x times kernels of C rows, side by side, plus biases; in x's dtype, or bfloat16."""
    dtype = jnp.bfloat16 if precision == "bfloat16" else x.dtype
    multiply = _product_of_bfloat16 if precision == "bfloat16" else _product_with
    kernels = tuple(kernel.astype(dtype) for kernel in kernels)
    product = multiply(x.astype(dtype), kernels, MATMUL_PRECISIONS[precision])
    return dear(_plus_bias(product, jnp.concatenate([bias.reshape(-1) for bias in biases])))


def _side_by_side(kernels: tuple[Array, ...], rows: int) -> Float[Array, "C D"]:
    return jnp.concatenate([kernel.reshape(rows, -1) for kernel in kernels], axis=1)


def _product_with(
    x: Float[Array, "*batch C"], kernels: tuple[Array, ...], precision: jax.lax.Precision
) -> Float[Array, "*batch D"]:
    return jnp.matmul(x, _side_by_side(kernels, x.shape[-1]), precision=precision)


@partial(jax.custom_vjp, nondiff_argnames=("precision",))
def _product_of_bfloat16(
    x: Float[Array, "*batch C"], kernels: tuple[Array, ...], precision: jax.lax.Precision
) -> Float[Array, "*batch D"]:
    """Autodiff has a kernel's gradient transposed: on CPUs four fifths of a training step."""
    return _product_with(x, kernels, precision)


def _product_of_bfloat16_forward(x, kernels, precision):
    # Kernels as they came: a loop over blocks has them, and would keep any other form once more.
    return _product_with(x, kernels, precision), (stored(x), kernels)


def _product_of_bfloat16_backward(precision, kept, cotangent):
    x, kernels = loaded(kept[0]), kept[1]
    rows = tuple(range(x.ndim - 1))
    product = jax.lax.dot_general(x, cotangent, ((rows, rows), ((), ())), precision=precision)
    ends = np.cumsum([kernel.size // x.shape[-1] for kernel in kernels])[:-1]
    parts = jnp.split(product, ends.tolist(), axis=1)
    of_kernels = tuple(part.reshape(k.shape) for part, k in zip(parts, kernels, strict=True))
    of_x = jnp.matmul(cotangent, _side_by_side(kernels, x.shape[-1]).T, precision=precision)
    return of_x, of_kernels


_product_of_bfloat16.defvjp(_product_of_bfloat16_forward, _product_of_bfloat16_backward)


@jax.custom_vjp
def _plus_bias(x: Float[Array, "*batch C"], bias: Float[Array, " C"]) -> Float[Array, "*batch C"]:
    return x + bias.astype(x.dtype).reshape((1,) * (x.ndim - 1) + bias.shape)


def _plus_bias_forward(x, bias):
    return _plus_bias(x, bias), None


def _plus_bias_backward(_, cotangent):
    return cotangent, jnp.sum(wide(cotangent), tuple(range(cotangent.ndim - 1)))


_plus_bias.defvjp(_plus_bias_forward, _plus_bias_backward)


def attend(
    query: Float[Array, "B T H d"],
    key: Float[Array, "B T H d"],
    value: Float[Array, "B T H d"],
    mask: Bool[Array, "B T"],
    *,
    precision: str,
    position: tuple[Float[Array, "B T H"], Float[Array, "H T T"]] | None = None,
    rate: float = 0.0,
    draws: Draws | None = None,
) -> Float[Array, "B T H d"]:
    """`softmax_j(q_i.k_j / sqrt(d) + g_i b_ij) v_j` over the steps j of the mask.

    Its gradient keeps what it was given and the weights; autodiff would keep three such maps.

    Not `jax.nn.dot_product_attention`: cuDNN's fused form draws dropout of its own, not a clip's,
    so that parts and devices would change numbers; it takes half precision only, and it wants the
    bias of each clip as a whole map, where gains and biases of steps do here.

    Args:
      query, key, value: of each step and head.
      mask: which steps are real.
      precision: of the products, a key of `MATMUL_PRECISIONS`.
      position: float32 gains g of steps and biases b of pairs, a head each.
      rate, draws: dropout of the weights.
    """
    if position is not None:
        gain, bias = position
        position = jnp.transpose(gain, (0, 2, 1))[..., None], bias[None]
    return _attend(precision, rate, query, key, value, position, mask, draws)


def _product(form: str, precision: str, *factors: Array) -> Array:
    return jnp.einsum(form, *factors, precision=MATMUL_PRECISIONS[precision])


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(precision, rate, query, key, value, position, mask, draws):
    return _attend_forward(precision, rate, query, key, value, position, mask, draws)[0]


def _attend_forward(precision, rate, query, key, value, position, mask, draws):
    # In bfloat16 rounded to it before the softmax, or the gradient's products would be in float32.
    logits = wide(_product("bqhd,bkhd->bhqk", precision, query, key))
    logits = logits / math.sqrt(query.shape[-1])
    if position is not None:
        logits = logits + position[0] * position[1]
    logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(logits.dtype).min)
    weights = dear(jax.nn.softmax(logits, axis=-1).astype(value.dtype))
    mixed = dear(_product("bhqk,bkhd->bqhd", precision, dropout(weights, rate, draws), value))
    return mixed, (*map(stored, (query, key, value, weights)), position, mask, draws)


def _attend_backward(precision, rate, kept, cotangent):
    (query, key, value, weights), (position, mask, draws) = map(loaded, kept[:4]), kept[4:]
    dropped = dropout(weights, rate, draws)
    of_value = _product("bhqk,bqhd->bkhd", precision, dropped, cotangent)
    of_weights = _product("bqhd,bkhd->bhqk", precision, cotangent, value)
    of_weights, weights = wide(dropout(of_weights, rate, draws)), wide(weights)
    along = jnp.sum(of_weights * weights, axis=-1, keepdims=True)
    of_logits = jnp.where(mask[:, None, None, :], weights * (of_weights - along), 0.0)
    of_position = None
    if position is not None:
        gain, bias = position
        of_gain = jnp.sum(of_logits * bias, axis=-1, keepdims=True)
        of_position = of_gain, jnp.sum(of_logits * gain, axis=0, keepdims=True)
    of_logits = (of_logits / math.sqrt(query.shape[-1])).astype(query.dtype)
    of_query = _product("bhqk,bkhd->bqhd", precision, of_logits, key)
    of_key = _product("bhqk,bqhd->bkhd", precision, of_logits, query)
    return of_query, of_key, of_value, of_position, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def through_blocks(
    tower: nn.Module, block: nn.Module, count: int, x: Array, own: PyTree, shared: tuple
) -> Float[Array, "B T C"]:
    """x through `count` blocks, one program for all; their parameters, stacked, are `blocks`.

    Args:
      tower: whose parameters they are, in its compact method; has `precision` and `remat`.
      block: bound to nothing; `block(x, own, *shared)` has the shape of x.
      count: of blocks, the first axis of every parameter.
      x: of the first block.
      own: what each block has for itself, along a first axis.
      shared: what all have.
    """
    if not count:
        return x

    def start(key: Array) -> PyTree:
        first = jax.tree.map(lambda leaf: leaf[0], own)
        of_one = lambda key: block.init(key, x, first, *shared)["params"]  # noqa: E731
        return jax.vmap(of_one)(jax.random.split(key, count))

    def one(x: Array, of_block: tuple) -> tuple[Array, None]:
        params, own = of_block
        return block.apply({"params": params}, x, own, *shared), None

    # `param` would trace `start` again to compare shapes.
    known = tower.has_variable("params", "blocks")
    params = tower.get_variable("params", "blocks") if known else tower.param("blocks", start)
    params = as_multiplied(tower, params)  # once, so that the loop reads and gathers half as much
    if tower.remat != "none":  # in a loop XLA cannot merge what is computed twice
        one = jax.checkpoint(one, prevent_cse=count == 1, policy=REMATS[tower.remat])
    return jax.lax.scan(one, x, (params, own))[0]


def as_multiplied(towers: nn.Module, params: PyTree) -> PyTree:
    """Parameters of towers, or of one, with the kernels in what products are multiplied in."""
    if towers.precision != "bfloat16":
        return params

    def of(path: tuple, leaf: Array) -> Array:
        return leaf.astype(jnp.bfloat16) if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(of, params)
