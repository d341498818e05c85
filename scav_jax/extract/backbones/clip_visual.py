"""`clip`: CLIP for every frame, as in the paper. Its weights are not shipped.

Workers resize frames to CLIP's crops as they decode them; or, where the device resizes, hand small
frames over as they are. Pixels are the same bytes either way (`clip_images`), and so are features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from scav_jax.extract.backbones.clip_pixels import Preprocessing, resize_crop_pil
from scav_jax.extract.backbones.sides import Visual, clips_that_fill_devices

# A frame goes to the device with at most so many times a crop's bytes, as 480 x 270 and 454 x 256
# pixels have. Larger ones would fill pipes and memory with pixels that are not needed.
WHOLE_FRAMES = 3


@dataclass(frozen=True)
class ClipPreparer(Visual):
    """The worker's half: crops as CLIP reads them, or whole frames.

    Attributes:
      preprocessing: constants of the crop.
      whole: leaves small frames (`WHOLE_FRAMES`) to the device.
    """

    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    whole: bool = False

    def shrink(self, frame: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "h w 3"]:
        rows, columns = self.preprocessing.crop
        is_small = frame.nbytes <= WHOLE_FRAMES * rows * columns * 3
        if self.whole and is_small and frame.shape[:2] != (rows, columns):  # which says: cropped
            return frame
        return resize_crop_pil(frame[None], self.preprocessing)[0]

    def alike(self, frames: list[np.ndarray]) -> list[np.ndarray]:
        crop = self.preprocessing.crop
        return [
            frame
            if frame.shape[:2] == crop
            else resize_crop_pil(frame[None], self.preprocessing)[0]
            for frame in frames
        ]


class ClipVisual(Visual):
    """CLIP's picture tower.

    Args:
      weights: a folder with config.json and safetensors, a hub id, or a loaded `ClipModel` with
        batches of `clip_model.FRAME_CHUNKS`.
      dtype: of the matrix products, "float32" or "bfloat16".
      output: "pooled" (the paper's), or "projected" to compare frames with texts.
      resize: "pil" in workers, "device" where the encoder runs: the same features; by default the
        device if it is an accelerator. A loaded model has its own.
    """

    without_effect = frozenset({"resize"})

    def __init__(
        self,
        weights: Any,
        dtype: str = "float32",
        output: str = "pooled",
        resize: str | None = None,
    ):
        from scav_jax.extract.backbones import clip_model  # not above: workers import this module

        clip_model.check_options(dtype, output, resize)  # before minutes of loading
        if isinstance(weights, str | Path):
            batching = replace(clip_model.FRAME_CHUNKS, resize=resize)
            weights = clip_model.load(weights, dtype, output, batching)
            weights.check_resizing()
        self.model = weights
        self.width = weights.visual_width
        self.clips_at_once = clips_that_fill_devices()

    @property
    def preparer(self) -> ClipPreparer:
        return ClipPreparer(self.model.preprocessing, whole=self.model.resize == "device")

    def fingerprint(self) -> dict:
        return self.model.fingerprint("vision") | {"frames": "PIL, before the crop"}

    def encode(
        self, clips: Sequence[UInt8[np.ndarray, "_N _h _w 3"]]
    ) -> list[Float[np.ndarray, "_N D"]]:
        return self.model.encode_clips(clips)
