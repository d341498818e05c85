"""The first stage: cosines of embeddings, a product of matrices over mapped files."""

import numpy as np
from jaxtyping import Float, Int

from scav_jax.index import products
from scav_jax.index.running import Running
from scav_jax.index.segments import Segment
from scav_jax.index.storage import widen
from scav_jax.retrieve import unit

TILE_ROWS = 16384
TILE_PAIRS = 2**22  # with few queries, a tile has more rows


def nearest(
    embeddings: Float[np.ndarray, "Q C"],
    asked: str,
    segments: dict[int, Segment],
    live: dict,
    k: int,
) -> tuple[
    Int[np.ndarray, " p"], Int[np.ndarray, " p"], Int[np.ndarray, " p"], Float[np.ndarray, " p"]
]:
    """The k candidates with the largest cosine of each query, fewer where there are fewer.

    Equal cosines are in the order of keys.

    Returns:
      query, segment, row (by query, the nearest first), and minus the cosine, float32.
    """
    queries = unit(embeddings)
    places = _possible(queries, asked, segments, live, k)
    return ranked(*places, -_cosines(queries, asked, segments, *places), segments, k)


def chosen(
    embeddings: Float[np.ndarray, "Q C"],
    asked: str,
    segments: dict[int, Segment],
    live: dict,
    k: int,
) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"], Int[np.ndarray, " p"]]:
    """query, segment and row of `nearest`, by query but in no order of ranks.

    Where rounding leaves no doubt about which k they are, no cosine is computed again.
    """
    queries = unit(embeddings)
    places = _possible(queries, asked, segments, live, k)
    doubtful = np.bincount(places[0], minlength=len(queries))[places[0]] > k
    unsure = [column[doubtful] for column in places]
    cosines = _cosines(queries, asked, segments, *unsure)
    found = ranked(*unsure, -cosines, segments, k)[:3]
    together = [
        np.concatenate([column[~doubtful], more])
        for column, more in zip(places, found, strict=True)
    ]
    order = np.argsort(together[0], kind="stable")
    query, segment, row = (column[order] for column in together)
    return query, segment, row


def _possible(
    queries: Float[np.ndarray, "Q C"], asked: str, segments: dict[int, Segment], live: dict, k: int
) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"], Int[np.ndarray, " p"]]:
    """(query, segment, row) of all that can be among the k nearest, whatever products round."""
    running = Running(len(queries), k)
    numbers = np.arange(len(queries))
    errors = np.full(len(queries), products.rounding(queries.shape[1], queries.shape[1]) * 2)
    size = max(TILE_ROWS, TILE_PAIRS // max(len(queries), 1))
    for number, segment in segments.items():
        alive, stream = live[number], segment.streams[asked]
        for begin in range(0, len(segment), size):
            rows = slice(begin, min(begin + size, len(segment)))
            if not alive[rows].any():
                continue
            similar = products.inner(queries, stream.read("embeddings", rows))
            distances = np.negative(similar, out=similar)
            distances[:, ~alive[rows]] = np.inf
            running.offer(numbers, distances, errors, number, np.arange(rows.start, rows.stop))
    return running.candidates()


def _cosines(queries, asked, segments, query, segment, row) -> Float[np.ndarray, " p"]:
    """Cosines, each by its own sum: the same whatever block found the pair."""
    result = np.empty(len(query), np.float32)
    for number in np.unique(segment):
        here = np.flatnonzero(segment == number)
        here = here[np.argsort(row[here], kind="stable")]
        stream = segments[int(number)].streams[asked]
        for begin in range(0, len(here), TILE_ROWS):
            part = here[begin : begin + TILE_ROWS]
            stored = stream.gather("embeddings", slice(0, len(stream.rows)), row[part])
            values = widen(stored)
            result[part] = np.vecdot(values, queries[query[part]])
    return result


def ranked(query, segment, row, scores, segments: dict[int, Segment], k: int):
    """The k smallest scores of each query; of equal ones, those that were added first.

    Returns:
      query, segment, row, score; by query, then rank.
    """
    keys = np.empty(len(query), np.int64)
    for number in np.unique(segment):
        here = segment == number
        keys[here] = segments[int(number)].keys[row[here]]
    order = np.lexsort((keys, scores, query))
    query = query[order]
    rank = np.arange(len(query)) - np.searchsorted(query, query)
    best = rank < k
    chosen = order[best]
    return query[best], segment[chosen], row[chosen], scores[chosen]
