"""Affine maps of steps, and what they take that no gradient keeps: norms and GELU."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scav_jax.encoders.precision import (
    MATMUL_PRECISIONS,
    heads_first,
    laid_out,
    loaded,
    stored,
    wide,
)

LECUN = nn.initializers.lecun_normal()
LAYER_NORM_EPSILON = 1e-5  # torch's default, which the papers' codes inherit; flax has 1e-6


class Cheap(NamedTuple):
    """A function whose result is cheaper to compute again than to keep for a gradient.

    Attributes:
      forward: of what it takes: the result, and what is kept.
      again: of what is kept: the result.
      backward: of what is kept and the result's gradient: the gradients of what it takes.
    """

    forward: Callable[..., tuple[Array, tuple]]
    again: Callable[..., Array]
    backward: Callable[[tuple, Array], tuple]

    def __call__(self, *given: Any) -> Array:
        """The result, which what takes it may keep."""
        return _result(self, given)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _result(cheap, given):
    return cheap.forward(*given)[0]


_result.defvjp(
    lambda cheap, given: cheap.forward(*given),
    lambda cheap, kept, cotangent: (cheap.backward(kept, cotangent),),
)


class Unkept(NamedTuple):
    """What a product takes and its gradient computes again: `cheap(*given)`."""

    cheap: Cheap
    given: tuple

    @property
    def shape(self) -> tuple[int, ...]:
        """The result's, which is that of the first it is given."""
        return self.given[0].shape


class LayerNorm(nn.Module):
    """LayerNorm over channels with float32 statistics.

    Its gradient keeps x and two numbers a step; autodiff would keep four arrays of x's size.

    Attributes:
      widens: the result is float32 where x is bfloat16.
      kept: whether what takes the result may keep it for its gradient; if not, a `Dense` takes it.
    """

    widens: bool = False
    kept: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"] | Unkept:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        norm, given = _WIDE_NORM if self.widens else _NORM, (x, scale, bias)
        return norm(*given) if self.kept else Unkept(norm, given)


def _normalized(widens, x, scale, bias):
    values = wide(x)
    mean = values.mean(-1, keepdims=True)
    square = (values * values).mean(-1, keepdims=True)
    deviation = jax.lax.rsqrt(jnp.maximum(0.0, square - mean * mean) + LAYER_NORM_EPSILON)
    kept = stored(x), mean, deviation, scale, bias
    return _normalized_again(widens, *kept), kept


def _normalized_again(widens, x, mean, deviation, scale, bias):
    x = loaded(x)
    result = (wide(x) - mean) * (deviation * scale[None, None]) + bias[None, None]
    return result if widens else result.astype(x.dtype)


def _normalized_backward(kept, cotangent):
    x, mean, deviation, scale, _ = kept
    x = loaded(x)
    cotangent, normal = wide(cotangent), (wide(x) - mean) * deviation
    of_scale, of_bias = jnp.sum(cotangent * normal, (0, 1)), jnp.sum(cotangent, (0, 1))
    of_normal = cotangent * scale[None, None]
    along = (of_normal * normal).mean(-1, keepdims=True)
    of_x = deviation * (of_normal - of_normal.mean(-1, keepdims=True) - normal * along)
    return of_x.astype(x.dtype), of_scale, of_bias


_NORM, _WIDE_NORM = (
    Cheap(partial(_normalized, widens), partial(_normalized_again, widens), _normalized_backward)
    for widens in (False, True)
)


def _gelu_backward(kept, cotangent):
    x = loaded(*kept)
    # In terms of erf, where the forward pass has erfc: or XLA would share, and so keep, its result.
    values = wide(x)
    phi = 0.5 * (1.0 + jax.lax.erf(values * 0.5**0.5))
    density = jnp.exp(-0.5 * values * values) * (2.0 * math.pi) ** -0.5
    return (cotangent * (phi + values * density).astype(x.dtype),)


# The exact GELU, `x Phi(x)`. Its gradient keeps `x` only; autodiff would keep three arrays.
gelu = Cheap(
    forward=lambda x: (nn.gelu(x, approximate=False), (stored(x),)),
    again=lambda x: nn.gelu(loaded(x), approximate=False),
    backward=_gelu_backward,
)


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
    def __call__(self, x: Float[Array, "..."] | Unkept) -> Float[Array, "..."]:
        features = (self.features,) if isinstance(self.features, int) else self.features
        before, taken = x.shape[: -self.axes], x.shape[-self.axes :]
        kernel, bias = _weights(self, taken, features, self.start)
        if not isinstance(x, Unkept):
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
    x: Float[Array, "B T C"] | Unkept,
    heads: int,
    precision: str,
    start: Callable = LECUN,
) -> tuple[Float[Array, "B M N d"], ...]:
    """All three of each step and head by one product, in a compact module; see `heads_first`."""
    width = x.shape[-1]
    features, names = (heads, width // heads), ("query", "key", "value")
    weights = [KernelAndBias((width,), features, start, name=name)() for name in names]
    kernels, biases = zip(*weights, strict=True)
    parts = jnp.split(affine(x, kernels, biases, precision), 3, axis=-1)
    of_steps = tuple(part.reshape(*x.shape[:-1], *features) for part in parts)
    if not heads_first(precision):
        return of_steps
    return tuple(laid_out(part.swapaxes(1, 2)) for part in of_steps)


def affine(
    x: Float[Array, "*batch C"] | Unkept,
    kernels: Sequence[Array],
    biases: Sequence[Array],
    precision: str,
) -> Float[Array, "*batch D"]:
    """x times kernels of C rows, side by side, plus biases; in x's dtype, or bfloat16."""
    half = precision == "bfloat16"
    first = x.given[0] if isinstance(x, Unkept) else x
    dtype = jnp.bfloat16 if half else first.dtype
    multiply = partial(
        _product_of_bfloat16 if half else _product_with, precision=MATMUL_PRECISIONS[precision]
    )
    kernels = tuple(kernel.astype(dtype) for kernel in kernels)
    if isinstance(x, Unkept):
        given = first.astype(dtype), *x.given[1:]
        product = _product_of_unkept(x.cheap, multiply, given, kernels)
    else:
        product = multiply(x.astype(dtype), kernels)
    return _plus_bias(product, jnp.concatenate([bias.reshape(-1) for bias in biases]))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product_of_unkept(cheap, multiply, given, kernels):
    return _product_of_unkept_forward(cheap, multiply, given, kernels)[0]


def _product_of_unkept_forward(cheap, multiply, given, kernels):
    result, kept = cheap.forward(*given)
    return multiply(result, kernels), (kept, kernels)


def _product_of_unkept_backward(cheap, multiply, saved, cotangent):
    kept, kernels = saved
    of_result, of_kernels = jax.vjp(multiply, cheap.again(*kept), kernels)[1](cotangent)
    return cheap.backward(kept, of_result), of_kernels


_product_of_unkept.defvjp(_product_of_unkept_forward, _product_of_unkept_backward)


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


def _plus_bias_backward(_, cotangent):
    return cotangent, jnp.sum(wide(cotangent), tuple(range(cotangent.ndim - 1)))


_plus_bias.defvjp(lambda x, bias: (_plus_bias(x, bias), None), _plus_bias_backward)
