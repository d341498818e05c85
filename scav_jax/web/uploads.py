"""A file that somebody sent: never larger than allowed, never on disk for longer than needed.

It is opened, checked and decoded in a process of its own (`extract.pool`), which may crash, hang or
want too much memory: that costs this file's answer and nothing else. What a header declares is
checked before anything is decoded; where it lies, the limits of time and memory hold.
"""

import tempfile
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from scav_jax.base.errors import InputError
from scav_jax.base.names import shown
from scav_jax.extract import jobs, pool
from scav_jax.extract.backbones import KINDS, Preparer
from scav_jax.extract.jobs import Job, Outcome
from scav_jax.extract.manifest import ClipRequest
from scav_jax.extract.streams import Unusable, stream_kinds, stream_seconds
from scav_jax.report.playable import Playable, picture_load, playable

NEEDED = {"a2v": "audio", "v2a": "visual"}  # the stream that asks
WORDS = {"audio": "sound", "visual": "picture"}
TIMEOUT_S = 60.0  # for opening, for decoding, and for what is played of it
FRAME_PIXELS = 36_000_000  # 8K
PIXELS = 2**33  # of all frames together: 4K at 30 Hz for the whole time
MEMORY_BYTES = 3 * 2**30  # beyond what a process has when it begins


class TooLarge(InputError):
    """More bytes than are taken."""


def too_large(limit: int) -> TooLarge:
    return TooLarge(
        f"the file is too large: expected at most {limit / 2**20:,.0f} MiB; cut out the part that "
        "you mean"
    )


@asynccontextmanager
async def saved(chunks: AsyncIterator[bytes], folder: Path, limit: int) -> AsyncIterator[Path]:
    """A file with what comes, removed again at the end whatever happens.

    Raises:
      TooLarge: as soon as more than `limit` bytes have come.
      InputError: nothing came.
    """
    with tempfile.NamedTemporaryFile(dir=folder, prefix="query-") as file:
        count = 0
        async for chunk in chunks:
            count += len(chunk)
            if count > limit:
                raise too_large(limit)
            file.write(chunk)
        file.flush()
        if not count:
            raise InputError("the file is empty: choose a sound or a video")
        yield Path(file.name)


def check_media(path: Path, name: str, direction: str | None) -> tuple[str, float | None]:
    """Who asks, and how long the stream that asks is, if the file says so.

    Args:
      path: of the file.
      name: what it is called, for messages.
      direction: "a2v" by its sound, "v2a" by its picture, None by the sound if it has one.

    Raises:
      InputError: it is no media file, or lacks the stream.
    """
    try:
        kinds = stream_kinds(path)
        streams = [stream for stream, kind in KINDS.items() if kind in kinds]
        if not streams:
            raise Unusable("open", "neither picture nor sound in it")
        chosen = direction or ("a2v" if "audio" in streams else "v2a")
        needed = NEEDED[chosen]
        if needed in streams:
            return chosen, stream_seconds(path, KINDS[needed])
    except Unusable as unusable:
        raise InputError(
            f"{name}: expected a sound or a video, this cannot be read ({unusable.reason})"
        ) from None
    raise InputError(
        f"{name}: expected a file with a {WORDS[needed]}, it has none; search by its "
        f"{WORDS[streams[0]]} instead"
    )


@dataclass(frozen=True)
class Upload:
    """What is asked for.

    Attributes:
      path: of the file.
      name: what it is called.
      direction: who asks; None takes what it has.
      start: from which second on.
      longest: how many seconds of it are used.
    """

    path: Path
    name: str
    direction: str | None
    start: float
    longest: float


@dataclass(frozen=True)
class Decoded:
    """What became of an upload.

    Attributes:
      direction: who asks.
      note: for people, where not all of it was used.
      outcome: its clip, as the backbone takes it.
      played: what a browser plays of it, or why it does not, in words.
    """

    direction: str
    note: str
    outcome: Outcome
    played: Playable | str


