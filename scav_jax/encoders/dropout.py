"""Dropout whose masks belong to clips: a hash of step, clip, layer and place, and no other state.

A mask follows from the step's key, the clip's row in the global batch, a number for each place in
the towers where something is dropped, and the place in the clip's own array. So it is the same
however a batch is cut into microbatches or over devices and however far clips are padded, which
`nn.Dropout` is not. It is computed where it is used, and again for the gradient: nothing is kept.

The hash is two rounds of Wellons' mixer of 32 bits (github.com/skeeto/hash-prospector) with a word
of the clip before each: ten operations on whole numbers, where threefry has more than a hundred. It
is no cipher; rates, and that places, clips, layers and steps have nothing to do with each other,
are tested.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

GOLDEN, ODD = np.uint32(0x9E3779B9), np.uint32(0x85EBCA6B)  # bring neighbours far apart
MULTIPLIERS = np.uint32(0x21F0AAAD), np.uint32(0xD35A2D97)
COLUMN_BITS = 16  # of a place; places 65,536 rows or columns apart share their bits
RATE_BITS = 24  # a rate is that exact


class Draws(NamedTuple):
    """Two random words of each clip, from which all of its masks follow."""

    first: UInt32[Array, "*clips"]
    second: UInt32[Array, "*clips"]

    def at(self, numbers: int | Int[Array, "..."]) -> "Draws":
        """Other words for each number of a place where something is dropped, in new first axes."""
        numbers = jnp.asarray(numbers).astype(jnp.uint32) + np.uint32(1)
        numbers = numbers.reshape(numbers.shape + (1,) * self.first.ndim)
        first, second = (
            word.reshape((1,) * (numbers.ndim - word.ndim) + word.shape) for word in self
        )
        return Draws(_mixed(first + numbers * GOLDEN), _mixed(second ^ numbers * ODD))

    def of(self, number: int) -> "Draws":
        """Those of a number, where there are some for several."""
        return Draws(self.first[number], self.second[number])


def draws_of(key: Array, rows: Int[Array, " B"], tower: int = 0) -> Draws:
    """The words of a step's key, of the clips' rows in the global batch and of a tower."""
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    rows, place = rows.astype(jnp.uint32), np.uint32(tower + 1)
    with np.errstate(over="ignore"):
        further = place * ODD, place * GOLDEN
    return Draws(_mixed((rows ^ first) + further[0]), _mixed((rows * ODD + second) ^ further[1]))


def dropout(
    x: Float[Array, "B ..."],
    rate: float | Float[Array, ""],
    draws: Draws | None,
    *,
    whole: bool = False,
) -> Float[Array, "B ..."]:
    """x with a share of its numbers zero and the others scaled up.

    Args:
      x: of B clips.
      rate: the share, 0 to 1; an array where a loop's blocks have rates of their own.
      draws: of the clips, for this place; None is no dropout.
      whole: all numbers of a clip or none (of a residual: stochastic depth).
    """
    known = isinstance(rate, float | int)
    if draws is None or (known and rate == 0.0):
        return x
    if known and rate == 1.0:
        return jnp.zeros_like(x)
    return _dropped(whole, x, jnp.asarray(rate, jnp.float32), draws)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dropped(whole: bool, x: Array, rate: Float[Array, ""], draws: Draws) -> Array:
    keep = kept(draws, (1,) * (x.ndim - 1) if whole else x.shape[1:], rate)
    wide = x.astype(jnp.float32) if x.dtype.itemsize <= 2 else x  # or the factor is rounded
    scaled = wide * (1.0 / (1.0 - rate)).astype(wide.dtype)
    # `where` by bits: on a GPU a loop over blocks would read a map of zeros for each of them.
    word = jnp.uint64 if wide.dtype.itemsize == 8 else jnp.uint32
    bits = jax.lax.bitcast_convert_type(scaled, word) & (word(0) - keep.astype(word))
    return jax.lax.bitcast_convert_type(bits, wide.dtype).astype(x.dtype)


def _dropped_forward(whole, x, rate, draws):
    return _dropped(whole, x, rate, draws), (rate, draws)


def _dropped_backward(whole, residuals, cotangent):
    rate, draws = residuals
    return _dropped(whole, cotangent, rate, draws), jnp.zeros_like(rate), None


_dropped.defvjp(_dropped_forward, _dropped_backward)


def kept(draws: Draws, shape: tuple[int, ...], rate: Float[Array, ""]) -> Bool[Array, "B ..."]:
    """Which numbers of the clips' arrays, of a shape, stay."""
    *before, rows, columns = (1,) * (2 - len(shape)) + tuple(shape)
    for size in before:  # such as heads: with words of their own, a place fits into one word
        draws = Draws(*(jnp.moveaxis(word, 0, -1) for word in draws.at(jnp.arange(size))))
    first, second = (word[..., None, None] for word in draws)
    places = (1,) * draws.first.ndim + (rows, columns)
    row, column = (jax.lax.broadcasted_iota(jnp.uint32, places, len(places) - n) for n in (2, 1))
    bits = _round((row << np.uint32(COLUMN_BITS)) ^ column ^ first, 16, MULTIPLIERS[0])
    bits = _round(bits ^ second, 15, MULTIPLIERS[1])
    threshold = jnp.ceil(rate * np.float32(2**RATE_BITS)).astype(jnp.uint32)
    keep = bits >> np.uint32(32 - RATE_BITS) >= threshold
    return keep.reshape(keep.shape[0], *shape)


def _round(bits: UInt32[Array, "*shape"], shift: int, factor: np.uint32) -> UInt32[Array, "*shape"]:
    return (bits ^ (bits >> np.uint32(shift))) * factor


def _mixed(bits: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """A permutation of the 32-bit numbers that leaves nothing of their order."""
    bits = _round(_round(bits, 16, MULTIPLIERS[0]), 15, MULTIPLIERS[1])
    return bits ^ (bits >> np.uint32(15))
