"""Distances of chosen pairs: together as products where queries share candidates, else one by one.

A product of G queries with the U candidates that any of them wants costs G U pairs; pairs one by
one cost about `PAIR` times as much each, since every pair reads its candidate from memory.
"""

import itertools

import numpy as np
from jaxtyping import Float, Int

from scav_jax.index.running import Running
from scav_jax.index.scan import Scan, Tile

PAIR = 16  # of a product
COPY = 16  # what copying a candidate costs, in pairs of a product
GROUP = 64  # queries


def order_of(embeddings: Float[np.ndarray, "Q C"]) -> Int[np.ndarray, " Q"]:
    """The queries, such that like ones follow each other: by the most similar of a few of them."""
    pivots = embeddings[:: max(len(embeddings) // 64, 1)]
    norms = np.linalg.norm(pivots, axis=1, keepdims=True)
    return np.argsort(np.argmax(embeddings @ (pivots / norms).T, axis=1), kind="stable")


def evaluate(
    scan: Scan,
    query: Int[np.ndarray, " p"],
    segment: Int[np.ndarray, " p"],
    row: Int[np.ndarray, " p"],
    running: Running,
    order: Int[np.ndarray, " Q"],
) -> None:
    """Offers chosen pairs.

    Args:
      scan: the queries and where candidates are.
      query, segment, row: the pairs.
      running: gets them.
      order: of the queries, see `order_of`.
    """
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    group = rank[query] // GROUP
    alone = np.ones(len(query), bool)
    for number in np.unique(segment):
        own = scan.segments[int(number)]
        stream = own.streams[scan.asked]
        here = np.flatnonzero(segment == number)
        runs, of = stream.runs(), stream.run_of(row[here])
        labels = of * (group.max() + 1) + group[here]
        sort = np.argsort(labels, kind="stable")
        edges = np.flatnonzero(np.diff(labels[sort], prepend=-1, append=-1))
        for begin, end in itertools.pairwise(edges):
            pairs = here[sort[begin:end]]
            rows, column = np.unique(row[pairs], return_inverse=True)
            asking, line = np.unique(query[pairs], return_inverse=True)
            if len(rows) * (len(asking) + COPY) > PAIR * len(pairs) or len(asking) < 4:
                continue
            alone[pairs] = False
            run = runs[of[sort[begin]]]
            wanted = np.zeros((len(asking), len(rows)), bool)
            wanted[line, column] = True
            _together(scan, Tile(own, run, int(stream.rows["steps"][run.start])),
                      asking, rows, wanted, running)  # fmt: skip
    scan.near_pairs(query[alone], segment[alone], row[alone], running)


def _together(scan: Scan, tile: Tile, asking, rows, wanted, running: Running) -> None:
    stream = tile.segment.streams[scan.asked]
    mask = np.zeros(len(scan.queries), bool)
    mask[asking] = True
    size = max(2**26 // (4 * tile.steps * tile.segment.width), 1)
    for begin in range(0, len(rows), size):
        part = slice(begin, begin + size)
        allowed = np.zeros((len(scan.queries), len(rows[part])), bool)
        allowed[asking] = wanted[:, part]
        stored = stream.gather("values", tile.rows, rows[part])
        dead = np.zeros(len(stored), bool)
        for block in scan.blocks(tile, stored, rows[part], dead, mask, allowed):
            block.offer(running)
