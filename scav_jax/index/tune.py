"""How good the first stage is, and what each k costs: a table, and a k that it proposes.

Clips ask for their own kind: their stored sequences and embeddings of the other stream.
"""

import time

import numpy as np

from scav_jax.embed import Embedded
from scav_jax.errors import InputError
from scav_jax.index.store import Index

WANTED = 0.99  # recall that a proposed k has
SAMPLE = 100


def tune(
    index: Index,
    queries: Embedded,
    direction: str = "a2v",
    *,
    k: int = 10,
    ks: list[int] | None = None,
    wanted: float = WANTED,
) -> dict:
    """Recall of hybrid search against exact, and seconds a query, over K.

    Args:
      index: not empty.
      queries: what people will ask, or the clips themselves.
      direction: "a2v" or "v2a".
      k: how many are wanted.
      ks: of hybrid search; by default 10, 20, 50, 100, ... up to all.
      wanted: the recall that the proposed K has.

    Returns:
      `rows` with k, recall, seconds and what was done; `exact` and `sequence` (seconds, and the
      pruned share); `proposed`, "hybrid:K", or "exact" where that is faster or no K serves.
    """
    if not len(index):
        raise InputError(f"{index.path}: expected clips to tune on, the index is empty; add some")
    ks = sorted(set(ks or _steps(len(index), k)))
    truth, exact = _timed(index, queries, direction, k, "exact" if index.header.one_grid else "")
    _, sequence = _timed(index, queries, direction, k, "sequence")
    rows = []
    for chosen in ks:
        hits, seconds = _timed(index, queries, direction, k, f"hybrid:{chosen}")
        recall = _recall(truth, hits)
        rows.append(
            {"k": chosen, "recall": recall, "seconds": seconds, "method": index.report.method}
        )
    good = [row for row in rows if row["recall"] >= wanted]
    best = min(good, key=lambda row: row["k"], default=None)
    fast = min(exact, sequence)
    proposed = f"hybrid:{best['k']}" if best and best["seconds"] < fast else "exact"
    if proposed == "exact" and (not index.header.one_grid or sequence < exact):
        proposed = "sequence"
    return {
        "clips": len(index),
        "queries": len(queries.ids),
        "direction": direction,
        "wanted": k,
        "rows": rows,
        "exact": exact,
        "sequence": sequence,
        "proposed": proposed,
    }


def _steps(clips: int, k: int) -> list[int]:
    found, size = [], 1
    while size <= clips:
        found += [size * one for one in (1, 2, 5)]
        size *= 10
    return [one for one in found if k <= one < clips] + [clips]


def _timed(index: Index, queries: Embedded, direction: str, k: int, retrieval: str):
    """Hits, and seconds a query at best of two."""
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        hits = index.search(queries, direction, k, retrieval or "sequence")
        seconds.append(time.perf_counter() - begin)
    return hits, min(seconds) / len(queries.ids)


def _recall(truth, hits) -> float:
    """The share of the right k that is among those found."""
    shares = [
        len({one.id for one in right} & {one.id for one in found}) / max(len(right), 1)
        for right, found in zip(truth, hits, strict=True)
    ]
    return float(np.mean(shares))


def sample(embedded: Embedded, count: int, seed: int = 0) -> Embedded:
    """Some of the queries, at random."""
    from scav_jax.index.adding import take

    return take(embedded, chosen(len(embedded.ids), count, seed))


def chosen(total: int, count: int, seed: int = 0) -> list[int]:
    """Which of so many clips, at random, ascending."""
    numbers = np.random.default_rng(seed).choice(total, min(count, total), replace=False)
    return sorted(numbers.tolist())


def table(found: dict) -> str:
    """The result for people."""
    lines = [f"{found['clips']:,} clips, {found['queries']} queries {found['direction']}", ""]
    lines.append(f"{'retrieval':>14} {'recall@' + str(found['wanted']):>10} {'ms/query':>9}")
    for row in found["rows"]:
        note = "  (compares all)" if row["method"] == "sequence" else ""
        name = f"hybrid:{row['k']}"
        lines.append(f"{name:>14} {row['recall']:>10.3f} {1e3 * row['seconds']:>9.2f}{note}")
    for name in ("exact", "sequence"):
        lines.append(f"{name:>14} {1:>10.3f} {1e3 * found[name]:>9.2f}")
    return "\n".join([*lines, "", f"proposed: --retrieval {found['proposed']}"])
