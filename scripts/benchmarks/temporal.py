"""Temporal self-supervision on `chimes`: what is learned, what retrieval gains, what a step costs.

    python scripts/benchmarks/temporal.py --data DATA [--seeds 3] [--out DIR]
    python scripts/benchmarks/temporal.py --data DATA --cost

DATA has features that can be played (`scav extract --backbone colours`). The rows are the variants
of configs/temporal/demo.py, on the same features, with one learning rate for all; each run is
evaluated on `test` and `unseen_instruments` and probed on `test` (labels, tasks, controls).
Finished runs and their figures are kept: the command resumes. Prints tables, writes OUT/rows.json.

`--cost` compiles and runs a step of each, and of the temporal one without its queue: seconds of
CPU (of all threads, so that other work on the machine matters less) and temporary memory.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import numpy as np
from chimes_rows import evaluated, finished, interval

from scav_jax.base.errors import run_program
from scav_jax.base.files import write_json
from scav_jax.plan.compiled import memory_of
from scav_jax.probe.probing import ProbeSettings, probe
from scav_jax.train_step import init_state, make_train_step
from scav_jax.training.config import override
from scav_jax.training.config_files import load_file
from scav_jax.training.runs import load_run
from scav_jax.training.setup import optimizer_of, prepare_training

CONFIG = "configs/temporal/demo.py"
ROWS = {"SCAV": "scav", "SCAV + Temporal": "with_scav", "Temporal": "temporal", "CAV": "cav"}
SPLITS = ("test", "unseen_instruments")
TIMED_STEPS = 30


def figures(workdir: Path, data: str) -> dict:
    """Recall on both splits and the probe of `test`, kept beside the run."""
    file = workdir / "figures.json"
    if not file.is_file():
        found = {split: evaluated(workdir, data, split)["recall"] for split in SPLITS}
        found["probe"] = probe(load_run(workdir), Path(data), "test", ProbeSettings(changed=0))
        write_json(file, found)
    return json.loads(file.read_text())


def recall_table(rows: dict[str, list[dict]], split: str) -> list[str]:
    """Mean and interval over seeds of R@1."""
    head = [f"{m} {way}" for m in ("aggregation", "sequence") for way in ("A->V", "V->A")]
    lines = [f"| {split} | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for row, runs in rows.items():
        cells = [
            interval([run[split][way][method] for run in runs])
            for method in ("aggregation", "sequence")
            for way in ("a2v", "v2a")
        ]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return lines


def label_table(rows: dict[str, list[dict]]) -> list[str]:
    lines = ["| linear probe, test | picture | sound | both |", "|---|---|---|---|"]
    for row, runs in rows.items():
        found = [
            interval([run["probe"]["labels"][stream]["accuracy"] for run in runs])
            for stream in ("visual", "audio", "both")
        ]
        lines.append(f"| {row} | " + " | ".join(found) + " |")
    return lines


def task_table(rows: dict[str, list[dict]]) -> list[str]:
    """Accuracy of each task beside the prior and the controls, of the rows that have tasks."""
    kinds = ("accuracy", "prior", "static", "shuffled")
    lines = ["| task, test | " + " | ".join(kinds) + " |", "|---" * 5 + "|"]
    for row, runs in rows.items():
        for task in runs[0]["probe"]["tasks"]:
            found = [
                interval([run["probe"]["tasks"][task][kind] for run in runs]) for kind in kinds
            ]
            lines.append(f"| {row}: {task.replace('_', ' ')} | " + " | ".join(found) + " |")
    return lines


def cost(data: str) -> None:
    """A step of each row: compilation, CPU time, temporary memory."""
    cases = [(name, variant, {}) for name, variant in ROWS.items()]
    cases.append(("Temporal, no queue", "temporal", {"objective.queue": 0}))
    cases.append(("Temporal, queue 4,096", "temporal", {"objective.queue": 4096}))
    print("| a step, batch 64 | CPU ms | compilation, CPU s | temporary memory, MB |")
    print("|---|---|---|---|")
    for name, variant, changes in cases:
        config = override(load_file(f"{CONFIG}:{variant}"), {"data.path": data, **changes})
        setup, _, dataset = prepare_training(config)
        batches = iter(dataset)
        some = [jax.device_put(next(batches)) for _ in range(5)]
        optimizer = optimizer_of(config)
        state = init_state(setup.encoders, setup.objective, optimizer, some[0], 0)
        step = make_train_step(setup.encoders, setup.objective, optimizer, 0)
        begin = time.process_time()
        compiled = jax.jit(step, donate_argnums=0).lower(state, some[0]).compile()
        compilation, seconds = time.process_time() - begin, []
        for number in range(TIMED_STEPS):
            begin = time.process_time()
            state, metrics = compiled(state, some[number % len(some)])
            jax.block_until_ready(metrics)
            seconds.append(time.process_time() - begin)
        megabytes = memory_of(compiled).temporary / 1e6
        print(f"| {name} | {1e3 * np.median(seconds):.0f} | {compilation:.0f} | {megabytes:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="data/chimes-demo/colours")
    parser.add_argument("--out", type=Path, default=Path("runs/temporal"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    arguments = parser.parse_args()
    if arguments.cost:
        cost(arguments.data)
        return
    rows: dict[str, list[dict]] = {name: [] for name in arguments.rows}
    for seed in range(arguments.seeds):
        for name in rows:
            variant = ROWS[name]
            workdir = arguments.out / f"{variant}-seed{seed}"
            changes = {"seed": seed, "data.path": arguments.data}
            finished(workdir, f"{name}, seed {seed}", f"{CONFIG}:{variant}", changes)
            rows[name].append(figures(workdir, arguments.data))
            write_json(arguments.out / "rows.json", rows)
    with_tasks = {name: runs for name, runs in rows.items() if runs[0]["probe"]["tasks"]}
    print(f"mean and 95 % t-interval over {arguments.seeds} seeds, in %; rendered data, ours")
    tables = [*(recall_table(rows, split) for split in SPLITS), label_table(rows)]
    for lines in (*tables, task_table(with_tasks)):
        print("", *lines, sep="\n")


if __name__ == "__main__":
    run_program(main)
