"""When a stream ends, as its file's header and tables say."""

from pathlib import Path
from typing import Literal

import av

from scav_jax.extract.containers.film import Film
from scav_jax.extract.containers.lengths import header_seconds
from scav_jax.extract.containers.nested import box, boxes, mapped
from scav_jax.extract.containers.opening import AVI, MATROSKA, MOV

# Their headers say how long the file is; for the others libavformat looks at the last timestamps,
# at the file's size, or guesses.
LENGTH_IN_HEADER = frozenset({MATROSKA, "flv", "asf", "nut", AVI, "mxf", "rm"})
LENGTH_IN_HEADER |= {"aiff", "ast", "flac", "tta", "wv"}  # sounds
REAL_MEDIA_UNKNOWN = 3_600 * av.time_base  # what FFmpeg writes to a pipe
UNKNOWN_FRAMES = 2**30  # what an AVI says that was written to a pipe
LISTED_S = 0.25  # an MP4's last packet begins at most so long before its stream ends


class Declared:
    """What is said of the end of one stream of a film; ask before anything is read.

    Args:
      path: of the file.
      container: the file, open.
      film: what of it is read.
      stream: of the film.

    Attributes:
      end: when the header says that the stream, or the whole film, ends, in seconds of the film;
        None where it says nothing that could be believed.
      padding_from: of an MP4's sound, when its table says that it ends: that may lie inside of the
        last frame, whose rest is an encoder's padding. Else None.
    """

    def __init__(
        self,
        path: Path,
        container: av.container.InputContainer,
        film: Film,
        stream: av.stream.Stream,
    ):
        self._path = path
        self._container, self._film, self._stream = container, film, stream
        self._listed = container.format.name == MOV and bool(stream.duration)
        self._fragments = _fragments(path) if self._listed else None
        is_sound = self._listed and stream.type == "audio"
        self.padding_from = self._table_end() if is_sound else None
        self.end = self._end()

    @property
    def promised(self) -> float | None:
        """When an MP4 says that this stream ends, which is not the film; None of others.

        Of fragments, those count that were read.
        """
        if self._fragments is not None:
            return self._fragments_end()
        return self.end if self._listed else None

    def _end(self) -> float | None:
        if self._fragments == "listed":
            return self._fragments_end()
        if self._fragments == "summed up":  # they are listed while they are read
            entries = self._stream.index_entries
            trimmed = min(entries[0].timestamp, 0) if len(entries) else 0
            return self._seconds(self._stream.duration + trimmed)
        return self._table_end() if self._listed else self._header_end()

    def _header_end(self) -> float | None:
        """When a file ends that has a header and no table."""
        container, zero = self._container, self._film.zero
        seconds = header_seconds(self._path, container.format.name) or self._said()
        if seconds is None:
            return None
        if container.format.name == AVI:
            streams = [container.streams[index] for index in self._film.indexes.values()]
            if max(stream.frames for stream in streams) >= UNKNOWN_FRAMES:
                return None
            # A stream that begins late is given the frames that it lacks there. Durations are no
            # header's: libavformat shortens them where the file is shorter.
            seconds = min(float(s.frames * s.time_base) for s in streams)
        # Some muxers count from the clock's 0 and some from its start: this much both promise.
        return seconds - zero if seconds > zero > 0 else seconds

    def _said(self) -> float | None:
        """What libavformat takes from a header; None where it says nothing."""
        container = self._container
        unknown = container.format.name == "rm" and container.duration == REAL_MEDIA_UNKNOWN
        if container.format.name not in LENGTH_IN_HEADER or unknown or not container.duration:
            return None
        return container.duration / av.time_base

    def _table_end(self) -> float:
        """When an MP4's table says that the stream ends."""
        start, ticks = self._stream.start_time or 0, self._stream.duration
        end = self._seconds(start + ticks)
        if self._listed_until(end):
            return end
        # What edits leave empty at the begin is counted in. They may be longer than what they show.
        later = self._seconds(ticks) if start > 0 else end
        return later if self._listed_until(later) else self._last_listed(later)

    def _fragments_end(self) -> float:
        """When the fragments of an MP4 end that are listed so far.

        libavformat's duration is no help: an edit's trim is not taken off, and a last packet may be
        said to last until the other stream ends.
        """
        entries = self._stream.index_entries
        last = entries[len(entries) - 1].timestamp if len(entries) else self._stream.duration
        return self._seconds(last)

    def _listed_until(self, end: float) -> bool:
        """Whether an MP4's table has packets until then."""
        return end - self._last_listed(end) < LISTED_S

    def _last_listed(self, otherwise: float) -> float:
        """When the last packet of an MP4's table that is shown begins."""
        entries = self._stream.index_entries
        shown = (entries[n] for n in reversed(range(len(entries))) if not entries[n].is_discard)
        last = next(shown, None)
        return otherwise if last is None else self._seconds(last.timestamp)

    def _seconds(self, timestamp: int) -> float:
        return float(timestamp * self._stream.time_base) - self._film.zero


def _fragments(path: Path) -> Literal["listed", "summed up"] | None:
    """How an MP4 that is written in fragments says what is in it; None where it is in one piece.

    Each fragment lists its own packets. A segment index before them says how long all of them are.
    """
    with mapped(path) as content:
        if box(content, (0, len(content)), b"moov", b"mvex") is None:
            return None
        kinds = (kind for kind, _ in boxes(content, (0, len(content))))
        return "summed up" if b"sidx" in kinds else "listed"
