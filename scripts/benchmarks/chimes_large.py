"""The paper's tables on `chimes --preset large` by one command, with seeds and intervals.

    scav datasets chimes --preset large --out VIDEOS && scav extract --videos VIDEOS --out DATA
    python scripts/benchmarks/chimes_large.py --data DATA [--out DIR] [--seeds 3] [--steps 2000]
    python scripts/benchmarks/chimes_large.py --data DATA --small    # demo's data, two CPU cores
    python scripts/benchmarks/chimes_large.py --data DATA --quick    # a minute: that it runs

All features lie on the device, learning rates and seeds of a row are trained at once (`vmap`, as
many as `--clips-at-once` has room for), steps are a `lax.scan`; towers, objectives, distances, the
step and what ranks are the package's, as the configs of the rows have them. Unlike `scav train` the
last parameters are evaluated, not an average of checkpoints. Tables: `paper` (Tables I and IV),
`family` (what is ours), `steps` and `clips` (batch sizes at equal steps and at equal clips; others
than `--batch` are these tables' alone). The learning rate of a batch of B is r sqrt(B / 64), with r
of `--rates`.

For each row the learning rate is the one of `--rates` whose mean of both R@1 on validation, over
the first `--choosing` seeds, is best; it is marked where it lies at an end, since a better one may
lie beyond. R@1 is of the first `--gallery` clips of a split, mean and 95 % t-interval over seeds.
Finished rows are kept: the command resumes. Rows that train the same are trained once. Writes
OUT/chimes_large.json and .png. `--small` asks the same with towers of one block of 64 channels and
300 steps of 32 clips, the rate by one seed: half a minute a row on two CPU cores, minutes with
soft-DTW and Wasserstein.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

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
from scav_jax.train_step import init_state, make_train_step
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
FAMILY = {
    "SCAV, by one deviation": "demo:scale",
    "SCAV, no z-score, lambda 0.05": "demo:lambda005",
    "SCAV, every frame": "demo:frames",
    "SCAV, every frame, antialiased": "demo:antialiased",
    "SCAV, rises": "demo:rises",
    "SCAV, every frame and rises": "demo:finely",
    "SCAV, augmented": "demo:augment",
    "SCAV, all three": "demo:augmented",
    "SCAV, features less their mean": "separate/demo:centred",
    "separate": "separate/demo:separate",
    "separate, towers see the mean": "separate/demo:keep",
    "separate, a tower for the static part": "separate/demo:tower",
    "separate, the static part alone": "separate/demo:static",
    "separate, augmented": "separate/demo:augment",
    "separate, Euclidean, z-scored": "separate/demo:by_distance",
    "separate, soft-DTW, z-scored": "separate/demo:soft_dtw",
    "separate, Wasserstein, z-scored": "separate/demo:wasserstein",
}
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
        **{"changes": SMALL, "clips": None, "precision": "float32", "clips_at_once": 32},
        **{"steps": 300, "batch": 32, "gallery": 510, "chunk": 50, "choosing": 1},
        **{"rates": (1e-3, 4e-3, 1.6e-2, 6.4e-2), "batches": (16, 32, 64)},
    },
    "quick": {
        **{"changes": TINY | NO_BLOCKS, "clips": 64, "steps": 4, "chunk": 2, "gallery": 32},
        **{"seeds": 2, "choosing": 1, "rates": (1e-3, 2e-3), "batches": (), "tables": ("family",)},
    },
}
WARMUP_SHARE = 15 / 325
SPLITS = ("validation", "test", "unseen_instruments")
WAYS = {"v2a": "V→A", "a2v": "A→V"}
BLOCK = 256  # clips that are encoded at a time


class Row(NamedTuple):
    """What is trained, by the name of its config."""

    table: str
    name: str
    config: str
    batch: int
    steps: int


def rows(options) -> Iterator[Row]:
    """All rows of the tables that are wanted."""
    usual = options.batch, options.steps
    for name, config in PAPER.items() if "paper" in options.tables else ():
        yield Row("paper", name, f"{config}:demo", *usual)
    for name, config in FAMILY.items() if "family" in options.tables else ():
        yield Row("family", name, config, *usual)
    for batch in options.batches:
        if "steps" in options.tables:
            yield Row("steps", f"batch {batch:,}", "demo", batch, options.steps)
        if "clips" in options.tables:
            steps = max(options.steps * options.batch // batch, 2)
            yield Row("clips", f"batch {batch:,}", "demo", batch, steps)


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
    return override(load_file(row.config), changes | options.changes)


# ---- training --------------------------------------------------------------------------------


Runs = list[tuple[int, float]]  # a seed and a learning rate each


def trainer(setup: Setup, clips: Batch, options) -> Callable[[Runs], list]:
    """What trains runs, as many at once as there is room for, and returns their parameters.

    An optimizer with the peak 1 whose updates are scaled is one with that learning rate: AdamW's
    update and its decay are proportional to it.
    """
    encoders, size = training_encoders(setup), setup.data.batch_size
    section = dataclasses.asdict(setup.config.optimizer) | {"learning_rate": 1.0}
    lengths = trimmed_lengths(setup.training, setup.data.align)[: len(clips.numbers)]

    def optimizer(rate):
        return optax.chain(
            make_optimizer(steps=setup.config.train.steps, **section), optax.scale(rate)
        )

    @jax.jit
    @jax.vmap
    def begin(seed):
        return init_state(encoders, setup.objective, optimizer(1.0), clips, seed)

    def step(clips, run, state, numbers):
        seed, rate = run
        batch = jax.tree.map(lambda leaf: leaf[numbers], clips)
        go_on = make_train_step(encoders, setup.objective, optimizer(rate), seed)
        state, metrics = go_on(state, batch)
        return state, (metrics["loss"], metrics["skipped"])

    @partial(jax.jit, donate_argnums=0)
    def many(states, clips, runs, chunk):  # [steps, runs, batch]
        return jax.lax.scan(
            lambda states, numbers: jax.vmap(partial(step, clips))(runs, states, numbers),
            states, chunk,
        )  # fmt: skip

    def train(runs: Runs) -> list:
        together = tuple(jnp.asarray(column) for column in zip(*runs, strict=True))
        plans = [BatchPlan(lengths, batch_size=size, seed=seed, buckets=1) for seed, _ in runs]
        states = begin(together[0])
        for first in range(0, setup.config.train.steps, options.chunk):
            numbers = range(first, min(first + options.chunk, setup.config.train.steps))
            chunk = np.asarray([[plan[n][0] for plan in plans] for n in numbers], np.int32)
            states, (losses, skipped) = many(states, clips, together, chunk)
        told = f"{len(runs)} runs, loss {np.asarray(losses)[-1].mean():.3f}"
        print(f"   {told}, {int(np.asarray(skipped)[-1].sum())} steps skipped", flush=True)
        return [jax.tree.map(lambda leaf: leaf[n], states.params) for n in range(len(runs))]  # noqa: B023

    at_once = max(1, options.clips_at_once // size)
    return lambda runs: [params for n in range(0, len(runs), at_once)
                         for params in train(runs[n : n + at_once])]  # fmt: skip


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


def result(row: Row, clips: dict[str, Batch], options) -> dict:
    """A row: its learning rate by validation, and the figures of all seeds with it."""
    begin, setup = time.perf_counter(), set_up(config_of(row, options))
    train, choosing = trainer(setup, clips["train"], options), min(options.choosing, options.seeds)
    rates = [(row.batch / OF_DEMO) ** 0.5 * rate for rate in options.rates]
    method = setup.objective.methods[0]

    def validated(runs: Runs) -> list[tuple]:
        """Of each run its parameters, its score on validation, and what that decides."""
        rows = []
        for params in train(runs):
            found, decided = recalls(setup, params, clips["validation"], {})
            rows.append((params, np.mean(list(found[method].values())), decided))
        return rows

    tried = validated([(seed, rate) for rate in rates for seed in range(choosing)])
    scores = np.reshape([score for _, score, _ in tried], (len(rates), choosing)).mean(axis=1)
    best = int(np.argmax(scores))
    chosen = tried[best * choosing : (best + 1) * choosing]
    if choosing < options.seeds:
        chosen += validated([(seed, rates[best]) for seed in range(choosing, options.seeds)])
    return {
        **{"batch": row.batch, "steps": row.steps, "learning_rate": rates[best]},
        "at_an_end": len(rates) > 1 and best in (0, len(rates) - 1),
        "validation_scores": dict(zip(map(repr, rates), scores.tolist(), strict=True)),
        "decided": [decided for _, _, decided in chosen],
        "splits": {
            split: [recalls(setup, params, clips[split], decided)[0]
                    for params, _, decided in chosen]
            for split in SPLITS[1:]
        },
        "seconds": time.perf_counter() - begin,
    }  # fmt: skip


def like(row: Row, options) -> Row:
    """The first row that trains the same: of equal configs, at as many steps of as many clips."""
    return next(one for one in rows(options) if config_of(one, options) == config_of(row, options))


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
    """R@1 by sequence of every row with its 95 % interval, both ways, a panel for each split."""
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
                for color, (way, shift) in enumerate((("a2v", -0.15), ("v2a", 0.15))):
                    values = [run["sequence"][way] for run in runs]
                    mean, half = 100 * np.mean(values), half_width(values)
                    label = WAYS[way] if not at else None
                    panel.errorbar(mean, at + shift, xerr=half, fmt="o", color=f"C{color}",
                                   capsize=2, markersize=4, label=label)  # fmt: skip
            panel.set_yticks(range(len(names)), [f"{name} ({table})" for table, name in names])
            panel.set_xlim(0, 101)
            panel.set_title(split)
            panel.grid(axis="x")
        panels[1].legend(loc="upper right")
        figure.supxlabel("R@1 by sequence, %")
        panels[0].invert_yaxis()
        figure.savefig(file, dpi=130)


def settings(options) -> dict:
    """What rows that are kept have to have in common."""
    names = ("seeds", "choosing", "steps", "batch", "rates", "gallery", "precision", "changes")
    names += ("clips",)
    found = {name: getattr(options, name) for name in names}
    return json.loads(json.dumps(found | {"data": str(options.data)}))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/chimes-large/features"))
    parser.add_argument("--out", type=Path, default=Path("runs/large"))
    parser.add_argument("--tables", nargs="+", default=TABLES, choices=TABLES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--choosing", type=int, default=3, help="seeds that choose a rate")
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
    if min(options.seeds, options.choosing, *sizes) < 1:
        raise InputError(
            "expected --seeds and --choosing of at least 1, --steps, --gallery, --batch of 2"
        )
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
            same = like(row, options)
            print(f"== {row.table}: {row.name}, {row.steps:,} steps", flush=True)
            found = results[same.table].get(same.name) or result(row, on_device, options)
            of_table[row.name] = found if same == row else found | {"seconds": 0.0}
            write_json(file, {"settings": settings(options), "tables": results})
    shown: dict[str, dict] = {}
    for row in wanted:  # in this order, whatever order those that were kept are in
        shown.setdefault(row.table, {})[row.name] = results[row.table][row.name]
    for split in SPLITS[1:]:
        for name, found in shown.items():
            size = len(on_device[split].numbers)
            print(f"\n{name}, {split}: R@1 in % of {size:,} clips, {options.seeds} seeds; ours\n")
            print(table(found, split))
    seconds = sum(row["seconds"] for found in shown.values() for row in found.values())
    draw(shown, options.out / "chimes_large.png")
    print(f"\n{options.out / 'chimes_large.png'}; all rows: {seconds / 60:.0f} min")


if __name__ == "__main__":
    run_program(main)
