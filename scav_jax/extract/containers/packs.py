"""Whether other streams follow those of a program stream (MPG, VOB): joined byte by byte.

A program stream has no tables. libavformat finds its streams near the begin, and PyAV gives no
packets of those that come later: where the sound goes on in a stream of another kind (MP2, then
AC-3), it is lost without a word.
"""

import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scav_jax.extract.containers.nested import mapped

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


def are_replaced(path: Path, numbers: Iterable[int]) -> bool:
    """Whether another stream of the kind begins behind one of some streams, or ends before it.

    Args:
      path: of the file.
      numbers: libavformat's, of the streams.
    """
    spans: dict[int, _Span] = {}
    with mapped(path) as content:
        for number, at in _packets(content):
            span = spans.setdefault(number, _Span(at, at))
            span.last, span.count = at, span.count + 1
    return any(
        other.first > own.last or other.last < own.first
        for number in numbers
        if (own := spans.get(number)) is not None
        for key, other in spans.items()
        if other.count >= FEWEST_PACKETS and (key >= PICTURES_FROM) == (number >= PICTURES_FROM)
    )


def _packets(content: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Of each packet of a sound or a picture: libavformat's number of its stream, and its place."""
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
            number = 0x100 + code
            if code == PRIVATE:
                place = _payload(content, at + 6)
                number = content[place] if place < len(content) else 0
            if number in PRIVATE_SOUNDS or code in SOUND_OR_PICTURE:
                yield number, at
            at += 6 + int.from_bytes(content[at + 4 : at + 6], "big")


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
