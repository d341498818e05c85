"""Video files -> the frames and the sound of clips, each on the clip's own clock (PyAV).

The clock. Second 0 of a clip is its start in the file. A frame is shown from its timestamp until
the next one; a sound sample stands where its timestamp says, so that codec priming and streams
that start late do not shift sound against picture (`film` says where second 0 of a file lies, and
`clock` what becomes of timestamps that start anew). Frames are as players show them (`upright`).

What a header says is a claim; what is decoded is used. Headers are believed in two things only:
that a file which ends before its header's length was broken off, and where in the last frame of an
MP4's sound the padding begins. Sound that pauses is silent: encoders leave silence out. Where
picture and sound are both missing, or a frame cannot be decoded, something was lost.

Both streams are read once from front to back, each through a handle of its own, and cut as they
pass: memory is bounded by the clip and not by the file, however the file is interleaved. One of
them alone can be read too (a search asks by a sound or by a picture).
"""

import contextlib
import itertools
import math
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
from av.audio.resampler import AudioResampler
from jaxtyping import Float, UInt8

from scav_jax.extract.containers.film import KINDS, film_of
from scav_jax.extract.containers.opening import Unusable, decoder_errors
from scav_jax.extract.decoding.measured import file_seconds, stream_seconds
from scav_jax.extract.decoding.packets import usual_duration
from scav_jax.extract.decoding.pieces import Piece, placed
from scav_jax.extract.decoding.streams import Stream
from scav_jax.extract.decoding.upright import Upright
from scav_jax.extract.fbank import RATE_HZ
from scav_jax.features.clip import MAX_CLIP_S

DECODING_RULES = 11  # raise it when this room gives other frames or samples of some file
LEAP_S = 0.25  # from a picture to the next one: pictures that pause, or a wrong timestamp
MIN_CLIP_S = 1.0  # less picture and sound than this together has nothing to contrast
LENGTH_MARGIN_S = 1.0  # half of it is let pass: a video of a minute has some frames more
SEEK_GAP_S = 20.0  # decoding on is cheaper than seeking over less than this
RESAMPLING_MARGIN_S = 0.03  # more than the reach of the resampling filter
SOUND_MARGIN_S = 3 * RESAMPLING_MARGIN_S  # read before and behind a clip
MOST_RATE_HZ = 4_000_000  # of sound; the fastest that is recorded, DSD, decodes to 2,822,400
MOST_PLANES = 7  # one for each channel; PyAV looks for one more
TRUNCATION_S = 0.25  # a stream that lacks more than this of what it declares was truncated
JOINED_MIDWAY_S = 1.0  # a broadcast's recording may begin with so much that is no whole sound
SILENT_PEAK = 1e-4  # of full scale
STILL_LEVELS = 2.5  # of 255: re-encoded still pictures reach 2, slight motion starts at 6
STILL_GRID = 8
NO_KEY = "no frames: the picture has no key frame, and all others build on one"


@dataclass(frozen=True)
class Media:
    """One clip, decoded.

    Attributes:
      frames: RGB at the video's own rate, on a uniform grid; what `shrink` left of them; None
        where the picture was not asked for.
      previous: the frame before the first one, or None where the video starts.
      frames_span: the seconds from the clip's start that the frames cover (the sound, where the
        picture was not asked for).
      waveform: mono in [-1, 1] at 16 kHz from the clip's start; zeros before the first sample; None
        where the sound was not asked for.
      end: where the clip ends in the file, in seconds.
    """

    frames: UInt8[np.ndarray, "N height width 3"] | None
    previous: UInt8[np.ndarray, "height width 3"] | None
    frames_span: tuple[float, float]
    waveform: Float[np.ndarray, " S"] | None
    end: float


