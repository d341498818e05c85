"""Files of which FFmpeg would read a part only, without a word."""

import itertools
import mmap
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from scav_jax.extract.containers.nested import Extent, box, boxes, mapped, said_boxes, tracks
from scav_jax.extract.containers.opening import MOV, Unusable

# How files begin, in full: shorter marks occur inside of films too. A dot is a byte of any value.
BEGINNINGS = {
    "flv": rb"FLV\x01[\1\4\5]\0\0\0\x09\0\0\0\0",
    "asf": re.escape(bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")),
    "mxf": re.escape(bytes.fromhex("060e2b34020501010d0102010102")),
    "adx": rb"\(c\)CRI",
    "wav": rb"R[IF][F6][FX4].{4}WAVE",  # RIFF, RIFX, RF64
    "aiff": rb"FORM.{4}AIF[FC]",
    "webp": rb"RIFF.{4}WEBP",
    "webp_anim": rb"RIFF.{4}WEBP",
    "roq": re.escape(bytes.fromhex("8410ffffffff")),
    "yuv4mpegpipe": rb"YUV4MPEG2 ",
    "apng": rb"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "fits": rb"SIMPLE  = {20}T",
    "film_cpk": rb"FILM.{12}FDSC",
    "mmf": rb"MMMD.{4}CNTI",
    "ast": rb"STRM.{4}\0[\0\1]\0\x10\0.",
}
# Which bytes of its own another file of the kind has too, whatever is in it.
ALIKE = {"tta": slice(6), "ape": slice(6), "mpc8": slice(6), "argo_asf": slice(8)}
ALIKE |= {"smjpeg": slice(8), "dsf": slice(12), "wtv": slice(16), "voc": slice(20)}
ALIKE |= {"nut": slice(25)}
# Here a length stands after the first four bytes; what follows tells one kind of file from others.
ALIKE |= dict.fromkeys(("caf", "w64", "iff", "xwma"), slice(8, 16))
WAVPACK = struct.Struct("<IHHIIII")  # size, version, more digits; samples, first, count, flags
FIRST_OF_BLOCK = 1 << 11
WESTWOOD_CHUNK = bytes.fromhex("afde0000")
# FFmpeg reads other codecs beside the first of a track's if that is one of these.
BESIDE_OTHERS = {b"jpeg", b"apcn", b"apch", b"dvpp", b"dvcp", b"AV1x"}
CHANGING = "changing codec: FFmpeg reads a track's first only; export it as one with what made it"
CUT_OFF = "truncated: its header (moov), which stands at its end, is cut off"
JOINED = "joined: two files byte by byte, only the first can be read; join with FFmpeg"


def check_single(path: Path, format_name: str) -> None:
    """Raises `Unusable` for files joined byte by byte (or by an editor) of which not all is read.

    Others are read to their end, and their clocks say that they start anew.
    """
    if format_name not in (*STRUCTURES, *BEGINNINGS, *ALIKE):
        return
    with mapped(path) as content:
        has_more = STRUCTURES.get(format_name)
        if has_more(content) if has_more else _begins_again(content, format_name):
            raise Unusable("open", JOINED)
        if format_name == MOV and _ends_within_header(content):
            raise Unusable("open", CUT_OFF)
        if format_name == MOV and _changes_codec(content):
            raise Unusable("open", CHANGING)


def _begins_again(content: mmap.mmap, format_name: str) -> bool:
    """Whether what a file begins with stands later in it too."""
    if format_name in ALIKE:
        pattern = re.escape(content[:32][ALIKE[format_name]])
        return bool(pattern) and _occurs_twice(content, pattern)
    return _occurs_twice(content, BEGINNINGS[format_name])


def _occurs_twice(content: mmap.mmap, pattern: bytes) -> bool:
    return len([*itertools.islice(re.finditer(pattern, content, re.DOTALL), 2)]) > 1


def _has_two_headers(content: mmap.mmap) -> bool:
    """Of an MP4: whether another one follows that is not read.

    libavformat leaves a second header out, and behind it fragments that begin before others that it
    has read. Fragments that go on are read, though the header may stand before each.
    """
    headers, in_fragments, begins = 0, True, {}
    for kind, extent in boxes(content, (0, len(content))):
        if kind == b"moov":
            headers += 1
            in_fragments &= box(content, extent, b"mvex") is not None
        for track, begin in _fragment_begins(content, extent) if kind == b"moof" else ():
            if headers > 1 and begin <= begins.get(track, -1):
                return True
            begins[track] = begin
    return headers > 1 and not in_fragments


def _ends_within_header(content: mmap.mmap) -> bool:
    """Of an MP4: libavformat takes the tables that are there, and what the others list is lost."""
    said = said_boxes(content, (0, len(content)))
    return any(kind == b"moov" and end > len(content) for kind, (_, end) in said)


def _fragment_begins(content: mmap.mmap, fragment: Extent) -> Iterator[tuple[int, int]]:
    """(track, tick that it begins at) of each track in a fragment that says so."""
    for kind, extent in boxes(content, fragment):
        head, time = (box(content, extent, name) for name in (b"tfhd", b"tfdt"))
        if kind == b"traf" and head and time:
            at, digits = time[0] + 4, 8 if content[time[0]] else 4
            track = int.from_bytes(content[head[0] + 4 : head[0] + 8], "big")
            yield track, int.from_bytes(content[at : at + digits], "big")


def _changes_codec(content: mmap.mmap) -> bool:
    """Of an MP4: whether its picture or its sound goes on in another codec."""
    shown = (media for kind, media in tracks(content) if kind in (b"vide", b"soun"))
    codecs = (_codecs(content, media) for media in shown)
    return any(len(set(each)) > 1 and each[0] not in BESIDE_OTHERS for each in codecs)


def _codecs(content: mmap.mmap, media: Extent) -> list[bytes]:
    """Those of an MP4's track that it has several of, in the order in which packets have them."""
    listed, runs = (box(content, media, b"minf", b"stbl", name) for name in (b"stsd", b"stsc"))
    if not (listed and runs):
        return []
    names = [kind for kind, _ in boxes(content, (listed[0] + 8, listed[1]))]
    if len(set(names)) < 2:
        return names[:1]
    numbers = (
        int.from_bytes(content[at - 4 : at], "big") for at in range(runs[0] + 20, runs[1] + 1, 12)
    )
    return [names[number - 1] for number in numbers if 0 < number <= len(names)]


def _has_two_first_blocks(content: mmap.mmap) -> bool:
    """Of a WavPack: whether blocks begin at its first sample twice, the first of their channels.

    A file of tags, or another one, may lie behind the last block of one.
    """
    found, at = 0, content.find(b"wvpk")
    while at >= 0 and at + 32 <= len(content):
        size, _, _, _, first, count, flags = WAVPACK.unpack_from(content, at + 4)
        found += bool(flags & FIRST_OF_BLOCK and count and first == 0)
        at = content.find(b"wvpk", at + 8 + size if size < len(content) else at + 4)
    return found > 1


def _goes_on_behind_flash(content: mmap.mmap) -> bool:
    """Of an SWF: whether another one follows its last tag; packed ones begin alike."""
    if content[:1] != b"F":
        first = re.escape(content[:4]) + b".{4}" + re.escape(content[8:10])
        return _occurs_twice(content, first)
    digits = 5 + 4 * (content[8] >> 3)  # of the rectangle
    at, tag = 8 + -(-digits // 8) + 4, 1
    while tag and at + 2 <= len(content):
        tag, length = divmod(int.from_bytes(content[at : at + 2], "little"), 64)
        at += 2
        if length == 63:
            length, at = int.from_bytes(content[at : at + 4], "little"), at + 4
        at += length
    return content[at + 1 : at + 3] == b"WS"


def _goes_on_behind_chunks(content: mmap.mmap) -> bool:
    """Of a Westwood sound: whether more chunks follow behind what is none."""
    at = 12
    while content[at + 4 : at + 8] == WESTWOOD_CHUNK:
        at += 8 + int.from_bytes(content[at : at + 2], "little")
    return content.find(WESTWOOD_CHUNK, at) >= 0


def _has_an_empty_part(content: mmap.mmap) -> bool:
    """Of pictures as a browser is sent them: whether the line between them comes twice at once."""
    line = content[: content.find(b"\n") + 1]
    return content.find(2 * line) >= 0


STRUCTURES: dict[str, Callable[[mmap.mmap], bool]] = {
    MOV: _has_two_headers,
    "wv": _has_two_first_blocks,
    "swf": _goes_on_behind_flash,
    "wsaud": _goes_on_behind_chunks,
    "mpjpeg": _has_an_empty_part,
}
