"""What does contrasting sequences gain on `chimes`? The rows of the paper's tables, with seeds.

For each row: a learning rate chosen on validation (seed 0; doubled or halved until the best lies
between worse ones), then seeds 0..n-1 with it; every run is evaluated on `test` and
`unseen_instruments` with its averaged checkpoint. Towers, steps and batch size are the same for
all rows. The data set is rendered and ours: so are the figures.

    python scripts/benchmarks/chimes_rows.py --table ablations
    python scripts/benchmarks/chimes_rows.py --table distances
    python scripts/benchmarks/chimes_rows.py --table parts --data data/chimes-rooms/features \
        --out runs/rows-rooms

`parts` sets what was learned apart (docs/separate.md) beside the paper's recipe; `--steps` trains
all rows longer, `--out` must be another then. Finished runs are kept and reused, so the command
resumes. At last `TIMED_STEPS` steps of each row are timed, one after the other, on the machine as
it is. Prints a table of docs/results.md, writes `OUT/<table>.json`. On two CPU cores, a run takes
80 s with the Euclidean distance and 5 min with the others.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scav_jax import metrics, retrieve
from scav_jax.base.errors import run_program
from scav_jax.base.files import ids_sha256, write_json
from scav_jax.evaluate.parts import of_both
from scav_jax.features import store
from scav_jax.retrieval import embed
from scav_jax.train.loop import train
from scav_jax.training.config import override
from scav_jax.training.config_files import load_file
from scav_jax.training.runs import AVERAGED, load_run

ROWS = {
    "CAV": "configs/table1/cav.py:demo",
    "SCAV": "configs/demo.py",  # Euclidean, visual to audio, resampled before the towers
    "SCAV, no z-score": "configs/table4/without_normalization.py:demo",
    "SCAV, lambda 0.07": "configs/table4/temperature_007.py:demo",
    "CAV + SCAV": "configs/table4/multitask.py:demo",
    "SCAV, resampled after the towers": "configs/table1/scav_post_v2a.py:demo",
    "SCAV, soft-DTW": "configs/table1/scav_dtw.py:demo",
    "SCAV, Wasserstein": "configs/table1/scav_wass.py:demo",
    "SCAV, features less their mean": "configs/separate/demo.py:centred",
    "separate": "configs/separate/demo.py:separate",
    "SCAV, read finely": "configs/demo.py:finely",
    "SCAV, read finely, augmented": "configs/demo.py:augmented",
}
TABLES = {
    "ablations": ("SCAV", "CAV", "SCAV, no z-score", "SCAV, lambda 0.07"),
    "distances": (
        "SCAV",
        "SCAV, resampled after the towers",
        "SCAV, soft-DTW",
        "SCAV, Wasserstein",
    ),
    "reading": ("SCAV", "SCAV, read finely", "SCAV, read finely, augmented"),
    "parts": ("SCAV", "SCAV, features less their mean", "separate"),
    "all": tuple(ROWS),
}
METHODS = ("aggregation", "sequence", "hybrid 100", "first stage @100")
# Of rows whose parts were learned apart, aggregation is the static one and sequence their sum.
METHODS_OF_PARTS = ("aggregation", "dynamic part", "sequence")
TIMED_STEPS = 60
LEARNING_RATES = (1e-3, 2e-3)  # where the search for a row's learning rate starts
KS = (1, 10, 100)
# Changes of a config that make towers small enough to see that a script runs.
TINY = {"width": 16, "heads": 2, "visual_blocks": 1, "feedforward": 16}
TINY |= {"visual_hidden": 16, "audio_hidden": 16}
TINY = {f"encoders.{name}": value for name, value in TINY.items()}


def folder(out: Path, row: str, rate: float, seed: int) -> Path:
    name = "".join(c if c.isalnum() else "-" for c in row.lower())
    return out / f"{name}-lr{rate:g}-seed{seed}"


class Rows(NamedTuple):
    """Where the runs of all rows are, and what they share: the data set, steps, first rates."""

    out: Path
    data: str
    steps: int | None
    rates: list[float]

    def trained(self, row: str, rate: float, seed: int) -> Path:
        """The directory of a finished run of a row, trained now if it is not there."""
        changes = {"seed": seed, "data.path": self.data, "optimizer.learning_rate": rate}
        changes |= {} if self.steps is None else {"train.steps": self.steps}
        title = f"{row}, learning rate {rate:g}, seed {seed}"
        return finished(folder(self.out, row, rate, seed), title, ROWS[row], changes)


def finished(workdir: Path, title: str, config: str, changes: dict) -> Path:
    """A run's directory: of a config with some changes, trained now if it is not finished."""
    if not (workdir / AVERAGED).is_dir():
        print(f"== {title}", file=sys.stderr)
        if train(override(load_file(config), changes), workdir) is None:
            sys.exit("terminated; the same command resumes")
    return workdir


