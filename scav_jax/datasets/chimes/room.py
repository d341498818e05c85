"""A room: light that is added to every pixel, and a frequency response of every sound.

Both are constant in time, and nothing of a strike depends on the room: the picture becomes
`(1 - 2 a) picture + a (1 + tint)`, where the tint is a colour in -1..1 that changes over the
picture, and the spectrum of the sound is multiplied by gains that are smooth over frequency. So
the mean of a clip's features tells the room, and what varies around the mean does not.
"""

from dataclasses import dataclass

import numpy as np

from scav_jax.datasets.chimes.instrument import random_generator
from scav_jax.datasets.chimes.picture import yuv420, yuv420_offset
from scav_jax.datasets.chimes.presets import Parameters

BANDS_HZ = np.geomspace(100.0, 8000.0, 7)


@dataclass(frozen=True)
class Room:
    """What all recordings in a room share.

    Attributes:
      contrast: of the picture, below 1.
      light: `[pixels]` what is added to the planes Y, U, V.
      gains_db: `[7]` of the response at `BANDS_HZ`, at most 0.
    """

    contrast: float
    light: np.ndarray
    gains_db: np.ndarray

    def lit(self, frames: np.ndarray) -> np.ndarray:
        """Frames `[n, pixels]` of planes Y, U, V as a camera in the room sees them."""
        return frames * np.float32(self.contrast) + self.light

    def heard(self, sound: np.ndarray, rate: int) -> np.ndarray:
        """Samples `[samples]` as a microphone in the room hears them: no delay, no tail."""
        frequencies = np.fft.rfftfreq(len(sound), 1.0 / rate)
        logarithms = np.log(np.maximum(frequencies, BANDS_HZ[0]))
        gains = 10.0 ** (np.interp(logarithms, np.log(BANDS_HZ), self.gains_db) / 20.0)
        return np.fft.irfft(np.fft.rfft(sound) * gains, len(sound)).astype(np.float32)


def make_room(id: str, parameters: Parameters, seed: int) -> Room:
    """Draws a room from its name and the seed."""
    random = random_generator(seed, id)
    width, height, amount = parameters.width, parameters.height, parameters.room_light
    tints = random.uniform(-1.0, 1.0, (2, 3))  # at both ends of the picture
    angle = random.uniform(0.0, 2.0 * np.pi)
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    across = np.clip(0.5 + 0.5 * (x * np.cos(angle) + y * np.sin(angle)), 0.0, 1.0)[..., None]
    tint = tints[0] * (1.0 - across) + tints[1] * across
    contrast = 1.0 - 2.0 * amount
    offset = yuv420_offset(width, height)  # is no light: it stays
    light = yuv420(amount * (1.0 + tint)[None])[0] + (1.0 - contrast) * offset
    gains = -random.uniform(0.0, parameters.room_response_db, len(BANDS_HZ))
    return Room(contrast, light.astype(np.float32), gains)
