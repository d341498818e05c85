"""The frames of clips, on uniform grids of the video's own rate."""

import itertools
import math
from collections import deque
from collections.abc import Callable

import av
import numpy as np

from scav_jax.extract.containers.opening import Unusable
from scav_jax.extract.decoding.missing import check_extent, check_lost
from scav_jax.extract.decoding.streams import Stream
from scav_jax.extract.decoding.upright import Upright
from scav_jax.features.clip import MAX_CLIP_S

LEAP_S = 0.25  # from a picture to the next one: pictures that pause, or a wrong timestamp
NO_KEY = "no frames: the picture has no key frame, and all others build on one"


class PictureCutter:
    """Clips out of a picture stream."""

    def __init__(
        self,
        stream: Stream,
        frame_size: tuple[int, int] | None,
        shrink: Callable[[np.ndarray], np.ndarray] | None,
        alike: Callable[[list[np.ndarray]], list[np.ndarray]] | None = None,
    ):
        self.stream = stream
        self._shrink, self._alike = shrink, alike
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
        frames = np.stack(self._of_one_size(shown))
        previous = self._kept[chosen[0]][1] if chosen[0] >= 0 else None
        return frames, previous, (begin - start, begin - start + count * period)

    def _of_one_size(self, shown: list[np.ndarray]) -> list[np.ndarray]:
        if self._alike and len({frame.shape for frame in shown}) > 1:
            shown = self._alike(shown)
        sizes = list(dict.fromkeys(f"{frame.shape[1]}x{frame.shape[0]}" for frame in shown))
        if len(sizes) > 1:
            change = " to ".join(sizes[:2])
            raise Unusable("decode", f"changing size: pictures from {change}; transcode it to one")
        return shown

    def _read(self, start: float, stop: float, period: float) -> None:
        """Reads until a little after `stop`; keeps what is shown from a little before `start`."""
        earliest = start - 2 * period
        if self.stream.is_far(start, max(self._position, 0.0)):
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
        self.stream.packets.check_clock(stop)
        if self.stream.damaged(start, stop):
            raise Unusable("decode", "corrupt: some frames cannot be decoded")
        if not self._kept:
            raise Unusable("decode", NO_KEY if self.stream.without_key else "no frames")
        check_extent(self.stream, "picture", start, stop, self._kept[0][0], self._shown_until)
        if self._shown_until <= start:
            raise Unusable("decode", f"no frames: the picture ends at {self._shown_until:.2f} s")
        times = (time for time, _ in self._kept)
        check_lost(self.stream, itertools.pairwise(times), start, stop)
