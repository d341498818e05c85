"""Files of which FFmpeg would read the first part only, without a word."""

import mmap
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from scav_jax.extract.nested import boxes
from scav_jax.extract.opening import MOV, Unusable

# How a file begins, in full: shorter marks occur inside of films too.
BEGINNINGS = {
    "flv": [b"FLV\x01%c\0\0\0\x09\0\0\0\0" % kinds for kinds in (1, 4, 5)],
    "asf": [bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")],
    "mxf": [bytes.fromhex("060e2b34020501010d0102010102")],
    "adx": [b"(c)CRI"],
}
# Which bytes of its own another file of the kind has too, whatever is in it.
ALIKE = {"tta": slice(6), "ape": slice(6), "mpc8": slice(6), "argo_asf": slice(8)}
ALIKE |= {"smjpeg": slice(8), "dsf": slice(12), "wtv": slice(16), "voc": slice(20)}
ALIKE |= {"nut": slice(25)}
# Here a length stands after the first four bytes; what follows tells one kind of file from others.
ALIKE |= dict.fromkeys(("wav", "aiff", "caf", "w64", "iff", "xwma"), slice(8, 16))
WAVPACK = struct.Struct("<IHHIIII")  # size, version, more digits; samples, first, count, flags
FIRST_OF_BLOCK = 1 << 11
JOINED = "joined: two files byte by byte, only the first can be read; join with FFmpeg"


def check_single(path: Path, format_name: str) -> None:
    """Raises `Unusable` for files joined byte by byte whose later ones are not read.

    Others are read to their end, and their clocks say that they start anew.
    """
    if format_name == MOV:
        kinds = Counter(_boxes(path))
        joined = kinds[b"moov"] > 1 and not kinds[b"moof"]
    elif format_name == "wv":
        joined = list(_wavpack_blocks(path)).count(0) > 1
    else:
        marks = BEGINNINGS.get(format_name, [])
        if format_name in ALIKE:
            with open(path, "rb") as file:
                marks = [file.read(32)[ALIKE[format_name]]]
        joined = any(_occurs_later(path, mark) for mark in marks)
    if joined:
        raise Unusable("open", JOINED)


def _boxes(path: Path) -> Iterator[bytes]:
    """The kinds of the boxes of an MP4."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield from (kind for kind, _ in boxes(content, (0, len(content))))


def _wavpack_blocks(path: Path) -> Iterator[int]:
    """At which sample each block begins that is the first of its channels, in all of a file.

    A file of tags, or another one, may lie behind the last block of one.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(b"wvpk")
        while at >= 0 and at + 32 <= len(content):
            size, _, _, _, first, count, flags = WAVPACK.unpack_from(content, at + 4)
            if flags & FIRST_OF_BLOCK and count:
                yield first
            at = content.find(b"wvpk", at + 8 + size if size < len(content) else at + 4)


def _occurs_later(path: Path, mark: bytes) -> bool:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(mark, content.find(mark) + 1) >= 0
