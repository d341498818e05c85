"""A folder of videos -> a data set of features: what to do, what is done, workers, the result."""

import contextlib
import json
import os
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np

from scav_jax import datasets
from scav_jax.errors import InputError
from scav_jax.extract import backbones, media, pool, streams
from scav_jax.extract.ledger import Ledger
from scav_jax.extract.manifest import ClipRequest, Listing, cut_whole_videos, list_clips
from scav_jax.extract.streams import Unusable
from scav_jax.features import (
    FORMAT_VERSION,
    STORED_DTYPE,
    Clip,
    check_clip,
    fingerprint_difference,
    fingerprint_id,
)
from scav_jax.progress import progress_bar

AUDIO_STEP_S = 0.16
CLIPS_A_JOB = 32  # what a worker does at a time, and what a kill loses at most for each worker
ATTEMPTS = 2
SMOOTHING = 0.05  # clips come in bursts


@dataclass(frozen=True)
class Job:
    """Clips of one file, in order of their starts; each with its place in the list of clips."""

    number: int
    clips: tuple[tuple[int, ClipRequest], ...]
    attempt: int = 1
    lost: str = ""  # why a worker that was at this job died or was ended, more than once
    lost_at: int = CLIPS_A_JOB  # the number of the clip that it was at


def extract(
    videos: Path,
    out: Path,
    *,
    clips: Path | None = None,
    clip_seconds: float | None = None,
    shares: dict[str, float] | None = None,
    backbone: str = "plain",
    workers: int | None = None,
    timeout_s: float = 300.0,
) -> None:
    """Extracts the features of all clips; the same call goes on where a killed one stopped.

    Args:
      videos: a folder of videos.
      out: the data set to write.
      clips: a CSV that says which clips (see `manifest.list_clips`).
      clip_seconds: cut whole videos into clips of this length.
      shares: `{split: share of the files}`; all clips of a file land in one split.
      backbone: one of `backbones.BACKBONES`.
      workers: processes; None takes one for each core.
      timeout_s: the wall-clock limit for one clip.

    Raises:
      InputError: see `manifest.list_clips`; nothing was usable; `out`, or the unfinished work
        beside it, belongs to another extractor or list.
    """
    videos, out = Path(videos), Path(out)
    started = time.monotonic()
    listing = list_clips(videos, clips, clip_seconds, shares)
    fingerprint = make_fingerprint(backbone)
    ledger = Ledger.beside(out)
    if _is_complete(out, fingerprint, listing.identity()):
        counts = datasets.splits(out)
        _say(f"{out} is complete: {sum(counts.values()):,} clips {counts}; nothing to do")
        ledger.remove()
        return
    workers = workers or _cores()
    with ledger.locked():
        ledger.open({"fingerprint": fingerprint, "manifest": listing.identity()})
        _say_listing(listing)
        wanted = _cut(listing, videos, ledger, workers, timeout_s)
        jobs = _make_jobs(wanted)
        _run(jobs, videos, ledger, backbone, workers, timeout_s)
        rejected = _rejected(jobs, ledger)
        rows = listing.unreadable + [rejected[place] for place in sorted(rejected)]
        if len(rejected) == len(wanted):
            _nothing_usable(rows, ledger, videos)
        datasets.write(
            _usable(jobs, ledger, set(rejected)),
            out,
            fingerprint=fingerprint,
            videos=str(videos.absolute()),
            rejected=rows,
            manifest=listing.identity(),
        )
        ledger.remove()
    _say_summary(out, len(wanted) - len(rejected), rows, time.monotonic() - started)


def _cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def make_fingerprint(backbone: str) -> dict:
    """Everything that features depend on: the backbone's constants, rates, decoder versions."""
    fingerprint = {
        "format_version": FORMAT_VERSION,
        "backbone": backbones.load(backbone).fingerprint(),
        "frame_rate": "native",
        "audio_rate_hz": media.RATE_HZ,
        "audio_step_s": AUDIO_STEP_S,
        "channels": "mean",
        "decoding": 1,  # raise it when media.py gives other frames or samples
        **streams.libraries(),
    }
    return json.loads(json.dumps(fingerprint))


