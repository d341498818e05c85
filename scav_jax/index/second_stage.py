"""The k nearest among chosen pairs: sketches rule out most, what is left is compared.

A pair that is compared reads a whole sequence; so the k pairs of each query with the lowest bounds
are compared first, and then those whose bounds are not above the k-th score. The result is that of
comparing all. Where bounds leave so many that products of all with all are faster, those decide.
"""

import numpy as np
from jaxtyping import Float, Int

from scav_jax.index.bounds import Bounds
from scav_jax.index.cosine import ranked
from scav_jax.index.products import FEW_QUERIES
from scav_jax.index.running import Running
from scav_jax.index.scan import Scan

SKETCH = 24  # pairs alone take as long as a query's fine sketch
WORTH = 4  # times k pairs of a query, from which on bounds are worth their reading


def alone(numbers: int, queries: int) -> float:
    """How many pairs of a product take as long as one pair alone.

    A pair alone reads its candidate, and costs something whatever its length; both measured on two
    cores. Products with few queries read as much as pairs do.
    """
    return 28 + 67_000 / numbers if queries >= FEW_QUERIES else 1.5


def order_of(embeddings: Float[np.ndarray, "Q C"]) -> Int[np.ndarray, " Q"]:
    """The queries, such that like ones follow each other: by the most similar of a few of them."""
    pivots = embeddings[:: max(len(embeddings) // 64, 1)]
    norms = np.linalg.norm(pivots, axis=1, keepdims=True)
    return np.argsort(np.argmax(embeddings @ (pivots / norms).T, axis=1), kind="stable")


def nearest_of(
    scan: Scan,
    query: Int[np.ndarray, " p"],
    segment: Int[np.ndarray, " p"],
    row: Int[np.ndarray, " p"],
    k: int,
    order: Int[np.ndarray, " Q"],
) -> tuple[np.ndarray, ...]:
    """(query, segment, row, score) of the k nearest of each query among chosen pairs, by rank.

    Args:
      scan: the queries and where candidates are.
      query, segment, row: the pairs.
      k: how many.
      order: of the queries, see `order_of`.
    """

    def compared(pairs):
        places = (query[pairs], segment[pairs], row[pairs])
        return ranked(*places, scan.scores(*places, order), scan.segments, k)

    everything = np.arange(len(query))
    if len(query) <= WORTH * k * len(scan.queries) or not scan.has_bounds:
        return compared(everything)
    bounds = Bounds(scan)
    low = bounds.pairs("coarse", query, segment, row)
    first = lowest(low, query, k)
    best = compared(everything[first])
    limits = limits_of(best, k, len(scan.queries))
    left = everything[~first & (low <= limits[query])]
    if len(left) > SKETCH * len(scan.queries):
        low = bounds.pairs("fine", query[left], segment[left], row[left])
        left = left[low <= limits[query[left]]]
    if len(left) * alone(scan.numbers, len(scan.queries)) > len(scan.queries) * scan.count:
        more = _by_products(scan, query[left], segment[left], row[left], k)
    else:
        more = compared(left)
    together = [np.concatenate(both) for both in zip(best, more, strict=True)]
    return ranked(*together, scan.segments, k)


def lowest(low: Float[np.ndarray, " p"], query: Int[np.ndarray, " p"], k: int):
    """Whether each pair is among the k of its query with the lowest bounds."""
    sort = np.lexsort((low, query))
    own = query[sort]
    first = np.zeros(len(query), bool)
    first[sort[np.arange(len(own)) - np.searchsorted(own, own) < k]] = True
    return first


def limits_of(best, k: int, queries: int) -> Float[np.ndarray, " Q"]:
    """The k-th score of each query, infinity where there are fewer; `best` is by rank."""
    query, _, _, scores = best
    rank = np.arange(len(query)) - np.searchsorted(query, query)
    limits = np.full(queries, np.inf)
    limits[query[rank == k - 1]] = scores[rank == k - 1]
    return limits


def _by_products(scan: Scan, query, segment, row, k: int) -> tuple[np.ndarray, ...]:
    """The same by products of all queries with all candidates, of which only the pairs count."""
    running = Running(len(scan.queries), k)
    for tile in scan.tiles():
        here = (segment == tile.segment.number) & (row >= tile.rows.start) & (row < tile.rows.stop)
        if not here.any():
            continue
        allowed = np.zeros((len(scan.queries), tile.rows.stop - tile.rows.start), bool)
        allowed[query[here], row[here] - tile.rows.start] = True
        for block in scan.begun(tile, allowed=allowed):
            block.offer(running)
    found = running.candidates()
    return ranked(*found, scan.scores(*found), scan.segments, k)
