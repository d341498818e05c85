"""Ctrl-C: the first one stops quietly, the second one ends the program where it stands."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

EXIT_INTERRUPTED = 130  # as shells report it
WORDS = "interrupted; the same command resumes from what was kept"
IMPORTS = "<frozen importlib._bootstrap>"  # the file of its frames
AT_ONCE = "interrupted at once; the same command resumes from what was kept"
LOST = 0  # beside the numbers of signals: what was raised for one was dropped
LOST_S = 0.05  # until what dropped it is over
_pipe: int | None = None  # of `second_ends`, while it lasts


class Interrupt(KeyboardInterrupt):
    """What Ctrl-C raises: it tells when it is dropped before the program has ended by it.

    `code` is what the program ends with, as shells report the signal.
    """

    def __init__(self, number: int = signal.SIGINT):
        super().__init__()
        self.code = 128 + number

    def __del__(self):
        if _pipe is not None:
            os.write(_pipe, bytes([LOST]))


@contextlib.contextmanager
def second_ends() -> Iterator[None]:
    """Ends the process at the second Ctrl-C, whatever the main thread is doing.

    Python tells a program of a signal between two instructions of its main thread only, which a
    collective does not have for minutes. The system's own handler writes to a pipe at once, and a
    thread reads it; where XLA compiles and holds Python's lock, that is when it lets go.

    While modules are imported the first one ends it, too: an exception in the middle of an
    extension's start is another error there, with a traceback, or a crash. An interrupt that is
    dropped is told again: JAX has a callback of the garbage collector, where Python drops what is
    raised, and many an `except:` where it traces. Whoever wants to go on after one ends this first.
    """
    global _pipe
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read, threading.get_ident()), daemon=True).start()
    outer, _pipe, hook = _pipe, write, sys.unraisablehook

    def dropped(about) -> None:
        if not issubclass(about.exc_type, KeyboardInterrupt):
            hook(about)

    sys.unraisablehook = dropped
    try:
        yield
    finally:
        _pipe = outer
        if sys.unraisablehook is dropped:  # else another one calls it
            sys.unraisablehook = hook
        signal.set_wakeup_fd(before)
        os.close(write)  # and the thread ends
        if handler is signal.default_int_handler:
            signal.signal(signal.SIGINT, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    at = frame
    while at is not None:
        if at.f_code.co_filename == IMPORTS:
            leave(WORDS, 128 + number)
        at = at.f_back
    raise Interrupt(number)


@contextlib.contextmanager
def termination_interrupts() -> Iterator[None]:
    """SIGTERM is a Ctrl-C, for a program that has something to keep when it is stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def not_for_children() -> Iterator[None]:
    """Processes that are started in here never hear of Ctrl-C: whoever started them ends them.

    A terminal tells all of them, and one that has not come so far as to ignore it ends with a
    traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # it would take the mask off, where it starts in between
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave(words: str = "", code: int = EXIT_INTERRUPTED) -> None:
    """Ends the process with a line: an orderly end could wait, or be interrupted again."""
    if words:
        print(words, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def done(code: int) -> None:
    """Ctrl-C from now on leaves with this code: what clears up at the end has nothing to lose."""
    with contextlib.suppress(ValueError):  # another thread's program
        signal.signal(signal.SIGINT, lambda *_: leave(code=code))


def _watch(pipe: int, main: int) -> None:
    count = 0
    with os.fdopen(pipe, "rb", buffering=0) as signals:
        while received := signals.read(64):
            count += received.count(signal.SIGINT) - received.count(LOST)
            if count > 1:
                os.write(2, f"\n{AT_ONCE}\n".encode())
                os._exit(EXIT_INTERRUPTED)
            if LOST in received:
                time.sleep(LOST_S)
                signal.pthread_kill(main, signal.SIGINT)  # which may wait in the system
