"""What a run writes while it trains: `metrics.jsonl`, a tracker, and the rates between lines."""

import contextlib
import importlib
import json
import math
import os
import queue
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scav_jax.base.documents import parse_json, regular_file
from scav_jax.base.errors import InputError
from scav_jax.base.files import write_atomically
from scav_jax.training.config import TRACKERS

METRICS_FILE = "metrics.jsonl"
MOST_LINE_BYTES, MOST_STEPS = 2**20, 2**53


class TensorBoard:
    """WORKDIR/tensorboard; what came after the step that a run resumes at is not shown."""

    def __init__(self, workdir: Path, resumed_at: int, about: dict):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=resumed_at + 1)

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self._writer.close()


def tracker(name: str, workdir: Path, resumed_at: int, about: dict) -> Any:
    """What has `log(values, step)` and `finish()`; `about` is shown beside the run, its config.

    A run of wandb or trackio is found again by the name of its directory after an interruption.

    Raises:
      InputError: the package is not installed.
    """
    if name == "tensorboard":
        return TensorBoard(workdir, resumed_at, about)
    try:
        package = importlib.import_module(name)
    except ModuleNotFoundError:
        raise InputError(
            f"--config.train.tracker={name}: the package is not installed: `pip install {name}`, "
            f"or one of {', '.join(TRACKERS)}"
        ) from None
    kept = {"id": workdir.resolve().name, "dir": str(workdir)} if name == "wandb" else {}
    return package.init(
        project="scav_jax", name=workdir.resolve().name, config=about, resume="allow", **kept
    )


