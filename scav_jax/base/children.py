"""What processes that we start inherit."""

import contextlib
import os
from collections.abc import Iterator

SINGLE_THREADED = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Processes started in here have one thread for linear algebra: they are the parallel unit.

    Numerical libraries read their thread count when they are imported.
    """
    before = {name: os.environ.get(name) for name in SINGLE_THREADED}
    os.environ.update(dict.fromkeys(SINGLE_THREADED, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)  # another thread may have been here
            else:
                os.environ[name] = value
