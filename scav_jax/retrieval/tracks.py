"""Files of any length -> tracks: the whole picture, and windows of the sound, as features.

The sound is cut into windows of the clip length that the model knows, each half over the one
before, so that a backbone that hears a clip whole hears what it was trained on. Pictures have a
step a frame; they are decoded piece by piece and joined on one grid.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from scav_jax.base.errors import InputError
from scav_jax.extract import jobs
from scav_jax.extract.backbones import KINDS, Backbone, Preparer
from scav_jax.extract.containers.opening import Unusable
from scav_jax.extract.jobs import Job, Outcome
from scav_jax.extract.manifest import ClipRequest
from scav_jax.features.clip import Clip
from scav_jax.retrieval.files import TIMEOUT_S, clip_of, outcomes_of, seconds_of, workers_for
from scav_jax.retrieval.shifts import Track

PIECE_S = 20.0  # of a picture: what is held as frames


def tracks_of(
    backbone: Backbone,
    wanted: Sequence[tuple[Path, str]],
    clip_seconds: float,
    *,
    workers: int | None = 0,
) -> Iterator[list[Track] | str]:
    """The tracks of files, in their order.

    Args:
      backbone: of the model.
      wanted: (file, "visual" or "audio") of each.
      clip_seconds: of the windows of a sound.
      workers: processes that decode; 0 decodes here, None is `files.workers_for`'s.

    Yields:
      For each, the one track of a picture, or the windows of a sound that are not silent; or, in
      words, why there are none.

    Raises:
      InputError: the model takes a fixed number of pictures a clip: there are no steps to shift.
    """
    if backbone.visual.steps is not None:
        raise InputError(
            "expected a model of sequences of frames, this one takes "
            f"{backbone.visual.steps} pictures a clip: nothing of it can be shifted in time"
        )
    todo: list[Job] = []
    for number, (file, stream) in enumerate(wanted):
        seconds = seconds_of(file, (stream,))
        cuts = _pieces(seconds) if stream == "visual" else windows(seconds, clip_seconds)
        place = str(file.absolute())
        requests = [ClipRequest(place, *cut, id=str(number), label=stream) for cut in cuts]
        for job in jobs.make_jobs(requests):
            todo.append(replace(job, number=len(todo)))
    work = functools.partial(_prepare, preparer=backbone.preparer)
    workers = workers_for({file for file, _ in wanted}, workers)
    outcomes = outcomes_of(todo, work, workers, TIMEOUT_S)
    for _, group in itertools.groupby(outcomes, key=lambda outcome: outcome.request.id):
        yield _tracks(backbone, group)


def windows(seconds: float | None, clip_seconds: float) -> list[tuple[float, float | None]]:
    """(begin, end) of windows of a sound, from its first to its last second.

    >>> windows(9.0, 4.0)
    [(0.0, 4.0), (1.67, 5.67), (3.33, 7.33), (5.0, None)]
    """
    if seconds is None or seconds <= 1.05 * clip_seconds:
        return [(0.0, None)]
    count = math.ceil((seconds - clip_seconds) / (clip_seconds / 2)) + 1
    begins = [round(float(begin), 2) for begin in np.linspace(0.0, seconds - clip_seconds, count)]
    return [(begin, begin + clip_seconds) for begin in begins[:-1]] + [(begins[-1], None)]


def _pieces(seconds: float | None) -> list[tuple[float, float | None]]:
    """(begin, end) of the pieces of a picture, of one length; the last goes to its end."""
    count = max(round((seconds or 0.0) / PIECE_S), 1)
    edges = [number * (seconds or 0.0) / count for number in range(count)]
    return list(itertools.zip_longest(edges, edges[1:]))


def _prepare(job: Job, *, preparer: Preparer) -> Iterator[Outcome]:
    """Decodes one stream, that which the requests are labelled with."""
    kinds = (KINDS[job.clips[0][1].label],)
    return jobs.prepare(job, videos=Path("/"), preparer=preparer, kinds=kinds)


def _tracks(backbone: Backbone, outcomes: Iterable[Outcome]) -> list[Track] | str:
    clips, refused = [], None
    for outcome in outcomes:
        stream = outcome.request.label
        try:
            clips.append(clip_of(backbone, outcome, (stream,), Path("/")))
        except Unusable as unusable:
            refused = refused or unusable.reason
    if not clips:
        return refused
    tracks = [_track(clip, stream) for clip in clips]
    return [joined_pieces(tracks)] if stream == "visual" else tracks


def _track(clip: Clip, stream: str) -> Track:
    begin, end = getattr(clip, f"{stream}_span")
    return Track(getattr(clip, stream), (clip.start + begin, clip.start + end))


def joined_pieces(pieces: Sequence[Track]) -> Track:
    """Pieces of a picture, in order, on the grid of the first; NaN where none lies."""
    if len(pieces) == 1:
        return pieces[0]
    values = np.concatenate([piece.values for piece in pieces])
    steps = [(piece.span[1] - piece.span[0]) / len(piece.values) for piece in pieces]
    at = np.concatenate(
        [
            p.span[0] + (np.arange(len(p.values)) + 0.5) * s
            for p, s in zip(pieces, steps, strict=True)
        ]
    )
    begin, step_s = pieces[0].span[0], steps[0]
    count = round((pieces[-1].span[1] - begin) / step_s)
    grid = begin + (np.arange(count) + 0.5) * step_s
    right = np.clip(np.searchsorted(at, grid), 1, len(at) - 1)
    nearest = np.where(grid - at[right - 1] <= at[right] - grid, right - 1, right)
    there = np.abs(at[nearest] - grid) <= 0.75 * step_s
    return Track(
        np.where(there[:, None], values[nearest], np.asarray(np.nan, values.dtype)),
        (begin, begin + count * step_s),
    )
