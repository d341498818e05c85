"""CLIP's preprocessing up to the 8-bit crop, with NumPy and PIL: what a decode worker needs.

No JAX in here: a worker process that imported it would pay seconds and hundreds of megabytes, and
might reach for an accelerator that belongs to its parent. `clip_images` has the same pixels as
matrix products.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as shown

import numpy as np
from jaxtyping import Float, Int32, UInt8

from scav_jax.base.documents import read_object
from scav_jax.base.errors import InputError

BICUBIC = 3  # PIL's number for it
BICUBIC_A = -0.5
BICUBIC_SUPPORT = 2.0
FRACTION_BITS = 22  # of PIL's weights for 8-bit pixels
MOST_PIXELS = 2**14  # along a side
RESIZE_REVISION = 1  # raise it when pixels change


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The constants of `preprocessor_config.json`; the defaults are OpenAI's.

    Attributes:
      size: the short edge in pixels after resizing, or (height, width) where the file fixes both.
      crop: (height, width) of the centre crop.
      scale: what a pixel value is multiplied by before `mean` and `std` (red, green, blue) apply.
    """

    size: int | tuple[int, int] = 224
    crop: tuple[int, int] = (224, 224)
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after resizing: the long edge is rounded down.

        >>> Preprocessing().resized(256, 341), Preprocessing().resized(1280, 719)
        ((224, 298), (398, 224))
        """
        if not isinstance(self.size, int):
            return self.size
        short, long = min(height, width), max(height, width)
        other = int(self.size * long / short)
        return (other, self.size) if width <= height else (self.size, other)

    def fingerprint(self) -> dict:
        """What the pixels depend on; JSON types only."""
        return {
            **json.loads(json.dumps(dataclasses.asdict(self))),
            "resize": "PIL bicubic, antialiased, columns then rows, 8 bits after each",
            "revision": RESIZE_REVISION,
        }


def read_preprocessing(source: str | Path | Mapping, image_size: int) -> Preprocessing:
    """The constants in `preprocessor_config.json` (its directory, its path or its content).

    Without such a file, OpenAI's with `image_size` for both sizes.

    Raises:
      InputError: steps or values that CLIP's preprocessing does not have.
    """
    default = {"shortest_edge": image_size}
    if isinstance(source, Mapping):
        content, where = source, "preprocessor_config"
    else:
        path = Path(source)
        path = path / "preprocessor_config.json" if path.is_dir() else path
        if not path.exists():
            return Preprocessing(size=image_size, crop=(image_size, image_size))
        where = str(path)
        content = read_object(path, "the constants of CLIP's preprocessing", "download it again")
    for step in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        if content.get(step, True) is not True:
            raise InputError(f"{where}: {step}: expected true, got {shown(content[step])}")
    if content.get("resample", BICUBIC) != BICUBIC:
        raise InputError(
            f"{where}: resample: expected {BICUBIC} (bicubic), got {shown(content['resample'])}"
        )
    usual = Preprocessing()
    return Preprocessing(
        size=_size(content.get("size", default), where),
        crop=_pair(content.get("crop_size", image_size), f"{where}: crop_size"),
        scale=_number(content.get("rescale_factor", usual.scale), f"{where}: rescale_factor"),
        mean=_colours(content.get("image_mean", usual.mean), f"{where}: image_mean"),
        std=_colours(content.get("image_std", usual.std), f"{where}: image_std"),
    )


def _size(value, where: str) -> int | tuple[int, int]:
    if isinstance(value, Mapping) and set(value) == {"shortest_edge"}:
        value = value["shortest_edge"]
    if isinstance(value, int):  # old files
        return _pair(value, f"{where}: size")[0]
    return _pair(value, f"{where}: size")


def _pair(value, where: str) -> tuple[int, int]:
    if isinstance(value, Mapping) and set(value) == {"height", "width"}:
        value = (value["height"], value["width"])
    pair = (value, value) if isinstance(value, int) else value
    if not (isinstance(pair, tuple) and all(_is_size(x) for x in pair)):
        raise InputError(
            f"{where}: expected a number of pixels or height and width, got {shown(value)}"
        )
    return pair


def _colours(values, where: str) -> tuple[float, float, float]:
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise InputError(f"{where}: expected three numbers, got {shown(values)}")
    return tuple(_number(x, where) for x in values)


def _is_size(value) -> bool:
    return type(value) is int and 0 < value <= MOST_PIXELS


def _number(value, where: str) -> float:
    if type(value) not in (int, float) or not abs(value) < 1e6:
        raise InputError(f"{where}: expected a number, got {shown(value)}")
    return float(value)


# ---- PIL's weights -----------------------------------------------------------------------------


def bicubic(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Keys' kernel with a = -0.5, in the order of operations of PIL's `Resample.c`."""
    a, x = BICUBIC_A, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def resize_weights(source: int, target: int) -> Int32[np.ndarray, "target source"]:
    """PIL's fixed-point weights, in units of 2**-22, of one pass from `source` to `target` pixels.

    The kernel widens with the reduction, which is the antialiasing. Sums run from left to right,
    since a weight may turn on the last bit of a float64.
    """
    if source == target:  # PIL leaves this pass out
        return (np.eye(source) * 2**FRACTION_BITS).astype(np.int32)
    scale = source / target
    widening = max(scale, 1.0)
    support = BICUBIC_SUPPORT * widening
    centre = (np.arange(target) + 0.5) * scale
    begin = np.maximum((centre - support + 0.5).astype(np.int64), 0)[:, None]
    end = np.minimum((centre + support + 0.5).astype(np.int64), source)[:, None]
    pixel = np.arange(source)[None]
    weight = bicubic((pixel - centre[:, None] + 0.5) * (1.0 / widening))
    weight = np.where((pixel >= begin) & (pixel < end), weight, 0.0)
    weight = weight / np.cumsum(weight, axis=1)[:, -1:] * 2**FRACTION_BITS
    return np.trunc(np.where(weight < 0, weight - 0.5, weight + 0.5)).astype(np.int32)


