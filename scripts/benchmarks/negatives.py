"""Do more negatives help? R@1 on `chimes` against the batch size, at equal clips seen.

    python scripts/benchmarks/negatives.py [--quick] [--data DATA] [--out DIR] [--seeds 3]

The demo's towers at batch 32, 128, 512 and 2,048 (`--batches`), each trained on as many clips as
the demo (325 steps of 64), or `--clips-seen`; or, with `--steps`, for equally many steps. A batch
holds a clip once, so none is larger than the training split: where the split is smaller than 2,048,
the largest power of two that it holds takes its place, and this is said. (`--data` of `chimes
--preset large`, or of `--preset demo --set training_performances=6`, holds 2,048.)

The rule for the learning rate: r(B) = r * sqrt(B / 64), the usual scaling of AdamW, with r chosen
for each batch size on validation with seed 0 among the demo's rate, its half and its double; the
search goes on, doubling or halving, until the best lies between worse ones. So every batch size
has its own best rate, and the rule says where the search begins. Warm-up is the same share of the
steps, 15 of 325; a run is validated 13 times.

Then seeds 0..n-1 with the rate that was chosen; each run's averaged model is evaluated on `test`
and `unseen_instruments`. Batches above `--microbatch` are trained with gradient caching where
the config has it (the same numbers in less memory).

One JSON file a finished run in OUT/results; the command resumes. Prints the table, writes
OUT/negatives.json and OUT/negatives.png.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
from chimes_rows import TINY, evaluated, finished, interval, validation_score

from scav_jax.base.errors import InputError, run_program
from scav_jax.base.files import write_json
from scav_jax.features import store
from scav_jax.training.config_files import load_file

CONFIG = "configs/demo.py"
BATCHES = (32, 128, 512, 2048)
WARMUP_SHARE = 15 / 325
VALIDATIONS = 13
MOST_RATES = 7  # a search that has not ended by then is a search without an end
SPLITS = ("test", "unseen_instruments")


def batch_sizes(wanted: tuple[int, ...], clips: int) -> list[int]:
    """The sizes that the training split can fill; the largest power of two in place of others."""
    largest = 2 ** int(math.log2(clips))
    return sorted({min(size, largest) for size in wanted})


def settings(batch: int, factor: float, seed: int, options) -> dict:
    """What a run changes of the demo's config; `factor` multiplies the rule's learning rate."""
    demo = load_file(CONFIG)
    seen = options.clips_seen or demo.train.steps * demo.data.batch_size
    steps = options.steps or max(round(seen / batch), 2)
    rate = demo.optimizer.learning_rate * math.sqrt(batch / demo.data.batch_size) * factor
    changes = {
        "seed": seed,
        "data.path": str(options.data),
        "data.batch_size": batch,
        "optimizer.learning_rate": rate,
        "optimizer.warmup_steps": min(max(round(WARMUP_SHARE * steps), 1), steps - 1),
        "train.steps": steps,
        "train.log_every": max(steps // 20, 1),
        "train.validate_every": max(steps // VALIDATIONS, 1),
        "train.devices": 1,
    }
    if batch > options.microbatch:
        changes["train.microbatch"] = options.microbatch
    return changes | options.changes


def result(batch: int, factor: float, seed: int, options, *, test: bool) -> dict:
    """The row of one run, from its file where that is there; trained, scored and tested if not."""
    name = f"batch{batch}-rate{factor:g}-seed{seed}"
    file = options.out / "results" / f"{name}.json"
    row = json.loads(file.read_text()) if file.is_file() else {}
    if row and (not test or "splits" in row):
        return row
    changes, workdir = settings(batch, factor, seed, options), options.out / "runs" / name
    finished(workdir, f"batch {batch}, rate x{factor:g}, seed {seed}", CONFIG, changes)
    row = {
        "batch": batch,
        "factor": factor,
        "seed": seed,
        "learning_rate": changes["optimizer.learning_rate"],
        "steps": changes["train.steps"],
        "clips_seen": batch * changes["train.steps"],
        "validation": validation_score(workdir),
    }
    if test:
        row["splits"] = {split: evaluated(workdir, str(options.data), split) for split in SPLITS}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, row)
    return row


def best_factor(batch: int, options) -> tuple[float, dict[float, float]]:
    """The factor of the rule's learning rate with the best validation score, and all scores."""

    def score(factor: float) -> float:
        return result(batch, factor, 0, options, test=False)["validation"]

    scores = {factor: score(factor) for factor in options.factors}
    while len(scores) < MOST_RATES and len(options.factors) > 1:
        low, best, high = min(scores), max(scores, key=scores.get), max(scores)
        if low < best < high:
            break
        factor = low / 2 if best == low else high * 2
        scores[factor] = score(factor)
    return max(scores, key=scores.get), dict(sorted(scores.items()))


