"""Objectives of views that are played: what they have in common, and which features will do.

`scav_jax.views` plays parts of a clip from its stored features. After training a model is shown
whole clips at the rate that views have at normal speed.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scav_jax import views
from scav_jax.base.errors import InputError
from scav_jax.base.ranges import ABOVE_0, AT_LEAST_1, Range, check_ranges
from scav_jax.objectives.objective import Batch, Material, Objective
from scav_jax.sequences import STREAMS, AudioVisual

NAMED = 3  # clips in a message
ALLOWED = {
    "window_s": ABOVE_0,
    **dict.fromkeys(("visual_tokens", "audio_tokens"), Range(2)),
    "audio_frames": AT_LEAST_1,
    "speeds": Range(1, 16),  # the last is 2^15 times: more than any clip has steps
}


@dataclass(frozen=True)
class OfPlayed(Objective):
    """How excerpts are played; all defaults are ours.

    Attributes:
      window_s: how long an excerpt at normal speed lasts.
      visual_tokens, audio_tokens: of a view.
      audio_frames: how many frames lie side by side in a step of sound and are played one by one
        (16 for log-mel); 1 plays steps.
      speeds: how many: 1, 2, 4, ... times.
    """

    window_s: float = 0.64
    visual_tokens: int = 8
    audio_tokens: int = 4
    audio_frames: int = 16
    speeds: int = 3

    together: ClassVar[int] = 1  # excerpts that have to fit into a clip side by side

    def __post_init__(self):
        super().__post_init__()
        check_ranges("objective", self, ALLOWED)

    def tokens_of(self, stream: str) -> int:
        """Of a view."""
        return {"visual": self.visual_tokens, "audio": self.audio_tokens}[stream]

    def frames_of(self, stream: str) -> int:
        """Side by side in a stored step."""
        return {"visual": 1, "audio": self.audio_frames}[stream]

    def token_s(self, stream: str) -> float:
        """Seconds of a token at normal speed."""
        return self.window_s / self.tokens_of(stream)

    def check(self, material: Material) -> None:
        _check_playable(self, material)
        _check_times(self, material)

    def shown(self, batch: Batch) -> AudioVisual:
        """Whole clips at the rate of views at normal speed: at more they would look slow."""
        features, seconds = jax.tree.map(jnp.asarray, (batch.features, batch.seconds))
        return jax.vmap(self.whole)(features, seconds)

    def whole(self, clip: AudioVisual, seconds: Float[Array, "2"]) -> AudioVisual:
        """The same of one clip."""
        rates = {stream: (self.token_s(stream), self.frames_of(stream)) for stream in STREAMS}
        return AudioVisual(
            *(views.at_rate(getattr(clip, stream), seconds, *rates[stream]) for stream in STREAMS)
        )


# ---- what cannot be ------------------------------------------------------------------------------


def check_width(width: int, frames: int) -> None:
    """Raises `InputError` where steps of sound are not so many frames side by side."""
    if width % frames:
        raise InputError(
            f"objective.audio_frames: expected a divisor of the width of the sound's features, "
            f"{width}, got {frames}"
        )


def _check_playable(o: OfPlayed, material: Material) -> None:
    if material.align != "time":
        raise InputError(
            f"data.align: expected 'time', got {material.align!r}: the {o.name} objective plays "
            "parts of a clip, which need a clock"
        )
    for stream in STREAMS:
        frames, wanted = material.playable[stream], o.frames_of(stream)
        if isinstance(frames, str):
            raise InputError(f"{material.where}: {stream} features cannot be played: {frames}")
        if frames != wanted:
            raise InputError(
                f"{material.where}: expected {wanted} frames in a step of {stream} features "
                f"(objective.{stream}_frames), they have {frames}"
            )


def _check_times(o: OfPlayed, material: Material) -> None:
    durations = material.seconds[:, 1] - material.seconds[:, 0]
    _refuse(
        material,
        durations + views.TOLERANCE_S < o.together * o.window_s,
        f"last less than {'two excerpts' if o.together > 1 else 'an excerpt'} of {o.window_s:g} s, "
        "or their streams share less",
        "drop them or lower objective.window_s",
    )
    for column, stream in enumerate(STREAMS):
        token_s = o.token_s(stream)
        _refuse(
            material,
            material.rates[:, column] * token_s < 1 - views.SNAPPED,
            f"have fewer {stream} steps than one in {token_s:g} s, so a token would repeat one",
            f"drop them or lower objective.{stream}_tokens",
        )
    longest = o.window_s * (2.0 ** (o.speeds - 1) + o.together - 1)
    if longest > durations.max() + views.TOLERANCE_S:
        raise InputError(
            f"objective.speeds: {material.where}: expected a clip of at least {longest:g} s for "
            f"{2 ** (o.speeds - 1)} times{' beside normal speed' if o.together > 1 else ''}, the "
            f"longest has {durations.max():.3g} s; lower objective.speeds or objective.window_s"
        )


def _refuse(material: Material, bad: np.ndarray, words: str, advice: str) -> None:
    """Raises `InputError` where there are bad clips: how many, and the first of them."""
    if bad.any():
        names = ", ".join(repr(material.ids[number]) for number in np.flatnonzero(bad)[:NAMED])
        raise InputError(
            f"{material.where}: {int(bad.sum())} of {len(bad)} clips {words} ({names}"
            f"{', ...' if bad.sum() > NAMED else ''}); {advice}"
        )
