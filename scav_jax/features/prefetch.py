"""The next batch on the devices while the step runs: double buffering that a resume cannot notice.

A batch that was read ahead is not a batch that was trained on, so what a checkpoint keeps is where
the iterator was when the latest batch was handed out, not where it is now.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from scav_jax.base.errors import InputError

_T = TypeVar("_T")


@runtime_checkable
class Checkpointable(Protocol):
    """An iterator that says where it is, as those of grain do."""

    def __next__(self) -> Any: ...

    def get_state(self) -> dict: ...

    def set_state(self, state: dict) -> None: ...


class Prefetch(Generic[_T]):
    """An iterator of batches on devices, `ahead` of the batch that it gives.

    One thread asks `batches` for the next batch and puts it on the devices, in order, so that
    waiting for features and copying both go on beside the step; decoding stays in the threads of
    `batches`. At most `ahead` batches that were not given yet are on the devices, one more is in
    host memory. The thread starts with the first `next`.

    An error of `batches`, its end included, is raised by the `next` whose batch it was: the good
    batches before it are given first.

    Args:
      batches: an iterator with `get_state` and `set_state`; nobody else may use it meanwhile.
      put: a host batch -> arrays on the devices.
      ahead: how many batches wait on the devices: 1 is double buffering; 0 reads and copies when
        asked, without a thread, for batches so large that two do not fit.

    Raises:
      InputError: `ahead` is negative.
    """

    def __init__(self, batches: Checkpointable, put: Callable[[Any], _T], *, ahead: int = 1):
        if ahead < 0:
            raise InputError(f"data.prefetch: expected 0 or more batches, got {ahead}; 1 is usual")
        self._batches, self._put, self._ahead = batches, put, ahead
        self._state = batches.get_state()  # of the latest batch that was given
        self._reader: _Reader | None = None

    def __iter__(self) -> Iterator[_T]:
        return self

    def __next__(self) -> _T:
        if not self._ahead:
            batch = self._put(next(self._batches))
            self._state = self._batches.get_state()
            return batch
        if self._reader is None:
            self._reader = _Reader(self._batches, self._put, self._ahead)
        try:
            batch, self._state = self._reader.take()
        except BaseException:
            self.close()
            raise
        return batch

    def get_state(self) -> dict:
        """Where to go on after the latest batch that was given: for a checkpoint."""
        return self._state

    def set_state(self, state: dict) -> None:
        """Goes on after the batch that `state` is of; what was read ahead is dropped."""
        self.close()
        self._batches.set_state(state)
        self._state = state

    def close(self) -> None:
        """Ends the thread, once the batch that it is reading has come; drops what waits."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.stop()
            # The thread read further than what was given: stand where the caller stands.
            self._batches.set_state(self._state)


class _Reader:
    """The thread, and the queue between it and the loop."""

    def __init__(self, batches: Checkpointable, put: Callable, ahead: int):
        self._batches, self._put = batches, put
        self._ready: queue.SimpleQueue = queue.SimpleQueue()
        self._free = threading.Semaphore(ahead)  # places on the devices
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopping:
                batch = next(self._batches)
                state = self._batches.get_state()
                self._free.acquire()
                if self._stopping:
                    return
                self._ready.put((self._put(batch), state, None))
        except BaseException as error:
            self._ready.put((None, None, error))

    def take(self) -> tuple[Any, dict]:
        batch, state, error = self._ready.get()
        if error is not None:
            raise error
        self._free.release()
        return batch, state

    def stop(self) -> None:
        self._stopping = True
        self._free.release()
        self._thread.join()
