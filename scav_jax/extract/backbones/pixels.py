"""`pixels`: a backbone that does nothing, for towers that are trained from pixels on (EquiAV).

Picture: some frames at evenly spaced times, short edge scaled and the centre cut out, uint8.
Sound: Kaldi log-mel with a Hann window, 16 frames of 10 ms a step, not normalised: what AST,
CAV-MAE and EquiAV take (their figures for mean and deviation are of this).
"""

import numpy as np
from jaxtyping import Float, UInt8

from scav_jax.base.errors import InputError
from scav_jax.base.log_mel import MEL_BINS, STACKED_FRAMES
from scav_jax.extract import fbank
from scav_jax.extract.backbones.clip_pixels import Preprocessing, resize_crop_pil
from scav_jax.extract.backbones.plain import PlainAudio
from scav_jax.extract.backbones.sides import Visual
from scav_jax.features.clip import PIXELS_DTYPE

PATCH = 16  # what towers cut pictures into: sides are a multiple of it


class PixelsVisual(Visual):
    """Frames as they are.

    Args:
      frames: how many a clip, whatever its length; frame k lies in the middle of its share.
      side: of a frame in pixels, after the crop.
    """

    dtype = PIXELS_DTYPE

    def __init__(self, frames: int = 10, side: int = 224):
        if not (isinstance(frames, int) and 1 <= frames <= 1000):
            raise InputError(f"--frames: expected 1 to 1000, got {frames}")
        if not (isinstance(side, int) and 0 < side <= 1024 and side % PATCH == 0):
            raise InputError(f"--side: expected a multiple of {PATCH} up to 1024, got {side}")
        self.steps, self.side, self.width = frames, side, side * side * 3

    def fingerprint(self) -> dict:
        return {"revision": 1, "frame_scaling": "PIL bicubic of the short edge, centre crop"}

    def shrink(self, frame: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "S S 3"]:
        to = Preprocessing(size=self.side, crop=(self.side, self.side))
        return resize_crop_pil(frame[None], to)[0]

    def prepare(
        self, frames: UInt8[np.ndarray, "N S S 3"], previous: UInt8[np.ndarray, "S S 3"] | None
    ) -> UInt8[np.ndarray, "steps D"]:
        """The frames at the middle of `steps` equal parts, each a row; few frames are repeated."""
        parts = np.arange(self.steps)
        chosen = ((2 * parts + 1) * len(frames)) // (2 * self.steps)
        return frames[chosen].reshape(self.steps, self.width)


class PixelsAudio(PlainAudio):
    """Log-mel frames side by side, as they are."""

    def fingerprint(self) -> dict:
        return {
            "revision": 1,
            "mel_bins": MEL_BINS,
            "window": "hann",
            "full_scale": 1.0,
            "stacked_frames": STACKED_FRAMES,
        }

    def prepare(self, waveform: Float[np.ndarray, " S"]) -> Float[np.ndarray, "M 2048"]:
        """Log-mel, 16 frames of 10 ms side by side; what is left over is dropped."""
        return self.stacked(fbank.log_mel(waveform, fbank.hann_window(), 1.0))
