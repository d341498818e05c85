"""The nearest so far: which candidates can be among the k nearest of their queries.

`NearestSoFar` takes distances and their errors. Where an index has a bank (`bank`), a search ranks
by scores relative to it: `Hubness` turns bounds on distances into bounds on scores and back. How
near every clip's stored sequences come to the bank lies in its `ROW`; under the Euclidean distance
that is in units of what is compared, mean squared differences of stored sequences and a weighted
query.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from scav_jax.index.snapshot import Snapshot
from scav_jax.retrieval.hubness import scores

ROUNDED = 3e-7  # of a score: what float32 may have moved it, and more
_WAITING = 1 << 20  # candidates that may wait before the far ones are dropped


@dataclass(frozen=True)
class Hubness:
    """How near the clips of a snapshot come to the bank, of the stream that is asked.

    Attributes:
      rows: of each segment, its stream's rows.
    """

    rows: dict[int, np.ndarray]

    @classmethod
    def of(cls, snapshot: Snapshot, asked: str) -> "Hubness | None":
        """None where the snapshot is searched by distances."""
        if not snapshot.header.bank:
            return None
        return cls({number: one.streams[asked].rows for number, one in snapshot.segments.items()})

    def at(
        self, segments: Int[np.ndarray, " p"], rows: Int[np.ndarray, " p"]
    ) -> Float[np.ndarray, " p"]:
        """How near clips at some places come."""
        found = np.empty(len(rows), np.float32)
        for number in np.unique(segments):
            here = segments == number
            found[here] = self.rows[int(number)]["bank_near"][rows[here]]
        return found

    def scores(
        self,
        distances: Float[np.ndarray, " p"],
        segments: Int[np.ndarray, " p"],
        rows: Int[np.ndarray, " p"],
    ) -> Float[np.ndarray, " p"]:
        """Final scores of final distances; of lower bounds, lower bounds."""
        return scores(distances, self.at(segments, rows))

    def most(
        self, limits: Float[np.ndarray, " Q"], segment: int, rows: slice
    ) -> Float[np.ndarray, "Q r"]:
        """Distances above which no score is within the limits of its query."""
        half = 0.5 * self.rows[segment]["bank_near"][rows].astype(np.float64)
        return half * (1 + ROUNDED) + (limits + ROUNDED * np.abs(limits))[:, None]

    def scored(
        self,
        distances: Float[np.ndarray, "Q r"],
        errors: Float[np.ndarray, " Q"],
        segment: int,
        rows: Int[np.ndarray, " r"],
    ) -> tuple[Float[np.ndarray, "Q r"], Float[np.ndarray, " Q"]]:
        """Scores of distances to some rows of a segment, and their errors."""
        found = scores(distances, self.rows[segment]["bank_near"][rows])
        if errors.any():
            largest = np.max(np.abs(found), axis=1, initial=0.0, where=np.isfinite(found))
            errors = errors + ROUNDED * largest
        return found, errors


class NearestSoFar:
    """Every candidate that can be among the k nearest of its query, distances known up to a bound.

    A candidate of distance d with error e lies in [d - e, d + e]. It is kept while d - e is not
    above the k-th smallest d + e of its query, so the k nearest are always among those kept,
    ties included. With a `hubness` the same of scores: distances that are offered become scores,
    pairs are ones.
    """

    def __init__(self, queries: int, k: int, hubness: Hubness | None = None):
        self.k, self.hubness = k, hubness
        self.limits = np.full(queries, np.inf)  # nothing above can be among the k
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._waiting = 0

    def offer(
        self,
        numbers: Int[np.ndarray, " Q"],
        distances: Float[np.ndarray, "Q r"],
        errors: Float[np.ndarray, " Q"],
        segment: int,
        rows: Int[np.ndarray, " r"],
    ) -> None:
        """Some candidates for some queries; those that do not count have the distance infinity."""
        if self.hubness is not None:
            distances, errors = self.hubness.scored(distances, errors, segment, rows)
        limits = self.limits[numbers]
        # A bound from these alone, for queries that know none yet.
        new = np.isinf(limits)
        if new.any() and distances.shape[1] >= self.k:
            nearest = np.partition(distances[new], self.k - 1, axis=1)[:, self.k - 1]
            limits[new] = np.nextafter(nearest.astype(np.float64) + errors[new], np.inf)
            self.limits[numbers] = np.minimum(self.limits[numbers], limits)
        below = np.nextafter((limits + errors).astype(np.float32), np.float32(np.inf))
        query, column = np.nonzero(distances <= below[:, None])
        near = distances[query, column].astype(np.float64)
        keep = np.isfinite(near)
        query, column, near = query[keep], column[keep], near[keep]
        segments = np.full(len(near), segment)
        self.offer_pairs(numbers[query], near, errors[query], segments, rows[column])

    def offer_pairs(
        self,
        queries: Int[np.ndarray, " p"],
        distances: Float[np.ndarray, " p"],
        errors: Float[np.ndarray, " p"],
        segments: Int[np.ndarray, " p"],
        rows: Int[np.ndarray, " p"],
    ) -> None:
        """Single candidates of some queries."""
        keep = distances - errors <= self.limits[queries]
        pairs = queries, segments, rows, distances, errors
        self._parts.append(tuple(column[keep] for column in pairs))
        self._waiting += int(keep.sum())
        if self._waiting > max(_WAITING, 4 * self.k * len(self.limits)):
            self.tighten()

    def tighten(self) -> None:
        """Brings `limits` up to date, and drops what is above them."""
        if not self._parts:
            return
        query, segment, row, distance, error = (
            np.concatenate(column) for column in zip(*self._parts, strict=True)
        )
        # By query, then distance; integers of 16 bits are sorted by their digits.
        order = np.argsort(distance + error)
        small = query.astype(np.int16) if len(self.limits) < 2**15 else query
        order = order[np.argsort(small[order], kind="stable")]
        query = query[order]
        first = np.searchsorted(query, np.arange(len(self.limits)))
        last = np.searchsorted(query, np.arange(len(self.limits)), side="right")
        enough = last - first >= self.k
        high = (distance + error)[order]
        kth = high[(first + self.k - 1)[enough]]
        self.limits[enough] = np.minimum(self.limits[enough], np.nextafter(kth, np.inf))
        keep = (distance - error)[order] <= self.limits[query]
        chosen = order[keep]
        part = (query[keep], segment[chosen], row[chosen], distance[chosen], error[chosen])
        self._parts, self._waiting = [part], len(chosen)

    def candidates(self) -> tuple[Int[np.ndarray, " p"], ...]:
        """(query, segment, row) of all that can be among the k nearest, by query."""
        if not self._parts:
            return tuple(np.zeros(0, np.int64) for _ in range(3))
        self.tighten()
        return tuple(column.astype(np.int64) for column in self._parts[0][:3])

    def distances(self) -> Float[np.ndarray, " p"]:
        """Of `candidates`, in their order."""
        return self._parts[0][3] if self._parts else np.zeros(0)

    def errors(self) -> Float[np.ndarray, " p"]:
        """How far `distances` may be from the final ones."""
        return self._parts[0][4] if self._parts else np.zeros(0)


def k_smallest(query, segment, row, scores, snapshot: Snapshot, k: int):
    """The k smallest scores of each query; of equal ones, those that were added first.

    Returns:
      query, segment, row, score; by query, then rank.
    """
    keys = np.empty(len(query), np.int64)
    for number in np.unique(segment):
        here = segment == number
        keys[here] = snapshot.segments[int(number)].keys[row[here]]
    order = np.lexsort((keys, scores, query))
    query = query[order]
    rank = np.arange(len(query)) - np.searchsorted(query, query)
    best = rank < k
    chosen = order[best]
    return query[best], segment[chosen], row[chosen], scores[chosen]