def decode(upload: Upload, preparer: Preparer, *, apart: bool = True) -> Decoded:
    """Checks and decodes a file.

    Args:
      upload: the file.
      preparer: the worker's half of the backbone.
      apart: in a process of its own.

    Raises:
      InputError: it cannot be used; the message says why.
    """
    if not apart:
        return _decoded(upload, *_steps(upload, preparer))
    work, found = partial(_decoding, preparer=preparer), []
    try:
        with closing(pool.run(work, deque([upload]), workers=1, timeout_s=TIMEOUT_S)) as events:
            for _, event in events:
                if isinstance(event, pool.Lost):
                    raise InputError(f"{shown(upload.name)}: cannot be used: {event.reason}")
                if isinstance(event, pool.Step):
                    found.append(event.result)
    except MemoryError:
        raise InputError(
            f"{shown(upload.name)}: cannot be used: decoding it takes more than "
            f"{MEMORY_BYTES / 2**30:g} GiB of memory"
        ) from None
    return _decoded(upload, *found)


def _decoded(upload: Upload, about: tuple[str, str], outcome: Outcome, played) -> Decoded:
    if outcome.rejection is not None:
        raise InputError(f"{shown(upload.name)}: cannot be used: {outcome.rejection['reason']}")
    return Decoded(*about, outcome, played)


def _decoding(upload: Upload, *, preparer: Preparer) -> Iterator:
    """In a process of its own."""
    _bound_memory()
    try:
        yield from _steps(upload, preparer)
    except MemoryError:
        raise MemoryError from None  # NumPy's own does not come through a pipe


def _bound_memory() -> None:
    """This process may take `MEMORY_BYTES` more than it has."""
    pages = Path("/proc/self/statm")
    if pages.exists():  # Linux
        import resource  # which Windows has not

        used = int(pages.read_text().split()[0]) * resource.getpagesize()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        wanted = used + MEMORY_BYTES
        if most == resource.RLIM_INFINITY or wanted < most:
            resource.setrlimit(resource.RLIMIT_AS, (wanted, most))


def _steps(upload: Upload, preparer: Preparer) -> Iterator:
    """Who asks and a note; the clip; what is played of it."""
    path, name, start = upload.path, shown(upload.name), upload.start
    direction, seconds = check_media(path, name, upload.direction)
    note, end = "", None
    if seconds is not None and start >= seconds:
        raise InputError(f"start: expected less than the {seconds:.1f} s of {name}")
    if seconds is not None and seconds - start > upload.longest + 0.5:
        end = start + upload.longest
        note = f"Only {start:g} to {end:g} s of {seconds:.1f} s were used."
    kind = KINDS[NEEDED[direction]]
    if kind == "video":
        left = upload.longest if seconds is None else seconds - start
        _check_pixels(path, name, min(left, upload.longest))
    yield direction, note
    request = ClipRequest(str(path), start, end, name)
    (outcome,) = jobs.prepare(
        Job(0, ((0, request),)), videos=Path("/"), preparer=preparer, kinds=(kind,)
    )
    yield outcome
    if outcome.rejection is None:
        try:
            yield playable(path, start, outcome.end, kinds=(kind,))
        except Unusable as unusable:
            yield unusable.reason
    else:
        yield ""


def _check_pixels(path: Path, name: str, seconds: float) -> None:
    """Raises `InputError` for more picture than is decoded for one answer."""
    try:
        pixels, rate = picture_load(path)
    except Unusable as unusable:
        raise InputError(f"{name}: cannot be used: {unusable.reason}") from None
    if pixels > FRAME_PIXELS or pixels * rate * seconds > PIXELS:
        raise InputError(
            f"{name}: expected at most {FRAME_PIXELS / 1e6:g} million pixels a frame and "
            f"{PIXELS / 1e9:.1f} thousand million in all that is used, this has {pixels / 1e6:.1f} "
            f"million at {rate:g} Hz; scale it down, or cut out a shorter part"
        )
