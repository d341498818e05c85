"""EquiAV's augmentations of a picture and of a log-mel, and the vectors that tell them.

The vector is all that an operation is given, so what is encoded is what is applied. Everything is
of one example, in jit, for `vmap`. The layouts are those of the released code (JongSuk1/EquiAV):

picture, 18   0 crop on | 1 top/H | 2 left/W | 3 height/H | 4 width/W | 5 jitter on | 6:10 the order
              of brightness, contrast, saturation, hue (0..3) | 10, 11, 12 their factors less 1 |
              13 hue | 14 blur on | 15 sigma | 16 flipped | 17 grey
log-mel, 24   0 masks on | 1, 2 begin and end in frames | 3, 4 in bins | 5 shift on | 6 shift/T |
              7 crop on | 8 first frame/T | 9 first bin/F | 10 frames/T | 11 bins/F | 12 jitter on |
              13:17 order | 17, 18, 19 | 20 | 21 blur on | 22 sigma | 23 flipped in time

All zero but for the order (0, 1, 2, 3) is the identity. A log-mel has one channel: saturation and
hue leave it as it is. `jax.image.scale_and_translate` would crop, but it reads beyond the edges of
the crop, which is then not the crop that the vector tells; dm_pix draws what it applies.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

PICTURE, SOUND = 18, 24  # numbers of a vector
CROP_SCALE = (0.08, 1.0)  # of the area
PICTURE_RATIO = (3.0 / 4.0, 4.0 / 3.0)  # width over height
SOUND_RATIO = (0.8, 1.5)  # bins over frames, in units of F/T: 1/10 and 1.5/8 for 1024 x 128
CROP_TRIES = 10
MASK_DRAWS, CROP_DRAWS, JITTER_DRAWS, BLUR_DRAWS = 6, 2 * CROP_TRIES + 2, 9, 2
FACTORS, HUES, SIGMAS = (0.6, 1.4), (-0.1, 0.1), (0.1, 2.0)
P_MASK, P_JITTER, P_BLUR, P_FLIP, P_GREY = 0.8, 0.8, 0.5, 0.5, 0.2
GREY = (0.299, 0.587, 0.114)
PICTURE_REACH = 6  # pixels: three sigmas at most
SOUND_REACH = 2  # frames and bins: ceil(sigma)
LEGACY_GREY = 0.9999  # the sum of the weights that the released code makes grey with

Image = Float[Array, "H W 3"]
LogMel = Float[Array, "T F"]


# ---- drawing -------------------------------------------------------------------------------------


def sample_picture(key: Array, side: int) -> Float[Array, "18"]:
    """A vector as in training: crop always, jitter 0.8, blur 0.5, flip 0.5, grey 0.2."""
    crop, jitter, blur, flip, grey = _uniform(key, CROP_DRAWS, JITTER_DRAWS, BLUR_DRAWS, 1, 1)
    return jnp.concatenate(
        [
            _crop_vector(crop, side, side, PICTURE_RATIO, (side, side)),
            _jitter_vector(jitter),
            _blur_vector(blur),
            (flip < P_FLIP).astype(jnp.float32),
            (grey < P_GREY).astype(jnp.float32),
        ]
    )


def sample_sound(
    key: Array,
    frames: int,
    bins: int,
    *,
    time_mask: int = 192,
    frequency_mask: int = 48,
    legacy: bool = False,
) -> Float[Array, "24"]:
    """A vector as in training: masks and shift 0.8, crop always, jitter 0.8, blur 0.5, flip 0.5.

    Args:
      key: of this vector.
      frames, bins: T and F.
      time_mask, frequency_mask: masks are narrower than this and than the axis (paper: 192, 48).
      legacy: slots 8 to 11 are divided by the other axis's length, as in the released code.
    """
    counts = MASK_DRAWS, CROP_DRAWS, JITTER_DRAWS, BLUR_DRAWS, 1
    masks, crop, jitter, blur, flip = _uniform(key, *counts)
    low, high = (bound * bins / frames for bound in SOUND_RATIO)
    units = (bins, frames) if legacy else (frames, bins)
    return jnp.concatenate(
        [
            _mask_vector(masks, frames, bins, time_mask, frequency_mask),
            _crop_vector(crop, frames, bins, (low, high), units),
            _jitter_vector(jitter),
            _blur_vector(blur),
            (flip < P_FLIP).astype(jnp.float32),
        ]
    )


def _uniform(key: Array, *counts: int) -> list[Float[Array, " n"]]:
    """Numbers in [0, 1), in parts; one call, since each is a program of its own to compile."""
    drawn = jax.random.uniform(key, (sum(counts),))
    return jnp.split(drawn, np.cumsum(counts)[:-1])


def _between(drawn: Array, bounds: tuple[float, float]) -> Array:
    return bounds[0] + drawn * (bounds[1] - bounds[0])


def _mask_vector(
    drawn: Float[Array, "6"], frames: int, bins: int, time_mask: int, frequency_mask: int
) -> Float[Array, "7"]:
    """On, two masks, on, shift/T; all or nothing."""
    edges = []
    for number, (size, widest) in enumerate(((frames, time_mask), (bins, frequency_mask))):
        width = drawn[1 + 2 * number] * min(widest, size)
        begin = jnp.floor(drawn[2 + 2 * number] * (size - width))
        edges += [begin, begin + jnp.floor(width)]
    moved = (jnp.floor(drawn[5] * 2 * frames) - frames) / frames
    one = jnp.ones(())
    vector = jnp.stack([one, *edges, one, moved])
    return jnp.where(drawn[0] < P_MASK, vector, jnp.zeros(7))


def _crop_vector(
    drawn: Float[Array, "22"],
    height: int,
    width: int,
    ratio: tuple[float, float],
    units: tuple[int, int],
) -> Float[Array, "5"]:
    """On, then first row, first column, rows, columns; in units of heights and widths.

    The first of ten draws that fits; where none does, the largest one with an allowed ratio.
    """
    areas = _between(drawn[:CROP_TRIES], CROP_SCALE) * (height * width)
    logarithms = float(np.log(ratio[0])), float(np.log(ratio[1]))
    ratios = jnp.exp(_between(drawn[CROP_TRIES : 2 * CROP_TRIES], logarithms))
    rows, columns = jnp.round(jnp.sqrt(areas / ratios)), jnp.round(jnp.sqrt(areas * ratios))
    fits = (rows > 0) & (rows <= height) & (columns > 0) & (columns <= width)
    first = jnp.argmax(fits)
    h, w = rows[first], columns[first]
    i = jnp.floor(drawn[-2] * (height - h + 1))
    j = jnp.floor(drawn[-1] * (width - w + 1))
    found = jnp.stack([i, j, h, w])
    kept_h, kept_w = float(height), float(width)
    if width / height < ratio[0]:
        kept_h = float(round(width / ratio[0]))
    elif width / height > ratio[1]:
        kept_w = float(round(height * ratio[1]))
    middle = [(height - kept_h) // 2, (width - kept_w) // 2, kept_h, kept_w]
    found = jnp.where(fits.any(), found, jnp.asarray(middle, jnp.float32))
    scaled = found / jnp.asarray([units[0], units[1]] * 2, jnp.float32)
    return jnp.concatenate([jnp.ones(1), scaled])


def _jitter_vector(drawn: Float[Array, "9"]) -> Float[Array, "9"]:
    vector = jnp.concatenate(
        [
            jnp.ones(1),
            jnp.argsort(drawn[1:5]).astype(jnp.float32),
            _between(drawn[5:8], FACTORS) - 1.0,
            _between(drawn[8:], HUES),
        ]
    )
    off = jnp.concatenate([jnp.zeros(1), jnp.arange(4.0), jnp.zeros(4)])
    return jnp.where(drawn[0] < P_JITTER, vector, off)


def _blur_vector(drawn: Float[Array, "2"]) -> Float[Array, "2"]:
    vector = jnp.stack([jnp.ones(()), _between(drawn[1], SIGMAS)])
    return jnp.where(drawn[0] < P_BLUR, vector, jnp.zeros(2))


# ---- doing ---------------------------------------------------------------------------------------


def augment_picture(vector: Float[Array, "18"], picture: Image) -> Image:
    """What a vector says, done to a picture: crop, jitter, blur, flip, grey.

    Args:
      vector: as `sample_picture` draws it.
      picture: in [0, 1]; so is the result.
    """
    height, width, _ = picture.shape
    x = _cropped(vector[:5], picture, (height, width))
    order, factors, hue = vector[6:10], vector[10:13] + 1.0, vector[13]
    means = jnp.asarray(GREY)

    def grey(x: Image) -> Float[Array, "H W 1"]:
        return jnp.sum(x * means[None, None], axis=-1, keepdims=True)

    jitters = (
        lambda x: _unit(factors[0] * x),
        lambda x: _unit(_blend(x, jnp.mean(grey(x)), factors[1])),
        lambda x: _unit(_blend(x, grey(x), factors[2])),
        lambda x: _hue_shifted(x, hue),
    )
    x = jnp.where(vector[5] > 0, _in_order(jitters, order, x), x)
    x = _blurred(vector[14:16], x, PICTURE_REACH, 3.0, "edge")
    x = jnp.where(vector[16] > 0, x[:, ::-1], x)
    return jnp.where(vector[17] > 0, jnp.broadcast_to(grey(x), x.shape), x)


def augment_sound(vector: Float[Array, "24"], log_mel: LogMel, *, legacy: bool = False) -> LogMel:
    """What a vector says, done to a log-mel: masks, shift, crop, jitter, blur, flip.

    Args:
      vector: as `sample_sound` draws it, with the same `legacy`.
      log_mel: normalised, so that 0 is the mean.
      legacy: as the released code has it. The shift does nothing (it rolls three equal channels),
        the crop is told in units of the other axis, brightness, contrast and saturation clip to
        [0, 1] what is not a picture, and the flip turns frequency over instead of time.
    """
    frames, bins = log_mel.shape
    x = jnp.where(vector[0] > 0, _masked(vector[1:5], log_mel), log_mel)
    if not legacy:
        shift = jnp.round(vector[6] * frames).astype(jnp.int32)
        x = jnp.where(vector[5] > 0, jnp.roll(x, shift, axis=0), x)
    x = _cropped(vector[7:12], x, (bins, frames) if legacy else (frames, bins))
    clip, grey = (_unit, LEGACY_GREY) if legacy else (lambda x: x, 1.0)
    factors = vector[17:20] + 1.0
    jitters = (
        lambda x: clip(factors[0] * x),
        lambda x: clip(_blend(x, grey * jnp.mean(x), factors[1])),
        lambda x: clip(_blend(x, grey * x, factors[2])) if legacy else x,
        lambda x: x,
    )
    x = jnp.where(vector[12] > 0, _in_order(jitters, vector[13:17], x), x)
    x = _blurred(vector[21:23], x, SOUND_REACH, 1.0, "reflect")
    return jnp.where(vector[23] > 0, x[:, ::-1] if legacy else x[::-1], x)


def _unit(x: Array) -> Array:
    return jnp.clip(x, 0.0, 1.0)


def _blend(x: Array, other: Array, factor: Float[Array, ""]) -> Array:
    return factor * x + (1.0 - factor) * other


def _in_order(jitters: tuple[Callable, ...], order: Float[Array, "4"], x: Array) -> Array:
    def one(slot: Int[Array, ""], x: Array) -> Array:
        return jax.lax.switch(order[slot].astype(jnp.int32), jitters, x)

    return jax.lax.fori_loop(0, len(jitters), one, x)


def _masked(edges: Float[Array, "4"], x: LogMel) -> LogMel:
    """Zero from begin up to end, in both axes."""
    rows, columns = (jnp.arange(size, dtype=jnp.float32) for size in x.shape)
    hidden_rows = (rows >= edges[0]) & (rows < edges[1])
    hidden_columns = (columns >= edges[2]) & (columns < edges[3])
    return jnp.where(hidden_rows[:, None] | hidden_columns[None], jnp.zeros((), x.dtype), x)


def _cropped(vector: Float[Array, "5"], x: Array, units: tuple[int, int]) -> Array:
    """A crop, stretched over the whole by linear interpolation; pixels beyond it are not read."""
    where = jnp.round(vector[1:] * jnp.asarray([units[0], units[1]] * 2, jnp.float32))
    on = vector[0] > 0
    y = x
    for axis in (0, 1):
        y = _stretched(y, axis, where[axis], jnp.where(on, where[axis + 2], 1.0))
    return jnp.where(on, y, x)


def _stretched(x: Array, axis: int, begin: Float[Array, ""], size: Float[Array, ""]) -> Array:
    count = x.shape[axis]
    centres = (jnp.arange(count, dtype=jnp.float32) + 0.5) * (size / count) - 0.5
    at = jnp.clip(centres, 0.0, size - 1.0) + begin
    low = jnp.floor(at)
    high = jnp.minimum(low + 1.0, begin + size - 1.0)
    shape = [1] * x.ndim
    shape[axis] = count
    weight = (at - low).reshape(shape).astype(x.dtype)
    lower, upper = (
        jnp.take(x, place.astype(jnp.int32), axis=axis, mode="clip") for place in (low, high)
    )
    return (1.0 - weight) * lower + weight * upper


def _blurred(vector: Float[Array, "2"], x: Array, reach: int, sigmas: float, edges: str) -> Array:
    """A Gaussian over rows and columns, cut off at `ceil(sigmas * sigma)` steps."""
    on = vector[0] > 0
    sigma = jnp.where(on, vector[1], 1.0)
    offsets = jnp.arange(-reach, reach + 1, dtype=jnp.float32)
    weights = jnp.exp(-0.5 * (offsets / sigma) ** 2)
    weights = jnp.where(jnp.abs(offsets) <= jnp.ceil(sigmas * sigma), weights, 0.0)
    weights = weights / jnp.sum(weights)
    y = x
    for axis in (0, 1):
        y = _along(_banded(weights, reach, y.shape[axis], edges), y, axis)
    return jnp.where(on, y, x)


def _banded(
    weights: Float[Array, " taps"], reach: int, count: int, edges: str
) -> Float[Array, "n n"]:
    """The matrix that a row is multiplied by, instead of many passes over the picture."""
    place = np.arange(count)[:, None] + np.arange(-reach, reach + 1)[None]
    if edges == "reflect":
        place = np.abs(place)
        place = np.where(place >= count, 2 * (count - 1) - place, place)
    place = np.clip(place, 0, count - 1)
    rows = np.broadcast_to(np.arange(count)[:, None], place.shape)
    matrix = jnp.zeros((count, count), weights.dtype)
    return matrix.at[rows, place].add(jnp.broadcast_to(weights[None], place.shape))


def _along(matrix: Float[Array, "n n"], x: Array, axis: int) -> Array:
    product = jnp.tensordot(matrix, x, axes=(1, axis), precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(product, 0, axis)


def _hue_shifted(x: Image, shift: Float[Array, ""]) -> Image:
    """The hue turned by a share of the circle, in hue, saturation and value."""
    red, green, blue = x[..., 0], x[..., 1], x[..., 2]
    value, least = jnp.max(x, axis=-1), jnp.min(x, axis=-1)
    chroma = value - least
    safe = jnp.where(chroma > 0, chroma, 1.0)
    sector = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe),
    )
    hue = jnp.mod(sector / 6.0 + shift, 1.0) * 6.0

    def channel(offset: float) -> Float[Array, "H W"]:
        place: Int[Array, ""] | Array = jnp.mod(offset + hue, 6.0)
        return value - chroma * jnp.clip(jnp.minimum(place, 4.0 - place), 0.0, 1.0)

    return jnp.stack([channel(5.0), channel(3.0), channel(1.0)], axis=-1)
