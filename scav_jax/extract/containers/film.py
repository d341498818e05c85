"""Which streams of a file are the film, and where its clock begins.

Of several, those are taken that FFmpeg's program takes: the largest picture, the sound with the
most channels, before them what is marked as the default; of sounds, one that has begun within a few
seconds. But covers and stills are no film: a picture stream with one picture only is passed over
where another one moves. And where a transport
stream has several programmes, the sound is one of the picture's own programme, or there is none.

Second 0 is where the container says that it starts, as FFmpeg's program has it. Where that is
before 0, it may be what decoders drop (an encoder's priming): then it is the first moment that is
decoded.
"""

import contextlib
import functools
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
from av.stream import Disposition

from scav_jax.extract.containers.cropping import NO_MARGINS, Margins, margins
from scav_jax.extract.containers.losses import losses
from scav_jax.extract.containers.opening import (
    PROGRAM_STREAM,
    TRANSPORT,
    Unusable,
    open_container,
)
from scav_jax.extract.containers.packs import are_replaced
from scav_jax.extract.containers.transport import Programmes
from scav_jax.extract.containers.whole import JOINED, check_single

KINDS = ("video", "audio")
RESTARTING = 0x0200  # libavformat's AVFMT_TS_DISCONT: timestamps may start anew
NO_FILM = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
DEFAULT_BONUS = 5_000_000  # of FFmpeg's program
PACKETS_PROBED = 512
PROBED_S = 5.0  # of FFmpeg's program: a sound that begins later is as good as none


@dataclass(frozen=True)
class Film:
    """What of a file is decoded.

    Attributes:
      indexes: kind -> the stream's index in the file; kinds that it lacks are left out.
      zero: second 0 of the film, in seconds of the file's own clock.
      margins: what is cut off its pictures.
      losses: before which bytes of the file something is lost, as far as its container can tell.
    """

    indexes: dict[str, int]
    zero: float
    margins: Margins = NO_MARGINS
    losses: tuple[int, ...] = ()


def film_of(path: Path) -> Film:
    """Looks at a file; `Unusable` where it cannot be opened, or only its first part is read.

    Files that were looked at last are known by size and time: some are read whole for it, and
    have many clips.
    """
    try:
        about = os.stat(path)
    except (OSError, ValueError):
        return _film_of(path)  # which says so as it always does
    return _known(path, (about.st_ino, about.st_size, about.st_mtime_ns))


@functools.lru_cache(maxsize=16)
def _known(path: Path, _: tuple[int, int, int]) -> Film:
    return _film_of(path)


def _film_of(path: Path) -> Film:
    with contextlib.closing(open_container(path)) as container:
        check_single(path, container.format.name)
        indexes = _indexes(path, container)
        cut_off = _margins(path, container, indexes)
        start = _declared_start(container, indexes)
        pids = [container.streams[index].id for index in indexes.values()]
        lost = losses(path, container.format.name, pids)
    if not indexes:  # subtitles or data alone
        return Film(indexes, 0.0)
    if start is None or start < 0:
        start = _first_moment(path, indexes)
    return Film(indexes, start, cut_off, lost)


def _indexes(path: Path, container: av.container.InputContainer) -> dict[str, int]:
    """Kind -> the index of the stream that is the film's; the picture is chosen first."""
    chosen: dict[str, av.stream.Stream] = {}
    programmes = Programmes(path) if container.format.name == TRANSPORT else None
    for kind in KINDS:
        usable = _usable_streams(container, kind)
        if programmes and "video" in chosen:
            usable = _related(programmes, chosen["video"], usable)
        if usable:
            chosen[kind] = _chosen(path, usable)
    if programmes and any(programmes.replaced(one.id, kind) for kind, one in chosen.items()):
        raise Unusable("open", JOINED)
    numbers = [one.id for one in chosen.values()]
    if container.format.name == PROGRAM_STREAM and are_replaced(path, numbers):
        raise Unusable("open", JOINED)
    return {kind: stream.index for kind, stream in chosen.items()}


