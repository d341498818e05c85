"""One stream of a video file: decoded frames with their times, from front to back (PyAV)."""

import contextlib
import errno
import itertools
from collections.abc import Iterator
from pathlib import Path

import av
from av.stream import Disposition

from scav_jax.base import containers
from scav_jax.base.errors import ProgramFault

NO_SUCH_RESOURCE = (errno.EMFILE, errno.ENFILE)  # the machine's limits, not the file's
KINDS = ("video", "audio")
PREROLL_S = 0.5  # decoded before a seek's target: codecs whose frames overlap need it


class Unusable(Exception):
    """A clip that cannot be used.

    Attributes:
      stage: where it turned out: "list", "open", "decode" or "check".
      reason: "category" or "category: details"; categories are counted in summaries.
    """

    def __init__(self, stage: str, reason: str):
        super().__init__(stage, reason)
        self.stage, self.reason = stage, reason


@contextlib.contextmanager
def decoder_errors(path: Path) -> Iterator[None]:
    """What FFmpeg says about a file is a reason to reject a clip, not to end a run.

    Raises:
      Unusable: the file's fault, in FFmpeg's words.
      ProgramFault: anything else that goes wrong in here is no file's fault, and would go wrong
        with the next file too.
    """
    try:
        yield
    except (Unusable, ProgramFault):
        raise
    except av.FFmpegError as error:  # before OSError and MemoryError, which some of these are too
        _raise_of_machine(error, path)
        raise Unusable("decode", f"decoder error: {type(error).__name__}: {error}") from error
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise ProgramFault(f"decoding {path}: {type(error).__name__}: {error}") from error


def _raise_of_machine(error: av.FFmpegError | OSError, path: Path) -> None:
    """Raises an `OSError` where the machine's limits are the reason and not the file."""
    if error.errno in NO_SUCH_RESOURCE:
        raise OSError(error.errno, error.strerror, str(path)) from error


class Stream:
    """The picture ("video") or the sound ("audio") of a file.

    Times are seconds of the file: 0 is the container's start time, or the timestamp 0 where that
    is negative (codec priming, which decoders drop).

    Attributes:
      stream: PyAV's stream.
      declared_begin, declared_end: what the header says, or None.
      own_duration: whether the header says it of this stream, or only of the whole container.
      ends_within_frame: whether `declared_end` may lie inside the last frame of sound, whose rest
        is an encoder's padding.
      ended: whether the last frame has been read.
    """

    def __init__(self, path: Path, kind: str):
        self.kind = kind
        self._container = open_container(path)
        try:
            self.stream = _choose_stream(self._container, kind)
        except BaseException:
            self._container.close()
            raise
        self._zero = max(self._container.start_time or 0, 0) / av.time_base
        self.own_duration = bool(self.stream.duration)
        self.ends_within_frame = (
            kind == "audio" and self.own_duration and "mp4" in self._container.format.name
        )
        self.declared_begin = self._seconds(self.stream.start_time)
        self.declared_end = None
        if self.own_duration:
            begin = self.stream.start_time or 0
            self.declared_end = self._seconds(begin + self.stream.duration)
        elif self._container.duration:
            self.declared_end = self._container.duration / av.time_base
        self._damage: list[tuple[float, float]] = []
        self._restart()

    def close(self) -> None:
        self._container.close()

    def next(self) -> tuple[float, av.VideoFrame | av.AudioFrame] | None:
        """The next frame and its time, or None at the end."""
        found = next(self._frames, None)
        self.ended = found is None
        return found

    def seek(self, seconds: float) -> None:
        """Goes on with a frame at or before `seconds`; from the front if the file cannot seek."""
        for target in (seconds - PREROLL_S + self._zero, 0.0):
            with contextlib.suppress(av.FFmpegError):
                self._container.seek(int(max(target, 0.0) * av.time_base), backward=True)
            self._restart()
            first = self.next()
            if first is not None:
                self._frames = itertools.chain([first], self._frames)
                if first[0] <= seconds:
                    return

    def damaged(self, start: float, stop: float) -> bool:
        """Whether anything in start..stop could not be decoded, or may look wrong for that."""
        waiting = self._broken_at is not None and self._broken_at < stop
        return waiting or any(begin < stop and end > start for begin, end in self._damage)

    def _restart(self) -> None:
        self.ended = False
        self._started = False
        self._broken_at: float | None = None
        self._following = 0.0  # when the next frame is due
        self._frames = self._decode()

    def _seconds(self, timestamp: int | None) -> float | None:
        if timestamp is None:
            return None
        return float(timestamp * self.stream.time_base) - self._zero

    def _decode(self) -> Iterator[tuple[float, av.VideoFrame | av.AudioFrame]]:
        packets = self._container.demux(self.stream)
        while True:
            try:
                packet = next(packets)
            except (StopIteration, av.FFmpegError):
                return  # where a file breaks off, what is missing shows as truncated
            except IndexError:  # PyAV's answer where a damaged header numbers its streams wrongly
                raise Unusable("open", "corrupt: its streams are numbered wrongly") from None
            if self.ends_within_frame:
                _keep_padding(packet)
            try:
                frames = packet.decode()
            except EOFError:
                return
            except av.FFmpegError:
                self._mark_broken(self._seconds(packet.pts))
                continue
            for frame in frames:
                time = self._time_of(frame)
                if self._is_sound(frame, time):
                    yield time, frame

    def _time_of(self, frame: av.VideoFrame | av.AudioFrame) -> float:
        time = self._seconds(frame.pts if frame.pts is not None else frame.dts)
        if time is None:  # streams without timestamps: it follows the one before
            time = self._following
        if self.kind == "video":
            self._following = time + 1 / frame_rate(self.stream)
        else:
            self._following = time + frame.samples / frame.sample_rate
        return time

    def _is_sound(self, frame: av.VideoFrame | av.AudioFrame, time: float) -> bool:
        """Keeps the account of damage; False for what comes before the first whole frame."""
        if frame.is_corrupt:
            self._mark_broken(time)
            return self._started
        self._started = True
        # Pictures build on each other: all that come before the next key frame may be wrong.
        mended = self.kind == "audio" or frame.key_frame
        if self._broken_at is not None and time > self._broken_at and mended:
            self._damage.append((self._broken_at, time))
            self._broken_at = None
        return True

    def _mark_broken(self, time: float | None) -> None:
        """Notes the first moment of a damage; before the first whole frame there is no damage."""
        if self._started:
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


