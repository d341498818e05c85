"""Lower bounds on scores from stored sketches; see `sketches`.

Stored sketches are rounded, with how far that moved them, so the triangle inequality keeps the
bounds; and a margin covers the rounding of this arithmetic and of the scores themselves.
"""

import numpy as np
from jaxtyping import Float, Int

from scav_jax.index import products
from scav_jax.index.scan import Grid, Scan, Tile
from scav_jax.index.segments import stored_weights
from scav_jax.index.sketches import Basis
from scav_jax.index.storage import widen

AT_ONCE = 2**17  # numbers that stay in a core's cache
ROWS = 2048  # of candidates of a product


def waste(numbers: int) -> float:
    """How many pairs of a product of sketches take as long as one pair alone."""
    return 50 + 60_000 / numbers


class Asking:
    """Queries on one grid as one of their sketches."""

    def __init__(self, grid: Grid, basis: Basis, width: int, column: str):
        self.column, self.count, self.width = column, grid.values.shape[1], width
        weights = stored_weights(basis, column, grid.steps)
        self.values = np.empty((len(grid.values), weights.size), np.float32)  # times the weights
        self.squares = np.empty(len(grid.values))
        # The rounding of values, sketches and scores moves a sequence by this share of its norm.
        self.slack = 10 * products.ROUNDING * np.sqrt(grid.squares)
        self.rounding = products.rounding(weights.size, width)
        self.stretch = 1 + basis.loose
        self.share = 1 - 8 * (width + 8) * products.ROUNDING
        sequences = grid.values.reshape(len(grid.values), grid.steps, width)
        for part, exact, off in basis.sketch(column, sequences):
            np.multiply(exact, weights, out=self.values[part], casting="same_kind")
            self.squares[part] = np.vecdot(exact, exact)
            self.slack[part] += off

    def residual(self, about) -> Float[np.ndarray, " r"]:
        """How far stored sketches may be from those of what is stored."""
        own = about[f"{self.column}_residual"].astype(np.float64)
        return own + 8 * products.ROUNDING * np.sqrt(about["square"])

    def scales(self, about) -> Float[np.ndarray, " r"]:
        """Of the stored numbers."""
        return about["fine_scale"] if self.column == "fine" else np.ones(len(about), np.float32)

    def squared(self, stored, about) -> Float[np.ndarray, "Q r"]:
        """Squared distances of the sketches of all queries and of some candidates, float32."""
        inner = products.inner(self.values, stored)
        squares = about[f"{self.column}_square"]
        return products.squared(inner, self.squares, squares, self.scales(about))

    def thresholds(self, about, limits: Float[np.ndarray, " Q"]) -> Float[np.ndarray, " Q"]:
        """How large those may be where a score may be up to `limits`."""
        near = np.sqrt(limits * self.count / self.share * self.stretch)
        near += self.slack + self.residual(about).max(initial=0.0)
        largest = float(about[f"{self.column}_square"].max(initial=0.0))
        error = self.rounding * (self.squares + largest)
        most = np.square(near) * (1 + 1e-6) + 2 * error
        return np.nextafter(most.astype(np.float32), np.float32(np.inf))

    def low(self, inner, place, about) -> Float[np.ndarray, " p"]:
        """What scores of pairs are at least.

        Args:
          inner: products of the values and stored numbers, scales are not in them.
          place: of the pairs' queries.
          about: the pairs' candidates.
        """
        sums = self.squares[place] + about[f"{self.column}_square"]
        squared = sums - 2 * self.scales(about) * inner.astype(np.float64)
        squared -= 2 * self.rounding * sums
        near = np.sqrt(np.maximum(squared, 0.0)) * (1 - 1e-6)
        near -= self.slack[place] + self.residual(about)
        near = np.square(np.maximum(near, 0.0))
        return near * self.share / self.stretch / self.count


class Bounds:
    """Lower bounds on the scores of one batch of queries."""

    def __init__(self, scan: Scan):
        self.scan = scan
        self._asking: dict[tuple, tuple[Grid, Asking]] = {}

    def of(self, column: str, tile: Tile, grid: Grid) -> Asking:
        """The queries of a grid as they meet the sketches of a tile on that grid."""
        basis, width = tile.segment.basis, tile.segment.width
        key = (column, id(grid), basis.key)
        if key not in self._asking:
            if len(self._asking) >= 16:
                self._asking.clear()
            # With the grid, so that its number stays its own.
            self._asking[key] = grid, Asking(grid, basis, width, column)
        return self._asking[key][1]

    def pairs(
        self,
        column: str,
        queries: Int[np.ndarray, " p"],
        segments: Int[np.ndarray, " p"],
        rows: Int[np.ndarray, " p"],
    ) -> Float[np.ndarray, " p"]:
        """What the scores of chosen pairs are at least; 0 where nothing is known."""
        result = np.zeros(len(queries))
        with products.pool() as threads:
            for tile, grid, which, place, row in self.scan.pairs(queries, segments, rows):
                if grid.steps != tile.steps or not len(which):
                    continue
                asking = self.of(column, tile, grid)
                stream = tile.segment.streams[self.scan.asked]
                between = len(asking.values) * int(row.max() - row.min() + 1)
                if len(which) * waste(asking.values.shape[1]) > between:
                    inner = _by_product(stream, tile, asking, place, row)
                else:
                    inner = _alone(threads, stream, tile, asking, place, row)
                result[which] = asking.low(inner, place, stream.rows[row])
        return result


def _by_product(stream, tile: Tile, asking: Asking, place, row) -> Float[np.ndarray, " p"]:
    """Products of pairs: of all queries with all rows in between, of which only the pairs count."""
    inner = np.empty(len(row), np.float32)
    for begin in range(row.min(), row.max() + 1, ROWS):
        here = np.flatnonzero((row >= begin) & (row < begin + ROWS))
        rows = slice(begin, min(begin + ROWS, tile.rows.stop))
        found = products.inner(asking.values, stream.read(asking.column, rows))
        inner[here] = found[place[here], row[here] - begin]
    return inner


def _alone(threads, stream, tile: Tile, asking: Asking, place, row) -> Float[np.ndarray, " p"]:
    """Products of pairs, one by one: each candidate is read once."""
    inner = np.empty(len(row), np.float32)
    order = np.argsort(row, kind="stable")
    size = max(AT_ONCE // asking.values.shape[1], 1)
    parts = [order[begin : begin + size] for begin in range(0, len(order), size)]

    def some(part):
        rows, local = np.unique(row[part], return_inverse=True)
        wide = widen(stream.gather(asking.column, tile.rows, rows))
        inner[part] = products.dots(asking.values[place[part]], wide[local])

    list(threads.map(some, parts))
    return inner
