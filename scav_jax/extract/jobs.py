"""A job is some clips of one file, which a worker process decodes one after the other."""

import contextlib
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from scav_jax.base.errors import InputError, in_their_line
from scav_jax.extract import pool
from scav_jax.extract.backbones import Features, Prepared, Preparer
from scav_jax.extract.backbones.checks import a_picture, an_array, check_rows
from scav_jax.extract.backbones.sides import Visual
from scav_jax.extract.containers.opening import Unusable
from scav_jax.extract.decoding import media
from scav_jax.extract.decoding.usable import check_usable
from scav_jax.extract.fbank import RATE_HZ, check_waveform
from scav_jax.extract.manifest import ClipRequest
from scav_jax.features.clip import Clip, as_stored, check_clip, check_scale, streams_of

CLIPS_A_JOB = 32  # what a worker does at a time, and what a kill loses at most for each worker
ATTEMPTS = 2
SHARE_OF_SOUND, EDGE_STEPS = 0.75, 4  # of the sound, less so many steps: the least that steps last


@dataclass(frozen=True)
class Job:
    """Clips of one file, in order of their starts; each with its place in the list of clips."""

    number: int
    clips: tuple[tuple[int, ClipRequest], ...]
    attempt: int = 1
    lost: str = ""  # why a worker that was at this job died or was ended, more than once
    lost_at: int = CLIPS_A_JOB  # the number of the clip that it was at


def make_jobs(wanted: list[ClipRequest]) -> list[Job]:
    """Each file's clips, in order of their starts, at most `CLIPS_A_JOB` together."""
    by_file: dict[str, list[tuple[int, ClipRequest]]] = {}
    for place, request in enumerate(wanted):
        by_file.setdefault(request.file, []).append((place, request))
    jobs: list[Job] = []
    for clips in by_file.values():
        clips.sort(key=lambda item: (item[1].start, item[0]))
        for begin in range(0, len(clips), CLIPS_A_JOB):
            jobs.append(Job(len(jobs), tuple(clips[begin : begin + CLIPS_A_JOB])))
    return jobs


def run(
    work: Callable[[Job], Iterator], waiting: deque[Job], *, workers: int, timeout_s: float
) -> Iterator[tuple[Job, pool.Step | pool.Done | pool.Lost]]:
    """What happens to jobs in worker processes (`pool.run`); those that are lost come again.

    The caller forgets what a lost job gave: it is done again from its start.
    """
    with contextlib.closing(
        pool.run(work, waiting, workers=workers, timeout_s=timeout_s)
    ) as events:
        for job, event in events:
            yield job, event
            if isinstance(event, pool.Lost):
                waiting.appendleft(again(job, event))


def again(job: Job, lost: pool.Lost) -> Job:
    """The job that lost its worker, to be tried again: at last without the clip that did it.

    Decoding has one thread from the start, so there is nothing slower and safer to fall back to.
    """
    if job.attempt < ATTEMPTS:
        return replace(job, attempt=job.attempt + 1)
    return replace(job, lost_at=min(lost.steps, job.lost_at), lost=lost.reason)


@dataclass(frozen=True)
class Outcome:
    """What became of one clip: prepared, or rejected.

    Attributes:
      place: in the list of clips.
      request: what was asked for.
      prepared: for the backbone's `encode`; None if rejected.
      visual_span: the seconds from the clip's start that the frames cover.
      end: where the clip ends in the file, in seconds.
      audio_step_s: seconds a step of sound.
      sound_s: how long the sound is that the backbone was given.
      rejection: its row of rejected.csv, or None.
    """

    place: int
    request: ClipRequest
    prepared: Prepared | None = None
    visual_span: tuple[float, float] = (0.0, 0.0)
    end: float = 0.0
    audio_step_s: float = 0.0
    sound_s: float = np.nan
    rejection: dict | None = None

    @property
    def seconds(self) -> float:
        """Of video."""
        return self.end - self.request.start if self.rejection is None else 0.0

    def clip(self, features: Features) -> Clip:
        """The clip with its features as stored; `Unusable` where float16 cannot hold them.

        Raises `InputError` where steps of sound cannot last as long as the backbone says.
        """
        lasts = len(features[1]) * self.audio_step_s
        least = SHARE_OF_SOUND * self.sound_s - EDGE_STEPS * self.audio_step_s
        if self.audio_step_s and (lasts > self.sound_s + self.audio_step_s or lasts < least):
            raise InputError(
                f"clip {self.request.id!r}: expected steps of {self.audio_step_s:g} s, as the "
                f"audio side's `step_s` says, for {self.sound_s:.2f} s of sound, got "
                f"{len(features[1])} of them, which last {lasts:.2f} s"
            )
        try:
            return self._clip(*features)
        except InputError as error:
            raise Unusable("features", f"unusable features: {error}") from None

    def _clip(self, visual: np.ndarray, audio: np.ndarray) -> Clip:
        request = self.request
        check_scale(visual, f"clip {request.id!r}: visual")
        check_scale(audio, f"clip {request.id!r}: audio")
        with np.errstate(over="ignore"):  # what float16 cannot hold is refused below
            visual, audio = as_stored(visual), as_stored(audio)
        clip = Clip(
            id=request.id,
            visual=visual,
            visual_span=self.visual_span,
            audio=audio,
            audio_span=(0.0, len(audio) * self.audio_step_s),
            source=request.file,
            start=request.start,
            end=self.end,
            label=request.label,
        )
        check_clip(clip, streams_of(visual.shape[1], audio.shape[1]))
        return clip