class Reader:
    """Cuts clips out of one file, in order of their starts.

        with Reader(path, (64, 64)) as reader:
            media = reader.cut(start, end)

    Raises `Unusable` where the file or a clip of it cannot be used; a clip that raised does not
    spoil the next one.

    Args:
      path: of the video.
      frame_size: (width, height) that upright frames are scaled to; None keeps their own.
      shrink: applied to every frame before the next one is decoded, so that a clip of large frames
        is never held whole; what it gives has one shape.
      max_seconds: longer clips are refused.
      kinds: which streams are read; the file need not have another.
    """

    def __init__(
        self,
        path: Path,
        frame_size: tuple[int, int] | None,
        shrink: Callable[[np.ndarray], np.ndarray] | None = None,
        max_seconds: float = MAX_CLIP_S,
        kinds: Collection[str] = KINDS,
    ):
        self._path, self._max_seconds = path, max_seconds
        self._video: _VideoCutter | None = None
        self._audio: _AudioCutter | None = None
        with decoder_errors(path), contextlib.ExitStack() as stack:
            film = film_of(path)
            opened = {
                kind: stack.enter_context(contextlib.closing(Stream(path, kind, film)))
                for kind in KINDS
                if kind in kinds
            }
            if "video" in opened:
                self._video = _VideoCutter(opened["video"], frame_size, shrink)
            if "audio" in opened:
                self._audio = _AudioCutter(opened["audio"])
            self._closing = stack.pop_all()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *error) -> None:
        self._closing.close()

    def cut(self, start: float, end: float | None) -> Media:
        """One clip; `start` is not before that of the call before.

        Args:
          start: in seconds of the file.
          end: None means to the end of the file.
        """
        with decoder_errors(self._path):
            return self._cut(start, end)

    def _cut(self, start: float, end: float | None) -> Media:
        if end is None:
            self._check_whole(start)
        else:
            self._check_length(end - start)
        # The margin tells a clip that is too long from one that fits.
        stop = min(math.inf if end is None else end, start + self._max_seconds + LENGTH_MARGIN_S)
        frames = previous = waveform = None
        span, heard_s = (0.0, 0.0), 0.0
        if self._video:
            frames, previous, span = self._video.cut(start, stop)
        if self._audio:
            waveform = self._audio.cut(start, stop)
            heard_s = len(waveform) / RATE_HZ
        seconds = max(span[1], heard_s)
        self._check_length(seconds)
        if not self._video:
            span = (0.0, seconds)
        ended = start + seconds
        self._check_complete(start, end, ended)
        return Media(frames, previous, span, waveform, ended if end is None else end)

    def _declared_end(self) -> float | None:
        return (self._video or self._audio).stream.declared.end

    def _check_whole(self, start: float) -> None:
        """Refuses a file that is too long before it is decoded, if it is as long as it says."""
        declared = self._declared_end() or 0.0
        if declared - start > self._max_seconds + LENGTH_MARGIN_S / 2:
            self._check_length((stream_seconds(self._path, self._kind) or 0.0) - start)

    def _check_complete(self, start: float, end: float | None, ended: float) -> None:
        """Raises `Unusable` where picture and sound end before the clip should."""
        wanted = end if end is not None else max(self._declared_end() or 0.0, start)
        if ended >= wanted - 2 * TRUNCATION_S:
            return
        if end is None and self._longest() >= wanted - 2 * TRUNCATION_S:
            return  # a stream that was not asked for is as long as the file
        raise Unusable(
            "decode",
            f"truncated: the clip should end at {wanted:g} s, picture and sound end at "
            f"{ended:.2f} s",
        )

    def _longest(self) -> float:
        kinds = film_of(self._path).indexes
        ends = (stream_seconds(self._path, kind) or 0.0 for kind in kinds)
        return max(*ends, file_seconds(self._path))

    @property
    def _kind(self) -> str:
        return "video" if self._video else "audio"

    def _check_length(self, seconds: float) -> None:
        if seconds > self._max_seconds + LENGTH_MARGIN_S / 2:
            raise Unusable(
                "decode",
                f"too long: {seconds:.1f} s, a clip has at most {self._max_seconds:g} s; "
                "cut it with --clip-seconds",
            )


def check_usable(media: Media) -> None:
    """Raises `Unusable` for a clip that has nothing to learn from: too short, silent, still."""
    begin, end = media.frames_span
    if media.waveform is not None:
        end = min(end, len(media.waveform) / RATE_HZ)
    shared = end - max(begin, 0.0)
    if shared < MIN_CLIP_S - 1e-3:
        both = media.frames is not None and media.waveform is not None
        raise Unusable(
            "check",
            f"too short: {max(shared, 0.0):.2f} s{' with picture and sound' if both else ''}, "
            f"at least {MIN_CLIP_S:g} s are needed",
        )
    if media.waveform is not None:
        peak = float(np.abs(media.waveform).max())
        if peak < SILENT_PEAK:
            raise Unusable("check", f"silent: its peak is {peak:.1e} of full scale")
    change = math.inf if media.frames is None else largest_change(media.frames)
    if change < STILL_LEVELS:
        raise Unusable(
            "check", f"still: no part of the picture changes by more than {change:.2f} of 255"
        )


