"""The packets of one stream of a film, in the file's order and on the film's clock (PyAV)."""

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float

from scav_jax.extract.containers.film import RESTARTING, Film, film_of
from scav_jax.extract.containers.losses import has_unread_fragments
from scav_jax.extract.containers.opening import OGG, TRANSPORT, Unusable, open_container
from scav_jax.extract.containers.whole import JOINED
from scav_jax.extract.decoding.clock import Clock, Stamp

NO_TIMESTAMPS = 0x0080  # libavformat's AVFMT_NOTIMESTAMPS: a codec's bare packets
LEAST_RATE_HZ, MOST_RATE_HZ = 0.5, 300.0  # of pictures
AROUND = 3  # gaps from a picture that are looked at together where times of it are uncertain
ROUNDED_S = 1.5e-3  # of the difference of two times
FASTER_PART = 0.2  # of pictures: where they come in bursts, that many or more are in one
LOST_S = 0.25  # where picture and sound are both missing for longer, something was lost


class Packets:
    """Reads a container on from where it is, once.

    The packets of the film's other stream are read too, and dropped: where timestamps start anew,
    both are shifted alike.

    Args:
      container: open.
      film: what of it is read.
      kind: the stream whose packets come, with the clock's shifts in their timestamps.
    """

    def __init__(self, container: av.container.InputContainer, film: Film, kind: str):
        self._container, self._kind, self._zero = container, kind, film.zero
        self._streams = {kind: container.streams[index] for kind, index in film.indexes.items()}
        # Of each stream by its index: kind, seconds a tick, seconds that a packet usually lasts and
        # that FFmpeg's program counts it for.
        self._about = {
            stream.index: (kind, float(stream.time_base), usual_duration(stream), _counted(stream))
            for kind, stream in self._streams.items()
        }
        self._clock: Clock[av.Packet] = Clock(bool(container.format.flags & RESTARTING))

    def __iter__(self) -> Iterator[av.Packet]:
        demuxer = self._container.demux(list(self._streams.values()))
        while True:
            try:
                packet = next(demuxer)
            except StopIteration:
                self._check_end()
                break
            except av.FFmpegError as error:
                # Other streams begin in the middle of an Ogg; elsewhere a file breaks off so too.
                if isinstance(error, av.PatchWelcomeError) and self._container.format.name == OGG:
                    raise Unusable("open", JOINED) from None
                break  # what is missing shows as truncated
            except IndexError:  # PyAV's answer where a damaged header numbers its streams wrongly
                if self._container.format.name == TRANSPORT:
                    break  # before PyAV 19 that of the end where streams have come later
                raise Unusable("open", "corrupt: its streams are numbered wrongly") from None
            if packet.is_discard:  # an edit list leaves it out: its time may lie anywhere
                yield from self._shifted(iter([(0.0, packet)]))
                continue
            yield from self._shifted(self._clock.push(self._stamp(packet), packet))
        yield from self._shifted(self._clock.rest())

    def _check_end(self) -> None:
        if has_unread_fragments(Path(self._container.name), self._container.format.name):
            raise Unusable("decode", "corrupt: fragments behind a damage cannot be found")

    def check_clock(self, stop: float) -> None:
        """Raises `Unusable` where times before `stop` (in seconds of the film) are not certain."""
        if self._clock.doubt is None:
            return
        time, reason = self._clock.doubt
        begin = max(time - self._zero, 0.0)
        if begin < stop - LOST_S:
            raise Unusable("decode", f"unclear times: from {begin:.2f} s on {reason}")

    def lost(self, start: float, stop: float) -> bool:
        """Whether a film has neither picture nor sound for a part of start..stop.

        Either alone may pause: encoders leave silence and repeated pictures out.
        """
        begin, end = start + self._zero, stop + self._zero
        return len(self._streams) > 1 and all(
            any(min(b, end) - max(a, begin) > LOST_S for a, b in self._clock.gaps(kind))
            for kind in self._streams
        )

    def _stamp(self, packet: av.Packet) -> Stamp:
        kind, base, usual, counted = self._about[packet.stream.index]
        shown = packet.dts is None
        time = packet.pts if shown else packet.dts
        duration = (packet.duration or 0) * base or usual
        return Stamp(kind, None if time is None else time * base, duration, shown, counted)

    def _shifted(self, ready: Iterator[tuple[float, av.Packet]]) -> Iterator[av.Packet]:
        for shift, packet in ready:
            kind, base, *_ = self._about[packet.stream.index]
            if kind != self._kind:
                continue
            ticks = round(shift / base) if shift else 0
            if ticks and packet.pts is not None:
                packet.pts += ticks
            if ticks and packet.dts is not None:
                packet.dts += ticks
            yield packet


