"""Files, and windows of them, to latents: which clips are wanted, decoded, encoded, some at a time.

Files go the way that training data went: decoded, through the frozen backbone that the model was
trained with, rounded to float16 as features on disk are, trimmed, encoded. What a clip becomes
depends on the clip alone: not on what is embedded with it, nor on how it is batched.

A clip may have one stream only, a sound or a silent film. Then the other one is taken to be as
long as it is: a film has the audio steps of a silence of its length (whole ones only),
and a sound has pictures at 25 Hz. They are not encoded; but they say which steps are used, and on
which grid, where a model resamples before its towers.
"""

import functools
import math
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scav_jax.base.documents import content_sample
from scav_jax.base.errors import InputError
from scav_jax.base.names import is_text, shown
from scav_jax.extract import jobs, pool
from scav_jax.extract.backbones import KINDS, Backbone, Features
from scav_jax.extract.containers.opening import Unusable
from scav_jax.extract.decoding.measured import film_seconds, stream_kinds, stream_seconds
from scav_jax.extract.jobs import Job, Outcome
from scav_jax.extract.manifest import (
    LAST_CLIP_TOLERANCE_S,
    NO_TEXT,
    ClipOptions,
    ClipRequest,
    cut_id,
    cut_whole_videos,
    lengths_of,
    list_clips,
    one_by_one,
    said_of_others,
)
from scav_jax.features.clip import STREAMS, Clip
from scav_jax.retrieval.embed import Embedded, embed_clips
from scav_jax.training.runs import Run

CLIPS_AT_ONCE = 64  # what `embed_outcomes` holds in memory
PICTURE_HZ = 25.0  # the frames that a sound without a picture is taken to have
TIMEOUT_S = 300.0
FEW_FILES = 8  # are decoded sooner than a process starts


# ---- what is asked for ----------------------------------------------------------------------


def check_times(start: float, end: float | None, clip_seconds: float | None) -> None:
    """Raises `InputError` for a part of a file that there cannot be."""
    if not 0 <= start < math.inf:
        raise InputError(f"start: expected seconds (0 or more), got {start:g}")
    if end is not None and not start < end < math.inf:
        raise InputError(f"end: expected seconds after the start ({start:g}), got {end:g}")
    if clip_seconds is not None and not 1.0 <= clip_seconds < math.inf:
        raise InputError(f"clip seconds: expected at least 1, got {clip_seconds:g}")


class Wanted(NamedTuple):
    """The clips that are wanted.

    Attributes:
      folder: what the files of `requests` are relative to.
      requests: the clips.
      streams: which of "visual" and "audio".
      rejected: rows of rejected.csv: what may not be read, or has a name that cannot be an id.
      passed_over: what else lay in a folder, in a line; empty where there was nothing.
    """

    folder: Path
    requests: list[ClipRequest]
    streams: tuple[str, ...]
    rejected: list[dict]
    passed_over: str = ""


def by_streams(wanted: Wanted) -> list[Wanted]:
    """The same clips, those of films with sound, of silent films and of sounds alone apart.

    What cannot be opened is with the first ones: it is rejected when its turn comes.
    """
    files = dict.fromkeys(request.file for request in wanted.requests)
    looking = one_by_one("looking for sound", len(files), "file", files)
    streams_of = {file: _common_streams([wanted.folder / file]) for file in looking}
    apart: dict[tuple[str, ...], list[ClipRequest]] = {STREAMS: []}
    for request in wanted.requests:
        apart.setdefault(streams_of[request.file], []).append(request)
    rejected = wanted.rejected
    found = []
    for streams, requests in apart.items():
        if requests or rejected:
            found.append(Wanted(wanted.folder, requests, streams, rejected))
            rejected = []
    return found


def requests_for(
    paths: str | Path | Iterable[str | Path],
    clip_seconds: float | None,
    start: float,
    end: float | None,
    streams: Sequence[str] | None,
    root: str | Path | None,
    *,
    sounds: bool = False,
) -> Wanted:
    """The clips that are wanted of files, or of a folder; see `model.Model.stream`.

    With `sounds`, or where pictures are not asked for, files of sound alone count in a folder too.
    """
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if not files:
        raise InputError("expected a file or a folder to embed, got none")
    if len(files) == 1 and files[0].is_dir():
        if start != 0.0 or end is not None:
            raise InputError("start, end: expected with single files, got them with a folder")
        chosen = _checked_streams(streams or STREAMS)
        options = ClipOptions(seconds=clip_seconds, sounds=sounds or "visual" not in chosen)
        return _of_folder(files[0], options, chosen, root)
    check_there(files)
    for file in files:
        if not file.is_file():
            what = "it is a folder (give one alone)" if file.is_dir() else "it is none"
            raise InputError(f"{file}: expected a video or a sound file, {what}")
    chosen = _checked_streams(streams or _common_streams(files))
    ids = [file.as_posix() if root is None else below(file, root) for file in files]
    names = [Path(file).absolute().as_posix() for file in files]
    if root is not None:
        names = [(Path(root).absolute() / name).as_posix() for name in ids]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"expected each file once, got {twice} twice")
    requests: list[ClipRequest] = []
    rejected: list[dict] = []
    for file, absolute, name in zip(files, names, ids, strict=True):
        if root is not None and not is_text(name):  # of a query, nobody keeps the name
            said = ClipRequest(shown(name), 0.0, None, "")
            rejected.append(said.rejection("list", f"{NO_TEXT} the file"))
            continue
        for window in _windows(file, clip_seconds, start, end, chosen):
            one = name if window == (0.0, None) else cut_id(name, window[0])
            requests.append(ClipRequest(absolute, *window, one))
    return Wanted(Path("/"), requests, chosen, rejected)


