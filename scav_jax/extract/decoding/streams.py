"""One stream of a video file: decoded frames with their times, from front to back (PyAV)."""

import contextlib
import functools
import itertools
import math
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

import av
from av.codec.context import Flags

from scav_jax.extract.containers.film import RESTARTING, Film, film_of
from scav_jax.extract.containers.opening import AVI, MATROSKA, MOV, OGG, Unusable, open_container
from scav_jax.extract.decoding.declared import Declared
from scav_jax.extract.decoding.order import Order
from scav_jax.extract.decoding.packets import (
    LOST_S,
    NO_TIMESTAMPS,
    Packets,
    known_rate,
    packet_times,
    usual_duration,
    workable_rate,
)

SEEK_GAP_S = 20.0  # decoding on is cheaper than seeking over less than this
PREROLL_S = 0.5  # decoded before a seek's target: codecs whose frames overlap need it
PASSED_OVER_BYTES = 2**26  # packets since the last key frame that are kept at most
INDEXED = frozenset({MOV, MATROSKA})  # seeking is exact
# A codec's bare packets too, though libavformat does not say that it guesses their times.
BARE_SOUNDS = frozenset({"aac", "ac3", "dts", "eac3", "loas", "mlp", "mp3", "truehd"})
TAGS = (b"ID3", b"APETAGEX")  # what bare sounds begin and end with, also where they were joined
RATE_PACKETS = 20_000  # that a rate is measured from
# Their average rate is a header's, or that of pictures that may pause; the others' is measured by
# libavformat from one picture to the next.
AVERAGED = frozenset({MATROSKA, MOV, "flv", "gif", "apng", "webp_anim"})
CLAIM_PACKETS = 100  # that it is compared with, where no table lists all
CLAIM_FACTOR = 1.2  # pictures that are left out now and then make less of a difference
TAIL_S = 30.0  # of an indexed file, read to find its end
# Each of their packets is a picture; others have some that only say that the last one stays.
PICTURE_A_PACKET = frozenset({"h264", "hevc", "vvc"})


