"""A folder of videos -> a data set of features: what to do, what is done, workers, the result."""

import contextlib
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from tqdm import tqdm

from scav_jax.base.errors import InputError, counted_reasons, listed, number_of
from scav_jax.base.names import is_text, shown
from scav_jax.base.progress import progress_bar
from scav_jax.extract import backbones, jobs, pool, shards
from scav_jax.extract.backbones import Backbone, make_fingerprint
from scav_jax.extract.containers.opening import Unusable
from scav_jax.extract.decoding import measured
from scav_jax.extract.encoding import QUEUE_BYTES, Encoder, Results
from scav_jax.extract.jobs import Job, Outcome, make_jobs
from scav_jax.extract.ledger import Ledger
from scav_jax.extract.manifest import (
    WHOLE_VIDEOS,
    ClipOptions,
    ClipRequest,
    Listing,
    cut_whole_videos,
    list_clips,
    one_by_one,
    said_of_others,
)
from scav_jax.extract.shards import Shard
from scav_jax.features import store
from scav_jax.features.clip import Clip, fingerprint_difference, fingerprint_id

ENGINES = ("local", "ray")
SMOOTHING = 0.05  # clips come in bursts
MANY_REJECTED = 20  # clips, none usable: something is wrong with all of them
DEFAULT_CLIP_S = 10.0  # for predicting sizes where nobody said how long clips are


def extract(
    videos: Path,
    out: Path,
    clips: ClipOptions = WHOLE_VIDEOS,
    *,
    backbone: str | Backbone = "plain",
    workers: int | None = None,
    timeout_s: float = 300.0,
    shard: Shard | None = None,
    engine: str = "local",
) -> None:
    """Extracts the features of all clips; the same call goes on where a killed one stopped.

    Args:
      videos: a folder of videos.
      out: the data set to write.
      clips: which, as in `ClipOptions(seconds=10, shares={"train": 0.9, "test": 0.1})`.
      backbone: one of `backbones.PAIRS`, or what `backbones.load` made.
      workers: processes that decode; None takes one for each core.
      timeout_s: the wall-clock limit for decoding one clip.
      shard: does this part only and writes no data set: `merge` does, when all are finished.
      engine: "local", or "ray" for workers and encoders of a Ray cluster.

    Raises:
      InputError: see `manifest.list_clips`; nothing was usable; `out`, or the unfinished work
        beside it, belongs to another extractor or list.
    """
    videos, out = Path(videos), Path(out)
    started = time.monotonic()
    _check_named(out)
    listing = list_clips(videos, clips)
    model = backbones.load(backbone) if isinstance(backbone, str) else backbone
    fingerprint = make_fingerprint(model)
    whole = Ledger.beside(out)
    if _is_complete(out, fingerprint, listing.identity):
        _say_complete(out, whole)
        return
    shards.check_division(whole, shard and shard.count)
    ledger = shard.ledger(whole) if shard else whole
    part = shard.part(listing) if shard else listing
    workers = workers or pool.cores()
    with ledger.locked():
        ledger.open({"fingerprint": fingerprint, "manifest": listing.identity})
        _say_listing(part)
        wanted = _cut(part, videos, ledger, workers, timeout_s)
        _say_size(model, wanted, out)
        done = make_jobs(wanted)
        _run(done, videos, ledger, model, engine, workers, timeout_s)
        if shard:
            _finish_shard(shard, whole, out, done, started)
            return
        rows = _write(out, videos, listing, wanted, [(ledger, done)], fingerprint)
        whole.remove()
    _say_summary(out, rows, time.monotonic() - started)


