"""`beats`: BEATs for every 0.16 s of sound, as in the paper. Its weights are not shipped."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from scav_jax.base.errors import check_one_of
from scav_jax.extract.backbones.sides import Audio, clips_that_fill_devices
from scav_jax.extract.fbank import RATE_HZ, check_waveform

MAX_SECONDS = 60.0  # BEATs attends over a whole clip at once


@dataclass(frozen=True)
class BeatsPreparer(Audio):
    """The worker's half: the waveform, nothing else."""

    max_seconds: float = MAX_SECONDS

    def prepare(self, waveform: Float[np.ndarray, " S"]) -> Float[np.ndarray, " S_kept"]:
        check_waveform(waveform)
        return np.asarray(waveform[: round(self.max_seconds * RATE_HZ)], np.float32)


class BeatsAudio(Audio):
    """BEATs' tokens, eight side by side.

    Args:
      weights: a released `.pt` file, what `scav extract backbones` made of it, or a loaded
        `beats.Beats`.
      dtype: of the matrix products, "float32" or "bfloat16".
    """

    max_seconds = MAX_SECONDS
    step_s = 0.16  # a patch of 16 log-mel frames of 10 ms

    def __init__(self, weights: Any, dtype: str = "float32"):
        from scav_jax.extract.backbones import beats  # not above: workers import this module

        check_one_of("beats: dtype", dtype, beats.DTYPES)
        loaded = isinstance(weights, beats.Beats)
        self.model = weights if loaded else beats.load(weights, dtype)
        self.width = self.model.width
        self.clips_at_once = clips_that_fill_devices()

    @property
    def preparer(self) -> BeatsPreparer:
        return BeatsPreparer()

    def fingerprint(self) -> dict:
        return self.model.fingerprint() | {"max_seconds": MAX_SECONDS}

    def encode(self, clips: Sequence[np.ndarray]) -> list[Float[np.ndarray, "_M D"]]:
        return self.model.encode(clips, alone=True)
