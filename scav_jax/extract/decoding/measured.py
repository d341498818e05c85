"""What is measured of a file as a whole: its streams, how long they are, its pictures' shape."""

import contextlib
from pathlib import Path

import av

from scav_jax.extract.containers.film import film_of
from scav_jax.extract.containers.opening import Unusable, decoder_errors, open_container
from scav_jax.extract.decoding.streams import Stream
from scav_jax.extract.decoding.upright import shown_ratio


def stream_seconds(path: Path, kind: str) -> float | None:
    """The length of the picture ("video") or of the sound ("audio"), from its packets; None where
    it has none.
    """
    with decoder_errors(path), contextlib.closing(Stream(path, kind)) as stream:
        return stream.measured_end()


def film_seconds(path: Path) -> float | None:
    """The length of a film, which is its picture's; of a file of sound alone, the sound's."""
    return stream_seconds(path, "video" if "video" in stream_kinds(path) else "audio")


def file_seconds(path: Path) -> float:
    """When a file's last packet ends, also of streams that are no part of the film.

    A subtitle or a second language may outlast it.
    """
    film, end = film_of(path), 0.0
    with contextlib.closing(open_container(path)) as container, contextlib.suppress(av.FFmpegError):
        for packet in container.demux():
            if packet.pts is not None and not packet.is_discard:
                ticks = packet.pts + (packet.duration or 0)
                end = max(end, float(ticks * packet.stream.time_base) - film.zero)
    return end


def picture_ratio(path: Path) -> float:
    """The width of a film's pictures over their height, as they are shown."""
    with decoder_errors(path), contextlib.closing(Stream(path, "video")) as stream:
        found = stream.next()
        if found is None:
            raise Unusable("decode", "no frames")
        return shown_ratio(found[1], stream.stream, stream.margins)


def stream_kinds(path: Path) -> tuple[str, ...]:
    """Which of "video" and "audio" a file has; the cover of a song is no picture."""
    with decoder_errors(path):
        return tuple(film_of(path).indexes)


def libraries() -> dict[str, str]:
    """Versions of what decodes and converts, for the extractor's fingerprint."""
    names = ("libavcodec", "libavformat", "libswscale", "libswresample")
    versions = {name: ".".join(map(str, av.library_versions[name])) for name in names}
    return {"pyav": av.__version__, **versions}
