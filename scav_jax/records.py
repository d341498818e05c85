"""What a run writes while it trains: `metrics.jsonl`, TensorBoard, and the rates between lines."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from tensorboardX import SummaryWriter

from scav_jax.files import write_atomically

METRICS_FILE = "metrics.jsonl"


class Records:
    """`metrics.jsonl` and TensorBoard; after a resume, what came later is cut off."""

    def __init__(self, workdir: Path, resumed_at: int):
        path = workdir / METRICS_FILE
        kept = _records_until(path, resumed_at)
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=resumed_at + 1)

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


class NoRecords:
    """Writes nothing: what all processes but one have."""

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


def _records_until(path: Path, step: int) -> list[dict]:
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:  # the line that a kill cut short
            continue
    return [record for record in records if record["step"] <= step]


class Meter:
    """Means of step metrics between two log lines, clips per second, and the share of waiting."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Forgets what was added: for what should not count, such as a validation."""
        self._steps, self._waited, self._since = [], 0.0, time.perf_counter()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Times what is done in it as waiting for input."""
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin

    def add(self, step_metrics: dict) -> None:
        """Takes the metrics of one step, on the device as they are."""
        self._steps.append(step_metrics)  # reading them here would wait for the step

    def summary(self) -> dict[str, float]:
        """Means over the steps since the last call; counters are the latest."""
        steps = jax.device_get(self._steps)
        seconds = time.perf_counter() - self._since
        values = {name: float(np.mean([s[name] for s in steps])) for name in steps[0]}
        values["skipped"] = int(steps[-1]["skipped"])
        values["skipped_in_row"] = int(max(s["skipped_in_row"] for s in steps))
        values["examples_per_s"] = len(steps) * self._batch_size / seconds
        values["input_share"] = self._waited / seconds
        self.restart()
        return values
