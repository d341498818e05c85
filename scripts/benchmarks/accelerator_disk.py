"""A row of accelerator.py: `scav train` from disk, as its own log has it."""

import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from accelerator_steps import CONFIG, QUICK_STEPS, QUICK_TOWERS, QUICK_WIDTHS, WIDTHS

from scav_jax.features import store
from scav_jax.features.clip import Clip
from scav_jax.training.records import read_metrics

NEEDED = "tensorflow_datasets", "array_record", "grain"
BATCH, CLIPS, VALIDATION = 1024, 2048, 64
MOST_S = 90.0  # of training, compilation included; the row's limit is above it
POLL_S = 0.5


def from_disk(quick: bool, data: str) -> dict:
    """The share of a step that waits for input, after the first line of the log.

    Trains the paper's model in bfloat16, on `data` or on random features of the paper's shapes
    that are written first (and so are in the page cache: what is measured is not the disk).
    """
    for name in NEEDED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        where, batch = Path(data), 8 if quick else BATCH
        if not data:
            where = Path(folder) / "data"
            store.write(random_clips(quick), where, fingerprint={}, videos="", rejected=[])
        batch = min(batch, len(store.read(where, "train")))
        threads = max(2, min(8, (os.cpu_count() or 2) // 2))
        command = training(quick, where, Path(folder) / "run", batch, threads)
        lines = log_of(command, Path(folder), 2 if quick else 6)
    names = "input_share", "input_ms", "host_ms", "examples_per_s"
    means = {name: float(np.mean([line[name] for line in lines])) for name in names}
    clips_per_s = means.pop("examples_per_s")
    return means | {
        "ms": 1e3 * batch / clips_per_s,
        "clips_per_s": clips_per_s,
        "batch": batch,
        "lines": len(lines),
        "read_threads": threads,
        "data": data or "random, from the page cache",
    }


def random_clips(quick: bool) -> Iterator[tuple[str, Clip]]:
    """(split, clip) of both splits; few differ."""
    steps, widths, count = (62, 62), WIDTHS, CLIPS
    if quick:
        steps, widths, count = QUICK_STEPS, QUICK_WIDTHS, 32
    random = np.random.default_rng(0)
    drawn = [
        random.standard_normal((16, n, width), np.float32).astype(np.float16)
        for n, width in zip(steps, widths, strict=True)
    ]
    for number in range(count + VALIDATION):
        visual, audio = (values[number % 16] for values in drawn)
        split = "train" if number < count else "validation"
        span = 0.0, 9.92
        yield split, Clip(f"{number}", visual, span, audio, span, "a.mp4", 0.0, 10.0)


def training(quick: bool, data: Path, workdir: Path, batch: int, threads: int) -> list[str]:
    """The command of a run that goes on until it is ended."""
    every = 2 if quick else 10
    changes = {
        "data.path": data,
        "data.backbone": "",
        "data.batch_size": batch,
        "data.read_threads": threads,
        "train.precision": "bfloat16",
        "train.log_every": every,
        "train.tracker": "none",
    }
    if quick:
        changes |= {f"encoders.{name}": value for name, value in QUICK_TOWERS.items()}
    command = [sys.executable, "-m", "scav_jax.train", "--config", CONFIG, "--workdir", workdir]
    return [*map(str, command), *(f"--config.{key}={value}" for key, value in changes.items())]


def log_of(command: list[str], folder: Path, wanted: int) -> list[dict]:
    """So many lines of the log after the first one; fewer where time is up. Ends the run then."""
    end, lines = time.monotonic() + MOST_S, []
    with open(folder / "words", "wb") as words:
        process = subprocess.Popen(command, stdout=words, stderr=subprocess.STDOUT)
    try:
        while len(lines) < wanted and process.poll() is None and time.monotonic() < end:
            time.sleep(POLL_S)
            records = read_metrics(folder / "run")
            lines = [line for line in records if line["kind"] == "train"][1:]
    finally:
        process.kill()
        process.wait()
    if not lines:
        said = (folder / "words").read_text(errors="replace")[-800:]
        raise RuntimeError(f"training wrote no second line within {MOST_S:.0f} s: {said}")
    return lines
