"""One clock for all packets of a file, which runs forward from its first to its last.

Timestamps are what a muxer wrote. Recordings that were joined byte by byte start anew in the middle
of the file, 33-bit clocks wrap, and a receiver that lost its signal goes on at another time. Where
that happens, what follows is shifted so that it begins where what came before ended, by one number
for picture and sound: they stay as they were against each other. That is what FFmpeg's program does
with containers whose format allows for it; in the others it shows a muddle, and so the rest of the
file is in doubt. So is all that follows where the clock of one stream starts anew and the other's
does not.

A stream's timestamps start anew where a packet comes before the one before it, or long after all
that came before. Packets then wait until all streams have arrived on the new side, so that all of
them that lie there get the same shift: the one that FFmpeg's program ends with. Where that leaves a
hole, or lets a stream overlap by more than 0.1 s, the rest is in doubt too.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

BACKWARD_S = 0.1  # FFmpeg's own limits (-dts_delta_threshold, -dts_error_threshold)
FORWARD_S, FORWARD_UNTRUSTED_S = 10.0, 108_000.0
BACKWARD_UNTRUSTED_S = 0.5  # timestamps that a container does not store are guessed
BACKWARD_SHOWN_S = 1.0  # packets that only say when they are shown come in another order
REORDERED = 4  # pictures: so far do those go back that last long
LOOK_AHEAD = 1_024  # packets that wait at most until the other stream follows
GAP_S = 0.25
UNTIMED = 12  # packets in a row without any time: what they say of others would be a guess
ROUNDING_S = 1e-3

P = TypeVar("P")


@dataclass
class _StreamState:
    """What has come of one stream: the last packet's time, the end of all, where time stood still.

    `shift` is what its packets are moved by now, `due` when FFmpeg's program awaits the next, and
    `decoded` the last time of decoding: it may lie long before a time of showing that came first.
    `lasts` is what a packet that does not say it may last: as long as the one before it did.
    """

    shift: float = 0.0
    last: float | None = None
    decoded: float | None = None
    due: float = -math.inf
    end: float = -math.inf
    lasts: float = math.inf
    untimed: int = 0
    gaps: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Stamp:
    """When a packet is decoded or, where that is not known (`shown`), when it is shown.

    Attributes:
      kind: its stream.
      seconds: as the file says; None where it says nothing.
      duration: in seconds, 0 where it is not known.
      shown: see above.
      counted: what FFmpeg's program takes the duration for; None is the same.
    """

    kind: str
    seconds: float | None
    duration: float = 0.0
    shown: bool = False
    counted: float | None = None

    def due(self, time: float) -> float:
        """When FFmpeg's program awaits the next packet after this one at a time."""
        return time + (self.duration if self.counted is None else self.counted)


