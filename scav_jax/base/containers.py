"""A media file, opened for reading (PyAV), the same with every version that we support."""

from pathlib import Path

import av

SAFE_OPTIONS = {"protocol_whitelist": "file"}  # a play list that calls itself .mp4 opens nothing
# PyAV before 19 fails on names that are no UTF-8 unless told not to, 19 has no such argument.
_TEXT_OPTIONS = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}


def open_container(path: Path) -> av.container.InputContainer:
    """The file, opened for reading; it opens no other file by itself.

    Raises:
      av.FFmpegError: what FFmpeg says about it.
    """
    return av.open(str(path.absolute()), options=SAFE_OPTIONS, **_TEXT_OPTIONS)


def declared_seconds(path: Path) -> float | None:
    """The length that a file declares as a whole; None where it says nothing or cannot be read."""
    try:
        with open_container(path) as container:
            return container.duration / av.time_base if container.duration else None
    except (av.FFmpegError, OSError):
        return None
