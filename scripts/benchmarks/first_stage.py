"""What does a first stage keep of what sequences find? The mean over time, and learned sketches.

For each size of a sketch: it is learned of the run's training clips, and on each split

    recall     the share of queries whose first clip by sequence is among 10, 100, 1,000 candidates
    hybrid     R@1 of the own clip by sequence among the 100, and by sequence among all

    python scripts/benchmarks/first_stage.py --run runs/demo --splits test unseen_instruments

Prints a table, writes RUN/sketch-sizes.json; changes nothing else of the run. `--quick` shows that
it runs: one size, of few clips.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from scav_jax import metrics
from scav_jax.base.errors import run_program
from scav_jax.base.files import write_json
from scav_jax.features import store
from scav_jax.retrieval import sketching
from scav_jax.retrieval.embed import Embedded, embed
from scav_jax.retrieval.results import DIRECTIONS, aligned, percent
from scav_jax.retrieval.sketch import Sketch
from scav_jax.retrieve import aggregation_similarities, hybrid_ranks, sequence_distances
from scav_jax.sequences import STREAMS
from scav_jax.training.runs import Run, load_run

SIZES = (64, 96, 128, 192, 256, 384, 512)  # numbers of a sketch
CANDIDATES = 100


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--run", type=Path, required=True)
    add("--data", type=Path, help="default: the run's")
    add("--splits", nargs="+", default=["test"])
    add("--clips", type=int, default=2048, help="of the training data (default 2048)")
    add("--quick", action="store_true")
    return parser.parse_args()


def hybrid(
    distances, embedded: Embedded, sketch: Sketch | None, candidates: int
) -> dict[str, float]:
    """R@1 of hybrid retrieval in both directions, by the embedding or by a sketch."""
    vectors = [getattr(embedded, f"{stream}_embeddings") for stream in STREAMS]
    if sketch is not None:
        vectors = [sketch.of(getattr(embedded, stream), stream) for stream in STREAMS]
    similar = aggregation_similarities(*vectors)
    return {
        direction: metrics.recall_at_k(
            hybrid_ranks(similar, distances, [candidates], direction)[0], 1
        )
        for direction in DIRECTIONS
    }


def measure(run: Run, embedded: dict[str, Embedded], sketch: Sketch) -> list[dict]:
    """Rows of both first stages on every split."""
    rows = []
    for split, clips in embedded.items():
        distances = sequence_distances(clips.latents, *run.objective.ranks_by())
        every = hybrid(distances, clips, None, len(distances))
        least = min(CANDIDATES, len(distances))
        for row in sketching.recalls(sketch, clips, run):
            own = sketch if row["first_stage"] == "sketch" else None
            found = {"hybrid": hybrid(distances, clips, own, least), "sequence": every}
            rows.append({"split": split, **row, **found})
    return rows


def table(rows: list[dict]) -> str:
    ks = sorted({k for row in rows for k in row["a2v"]}, key=int)
    heads = ["split", "first stage", "numbers"]
    for arrow in DIRECTIONS.values():
        heads += [*(f"{arrow} @{k}" for k in ks), f"hybrid({CANDIDATES})", "sequence"]
    lines = [heads]
    for row in rows:
        cells = [row["split"], row["first_stage"], f"{row['numbers']}"]
        for direction in DIRECTIONS:
            cells += [percent(row[direction][k]) if k in row[direction] else "-" for k in ks]
            cells += [percent(row[name][direction]) for name in ("hybrid", "sequence")]
        lines.append(cells)
    return "\n".join(aligned(lines))


def main() -> int:
    arguments = options()
    run = load_run(arguments.run)
    data = arguments.data or Path(run.config["data"]["path"])
    base = sketching.Fitting(clips=arguments.clips)
    sizes = SIZES
    if arguments.quick:
        base, sizes = replace(base, clips=64), SIZES[:1]
    run.config["data"]["path"] = str(data)
    train, _ = sketching.training_split(run, base)
    learned_of = embed(run, train, progress=True)
    splits = {name: store.read(data, name) for name in arguments.splits}
    embedded = {name: embed(run, split, progress=True) for name, split in splits.items()}
    rows: list[dict] = []
    for numbers in sizes:
        fitting = replace(base, numbers=numbers)
        sketch = sketching.learn(learned_of, run.objective.ranks_by()[1], fitting)
        rows += [r for r in measure(run, embedded, sketch) if r["first_stage"] == "sketch"]
    means = [row for row in measure(run, embedded, sketch) if row["first_stage"] != "sketch"]
    rows = means + rows
    print(table(rows))
    write_json(arguments.run / "sketch-sizes.json", rows)
    return 0


if __name__ == "__main__":
    run_program(main)
