"""Which programmes a transport stream has (TS, M2TS), from the first to the last of its tables.

A transport stream may carry several programmes, each a film of its own, and its tables may change
in the middle: where recordings are joined byte by byte they do. libavformat reads those PIDs whose
tables stood near the begin, and PyAV does not tell programmes apart. So the tables are read here,
as ISO/IEC 13818-1 has them: a PAT says in which PIDs the PMTs are, a PMT says which PIDs are the
streams of a programme. The file is gone through once, in blocks.
"""

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Int, UInt8

SYNC, PACKET_BYTES = 0x47, 188
PACKET_SIZES = (188, 192, 204)  # plain, with a time before, with a check behind
SYNCED_PACKETS = 5  # so many in a row are no accident
BLOCK_PACKETS = 2**15
PIDS = 2**13
PAT_PID, PAT, PMT = 0, 0, 2  # where the first table is, and what kinds they are
MOST_TABLES = 2**14  # different ones, of a file; more is noise
ALL_BITS = 0xFFFFFFFF  # of 32
TURNED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

VIDEO_TYPES = {0x01, 0x02, 0x10, 0x1B, 0x1E, 0x1F, 0x20, 0x21, 0x24, 0x33, 0x42}
VIDEO_TYPES |= {0xD1, 0xD2, 0xD4, 0xEA}
AUDIO_TYPES = {0x03, 0x04, 0x0F, 0x11, 0x1C, 0x2D, 0x2E, 0x81, 0x83, 0x84, 0x87, 0x8A, 0xC1, 0xCF}
BLU_RAY_TYPES = {0x80, 0x82, 0x85, 0x86, 0xA1, 0xA2}  # sound there; elsewhere data
REGISTRATION, EXTENSION = 0x05, 0x7F  # descriptors
AUDIO_DESCRIPTORS = {0x6A, 0x7A, 0x7B, 0x7C}  # AC-3, E-AC-3, DTS, AAC
AUDIO_EXTENSIONS = {0x0E, 0x0F, 0x15, 0x80}  # DTS-HD, DTS neural, AC-4, Opus
REGISTERED = dict.fromkeys((b"HEVC", b"VC-1", b"drac", b"AV01", b"VVC "), "video")
REGISTERED |= dict.fromkeys((b"AC-3", b"EAC3", b"AC-4", b"Opus", b"BSSD", b"mlpa"), "audio")
REGISTERED |= dict.fromkeys((b"DTS1", b"DTS2", b"DTS3"), "audio")

OTHER = "other"  # also what is not known: it may be anything
Programme = dict[int, str]  # PID -> "video", "audio" or `OTHER`
TableState = dict[int, Programme]  # by number of programme; empty where nothing is known of one


class Programmes:
    """What the tables of a transport stream say, at any place of the file.

    Args:
      path: of the file.
    """

    def __init__(self, path: Path):
        tables = _Tables()
        for _, _, packets in synced_packets(path):
            tables.take(packets)
            if tables.full:
                break
        # All different states that the tables are in, in the order of their first occurrence.
        self._states = tables.states

    @property
    def several(self) -> bool:
        """Whether there is more than one programme at once anywhere."""
        return any(sum(map(bool, state.values())) > 1 for state in self._states)

    def related(self, pid: int) -> set[int]:
        """The PIDs of all programmes that a stream is in."""
        programmes = (one for state in self._states for one in state.values() if pid in one)
        return {other for one in programmes for other in one}

    def replaced(self, pid: int, kind: str) -> bool:
        """Whether the stream's place is taken by another one, anywhere in the file.

        Where the tables do not list a stream, its programme has another one of the kind that it
        never has beside it. One that merely ends, or to which others come, is not replaced.
        """
        own = {number for state in self._states for number, one in state.items() if pid in one}
        beside, instead = set(), set()
        for state in self._states:
            mine = [state[number] for number in own & state.keys()] or [*state.values()]
            if any(one.get(pid) in (kind, OTHER) for one in mine):
                beside |= _of_kind(state.values(), kind)
            else:
                instead |= _of_kind(mine, kind)
        return bool(own) and bool(instead - beside)


