"""Frozen CLIP: frames and texts -> features, from a Hugging Face directory or hub id.

    model = load("openai/clip-vit-large-patch14")
    features = model.encode_images(frames)  # uint8 [N, height, width, 3] -> float32 [N, 1024]

The pooled class step after the last norm (768 numbers for B/32) is transformers' `pooler_output`;
`output="projected"` gives the embedding that is compared with texts.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from scav_jax.base.errors import InputError, check_one_of
from scav_jax.extract.backbones import clip_images, clip_pixels, clip_weights, weights
from scav_jax.extract.backbones.clip_pixels import Preprocessing
from scav_jax.extract.backbones.clip_towers import (
    LEGACY_EOS,
    ClipConfig,
    TextTower,
    VisionTower,
    read_config,
)
from scav_jax.sharding import DATA_AXIS, batch_sharded, replicated

REVISION = 1  # raise it when features change
OUTPUTS = ("pooled", "projected")
DTYPES = ("float32", "bfloat16")
RESIZES = ("pil", "device")
SHAPE_MULTIPLE = 64  # of pixels: frames are filled up to it, or each size would be compiled
FRAMES_PER_DEVICE = 64
IN_FLIGHT = 2  # batches on the devices while the next one is prepared


@dataclasses.dataclass(frozen=True)
class Batching:
    """How the work is laid on the devices; features do not depend on it.

    Attributes:
      frames_per_device: frames (or texts) in a batch, for each device; the last batch is filled up
        with zeros, so that one program serves every call.
      devices: that share each batch; default all of this process.
      resize: "pil" on the host, "device" as matrix products, both equal bit for bit; default PIL
        on a CPU and matrix products on an accelerator.
    """

    frames_per_device: int = FRAMES_PER_DEVICE
    devices: Sequence[jax.Device] | None = None
    resize: str | None = None


# A clip's frames go through CLIP in chunks of their own. 10 s at 25 or 30 frames/s fill them.
FRAME_CHUNKS = Batching(frames_per_device=50)


def check_options(dtype: str, output: str, resize: str | None = None) -> None:
    """Raises `InputError` for what is none of `DTYPES`, of `OUTPUTS` or of `RESIZES`."""
    check_one_of("clip: dtype", dtype, DTYPES)
    check_one_of("clip: output", output, OUTPUTS)
    if resize is not None:
        check_one_of("clip: resize", resize, RESIZES)


def load(
    directory_or_hub_id: str | Path,
    dtype: str = "float32",
    output: str = "pooled",
    batching: Batching | None = None,
) -> "ClipModel":
    """CLIP with the weights of that directory, or of a model on the Hugging Face hub.

    Args:
      directory_or_hub_id: a folder with config.json and safetensors, or `owner/name[@revision]`.
      dtype: of the matrix products, "float32" or "bfloat16".
      output: "pooled" or "projected".
      batching: as for `ClipModel`.

    Raises:
      InputError: missing or unfit files, config values or tensors, named one by one.
    """
    directory = weights.locate(directory_or_hub_id)
    config = read_config(directory)
    size = config.vision.image_size if config.vision else 224
    return ClipModel(
        config,
        weights.read(directory),
        clip_pixels.read_preprocessing(directory, size),
        dtype=dtype,
        output=output,
        directory=directory,
        batching=batching,
    )


class ClipModel:
    """Both towers, ready for use; each is put on the devices when it is first needed.

    Args:
      config: of the towers.
      arrays: tensors under Hugging Face's names, from a file or from `random_weights`.
      preprocessing: constants for frames; default OpenAI's for the config's image size.
      dtype, output: as for `load`.
      directory: where the tokenizer's files and, in messages, the weights are.
      batching: default `Batching()`.
    """

    def __init__(
        self,
        config: ClipConfig,
        arrays: dict[str, np.ndarray],
        preprocessing: Preprocessing | None = None,
        *,
        dtype: str = "float32",
        output: str = "pooled",
        directory: Path | None = None,
        batching: Batching | None = None,
    ):
        batching = batching or Batching()
        check_options(dtype, output)
        self.config, self.dtype, self.output = config, dtype, output
        self.directory = directory
        self._where = str(directory) if directory else "clip"
        self._tensors = {
            tower: clip_weights.select(arrays, config, tower, output == "projected", self._where)
            for tower in ("vision", "text")
            if getattr(config, tower) is not None
        }
        devices = list(batching.devices or jax.local_devices())
        self._mesh = jax.sharding.Mesh(np.asarray(devices), (DATA_AXIS,))
        self.batch = batching.frames_per_device * len(devices)
        self._encoders, self._hashes, self._tokenizer = {}, {}, None
        if config.vision is not None:
            self._init_images(preprocessing, batching.resize)

    def _init_images(self, preprocessing: Preprocessing | None, resize: str | None) -> None:
        size = self.config.vision.image_size
        self.preprocessing = preprocessing or Preprocessing(size, (size, size))
        if self.preprocessing.crop != (size, size):
            raise InputError(
                f"{self._where}: expected crop_size of preprocessor_config.json to equal "
                f"image_size {size} of config.json, got {list(self.preprocessing.crop)}"
            )
        on_cpu = self._mesh.devices.flat[0].platform == "cpu"
        self.resize = resize or ("pil" if on_cpu else "device")
        check_one_of("clip: resize", self.resize, RESIZES)
        self._digits = "float32" if on_cpu else "bfloat16"

    def check_resizing(self) -> None:
        """Compares what resizes frames with the integers on noise: Pillow, and the device if used.

        Raises:
          InputError: pixels are others, so that features would not be what they say they are.
        """
        _check_pil()  # workers resize large frames
        noise, exact = _noise_resized(96)
        small = Preprocessing(96, (96, 96))
        if self.resize == "device" and not np.array_equal(
            self._resized(noise, len(noise), self._mesh.devices.flat[0], small), exact
        ):
            raise InputError(
                "clip: expected the device to resize as integers do, got other pixels; "
                "use --option resize=pil"
            )

    @property
    def visual_width(self) -> int:
        """D of `encode_images`."""
        return self._width("vision")

    @property
    def text_width(self) -> int:
        """D of `encode_texts`."""
        return self._width("text")

    def _width(self, tower: str) -> int:
        config = self._tower_config(tower)
        return config.hidden_size if self.output == "pooled" else config.projection_dim

    def _tower_config(self, tower: str):
        return clip_weights.tower_of(self.config, tower, self._where)

    def fingerprint(self, tower: str = "vision") -> dict:
        """Everything that the features of "vision" or "text" depend on; JSON types only.

        The weights' hash is of the tensors in use under their names without a prefix: the same
        from a file of both towers, from one of this tower alone, and from shards.
        """
        if tower not in self._hashes:
            self._tower_config(tower)
            self._hashes[tower] = weights.sha256(self._tensors[tower])
        found = {
            "name": "clip",
            "revision": REVISION,
            "weights_sha256": self._hashes[tower],
            "config": dataclasses.asdict(self._tower_config(tower)),
            "dtype": self.dtype,
            "output": self.output,
        }
        if tower == "vision":
            found["preprocessing"] = self.preprocessing.fingerprint()
        return found

    # ---- frames --------------------------------------------------------------------------------

    def encode_images(
        self, frames: UInt8[np.ndarray, "N height width 3"]
    ) -> Float[np.ndarray, "N D"]:
        """RGB frames of one size, of as many clips as there are, -> float32 features.

        Each frame is by itself: its neighbours and what fills up the last batch change nothing.
        """
        return self.encode_crops(self.crop(frames))

    def crop(self, frames: UInt8[np.ndarray, "N height width 3"]) -> UInt8[np.ndarray, "N S S 3"]:
        """Frames resized and cropped as CLIP reads them, still bytes.

        All that depends on the frames' size: crops of many clips go into one `encode_crops`.
        """
        size = self._tower_config("vision").image_size
        self._check_frames(frames)
        if self.resize == "pil":
            _check_pil()
            return clip_pixels.resize_crop_pil(frames, self.preprocessing)
        device = self._mesh.devices.flat[0]
        crops = [
            np.asarray(self._resized(frames[at : at + self.batch], self.batch, device))
            for at in range(0, len(frames), self.batch)
        ]
        return np.concatenate([np.zeros((0, size, size, 3), np.uint8), *crops])[: len(frames)]

    def encode_crops(self, crops: UInt8[np.ndarray, "N S S 3"]) -> Float[np.ndarray, "N D"]:
        """What `crop` gives -> float32 features."""
        self._check_crops(crops)
        return self.encode_clips([crops])[0]

    def _check_crops(self, crops: np.ndarray) -> None:
        size = self._tower_config("vision").image_size
        if crops.shape[1:] != (size, size, 3) or crops.dtype != np.uint8:
            raise InputError(
                f"crops: expected uint8 [N, {size}, {size}, 3], got {crops.dtype} "
                f"{list(crops.shape)}"
            )

    @staticmethod
    def _check_frames(frames: np.ndarray) -> None:
        if (
            frames.dtype != np.uint8
            or frames.ndim != 4
            or frames.shape[3] != 3
            or 0 in frames[:1].shape[1:]
        ):
            raise InputError(
                "frames: expected uint8 RGB [N, height, width, 3], got "
                f"{frames.dtype} {list(frames.shape)}"
            )

    def encode_clips(
        self, clips: Sequence[UInt8[np.ndarray, "_N _h _w 3"]]
    ) -> list[Float[np.ndarray, "_N D"]]:
        """Crops of many clips -> the float32 features of each, whatever stands beside it.

        With `resize="device"` a clip may come in whole frames too, of any size.

        Matrix products may round a row differently in another place of a batch. So each clip
        starts a chunk of its own, filled up with zeros, and a device computes one chunk at a time:
        a clip's features are the same bytes alone, among others, and on any number of devices.
        """
        size = self._tower_config("vision").image_size
        chunk = self.batch // self._mesh.size
        for frames in clips:
            check = self._check_crops if self.resize == "pil" else self._check_frames
            check(frames)
        counts = [-(-len(frames) // chunk) for frames in clips]
        chunks = [
            frames[begin : begin + chunk]
            for frames in clips
            for begin in range(0, len(frames), chunk)
        ]
        batches = (
            self._beside_each_other(chunks[first : first + self._mesh.size], chunk, size)
            for first in range(0, len(chunks), self._mesh.size)
        )
        features = self._encode("vision", batches, len(chunks) * chunk)
        ends = np.cumsum([0, *counts]) * chunk
        return [features[end : end + len(frames)] for end, frames in zip(ends, clips, strict=False)]

    def _beside_each_other(self, chunks: list[np.ndarray], chunk: int, size: int) -> jax.Array:
        """A batch: the crops of a chunk on each device, filled up with zeros."""
        devices = self._mesh.devices.flat
        empty = [np.zeros((0, size, size, 3), np.uint8)] * (len(devices) - len(chunks))
        parts = [
            jax.device_put(_filled(frames, (chunk, size, size)), device)
            if frames.shape[1:3] == (size, size)
            else self._resized(frames, chunk, device)
            for frames, device in zip([*chunks, *empty], devices, strict=True)
        ]
        shape = self.batch, size, size, 3
        return jax.make_array_from_single_device_arrays(shape, batch_sharded(self._mesh), parts)

    def _resized(
        self,
        frames: UInt8[np.ndarray, "N height width 3"],
        chunk: int,
        device: jax.Device,
        preprocessing: Preprocessing | None = None,
    ) -> jax.Array:
        """Crops of whole frames, made on a device; as many as a chunk has, the rest zeros."""
        rows, columns, kept = clip_images.crop_digits(
            preprocessing or self.preprocessing, *frames.shape[1:3], self._digits, SHAPE_MULTIPLE
        )
        filled = _filled(frames[:, *kept], (chunk, rows.shape[2], columns.shape[2]))
        return clip_images.resize_crop(*jax.device_put((filled, rows, columns), device))

    # ---- texts ---------------------------------------------------------------------------------

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
        """Texts -> float32 features; a text beyond the model's length is cut, as everywhere."""
        config = self._tower_config("text")
        if isinstance(texts, str):
            raise InputError("texts: expected a list of texts, got one text: put it in a list")
        if not texts:
            return np.zeros((0, self.text_width), np.float32)
        ids = self._tokenize(list(texts), config.max_position_embeddings)
        return self.encode_ids(np.asarray(ids, np.int32))

    def encode_ids(self, ids: Int[np.ndarray, "N T"]) -> Float[np.ndarray, "N D"]:
        """Token ids, each row with its EOS, filled up behind it with anything, -> features."""
        config = self._tower_config("text")
        steps = config.max_position_embeddings
        if ids.ndim != 2 or not 1 <= ids.shape[1] <= steps:
            raise InputError(f"ids: expected [N, 1..{steps}], got {list(ids.shape)}")
        if ids.size and (ids.min() < 0 or ids.max() >= config.vocab_size):
            raise InputError(
                f"ids: expected 0 to {config.vocab_size - 1}, got {ids.min()} to {ids.max()}; "
                "do tokenizer and weights belong together?"
            )
        ends = (ids == config.eos_token_id).any(axis=1)
        if config.eos_token_id != LEGACY_EOS and not ends.all():
            raise InputError(
                f"ids: expected the EOS {config.eos_token_id} in every row, got none in row "
                f"{int(np.argmin(ends))}"
            )
        filled = np.zeros((len(ids), steps), np.int32)  # 0 is never the highest id nor the EOS
        filled[:, : ids.shape[1]] = ids
        return self._encode("text", self._batches(filled), len(ids))

    def _tokenize(self, texts: list[str], steps: int) -> list[list[int]]:
        if self._tokenizer is None:
            if self.directory is None:
                raise InputError("clip: expected a directory with the tokenizer's files, got none")
            from transformers import CLIPTokenizer  # takes seconds

            has = {path.name for path in Path(self.directory).iterdir()}
            if "tokenizer.json" not in has and not {"vocab.json", "merges.txt"} <= has:
                raise InputError(
                    f"{self.directory}: expected tokenizer.json, or vocab.json and merges.txt, got "
                    "neither: copy the tokenizer's files beside the weights"
                )
            self._tokenizer = CLIPTokenizer.from_pretrained(self.directory)
        encoded = self._tokenizer(texts, padding=True, truncation=True, max_length=steps)
        return encoded["input_ids"]

    # ---- batches on devices --------------------------------------------------------------------

    def _batches(self, rows: np.ndarray) -> Iterator[jax.Array]:
        """Batches of `self.batch` rows on the devices, the last filled up with zeros."""
        for begin in range(0, len(rows), self.batch):
            batch = np.zeros((self.batch, *rows.shape[1:]), rows.dtype)
            batch[: len(rows) - begin] = rows[begin : begin + self.batch]
            yield jax.device_put(batch, batch_sharded(self._mesh))

    def _encode(
        self, tower: str, batches: Iterable[jax.Array], count: int
    ) -> Float[np.ndarray, "N D"]:
        """Keeps the devices busy while the host prepares the next batch, and memory bounded."""
        encoder = self._encoder(tower)
        waiting, done = deque(), [np.zeros((0, self._width(tower)), np.float32)]
        for batch in batches:
            waiting.append(encoder(batch))
            if len(waiting) > IN_FLIGHT:
                done.append(np.asarray(waiting.popleft()))
        return np.concatenate([*done, *map(np.asarray, waiting)])[:count]

    def _encoder(self, tower: str) -> Callable[[jax.Array], jax.Array]:
        if tower not in self._encoders:
            config = self._tower_config(tower)
            params = clip_weights.parameters(self._tensors[tower], config)
            params = jax.device_put(params, replicated(self._mesh))
            kind = VisionTower if tower == "vision" else TextTower
            model = kind(config, self.output == "projected", jnp.dtype(self.dtype))
            preprocessing = self.preprocessing if tower == "vision" else None
            self._encoders[tower] = partial(_features, model, preprocessing, params)
        return self._encoders[tower]