def check_there(files: Iterable[Path]) -> None:
    """Before a model is loaded: raises `InputError` where a file is not there."""
    for file in files:
        if not file.exists():
            raise InputError(f"{file}: expected a video or a sound file, there is none")


def _of_folder(
    folder: Path, options: ClipOptions, streams: tuple[str, ...], root: str | Path | None
) -> Wanted:
    listing = list_clips(folder, options)
    lengths = lengths_of(listing, lambda file: seconds_of(folder / file, streams))
    clips, _, _ = cut_whole_videos(listing, lengths.get)
    others = said_of_others(listing.passed_over) if listing.passed_over else ""
    if root is None:
        return Wanted(folder, clips, streams, listing.unreadable, others)
    places, twice = _places(folder, [clip.file for clip in clips], root)
    way, rejected = below(folder, root), list(listing.unreadable)
    placed: list[ClipRequest] = []
    for clip in clips:
        if clip.file in twice:
            reason = f"link: it is the file {places[clip.file]}, which is there already"
            rejected.append(clip.rejection("list", reason))
            continue
        rest = clip.id.removeprefix(clip.file) if clip.id.startswith(clip.file) else None
        name = joined(way, clip.id) if rest is None else places[clip.file] + rest
        placed.append(replace(clip, file=places[clip.file], id=name))
    return Wanted(Path(root).absolute(), placed, streams, rejected, others)


def _places(
    folder: Path, files: Sequence[str], root: str | Path
) -> tuple[dict[str, str], set[str]]:
    """The path of each file below the root; the files that are links to others of them."""
    way = functools.cache(lambda parent: below(parent, root))
    places: dict[str, str] = {}
    for file in dict.fromkeys(files):
        path = folder / file
        linked = os.path.islink(path)
        places[file] = below(path, root) if linked else joined(way(path.parent), path.name)
    owners: dict[str, str] = {}
    for file in sorted(places, key=lambda file: os.path.islink(folder / file)):
        owners.setdefault(places[file], file)
    return places, {file for file, place in places.items() if owners[place] != file}


def below(path: str | Path, root: str | Path) -> str:
    """The way from a root to what lies below it, "." for the root itself.

    Links are followed, so that a file has one way, where they do not lead out of the root.

    Raises:
      InputError: it lies elsewhere.
    """
    for resolve in (os.path.realpath, os.path.abspath):
        one, other = Path(resolve(path)), Path(resolve(root))
        if one.is_relative_to(other):
            return one.relative_to(other).as_posix()
    raise InputError(
        f"{path}: expected a file below {root}, to which ids are relative, it lies elsewhere; "
        "two folders go into one index whose root (--root) holds both"
    )


def joined(way: str, name: str) -> str:
    """An id of a folder, behind the way from the root to that folder."""
    return name if way == "." else f"{way}/{name}"


