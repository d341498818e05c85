"""One at a time: a lock file that the system frees when its holder ends, however it ends."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from scav_jax.base.errors import InputError

LOCK = "lock"


@contextlib.contextmanager
def only_one(folder: Path, others: str) -> Iterator[None]:
    """Holds `FOLDER/lock`; the folder is made where there is none.

    Args:
      folder: what only one process at a time may write to.
      others: the message where another holds it: who that is and what to do.

    Raises:
      InputError: another process holds it, or it is a file.
    """
    from filelock import FileLock, Timeout

    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: expected a folder, it is a file; use another")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(others) from None
    try:
        yield
    finally:
        lock.release()
