"""How well a picture and a sound match at each moment: the terms of their distance, over time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from scav_jax.distances import alignment, find
from scav_jax.distances.static import dynamic_part
from scav_jax.extract.manifest import ClipRequest
from scav_jax.retrieval.model import Model
from scav_jax.sequences import Sequences, resample_like

EUCLIDEAN = "euclidean"


@dataclass(frozen=True)
class Curve:
    """A distance, step by step; smaller is closer.

    Attributes:
      times: `[T]` seconds from the start of the clip, the middles of the steps.
      values: `[T]`. For the Euclidean distance the squared difference of each step, mean over
        channels, so that their mean is the distance. For the others the same cost of the steps
        that are compared at that time, weighted as the distance does.
    """

    times: Float[np.ndarray, " T"]
    values: Float[np.ndarray, " T"]


@runtime_checkable
class Placed(Protocol):
    """A clip of a file, as an index gives it; `source` with its folder."""

    source: str
    start: float
    end: float


def latents_from_files(
    model: Model, clips: Sequence[Placed], stream: str, workers: int = 0
) -> list[Sequences | None]:
    """The latents `[T, C]` of clips, embedded anew from their files; None where that fails.

    Args:
      model: the model that they were found with.
      clips: as an index gives them.
      stream: "visual" or "audio".
      workers: processes that decode; 0 decodes here.
    """
    requests = [
        ClipRequest(str(Path(clip.source).absolute()), float(clip.start), float(clip.end), str(n))
        for n, clip in enumerate(clips)
    ]
    found: list[Sequences | None] = [None] * len(clips)
    for part in model.embed_requests(requests, Path("/"), streams=(stream,), workers=workers):
        for number, name in enumerate(part.ids):
            found[int(name)] = one(getattr(part, stream), number)
    return found


def one(stream: Sequences, number: int) -> Sequences:
    """One sequence of many, on the device."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[number]), stream)


def match_curve(
    name: str,
    options: dict,
    visual: Sequences,
    audio: Sequences,
    *,
    visual_seconds: float,
    audio_step_s: float,
) -> Curve:
    """The terms of a distance between one picture `[N, C]` and one sound `[M, C]`.

    Of what changes over the clips, where a static part lies beside it.

    Args:
      name, options: the distance that ranked.
      visual, audio: latents of one clip each.
      visual_seconds: how long the picture's clip is, for the times of its steps.
      audio_step_s: seconds a step of sound.

    Raises:
      InputError: an unknown distance or option.
    """
    find(name, options)
    name, options, (visual, audio) = dynamic_part(name, options, (visual, audio))
    if name == EUCLIDEAN:
        to_audio = options.get("resample", "visual_to_audio") == "visual_to_audio"
        moved, target = (visual, audio) if to_audio else (audio, visual)
        moved = jax.jit(resample_like)(moved, target)
        values = np.mean(np.square(np.asarray(moved.values) - np.asarray(target.values)), axis=-1)
        steps = int(target.lengths)
        times = _times(steps, audio_step_s if to_audio else visual_seconds / steps)
        return Curve(times, np.asarray(values)[:steps].astype(np.float64))
    n, m = int(visual.lengths), int(audio.lengths)
    weights = np.asarray(alignment(name, visual, audio, **options), np.float64)[:n, :m]
    squares = [np.asarray(stream.values, np.float64) for stream in (visual, audio)]
    costs = np.mean((squares[0][:n, None] - squares[1][None, :m]) ** 2, axis=-1)
    weights = np.maximum(weights, 0)
    total = weights.sum(axis=0)
    values = np.divide((weights * costs).sum(axis=0), total, out=np.zeros(m), where=total > 0)
    return Curve(_times(m, audio_step_s), values)


def _times(steps: int, step_s: float) -> Float[np.ndarray, " T"]:
    return (np.arange(steps) + 0.5) * step_s
