"""Files of which FFmpeg would read the first part only, without a word."""

import mmap
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from scav_jax.extract.opening import Unusable

# How a file begins, in full: shorter marks occur inside of films too.
BEGINNINGS = {
    "flv": [b"FLV\x01%c\0\0\0\x09\0\0\0\0" % kinds for kinds in (1, 4, 5)],
    "asf": [bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")],
    "mxf": [bytes.fromhex("060e2b34020501010d0102010102")],
}
# Here a length stands after the first four bytes; what follows tells one kind of file from others.
SIZED = ("wav", "aiff", "caf", "w64")
JOINED = "joined: two files byte by byte, only the first can be read; join with FFmpeg"
MOV = "mov,mp4,m4a,3gp,3g2,mj2"


def check_single(path: Path, format_name: str) -> None:
    """Raises `Unusable` for files joined byte by byte whose later ones are not read.

    Others are read to their end, and their clocks say that they start anew.
    """
    if format_name == MOV:
        kinds = Counter(_boxes(path))
        joined = kinds[b"moov"] > 1 and not kinds[b"moof"]
    else:
        marks = BEGINNINGS.get(format_name, [])
        if format_name in SIZED:
            with open(path, "rb") as file:
                marks = [file.read(16)[8:]]
        joined = any(_occurs_later(path, mark) for mark in marks)
    if joined:
        raise Unusable("open", JOINED)


def _boxes(path: Path) -> Iterator[bytes]:
    """The kinds of the boxes of an MP4, up to the first that cannot be right."""
    size, at = os.path.getsize(path), 0
    with open(path, "rb") as file:
        while at + 8 <= size:
            file.seek(at)
            head = file.read(16)
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if length == 1:
                length = int.from_bytes(head[8:16], "big")
            if length < 8:  # 0: to the end
                return
            yield kind
            at += length


def _occurs_later(path: Path, mark: bytes) -> bool:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(mark, content.find(mark) + 1) >= 0