@partial(jax.jit, static_argnums=(0, 1))
def _features(
    model: VisionTower | TextTower,
    preprocessing: Preprocessing | None,
    params: dict,
    batch: jax.Array,
) -> jax.Array:
    """Crops or token ids -> features; one program for all `ClipModel`s of that shape."""
    if preprocessing is not None:
        batch = clip_images.normalise(batch, preprocessing)
    return model.apply({"params": params}, batch)


def _filled(rows: np.ndarray, shape: tuple[int, int, int]) -> UInt8[np.ndarray, "n h w 3"]:
    """Pictures with zeros beside, below and after them."""
    filled = np.zeros((*shape, 3), np.uint8)
    filled[: len(rows), : rows.shape[1], : rows.shape[2]] = rows
    return filled


def _noise_resized(size: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture of noise, and what integers make of it."""
    noise = np.random.default_rng(0).integers(0, 256, (1, 61, 83, 3)).astype(np.uint8)
    small = Preprocessing(size, (size, size))
    return noise, clip_pixels.resize_crop_exact(noise, small)


@cache
def _check_pil() -> None:
    """Compares the installed Pillow with the integers on noise, once a process.

    Raises:
      InputError: it resizes differently, so that features would not be what they say they are.
    """
    for size in (24, 96):
        noise, exact = _noise_resized(size)
        found = clip_pixels.resize_crop_pil(noise, Preprocessing(size, (size, size)))
        if not np.array_equal(found, exact):
            from PIL import __version__

            raise InputError(
                "clip: expected Pillow to resize with 22-bit weights as versions 11 to 13 do, got "
                f"other pixels from {__version__}; use resize='device' or another Pillow"
            )
