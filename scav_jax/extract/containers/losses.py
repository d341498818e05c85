"""Where bytes of a file are missing or damaged, where its container can tell.

The pages of an Ogg have checksums and are numbered, the packets of a transport stream are numbered,
the chunks of an AVI say where the next one begins. libavformat goes on behind such places, and
decoders conceal what is missing: a picture is kept, or half of it is another's. An AVI's times are
the number of packets before, so all that follow may be wrong.
"""

import mmap
import re
from bisect import bisect_left
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scav_jax.extract.containers.nested import boxes, mapped
from scav_jax.extract.containers.opening import AVI, MOV, OGG, TRANSPORT
from scav_jax.extract.containers.transport import PAT_PID, checksum, pids_of, synced_packets

MOOF = b"moof"
PAGE, PAGE_HEAD = b"OggS", 27
CHECKSUM = slice(22, 26)  # of a page
FIRST_PAGE = 2  # a flag
CHUNK_OF_STREAM = re.compile(rb"\d\d(?:dc|db|wb|pc)")
CHUNK = re.compile(rb"\d\d[ -~]{2}|ix\d\d|idx1|[A-Z]{4}")  # beside streams' packets
LISTS = (b"RIFF", b"LIST")
TABLE_PIDS = (PAT_PID, 0x11)  # the one of programmes and the one of services
PAYLOAD, ADAPTATION = 0x10, 0x20
BEGINS, BROKEN, STARTS_ANEW = 0x40, 0x80, 0x80


def losses(path: Path, format_name: str, pids: Collection[int]) -> tuple[int, ...]:
    """Where in a file something is lost before the byte, in ascending order.

    Args:
      path: of a file that FFmpeg can open.
      format_name: libavformat's.
      pids: of a transport stream, those that are looked at.
    """
    if format_name == TRANSPORT:
        return tuple(sorted(_of_transport(path, pids)))
    find = {OGG: _of_ogg, AVI: _of_avi}.get(format_name)
    if find is None:
        return ()
    with mapped(path) as content:
        return tuple(find(content))


def has_unread_fragments(path: Path, format_name: str) -> bool:
    """Whether fragments of an MP4 lie behind a damage that libavformat does not pass."""
    if format_name != MOV:
        return False
    with mapped(path) as content:
        begins = {begin for kind, (begin, _) in boxes(content, (0, len(content))) if kind == MOOF}
        # Others are not searched: all of a film would be read for it.
        return bool(begins) and content.rfind(MOOF) + len(MOOF) not in begins


# -- Ogg: RFC 3533 --------------------------------------------------------------------------------


def _of_ogg(content: mmap.mmap) -> Iterator[int]:
    numbers: dict[bytes, int] = {}
    at = 0
    while (found := content.find(PAGE, at)) >= 0:
        lost, at = found > at, found
        end = _page_end(content, at)
        if end > len(content):
            return  # broken off
        page = content[at:end]
        unsummed = page[: CHECKSUM.start] + bytes(4) + page[CHECKSUM.stop :]
        if checksum(unsummed, 0) != int.from_bytes(page[CHECKSUM], "little"):
            yield at
            at += len(PAGE)
            continue
        stream, number = page[14:18], int.from_bytes(page[18:22], "little")
        if page[5] & FIRST_PAGE:
            numbers.pop(stream, None)
        if lost or number != numbers.get(stream, number):
            yield at
        numbers[stream] = number + 1
        at = end


def _page_end(content: mmap.mmap, at: int) -> int:
    head = content[at : at + PAGE_HEAD]
    count = head[-1] if len(head) == PAGE_HEAD else 0
    sizes = content[at + PAGE_HEAD : at + PAGE_HEAD + count]
    return at + PAGE_HEAD + count + sum(sizes) if len(sizes) == count else len(content) + 1


# -- AVI: RIFF ------------------------------------------------------------------------------------


def _of_avi(content: mmap.mmap) -> Iterator[int]:
    at = max(content.find(b"movi") + 4, 4)
    while at + 8 <= len(content):
        kind = content[at : at + 4]
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        end = at + 12 if kind in LISTS else at + 8 + size + size % 2
        if kind == b"RIFF" and content[at + 8 : at + 12] == b"AVI ":
            at = max(content.find(b"movi", at) + 4, end)  # a film that was joined to this one
        elif CHUNK.match(kind) and (end <= len(content) or kind == b"idx1"):
            at = end
        elif CHUNK.match(content[at - 1 : at + 3]) and not CHUNK.match(kind):
            at -= 1  # an odd chunk that is not filled up
        else:
            if (found := CHUNK_OF_STREAM.search(content, at + 1)) is None:
                return
            yield at
            at = found.start()


# -- Transport streams: ISO/IEC 13818-1 -----------------------------------------------------------


class _Break(NamedTuple):
    """A packet whose number does not follow: where the one before it and it are, and whether it
    begins a picture, a sound or a table."""

    since: int
    place: int
    begins: bool


def _of_transport(path: Path, pids: Collection[int]) -> Iterator[int]:
    """Breaks in the numbers of packets that are no begin of another recording.

    Where recordings are joined, all numbers start anew: those of tables, which come first, and of
    what begins behind them.
    """
    breaks, tables = _breaks(path, (*TABLE_PIDS, *pids))
    for pid in pids:
        others = [one for other, all_of in breaks.items() if other != pid for one in all_of]
        for since, place, begins in breaks[pid]:
            is_table_between = bisect_left(tables, place) > bisect_left(tables, since)
            together = any(one.since < place and one.place > since for one in others)
            if not (begins and is_table_between and together):
                yield place


def _breaks(path: Path, pids: Collection[int]) -> tuple[dict[int, list[_Break]], list[int]]:
    """Those of each PID, and where the first of the tables are."""
    breaks: dict[int, list[_Break]] = {pid: [] for pid in pids}
    latest: dict[int, tuple[int, int]] = {}  # PID -> number of its last packet, and where it is
    tables: list[int] = []
    for at, distance, packets in synced_packets(path):
        numbers = pids_of(packets)
        tables += (np.flatnonzero(numbers == PAT_PID) * distance + at).tolist()
        for pid in pids:
            rows = np.flatnonzero((numbers == pid) & (packets[:, 3] & PAYLOAD != 0))
            if not len(rows):
                continue
            own, places = packets[rows, :6].astype(np.int64), rows * distance + at
            count, begins = own[:, 3] & 15, own[:, 1] & BEGINS != 0
            before, since = latest.get(pid, (int(count[0]), int(places[0])))
            latest[pid] = int(count[-1]), int(places[-1])
            before = np.concatenate([[before], count[:-1]])
            since = np.concatenate([[since], places[:-1]])
            follows = (count == (before + 1) % 16) | (count == before)  # one may be sent twice
            told = (own[:, 3] & ADAPTATION != 0) & (own[:, 4] > 0) & (own[:, 5] & STARTS_ANEW != 0)
            broken = own[:, 1] & BROKEN != 0
            found = np.flatnonzero(~follows & ~told | broken)
            breaks[pid] += [
                _Break(int(since[n]), int(places[n]), bool(begins[n] and not broken[n]))
                for n in found
            ]
    return breaks, tables
