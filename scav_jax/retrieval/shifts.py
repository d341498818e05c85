"""The distance of a picture and a sound for every shift of the sound, on features cut anew.

A model compares clips, so each shift makes clips: the sound's window, moved by the shift, and the
part of the picture that lies under it then, both cut to the time that they share. The picture is
read at fractions of a step, so shifts may be finer than either stream's steps. Cutting latents
instead would compare what the towers saw of steps that no longer belong to the clip.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num, PyTree

from scav_jax.base.errors import InputError
from scav_jax.base.progress import progress_bar
from scav_jax.encoders import Towers
from scav_jax.features.batches import Padding, stack
from scav_jax.features.clip import Clip, all_finite, shared_span, trim
from scav_jax.objectives import Objective
from scav_jax.retrieval.embed import encode, filled, padded_steps
from scav_jax.retrieve import own_distances
from scav_jax.sequences import STREAMS, Batch
from scav_jax.training.runs import Run

AT_ONCE = 64  # clips that are encoded together
MANY = 2000  # shifts, from which on a bar shows them
LEAST_S = 1.0  # shared by both at least
LEAST_SHARE = 0.5  # of the shorter of both, shared at least


class Track(NamedTuple):
    """Features of one stream of a recording, or of a window of it.

    Attributes:
      values: `[T, D]`, as they are stored; rows of NaN where a stretch cannot be used.
      span: (begin, end), the seconds of the recording that the T steps cover evenly.
    """

    values: Num[np.ndarray, "T D"]
    span: tuple[float, float]


class Shifted(NamedTuple):
    """W windows of a sound under a picture, at S shifts.

    Attributes:
      distances: `[W, S]`, the model's; NaN where too little is shared, or nothing to compare.
      cosines: `[W, S]`, of the embeddings.
      seconds: `[W, S]`, shared by picture and window; 0 where the distance is NaN.
    """

    distances: Float[np.ndarray, "W S"]
    cosines: Float[np.ndarray, "W S"]
    seconds: Float[np.ndarray, "W S"]


def shifted(
    run: Run, visual: Track, audio: Sequence[Track], shifts: Float[np.ndarray, " S"]
) -> Shifted:
    """The distance for every window of a sound and every shift.

    Args:
      run: the model.
      visual: the picture.
      audio: windows of the sound, each of at most the clip length that the model knows.
      shifts: in seconds; with d, second t of the sound lies on second t + d of the picture.
    """
    shape = (len(audio), len(shifts))
    distances, cosines, seconds = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape)
    places, clips = [], []
    for window, track in enumerate(audio):
        for shift in np.flatnonzero(_may_share_enough(visual, track, shifts)):
            cut = cut_at(visual, track, float(shifts[shift]))
            if cut is not None:
                places.append((window, shift))
                clips.append(cut.clip)
                seconds[window, shift] = cut.end - cut.begin
    if clips:
        at = tuple(np.transpose(places))
        distances[at], cosines[at] = _compared(run, clips)
    return Shifted(distances, cosines, seconds)


class Cut(NamedTuple):
    """The clip that a shift makes, and what both streams of it share, in the picture's seconds."""

    clip: Clip
    begin: float
    end: float


def cut_at(visual: Track, audio: Track, shift: float) -> Cut | None:
    """The clip that a shift makes.

    None where picture and sound share too little, or features are missing.
    """
    moved = (audio.span[0] + shift, audio.span[1] + shift)
    begin, end = shared_span(visual.span, moved)
    shorter = min(visual.span[1] - visual.span[0], moved[1] - moved[0])
    if end - begin < max(LEAST_S, LEAST_SHARE * shorter) - 1e-6:
        return None
    clip = Clip("shifted", visual.values, visual.span, audio.values, moved, "", 0.0, 0.0)
    picture, _, sound, _ = trim(clip)
    return Cut(clip, begin, end) if all_finite(picture) and all_finite(sound) else None


def _may_share_enough(
    visual: Track, audio: Track, shifts: Float[np.ndarray, " S"]
) -> Bool[np.ndarray, " S"]:
    """False for shifts with which no cut is made, most of those of a long sound's windows."""
    begin = np.maximum(visual.span[0], audio.span[0] + shifts)
    return np.minimum(visual.span[1], audio.span[1] + shifts) - begin >= LEAST_S - 1e-3


def _compared(run: Run, clips: list[Clip]) -> Float[np.ndarray, "2 K"]:
    """Distances and cosines of clips, each of its own picture and sound."""
    trimmed = [trim(clip) for clip in clips]
    padding = Padding(*(padded_steps(max(len(one[at]) for one in trimmed)) for at in (0, 2)))
    widths = clips[0].visual.shape[1], clips[0].audio.shape[1]
    align, (name, options) = run.config["data"]["align"], run.objective.ranks_by()
    if align == "index":  # whole onto whole, of what is shared
        clips = [
            replace(clip, visual=visual, audio=audio)
            for clip, (visual, _, audio, _) in zip(clips, trimmed, strict=True)
        ]
    distance = name, tuple(sorted(options.items()))
    found = []
    with progress_bar("shifts", len(clips), "shift", shown=len(clips) > MANY) as bar:
        for first in range(0, len(clips), AT_ONCE):
            some = clips[first : first + AT_ONCE]
            batch = stack(some, np.arange(len(some)), widths, padding, align)
            full = jax.tree.map(partial(filled, size=AT_ONCE), batch)
            compared = _compare(run.encoders, run.objective, distance, run.params, full)
            found.append(np.stack(jax.device_get(compared), axis=1)[: len(some)])
            bar.update(len(some))
    both = np.concatenate(found).astype(np.float64)
    if not np.isfinite(both).all():
        raise InputError("expected finite distances, the model holds NaN: look at its training log")
    return both.T


@partial(jax.jit, static_argnums=(0, 1, 2))
def _compare(
    encoders: Towers, objective: Objective, distance: tuple, params: PyTree, batch: Batch
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    name, options = distance
    found = encode(encoders, objective, STREAMS, params, batch)
    (visual, seen), (audio, heard) = (found[stream] for stream in STREAMS)
    distances = own_distances(visual, audio, name, dict(options))
    norms = jnp.linalg.norm(seen, axis=-1) * jnp.linalg.norm(heard, axis=-1)
    return distances, jnp.sum(seen * heard, axis=-1) / norms