def extract_clip(reader: media.Reader, request: ClipRequest, backbone: backbones.Backbone) -> Clip:
    """The features of one clip; raises `Unusable` where there are none to be had."""
    with _decoder_errors():
        decoded = reader.cut(request.start, request.end)
    media.check_usable(decoded)
    visual = backbone.visual(decoded.frames, decoded.previous)
    audio = backbone.audio(decoded.waveform)
    with np.errstate(over="ignore"):  # what float16 cannot hold is refused below
        visual, audio = visual.astype(STORED_DTYPE), audio.astype(STORED_DTYPE)
    clip = Clip(
        id=request.id,
        visual=visual,
        visual_span=decoded.frames_span,
        audio=audio,
        audio_span=(0.0, len(audio) * AUDIO_STEP_S),
        source=request.file,
        start=request.start,
        end=decoded.end,
        label=request.label,
    )
    try:
        check_clip(clip)
    except InputError as error:
        raise Unusable("features", f"unusable features: {error}") from None
    return clip


# Work in worker processes ------------------------------------------------------------------


def _do_job(job: Job, *, videos: Path, folder: Path, backbone: str) -> Iterator[None]:
    """Extracts a job's clips, a step each, and keeps the result in the ledger."""
    model = _load_backbone(backbone)
    clips: dict[int, Clip] = {}
    rejected: dict[int, dict] = {}
    with contextlib.ExitStack() as stack:
        reader, stepped = None, 0
        for number, (place, request) in enumerate(job.clips):
            try:
                _refuse_lost(job, number)
                with _decoder_errors():
                    reader = reader or stack.enter_context(
                        media.Reader(videos / request.file, model.frame_size)
                    )
                clips[place] = extract_clip(reader, request, model)
            except Unusable as unusable:
                rejected[place] = request.rejection(unusable.stage, unusable.reason)
                if reader is None and unusable.stage in ("list", "open"):  # the whole file
                    rejected |= {
                        later: other.rejection(unusable.stage, unusable.reason)
                        for later, other in job.clips
                    }
                    break
            if number + 1 < len(job.clips):
                yield
                stepped += 1
    Ledger(folder).save(job.number, clips, rejected)
    return len(job.clips) - stepped


def _refuse_lost(job: Job, number: int) -> None:
    if number == job.lost_at:
        raise Unusable("decode", job.lost)
    if number > job.lost_at:
        name = job.clips[job.lost_at][1].id
        raise Unusable("decode", f"not reached: the decoder did not get past clip {name!r}")


@contextlib.contextmanager
def _decoder_errors() -> Iterator[None]:
    """What a decoder throws at us is a reason to reject a clip, not to end a run."""
    try:
        yield
    except (Unusable, MemoryError):
        raise
    except Exception as error:
        raise Unusable("decode", f"decoder error: {type(error).__name__}: {error}") from error


@cache
def _load_backbone(name: str) -> backbones.Backbone:
    return backbones.load(name)


def _measure(file: str, *, videos: Path) -> Iterator[None]:
    yield from ()
    try:
        return streams.video_seconds(videos / file)
    except Unusable:
        return None  # said when its turn comes


# The parent process ------------------------------------------------------------------------