def frame_rate(stream: av.video.stream.VideoStream) -> float:
    """A picture stream's average rate in Hz (its nominal rate where no average is known)."""
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and 0.5 <= rate <= 300:
            return float(rate)
    raise Unusable("open", "no frame rate")


def video_seconds(path: Path) -> float | None:
    """The length of the picture that a file declares, or None where it says nothing."""
    return stream_seconds(path, "video")


def stream_seconds(path: Path, kind: str) -> float | None:
    """The length of the picture ("video") or of the sound ("audio") that a file declares."""
    with decoder_errors(path), contextlib.closing(Stream(path, kind)) as stream:
        return stream.declared_end


def picture_ratio(path: Path) -> float:
    """The width of a file's frames over their height."""
    with decoder_errors(path), contextlib.closing(Stream(path, "video")) as stream:
        if not stream.stream.height:
            raise Unusable("open", "no size of its frames")
        return stream.stream.width / stream.stream.height


def stream_kinds(path: Path) -> tuple[str, ...]:
    """Which of "video" and "audio" a file has; the cover of a song is no picture."""
    with decoder_errors(path), contextlib.closing(open_container(path)) as container:
        return tuple(kind for kind in KINDS if _usable_streams(container, kind))


def libraries() -> dict[str, str]:
    """Versions of what decodes and converts, for the extractor's fingerprint."""
    names = ("libavcodec", "libavformat", "libswscale", "libswresample")
    versions = {name: ".".join(map(str, av.library_versions[name])) for name in names}
    return {"pyav": av.__version__, **versions}


def open_container(path: Path) -> av.container.InputContainer:
    """The file, opened for reading; `Unusable` where that cannot be."""
    try:
        if path.stat().st_size == 0:
            raise Unusable("open", "empty: the file has no bytes")
        return containers.open_container(path)
    except FileNotFoundError:
        raise Unusable("list", "missing: no such file") from None
    except PermissionError:
        raise Unusable("open", "no permission to read it") from None
    except (av.FFmpegError, OSError) as error:
        _raise_of_machine(error, path)
        raise Unusable("open", f"not a readable video: {error.strerror}") from None


def _usable_streams(container: av.container.InputContainer, kind: str) -> list[av.stream.Stream]:
    return [
        stream
        for stream in container.streams
        if stream.type == kind
        and stream.codec_context is not None
        and not stream.disposition & Disposition.attached_pic  # the cover of a song
    ]


def _choose_stream(container: av.container.InputContainer, kind: str) -> av.stream.Stream:
    usable = _usable_streams(container, kind)
    if not usable:
        raise Unusable("open", f"no {kind} stream")
    best = container.streams.best(kind)
    stream = best if best in usable else usable[0]
    stream.codec_context.thread_count = 1  # processes are the unit of parallel work
    return stream
