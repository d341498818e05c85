"""What a backbone of one's own is written against: one side of it, for frames or for sound.

A side has two halves. The worker's half prepares: NumPy and PIL only, many processes. The parent's
half encodes what workers prepared: one process that owns the accelerators. A side without weights
needs no second half; its workers make the features.

A side is one class. Its `__init__` takes its options as keywords (JSON types, each with a default)
and, where it has weights, `weights`: a path. It is made again from its name, these options and the
weights, and must then have the same fingerprint:

    class Dino(Visual):
        width = 384

        def __init__(self, weights, side=224): ...
        def fingerprint(self): return {"weights_sha256": ...}
        def shrink(self, frame): ...               # in workers
        def encode(self, clips): ...               # in the parent

    scav extract --visual my_package.dino:Dino --audio plain \\
        --weights my_package.dino:Dino=dino.safetensors ...
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from scav_jax.base.errors import InputError
from scav_jax.features.clip import MAX_CLIP_S

CLIPS_A_DEVICE = 8  # encoded in one go on an accelerator, so that it never waits for the host


def clips_that_fill_devices() -> int:
    """For `Side.clips_at_once` of an encoder that computes on all devices of this process."""
    from jax import local_devices  # not above: workers import this module

    devices = local_devices()
    # A CPU has nothing to wait for, and single clips show more often how far the work is.
    return 1 if devices[0].platform == "cpu" else CLIPS_A_DEVICE * len(devices)


class Side:
    """What both kinds have in common.

    Attributes:
      width: of the features: numbers a step.
      max_seconds: the longest clip.
      encode: the parent's half: what workers prepared of any number of clips -> float32 features
        `[steps, width]` of each, in their order; None where workers make the features. A clip's
        features are the same bytes whatever it is encoded together with. An exception ends the run.
      clips_at_once: how many clips fill the devices.
      without_effect: options that change no number of a feature, only how it is made; fingerprints
        are without them.
      steps: how many steps a clip has, where that is the same for all; else None.
      dtype: what features are stored in: float16, or uint8 for pixels as they are.
    """

    width: int
    steps: int | None = None
    dtype: type = np.float16
    max_seconds: float = MAX_CLIP_S
    encode: Callable[[Sequence[np.ndarray]], list[np.ndarray]] | None = None
    clips_at_once: int = 1
    without_effect: frozenset[str] = frozenset()

    @property
    def preparer(self) -> "Side":
        """The worker's half, which is sent to worker processes: small, and no JAX behind it."""
        return self

    def fingerprint(self) -> dict:
        """All that features depend on besides the options: weights, constants; JSON types only.

        And what they are, in the words of `features.sides`.
        """
        raise InputError(
            f"{type(self).__name__}: expected a method fingerprint() that returns all that "
            'features depend on, as in {"revision": 1}, got none'
        )


class Visual(Side):
    """Frames -> features, a step for each frame at the video's own rate.

    Attributes:
      frame_size: (width, height) in pixels that frames are scaled to while they are decoded, or
        None for the video's own size.
    """

    frame_size: tuple[int, int] | None = None

    def shrink(self, frame: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """What is kept of a frame as soon as it is decoded: a clip of whole frames is gigabytes."""
        return frame

    def alike(self, frames: list[np.ndarray]) -> list[np.ndarray]:
        """Of one size, what `shrink` left of a clip in several; or as it is: it is not used then.

        A picture may change its size within a file.
        """
        return frames

    def prepare(
        self, frames: UInt8[np.ndarray, "N h w 3"], previous: UInt8[np.ndarray, "h w 3"] | None
    ) -> np.ndarray:
        """One row for every frame (or `steps` rows): features `[N, width]`, or what `encode` takes.

        `frames` went through `shrink`, and so did `previous`, the frame before the first one.
        """
        return frames


class Audio(Side):
    """Sound -> features.

    Attributes:
      step_s: seconds a step; step m covers `m step_s .. (m + 1) step_s`, whole steps only.
    """

    step_s: float

    def prepare(self, waveform: Float[np.ndarray, " S"]) -> np.ndarray:
        """Of mono sound at 16 kHz in [-1, 1]: features `[M, width]`, or what `encode` takes."""
        return waveform


class NoVisual(Visual):
    """No features of frames: a data set of sound alone."""

    width = 0

    def fingerprint(self) -> dict:
        return {}

    def prepare(self, frames: np.ndarray, previous: np.ndarray | None) -> np.ndarray:
        return np.zeros((0, 0), np.float32)


class NoAudio(Audio):
    """No features of sound: a data set of pictures alone."""

    width, step_s = 0, 0.0

    def fingerprint(self) -> dict:
        return {}

    def prepare(self, waveform: np.ndarray) -> np.ndarray:
        return np.zeros((0, 0), np.float32)
