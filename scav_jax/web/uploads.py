"""A file that somebody sent: never larger than allowed, never on disk for longer than needed.

It is opened, checked and decoded in a process of its own (`extract.pool`), which may crash, hang or
want too much memory: that costs this file's answer and nothing else. What a header declares is
checked before anything is decoded; where it lies, the limits of time and memory hold.
"""

import contextlib
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from scav_jax.base.errors import InputError
from scav_jax.base.names import shown
from scav_jax.extract import jobs, pool
from scav_jax.extract.backbones import KINDS, Preparer
from scav_jax.extract.containers.opening import Unusable
from scav_jax.extract.decoding.measured import stream_kinds, stream_seconds
from scav_jax.extract.jobs import Job, Outcome
from scav_jax.extract.manifest import ClipRequest
from scav_jax.report.markup import ASKING, STREAM_WORDS
from scav_jax.report.playable import Playable, make_playable, picture_load

TIMEOUT_S = 60.0  # for opening, for decoding, and for what is played of it
FRAME_PIXELS = 36_000_000  # 8K
PIXELS = 2**33  # of all frames together: 4K at 30 Hz for the whole time
MEMORY_BYTES = 3 * 2**30  # beyond what a process has when it begins


class TooLarge(InputError):
    """More bytes than are taken."""

    def __init__(self, limit: int):
        super().__init__(
            f"the file is too large: expected at most {limit / 2**20:,.0f} MiB; cut out the part "
            "that you mean"
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
                raise TooLarge(limit)
            file.write(chunk)
        file.flush()
        if not count:
            raise InputError("the file is empty: choose a sound or a video")
        yield Path(file.name)


@dataclass(frozen=True)
class Asking:
    """What a file can ask with.

    Attributes:
      direction: who asks.
      streams: that it has.
      seconds: how long what asks is, if the file says so.
    """

    direction: str
    streams: tuple[str, ...]
    seconds: float | None


def check_media(path: Path, name: str, direction: str | None) -> Asking:
    """Who asks, if it can.

    Args:
      path: of the file.
      name: what it is called, for messages.
      direction: "a2v" by its sound, "v2a" by its picture, "both" by the two together, None by the
        sound if it has one.

    Raises:
      InputError: it is no media file, or lacks the stream.
    """
    try:
        kinds = stream_kinds(path)
        streams = tuple(stream for stream, kind in KINDS.items() if kind in kinds)
        if not streams:
            raise Unusable("open", "neither picture nor sound in it")
        chosen = direction or ("a2v" if "audio" in streams else "v2a")
        missing = [stream for stream in ASKING[chosen] if stream not in streams]
        if not missing:
            known = [stream_seconds(path, KINDS[stream]) for stream in ASKING[chosen]]
            seconds = None if None in known else min(known)
            return Asking(chosen, streams, seconds)
    except Unusable as unusable:
        raise InputError(
            f"{name}: expected a sound or a video, this cannot be read ({unusable.reason})"
        ) from None
    raise InputError(
        f"{name}: expected a file with a {STREAM_WORDS[missing[0]]}, it has none; search by its "
        f"{STREAM_WORDS[streams[0]]} instead"
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
      end: up to which second, where that was asked for.
    """

    path: Path
    name: str
    direction: str | None
    start: float
    longest: float
    end: float | None = None


@dataclass(frozen=True)
class Decoded:
    """What became of an upload.

    Attributes:
      asking: who asks, and what else could.
      note: for people, where not all of it was used.
      outcome: its clip, as the backbone takes it.
      played: what a browser plays of it, or why it does not, in words.
    """

    asking: Asking
    note: str
    outcome: Outcome
    played: Playable | str


def decode(
    upload: Upload,
    preparer: Preparer,
    *,
    apart: bool = True,
    told: Callable[[], None] = lambda: None,
) -> Decoded:
    """Checks and decodes a file.

    Args:
      upload: the file.
      preparer: the worker's half of the backbone.
      apart: in a process of its own.
      told: is called when it is decoded, before what is played of it is made.

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
                    _only_played(upload, found, event.reason)
                if isinstance(event, pool.Step):
                    found.append(event.result)
                    if len(found) == 2:
                        told()
    except MemoryError:
        reason = f"decoding it takes more than {MEMORY_BYTES / 2**30:g} GiB of memory"
        _only_played(upload, found, reason)
    return _decoded(upload, *found)


def _only_played(upload: Upload, found: list, reason: str) -> None:
    """What was lost when all that asks is decoded costs only what is played of it."""
    if len(found) != 2:
        raise InputError(f"{shown(upload.name)}: cannot be used: {reason}") from None
    found.append(reason)


def _decoded(upload: Upload, about: tuple[Asking, str], outcome: Outcome, played) -> Decoded:
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
    asking = check_media(path, name, upload.direction)
    seconds, note, end = asking.seconds, "", upload.end
    if seconds is not None and start >= seconds:
        raise InputError(f"start: expected less than the {seconds:.1f} s of {name}")
    if end is None and seconds is not None and seconds - start > upload.longest + 0.5:
        end = start + upload.longest
        note = f"Only {start:g} to {end:g} s of {seconds:.1f} s were used."
    kinds = tuple(KINDS[stream] for stream in ASKING[asking.direction])
    used = upload.longest if seconds is None else min(seconds - start, upload.longest)
    if "video" in kinds:
        _check_pixels(path, name, used)
    yield asking, note
    request = ClipRequest(str(path), start, end, name)
    (outcome,) = jobs.prepare(
        Job(0, ((0, request),)), videos=Path("/"), preparer=preparer, kinds=kinds
    )
    yield outcome
    yield "" if outcome.rejection is not None else _played(upload, asking, kinds, outcome.end, used)


def _played(
    upload: Upload, asking: Asking, kinds: tuple[str, ...], end: float, used: float
) -> Playable | str:
    """Picture and sound where it has them, or what asks alone where the rest cannot be played."""
    with contextlib.suppress(InputError, Unusable):
        if "video" not in kinds and "visual" in asking.streams:
            _check_pixels(upload.path, upload.name, used)
        return make_playable(upload.path, upload.start, end)
    try:
        return make_playable(upload.path, upload.start, end, kinds=kinds)
    except Unusable as unusable:
        return unusable.reason


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
