"""Whether other streams follow those of a program stream (MPG, VOB): joined byte by byte.

A program stream has no tables. libavformat finds its streams near the begin, and PyAV gives no
packets of those that come later: where the sound goes on in a stream of another kind (MP2, then
AC-3), it is lost without a word.
"""

import mmap
from dataclasses import dataclass
from pathlib import Path

from scav_jax.extract.containers.nested import mapped

FORMAT = "mpeg"  # libavformat's name
PREFIX = b"\0\0\x01"
END, PACK, PRIVATE = 0xB9, 0xBA, 0xBD  # what a start code says
PACK_BEGINS = PREFIX + bytes((PACK,))
SOUND_OR_PICTURE = range(0xC0, 0xF0)
PICTURES_FROM = 0x1E0  # libavformat's numbers; below are sounds, private ones below 0x100
PRIVATE_SOUNDS = range(0x80, 0xB0)  # AC-3, DTS, PCM
FEWEST_PACKETS = 8  # less is damage


@dataclass
class _Span:
    """Where the packets of a stream lie in the file."""

    first: int
    last: int
    count: int = 0


class ProgramStream:
    """Where the streams of a file lie.

    Args:
      path: of the file.
    """

    def __init__(self, path: Path):
        self._spans: dict[int, _Span] = {}
        with mapped(path) as content:
            self._walk(content)

    def replaced(self, number: int) -> bool:
        """Whether another stream of the kind begins behind a stream, or ends before it.

        Args:
          number: libavformat's, of the stream.
        """
        own = self._spans.get(number)
        return own is not None and any(
            other.first > own.last or other.last < own.first
            for key, other in self._spans.items()
            if other.count >= FEWEST_PACKETS and (key >= PICTURES_FROM) == (number >= PICTURES_FROM)
        )

    def _walk(self, content: mmap.mmap) -> None:
        at = 0
        while 0 <= at <= len(content) - 16:
            code = content[at + 3]
            if content[at : at + 3] != PREFIX or code < END:
                at = content.find(PACK_BEGINS, at + 1)
            elif code == PACK:
                is_first_version = content[at + 4] >> 6 != 1
                at += 12 if is_first_version else 14 + (content[at + 13] & 7)
            elif code == END:
                at += 4
            else:
                self._note(content, at, code)
                at += 6 + int.from_bytes(content[at + 4 : at + 6], "big")

    def _note(self, content: mmap.mmap, at: int, code: int) -> None:
        number = 0x100 + code
        if code == PRIVATE:
            place = _payload(content, at + 6)
            number = content[place] if place < len(content) else 0
            if number not in PRIVATE_SOUNDS:
                return
        elif code not in SOUND_OR_PICTURE:
            return
        span = self._spans.setdefault(number, _Span(at, at))
        span.last, span.count = at, span.count + 1


def _payload(content: mmap.mmap, at: int) -> int:
    """Where a packet's payload begins; `at` is behind its length."""
    if content[at] >> 6 == 2:  # MPEG-2: three bytes, the third says how much follows
        return at + 3 + content[at + 2]
    while content[at : at + 1] == b"\xff":
        at += 1
    if content[at : at + 1] >= b"\x40":  # a buffer's size
        at += 2
    times = int.from_bytes(content[at : at + 1], "big") >> 4
    return at + {2: 5, 3: 10}.get(times, 1)
