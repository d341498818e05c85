"""How long a file's header says that it is, where libavformat forgets that when less is there."""

import mmap
from collections.abc import Callable
from pathlib import Path

from scav_jax.extract.containers.nested import mapped

HEADER_BYTES = 2**20
ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
BROADCAST = 1  # an ASF's flag: its lengths are not known
PCM = {1, 3, 6, 7, 0xFFFE}  # what a WAV holds whose seconds have one number of bytes
UNKNOWN_BYTES = 0x7FFF_0000  # and more: what writers to a pipe say
RF64_BYTES = 0xFFFF_FFFF  # the size stands elsewhere
MP3_RATES = (44_100, 48_000, 32_000)  # of MPEG-1; half of it of MPEG-2, a quarter of MPEG-2.5


def header_seconds(path: Path, format_name: str) -> float | None:
    """What a header says; None where it says nothing, or libavformat passes it on.

    Args:
      path: of the file.
      format_name: libavformat's.
    """
    find = FINDERS.get(format_name)
    if find is None:
        return None
    with mapped(path) as content:
        return find(content)


def _of_asf(content: mmap.mmap) -> float | None:
    """The play duration less the preroll that is counted in."""
    at = content.find(ASF_PROPERTIES, 0, HEADER_BYTES)
    if at < 0 or _little(content, at + 88, 4) & BROADCAST:
        return None
    seconds = _little(content, at + 64, 8) / 1e7 - _little(content, at + 80, 8) / 1e3
    return seconds if seconds > 0 else None


def _of_wav(content: mmap.mmap) -> float | None:
    at, rate, wide = 12, 0, 0
    while at + 8 <= min(len(content), HEADER_BYTES):
        kind, size = content[at : at + 4], _little(content, at + 4, 4)
        if kind == b"ds64":
            wide = _little(content, at + 16, 8)
        elif kind == b"fmt ":
            rate = _little(content, at + 16, 4) * (_little(content, at + 8, 2) in PCM)
        elif kind == b"data":
            size = wide if size == RF64_BYTES else size * (size < UNKNOWN_BYTES)
            return size / rate if rate and size else None
        at += 8 + size + size % 2
    return None


def _of_mp3(content: mmap.mmap) -> float | None:
    """Frames of the first one's kind, as many as a Xing or Info header counts in it."""
    at = 0
    while content[at : at + 3] == b"ID3":
        at += 10 + sum((content[at + 6 + n] & 127) << 7 * (3 - n) for n in range(4))
    frame = content[at : at + 64]
    if len(frame) < 64 or frame[0] != 0xFF or frame[1] < 0xE0:
        return None
    version, rate = frame[1] >> 3 & 3, frame[2] >> 2 & 3
    place = max(frame.find(b"Xing"), frame.find(b"Info"))
    if rate == 3 or place < 0 or not frame[place + 7] & 1:
        return None
    hertz = MP3_RATES[rate] / {3: 1, 2: 2}.get(version, 4)
    samples = 1152 if version == 3 else 576
    return int.from_bytes(frame[place + 8 : place + 12], "big") * samples / hertz or None


def _little(content: mmap.mmap, at: int, digits: int) -> int:
    return int.from_bytes(content[at : at + digits], "little")


FINDERS: dict[str, Callable[[mmap.mmap], float | None]] = {
    "asf": _of_asf,
    "wav": _of_wav,
    "mp3": _of_mp3,
}
