"""The paper's tables on `chimes --preset large` by one command, with seeds and intervals.

    scav datasets chimes --preset large --out VIDEOS && scav extract --videos VIDEOS --out DATA
    python scripts/benchmarks/chimes_large.py --data DATA [--out DIR] [--seeds 3] [--steps 2000]
    python scripts/benchmarks/chimes_large.py --data DATA --small    # demo's data, two CPU cores
    python scripts/benchmarks/chimes_large.py --data DATA --quick    # a minute: that it runs

All features lie on the device, every learning rate and seed of a row is trained at once (`vmap`),
steps are a `lax.scan`; towers, objectives, distances, the step and what ranks are the package's,
as the configs of the rows have them. Unlike `scav train` the last parameters are evaluated, not an
average of checkpoints. Tables: `paper` (Tables I and IV), `family` (what is ours), `steps` and
`clips` (batch sizes at equal steps and at equal clips; others than `--batch` are these tables'
alone). The learning rate of a batch of B is r sqrt(B / 64), with r of `--rates`.

For each row the learning rate is the one of `--rates` whose mean of both R@1 on validation over
all seeds is best; it is marked where it lies at an end, since a better one may lie beyond. R@1 is
of the first `--gallery` clips of a split, mean and 95 % t-interval over seeds. Finished rows are
kept: the command resumes. Writes OUT/chimes_large.json and .png. `--small` asks the same with
towers of one block of 64 channels and 300 steps of 32 clips: one to two minutes a row on two CPU
cores, more with soft-DTW and Wasserstein.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from chimes_rows import TINY, half_width, interval

from scav_jax import metrics, retrieve
from scav_jax.base.errors import InputError, run_program
from scav_jax.base.files import write_json
from scav_jax.distances.static import SUFFIX
from scav_jax.features import store
from scav_jax.features.batches import BatchPlan, Padding, load_batch, trimmed_lengths
from scav_jax.optimizer import make_optimizer
from scav_jax.retrieval.embed import encode
from scav_jax.sequences import STREAMS, AudioVisual, Batch
from scav_jax.train_step import TrainState, init_state, make_train_step
from scav_jax.training.config import Config, override
from scav_jax.training.config_files import load_file
from scav_jax.training.setup import Setup, set_up, training_encoders

PAPER = {
    "CAV": "table1/cav",
    "CAV, pre v2a": "table1/cav_pre_v2a",
    "SCAV, pre v2a": "table1/scav_pre_v2a",
    "SCAV, pre a2v": "table1/scav_pre_a2v",
    "SCAV, post v2a": "table1/scav_post_v2a",
    "SCAV, post a2v": "table1/scav_post_a2v",
    "SCAV, soft-DTW": "table1/scav_dtw",
    "SCAV, Wasserstein": "table1/scav_wass",
    "CAV + SCAV": "table4/multitask",
    "SCAV, lambda 0.07": "table4/temperature_007",
    "SCAV, no z-score": "table4/without_normalization",
}
FAMILY: dict[str, tuple[str, dict]] = {
    "SCAV, by one deviation": ("separate/demo.py:scale", {}),
    "SCAV, no z-score, lambda 0.05": ("demo.py", {"objective.normalize": "none"}
                                      | {"objective.temperature": 0.05}),
    "SCAV, features less their mean": ("separate/demo.py:centred", {}),
    "separate": ("separate/demo.py:separate", {}),
    "separate, by distance": ("separate/demo.py:by_distance", {}),
    "separate, a tower for the static part": ("separate/demo.py:tower", {}),
    "SCAV, four frames a step": ("demo.py", {"encoders.pre_points": 4}),
    "SCAV, augmented": ("demo.py", {"data.augment": 0.8}),
    "SCAV, four frames and rises": ("demo.py:finely", {}),
    "SCAV, four frames and rises, augmented": ("demo.py:augmented", {}),
    "separate, augmented": ("separate/demo.py:separate", {"data.augment": 0.8}),
}  # fmt: skip
BATCHES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
OF_DEMO = 64  # batch size to which the learning rates belong
TABLES = ("paper", "family", "steps", "clips")
SMALL = {"width": 64, "heads": 2, "visual_blocks": 1, "audio_blocks": 1, "feedforward": 128}
SMALL |= {"visual_hidden": 128, "audio_hidden": 128}
SMALL = {f"encoders.{name}": value for name, value in SMALL.items()}
NO_BLOCKS = {"encoders.visual_blocks": 0, "encoders.audio_blocks": 0}
FORMS = {  # what options are where nothing else is said
    "": {"changes": {}, "clips": None},
    "small": {
        **{"changes": SMALL, "clips": None, "precision": "float32", "clips_at_once": 128},
        **{"steps": 300, "batch": 32, "gallery": 510, "chunk": 50},
        **{"rates": (1e-3, 4e-3, 1.6e-2, 6.4e-2), "batches": (16, 32, 64)},
    },
    "quick": {
        **{"changes": TINY | NO_BLOCKS, "clips": 64, "steps": 4, "chunk": 2, "gallery": 32},
        **{"seeds": 2, "rates": (1e-3, 2e-3), "batches": (), "tables": ("family",)},
    },
}
WARMUP_SHARE = 15 / 325
SPLITS = ("validation", "test", "unseen_instruments")
WAYS = {"v2a": "V→A", "a2v": "A→V"}
BLOCK = 256  # clips that are encoded at a time


class Row(NamedTuple):
    """What is trained: a config below `configs/`, with changes."""

    table: str
    name: str
    config: str
    changes: dict[str, Any]
    batch: int
    steps: int


def rows(options) -> Iterator[Row]:
    """All rows of the tables that are wanted."""
    usual = options.batch, options.steps
    for name, config in PAPER.items() if "paper" in options.tables else ():
        yield Row("paper", name, f"{config}.py:demo", {}, *usual)
    for name, (config, changes) in FAMILY.items() if "family" in options.tables else ():
        yield Row("family", name, config, changes, *usual)
    for batch in options.batches:
        if "steps" in options.tables:
            yield Row("steps", f"batch {batch:,}", "demo.py", {}, batch, options.steps)
        if "clips" in options.tables:
            steps = max(options.steps * options.batch // batch, 2)
            yield Row("clips", f"batch {batch:,}", "demo.py", {}, batch, steps)


# ---- what is on the device -------------------------------------------------------------------


def resident(split: store.Split, most: int | None) -> Batch:
    """The first clips of a split as one batch on the device, float16 as stored."""
    count = min(len(split), most or len(split))
    padding = Padding(*trimmed_lengths(split).max(axis=0).tolist())
    parts = [
        load_batch(split, np.arange(begin, min(begin + BLOCK, count)), padding, dtype="float16")
        for begin in range(0, count, BLOCK)
    ]
    return jax.device_put(jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts))


def config_of(row: Row, options) -> Config:
    """The config of a row, but for seed and learning rate."""
    changes = {
        "data.path": str(options.data),
        "data.batch_size": row.batch,
        "train.steps": row.steps,
        "train.precision": options.precision,
        "optimizer.warmup_steps": min(max(round(WARMUP_SHARE * row.steps), 1), row.steps - 1),
    }
    return override(load_file(f"configs/{row.config}"), changes | row.changes | options.changes)


# ---- training --------------------------------------------------------------------------------


def trained(setup: Setup, clips: Batch, runs: list[tuple[int, float]], options) -> TrainState:
    """The states after all steps, `[runs, ...]`, of a seed and a learning rate each.

    An optimizer with the peak 1 whose updates are scaled is one with that learning rate: AdamW's
    update and its decay are proportional to it.
    """
    encoders, steps = training_encoders(setup), setup.config.train.steps
    size = setup.data.batch_size
    section = dataclasses.asdict(setup.config.optimizer) | {"learning_rate": 1.0}
    seeds, rates = (jnp.asarray(column) for column in zip(*runs, strict=True))

    def optimizer(rate):
        return optax.chain(make_optimizer(steps=steps, **section), optax.scale(rate))

    def begin(seed):
        return init_state(encoders, setup.objective, optimizer(1.0), clips, seed)

    def step(clips, run):
        state, seed, rate, numbers = run
        batch = jax.tree.map(lambda leaf: leaf[numbers], clips)
        go_on = make_train_step(encoders, setup.objective, optimizer(rate), seed)
        state, metrics = go_on(state, batch)
        return state, (metrics["loss"], metrics["skipped"])

    at_once = max(1, min(len(runs), options.clips_at_once // size))

    def of_all(clips, states, numbers):  # [runs, batch]
        runs = states, seeds, rates, numbers
        return jax.lax.map(partial(step, clips), runs, batch_size=at_once)

    @partial(jax.jit, donate_argnums=0)
    def many(states, clips, chunk):  # [steps, runs, batch]
        return jax.lax.scan(partial(of_all, clips), states, chunk)

    lengths = trimmed_lengths(setup.training, setup.data.align)[: len(clips.numbers)]
    plans = {seed: BatchPlan(lengths, batch_size=size, seed=seed, buckets=1) for seed, _ in runs}
    states = jax.jit(jax.vmap(begin))(seeds)
    for first in range(0, steps, options.chunk):
        last = min(first + options.chunk, steps)
        chunk = [[plans[seed][number][0] for seed, _ in runs] for number in range(first, last)]
        states, (losses, skipped) = many(states, clips, np.asarray(chunk, np.int32))
    lost = int(np.asarray(skipped)[-1].sum())
    print(f"   {len(runs)} runs, loss {np.asarray(losses)[-1].mean():.3f}, {lost} steps skipped")
    return states


# ---- evaluation ------------------------------------------------------------------------------


def recalls(setup: Setup, params, clips: Batch, weight: dict) -> tuple[dict, dict]:
    """`{method: {direction: R@1}}` of one run, and what validation would decide of its objective.

    Args:
      setup: its config.
      params: its parameters.
      clips: of the split.
      weight: what validation has decided; {} decides here.
    """
    objective = setup.objective
    count = len(clips.numbers)
    parts = []
    for begin in range(0, count, BLOCK):
        where = np.minimum(np.arange(begin, begin + BLOCK), count - 1)  # one program
        some = jax.tree.map(lambda leaf: leaf[where], clips)  # noqa: B023
        parts.append(jax.device_get(encode(setup.encoders, objective, STREAMS, params, some)))
    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)
    latents: AudioVisual = AudioVisual(*(whole[name][0] for name in STREAMS))
    similarities = retrieve.aggregation_similarities(*(whole[name][1] for name in STREAMS))
    name, ranked_by = objective.ranks_by()
    has_parts = name.endswith(SUFFIX)
    alone = ranked_by | {"static_weight": 0.0} if has_parts else ranked_by
    dynamic = retrieve.sequence_distances(latents, name, alone)
    decided = weight or objective.decide(similarities, dynamic)
    summed = decided.get("static_weight", 0.0) * (2.0 - 2.0 * similarities) if decided else 0.0
    matrices = {"sequence": dynamic + summed, "aggregation": -similarities}
    matrices |= {"dynamic part": dynamic} if has_parts else {}
    found = {
        method: {
            way: metrics.recall_at_k(metrics.ranks(retrieve.queries_first(matrix, way)), 1)
            for way in WAYS
        }
        for method, matrix in matrices.items()
    }
    return found, decided


def result(row: Row, resident_clips: dict[str, Batch], options) -> dict:
    """A row: its learning rate by validation, and the figures of all seeds with it."""
    setup = set_up(config_of(row, options))
    scale = (row.batch / OF_DEMO) ** 0.5
    rates = [scale * rate for rate in options.rates]
    runs = [(seed, rate) for rate in rates for seed in range(options.seeds)]
    states = trained(setup, resident_clips["train"], runs, options)

    def params(number: int):
        return jax.tree.map(lambda leaf: leaf[number], states.params)

    validation = [recalls(setup, params(n), resident_clips["validation"], {}) for n in
                  range(len(runs))]  # fmt: skip
    method = setup.objective.methods[0]
    scores = np.asarray([np.mean(list(found[method].values())) for found, _ in validation])
    by_rate = scores.reshape(len(rates), options.seeds).mean(axis=1)
    best = int(np.argmax(by_rate))
    chosen = range(best * options.seeds, (best + 1) * options.seeds)
    return {
        **{"batch": row.batch, "steps": row.steps, "learning_rate": rates[best]},
        "at_an_end": len(rates) > 1 and best in (0, len(rates) - 1),
        "validation_scores": dict(zip(map(repr, rates), by_rate.tolist(), strict=True)),
        "decided": [validation[n][1] for n in chosen],
        "splits": {
            split: [recalls(setup, params(n), resident_clips[split], validation[n][1])[0]
                    for n in chosen]
            for split in SPLITS[1:]
        },
    }  # fmt: skip


# ---- tables ----------------------------------------------------------------------------------


def table(found: dict[str, dict], split: str) -> str:
    """One line a row: R@1 both ways by sequence and aggregation, and by the dynamic part alone."""
    methods = ("sequence", "aggregation", "dynamic part")
    head = ["row", "learning rate", *(f"{WAYS[way]} by {m}" for m in methods for way in WAYS)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, entry in found.items():
        runs = entry["splits"][split]
        cells = [
            interval([run[method][way] for run in runs]) if method in runs[0] else ""
            for method in methods
            for way in WAYS
        ]
        rate = f"{entry['learning_rate']:.2g}" + "\\*" * entry["at_an_end"]
        lines.append("| " + " | ".join([f"{name}, {entry['steps']:,} steps", rate, *cells]) + " |")
    return "\n".join(lines)


def draw(results: dict[str, dict[str, dict]], file: Path) -> None:
    """R@1 by sequence (V→A) of every row with its 95 % interval, a panel for each split."""
    import matplotlib
    from matplotlib.figure import Figure

    from scav_jax.report.figures import STYLE

    names = [(table, name) for table, found in results.items() for name in found]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 1.2 + 0.28 * len(names)), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for panel, split in zip(panels, SPLITS[1:], strict=True):
            for at, (table, name) in enumerate(names):
                runs = results[table][name]["splits"][split]
                values = [run["sequence"]["v2a"] for run in runs]
                mean, half = 100 * np.mean(values), half_width(values)
                panel.errorbar(mean, at, xerr=half, fmt="o", color="C0", capsize=3)
            panel.set_yticks(range(len(names)), [f"{name} ({table})" for table, name in names])
            panel.set_xlim(0, 101)
            panel.set_title(f"{split}: V→A R@1, %")
            panel.grid(axis="x")
        panels[0].invert_yaxis()
        figure.savefig(file, dpi=130)


def settings(options) -> dict:
    """What rows that are kept have to have in common."""
    names = ("seeds", "steps", "batch", "rates", "gallery", "precision", "changes", "clips")
    found = {name: getattr(options, name) for name in names}
    return json.loads(json.dumps(found | {"data": str(options.data)}))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/chimes-large/features"))
    parser.add_argument("--out", type=Path, default=Path("runs/large"))
    parser.add_argument("--tables", nargs="+", default=TABLES, choices=TABLES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000, help="of a row of the usual batch")
    parser.add_argument("--batch", type=int, default=OF_DEMO, help="clips of a step, usually")
    parser.add_argument("--rates", type=float, nargs="+", default=(5e-4, 1e-3, 2e-3, 4e-3))
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--gallery", type=int, default=2040, help="clips of a split")
    parser.add_argument("--precision", default="tensorfloat32")
    parser.add_argument("--chunk", type=int, default=250, help="steps in a call of the device")
    parser.add_argument("--clips-at-once", type=int, default=4096, help="over all runs of a step")
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument("--small", action="store_true", help="towers and steps for two CPU cores")
    scale.add_argument("--quick", action="store_true", help="tiny towers, some rows, few steps")
    chosen = parser.parse_args()
    form = "small" if chosen.small else "quick" if chosen.quick else ""
    parser.set_defaults(**FORMS[form])
    options = parser.parse_args()
    sizes = (options.steps - 1, options.gallery - 1, options.batch - 1, *options.batches)
    if min(options.seeds, *sizes) < 1:
        raise InputError("expected --seeds of at least 1, --steps, --gallery, --batch of 2")
    options.out = options.out / form
    return options


def main() -> None:
    options = read_options()
    splits = {name: store.read(options.data, name) for name in ("train", *SPLITS)}
    largest = options.clips or len(splits["train"])
    wanted = [row for row in rows(options) if row.batch <= largest]
    if options.quick:
        wanted = [row for row in wanted if row.name in ("separate, augmented",)]
    left_out = sorted({row.batch for row in rows(options)} - {row.batch for row in wanted})
    if left_out:
        print(f"{options.data} has {largest:,} training clips: no batch of {left_out}")
    on_device = {name: resident(split, options.clips if name == "train" else options.gallery)
                 for name, split in splits.items()}  # fmt: skip
    file = options.out / "chimes_large.json"
    kept = json.loads(file.read_text()) if file.is_file() else {"settings": settings(options)}
    if kept["settings"] != settings(options):
        raise InputError(f"{file}: expected rows of these settings, got others; use another --out")
    results = kept.get("tables", {})
    for row in wanted:
        of_table = results.setdefault(row.table, {})
        if row.name not in of_table:
            print(f"== {row.table}: {row.name}, {row.steps:,} steps", flush=True)
            of_table[row.name] = result(row, on_device, options)
            write_json(file, {"settings": settings(options), "tables": results})
    for split in SPLITS[1:]:
        for name, found in results.items():
            size = len(on_device[split].numbers)
            print(f"\n{name}, {split}: R@1 in % of {size:,} clips, {options.seeds} seeds; ours\n")
            print(table(found, split))
    draw(results, options.out / "chimes_large.png")
    print(f"\n{options.out / 'chimes_large.png'}")


if __name__ == "__main__":
    run_program(main)
