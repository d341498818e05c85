"""Frozen models that turn frames and sound into features, in two halves.

The worker's half decodes and shrinks: NumPy and PIL only, many processes. The parent's half encodes
what workers prepared: one process that owns the accelerators. A backbone without weights needs no
second half; its workers make the features.

`BACKBONES` names where each one lives, so that a model's libraries are imported only when it is
used.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from scav_jax.errors import InputError, did_you_mean

BACKBONES = {
    "plain": "scav_jax.extract.backbones.plain:Plain",
    "clip_beats": "scav_jax.extract.backbones.clip_beats:load",
}


@runtime_checkable
class Preparer(Protocol):
    """What a decode worker does. It is sent to worker processes: small, and no JAX behind it.

    Attributes:
      frame_size: (width, height) in pixels that frames are scaled to while they are decoded, or
        None for the video's own size.
      max_seconds: the longest clip.
    """

    frame_size: tuple[int, int] | None
    max_seconds: float

    def shrink(self, frame: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """What is kept of a frame as soon as it is decoded: a clip of whole frames is gigabytes."""
        ...

    def visual(
        self, frames: UInt8[np.ndarray, "N h w 3"], previous: UInt8[np.ndarray, "h w 3"] | None
    ) -> np.ndarray:
        """One row for every frame: features `[N, Dv]`, or what `encode` takes.

        `frames` went through `shrink`, and so did `previous`, the frame before the first one.
        """
        ...

    def audio(self, waveform: Float[np.ndarray, " S"]) -> np.ndarray:
        """Of mono sound at 16 kHz in [-1, 1]: features `[M, Da]`, or what `encode` takes.

        A step is 0.16 s, whole steps only: `features` on disk say that step m covers
        `0.16 m .. 0.16 (m + 1)` seconds.
        """
        ...


@dataclass(frozen=True)
class Prepared:
    """One clip as a worker leaves it: what `Preparer.visual` and `Preparer.audio` gave."""

    visual: np.ndarray
    audio: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.visual.nbytes + self.audio.nbytes


Features = tuple[Float[np.ndarray, "_N Dv"], Float[np.ndarray, "_M Da"]]


@runtime_checkable
class Backbone(Protocol):
    """A pair of frozen models, one for frames and one for sound.

    Attributes:
      name: its key in `BACKBONES`.
      visual_width, audio_width: Dv and Da, the features' widths.
      preparer: the worker's half.
      encode: the parent's half, float32 features of any number of clips, in their order; or None
        where the worker's half makes them. A clip's features are the same bytes whatever it is
        encoded together with. An exception ends the run.
      clips_at_once: how many clips fill the devices.
      origin: the name and options of `load`, to load it elsewhere.
    """

    name: str
    visual_width: int
    audio_width: int
    preparer: Preparer
    encode: Callable[[Sequence[Prepared]], list[Features]] | None
    clips_at_once: int
    origin: tuple[str, dict]

    def fingerprint(self) -> dict:
        """Everything that the features depend on: weights, constants; JSON types only."""
        ...


def load(name: str, **options) -> Backbone:
    """The backbone of that name, ready for use; `options` are its own."""
    if name not in BACKBONES:
        raise InputError(
            f"backbone: expected one of {sorted(BACKBONES)}, got {name!r}."
            f"{did_you_mean(name, list(BACKBONES))}"
        )
    module, _, attribute = BACKBONES[name].partition(":")
    backbone = getattr(importlib.import_module(module), attribute)(**options)
    backbone.origin = (name, options)
    return backbone
