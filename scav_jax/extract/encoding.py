"""The parent's half of the work: a thread encodes what workers have prepared while they prepare
more. What waits is bounded in bytes; whoever brings more waits, and so do the workers behind it.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from scav_jax.extract.backbones import Features, Prepared
from scav_jax.extract.jobs import Job, JobResult, Outcome
from scav_jax.extract.ledger import Ledger

TellProgress = Callable[[int, float, list[dict]], Any]
EncodeClips = Callable[[list[Prepared]], list[Features]]

# What is decoded and not yet encoded: 13 clips of 10 s at 25 frames/s. A worker holds two more.
QUEUE_BYTES = 2**29
LEAST_BYTES = 2**20  # a clip's share of the bound at least: each one holds a file descriptor
SAVING_THREADS, SAVING_AT_ONCE = 4, 32
PATIENCE_S = 10.0  # for a computation under way when the run ends in an error


class Encoder:
    """A thread that encodes clips and calls back, all in the order in which they came.

        with Encoder(backbone.encode, backbone.clips_at_once, queue_bytes) as encoder:
            encoder.encode(prepared, lambda features: ...)
            encoder.call(lambda: ...)

    Leaving it waits for all that was given; an exception in the thread is raised at the next call
    or when leaving.

    Attributes:
      peak_bytes: the most that waited or was being encoded.
      busy_s: the seconds spent in encoding.
    """

    def __init__(self, encode: EncodeClips, clips_at_once: int, queue_bytes: int):
        self._encode_clips, self._clips_at_once, self._limit = encode, clips_at_once, queue_bytes
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Prepared | None, Callable]] = deque()
        self._bytes = self.peak_bytes = 0
        self.busy_s = 0.0
        self._error: BaseException | None = None
        self._ending = False
        self._thread = threading.Thread(target=self._work, name="encoder", daemon=True)

    def __enter__(self) -> "Encoder":
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        with self._changed:
            self._ending = True
            if kind is not None:
                self._waiting.clear()
            self._changed.notify_all()
        self._thread.join(None if kind is None else PATIENCE_S)
        if kind is None:
            self._raise()

    def encode(self, clip: Prepared, then: Callable[[Features], Any]) -> None:
        """Waits until the clip fits the bound (one clip always does), and hands it over."""
        share = _share(clip)
        with self._changed:
            self._changed.wait_for(
                lambda: self._error or not self._bytes or self._bytes + share <= self._limit
            )
            self._raise()
            self._bytes += share
            self.peak_bytes = max(self.peak_bytes, self._bytes)
            self._waiting.append((clip, then))
            self._changed.notify_all()

    def call(self, then: Callable[[], Any]) -> None:
        """Calls back when all that came before is encoded."""
        with self._changed:
            self._raise()
            self._waiting.append((None, then))
            self._changed.notify_all()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            while items := self._take():
                freed = self._encode(items)
                items.clear()
                with self._changed:
                    self._bytes -= freed
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _take(self) -> list[tuple[Prepared | None, Callable]]:
        """What waits, with at most as many clips as fill the devices; nothing at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ending)
            items, clips = [], 0
            while self._waiting:
                clips += self._waiting[0][0] is not None
                if clips > self._clips_at_once:
                    break
                items.append(self._waiting.popleft())
            return items

    def _encode(self, items: list[tuple[Prepared | None, Callable]]) -> int:
        """Encodes, calls back, and says how many bytes are free again."""
        while items and items[0][0] is None:  # of clips before these: not lost if these fail
            items.pop(0)[1]()
        clips = [clip for clip, _ in items if clip is not None]
        begin = time.perf_counter()
        features = iter(self._encode_clips(clips) if clips else [])
        self.busy_s += time.perf_counter() - begin
        for clip, then in items:
            then() if clip is None else then(next(features))
        return sum(map(_share, clips))


def _share(clip: Prepared) -> int:
    """Of the bound, in bytes."""
    return max(clip.nbytes, LEAST_BYTES)


class Results:
    """Collects the encoded clips of the jobs in flight; keeps a job when all of it is encoded.

    Files are written beside the encoding: a disk takes milliseconds to say that it has one.

    Args:
      ledger: where jobs are kept.
      progress: called with clips, seconds of video (both negative for what is taken back), and
        the rows of rejected.csv among them.
    """

    def __init__(self, ledger: Ledger, progress: TellProgress):
        self._ledger, self._progress = ledger, progress
        self._open: dict[int, JobResult] = {}
        self._saver = ThreadPoolExecutor(SAVING_THREADS)
        self._saving: deque[Future] = deque()

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        self._saver.shutdown()
        while kind is None and self._saving:
            self._saving.popleft().result()

    def add(self, job: int, outcome: Outcome, features: Features | None) -> None:
        result = self._open.setdefault(job, JobResult())
        self._progress(1, *result.add(outcome, features))

    def forget(self, job: int) -> None:
        """The job is done again from its start."""
        result = self._open.pop(job, JobResult())
        self._progress(-len(result), -result.seconds, list(result.rejected.values()))

    def keep(self, job: Job) -> None:
        """All of the job's clips have been added."""
        result = self._open.pop(job.number)
        if len(result) != len(job.clips):
            raise RuntimeError(f"job {job.number}: {len(result)} of {len(job.clips)} clips came")
        if len(self._saving) >= SAVING_AT_ONCE:
            self._saving.popleft().result()
        save = self._ledger.save
        self._saving.append(self._saver.submit(save, job.number, result.clips, result.rejected))
