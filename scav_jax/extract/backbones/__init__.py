"""Frozen models that turn frames and sound into features, behind one small interface.

A backbone is a class with the attributes and methods of `Backbone`; `BACKBONES` names where each
one lives, so that a model's libraries are imported only when it is used. Every worker process
loads its own.
"""

import importlib
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from scav_jax.errors import InputError, did_you_mean

BACKBONES = {"plain": "scav_jax.extract.backbones.plain:Plain"}


@runtime_checkable
class Backbone(Protocol):
    """What extraction needs of a pair of frozen models, one for frames and one for sound.

    Attributes:
      name: its key in `BACKBONES`.
      visual_width, audio_width: Dv and Da, the features' widths.
      frame_size: (width, height) in pixels that frames are scaled to while they are decoded, or
        None for the video's own size.
    """

    name: str
    visual_width: int
    audio_width: int
    frame_size: tuple[int, int] | None

    def fingerprint(self) -> dict:
        """Everything that the features depend on: weights, constants; JSON types only."""
        ...

    def visual(
        self,
        frames: UInt8[np.ndarray, "N height width 3"],
        previous: UInt8[np.ndarray, "height width 3"] | None,
    ) -> Float[np.ndarray, "N Dv"]:
        """One float32 step for every RGB frame; `previous` is the frame before the first one."""
        ...

    def audio(self, waveform: Float[np.ndarray, " S"]) -> Float[np.ndarray, "M Da"]:
        """Float32 steps of 0.16 s of mono sound at 16 kHz in [-1, 1]; whole steps only.

        `features` on disk say that step m covers `0.16 m .. 0.16 (m + 1)` seconds.
        """
        ...


def load(name: str) -> Backbone:
    """The backbone of that name, ready for use."""
    if name not in BACKBONES:
        raise InputError(
            f"backbone: expected one of {sorted(BACKBONES)}, got {name!r}."
            f"{did_you_mean(name, list(BACKBONES))}"
        )
    module, _, attribute = BACKBONES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)()
