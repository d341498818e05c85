"""CLIP's preprocessing: frames of any size -> normalised squares, as Hugging Face does it with PIL.

Short edge to 224 by antialiased bicubic interpolation, centre crop, mean and deviation. PIL works
with 8-bit pixels and 22-bit fixed-point weights and rounds to 8 bits after each of its two passes.
Both passes are linear up to the rounding, so on an accelerator they are two matrix products. The
weights are cut into digits so small that every sum is an integer which float32 holds exactly: the
result is PIL's, bit for bit. The constants, the weights and PIL's own way are in `clip_pixels`.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, UInt8

from scav_jax.base.errors import InputError
from scav_jax.extract.backbones.clip_pixels import FRACTION_BITS, Preprocessing, crop_weights

# Into how many digits weights are cut, by the dtype of the matrix products: bfloat16 holds integers
# up to 256 exactly, float32 up to 2**24.
DIGITS = {"float32": 2, "bfloat16": 3}
DIGIT_BITS = 8
EXACT = 2**24  # float32 has all integers up to here


def digits(weights: Int32[np.ndarray, "t s"], dtype: str) -> Float[np.ndarray, "d t s"]:
    """Weights cut into signed digits, the most significant first: `sum_k digit_k 2**(8 k)`.

    Raises:
      InputError: the sums would not be exact: frames of more than 30,000 pixels a side.
    """
    half = 2 ** (DIGIT_BITS - 1)
    parts, rest = [], weights.astype(np.int64)
    for _ in range(DIGITS[dtype] - 1):
        low = (rest + half) % (2 * half) - half
        parts.append(low)
        rest = (rest - low) >> DIGIT_BITS
    parts = np.stack([rest, *reversed(parts)])
    if 255 * np.abs(parts).sum(axis=2).max() >= EXACT:
        raise InputError(
            f"frames: expected at most 30,000 pixels a side, got {weights.shape[1]}; "
            "decode them at a smaller size"
        )
    return parts.astype(jnp.dtype(dtype))


@cache
def crop_digits(
    preprocessing: Preprocessing, height: int, width: int, dtype: str, multiple: int = 1
):
    """What `resize_crop` takes for frames of that size, and which of their pixels it needs.

    Args:
      preprocessing: constants.
      height, width: of the frames.
      dtype: of the products.
      multiple: the pixels that `rows` and `columns` read along each side are so many, with weights
        of zero beyond the frame, so that frames of nearby sizes share a program.

    Returns:
      rows, columns: `digits` of `crop_weights`, without the pixels that no weight reads.
      kept: slices of a frame's rows and columns: what is not cropped away.
    """
    found = []
    for weights in crop_weights(preprocessing, height, width):
        read = np.flatnonzero(weights.any(axis=0))
        kept = slice(int(read[0]), int(read[-1]) + 1)
        beyond = -(kept.stop - kept.start) % multiple
        padded = np.pad(weights[:, kept], ((0, 0), (0, beyond)))
        found.append((digits(padded, dtype), kept))
    (rows, kept_rows), (columns, kept_columns) = found
    return rows, columns, (kept_rows, kept_columns)


@jax.jit
def resize_crop(
    frames: UInt8[Array, "N height width 3"],
    rows: Float[Array, "d R height"],
    columns: Float[Array, "d C width"],
) -> UInt8[Array, "N R C 3"]:
    """Resize and centre crop as two matrix products, equal to PIL's pixels bit for bit.

    Args:
      frames: of one size.
      rows, columns: from `crop_digits`; their dtype is that of the products.
    """
    product = partial(
        jnp.einsum,
        precision=jax.lax.Precision.HIGHEST,  # no TF32
        preferred_element_type=jnp.float32,
    )
    x = product("nhwc,dow->dnhoc", frames.astype(columns.dtype), columns)  # PIL's first pass
    x = _round(x).astype(rows.dtype)
    x = product("nhoc,drh->dnroc", x, rows)
    return _round(x).astype(jnp.uint8)


def _round(digit_sums: Float[Array, "d n a b c"]) -> Int32[Array, "n a b c"]:
    """Exact sums of digits -> 8-bit pixels, rounded and clipped as PIL does."""
    total = jnp.zeros(digit_sums.shape[1:], jnp.int32)
    for part in digit_sums.astype(jnp.int32):
        total = total * 2**DIGIT_BITS + part
    return jnp.clip((total + 2 ** (FRACTION_BITS - 1)) >> FRACTION_BITS, 0, 255)


def normalise(crops: UInt8[Array, "N R C 3"], preprocessing: Preprocessing) -> Array:
    """Pixels -> the float32 numbers `[N, R, C, 3]` that the tower reads."""
    mean, std = (
        jnp.asarray(values, jnp.float32)[None, None, None]
        for values in (preprocessing.mean, preprocessing.std)
    )
    return (crops.astype(jnp.float32) * jnp.float32(preprocessing.scale) - mean) / std
