"""What MP4 and Matroska files are made of: boxes in boxes, elements in elements.

Of any bytes: what is found ends at the first thing that cannot be right.
"""

import contextlib
import mmap
from collections.abc import Iterator
from pathlib import Path

Extent = tuple[int, int]  # where the content of a box or an element begins, and where it ends


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """The content of a file that has some."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


def boxes(content: mmap.mmap, extent: Extent) -> Iterator[tuple[bytes, Extent]]:
    """The boxes in a part of an MP4 or MOV file (ISO/IEC 14496-12): what they are, and where."""
    for kind, (begin, stop) in said_boxes(content, extent):
        yield kind, (begin, min(stop, extent[1]))


def said_boxes(content: mmap.mmap, extent: Extent) -> Iterator[tuple[bytes, Extent]]:
    """The same, as they say it: the last may end behind the part that it lies in."""
    at, end = extent
    while at + 8 <= end:
        size, head = int.from_bytes(content[at : at + 4], "big"), 8
        if size == 1:
            size, head = int.from_bytes(content[at + 8 : at + 16], "big"), 16
        stop = end if size == 0 else at + size
        if stop < at + head:
            return
        yield content[at + 4 : at + 8], (at + head, stop)
        at = stop


def box(content: mmap.mmap, extent: Extent, *kinds: bytes) -> Extent | None:
    """The first box of the first kind, in it the first of the second, and so on."""
    found: Extent | None = extent
    for kind in kinds:
        if found is None:
            return None
        found = next((inner for name, inner in boxes(content, found) if name == kind), None)
    return found


def tracks(content: mmap.mmap) -> Iterator[tuple[bytes, Extent]]:
    """The tracks of an MP4: what each is of (`vide`, `soun`, ..), and where its media lie."""
    for kind, track in boxes(content, box(content, (0, len(content)), b"moov") or (0, 0)):
        media = box(content, track, b"mdia") if kind == b"trak" else None
        handler = box(content, media, b"hdlr") if media else None
        if media and handler:
            yield content[handler[0] + 8 : handler[0] + 12], media


def elements(content: mmap.mmap, extent: Extent) -> Iterator[tuple[int, Extent]]:
    """The elements in a part of a Matroska file (RFC 8794): what they are, and where."""
    at, end = extent
    while at < end:
        kind, at = _number(content, at, marked=True)
        size, at = _number(content, at, marked=False)
        if kind is None or size is None or at > end:
            return
        stop = end if size < 0 else min(at + size, end)
        yield kind, (at, stop)
        at = stop


def _number(content: mmap.mmap, at: int, marked: bool) -> tuple[int | None, int]:
    """(a number of variable length, where it ends): -1 where it is said to be unknown.

    `marked` keeps the bit that says how long it is, as identifiers do.
    """
    first = content[at] if at < len(content) else 0
    length = 9 - first.bit_length()
    if first == 0 or at + length > len(content):
        return None, at
    value = int.from_bytes(content[at : at + length], "big")
    unmarked = value - (1 << 7 * length)
    if not marked and unmarked == (1 << 7 * length) - 1:
        return -1, at + length
    return (value if marked else unmarked), at + length
