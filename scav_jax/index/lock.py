"""One writer at a time: a lock that the system releases when its holder ends, however it ends."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from scav_jax.errors import InputError
from scav_jax.index.layout import LOCK


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Holds the index for writing.

    Raises:
      InputError: another writer holds it.
    """
    handle = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 32).decode(errors="replace").strip()
            raise InputError(
                f"{path}: expected to be the only writer, process {holder or 'unknown'} is "
                "writing; wait until it is done (readers need not)"
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)  # and with it the lock
