"""How far do training's loss curves differ between precisions? On `chimes`, as the demo trains.

    python scripts/benchmarks/precision.py [--quick] [--data DATA] [--out DIR]

The demo's run in `float32` and in `bfloat16` (the towers' products; distances, softmax, statistics
and the optimizer are float32 in both) with the same seed, so the same clips, order and dropout; and
in `float32` with two further seeds, to see how large a difference is. On devices that have it,
`tensorfloat32` as well. Finished runs are kept and reused. Prints a table, writes
OUT/precision.json and OUT/precision.png.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
from chimes_rows import TINY, finished, validation_score

from scav_jax.base.errors import run_program
from scav_jax.base.files import write_json
from scav_jax.retrieval.results import aligned

CONFIG = "configs/demo.py"
REFERENCE = ("float32", 0)


def trained(precision: str, seed: int, options) -> Path:
    """The run's directory, once it is finished."""
    changes = {"seed": seed, "train.precision": precision, "data.path": str(options.data)}
    if options.quick:
        changes |= TINY | {
            "train.steps": 20,
            "train.validate_every": 10,
            "optimizer.warmup_steps": 2,
        }
    workdir = options.out / f"{precision}-seed{seed}"
    return finished(workdir, f"{precision}, seed {seed}", CONFIG, changes)


def losses(workdir: Path) -> dict[int, float]:
    """Step -> mean loss of the steps since the line before."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


def draw(curves: dict[str, dict[int, float]], file: Path) -> None:
    """Loss against step, one line a run."""
    import matplotlib
    from matplotlib.figure import Figure

    from scav_jax.report.figures import STYLE

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 3.8), layout="constrained")
        panel = figure.subplots()
        for name, curve in curves.items():
            style = {"lw": 1.8} if name.endswith("seed 0") else {"lw": 0.9, "ls": ":"}
            panel.plot(list(curve), list(curve.values()), label=name, **style)
        panel.set_title("Loss")
        panel.set_xlabel("step")
        panel.set_yscale("log")
        panel.grid(axis="y")
        panel.legend()
        figure.savefig(file, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/chimes-demo/features"))
    parser.add_argument("--out", type=Path, default=Path("runs/precision"))
    parser.add_argument("--quick", action="store_true", help="tiny towers, 20 steps")
    options = parser.parse_args()
    options.out = options.out / "quick" if options.quick else options.out
    runs = [REFERENCE, ("bfloat16", 0), ("float32", 1), ("float32", 2)]
    if jax.default_backend() == "gpu":
        runs.insert(2, ("tensorfloat32", 0))
    found, curves = {}, {}
    for precision, seed in runs:
        workdir = trained(precision, seed, options)
        name = f"{precision}, seed {seed}"
        curves[name] = losses(workdir)
        found[name] = {"losses": curves[name], "validation": validation_score(workdir)}
    reference = np.asarray(list(curves["float32, seed 0"].values()))
    rows = [["", "mean difference of the loss", "largest", "last loss", "validation R@1"]]
    for name, entry in found.items():
        values = np.asarray(list(curves[name].values()))
        entry["relative"] = np.abs(values - reference) / reference
        mean, largest = entry["relative"].mean(), entry["relative"].max()
        score = f"{entry['validation']:.1%}"
        rows.append([name, f"{mean:.2%}", f"{largest:.2%}", f"{values[-1]:.4f}", score])
        entry["relative"] = entry["relative"].tolist()
    print(
        "\nTo float32 with seed 0, relative, over the lines of metrics.jsonl; rendered data, ours"
    )
    print("\n".join(aligned(rows, words=1)))
    write_json(options.out / "precision.json", found)
    draw(curves, options.out / "precision.png")
    print(f"\n{options.out / 'precision.png'}")


if __name__ == "__main__":
    run_program(main)
