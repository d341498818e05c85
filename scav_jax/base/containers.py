"""A media file, opened for reading (PyAV), the same with every version that we support; and sound
into one that is written.
"""

import contextlib
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from scav_jax.base.errors import InputError

PIPE_BYTES = 2**32
AAC_FRAME = 1024  # samples
# What FFmpeg takes for a film, though it is a list that opens other files, a device or a script.
_OTHERS = (
    "alsa avisynth concat concatf dash fbdev hds hls image2 imf iec61883 jack kmsgrab lavfi "
    "libcdio mlv nc openal oss pulse rtp rtsp sap sdp sndio vapoursynth vobsub webm_dash_manifest "
    "x11grab xcbgrab"
)
_FORMATS = sorted(av.formats_available - {*_OTHERS.split(), "video4linux2,v4l2"})
SAFE_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": ",".join(_FORMATS)}
# PyAV before 19 fails on names that are no UTF-8 unless told not to, 19 has no such argument.
_TEXT_OPTIONS = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}


def open_container(path: Path) -> av.container.InputContainer:
    """The file, opened for reading; it opens no other file by itself.

    Raises:
      av.FFmpegError: what FFmpeg says about it.
    """
    return av.open(str(path.absolute()), options=SAFE_OPTIONS, **_TEXT_OPTIONS)


def encode_sound(
    container: av.container.OutputContainer,
    stream: av.AudioStream,
    samples: np.ndarray,
    begin: int = 0,
    end: int | None = None,
) -> None:
    """Encodes mono sound for a file that is written, a frame of AAC at a time.

    Args:
      container: open for writing.
      stream: of its sound.
      samples: `[S]` float32; number n is at time n of the stream's rate.
      begin, end: which of them, for who brings a sound in parts; None is all that follow.
    """
    end = len(samples) if end is None else end
    for first in range(begin, end, AAC_FRAME):
        part = np.ascontiguousarray(samples[None, first : min(first + AAC_FRAME, end)])
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = stream.codec_context.sample_rate, first
        container.mux(stream.encode(frame))


@contextlib.contextmanager
def saved(path: Path) -> Iterator[Path]:
    """The file itself, or what comes out of a pipe as a file that is removed afterwards.

    A pipe can be read once only, from front to back; we read picture and sound each for itself.

    Raises:
      InputError: more came than is taken.
    """
    if not is_pipe(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="pipe-") as folder:
        file = Path(folder) / path.name
        with open(path, "rb") as pipe, open(file, "wb") as target:
            while part := pipe.read(2**20):
                target.write(part)
                if target.tell() > PIPE_BYTES:
                    raise InputError(
                        f"{path}: expected at most {PIPE_BYTES / 2**30:g} GiB out of a pipe, more "
                        "came: save it to a file first"
                    )
        yield file


def is_pipe(path: Path) -> bool:
    """Whether what lies there is a pipe, a socket or a device and no file."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)


def declared_seconds(path: Path) -> float | None:
    """The length that a file declares as a whole; None where it says nothing or cannot be read."""
    if is_pipe(path):
        return None
    try:
        with open_container(path) as container:
            return container.duration / av.time_base if container.duration else None
    except (av.FFmpegError, OSError):
        return None