def _related(
    programmes: Programmes, picture: av.stream.Stream, sounds: list[av.stream.Stream]
) -> list[av.stream.Stream]:
    """Those sounds that are in a programme with the picture."""
    pids = programmes.related(picture.id)
    own = [sound for sound in sounds if sound.id in pids]
    if not programmes.several:
        return own or sounds
    if sounds and not pids:
        raise Unusable(
            "open",
            "unclear programme: of several, none has the picture, so no sound is known to be its "
            "own; take one out: ffmpeg -i in.ts -map 0:v:0 -map 0:a:0 -c copy out.ts",
        )
    return own


def _declared_start(
    container: av.container.InputContainer, indexes: dict[str, int]
) -> float | None:
    """When the header says that the film starts, in seconds; None where it does not.

    Where timestamps may start anew, FFmpeg's program looks at the streams that it reads only.
    """
    if container.format.flags & RESTARTING:
        streams = [container.streams[index] for index in indexes.values()]
        starts = [float(s.start_time * s.time_base) for s in streams if s.start_time is not None]
        return min(starts, default=None)
    return None if container.start_time is None else container.start_time / av.time_base


def _margins(
    path: Path, container: av.container.InputContainer, indexes: dict[str, int]
) -> Margins:
    if "video" not in indexes:
        return NO_MARGINS
    stream = container.streams[indexes["video"]]
    number = container.streams.video.index(stream)
    return margins(path, container.format.name, number, stream.width, stream.height)


def _usable_streams(container: av.container.InputContainer, kind: str) -> list[av.stream.Stream]:
    return [
        stream
        for stream in container.streams
        if stream.type == kind and stream.codec_context and not stream.disposition & NO_FILM
    ]


def _chosen(path: Path, usable: list[av.stream.Stream]) -> av.stream.Stream:
    if len(usable) > 1:
        usable = _begun(path, usable) or usable
    return max(usable, key=_worth)


def _worth(stream: av.stream.Stream) -> int:
    bonus = DEFAULT_BONUS if stream.disposition & Disposition.default else 0
    if stream.type == "video":
        return bonus + stream.width * stream.height
    return bonus + len(stream.layout.channels)


def _begun(path: Path, streams: Sequence[av.stream.Stream]) -> list[av.stream.Stream]:
    """The streams that have some sound, or more than one picture, near the file's begin."""
    least, until = (2, math.inf) if streams[0].type == "video" else (1, PROBED_S)
    counts, begin = Counter[int](), math.inf
    with (
        contextlib.closing(open_container(path)) as container,
        contextlib.suppress(av.FFmpegError, IndexError),
    ):
        for packet in container.demux([container.streams[one.index] for one in streams]):
            counts[packet.stream.index] += packet.size > 0
            enough = all(counts[one.index] >= least for one in streams)
            if packet.dts is not None:
                begin = min(begin, (seconds := float(packet.dts * packet.time_base)))
                enough |= seconds - begin > until
            if enough or counts.total() >= PACKETS_PROBED:
                break
    return [one for one in streams if counts[one.index] >= least]


def _first_moment(path: Path, indexes: dict[str, int]) -> float:
    """When the first picture or sound that is decoded stands in the file, in seconds."""
    found: dict[int, float] = {}
    with contextlib.closing(open_container(path)) as container:
        streams = [container.streams[index] for index in indexes.values()]
        with contextlib.suppress(av.FFmpegError, IndexError):
            for number, packet in enumerate(container.demux(streams)):
                if packet.size == 0 or packet.stream.index in found:
                    continue
                for frame in packet.decode()[:1]:
                    time = frame.pts if frame.pts is not None else frame.dts
                    if time is not None:
                        found[packet.stream.index] = float(time * packet.stream.time_base)
                if len(found) == len(streams) or number >= PACKETS_PROBED:
                    break
    return min(found.values(), default=0.0)