def merge(
    videos: Path,
    out: Path,
    clips: ClipOptions = WHOLE_VIDEOS,
    *,
    count: int,
) -> None:
    """Writes the data set of `count` finished shards: the bytes that one run would have written.

    Neither weights nor accelerators are needed: the shards say which extractor made them.

    Args:
      videos, out, clips: as for the shards.
      count: how many there are.

    Raises:
      InputError: shards are missing or unfinished (named), or do not belong together.
    """
    videos, out = Path(videos), Path(out)
    started = time.monotonic()
    _check_named(out)
    listing = list_clips(videos, clips)
    whole, parts = Ledger.beside(out), shards.all_shards(count)
    if not whole.folder.exists() and _is_complete(out, None, listing.identity):
        _say_complete(out, whole)
        return
    shards.check_division(whole, count)
    fingerprint = shards.check_complete(parts, whole, listing.identity)
    if _is_complete(out, fingerprint, listing.identity):
        _say_complete(out, whole)
        return
    with whole.locked():
        finished, lengths = [], {}
        for shard in parts:
            ledger = shard.ledger(whole)
            ledger.open({"fingerprint": fingerprint, "manifest": listing.identity})
            lengths |= ledger.lengths() or {}
            done = make_jobs(cut_whole_videos(shard.part(listing), lengths.get)[0])
            lost = sum(not ledger.is_done(job.number) for job in done)
            if lost:
                raise InputError(
                    f"{ledger.folder}: {lost} of {len(done)} jobs are missing or damaged: run "
                    f"--num-shards {count} --shard-index {shard.index} again, then --merge"
                )
            finished.append((ledger, done))
        wanted = cut_whole_videos(listing, lengths.get)[0]
        rows = _write(out, videos, listing, wanted, finished, fingerprint)
        whole.remove()
    _say_summary(out, rows, time.monotonic() - started)


def _check_named(out: Path) -> None:
    """Raises `InputError` where records could not be written after all the work."""
    if not is_text(str(out.absolute())):
        raise InputError(
            f"--out: expected a path that is text in UTF-8, got {shown(out)}; use another"
        )
    if out.exists() and not out.is_dir():
        raise InputError(f"--out: expected a folder, {out} is a file; use another")


# What is there, and what is wanted ---------------------------------------------------------


