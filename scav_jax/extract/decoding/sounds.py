"""The sound of clips: mono at 16 kHz, each sample where its timestamp says."""

import itertools
import math
from collections import deque
from dataclasses import replace

import av
import numpy as np
from av.audio.resampler import AudioResampler
from jaxtyping import Float

from scav_jax.extract.containers.opening import Unusable
from scav_jax.extract.decoding.missing import check_extent, check_lost
from scav_jax.extract.decoding.pieces import STEP_S, Piece, placed
from scav_jax.extract.decoding.streams import Stream
from scav_jax.extract.fbank import RATE_HZ
from scav_jax.features.clip import MAX_CLIP_S

RESAMPLING_MARGIN_S = 0.03  # more than the reach of the resampling filter
SOUND_MARGIN_S = 3 * RESAMPLING_MARGIN_S  # read before and behind a clip
MOST_RATE_HZ = 4_000_000  # of sound; the fastest that is recorded, DSD, decodes to 2,822,400
MOST_PLANES = 7  # one for each channel; PyAV looks for one more
CANCELLED = 0.15  # of the energy of channels that have nothing in common: a correlation of -0.85
LAID_OVER_S, LAID_OVER_PART = 0.6, 0.1  # of sound: receivers' clocks step back by less
OPPOSITE = (
    "opposite phase: its channels cancel each other, so nothing is left where they are played as "
    "one; keep one of them: ffmpeg -i IN -c:v copy -af 'pan=mono|c0=c0' OUT"
)


class SoundCutter:
    """Clips out of a sound stream."""

    def __init__(self, stream: Stream):
        self.stream = stream
        self._kept: deque[Piece] = deque()  # the last that was read, and what a clip may need
        self._until: float | None = None  # when that ends, in seconds
        self._converter: AudioResampler | None = None
        self._converted: tuple[str, str, int] | None = None  # format, channels, rate

    def cut(self, start: float, stop: float) -> Float[np.ndarray, " S"]:
        """Mono sound at 16 kHz from `start` to `stop` or to the stream's end."""
        self._read(start, stop)
        self.stream.packets.check_clock(stop)
        if self.stream.damaged(start, stop):
            raise Unusable("decode", "corrupt: some of the sound cannot be decoded")
        if self._until is None:
            if (last := self.stream.passed_over) is not None:
                raise _over(last)
            raise Unusable("decode", "no sound: the stream is empty")
        pieces = placed(self._around(start, stop))
        first = pieces[0].seconds if pieces else math.inf
        ends = pieces[-1].end if pieces else self._until
        check_extent(self.stream, "sound", start, stop, first, ends)
        if ends <= start or first >= stop:
            # After a seek little was read: a header that says more is believed.
            last = max(ends, self.stream.declared.end or 0.0)
            if last > start:
                raise Unusable("decode", "no sound in this clip")
            raise _over(last)
        pauses = ((before.end, after.seconds) for before, after in itertools.pairwise(pieces))
        check_lost(self.stream, pauses, start, stop)
        _check_laid_over(pieces)
        _check_phase(pieces)
        # Recordings that were joined may have several rates.
        rates = sorted({piece.rate for piece in pieces})
        return sum(_resampled(pieces, rate, start, min(stop, ends)) for rate in rates)

    def _around(self, start: float, stop: float) -> list[Piece]:
        """What was read for a clip; a clip before this one may have needed more."""
        limit, pieces = _limit(start, stop), []
        for piece in self._kept:
            pieces.append(piece)
            if piece.end >= limit:
                break
        return pieces

    def _read(self, start: float, stop: float) -> None:
        if self.stream.is_far(start, self._until or 0.0):
            self.stream.seek(start - SOUND_MARGIN_S)
            self._kept.clear()
        self._forget(start - SOUND_MARGIN_S)
        limit = _limit(start, stop)
        while self._until is None or self._until < limit:
            found = self.stream.next()
            if found is None:
                self._cut_padding()
                break
            time, frame = found
            if not frame.samples:  # ADX ends with one
                continue
            if frame.sample_rate > MOST_RATE_HZ:
                reason = f"sound of {frame.sample_rate:,} samples a second, above {MOST_RATE_HZ:,}"
                raise Unusable("decode", reason)
            channels = self._channels(frame)
            unrelated = float(np.vdot(channels, channels)) / len(channels) ** 2
            piece = Piece(time, frame.sample_rate, channels.mean(axis=0), unrelated)
            self._kept.append(piece)
            self._until = self._kept[-1].end
            self._forget(start - SOUND_MARGIN_S)

    def _forget(self, seconds: float) -> None:
        """Drops what ends before then, but for the last of it: a pause may follow."""
        while len(self._kept) > 1 and self._kept[1].seconds <= seconds:
            self._kept.popleft()

    def _cut_padding(self) -> None:
        """An encoder fills its last frame up; an MP4 says where in it the sound ends."""
        end = self.stream.declared.padding_from
        if end is None or not self._kept:
            return
        last = self._kept[-1]
        if last.seconds < end < last.end:
            count = round((end - last.seconds) * last.rate)
            self._kept[-1] = replace(last, samples=last.samples[:count])
            self._until = self._kept[-1].end

    def _channels(self, frame: av.AudioFrame) -> Float[np.ndarray, "C S"]:
        """The channels, whatever their number."""
        channels = frame.layout.nb_channels
        # Of more planes PyAV reads what is not there: it ends the process, or raises.
        planar = channels <= MOST_PLANES
        if planar and frame.format.name == "fltp":
            return frame.to_ndarray()
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != self._converted:  # broadcasts change from mono to 5.1 and back
            wanted = "fltp" if planar else "flt"
            self._converter, self._converted = AudioResampler(format=wanted), kind
        parts = [part.to_ndarray() for part in self._converter.resample(frame)]
        parts = parts if planar else [part.reshape(-1, channels).T for part in parts]
        return np.concatenate(parts, axis=1)