class Clock(Generic[P]):
    """Takes the packets of all streams in the file's order and gives them back, with their shifts.

        for stamp, packet in file:
            for shift, packet in clock.push(stamp, packet): ...
        for shift, packet in clock.rest(): ...

    Args:
      trusted: whether the container's format allows timestamps to start anew.

    Attributes:
      doubt: from when on nothing is certain, and why; or None.
    """

    def __init__(self, trusted: bool):
        self._trusted = trusted
        self._sides: dict[str, _StreamState] = {}
        self._shift = 0.0
        self._waiting: list[tuple[Stamp, P]] = []
        self._new: dict[str, tuple[int, float]] = {}  # kind -> its first packet beyond, its need
        self._reached = -math.inf  # what waits on this side
        self.doubt: tuple[float, str] | None = None

    def push(self, stamp: Stamp, packet: P) -> Iterator[tuple[float, P]]:
        """What can be given back now: nothing while a new side is not known."""
        side = self._sides.setdefault(stamp.kind, _StreamState(self._shift))
        if not self._waiting and self._follows(side, stamp):
            self._note(side, stamp)
            yield side.shift, packet
            return
        if stamp.kind not in self._new and stamp.seconds is not None:
            if self._follows(side, stamp):
                self._reached = max(self._reached, stamp.seconds + side.shift + stamp.duration)
            else:
                self._new[stamp.kind] = (len(self._waiting), side.end - stamp.seconds)
        self._waiting.append((stamp, packet))
        started = [kind for kind, one in self._sides.items() if one.last is not None]
        if len(self._new) == len(started) or len(self._waiting) >= LOOK_AHEAD:
            yield from self.rest()

    def rest(self) -> Iterator[tuple[float, P]]:
        """What still waits, at the end of the file."""
        if not self._waiting:
            return
        waiting, new = self._waiting, self._new
        self._waiting, self._new, self._reached = [], {}, -math.inf
        needed = max(need for _, need in new.values())
        usual = self._shift_of_ffmpeg([stamp for stamp, _ in waiting])
        running = {kind for kind, side in self._sides.items() if side.last is not None}
        stayed = {stamp.kind for stamp, _ in waiting if stamp.seconds is not None} & running
        apart = abs(usual - needed) > BACKWARD_S + ROUNDING_S
        self._doubt(max(side.end for side in self._sides.values()), stayed - set(new), apart)
        self._shift = needed if apart else usual
        for number, (stamp, packet) in enumerate(waiting):
            side = self._sides[stamp.kind]
            if number == new.get(stamp.kind, (-1, 0.0))[0] or stamp.kind not in running:
                side.shift, side.last, side.decoded = self._shift, None, None
            self._note(side, stamp)
            yield side.shift, packet

    def gaps(self, kind: str) -> list[tuple[float, float]]:
        """From when to when there are no packets of a stream between two that there are."""
        return self._sides[kind].gaps if kind in self._sides else []

    def _follows(self, side: _StreamState, stamp: Stamp) -> bool:
        if stamp.seconds is None or side.last is None:
            return True
        time = stamp.seconds + side.shift
        back = BACKWARD_S
        if stamp.shown or not self._trusted:
            back = BACKWARD_SHOWN_S if stamp.shown else BACKWARD_UNTRUSTED_S
            back = max(back, REORDERED * stamp.duration)
        before = side.last if stamp.shown else side.decoded
        if before is not None and time < before - back:
            return False
        latest = max(self._reached, *(one.end for one in self._sides.values()))
        return time <= latest + (FORWARD_S if self._trusted else FORWARD_UNTRUSTED_S)

    def _note(self, side: _StreamState, stamp: Stamp) -> None:
        if stamp.seconds is None:
            side.untimed += 1
            if side.untimed == UNTIMED and len(self._sides) > 1 and self.doubt is None:
                self.doubt = side.end, "packets have no timestamps"
            return
        side.untimed = 0
        time = stamp.seconds + side.shift
        if time - side.end > GAP_S + side.lasts and side.end > -math.inf:
            side.gaps.append((side.end, time))
        if stamp.duration:
            side.lasts = 0.0
        elif side.last is not None:
            side.lasts = max(time - side.last, 0.0)
        side.last = time if side.last is None else max(side.last, time)
        if not stamp.shown:
            side.decoded = time if side.decoded is None else max(side.decoded, time)
        side.due = stamp.due(time)
        side.end = max(side.end, time + stamp.duration)

    def _shift_of_ffmpeg(self, waiting: list[Stamp]) -> float:
        """What FFmpeg's program shifts everything by in the end: it looks at each packet alone."""
        shift = self._shift
        last = {kind: (side.last, side.due) for kind, side in self._sides.items()}
        for stamp in waiting:
            if stamp.seconds is None:
                continue
            time = stamp.seconds + shift
            before, due = last[stamp.kind]
            if before is not None and (abs(time - due) > FORWARD_S or time + BACKWARD_S < before):
                shift, time = shift - (time - due), due
            last[stamp.kind] = time, stamp.due(time)
        return shift

    def _doubt(self, joint: float, stayed: set[str], apart: bool) -> None:
        if self.doubt is not None:
            return
        words = {"video": "picture", "audio": "sound"}
        if stayed:
            names = [words.get(kind, kind) for kind in sorted(stayed)]
            self.doubt = joint, f"the timestamps start anew, but not those of the {names[0]}"
        elif not self._trusted or apart:
            self.doubt = joint, "the timestamps start anew, as in files joined byte by byte"