def _is_complete(out: Path, fingerprint: dict | None, manifest: str) -> bool:
    """Whether `out` is what we would write; `InputError` where it is something else.

    Without a fingerprint, whoever made it is right.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    about = store.read_about(out)
    if fingerprint is not None and about["fingerprint_id"] != fingerprint_id(fingerprint):
        raise InputError(
            f"{out} was made by another extractor "
            f"({fingerprint_difference(about['fingerprint'], fingerprint)}): remove it, or use "
            "another --out"
        )
    if about["manifest"] != manifest:
        raise InputError(
            f"{out} was made from another list of clips (files, what is in them, the CSV or "
            "--clip-seconds): remove it, or use another --out"
        )
    return True


def _cut(
    listing: Listing, videos: Path, ledger: Ledger, workers: int, timeout_s: float
) -> list[ClipRequest]:
    """The final list of clips: whole videos are measured and cut if that was asked for."""
    if listing.clip_seconds is None:
        return listing.clips
    if not any(clip.start == 0 and clip.end is None for clip in listing.clips):
        _say("nothing was cut: every clip of the list has a start and an end of its own")
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
        f"cut into {len(clips):,} clips of {listing.clip_seconds:g} s, shorter videos whole; the "
        f"ends of {videos_cut:,} videos are shorter than a clip and were dropped "
        f"({seconds:,.1f} s in all)"
    )
    return clips


def _measure(file: str, *, videos: Path) -> Iterator[None]:
    """In a worker: the length of a video."""
    yield from ()
    try:
        return measured.film_seconds(videos / file)
    except Unusable:
        return None  # said when its turn comes


# Doing it ----------------------------------------------------------------------------------


class _Progress:
    """A bar that two threads move: clips/s, time left, hours of video an hour, what is rejected."""

    def __init__(self, bar: tqdm):
        self._bar, self._lock = bar, threading.Lock()
        self._begin, self._seconds = time.monotonic(), 0.0
        self._clips = self._rejected = 0

    def add(self, clips: int, seconds: float, rejected: list[dict]) -> None:
        """As for `encoding.Results`."""
        with self._lock:
            self._seconds += seconds
            self._clips += clips
            self._rejected += len(rejected) if clips > 0 else -len(rejected)
            if self._rejected == self._clips == MANY_REJECTED and rejected:
                last = f"the last ({rejected[0]['id']}) for: {rejected[0]['reason']}"
                words = f"all {self._clips} clips tried so far were rejected, {last}"
                self._bar.write(shown(words), file=sys.stderr)
            hours = self._seconds / max(time.monotonic() - self._begin, 1e-3)
            told = f", {self._rejected:,} rejected" if self._rejected else ""
            self._bar.set_postfix_str(f"{hours:.3g} h of video/h{told}", refresh=False)
            self._bar.update(clips)


def _run(
    all_jobs: list[Job],
    videos: Path,
    ledger: Ledger,
    model: Backbone,
    engine: str,
    workers: int,
    timeout_s: float,
) -> None:
    """Does the jobs that are not done, with progress; retries what a lost worker was at."""
    waiting, total = _to_do(all_jobs, ledger), _clips(all_jobs)
    done = total - _clips(waiting)
    with progress_bar("extracting", total, "clip", initial=done, smoothing=SMOOTHING) as bar:
        progress = _Progress(bar)
        if engine == "ray":
            from scav_jax.extract import ray_engine

            place = videos.absolute()
            ray_engine.run(waiting, place, ledger, model, workers, timeout_s, progress.add)
        elif waiting:
            work = partial(jobs.prepare, videos=videos.absolute(), preparer=model.preparer)
            workers = min(workers, len(waiting))
            with (
                Results(ledger, progress.add) as results,
                Encoder(model.encode, model.clips_at_once, QUEUE_BYTES) as encoder,
                contextlib.closing(
                    jobs.run(work, waiting, workers=workers, timeout_s=timeout_s)
                ) as events,
            ):
                _encode(events, encoder, results)


def _to_do(all_jobs: list[Job], ledger: Ledger) -> deque[Job]:
    """The jobs that are not done; says how much that leaves."""
    looking = one_by_one("looking for finished work", len(all_jobs), "job", all_jobs)
    waiting = deque(job for job in looking if not ledger.is_done(job.number))
    total, to_do = _clips(all_jobs), _clips(waiting)
    if to_do < total:
        _say(f"going on: {total - to_do:,} of {total:,} clips were already done")
    return waiting


def _clips(some: Iterable[Job]) -> int:
    return sum(len(job.clips) for job in some)


def _encode(events: Iterator, encoder: Encoder, results: Results) -> None:
    """Workers prepare clips, the encoder makes features; a job is kept when all of it came back.

    The queue keeps the order, so that what a lost worker left behind is forgotten before its job
    comes again.
    """
    for job, event in events:
        if isinstance(event, pool.Lost):
            encoder.call(partial(results.forget, job.number))
        elif isinstance(event, pool.Done):
            encoder.call(partial(results.keep, job))
        else:
            outcome: Outcome = event.result
            then = partial(results.add, job.number, outcome)
            if outcome.prepared is None:
                encoder.call(partial(then, None))
            else:
                encoder.encode(outcome.prepared, then)


# The result --------------------------------------------------------------------------------

FinishedJobs = list[tuple[Ledger, list[Job]]]


def _write(
    out: Path,
    videos: Path,
    listing: Listing,
    wanted: list[ClipRequest],
    finished: FinishedJobs,
    fingerprint: dict,
) -> list[dict]:
    """Writes the data set; returns the rows of rejected.csv."""
    rejected = _rejected(finished)
    rows = listing.unreadable + [rejected[clip.id] for clip in wanted if clip.id in rejected]
    usable = len(wanted) - len(rejected)
    if not usable:
        _nothing_usable(rows, Ledger.beside(out), videos)
    store.write(
        _usable(wanted, finished, rejected, usable),
        out,
        fingerprint=fingerprint,
        videos=str(videos.absolute()),
        rejected=rows,
        manifest=listing.identity,
    )
    return rows


def _rejected(finished: FinishedJobs) -> dict[str, dict]:
    """The rows of rejected.csv, by the clips' ids."""
    rejected: dict[str, dict] = {}
    for ledger, done in finished:
        for job in one_by_one("looking for rejected clips", len(done), "job", done):
            ids = {place: request.id for place, request in job.clips}
            rejected |= {ids[place]: row for place, row in ledger.rejected(job.number).items()}
    return rejected


