"""`clip_beats`: the paper's features, CLIP for every frame and BEATs for every 0.16 s of sound.

Workers decode and crop (`ClipBeatsPreparer`); the parent runs both models on all its devices
(`ClipBeats`). Weights are not shipped: `--clip-weights` and `--beats-weights` say where they are.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from scav_jax.errors import InputError
from scav_jax.extract.backbones import Features, Prepared
from scav_jax.extract.backbones.clip_pixels import Preprocessing, resize_crop_pil
from scav_jax.extract.fbank import RATE_HZ

REVISION = 1  # raise it when features change
MAX_SECONDS = 60.0  # BEATs attends over a whole clip at once
# A clip's frames go through CLIP in blocks of their own. 10 s at 25 or 30 frames/s fill them.
FRAMES_A_BLOCK = 50
CLIPS_A_DEVICE = 8  # encoded in one go on an accelerator, so that it never waits for the host


@dataclass(frozen=True)
class ClipBeatsPreparer:
    """The worker's half: crops as CLIP reads them and the waveform, nothing else."""

    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    frame_size: None = None
    max_seconds: float = MAX_SECONDS

    def shrink(self, frame: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "S S 3"]:
        return resize_crop_pil(frame[None], self.preprocessing)[0]

    def visual(
        self, frames: UInt8[np.ndarray, "N S S 3"], previous: np.ndarray | None
    ) -> UInt8[np.ndarray, "N S S 3"]:
        return frames

    def audio(self, waveform: Float[np.ndarray, " S"]) -> Float[np.ndarray, " S_kept"]:
        return np.asarray(waveform[: round(self.max_seconds * RATE_HZ)], np.float32)


class ClipBeats:
    """Both models, loaded (see `backbones.Backbone`)."""

    name = "clip_beats"

    def __init__(self, clip: Any, beats: Any):
        """Takes a `clip.Clip` with blocks of `FRAMES_A_BLOCK` frames, and a `beats.Beats`."""
        from jax import local_devices  # not above: workers import this module

        self._clip, self._beats = clip, beats
        self.visual_width, self.audio_width = clip.visual_width, beats.width
        self.origin = (self.name, {})
        self.preparer = ClipBeatsPreparer(clip.preprocessing)
        self._devices = devices = local_devices()
        # A CPU has nothing to wait for, and single clips show more often how far the work is.
        self.clips_at_once = 1 if devices[0].platform == "cpu" else CLIPS_A_DEVICE * len(devices)

    def fingerprint(self) -> dict:
        """Both models' weights, constants and dtype."""
        found = {
            "name": self.name,
            "revision": REVISION,
            "clip": self._clip.fingerprint("vision"),
            "beats": self._beats.fingerprint(),
            "frames": "PIL, before the crop",
            "max_seconds": MAX_SECONDS,
        }
        return json.loads(json.dumps(found))

    def encode(self, clips: Sequence[Prepared]) -> list[Features]:
        """Float32 features of each clip, `[N, Dv]` and `[M, Da]`.

        Two models, two threads: one prepares and fetches while the other one computes.
        """
        with ThreadPoolExecutor(1) as beside:
            audio = beside.submit(self._encode_audio, [clip.audio for clip in clips])
            visual = self._clip.encode_blocks([clip.visual for clip in clips])
            return list(zip(visual, audio.result(), strict=True))

    def _encode_audio(self, waveforms: list[np.ndarray]) -> list[np.ndarray]:
        """One sound a device at a time, so that what it is computed beside changes nothing."""
        features, count = [], len(self._devices)
        for begin in range(0, len(waveforms), count):
            features += self._beats.encode(waveforms[begin : begin + count])
        return features


def load(
    clip_weights: str | Path | None = None,
    beats_weights: str | Path | None = None,
    dtype: str = "float32",
    output: str = "pooled",
) -> ClipBeats:
    """Both models from their files.

    Args:
      clip_weights: a directory with config.json and safetensors, or a hub id.
      beats_weights: a released `.pt` file, or the `.safetensors` that `beats.convert` made of it.
      dtype: of the matrix products, "float32" or "bfloat16".
      output: "pooled" (the paper's), or "projected" to compare frames with texts.

    Raises:
      InputError: one is not given, or its files are not what they should be.
    """
    for option, value, example in (
        ("--clip-weights", clip_weights, "openai/clip-vit-base-patch32 or a folder"),
        ("--beats-weights", beats_weights, "BEATs_iter3_plus_AS2M.pt"),
    ):
        if value is None:
            raise InputError(f"{option}: expected the weights for clip_beats ({example}), got none")
    from scav_jax.extract.backbones import beats, clip

    if dtype not in clip.DTYPES:
        raise InputError(f"--dtype: expected one of {', '.join(clip.DTYPES)}, got {dtype!r}")
    if output not in clip.OUTPUTS:
        raise InputError(
            f"--clip-output: expected one of {', '.join(clip.OUTPUTS)}, got {output!r}"
        )
    vision = clip.load(clip_weights, dtype, output, frames_per_device=FRAMES_A_BLOCK, resize="pil")
    vision.crop(np.zeros((1, 8, 8, 3), np.uint8))  # checks Pillow, which workers resize with
    return ClipBeats(vision, beats.load(beats_weights, dtype))