def usual_duration(stream: av.stream.Stream) -> float:
    """Seconds that a packet without a duration is taken to last: a picture, 0 for sound."""
    if stream.type != "video":
        return 0.0
    rate = known_rate(stream)
    return 1 / rate if rate else 0.0


def _counted(stream: av.stream.Stream) -> float | None:
    """Seconds that FFmpeg's program counts a packet of sound for: 0 where frames vary by format.

    After AC-3, DTS, Opus or Vorbis it awaits the next packet at the time of the last one.
    """
    if stream.type != "audio" or not stream.sample_rate:
        return None
    return stream.codec_context.frame_size / stream.sample_rate


def known_rate(stream: av.video.stream.VideoStream) -> float | None:
    """A picture stream's average rate in Hz (its nominal rate where no average is known).

    None where its header says none that could be worked with: libavformat has guesses, as that
    there is a picture at each tick of the clock.
    """
    rates = [stream.average_rate, stream.guessed_rate, stream.base_rate]
    if stream.container.format.flags & NO_TIMESTAMPS:  # what libavformat says then is its default
        rates = [stream.guessed_rate, stream.average_rate, stream.base_rate]
    for rate in rates:
        if rate and LEAST_RATE_HZ <= rate <= MOST_RATE_HZ:
            return float(rate)
    return None


def workable_rate(seconds: Iterable[float]) -> float:
    """The rate in Hz at which pictures are looked at, from the times of some of them.

    Their own, that of the faster ones where it varies, so that none is left out; or where that is
    beyond what is worked with (slow motion, a slide every minute), a whole part or multiple of it.
    """
    times = np.unique([*seconds])
    gaps = np.diff(times)
    if not len(gaps):
        return LEAST_RATE_HZ
    if not _are_multiples(gaps) and len(gaps) > AROUND:  # times of arrival: each is off by some
        gaps = (times[AROUND:] - times[:-AROUND]) / AROUND
    # There may be pauses. Of few pictures, what lies between two gaps is like neither of them.
    fast = np.quantile(gaps, FASTER_PART, method="lower")
    alike = (gaps > fast / 2) & (gaps < 1.6 * fast)  # times are rounded, 2.08 ms to 2 or 3
    rate = float(1 / gaps[alike].mean())
    if rate > MOST_RATE_HZ:
        return rate / math.ceil(rate / MOST_RATE_HZ)
    return rate * math.ceil(LEAST_RATE_HZ / rate)


def _are_multiples(gaps: Float[np.ndarray, " N"]) -> bool:
    """Whether pictures stay for whole multiples of the time that the faster ones stay."""
    fast = np.quantile(gaps, FASTER_PART)
    off = np.abs(gaps - fast * np.round(gaps / fast))
    return float(np.mean(off <= min(ROUNDED_S, fast / 8))) > 0.9


def packet_times(path: Path, kind: str, most: int | None = None) -> list[float]:
    """When the packets of the film's picture or sound are shown, in seconds, as they are stored.

    Args:
      path: of the file.
      kind: "video" or "audio".
      most: so many at most.
    """
    film, times = film_of(path), []
    with contextlib.closing(open_container(path)) as container:
        base = container.streams[film.indexes[kind]].time_base
        with contextlib.suppress(Unusable):  # clips before a damage have their rate too
            for one in itertools.islice(Packets(container, film, kind), most):
                if one.pts is not None:
                    times.append(float(one.pts * base) - film.zero)
    return times