class Records:
    """`metrics.jsonl` and a tracker; after a resume, what came later is cut off."""

    def __init__(
        self, workdir: Path, resumed_at: int, *, told: str = "none", about: dict | None = None
    ):
        self._told = None if told == "none" else tracker(told, workdir, resumed_at, about or {})
        path = workdir / METRICS_FILE
        kept, left_out = _records_until(path, resumed_at)
        if left_out:
            said = f"{path}: line {left_out[0]} is damaged"
            more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
            print(f"{said}{more}: left out, the run goes on", file=sys.stderr)
        write_atomically(path, b"".join(kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        if self._told is not None:
            self._told.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self._file.close()
        if self._told is not None:
            self._told.finish()


class NoRecords:
    """Writes nothing: what all processes but one have."""

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


def read_metrics(workdir: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl, or none; damaged ones are left out."""
    return [record for _, _, record in _lines(workdir / METRICS_FILE) if record is not None]


def _records_until(path: Path, step: int) -> tuple[list[bytes], list[int]]:
    """The lines up to a step, as they are, and the numbers of damaged ones.

    The last line is not counted among those: a kill cuts it short. Of the average there is a line
    when it has been written, and it is written again.
    """
    lines = list(_lines(path))
    kept = [
        line.rstrip(b"\n") + b"\n"
        for _, line, record in lines
        if record is not None and record["step"] <= step and record["kind"] != "averaged"
    ]
    return kept, [number for number, _, record in lines[:-1] if record is None]


def _lines(path: Path) -> Iterator[tuple[int, bytes, dict | None]]:
    """The lines of a file: their numbers from 1, their bytes, and what they say if they say it."""
    mend = "move it away and give the same command again"
    try:
        with regular_file(path, "the log of a run", mend) as file:
            number, rest = 0, False
            while line := file.readline(MOST_LINE_BYTES):
                number += not rest
                whole = not rest and (line.endswith(b"\n") or len(line) < MOST_LINE_BYTES)
                if not rest:
                    yield number, line, _record(line) if whole else None
                rest = not line.endswith(b"\n")
    except FileNotFoundError:
        return


def _record(line: bytes) -> dict | None:
    """What a line says: its kind, its step and figures; None where it does not."""
    try:
        record = parse_json(line, finite=False)
    except ValueError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        return None
    figures = [value for name, value in record.items() if name != "kind"]
    good = all(type(value) in (int, float) for value in figures)
    step = record.get("step")
    return record if good and type(step) is int and 0 <= step < MOST_STEPS else None


class Meter:
    """What happens between two log lines: means of step metrics, rates, and who waits for whom.

    Steps run on the devices while the loop goes on; `add` lets at most `in_flight` of them be
    unfinished, so the loop cannot pile up batches on the devices. A thread notes when each one
    ends, and so it is known how long the devices had nothing to do because a batch was not there.

    Attributes:
      totals: seconds of the whole run by part: "compilation" (the first step of each shape of
        batches), "input" (devices waiting for a batch), "step" (everything else between the first
        and the last step), and what `part` was given.
      steps: how many were added.
    """

    def __init__(self, batch_size: int, in_flight: int = 1):
        self._batch_size, self._in_flight = batch_size, in_flight
        self._ends = _Ends()
        self._running, self._ended = 0, -math.inf
        self._wait = (time.perf_counter(),) * 2
        self.steps, self.totals = 0, {"compilation": 0.0, "input": 0.0, "step": 0.0}
        self._loop_since: float | None = None
        self._shapes: set[tuple] = set()
        self.restart()

    def restart(self) -> None:
        """Forgets what was added: for what should not count, such as a validation."""
        self._steps, self._before, self._since = [], 0, time.perf_counter()
        self._waited = self._stalled = self._blocked = self._elsewhere = 0.0

    def pending(self) -> dict[str, list]:
        """What was added since the last line, as JSON; exact, NaN and infinity too."""
        steps = jax.device_get(self._steps)
        return {
            name: [
                np.asarray(steps[0][name]).dtype.name,
                [float(step[name]).hex() for step in steps],
            ]
            for name in (steps[0] if steps else ())
        }

    def go_on(self, pending: dict[str, list]) -> None:
        """Takes what another process had added, so that the next line is of these steps too."""
        columns = {
            name: np.array([float.fromhex(value) for value in values]).astype(dtype)
            for name, (dtype, values) in pending.items()
        }
        self._before = max(map(len, columns.values()), default=0)
        self._steps = [
            {name: values[number] for name, values in columns.items()}
            for number in range(self._before)
        ]

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Times what is done in it as waiting for input."""
        begin = time.perf_counter()
        yield
        self._wait = begin, time.perf_counter()
        self._waited += self._wait[1] - begin

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Times what is done in it as a part of the run, beside the steps."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - begin
            self._elsewhere += seconds
            self.totals[name] = self.totals.get(name, 0.0) + seconds
            if self._loop_since is not None:
                self._loop_since += seconds

    def add(self, step_metrics: dict, batch: Any = None) -> None:
        """Takes the metrics of one step, on the device as they are; waits for the one before.

        Args:
          step_metrics: numbers on the device.
          batch: what the step read: the first one of its shapes was compiled for them.
        """
        self._steps.append(step_metrics)
        self._ends.watch(step_metrics)
        self._running += 1
        before, begin = self._ended, time.perf_counter()
        while self._running > self._in_flight:
            self._ended = self._ends.next()
            self._running -= 1
        self._blocked += time.perf_counter() - begin
        shapes = tuple(np.shape(leaf) for leaf in jax.tree.leaves(batch))
        compiled = shapes not in self._shapes
        self._shapes.add(shapes)
        previous_end = self._ended if self._in_flight else before
        self._account(previous_end, dispatched=begin, compiled=compiled)

    def _account(self, previous_end: float, dispatched: float, compiled: bool) -> None:
        begin, end = self._wait
        stalled = max(0.0, end - max(begin, previous_end))
        self._stalled += stalled
        self.totals["input"] += stalled
        now = time.perf_counter()
        compiling = dispatched - end if compiled else 0.0
        self.totals["compilation"] += compiling
        if self._loop_since is not None:
            self.totals["step"] += now - self._loop_since - stalled - compiling
        self._loop_since = now
        self.steps += 1

    def summary(self) -> dict[str, float]:
        """Means over the steps since the last call; counters are the latest.

        `input_share` is the share of the time in which the devices waited for a batch, `input_ms`
        how long the loop waited for one, `host_ms` what the loop itself did, both for a step.
        """
        begin = time.perf_counter()
        steps = jax.device_get(self._steps)
        now = time.perf_counter()
        seconds = now - self._since
        own = seconds - self._waited - self._blocked - self._elsewhere - (now - begin)
        values = {name: float(np.mean([s[name] for s in steps])) for name in steps[0]}
        values["skipped"] = int(steps[-1]["skipped"])
        values["skipped_in_row"] = int(max(s["skipped_in_row"] for s in steps))
        own_steps = len(steps) - self._before
        values["examples_per_s"] = own_steps * self._batch_size / seconds
        values["input_share"] = self._stalled / seconds
        values["input_ms"] = 1e3 * self._waited / own_steps
        values["host_ms"] = 1e3 * max(own, 0.0) / own_steps
        self.restart()
        return values


class _Ends:
    """When steps end, seen by a thread that waits for their metrics one after the other."""

    def __init__(self):
        self._watched: queue.SimpleQueue = queue.SimpleQueue()
        self._ended: queue.SimpleQueue = queue.SimpleQueue()
        # A daemon: where a device never answers, the program can end all the same.
        threading.Thread(
            target=_watch, args=(self._watched, self._ended), name="meter", daemon=True
        ).start()
        weakref.finalize(self, self._watched.put, None)

    def watch(self, step_metrics: dict) -> None:
        self._watched.put(step_metrics)

    def next(self) -> float:
        """When the next step ended; waits for it, and raises what it raised."""
        ended = self._ended.get()
        if isinstance(ended, BaseException):
            raise ended
        return ended


def _watch(watched: queue.SimpleQueue, ended: queue.SimpleQueue) -> None:
    while (metrics := watched.get()) is not None:
        try:
            jax.block_until_ready(metrics)
            ended.put(time.perf_counter())
        except BaseException as error:
            ended.put(error)
        del metrics


INPUT_SHARE = 0.1  # of the time, from which waiting for data is worth a word
SECONDS_BETWEEN_WORDS = 600.0


class InputWarning:
    """Says once in a while that the devices wait for data, and what to do about it."""

    def __init__(self, read_threads: int):
        self._read_threads, self._latest = read_threads, -math.inf

    def words(self, values: dict[str, float]) -> str | None:
        """A line about one `Meter.summary`; None where input keeps up, or it was said lately."""
        now = time.perf_counter()
        if values["input_share"] < INPUT_SHARE or now - self._latest < SECONDS_BETWEEN_WORDS:
            return None
        self._latest = now
        return (
            f"input: the devices wait for data {values['input_share']:.0%} of the time; raise "
            f"data.read_threads ({self._read_threads} now, {os.cpu_count()} cores here), keep "
            "data.features=float16, train on resampled copies (scav datasets "
            "resample) or use a faster disk; python scripts/benchmarks/input.py says which of "
            "them it is"
        )