def validation_score(workdir: Path) -> float:
    """The mean of both R@1 of the averaged model on validation, by the method it trains for."""
    run = load_run(workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return run.objective.score(next(x for x in lines if x["kind"] == "averaged"))


def validation_scores(rows: Rows, row: str) -> dict[float, float]:
    """The score of every learning rate that was tried, ascending; the best is not at an end."""

    def tried(rate: float) -> float:
        return validation_score(rows.trained(row, rate, 0))

    scores = {rate: tried(rate) for rate in rows.rates}
    while True:
        low, best, high = min(scores), max(scores, key=scores.get), max(scores)
        if low < best < high:
            return dict(sorted(scores.items()))
        rate = low / 2 if best == low else high * 2
        scores[rate] = tried(rate)


def evaluated(workdir: Path, data: str, split_name: str) -> dict:
    """Ranks of every method and direction on a split: `{method: {direction: [ranks]}}`."""
    run = load_run(workdir)
    split = store.read(Path(data), split_name)
    embedded = embed.embed(run, split)
    ranks_by = run.objective.ranks_by()
    similarities, distances = embed.all_against_all(embedded, *ranks_by)
    dynamic = of_both(embedded, *ranks_by)
    ks = [k for k in KS if k < len(split)] + [len(split)]
    result = {}
    for direction in retrieve.DIRECTIONS:
        by_aggregation = metrics.ranks(retrieve.queries_first(-similarities, direction))
        by_sequence = metrics.ranks(retrieve.queries_first(distances, direction))
        hybrid = retrieve.hybrid_ranks(similarities, distances, ks, direction)
        assert np.array_equal(hybrid[0], by_aggregation), "k = 1 should be aggregation"
        assert np.array_equal(hybrid[-1], by_sequence), "k = all should be sequence"
        result[direction] = {
            "aggregation": metrics.recall_at_k(by_aggregation, 1),
            "sequence": metrics.recall_at_k(by_sequence, 1),
            **{f"hybrid {k}": metrics.recall_at_k(h, 1) for k, h in zip(ks, hybrid, strict=True)},
            "first stage @100": metrics.recall_at_k(by_aggregation, min(100, len(split))),
            **{part.label: metrics.recall_at_k(part.ranks(direction), 1) for part in dynamic},
        }
    return {"clips": len(split), "ids": ids_sha256(split.ids), "recall": result}


def seconds_per_step(row: str, data: str) -> float:
    """The median over the log lines of a short run, input included and validation left out."""
    config = load_file(ROWS[row])
    changes = {"data.path": data, "train.steps": TIMED_STEPS, "train.validate_every": TIMED_STEPS}
    with tempfile.TemporaryDirectory() as workdir:
        if train(override(config, changes), Path(workdir)) is None:
            sys.exit("terminated; the same command resumes")
        lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    rates = [record["examples_per_s"] for record in records if record["kind"] == "train"]
    return config.data.batch_size / float(np.median(rates[1:]))  # the first one compiles


def half_width(values: list[float]) -> float:
    """Of the 95 % t-interval over seeds, in per cent; of one seed 0."""
    from scipy.stats import t

    if len(values) < 2:
        return 0.0
    return 100 * t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))


def interval(values: list[float]) -> str:
    """Mean and 95 % t-interval over seeds, in per cent."""
    mean = f"{100 * np.mean(values):5.1f}"
    return mean if len(values) < 2 else f"{mean} ± {half_width(values):.1f}"


def table(results: dict, split: str, methods: tuple[str, ...]) -> str:
    """One line a row: mean and interval over seeds of R@1, A->V and V->A; "" where it has none."""
    head = ["row (lr)", *(f"{m} {way}" for m in methods for way in ("A→V", "V→A")), "ms/step"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row, entry in results.items():
        runs = entry["splits"][split]
        cells = [
            interval([run["recall"][direction][method] for run in runs])
            if method in runs[0]["recall"][direction]
            else ""
            for method in methods
            for direction in ("a2v", "v2a")
        ]
        cells.append(f"{1000 * entry['seconds_per_step']:.0f}")
        lines.append(f"| {row} ({entry['learning_rate']:g}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="data/chimes-demo/features")
    parser.add_argument("--out", type=Path, default=Path("runs/rows"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", default="ablations", choices=list(TABLES))
    parser.add_argument("--steps", type=int, help="of every row; without it the config's own")
    parser.add_argument("--rates", type=float, nargs="+", default=LEARNING_RATES,
                        help="learning rates that every row tries first")  # fmt: skip
    arguments = parser.parse_args()
    rows = Rows(arguments.out, arguments.data, arguments.steps, arguments.rates)
    results = {}
    for row in TABLES[arguments.table]:
        scores = validation_scores(rows, row)
        rate = max(scores, key=scores.get)
        runs = [rows.trained(row, rate, seed) for seed in range(arguments.seeds)]
        results[row] = {
            "learning_rate": rate,
            "validation_scores": {f"{r:g}": s for r, s in scores.items()},
            "splits": {
                split: [evaluated(run, arguments.data, split) for run in runs]
                for split in ("test", "unseen_instruments")
            },
        }
        write_json(arguments.out / f"{arguments.table}.json", results)
    for row, entry in results.items():
        entry["seconds_per_step"] = seconds_per_step(row, arguments.data)
    write_json(arguments.out / f"{arguments.table}.json", results)
    methods = METHODS_OF_PARTS if arguments.table == "parts" else METHODS
    for split in ("test", "unseen_instruments"):
        first = next(iter(results.values()))["splits"][split][0]
        print(f"\n{split}: {first['clips']} clips, id list {first['ids'][:12]}, R@1 in %,")
        print(f"mean and 95 % t-interval over {arguments.seeds} seeds; rendered data, ours\n")
        print(table(results, split, methods))


if __name__ == "__main__":
    run_program(main)