class JobResult:
    """What is known of a job's clips so far; both dictionaries by place.

    Attributes:
      clips: with their features.
      rejected: rows of rejected.csv.
      seconds: of video in `clips`.
    """

    def __init__(self):
        self.clips: dict[int, Clip] = {}
        self.rejected: dict[int, dict] = {}
        self.seconds = 0.0

    def add(self, outcome: Outcome, features: Features | None) -> tuple[float, list[dict]]:
        """Takes the encoder's features, None for a rejected clip.

        Returns:
          The seconds of video that it adds, and its row of rejected.csv if it has one.
        """
        rejection = outcome.rejection
        if features is not None:
            try:
                self.clips[outcome.place] = outcome.clip(features)
                self.seconds += outcome.seconds
                return outcome.seconds, []
            except Unusable as unusable:
                rejection = outcome.request.rejection(unusable.stage, unusable.reason)
        self.rejected[outcome.place] = rejection
        return 0.0, [rejection]

    def __len__(self) -> int:
        return len(self.clips) + len(self.rejected)


# In worker processes -----------------------------------------------------------------------------


def prepare(
    job: Job, *, videos: Path, preparer: Preparer, kinds: Collection[str] | None = None
) -> Iterator[Outcome]:
    """Decodes a job's clips, an outcome for each; the parent encodes them.

    Where fewer `kinds` are decoded than the backbone takes, the other one is a black frame or
    silence of the same length.
    """
    kinds = preparer.kinds if kinds is None else kinds
    with contextlib.ExitStack() as stack:
        reader = None
        for number, (place, request) in enumerate(job.clips):
            try:
                _refuse_lost(job, number)
                reader = reader or stack.enter_context(
                    media.Reader(
                        videos / request.file,
                        preparer.visual.frame_size,
                        partial(_shrunk, preparer.visual),
                        preparer.max_seconds,
                        kinds,
                        preparer.visual.alike,
                    )
                )
                outcome = _prepare_clip(reader, place, request, preparer)
            except Unusable as unusable:
                stage, reason = unusable.stage, unusable.reason
                if reader is None and stage in ("list", "open"):  # the whole file
                    for later, other in job.clips[number:]:
                        rejection = other.rejection(stage, reason)
                        yield Outcome(later, other, rejection=rejection)
                    return
                outcome = Outcome(place, request, rejection=request.rejection(stage, reason))
            yield outcome
            del outcome  # tens of megabytes, while the next one is decoded


def _prepare_clip(
    reader: media.Reader, place: int, request: ClipRequest, preparer: Preparer
) -> Outcome:
    decoded = reader.cut(request.start, request.end)
    check_usable(decoded)
    frames, waveform = decoded.frames, decoded.waveform
    if frames is None:
        width, height = preparer.visual.frame_size or (64, 64)
        frames = preparer.visual.shrink(np.zeros((height, width, 3), np.uint8))[None]
    if waveform is None:
        waveform = np.zeros(round(decoded.frames_span[1] * RATE_HZ), np.float32)
    try:
        check_waveform(waveform, "sound")
    except InputError as error:
        raise Unusable("decode", str(error)) from None
    prepared = Prepared(
        an_array(preparer.visual, "prepare", preparer.visual.prepare(frames, decoded.previous)),
        an_array(preparer.audio, "prepare", preparer.audio.prepare(waveform)),
    )
    check_rows(preparer.visual, prepared.visual, len(frames))
    span = decoded.frames_span if len(prepared.visual) else (0.0, 0.0)
    sound_s = len(waveform) / RATE_HZ
    return Outcome(place, request, prepared, span, decoded.end, preparer.audio_step_s, sound_s)


def _shrunk(side: Visual, frame: np.ndarray) -> np.ndarray:
    """What `shrink` left of a frame; it may be a stranger's, and no fault of the decoder's."""
    try:
        return a_picture(side, side.shrink(frame))
    except Exception as error:
        theirs = in_their_line(error)
        if theirs is None:
            raise
        raise theirs from error


def _refuse_lost(job: Job, number: int) -> None:
    if number == job.lost_at:
        raise Unusable("decode", job.lost)
    if number > job.lost_at:
        name = job.clips[job.lost_at][1].id
        raise Unusable("decode", f"not reached: the decoder did not get past clip {name!r}")
