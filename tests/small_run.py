"""A small run, the one that tests of training start from: data, config, command, what it leaves.

Its batch can be cut over 1, 2, 4 or 8 devices, and every step is written down, so that runs that
were stopped anywhere can be compared with it.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import drawn
import jax
import numpy as np
import pytest

from scav_jax.base.documents import write_document
from scav_jax.features import store
from scav_jax.features.clip import Clip
from scav_jax.train import loop
from scav_jax.training import processes
from scav_jax.training.config import as_dict, override
from scav_jax.training.config_files import load_file
from scav_jax.training.runs import (
    build,
    example_batch,
    load_run,
    parameter_shapes,
    save_averaged,
)
from scav_jax.training.setup import resolved_config, set_up, widths

ROOT = Path(__file__).parents[1]
FINGERPRINT = {"backbone": "random", "rate_hz": 16000}
STEPS = 24
TOWERS = {
    "width": 12,
    "visual_blocks": 1,
    "audio_blocks": 1,
    "visual_hidden": 10,
    "audio_hidden": 9,
    "heads": 2,
    "feedforward": 14,
}
SMALL = {
    "data.batch_size": 8,
    "data.buckets": 1,  # one program
    **{f"encoders.{name}": value for name, value in TOWERS.items()},
    "encoders.visual_blocks": 0,  # half the time of tracing; test_doors resumes a run with blocks
    "encoders.audio_blocks": 0,
    "optimizer.warmup_steps": 3,
    "train.steps": STEPS,
    "train.log_every": 1,
    "train.validate_every": 8,
    "train.checkpoint_every": 3,
    "train.keep_best": 2,
    "train.devices": 1,
}
# What differs between two runs of the same numbers.
TIMINGS = {"examples_per_s", "input_share", "input_ms", "host_ms"}


def noise(random, number, steps, widths=(7, 6), **about):
    """A clip of so many visual and audio steps of noise; 2 s unless `about` says otherwise."""
    visual, audio = (random.normal(size=size) for size in zip(steps, widths, strict=True))
    start = about.get("start", 2.0 * number)
    usual = {"id": f"clip {number}", "source": "a.mp4", "start": start, "end": start + 2.0}
    spans = {"visual_span": (0.0, 2.0), "audio_span": (0.0, 1.9)}
    features = {"visual": visual.astype(np.float16), "audio": audio.astype(np.float16)}
    return Clip(**features | usual | spans | about)


def write_data(folder, clips=29, fingerprint=FINGERPRINT, scale=1.0):
    random = np.random.default_rng(0)
    made = []
    for number in range(clips):
        clip = noise(random, number, (random.integers(9, 13), random.integers(4, 6)))
        clip = replace(clip, visual=(scale * clip.visual).astype(np.float16))
        made.append(("validation" if number >= clips - 5 else "train", clip))
    store.write(made, folder, fingerprint=fingerprint, videos="", rejected=[])
    return folder


def small_config(data, **changes):
    loaded = load_file(str(ROOT / "configs/demo.py"))
    return override(loaded, SMALL | {"data.path": str(data)} | changes)


def command(data, workdir, **changes):
    words = [sys.executable, "-m", "scav_jax.train", "--config", "configs/demo.py"]
    words += ["--workdir", str(workdir)]
    settings = SMALL | {"data.path": str(data)} | changes
    return words + [f"--config.{key}={value}" for key, value in settings.items()]


def run(words):
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=240)


def train_here(config, workdir, stop_after=None):
    """The finished run of a training in this process; SIGTERM comes after a step.

    Trainings of one config share their compiled step, and the state at the start is drawn: tracing
    either takes longer than a small run. What other processes resume is in `test_train`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_step_on", _step_once)
        patch.setattr(loop, "init_state", drawn.state)
        if stop_after is not None:
            patch.setattr(processes.Preemption, "__call__", lambda _, step: step == stop_after)
        return loop.train(config, workdir)


_step_on, _steps = loop._step_on, {}


def _step_once(mesh, setup, optimizer, state):
    key = mesh, repr((setup.config, setup.encoders, setup.objective))
    if key not in _steps:
        _steps.clear()
        _steps[key] = _step_on(mesh, setup, optimizer, state)
    return _steps[key]


def untrained(config, workdir):
    """The folder of a finished run of no steps: its parameters are drawn, nothing is compiled."""
    setup = set_up(config)
    write_document(workdir / "config.json", resolved_config(setup))
    example = example_batch(widths(setup))
    save_averaged(workdir, drawn.params(setup.encoders, setup.objective, example), [1])
    return workdir


def drawn_run(folder, config, **features):
    """The folder of a finished run of random parameters; `features` is what config.json has."""
    write_document(folder / "config.json", as_dict(config) | {"features": features})
    encoders, objective = build(config)
    shapes = parameter_shapes(encoders, objective, features["widths"])
    random = np.random.default_rng(config.seed)
    params = jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32) * 0.3, shapes)
    save_averaged(folder, params, [10, 20])
    return folder


def train_once(folder):
    """The folder with `data` and the finished `run`, made where it is missing."""
    if not (folder / "run" / "averaged").exists():
        loop.train(small_config(write_data(folder / "data")), folder / "run")
    return folder


def parameters(workdir):
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(load_run(workdir).params)
    }


def records(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]


def assert_same_run(workdir, expected):
    """Two finished runs have the same parameters, checkpoints in the average and records."""
    np.testing.assert_equal(parameters(workdir), parameters(expected))
    assert load_run(workdir).steps == load_run(expected).steps
    np.testing.assert_equal(records(workdir), records(expected))


def saved_steps(workdir):
    return [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
