"""The k best of each query so far, when distances are known up to a bound only."""

import numpy as np
from jaxtyping import Float, Int

_POOL = 1 << 20  # candidates that may wait before the far ones are dropped


class Running:
    """Collects every candidate that can be among the k nearest of its query.

    A candidate of distance d with error e lies in [d - e, d + e]. It is kept while d - e is not
    above the k-th smallest d + e of its query, so the k nearest are always among those kept,
    ties included.
    """

    def __init__(self, queries: int, k: int):
        self.k = k
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
        """A block of candidates; those that do not count have the distance infinity."""
        limits = self.limits[numbers]
        # A bound from this block alone, for queries that know none yet.
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
        self.pairs(numbers[query], near, errors[query], segment, rows[column])

    def pairs(
        self,
        queries: Int[np.ndarray, " p"],
        distances: Float[np.ndarray, " p"],
        errors: Float[np.ndarray, " p"],
        segment: int,
        rows: Int[np.ndarray, " p"],
    ) -> None:
        """Single candidates of some queries."""
        keep = distances - errors <= self.limits[queries]
        segments = np.full(int(keep.sum()), segment, np.int64)
        self._parts.append((queries[keep], segments, rows[keep], distances[keep], errors[keep]))
        self._waiting += len(segments)
        if self._waiting > max(_POOL, 4 * self.k * len(self.limits)):
            self._drop_far()

    def _drop_far(self) -> None:
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

    def tighten(self) -> None:
        """Brings `limits` up to date."""
        if self._parts:
            self._drop_far()

    def candidates(self) -> tuple[Int[np.ndarray, " p"], ...]:
        """(query, segment, row) of all that can be among the k nearest, by query."""
        if not self._parts:
            return tuple(np.zeros(0, np.int64) for _ in range(3))
        self._drop_far()
        return tuple(column.astype(np.int64) for column in self._parts[0][:3])

    def distances(self) -> Float[np.ndarray, " p"]:
        """Of `candidates`, in their order."""
        return self._parts[0][3] if self._parts else np.zeros(0)