def _usable(
    wanted: list[ClipRequest], finished: FinishedJobs, rejected: dict[str, dict], usable: int
) -> Iterator[tuple[str, Clip]]:
    """(split, clip) in the order of the list, whatever the order they were done in."""
    places = {
        request.id: (ledger, job.number, place)
        for ledger, done in finished
        for job in done
        for place, request in job.clips
    }
    with progress_bar("writing", usable, "clip") as bar:
        for request in wanted:
            if request.id not in rejected:
                ledger, job, place = places[request.id]
                yield request.split, ledger.clip(job, place)
                bar.update()


def _finish_shard(shard: Shard, whole: Ledger, out: Path, done: list[Job], started: float) -> None:
    ledger = shard.ledger(whole)
    rows = list(_rejected([(ledger, done)]).values())
    left = shards.finish(shard, whole, _clips(done), len(rows))
    took = time.monotonic() - started
    _say(f"{shard} is finished: {number_of(_clips(done) - len(rows), 'clip')} in {took:.1f} s")
    if rows:
        _say(f"rejected {len(rows):,}: {counted_reasons(rows)}")
    if left:
        shown = listed([str(other.index) for other in left], 20)
        _say(f"{len(left):,} shards are not finished yet: {shown}")
    else:
        _say(f"all {shard.count:,} are: --num-shards {shard.count} --merge writes {out}")


def _nothing_usable(rows: list[dict], ledger: Ledger, videos: Path) -> None:
    ledger.remove()
    ledger.folder.mkdir(parents=True)
    path = ledger.folder / store.REJECTED
    store.write_rejected(path, rows)
    raise InputError(
        f"no usable clip under {videos}: expected videos with moving pictures and sound, all "
        f"{len(rows):,} were rejected ({counted_reasons(rows)}){_way_out(rows)}; the first: "
        f"{rows[0]['reason']}; see {path}"
    )


def _way_out(rows: list[dict]) -> str:
    """What to do where nothing has one of the streams."""
    reasons = {row["reason"] for row in rows}
    for stream, other in (("audio", "pictures"), ("visual", "sounds")):
        kind = "audio" if stream == "audio" else "video"
        if all(reason.startswith(f"no {kind} stream") for reason in reasons):
            return f"; for features of {other} alone add --{stream} none"
    return ""


def _say(line: str) -> None:
    print(shown(line), flush=True)


def _say_listing(listing: Listing) -> None:
    videos, clips = number_of(len(listing.sizes), "video"), number_of(len(listing.clips), "clip")
    _say(f"{videos}, {clips}: {listing.origin}")
    if listing.passed_over:
        _say(said_of_others(listing.passed_over))


def _say_size(model: Backbone, wanted: list[ClipRequest], out: Path) -> None:
    """Predicts what the data set takes, where its clips' sizes are known.

    Raises:
      InputError: more than is free. Finished work and the data set written from it are there at
        the same time, so twice the size is needed.
    """
    seconds = [clip.end - clip.start for clip in wanted if clip.end is not None]
    mean = sum(seconds) / len(seconds) if seconds else DEFAULT_CLIP_S
    of_one = model.clip_bytes(mean)
    if of_one is None or not wanted:
        return
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    free, size = shutil.disk_usage(existing).free, of_one * len(wanted)
    _say(
        f"about {size / 1e9:.3g} GB of features ({of_one / 1e6:.3g} MB a clip of {mean:g} s), and "
        f"as much beside them until they are written; {free / 1e9:,.0f} GB are free"
    )
    if 2 * size > free:
        raise InputError(
            f"--out: expected {2 * size / 1e9:,.1f} GB of space below {existing}, got "
            f"{free / 1e9:,.1f}; use another disk, fewer --frames or a smaller --side"
        )


def _say_complete(out: Path, whole: Ledger) -> None:
    _say(f"{out} is complete: {store.splits_in_words(out)}; nothing to do")
    whole.remove()


def _say_summary(out: Path, rows: list[dict], seconds: float) -> None:
    _say(f"{out}: {store.splits_in_words(out)} in {seconds:.1f} s")
    if rows:
        _say(f"rejected {len(rows):,}: {counted_reasons(rows)}; why: {out / store.REJECTED}")