def _of_kind(programmes: Iterable[Programme], kind: str) -> set[int]:
    return {pid for one in programmes for pid, what in one.items() if what == kind}


def synced_packets(path: Path) -> Iterator[tuple[int, int, UInt8[np.ndarray, "N bytes"]]]:
    """(where the first begins, how far apart they are, the packets) of a file, many at once.

    Whatever lies between them is passed over.
    """
    at, size = 0, path.stat().st_size
    with open(path, "rb") as file:
        while found := _next_synced(file, at, size):
            at, distance = found
            while count := min(BLOCK_PACKETS, (size - at) // distance):
                block = _read(file, at, count * distance)
                count = len(block) // distance
                rows = block[: count * distance].reshape(count, distance)
                lost = np.flatnonzero(rows[:, 0] != SYNC)
                synced = int(lost[0]) if len(lost) else count
                yield at, distance, rows[:synced, :PACKET_BYTES]
                at += synced * distance
                if synced < count or not count:
                    break
            else:
                return


def pids_of(packets: UInt8[np.ndarray, "N bytes"]) -> Int[np.ndarray, " N"]:
    """The PID of each packet."""
    return (packets[:, 1] & 0x1F).astype(np.int64) << 8 | packets[:, 2]


def _read(file: IO[bytes], at: int, count: int) -> UInt8[np.ndarray, " N"]:
    file.seek(at)
    return np.frombuffer(file.read(count), np.uint8)


def _next_synced(file: IO[bytes], at: int, size: int) -> tuple[int, int] | None:
    """Where the next packets begin that follow each other, and how far apart they are."""
    reach = (SYNCED_PACKETS - 1) * max(PACKET_SIZES)
    window = 2**11
    while at < size:
        marks = _read(file, at, window + reach) == SYNC
        marks = np.pad(marks, (0, window + reach - len(marks)))
        found = []
        for packet in PACKET_SIZES:
            steps = (marks[n * packet : n * packet + window] for n in range(SYNCED_PACKETS))
            if len(places := np.flatnonzero(np.logical_and.reduce([*steps]))):
                found.append((at + int(places[0]), packet))
        if found:
            return min(found)
        at += window
        window = min(2 * window, 2**20)
    return None


class _Tables:
    """Takes a file's packets and keeps what the tables in them say.

    Attributes:
      states: the different states so far.
      full: whether there were so many tables that they can be none.
    """

    def __init__(self):
        self.states: list[TableState] = []
        self.full = False
        self._count = 0
        self._wanted = np.zeros(PIDS, bool)
        self._wanted[PAT_PID] = True
        self._begun: dict[int, bytes] = {}  # PID -> the sections of which the rest is to come
        self._latest: dict[tuple[int, bytes], bytes] = {}  # of a PID and of a head: the section
        self._parts: dict[int, dict[int, int]] = {}  # of the PAT: number -> programme -> PID
        self._maps: dict[tuple[int, int], Programme] = {}  # by programme and PID of the PMT

    def take(self, packets: UInt8[np.ndarray, "N bytes"]) -> None:
        pids = pids_of(packets)
        at = 0
        while at < len(pids) and not self.full:
            for number in at + np.flatnonzero(self._wanted[pids[at:]]):
                known = int(self._wanted.sum())
                self._take_packet(int(pids[number]), packets[number].tobytes())
                at = int(number) + 1
                if int(self._wanted.sum()) != known or self.full:
                    break  # more tables may follow in these packets
            else:
                return

    def _take_packet(self, pid: int, packet: bytes) -> None:
        control = packet[3] >> 4 & 3
        begin = 5 + packet[4] if control & 2 else 4  # behind what is no payload
        payload = packet[begin:] if control & 1 else b""
        if not payload:
            return
        if packet[1] & 0x40:  # a section begins; before it lies the rest of another
            pointer = payload[0]
            rest = self._begun.get(pid, b"") + payload[1 : 1 + pointer]
            self._sections(pid, rest)
            self._begun[pid] = self._sections(pid, payload[1 + pointer :])
        elif pid in self._begun:
            self._begun[pid] = self._sections(pid, self._begun[pid] + payload)

    def _sections(self, pid: int, data: bytes) -> bytes:
        """Takes all sections that are whole; what is left."""
        while len(data) >= 3 and data[0] != 0xFF:
            length = 3 + (int.from_bytes(data[1:3], "big") & 0xFFF)
            if len(data) < length:
                return data
            self._section(pid, data[:length])
            data = data[length:]
        return b"" if data[:1] == b"\xff" else data

    def _section(self, pid: int, section: bytes) -> None:
        if len(section) < 12 or section[0] != (PAT if pid == PAT_PID else PMT):
            return
        head = section[3:5] + section[6:7]  # of a programme, and which of its sections
        if self._latest.get((pid, head)) == section:
            return
        is_current = section[5] & 1  # else it will be, and comes again then
        if not is_current:
            return
        self._count += 1
        self.full = self._count > MOST_TABLES
        if checksum(section, ALL_BITS):
            return
        self._latest[pid, head] = section
        if pid == PAT_PID:
            self._take_pat(section)
        else:
            number = int.from_bytes(section[3:5], "big")
            self._maps[number, pid] = _streams(section)
        self._note()

    def _take_pat(self, section: bytes) -> None:
        rows = [section[at : at + 4] for at in range(8, len(section) - 7, 4)]
        listed = {int.from_bytes(row[:2], "big"): _pid(row[2:]) for row in rows}
        listed.pop(0, None)  # the network's
        part, last = section[6:8]
        self._parts = {number: one for number, one in self._parts.items() if number <= last}
        self._parts[part] = listed
        for pid in listed.values():
            self._wanted[pid] = True

    def _note(self) -> None:
        now = {
            number: self._maps.get((number, pid), {})
            for part in self._parts.values()
            for number, pid in part.items()
        }
        if any(now.values()) and now not in self.states:
            self.states.append(now)


def _streams(section: bytes) -> Programme:
    """The streams that a PMT lists."""
    about = int.from_bytes(section[10:12], "big") & 0xFFF
    is_blu_ray = b"HDMV" in section[12 : 12 + about]
    found, at = {}, 12 + about
    while at + 5 <= len(section) - 4:
        length = int.from_bytes(section[at + 3 : at + 5], "big") & 0xFFF
        descriptors = section[at + 5 : at + 5 + length]
        found[_pid(section[at + 1 : at + 3])] = _kind(section[at], descriptors, is_blu_ray)
        at += 5 + length
    return found


def _kind(stream_type: int, descriptors: bytes, is_blu_ray: bool) -> str:
    if stream_type in VIDEO_TYPES:
        return "video"
    if stream_type in AUDIO_TYPES or (is_blu_ray and stream_type in BLU_RAY_TYPES):
        return "audio"
    while len(descriptors) >= 2:
        tag, length = descriptors[:2]
        said = descriptors[2 : 2 + length]
        if tag == REGISTRATION and said[:4] in REGISTERED:
            return REGISTERED[said[:4]]
        extended = tag == EXTENSION and said != b"" and said[0] in AUDIO_EXTENSIONS
        if tag in AUDIO_DESCRIPTORS or extended:
            return "audio"
        descriptors = descriptors[2 + length :]
    return OTHER


def _pid(two_bytes: bytes) -> int:
    return int.from_bytes(two_bytes, "big") & 0x1FFF


def checksum(content: bytes, begin: int) -> int:
    """CRC-32, the highest bit first: zlib's with all bits the other way round.

    MPEG begins with all bits set, Ogg with none. With its own checksum behind it, content that is
    whole has 0.
    """
    value = zlib.crc32(content.translate(TURNED), begin ^ ALL_BITS) ^ ALL_BITS
    return int(f"{value:032b}"[::-1], 2)