def _crop_rows(weights: Int32[np.ndarray, "t s"], size: int) -> Int32[np.ndarray, "c s"]:
    """The rows of the centre crop; a crop beyond the picture reads zeros."""
    kept, to = _kept(len(weights), size)
    cropped = np.zeros((size, weights.shape[1]), np.int32)
    cropped[to] = weights[kept]
    return cropped


def crop_weights(
    preprocessing: Preprocessing, height: int, width: int
) -> tuple[Int32[np.ndarray, "R height"], Int32[np.ndarray, "C width"]]:
    """Weights of both passes, for the rows and columns that the centre crop keeps."""
    new_height, new_width = preprocessing.resized(height, width)
    rows = _crop_rows(resize_weights(height, new_height), preprocessing.crop[0])
    columns = _crop_rows(resize_weights(width, new_width), preprocessing.crop[1])
    return rows, columns


# ---- with PIL ----------------------------------------------------------------------------------


def resize_crop_pil(
    frames: UInt8[np.ndarray, "N height width 3"], preprocessing: Preprocessing
) -> UInt8[np.ndarray, "N R C 3"]:
    """Resize and centre crop, one frame at a time; the fastest way on a CPU.

    Each pass is a call of its own, columns first: that is what Pillow itself did up to version 12.
    Pillow 13 takes the rows first where the height loses more than twice the pixels that the width
    loses (frames taller than 2 : 1, here), which rounds differently. So features do not depend on
    the version; and columns outside the crop are spared the second pass.
    """
    from PIL import Image

    bicubic = Image.Resampling.BICUBIC
    source = frames.shape[1]
    height, width = preprocessing.resized(*frames.shape[1:3])
    out = np.zeros((len(frames), *preprocessing.crop, 3), np.uint8)
    rows, to_rows = _kept(height, preprocessing.crop[0])
    columns, to_columns = _kept(width, preprocessing.crop[1])
    for index, frame in enumerate(frames):
        image = Image.fromarray(frame).resize((width, source), bicubic)
        image = image.crop((columns.start, 0, columns.stop, source))
        image = image.resize((image.width, height), bicubic)
        out[index, to_rows, to_columns] = np.asarray(image)[rows]
    return out


def _kept(resized: int, crop: int) -> tuple[slice, slice]:
    """Which pixels a centre crop keeps, and where they go: inside it, if it is larger."""
    first = (resized - crop) // 2
    begin, end = max(first, 0), min(first + crop, resized)
    return slice(begin, end), slice(begin - first, end - first)


# ---- with integers ------------------------------------------------------------------------------


def resize_crop_exact(
    frames: UInt8[np.ndarray, "N height width 3"], preprocessing: Preprocessing
) -> UInt8[np.ndarray, "N R C 3"]:
    """The same in integers: slow, the yardstick of the self-check."""
    rows, columns = crop_weights(preprocessing, *frames.shape[1:3])
    x, half = frames.astype(np.int64), 2 ** (FRACTION_BITS - 1)
    x = np.clip((np.einsum("nhwc,ow->nhoc", x, columns) + half) >> FRACTION_BITS, 0, 255)
    x = np.clip((np.einsum("nhoc,rh->nroc", x, rows) + half) >> FRACTION_BITS, 0, 255)
    return x.astype(np.uint8)