def largest_change(frames: UInt8[np.ndarray, "N height width 3"]) -> float:
    """The largest change over time of the mean of any cell of an 8 x 8 grid, in levels of 255.

    Means of cells, because neither sensor noise nor compression noise is motion.
    """
    count, height, width, _ = frames.shape
    grid = min(STILL_GRID, height, width)
    rows, columns = height // grid, width // grid
    sums = np.kron(np.eye(grid), np.ones((columns, 1)))  # columns -> cells, for each channel
    sums = np.kron(sums, np.eye(3)).astype(np.float32)
    low, high = np.float32(np.inf), np.float32(-np.inf)
    at_once = max(1, 2**22 // (height * width * 3))
    for begin in range(0, count, at_once):
        part = frames[begin : begin + at_once, : rows * grid, : columns * grid]
        lines = part.reshape(-1, columns * grid * 3).astype(np.float32) @ sums
        means = lines.reshape(len(part), grid, rows, -1).sum(axis=2) / np.float32(rows * columns)
        low, high = np.minimum(low, means.min(axis=0)), np.maximum(high, means.max(axis=0))
    return float(np.max(high - low))


class _VideoCutter:
    """Clips out of a picture stream."""

    def __init__(
        self,
        stream: Stream,
        frame_size: tuple[int, int] | None,
        shrink: Callable[[np.ndarray], np.ndarray] | None,
    ):
        self.stream = stream
        self._shrink = shrink
        self._rate = stream.rate
        self._upright = Upright(stream.stream, frame_size, stream.margins)
        self._kept: deque[tuple[float, np.ndarray]] = deque()
        self._skipped: tuple[float, av.VideoFrame] | None = None
        self._position = -math.inf  # the time of the last frame that was read
        self._shown_until = -math.inf

    def cut(self, start: float, stop: float):
        """Frames on a uniform grid, the frame before them, and the seconds they cover.

        The grid runs at the stream's average rate from the frame nearest to `start` (from `start`
        itself where none is within half a period). A grid point takes the latest frame whose
        timestamp is at most half a period after it: at a constant rate that is each frame once,
        at a variable rate the frame that is shown then.
        """
        period, half = 1 / self._rate, 0.5 / self._rate
        tolerance = 1e-3 * period
        self._read(start, stop, period)
        self._check(start, stop)
        times = np.array([time for time, _ in self._kept])
        nearest = int(np.searchsorted(times, start - half - tolerance))
        starts_late = nearest == 0
        if nearest < len(times) and (starts_late or times[nearest] <= start + half):
            begin = float(times[nearest])
        else:
            begin = start
        stop = min(stop, self._shown_until)
        count = math.ceil((stop - half - tolerance - begin) / period)
        if count < 1:
            later = times[0] >= stop
            raise Unusable("decode", "no picture in this clip" if later else "no frames")
        points = begin + np.arange(-1, count) * period
        chosen = np.searchsorted(times, points + half - tolerance, side="right") - 1
        shown = [self._kept[index][1] for index in chosen[1:]]
        sizes = list(dict.fromkeys(f"{frame.shape[1]}x{frame.shape[0]}" for frame in shown))
        if len(sizes) > 1:
            change = " to ".join(sizes[:2])
            raise Unusable("decode", f"changing size: pictures from {change}; transcode it to one")
        frames = np.stack(shown)
        previous = self._kept[chosen[0]][1] if chosen[0] >= 0 else None
        return frames, previous, (begin - start, begin - start + count * period)

    def _read(self, start: float, stop: float, period: float) -> None:
        """Reads until a little after `stop`; keeps what is shown from a little before `start`."""
        earliest = start - 2 * period
        if start - max(self._position, 0.0) > SEEK_GAP_S:
            self.stream.seek(earliest)
            self._kept.clear()
            self._skipped = None
        while len(self._kept) > 1 and self._kept[1][0] <= earliest:
            self._kept.popleft()
        limit = min(stop, start + MAX_CLIP_S) + 2 * period
        while self._position < limit and (found := self.stream.next()) is not None:
            time, frame = found
            if self._kept and time <= self._kept[-1][0]:
                if not (wrong := self._leapt(time)):
                    continue  # a repeated timestamp: the first frame stands
                for _ in range(wrong):
                    self._kept.pop()
            before = self._kept[-1][0] if self._kept else time
            self._position = before if time - before > LEAP_S else time  # one more says if it is so
            duration = float((frame.duration or 0) * (frame.time_base or 0))
            self._shown_until = time + max(duration, period)
            if time < earliest:
                self._upright.pass_over(frame)
                self._skipped = found  # not converted yet: most are never shown
                continue
            self._keep_skipped()
            self._keep(time, frame)
        if self.stream.ended:
            self._shown_until = max(self._shown_until, self.stream.repeated_until)
        if not self._kept:
            self._keep_skipped()

    def _leapt(self, time: float) -> int:
        """How many of the last pictures have wrong times: far ahead, where this one goes on."""
        times = [kept for kept, _ in self._kept]
        before = sum(kept < time for kept in times)
        leapt = 0 < before < len(times) and times[before] - times[before - 1] > LEAP_S
        return len(times) - before if leapt else 0

    def _keep_skipped(self) -> None:
        if self._skipped is not None:
            self._kept.clear()
            self._keep(*self._skipped)
            self._skipped = None

    def _keep(self, time: float, frame: av.VideoFrame) -> None:
        pixels = self._upright(frame)
        self._kept.append((time, self._shrink(pixels) if self._shrink else pixels))

    def _check(self, start: float, stop: float) -> None:
        self.stream.check_clock(stop)
        if self.stream.damaged(start, stop):
            raise Unusable("decode", "corrupt: some frames cannot be decoded")
        if not self._kept:
            raise Unusable("decode", NO_KEY if self.stream.without_key else "no frames")
        _check_extent(self.stream, "picture", start, stop, self._kept[0][0], self._shown_until)
        if self._shown_until <= start:
            raise Unusable("decode", f"no frames: the picture ends at {self._shown_until:.2f} s")
        times = (time for time, _ in self._kept)
        _check_lost(self.stream, itertools.pairwise(times), start, stop)


class _AudioCutter:
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
        self.stream.check_clock(stop)
        if self.stream.damaged(start, stop):
            raise Unusable("decode", "corrupt: some of the sound cannot be decoded")
        if self._until is None:
            raise Unusable("decode", "no sound: the stream is empty")
        pieces = placed(self._around(start, stop))
        first = pieces[0].seconds if pieces else math.inf
        ends = pieces[-1].end if pieces else self._until
        _check_extent(self.stream, "sound", start, stop, first, ends)
        if ends <= start or first >= stop:
            # After a seek little was read: a header that says more is believed.
            last = max(ends, self.stream.declared.end or 0.0)
            if last > start:
                raise Unusable("decode", "no sound in this clip")
            raise Unusable("decode", f"no sound so late: the sound ends at {last:.2f} s")
        pauses = ((before.end, after.seconds) for before, after in itertools.pairwise(pieces))
        _check_lost(self.stream, pauses, start, stop)
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
        if start - (self._until or 0.0) > SEEK_GAP_S:
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
            self._kept.append(Piece(time, frame.sample_rate, self._mono(frame)))
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

    def _mono(self, frame: av.AudioFrame) -> Float[np.ndarray, " S"]:
        """The mean of the channels, whatever their number."""
        channels = frame.layout.nb_channels
        # Of more planes PyAV reads what is not there: it ends the process, or raises.
        planar = channels <= MOST_PLANES
        if planar and frame.format.name == "fltp":
            return frame.to_ndarray().mean(axis=0)
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != self._converted:  # broadcasts change from mono to 5.1 and back
            wanted = "fltp" if planar else "flt"
            self._converter, self._converted = AudioResampler(format=wanted), kind
        parts = [part.to_ndarray() for part in self._converter.resample(frame)]
        parts = parts if planar else [part.reshape(-1, channels).T for part in parts]
        return np.concatenate([part.mean(axis=0) for part in parts])


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


def _check_lost(
    stream: Stream, pauses: Iterable[tuple[float, float]], start: float, stop: float
) -> None:
    """Sound may pause (DTX), and that is silence; what stops together was lost."""
    for before, after in pauses:
        begin, end = max(before, start), min(after, stop)
        if end - begin > TRUNCATION_S and stream.lost(begin, end):
            missing = f"{end - begin:.2f} s of picture and sound are missing"
            raise Unusable("decode", f"corrupt: {missing} from {begin:.2f} s")


def _check_extent(
    stream: Stream, what: str, start: float, stop: float, begin: float, end: float
) -> None:
    """Raises `Unusable` where a stream lacks part of what was promised for start..stop.

    Its first packet promises that it begins there, its header that it goes on until its end.
    """
    promised = stream.promised_begin
    slack = max(TRUNCATION_S, 2.5 * usual_duration(stream.stream))
    late = JOINED_MIDWAY_S if stream.joined_midway else slack
    if promised is not None and begin - max(start, promised) > late and begin < math.inf:
        raise Unusable("decode", f"corrupt: the {what} cannot be decoded before {begin:.2f} s")
    promised = stream.declared.promised
    if promised is None or not stream.ended:
        return
    if end < min(promised, stop) - slack:
        raise Unusable(
            "decode",
            f"truncated: the {what} ends at {end:.2f} s, its header says {promised:.2f} s",
        )
