"""A file opened for decoding, and whose fault it is where that fails."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

import av

from scav_jax.base import containers
from scav_jax.base.errors import InputError, ProgramFault

# FFmpeg's names of containers.
MOV, MATROSKA = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"  # that most films are in
AVI, OGG = "avi", "ogg"
TRANSPORT, PROGRAM_STREAM = "mpegts", "mpeg"  # the first with packets of any size
NO_SUCH_RESOURCE = (errno.EMFILE, errno.ENFILE)  # the machine's limits, not the file's
REFUSED = "it is no video, or a play list that would open other files"


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
    except (Unusable, ProgramFault, InputError):  # the last of what a frame is given to
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


def open_container(path: Path) -> av.container.InputContainer:
    """The file, opened for reading; `Unusable` where that cannot be."""
    try:
        if containers.is_pipe(path):
            raise Unusable("open", "a pipe: it can be read once only; save it to a file first")
        if path.stat().st_size == 0:
            raise Unusable("open", "empty: the file has no bytes")
        return containers.open_container(path)
    except FileNotFoundError:
        raise Unusable("list", "missing: no such file") from None
    except PermissionError:
        raise Unusable("open", "no permission to read it") from None
    except (av.FFmpegError, OSError) as error:
        _raise_of_machine(error, path)
        words = REFUSED if error.errno == errno.EINVAL else error.strerror
        raise Unusable("open", f"not a readable video: {words}") from None
