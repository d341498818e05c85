"""What a first stage keeps where a million others stand beside: the mean over time, and sketches.

    python scripts/benchmarks/first_stage_scale.py --run runs/large --split unseen_instruments

The gallery is the split's own clips and, up to `--gallery`, sequences that no clip has: latents of
one training clip until some step, of another one from there on. They are made, block by block, of
`--seed`, so memory holds what is compared and not the gallery. The first `--queries` clips of the
split ask. As in `first_stage.py`, recall is the share of queries whose first by sequence is among
so many candidates; hybrid(k) and sequence are R@1 of the own clip. Writes
RUN/first-stage-scale.json.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from scav_jax import metrics
from scav_jax.base.errors import InputError, run_program
from scav_jax.base.files import write_json
from scav_jax.base.progress import progress_bar
from scav_jax.features import store
from scav_jax.retrieval import sketching
from scav_jax.retrieval.embed import Embedded, embed
from scav_jax.retrieval.results import DIRECTIONS, aligned, percent
from scav_jax.retrieve import aggregation_similarities, queries_first, sequence_distances
from scav_jax.sequences import STREAMS, AudioVisual, Sequences, masked_mean
from scav_jax.training.runs import load_run

BLOCK = 8192  # sequences that are made at a time
KS = (10, 100, 1000)
FOUND = {"a2v": "visual", "v2a": "audio"}  # the stream that is found


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--run", type=Path, required=True)
    add("--data", type=Path, help="default: the run's")
    add("--split", default="unseen_instruments")
    add("--queries", type=int, default=256)
    add("--gallery", type=int, default=1_000_000)
    add("--sizes", type=int, nargs="+", default=(64, 128, 256), help="numbers of a sketch")
    add("--seed", type=int, default=0)
    return parser.parse_args()


def gallery(own: Sequences, others: Sequences, count: int, seed: int) -> Iterator[Sequences]:
    """Blocks of `count` sequences: the own ones, then splices of others of the usual length."""
    size = len(own.lengths)
    for begin in range(0, size, BLOCK):
        yield jax.tree.map(lambda leaf: leaf[begin : begin + BLOCK], own)  # noqa: B023
    lengths = np.asarray(others.lengths)
    usual = np.flatnonzero(lengths == np.bincount(lengths).argmax())
    steps = np.arange(others.values.shape[1])[None, :, None]
    random = np.random.default_rng(seed)
    for begin in range(size, count, BLOCK):
        first, second = random.choice(usual, (2, min(BLOCK, count - begin)))
        cut = random.integers(1, lengths[usual[0]], len(first))[:, None, None]
        values = np.where(steps < cut, others.values[first], others.values[second])
        yield Sequences(values, others.lengths[first], others.windows[first])


def compared(direction: str, asking: Embedded, blocks, first_stages: dict, ranks_by) -> dict:
    """`[queries, gallery]`: distances, and the similarities of every first stage."""
    stream = FOUND[direction]
    asks = next(name for name in STREAMS if name != stream)
    queries = getattr(asking, asks)
    asked = {name: make(queries, asks) for name, make in first_stages.items()}
    parts: dict[str, list] = {name: [] for name in ("distances", *first_stages)}
    for block in blocks:
        latents = {"visual": queries, "audio": queries, stream: block}
        distances = sequence_distances(AudioVisual(**latents), *ranks_by)
        parts["distances"].append(queries_first(distances, direction))
        for name, make in first_stages.items():
            parts[name].append(aggregation_similarities(asked[name], make(block, stream)))
    return {name: np.concatenate(parts.pop(name), axis=1) for name in tuple(parts)}


def figures(distances: np.ndarray, similar: np.ndarray) -> dict[str, float]:
    """Recall by k, and R@1 by sequence of all and of the k that the first stage keeps.

    Query i's own is column i.
    """
    queries = np.arange(len(distances))
    first = distances.argmin(axis=1)
    kept = metrics.ranks(-similar, first)
    own = metrics.ranks(-similar, queries)
    found = {"sequence": float((metrics.ranks(distances, queries) == 1).mean())}
    for k in KS:
        found[f"@{k}"] = metrics.recall_at_k(kept, k)
        best = np.empty(len(queries), bool)
        for query in queries:
            among = np.argpartition(-similar[query], k - 1)[:k]
            closer = distances[query, among] <= distances[query, query]
            best[query] = own[query] <= k and closer.sum() == 1
        found[f"hybrid({k})"] = float(best.mean())
    return found


def mean_over_time(latents: Sequences, stream: str) -> np.ndarray:
    """The embedding of SCAV, `[K, C]`, of either stream."""
    return np.asarray(masked_mean(latents.values, latents.lengths))


def main() -> int:
    arguments = options()
    run = load_run(arguments.run)
    if run.config["objective"]["name"] != "sequence":
        raise InputError("expected a run of SCAV, whose embedding is the mean over time")
    data = arguments.data or Path(run.config["data"]["path"])
    run.config["data"]["path"] = str(data)
    own = embed(run, store.read(data, arguments.split), progress=True)
    others = embed(run, store.read(data, "train"), progress=True)
    asking = own.take(range(min(arguments.queries, len(own))))
    ranks_by = run.objective.ranks_by()
    fitting = sketching.Fitting(seed=arguments.seed)
    train = others.take(
        np.random.default_rng(fitting.seed).permutation(len(others))[: fitting.clips]
    )
    first_stages = {f"mean, {own.visual_embeddings.shape[1]}": mean_over_time}
    for size in arguments.sizes:
        sketch = sketching.learn(train, ranks_by[1], replace(fitting, numbers=size))
        first_stages[f"sketch, {size}"] = sketch.of
    np.testing.assert_allclose(
        mean_over_time(asking.visual, "visual"), asking.visual_embeddings, rtol=1e-4, atol=1e-5
    )
    rows: dict[str, dict] = {name: {} for name in first_stages}
    for direction, stream in FOUND.items():
        latents = getattr(own, stream), getattr(others, stream)
        blocks = gallery(*latents, arguments.gallery, arguments.seed)
        with progress_bar(DIRECTIONS[direction], arguments.gallery, "clip", shown=True) as bar:

            def counted(blocks=blocks, bar=bar):
                for block in blocks:
                    yield block
                    bar.update(len(block.lengths))

            found = compared(direction, asking, counted(), first_stages, ranks_by)
        for name in first_stages:
            rows[name][direction] = figures(found["distances"], found[name])
    heads = list(next(iter(rows.values()))["a2v"])
    lines = [["first stage", *(f"{arrow} {h}" for arrow in DIRECTIONS.values() for h in heads)]]
    for name, row in rows.items():
        lines.append([name, *(percent(row[way][h]) for way in DIRECTIONS for h in heads)])
    print("\n".join(aligned(lines)))
    about = {"queries": len(asking), "gallery": arguments.gallery, "own": len(own)}
    write_json(arguments.run / "first-stage-scale.json", {**about, "rows": rows})
    return 0


if __name__ == "__main__":
    run_program(main)