class Stream:
    """The picture ("video") or the sound ("audio") of a film.

    Times are seconds of the film (see `film`), on one clock that runs forward (see `clock`).

    Attributes:
      stream: PyAV's stream.
      margins: of pictures, what is cut off them.
      packets: what it is decoded from, since the last seek.
      promised_begin: when its first packet is shown that can be decoded on its own, of those that
        were read since the last seek; None before. What comes before a recording's first key frame
        lacks what it builds on: there the picture has not begun, as in players.
      joined_midway: whether it is sound that may have been sent before the file begins: its first
        packets may be no more than parts.
      declared: when the file says that it ends.
      ended: whether the last frame has been read.
      passed_over: when the last packet that came too early to be decoded ends; None before one.
      repeated_until: until when packets without content repeat the picture before them.
    """

    def __init__(self, path: Path, kind: str, film: Film | None = None):
        self.kind, self._path = kind, path
        self._film = film or film_of(path)
        if kind not in self._film.indexes:
            raise Unusable("open", f"no {kind} stream")
        self._container = open_container(path)
        self.stream = self._container.streams[self._film.indexes[kind]]
        self.stream.codec_context.thread_count = 1  # processes are the unit of parallel work
        self.margins = self._film.margins
        if kind == "video":  # else what is cut off at the left is rounded to whole cache lines
            self.stream.codec_context.flags |= Flags.unaligned
        self.stream.codec_context.open(strict=False)  # a failure in here is the file's
        flags, name = self._container.format.flags, self._container.format.name
        self._bare = bool(flags & NO_TIMESTAMPS) or name in BARE_SOUNDS
        # Of several packets in one, libavformat guesses the times of all but the first. An Ogg's
        # are counted back from its end: where a page is lost, all but the first are right.
        guesses = name == MATROSKA or bool(flags & RESTARTING)
        self._nested = kind == "audio" and guesses and name != OGG
        self.declared = Declared(path, self._container, self._film, self.stream)
        self.joined_midway = kind == "audio" and bool(flags & RESTARTING)
        self._damage: list[tuple[float, float]] = []
        self._order = Order(name != AVI)
        self._restart()

    def close(self) -> None:
        self._container.close()

    @functools.cached_property
    def rate(self) -> float:
        """Of pictures, in Hz; that of most of them where some pause, so that none is left out."""
        rate = known_rate(self.stream)
        if rate is None:
            return workable_rate(packet_times(self._path, "video", RATE_PACKETS))
        if self._container.format.name in AVERAGED:
            own = workable_rate(self._listed_times())
            return own if CLAIM_FACTOR * rate < own else rate
        return rate

    def _listed_times(self) -> list[float]:
        """When pictures are decoded, in seconds, as far as that is known without reading much."""
        entries = self.stream.index_entries
        if self._container.format.name != MOV or len(entries) < CLAIM_PACKETS:
            return packet_times(self._path, "video", CLAIM_PACKETS)
        base = float(self.stream.time_base)
        return [entries[n].timestamp * base for n in range(min(len(entries), RATE_PACKETS))]

    @property
    def without_key(self) -> bool:
        """Whether there were pictures, but all build on others that were not there."""
        return self._sent > 0 and not self._decodable

    def next(self) -> tuple[float, av.VideoFrame | av.AudioFrame] | None:
        """The next frame and its time, or None at the end."""
        found = next(self._frames, None)
        self.ended = found is None
        return found

    def is_far(self, seconds: float, position: float) -> bool:
        """Whether seeking is cheaper than decoding on from a position until then."""
        return seconds - position > SEEK_GAP_S

    def seek(self, seconds: float) -> None:
        """Goes on with a frame at or before `seconds`, which lie ahead.

        Where there is no index, or timestamps may start anew, the packets between are read but
        not decoded; where there are no timestamps, they are decoded.
        """
        if self._bare:
            return
        if self._container.format.name not in INDEXED:
            self._passed_over_until = seconds - PREROLL_S
            return
        # Where the file's first stream is empty, only from another one the begin can be found.
        for target, stream in ((seconds - PREROLL_S, None), (0.0, None), (0.0, self.stream)):
            with contextlib.suppress(av.FFmpegError):
                place = max(target, 0.0) + self._film.zero
                base = av.time_base if stream is None else 1 / stream.time_base
                self._container.seek(int(place * base), backward=True, stream=stream)
            self._restart()
            first = self.next()
            if first is not None:
                self._frames = itertools.chain([first], self._frames)
                if first[0] <= seconds:
                    return

    def measured_end(self) -> float | None:
        """When its last packet ends, whatever headers say; None where it has none.

        Nothing is decoded but a bare sound. Nothing can be read afterwards.
        """
        if self._bare:
            return self._counted_end()
        declared = (self._container.duration or 0) / av.time_base
        if self._container.format.name in INDEXED and declared > TAIL_S:
            place = (declared - TAIL_S + self._film.zero) / self.stream.time_base
            with contextlib.suppress(av.FFmpegError):
                self._container.seek(int(place), backward=True, stream=self.stream)
        last, end = -math.inf, None
        for packet in Packets(self._container, self._film, self.kind):
            if packet.pts is None or packet.is_discard or packet.pts < last:
                continue  # pictures that are shown earlier; how long they last may be guessed
            last, end = packet.pts, self._seconds(packet.pts) + self._duration(packet)
        return end

    def _counted_end(self) -> float | None:
        """The end where there are no timestamps."""
        if self.kind == "audio":
            while self.next():
                pass
            return self._following or None
        packets = Packets(self._container, self._film, self.kind)
        return sum(self._duration(packet) for packet in packets if packet.size) or None

    def damaged(self, start: float, stop: float) -> bool:
        """Whether anything in start..stop could not be decoded, or may look wrong for that.

        A recording that was cut off within its last packet ends before that.
        """
        waiting = self._broken_at is not None and self._broken_at < stop
        waiting = waiting and not (self.ended and self._broken_by == self._sent)
        return waiting or any(begin < stop and end > start for begin, end in self._damage)

    def _restart(self) -> None:
        self.ended = False
        self.repeated_until = -math.inf
        self.promised_begin: float | None = None
        self._started = False
        self._decodable = self.kind == "audio" or self._listed_as_key()
        self._broken_at: float | None = None
        self._broken_by = self._sent = 0  # packets: the one of the first damage, those decoded
        self._sent_time: float | None = None
        self._following = 0.0  # when the next frame is due
        self._place: int | None = None  # where in the file the last packet stands that has a place
        self._read_until: int | None = None  # where the last packet that has a place stands
        self._gave_frame = False  # whether the last packet did
        self._awaited: list[float] = []  # times of packets whose pictures have not come yet
        self._seen: float | None = None  # the time of the last picture
        self._passed_over_until: float | None = None
        self.passed_over: float | None = None
        self.packets = Packets(self._container, self._film, self.kind)
        self._frames = self._decode()

    def _listed_as_key(self) -> bool:
        """Whether an MP4's table begins with a key frame; that of a packet may be damaged itself.

        What is sought in it begins with one too.
        """
        entries = self.stream.index_entries
        return self._container.format.name == MOV and len(entries) > 0 and entries[0].is_keyframe

    def _seconds(self, timestamp: int | None) -> float | None:
        if timestamp is None:
            return None
        return float(timestamp * self.stream.time_base) - self._film.zero

    def _duration(self, packet: av.Packet) -> float:
        seconds = float((packet.duration or 0) * self.stream.time_base)
        return seconds or usual_duration(self.stream)

    def _decode(self) -> Iterator[tuple[float, av.VideoFrame | av.AudioFrame]]:
        kept: list[av.Packet] = []  # from the last key frame on, while packets are passed over
        last = None
        for packet in self.packets:
            if packet.size == 0:  # FFmpeg takes it for the end of the stream
                last = packet
                if packet.pts is not None:
                    end = self._seconds(packet.pts) + self._duration(packet)
                    self.repeated_until = max(self.repeated_until, end)
                continue
            if self._passes_over(packet, kept) or self._is_tag(packet):
                continue
            for one in (*kept, packet):
                yield from self._decode_packet(one)
            kept.clear()
        for one in (*kept, *([last] if last is not None and last.pts is None else [])):
            yield from self._decode_packet(one)
        if last is not None:
            self._note_skipped(max(self._awaited, default=0.0) + usual_duration(self.stream))

    def _passes_over(self, packet: av.Packet, kept: list[av.Packet]) -> bool:
        """Whether a packet comes too early to be decoded now; where not, nothing is any more."""
        if self._passed_over_until is None:
            return False
        time = self._seconds(packet.pts if packet.pts is not None else packet.dts)
        early = time is not None and time < self._passed_over_until
        if early and sum(one.size for one in kept) < PASSED_OVER_BYTES:
            self.passed_over = time + self._duration(packet)
            if packet.is_keyframe:
                kept.clear()
            kept.append(packet)
            return True
        self._passed_over_until = None
        if not (kept and kept[0].is_keyframe):  # they build on what was decoded before them
            return False
        self.stream.codec_context.flush_buffers()
        self._started, self._broken_at, self._gave_frame = False, None, False
        self._awaited, self._seen = [], None
        return False

    def _is_tag(self, packet: av.Packet) -> bool:
        return self._bare and bytes(packet).startswith(TAGS)

    def _is_guessed(self, packet: av.Packet) -> bool:
        """Whether a packet's time only says that it follows the one before it.

        It stands in one packet of the container with it, and a header said how long it lasts: where
        the rate of the sound changes, that is wrong.
        """
        before, self._place = self._place, packet.pos or self._place
        follows = before is not None and packet.pos in (None, before)
        return self._nested and self._gave_frame and follows

    def _decode_packet(
        self, packet: av.Packet
    ) -> Iterator[tuple[float, av.VideoFrame | av.AudioFrame]]:
        if self.declared.padding_from is not None:
            _keep_padding(packet)
        self._note_begin(packet)
        self._note_lost(packet)
        if packet.size and self._is_guessed(packet):
            packet.pts = packet.dts = None
        if packet.size:
            self._sent += 1
            self._sent_time = self._seconds(packet.pts)
            self._await(packet)
        elif self._broken_by == self._sent:  # a decoder's rest mends nothing
            self._broken_at = None
        self._gave_frame = False
        try:
            frames = packet.decode()
        except EOFError:
            return
        except av.FFmpegError:
            self._mark_broken(self._seconds(packet.pts), self._sent)
            return
        self._gave_frame = bool(frames)
        for frame in frames:
            time = self._time_of(frame)
            self._note_skipped(time)
            if self._is_sound(frame, time):
                yield time, frame

    def _await(self, packet: av.Packet) -> None:
        shown = packet.pts is not None and not packet.is_discard
        if shown and not self._bare and self.stream.codec_context.codec.name in PICTURE_A_PACKET:
            self._awaited.append(self._seconds(packet.pts))

    def _note_skipped(self, time: float) -> None:
        """Takes it for damage where packets gave no picture, without a word of the decoder.

        Some say nothing where what they need is missing. Decoders give pictures in order, so what
        has not come before a picture does not come.
        """
        before, self._seen = self._seen, time
        each = usual_duration(self.stream)
        if before is not None and time - before > LOST_S:
            inside = (before + each / 2 < one < time - each / 2 for one in self._awaited)
            if (skipped := sum(inside)) > 1 and skipped * each > LOST_S:
                self._damage.append((before + each, time))
        self._awaited = [one for one in self._awaited if one > time]

    def _note_lost(self, packet: av.Packet) -> None:
        """Takes it for damage where the file lacks something between two packets."""
        if packet.pos is None:
            return
        before, self._read_until = self._read_until, packet.pos
        losses = self._film.losses
        if before is None or bisect_right(losses, packet.pos) <= bisect_right(losses, before):
            return
        begin = self._sent_time
        if self._container.format.name != AVI:
            self._mark_broken(begin, 0)
        elif begin is not None:  # whose times are the number of packets before
            self._damage.append((begin, math.inf))

    def _note_begin(self, packet: av.Packet) -> None:
        """An edit list may leave the key frame out that the first shown picture builds on."""
        self._decodable |= packet.is_keyframe
        if self.promised_begin is None and self._decodable and not packet.is_discard:
            begin = self._seconds(packet.pts if packet.pts is not None else packet.dts)
            self.promised_begin = None if begin is None else begin + self._skipped_s(packet)

    def _skipped_s(self, packet: av.Packet) -> float:
        """Seconds of sound that are to be cut off from a packet on: priming, or an edit's."""
        if self.kind == "video" or not packet.has_sidedata("skip_samples"):
            return 0.0
        skipped = bytes(memoryview(packet.get_sidedata("skip_samples")))[:4]
        return int.from_bytes(skipped, "little") / (self.stream.sample_rate or math.inf)

    def _time_of(self, frame: av.VideoFrame | av.AudioFrame) -> float:
        shown, decoded = frame.pts, frame.dts
        if self.kind == "video":
            shown = self._order.time(shown, decoded)
        time = self._seconds(decoded if shown is None else shown)
        if time is None or (self._bare and self._started):  # it follows the one before
            time = self._following
        if self.kind == "video":
            lasts = float((frame.duration or 0) * frame.time_base) if self._bare else 0.0
            self._following = time + (lasts or 1 / self.rate)
        else:
            self._following = time + frame.samples / frame.sample_rate
        return time

    def _is_sound(self, frame: av.VideoFrame | av.AudioFrame, time: float) -> bool:
        """Keeps the account of damage; False for what comes before the first whole frame."""
        if frame.is_corrupt:
            # A decoder that sorts pictures gives the last packet's behind others, or before them.
            is_last = self._seconds(frame.pts) == self._sent_time
            self._mark_broken(time, self._sent if is_last else 0)
            return self._started
        self._started = True
        # Pictures build on each other: all that come before the next key frame may be wrong.
        mended = self.kind == "audio" or frame.key_frame
        if self._broken_at is not None and time > self._broken_at and mended:
            self._damage.append((self._broken_at, time))
            self._broken_at = None
        return True

    def _mark_broken(self, time: float | None, packet: int) -> None:
        """Notes the first moment of a damage, and the number of the packet that it lies in.

        Before the first whole frame there is no damage. 0 is some packet before the last.
        """
        if self._started:
            if self._broken_at is None:
                self._broken_by = packet
            time = self._following if time is None else time
            self._broken_at = time if self._broken_at is None else min(time, self._broken_at)


def _keep_padding(packet: av.Packet) -> None:
    """Leaves cutting the sound at its end to us: libavformat 62 does not, 63 cuts too much.

    It takes what an edit list leaves empty at the beginning off the end too. The side data are two
    32-bit counts: samples to skip at the packet's front, and at its end.
    """
    if packet.has_sidedata("skip_samples"):
        data = packet.get_sidedata("skip_samples")
        counts = bytes(memoryview(data))
        data.update(counts[:4] + bytes(4) + counts[8:])
        packet.set_sidedata(data)
