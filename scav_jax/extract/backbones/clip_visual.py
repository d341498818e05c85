"""`clip`: CLIP for every frame, as in the paper. Its weights are not shipped."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from scav_jax.extract.backbones.clip_pixels import Preprocessing, resize_crop_pil
from scav_jax.extract.backbones.sides import Visual

CLIPS_A_DEVICE = 8  # encoded in one go on an accelerator, so that it never waits for the host


@dataclass(frozen=True)
class ClipPreparer(Visual):
    """The worker's half: crops as CLIP reads them."""

    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def shrink(self, frame: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "S S 3"]:
        return resize_crop_pil(frame[None], self.preprocessing)[0]


class ClipVisual(Visual):
    """CLIP's picture tower.

    Args:
      weights: a folder with config.json and safetensors, a hub id, or a loaded `ClipModel` with
        batches of `clip_model.FRAME_CHUNKS`.
      dtype: of the matrix products, "float32" or "bfloat16".
      output: "pooled" (the paper's), or "projected" to compare frames with texts.
    """

    def __init__(self, weights: Any, dtype: str = "float32", output: str = "pooled"):
        from jax import local_devices  # not above: workers import this module

        from scav_jax.extract.backbones import clip_model

        clip_model.check_options(dtype, output)  # before minutes of loading
        if isinstance(weights, str | Path):
            weights = clip_model.load(weights, dtype, output, clip_model.FRAME_CHUNKS)
            weights.crop(np.zeros((1, 8, 8, 3), np.uint8))  # checks Pillow: workers resize with it
        self.model = weights
        self.width = weights.visual_width
        devices = local_devices()
        # A CPU has nothing to wait for, and single clips show more often how far the work is.
        self.clips_at_once = 1 if devices[0].platform == "cpu" else CLIPS_A_DEVICE * len(devices)

    @property
    def preparer(self) -> ClipPreparer:
        return ClipPreparer(self.model.preprocessing)

    def fingerprint(self) -> dict:
        return self.model.fingerprint("vision") | {"frames": "PIL, before the crop"}

    def encode(
        self, clips: Sequence[UInt8[np.ndarray, "_N S S 3"]]
    ) -> list[Float[np.ndarray, "_N D"]]:
        return self.model.encode_clips(clips)