def recalls(runs: list[dict], split: str, direction: str, method: str = "sequence"):
    return [run["splits"][split]["recall"][direction][method] for run in runs]


def table(found: dict[int, dict], split: str) -> str:
    """One line a batch size: R@1 by sequence and by aggregation, mean and interval over seeds."""
    columns = [(m, d, w) for m in ("sequence", "aggregation") for d, w in WAYS.items()]
    head = ["batch", "steps", "learning rate", *(f"{w} by {m}" for m, _, w in columns)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for batch, entry in found.items():
        runs = entry["runs"]
        cells = [interval(recalls(runs, split, direction, m)) for m, direction, _ in columns]
        figures = f"{batch:,}", str(runs[0]["steps"]), f"{runs[0]['learning_rate']:.2g}"
        lines.append("| " + " | ".join([*figures, *cells]) + " |")
    return "\n".join(lines)


WAYS = {"a2v": "A→V", "v2a": "V→A"}


def draw(found: dict[int, dict], file: Path, equal: str) -> None:
    """R@1 by sequence against the batch size, with 95 % intervals over seeds."""
    import matplotlib
    from matplotlib.figure import Figure
    from scipy.stats import t

    from scav_jax.report.figures import STYLE

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        for panel, split in zip(figure.subplots(1, 2), SPLITS, strict=True):
            for direction, style in (("a2v", "o-"), ("v2a", "s--")):
                values = [recalls(e["runs"], split, direction) for e in found.values()]
                means = [100 * np.mean(v) for v in values]
                halves = [
                    100 * t.ppf(0.975, len(v) - 1) * np.std(v, ddof=1) / np.sqrt(len(v))
                    if len(v) > 1
                    else 0.0
                    for v in values
                ]
                panel.errorbar(
                    list(found), means, halves, fmt=style, capsize=3, label=WAYS[direction]
                )
            panel.set_xscale("log", base=2)
            panel.set_xticks(list(found), [f"{batch:,}" for batch in found])
            panel.set_ylim(bottom=0)
            panel.set_title(f"{split}: R@1 by sequence, %")
            panel.set_xlabel(f"batch, at equal {equal}")
            panel.grid(axis="y")
            panel.legend()
        figure.savefig(file, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/chimes-demo/features"))
    parser.add_argument("--out", type=Path, default=Path("runs/negatives"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clips-seen", type=int, default=0, help="of every run; 0: the demo's")
    parser.add_argument("--steps", type=int, default=0, help="of every run, not equal clips")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--microbatch", type=int, default=256, help="larger batches are cached")
    parser.add_argument(
        "--quick", action="store_true", help="minutes: tiny towers, 2 sizes, 1 rate"
    )
    options = parser.parse_args()
    if options.seeds < 1 or min(options.clips_seen, options.steps) < 0 or min(options.batches) < 2:
        raise InputError(
            "expected --seeds of at least 1, --batches from 2, and --clips-seen and --steps from 0"
        )
    options.factors, options.changes, wanted = (0.5, 1.0, 2.0), {}, tuple(options.batches)
    if options.quick:
        options.out, options.seeds = options.out / "quick", min(options.seeds, 2)
        options.factors, wanted = (1.0,), (8, 16)
        options.clips_seen = options.clips_seen or 96
        options.changes = TINY
    clips = len(store.read(options.data, "train"))
    sizes = batch_sizes(wanted, clips)
    if max(wanted) > max(sizes):
        print(f"{options.data} has {clips:,} training clips: the largest batch is {max(sizes):,}")
    found = {}
    for batch in sizes:
        factor, scores = best_factor(batch, options)
        runs = [result(batch, factor, seed, options, test=True) for seed in range(options.seeds)]
        found[batch] = {"factor": factor, "validation_scores": scores, "runs": runs}
        document = {"training_clips": clips, "batches": {str(b): e for b, e in found.items()}}
        write_json(options.out / "negatives.json", document)
    for split in SPLITS:
        first = next(iter(found.values()))["runs"][0]["splits"][split]
        print(f"\n{split}: {first['clips']} clips, id list {first['ids'][:12]}, R@1 in %,")
        print(f"mean and 95 % t-interval over {options.seeds} seeds; rendered data, ours\n")
        print(table(found, split))
    draw(found, options.out / "negatives.png", "steps" if options.steps else "clips seen")
    print(f"\n{options.out / 'negatives.png'}")


if __name__ == "__main__":
    run_program(main)
