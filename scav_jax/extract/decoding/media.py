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
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from scav_jax.extract.containers.film import KINDS, film_of
from scav_jax.extract.containers.opening import Unusable, decoder_errors
from scav_jax.extract.decoding.measured import file_seconds, stream_seconds
from scav_jax.extract.decoding.missing import TRUNCATION_S
from scav_jax.extract.decoding.pictures import PictureCutter
from scav_jax.extract.decoding.sounds import SoundCutter
from scav_jax.extract.decoding.streams import Stream
from scav_jax.extract.fbank import RATE_HZ
from scav_jax.features.clip import MAX_CLIP_S

DECODING_RULES = 13  # raise it when this room gives other frames or samples of some file
LENGTH_MARGIN_S = 1.0  # half of it is let pass: a video of a minute has some frames more


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
        is never held whole; what it gives has one shape, or `alike` makes it so.
      max_seconds: longer clips are refused.
      kinds: which streams are read; the file need not have another.
      alike: makes what `shrink` gave of a clip one size, where the picture changed its size.
    """

    def __init__(
        self,
        path: Path,
        frame_size: tuple[int, int] | None,
        shrink: Callable[[np.ndarray], np.ndarray] | None = None,
        max_seconds: float = MAX_CLIP_S,
        kinds: Collection[str] = KINDS,
        alike: Callable[[list[np.ndarray]], list[np.ndarray]] | None = None,
    ):
        self._path, self._max_seconds = path, max_seconds
        self._video: PictureCutter | None = None
        self._audio: SoundCutter | None = None
        with decoder_errors(path), contextlib.ExitStack() as stack:
            film = film_of(path)
            opened = {
                kind: stack.enter_context(contextlib.closing(Stream(path, kind, film)))
                for kind in KINDS
                if kind in kinds
            }
            if "video" in opened:
                self._video = PictureCutter(opened["video"], frame_size, shrink, alike)
            if "audio" in opened:
                self._audio = SoundCutter(opened["audio"])
            self._main = next(iter(opened.values()))  # the picture, where it is read
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

    def _check_whole(self, start: float) -> None:
        """Refuses a file that is too long before it is decoded, if it is as long as it says."""
        declared = self._main.declared.end or 0.0
        if declared - start > self._max_seconds + LENGTH_MARGIN_S / 2:
            self._check_length((stream_seconds(self._path, self._main.kind) or 0.0) - start)

    def _check_complete(self, start: float, end: float | None, ended: float) -> None:
        """Raises `Unusable` where picture and sound end before the clip should."""
        declared, slack = self._main.declared.end, 2 * TRUNCATION_S
        wanted = end if end is not None else max(declared or 0.0, start)
        if ended >= wanted - slack:
            return
        if end is not None and declared is not None and ended >= declared - slack:
            raise Unusable(
                "decode",
                f"past the end: the clip should end at {end:g} s, the file is whole and ends at "
                f"{ended:.2f} s; give an earlier 'end', or none",
            )
        if end is None and self._longest() >= wanted - slack:
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

    def _check_length(self, seconds: float) -> None:
        if seconds > self._max_seconds + LENGTH_MARGIN_S / 2:
            raise Unusable(
                "decode",
                f"too long: {seconds:.1f} s, a clip has at most {self._max_seconds:g} s; "
                "cut it with --clip-seconds",
            )
