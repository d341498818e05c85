"""`plain`: features without weights, for a CPU, for tests and as a baseline that says something.

Picture: an 8 x 8 grid of mean colours and of mean absolute frame differences (384 numbers), or
of the colours alone (`colours`, 192 numbers): those see one moment, so they can be played.
Sound: Kaldi log-mel frames stacked 16 at a time (2048 numbers), in BEATs' geometry.
"""

import numpy as np
from jaxtyping import Float, UInt8

from scav_jax.base.log_mel import MEL_BINS, STACKED_FRAMES
from scav_jax.extract import fbank
from scav_jax.extract.backbones.sides import Audio, Visual
from scav_jax.extract.decoding.usable import grid_means

SIDE = 64  # frames are scaled to SIDE x SIDE pixels, whatever their shape
GRID = 8
FRAMES_AT_ONCE = 256  # bounds the memory for long clips
# Fixed constants, not statistics of the data, so that features mean the same everywhere.
COLOUR_CENTRE, COLOUR_SCALE = 0.5, 0.25  # of full scale
DIFFERENCE_SCALE = 0.05  # of full scale; a cell rarely changes by more from frame to frame
LOG_MEL_CENTRE, LOG_MEL_SCALE = 15.41663, 2 * 6.55582  # BEATs' constants


class PlainVisual(Visual):
    """Colours and their changes."""

    width = 2 * GRID * GRID * 3
    frame_size = (SIDE, SIDE)

    def fingerprint(self) -> dict:
        return {
            "revision": 1,  # raise it when the features' values change
            "frame_size": list(self.frame_size),
            "frame_scaling": "swscale area",
            "grid": GRID,
            "colour": [COLOUR_CENTRE, COLOUR_SCALE],
            "difference": [0.0, DIFFERENCE_SCALE],
        }

    def prepare(
        self,
        frames: UInt8[np.ndarray, "N 64 64 3"],
        previous: UInt8[np.ndarray, "64 64 3"] | None,
    ) -> Float[np.ndarray, "N 384"]:
        """Grid of `(mean colour - 0.5) / 0.25`, then grid of `mean |difference| / 0.05`.

        Both in units of full scale, each `[row, column, channel]` flattened. The difference is to
        the frame before; the first frame of a video has none and gets 0.
        """
        if frames.shape[1:] != (SIDE, SIDE, 3):
            raise ValueError(f"frames: expected [N, {SIDE}, {SIDE}, 3], got {frames.shape}")
        before = frames[:1] if previous is None else previous[None]
        out = np.empty((len(frames), self.width), np.float32)
        half = self.width // 2
        for begin in range(0, len(frames), FRAMES_AT_ONCE):
            now = frames[begin : begin + FRAMES_AT_ONCE]
            earlier = np.concatenate([before, now[:-1]])
            # uint8 all the way: the larger minus the smaller never wraps around
            difference = np.maximum(now, earlier) - np.minimum(now, earlier)
            block = out[begin : begin + len(now)]
            block[:, :half] = (grid_means(now, GRID) / 255 - COLOUR_CENTRE) / COLOUR_SCALE
            block[:, half:] = grid_means(difference, GRID) / 255 / DIFFERENCE_SCALE
            before = now[-1:]
        return out


class ColoursVisual(Visual):
    """Colours alone: each frame's features are of that frame."""

    width = GRID * GRID * 3
    frame_size = (SIDE, SIDE)

    def fingerprint(self) -> dict:
        told = PlainVisual().fingerprint()
        return {
            key: told[key] for key in ("revision", "frame_size", "frame_scaling", "grid", "colour")
        }

    def prepare(
        self,
        frames: UInt8[np.ndarray, "N 64 64 3"],
        previous: UInt8[np.ndarray, "64 64 3"] | None,
    ) -> Float[np.ndarray, "N 192"]:
        """Grid of `(mean colour - 0.5) / 0.25`, as in `PlainVisual`."""
        out = np.empty((len(frames), self.width), np.float32)
        for begin in range(0, len(frames), FRAMES_AT_ONCE):
            means = grid_means(frames[begin : begin + FRAMES_AT_ONCE], GRID)
            out[begin : begin + len(means)] = (means / 255 - COLOUR_CENTRE) / COLOUR_SCALE
        return out


class PlainAudio(Audio):
    """Log-mel frames side by side."""

    width = STACKED_FRAMES * MEL_BINS
    step_s = STACKED_FRAMES * fbank.HOP_SAMPLES / fbank.RATE_HZ  # 0.16

    def fingerprint(self) -> dict:
        return {
            "revision": 1,  # raise it when the features' values change
            "log_mel": [LOG_MEL_CENTRE, LOG_MEL_SCALE],
            "mel_bins": MEL_BINS,
            "stacked_frames": STACKED_FRAMES,
        }

    def prepare(self, waveform: Float[np.ndarray, " S"]) -> Float[np.ndarray, "M 2048"]:
        """Normalised log-mel, 16 frames of 10 ms side by side; what is left over is dropped."""
        log_mel = self.stacked(fbank.log_mel(waveform))
        return (log_mel - np.float32(LOG_MEL_CENTRE)) / np.float32(LOG_MEL_SCALE)

    def stacked(self, log_mel: Float[np.ndarray, "T 128"]) -> Float[np.ndarray, "M 2048"]:
        """Frames side by side, whole steps only."""
        steps = len(log_mel) // STACKED_FRAMES
        return log_mel[: steps * STACKED_FRAMES].reshape(steps, self.width)