def _over(end: float) -> Unusable:
    return Unusable("decode", f"no sound so late: the sound ends at {end:.2f} s")


def _check_phase(pieces: list[Piece]) -> None:
    """Raises `Unusable` for sound whose channels are each other's negative: a wire is swapped.

    Their mean is what is left of rounding: silence, or noise that means nothing.
    """
    heard = sum(float(np.vdot(piece.samples, piece.samples)) for piece in pieces)
    if heard < CANCELLED * sum(piece.unrelated for piece in pieces):
        raise Unusable("check", OPPOSITE)


def _check_laid_over(pieces: list[Piece]) -> None:
    """Raises `Unusable` for sound of which much lies over other sound, by its timestamps.

    A muxer wrote several packets with one time, as into an AVI whose header counts bytes of a codec
    of frames: when each is to be heard, nothing says.
    """
    until, laid_over = -math.inf, []
    for piece in pieces:
        if (laid := min(until, piece.end) - piece.seconds) > 0:
            laid_over.append((piece.seconds, laid))
        until = max(until, piece.end)
    seconds = sum(len(piece.samples) / piece.rate for piece in pieces)
    if sum(laid for _, laid in laid_over) > max(LAID_OVER_S, LAID_OVER_PART * seconds):
        begin = max(min((at for at, laid in laid_over if laid > STEP_S), default=0.0), 0.0)
        raise Unusable("decode", f"unclear times: from {begin:.2f} s on the sound lies over itself")


def _limit(start: float, stop: float) -> float:
    """Until when sound is read for a clip."""
    return min(stop, start + MAX_CLIP_S) + SOUND_MARGIN_S


def _resampled(
    pieces: list[Piece], rate: int, start: float, stop: float
) -> Float[np.ndarray, " S_out"]:
    """The sound of one rate from `start` to `stop` at 16 kHz; zeros where there is none."""
    # Whole cycles of the two rates, so that a sample's phase in the resampling filter depends
    # on its time in the file and not on where the clip was cut.
    common = math.gcd(rate, RATE_HZ)
    cycles = math.ceil(RESAMPLING_MARGIN_S * common)
    margin_in, margin_out = cycles * rate // common, cycles * RATE_HZ // common
    begin = round(start * rate) - margin_in
    samples = np.zeros(math.ceil((stop - start) * rate) + 2 * margin_in, np.float32)
    for piece in pieces:
        if piece.rate == rate:
            _lay(piece.samples, round(piece.seconds * rate) - begin, samples)
    resampled = _resample(samples, rate)
    return resampled[margin_out : margin_out + round((stop - start) * RATE_HZ)]


def _lay(piece: Float[np.ndarray, " S"], at: int, onto: Float[np.ndarray, " S_all"]) -> None:
    """Lays a piece into a longer sound.

    Where a receiver's clock steps back, two pieces claim the same moment: the louder sample is
    heard, so that nothing is lost and what is repeated is heard once.
    """
    low, high = max(at, 0), min(at + len(piece), len(onto))
    if low < high:
        there, new = onto[low:high], piece[low - at : high - at]
        np.copyto(there, new, where=np.abs(new) > np.abs(there))


def _resample(samples: Float[np.ndarray, " S"], rate: int) -> Float[np.ndarray, " S_out"]:
    if rate == RATE_HZ:
        return samples
    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.sample_rate = rate
    resampler = AudioResampler(format="fltp", layout="mono", rate=RATE_HZ)
    parts = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([part.to_ndarray()[0] for part in parts])
