"""Worker processes that may hang or crash without taking the run with them.

`concurrent.futures` cannot say which job a broken pool was at, nor end one that hangs; a decoder
does both on damaged files. Workers are spawned (never forked), so they hold nothing of ours.

What a step yields comes to the parent. Large arrays come as memory that changes hands (`handover`),
and the worker's next ones wait until the parent has taken them: a parent that is busy stops its
workers, each with one step's arrays sent and those of the next one made.
"""

import contextlib
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from scav_jax.base import interrupts
from scav_jax.base.children import single_threaded
from scav_jax.base.errors import InputError, in_their_line
from scav_jax.base.ranges import WAIT, check_range
from scav_jax.extract import handover


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Step:
    """A worker finished one part of its job, and this is what it yielded."""

    result: Any


@dataclass(frozen=True)
class Done:
    """A worker finished its job."""

    result: Any


@dataclass(frozen=True)
class Lost:
    """A worker died at its job, or was ended because it took too long.

    Attributes:
      reason: "crashed: ..." or "timed out: ...".
      steps: how many parts of the job were finished.
    """

    reason: str
    steps: int


class _Worker:
    """One process and the job it is at."""

    def __init__(self, work: Callable[[Any], Iterator[None]]):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        with single_threaded(), interrupts.not_for_children():
            self.process.start()
        theirs.close()  # so that a dead worker shows as the end of the pipe
        self.ready = False
        self.job: Any = None
        self.steps = 0
        self.since = time.monotonic()

    def give(self, job: Any) -> None:
        self.job, self.steps, self.since = job, 0, time.monotonic()
        self.pipe.send(job)

    def took(self) -> None:
        """Tells the worker that its arrays have been taken, so that it may send more."""
        with contextlib.suppress(OSError):  # it died: shows when its pipe is read
            self.pipe.send(None)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def run(
    work: Callable[[Any], Iterator[None]], jobs: deque, *, workers: int, timeout_s: float
) -> Iterator[tuple[Any, Step | Done | Lost]]:
    """Runs `work(job)` for every job in worker processes and yields what happens, as it happens.

    While the caller keeps an event, nothing is taken from any worker, and no limit runs for one
    that waits for that.

    Args:
      work: a picklable generator function; each `yield` is a step and what it yields comes with
        it, `return` gives the result. An exception in it is raised here and ends the run.
      jobs: consumed from the left; the caller may append to it while iterating (to try again).
      workers: how many processes.
      timeout_s: a step that takes longer ends the worker; its job is `Lost`.

    Raises:
      InputError: no limit that can be waited for.
    """
    check_range("timeout_s", timeout_s, WAIT)
    pool: list[_Worker] = []
    try:
        while True:
            while jobs and len(pool) < workers:
                pool.append(_Worker(work))
            for worker in pool:
                if worker.ready and worker.job is None and jobs:
                    with contextlib.suppress(OSError):  # it died: shows below
                        worker.give(jobs.popleft())
            if not jobs and all(worker.job is None for worker in pool):
                return
            busy = [worker for worker in pool if worker.job is not None or not worker.ready]
            deadline = min(worker.since for worker in busy) + timeout_s
            patience = max(deadline - time.monotonic(), 0.1)
            ready = wait([worker.pipe for worker in busy], patience)
            for worker in busy:
                if worker.pipe in ready:
                    yield from _receive(worker, pool)
                elif worker.ready and time.monotonic() - worker.since > timeout_s:
                    yield from _lose(worker, pool, f"timed out: over {timeout_s:g} s for one clip")
    finally:
        for worker in pool:
            worker.kill()


def _receive(worker: _Worker, pool: list[_Worker]) -> Iterator[tuple[Any, Step | Done | Lost]]:
    try:
        message = worker.pipe.recv()
        arrays = isinstance(message, handover.Parcel)
        if arrays:
            message = message.open(worker.pipe)
    except (EOFError, OSError):
        worker.process.join()
        if not worker.ready:  # no job's fault: trying again would not help
            raise RuntimeError(
                f"a worker process could not start (exit code {worker.process.exitcode}); "
                "in a script of one's own, call this below `if __name__ == '__main__':`"
            ) from None
        code = worker.process.exitcode
        how = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
        yield from _lose(worker, pool, f"crashed: the decoding process died ({how})")
        return
    if not worker.ready:  # it has started: the first thing that it says
        worker.ready = True
        return
    if isinstance(message, BaseException):
        raise message
    job = worker.job
    worker.since = time.monotonic()
    worker.steps += 1
    if isinstance(message, Done):
        worker.job = None
    yield job, message
    if arrays:
        worker.took()
        worker.since = time.monotonic()


def _lose(worker: _Worker, pool: list[_Worker], reason: str) -> Iterator[tuple[Any, Lost]]:
    pool.remove(worker)
    worker.kill()
    yield worker.job, Lost(reason, worker.steps)


def _serve(pipe: Connection, work: Callable[[Any], Iterator[None]]) -> None:
    """The life of a worker: it ends when the other end of its pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        pipe.send(None)  # started
        while True:
            steps, waiting = work(pipe.recv()), False
            try:
                while True:
                    parcel = handover.pack(Step(next(steps)))
                    if waiting:
                        pipe.recv()  # that the arrays before were taken
                    waiting = handover.send(pipe, parcel)
            except StopIteration as end:
                if waiting:
                    pipe.recv()
                pipe.send(Done(end.value))
            except (BrokenPipeError, ConnectionResetError):
                raise
            except (Exception, SystemExit) as error:  # `exit()` in a user's own code
                pipe.send(_sendable(error))


def _sendable(error: BaseException) -> BaseException:
    """The error with its traceback as a note, in a form that survives the pipe."""
    import pickle
    import traceback

    text = "in a worker process:\n" + "".join(traceback.format_exception(error))
    theirs = None if isinstance(error, (InputError, OSError, MemoryError)) else in_their_line(error)
    try:
        copy = theirs or pickle.loads(pickle.dumps(error))
    except Exception:
        copy = RuntimeError(repr(error))
    if isinstance(error, OSError) and error.filename is not None:
        copy.filename = error.filename
    copy.add_note(text)
    return copy
