"""Inspects a folder of videos: decodes every clip in worker processes, as extraction does."""

import contextlib
import hashlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from scav_jax.base.errors import InputError
from scav_jax.base.progress import progress_bar
from scav_jax.extract import pool
from scav_jax.extract.backbones.plain import PlainAudio, PlainVisual
from scav_jax.extract.containers.opening import Unusable, decoder_errors
from scav_jax.extract.decoding import measured, media
from scav_jax.extract.decoding.packets import packet_times
from scav_jax.extract.decoding.streams import Stream
from scav_jax.extract.decoding.usable import MIN_CLIP_S, SILENT_PEAK, STILL_LEVELS, check_usable
from scav_jax.extract.manifest import (
    ClipOptions,
    ClipRequest,
    cut_whole_videos,
    lengths_of,
    list_clips,
)
from scav_jax.inspect.findings import Facts, Fault, digest, document
from scav_jax.inspect.near import NEAR, signature

FRAME_SIZE = (64, 64)  # frames are scaled to it, as the weight-free backbone has them
TIMEOUT_S = 300.0  # for one clip
UNEVEN_SHARE, UNEVEN_INTERVALS = 0.25, 0.02
THRESHOLDS = {
    "too short": f"less than {MIN_CLIP_S:g} s with picture and sound",
    "silent": f"no sample above {SILENT_PEAK:g} of full scale",
    "still": "no cell of an 8 x 8 grid whose mean changes by "
    f"{STILL_LEVELS:g} of 255 (frames of 64 x 64)",
    "variable frame rate": f"more than {UNEVEN_INTERVALS:.0%} of the intervals between frames "
    f"differ from the median one by over {UNEVEN_SHARE:.0%}",
    "duplicates": "equal bytes of the files; equal frames (scaled to 64 x 64) or equal sound "
    "(mono, 16 kHz) of the clips",
    "near-duplicates": NEAR,
}


@dataclass(frozen=True)
class FileClips:
    """The clips of one file, in order of their starts."""

    file: str
    clips: tuple[ClipRequest, ...]


def inspect_videos(
    videos: Path,
    *,
    clips: Path | None = None,
    clip_seconds: float | None = None,
    workers: int = 2,
) -> dict:
    """The document (see `findings`) of a folder.

    Args:
      videos: the folder.
      clips: a CSV of clips, as extraction takes it; None takes `clips.csv` in the folder if it is
        there, else every video file.
      clip_seconds: cut whole videos into clips of this length.
      workers: processes.

    Raises:
      InputError: as `manifest.list_clips`.
    """
    videos = Path(videos)
    listing = list_clips(videos, ClipOptions(clips, clip_seconds))
    wanted, _, _ = cut_whole_videos(listing, lengths_of(listing, partial(_seconds, videos)).get)
    by_file: dict[str, list[ClipRequest]] = {}
    for clip in wanted:
        by_file.setdefault(clip.file, []).append(clip)
    files = deque(
        FileClips(file, tuple(sorted(some, key=lambda clip: clip.start)))
        for file, some in by_file.items()
    )
    found: dict[str, Facts | Fault] = {}
    with progress_bar("inspecting", len(wanted), "clip", smoothing=0.05) as bar:
        work = partial(_inspect_file, videos=videos.absolute())
        for file, event in pool.run(work, files, workers=workers, timeout_s=TIMEOUT_S):
            if isinstance(event, pool.Done):
                found |= event.result
                bar.update(len(file.clips))
            elif isinstance(event, pool.Lost):
                found |= {c.id: Fault(c.id, c.split, "decode", event.reason) for c in file.clips}
                bar.update(len(file.clips))
    ordered = [found[clip.id] for clip in wanted]
    unreadable = [Fault(r["file"], "", r["stage"], r["reason"]) for r in listing.unreadable]
    return document(
        [item for item in ordered if isinstance(item, Facts)],
        [item for item in ordered if isinstance(item, Fault)] + unreadable,
        kind="videos",
        path=str(videos),
        disk_bytes=sum(size for size in listing.sizes.values() if size > 0),
        thresholds=THRESHOLDS,
        about={
            "list": listing.origin,
            "files": len(listing.sizes),
            "files passed over": dict(listing.passed_over),
            "decoder": measured.libraries(),
        },
    )


def _seconds(videos: Path, file: str) -> float | None:
    try:
        return measured.stream_seconds(videos / file, "video")
    except Unusable:
        return None


# ---- in worker processes ----------------------------------------------------------------------


def _inspect_file(file: FileClips, *, videos: Path) -> Iterator[None]:
    """The clips of one file: id -> facts or fault; a step for each."""
    path = videos / file.file
    found: dict[str, Facts | Fault] = {}
    with contextlib.ExitStack() as stack:
        reader = facts = None
        for request in file.clips:
            try:
                if reader is None:
                    opened = stack.enter_context(media.Reader(path, FRAME_SIZE))
                    facts, reader = _file_facts(path), opened
                found[request.id] = _inspect_clip(reader, request, *facts)
            except Unusable as fault:
                if reader is None:  # the whole file
                    whole = file.clips[len(found) :]
                    found |= {c.id: Fault(c.id, c.split, *fault.args) for c in whole}
                    break
                found[request.id] = Fault(request.id, request.split, *fault.args)
            yield
    return found


def _inspect_clip(
    reader: media.Reader, request: ClipRequest, file_digest: str, rate: float, variable: bool
) -> Facts:
    decoded = reader.cut(request.start, request.end)
    check_usable(decoded)
    try:
        features = {
            "picture": PlainVisual().prepare(decoded.frames, None),
            "sound": PlainAudio().prepare(decoded.waveform),
        }
    except InputError as error:
        raise Unusable("decode", str(error)) from None
    return Facts(
        id=request.id,
        split=request.split,
        label=request.label,
        source=request.file,
        seconds=decoded.end - request.start,
        frame_rate=rate,
        digests={
            "file": file_digest,
            "picture": digest(decoded.frames),
            "sound": digest(decoded.waveform),
        },
        variable=variable,
        signatures={w: s for w, v in features.items() if (s := signature(v)) is not None},
    )


def _file_facts(path: Path) -> tuple[str, float, bool]:
    """A digest of a file's bytes, its frame rate in Hz, and whether frames are unevenly spaced."""
    with open(path, "rb") as file:
        of_bytes = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    with decoder_errors(path):
        with contextlib.closing(Stream(path, "video")) as stream:
            rate = round(stream.rate, 3)
        return of_bytes, rate, is_variable(packet_times(path, "video"))


def is_variable(times: list[float]) -> bool:
    """Whether frames are not evenly spaced (see `THRESHOLDS`).

    >>> is_variable([0, 10, 20, 30, 40]), is_variable([0, 10, 20, 80, 90])
    (False, True)
    """
    intervals = np.diff(np.unique(times))
    if len(intervals) < 2:
        return False
    usual = float(np.median(intervals))
    return bool(np.mean(np.abs(intervals - usual) > UNEVEN_SHARE * usual) > UNEVEN_INTERVALS)