def _is_complete(out: Path, fingerprint: dict, manifest: str) -> bool:
    """Whether `out` is what we would write; `InputError` where it is something else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    about = datasets.read_about(out)
    if about["fingerprint_id"] != fingerprint_id(fingerprint):
        raise InputError(
            f"{out} was made by another extractor "
            f"({fingerprint_difference(about['fingerprint'], fingerprint)}): remove it, or use "
            "another --out"
        )
    if about["manifest"] != manifest:
        raise InputError(
            f"{out} was made from another list of clips (files, their sizes, the CSV or "
            "--clip-seconds): remove it, or use another --out"
        )
    return True


def _cut(
    listing: Listing, videos: Path, ledger: Ledger, workers: int, timeout_s: float
) -> list[ClipRequest]:
    """The final list of clips: whole videos are measured and cut if that was asked for."""
    if listing.clip_seconds is None:
        return listing.clips
    lengths = ledger.lengths()
    files = sorted({clip.file for clip in listing.clips if listing.sizes[clip.file] > 0})
    if lengths is None:
        lengths = {}
        work = partial(_measure, videos=videos)
        with progress_bar("measuring", len(files), "video", smoothing=SMOOTHING) as bar:
            for file, event in pool.run(work, deque(files), workers=workers, timeout_s=timeout_s):
                lengths[file] = event.result if isinstance(event, pool.Done) else None
                bar.update()
        ledger.save_lengths(lengths)
    clips, videos_cut, seconds = cut_whole_videos(listing, lengths.get)
    _say(
        f"cut into {len(clips):,} clips of {listing.clip_seconds:g} s; the ends of {videos_cut:,} "
        f"videos are shorter than a clip and were dropped ({seconds:,.1f} s in all)"
    )
    return clips


def _make_jobs(wanted: list[ClipRequest]) -> list[Job]:
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


def _run(
    jobs: list[Job], videos: Path, ledger: Ledger, backbone: str, workers: int, timeout_s: float
) -> None:
    """Does the jobs that are not done, with progress; retries what a lost worker was at."""
    waiting = deque(job for job in jobs if not ledger.is_done(job.number))
    total, to_do = (sum(len(job.clips) for job in some) for some in (jobs, waiting))
    if to_do < total:
        _say(f"going on: {total - to_do:,} of {total:,} clips were already done")
    work = partial(_do_job, videos=videos.absolute(), folder=ledger.folder, backbone=backbone)
    workers = min(workers, len(waiting))
    done = total - to_do
    with progress_bar("extracting", total, "clip", initial=done, smoothing=SMOOTHING) as bar:
        for job, event in pool.run(work, waiting, workers=workers, timeout_s=timeout_s):
            if isinstance(event, pool.Lost):
                bar.update(-event.steps)
                waiting.appendleft(_again(job, event))
            elif isinstance(event, pool.Done):
                bar.update(event.result)
            else:
                bar.update()


def _again(job: Job, lost: pool.Lost) -> Job:
    """The job that lost its worker, to be tried again: at last without the clip that did it."""
    if job.attempt < ATTEMPTS:
        return replace(job, attempt=job.attempt + 1)
    return replace(job, lost_at=min(lost.steps, job.lost_at), lost=lost.reason)


def _rejected(jobs: list[Job], ledger: Ledger) -> dict[int, dict]:
    """The rows of rejected.csv, by place in the list of clips."""
    rejected: dict[int, dict] = {}
    for job in jobs:
        rejected |= ledger.rejected(job.number)
    return rejected


def _usable(jobs: list[Job], ledger: Ledger, rejected: set[int]) -> Iterator[tuple[str, Clip]]:
    """(split, clip) in the order of the list, whatever the order they were done in."""
    places = {place: (job.number, clip) for job in jobs for place, clip in job.clips}
    with progress_bar("writing", len(places) - len(rejected), "clip") as bar:
        for place in sorted(places.keys() - rejected):
            number, request = places[place]
            yield request.split, ledger.clip(number, place)
            bar.update()


def _nothing_usable(rows: list[dict], ledger: Ledger, videos: Path) -> None:
    ledger.remove()
    ledger.folder.mkdir(parents=True)
    path = ledger.folder / datasets.REJECTED
    datasets.write_rejected(path, rows)
    raise InputError(
        f"no usable clip under {videos}: expected videos with moving pictures and sound, all "
        f"{len(rows):,} were rejected ({_reasons(rows)}); see {path}"
    )


def _reasons(rows: list[dict]) -> str:
    """How many rows of rejected.csv there are for each category of reason."""
    counts = Counter(row["reason"].partition(":")[0] for row in rows)
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.most_common())


def _say(line: str) -> None:
    print(line, flush=True)


def _say_listing(listing: Listing) -> None:
    _say(f"{len(listing.sizes):,} videos, {len(listing.clips):,} clips: {listing.origin}")
    if listing.passed_over:
        kinds = ", ".join(f"{suffix} {n:,}" for suffix, n in listing.passed_over.most_common(5))
        _say(f"passed over {listing.passed_over.total():,} other files: {kinds}")


def _say_summary(out: Path, usable: int, rows: list[dict], seconds: float) -> None:
    _say(f"{out}: {usable:,} clips {datasets.splits(out)} in {seconds:.1f} s")
    if rows:
        _say(f"rejected {len(rows):,}: {_reasons(rows)}; why: {out / datasets.REJECTED}")