def _windows(
    file: Path,
    clip_seconds: float | None,
    start: float,
    end: float | None,
    streams: Sequence[str],
) -> list[tuple[float, float | None]]:
    """(begin, end) of the clips of one file."""
    if clip_seconds is None:
        return [(start, end)]
    stop = seconds_of(file, streams)
    if end is not None:
        stop = end if stop is None else min(end, stop)
    count = 0 if stop is None else int((stop - start + LAST_CLIP_TOLERANCE_S) // clip_seconds)
    begins = [start + number * clip_seconds for number in range(count)]
    return [(begin, begin + clip_seconds) for begin in begins] or [(start, end)]


def seconds_of(file: Path, streams: Sequence[str]) -> float | None:
    """The length of a file; None where it is not known, or the file cannot be read."""
    try:
        return film_seconds(file) if "visual" in streams else stream_seconds(file, "audio")
    except Unusable:
        return None  # said when its turn comes


def _checked_streams(streams: Sequence[str]) -> tuple[str, ...]:
    given = (streams,) if isinstance(streams, str) else tuple(streams)
    if not given or set(given) - set(STREAMS):
        raise InputError(f"streams: expected some of {', '.join(STREAMS)}, got {streams!r}")
    return tuple(stream for stream in STREAMS if stream in given)


def _common_streams(files: Sequence[Path]) -> tuple[str, ...]:
    """The streams that all readable files have, where they have the same ones; else both."""
    found = set()
    for file in files:
        try:
            kinds = stream_kinds(file)
        except Unusable:
            continue
        found.add(tuple(stream for stream in STREAMS if KINDS[stream] in kinds))
    (same,) = found if len(found) == 1 else (STREAMS,)
    return same or STREAMS


# ---- their latents --------------------------------------------------------------------------


def embed_outcomes(
    run: Run,
    backbone: Backbone,
    outcomes: Iterable[Outcome],
    folder: Path,
    streams: Sequence[str],
    batch_size: int,
) -> Iterator[Embedded]:
    """Embeds clips that were decoded, as they come, at most `CLIPS_AT_ONCE` together.

    Args:
      run: the towers.
      backbone: what makes features of decoded clips.
      outcomes: the clips, as `extract.jobs.prepare` decodes them.
      folder: what their files are relative to.
      streams: which of "visual" and "audio" are encoded.
      batch_size: how many clips are encoded at once.
    """
    encoded = functools.partial(_encoded, run, streams=streams, batch_size=batch_size)
    clips: list[Clip] = []
    rejected: list[dict] = []
    for outcome in outcomes:
        try:
            clips.append(clip_of(backbone, outcome, streams, folder))
        except Unusable as unusable:
            rejected.append(outcome.request.rejection(unusable.stage, unusable.reason))
        if len(clips) == CLIPS_AT_ONCE:
            yield encoded(clips, rejected)
            clips, rejected = [], []
    if clips or rejected:
        yield encoded(clips, rejected)


def _encoded(
    run: Run, clips: list[Clip], rejected: list[dict], *, streams: Sequence[str], batch_size: int
) -> Embedded:
    if not clips:
        return nothing_but(rejected)
    found = embed_clips(run, clips, streams, batch_size=batch_size)
    looked = {source: content_sample(source) for source in set(found.sources)}
    contents = [looked[source] for source in found.sources]
    return replace(found, contents=contents, rejected=rejected)


def clip_of(backbone: Backbone, outcome: Outcome, streams: Sequence[str], folder: Path) -> Clip:
    """Features as they are stored; `Unusable` if the clip was rejected or they are bad."""
    if outcome.prepared is None:
        raise Unusable(outcome.rejection["stage"], outcome.rejection["reason"])
    (features,) = backbone.encode([outcome.prepared])
    clip = outcome.clip(_stand_in(features, outcome, streams, backbone.visual.steps))
    return replace(clip, source=str((folder / clip.source).absolute()))


def workers_for(files: Collection, workers: int | None) -> int:
    """How many processes decode; of None, one for each core, or none for a few files."""
    if workers is None:
        return 0 if len(files) < FEW_FILES else min(len(files), pool.cores())
    if workers < 0:
        raise InputError(f"workers: expected 0 or more, got {workers}")
    return workers


def outcomes_of(
    todo: list[Job], work: Callable[[Job], Iterator[Outcome]], workers: int, timeout_s: float
) -> Iterator[Outcome]:
    """What becomes of each clip, in the order of the jobs."""
    if workers == 0:
        for job in todo:
            yield from work(job)
        return
    order, waiting = deque(job.number for job in todo), deque(todo)
    under_way: dict[int, list[Outcome]] = {}
    done: dict[int, list[Outcome]] = {}
    workers = min(workers, len(todo))
    for job, event in jobs.run(work, waiting, workers=workers, timeout_s=timeout_s):
        if isinstance(event, pool.Lost):
            under_way.pop(job.number, None)
        elif isinstance(event, pool.Done):
            done[job.number] = under_way.pop(job.number, [])
        else:
            under_way.setdefault(job.number, []).append(event.result)
        while order and order[0] in done:
            yield from done.pop(order.popleft())


def _stand_in(
    features: Features, outcome: Outcome, streams: Sequence[str], frames: int | None
) -> Features:
    """Features with zeros in the stream that was not asked for; its steps are what counts."""
    visual, audio = features
    if "visual" not in streams:
        begin, end = outcome.visual_span
        frames = frames or max(math.ceil((end - begin) * PICTURE_HZ), 1)
        visual = np.zeros((frames, visual.shape[1]), visual.dtype)
    if "audio" not in streams:
        audio = np.zeros_like(audio)
    return visual, audio


def nothing_usable(rejected: list[dict]) -> str:
    """Why there is nothing, in words."""
    if not rejected:
        return "expected clips to embed, got none"
    first = {**rejected[0], "id": rejected[0]["id"] or rejected[0]["file"]}
    if len(rejected) == 1:
        return f"{first['id']}: cannot be used: {first['reason']}"
    return (
        f"expected usable clips, all {len(rejected)} were rejected; the first, {first['id']}: "
        f"{first['reason']}"
    )


def nothing_but(rejected: list[dict]) -> Embedded:
    """No clips, and what was rejected."""
    none = np.zeros(0)
    return Embedded([], [], none, none, [], None, None, None, None, rejected=rejected)
