"""Exact search with bounds: what cannot be among the k nearest is not compared.

The mean squared distance of two sequences on one grid is at least that of their means over time
(Jensen), and in between lies that of their means over equal parts of the time. Means are stored
rounded, with how far that moved them, so the triangle inequality keeps the bounds; and a margin
covers the rounding of this arithmetic. A candidate is left out only if its bound is above the
score of k others. So the result is that of exhaustive search, scores included.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from scav_jax.index import products
from scav_jax.index.cosine import ranked
from scav_jax.index.running import Running
from scav_jax.index.scan import Grid, Scan, Tile
from scav_jax.index.second_stage import PAIR, evaluate
from scav_jax.index.segments import pool
from scav_jax.index.storage import widen

STARTERS = 4  # times k candidates that give the first limits
DENSE = 0.25  # of a tile's pairs left, beyond which bounds save nothing


@dataclass
class Pruning:
    """How many pairs there were, and how many were left after each bound."""

    pairs: int = 0
    after_means: int = 0
    after_pooled: int = 0

    @property
    def share(self) -> float:
        """Of the pairs, how many were never compared."""
        return 1.0 - self.after_pooled / self.pairs if self.pairs else 0.0


class Bounds:
    """Queries as they meet one column of rounded means."""

    def __init__(self, grid: Grid, width: int, column: str):
        sequences = grid.values.reshape(len(grid.values), grid.steps, width)
        exact = sequences.mean(axis=1, dtype=np.float64) if column == "means" else pool(sequences)
        self.grid, self.column, self.width = grid, column, width
        self.values = exact.astype(np.float32)
        self.squares = products.squares_of(self.values)
        # The rounding of values and of scores moves a sequence by this share of its norm.
        self.slack = 8 * products.ROUNDING * np.sqrt(grid.squares / grid.steps)

    def of(self, scan: Scan, tile: Tile, stored, rows, mine) -> Float[np.ndarray, "Q r"]:
        """Lower bounds on the scores of `mine` queries with stored rows; float32."""
        about = tile.segment.streams[scan.asked].rows[rows]
        scales = about["pooled_scale"] if self.column == "pooled" else np.ones(len(stored), "f4")
        residual = about[f"{self.column}_residual"].astype(np.float64)
        residual += 8 * products.ROUNDING * np.sqrt(about["square"] / tile.steps)
        wide = widen(stored)
        squares = products.squares_of(wide) * np.square(scales, dtype=np.float64)
        values = self.values[mine]
        distances = products.squared(
            products.inner(values, wide), self.squares[mine], squares, scales
        )
        count = values.shape[1]
        distances -= np.float32(products.rounding(count, self.width)) * (
            (self.squares[mine][:, None] + squares.max(initial=0)).astype(np.float32)
        )
        np.maximum(distances, 0, out=distances)
        np.sqrt(distances, out=distances)
        distances -= residual.astype(np.float32)[None, :]
        distances -= self.slack[mine].astype(np.float32)[:, None]
        np.maximum(distances, 0, out=distances)
        np.square(distances, out=distances)
        # Sums of scores are relative to themselves: the last share covers those, and float32.
        distances *= np.float32((1 - 8 * (self.width + 8) * products.ROUNDING) / self.width)
        return distances


class ExactSearch:
    """One batch of queries, with what its bounds left."""

    def __init__(self, scan: Scan, k: int, order: Int[np.ndarray, " Q"]):
        self.scan, self.k, self.order = scan, k, order
        self.running = Running(len(scan.queries), k)
        self.pruning = Pruning()
        self._bounds: dict[tuple, Bounds] = {}

    def run(self) -> Running:
        self._start()
        for tile in self.scan.tiles():
            self._tile(tile)
        return self.running

    def _bound(self, tile: Tile, grid: Grid, column: str) -> Bounds:
        key = (id(grid), column)
        if key not in self._bounds:
            if len(self._bounds) >= 16:
                self._bounds.clear()
            self._bounds[key] = Bounds(grid, tile.segment.width, column)
        return self._bounds[key]

    def _means(self, tile: Tile, grid: Grid) -> Float[np.ndarray, "Q r"]:
        stream = tile.segment.streams[self.scan.asked]
        rows = np.arange(tile.rows.start, tile.rows.stop)
        stored = stream.read("means", tile.rows)
        bound = self._bound(tile, grid, "means")
        lower = bound.of(self.scan, tile, stored, rows, slice(None))
        lower[:, ~self.scan.live_in(tile)] = np.inf
        return lower

    def _start(self) -> None:
        """Limits from the scores of the candidates with the nearest means."""
        scan, starters = self.scan, Running(len(self.scan.queries), STARTERS * self.k)
        for tile in scan.tiles():
            for grid in scan.grids(tile.steps, tile.segment.centre):
                if grid.steps == tile.steps:
                    none = np.zeros(len(grid.numbers))
                    rows = np.arange(tile.rows.start, tile.rows.stop)
                    starters.offer(
                        grid.numbers, self._means(tile, grid), none, tile.segment.number, rows
                    )
        query, segment, row = starters.candidates()
        if not len(query):
            return
        scores = scan.scores(query, segment, row)
        query, _, _, scores = ranked(query, segment, row, scores, scan.segments, self.k)
        rank = np.arange(len(query)) - np.searchsorted(query, query)
        last = rank == self.k - 1
        self.running.limits[query[last]] = scores[last].astype(np.float64) * (1 + 1e-6)

    def _tile(self, tile: Tile) -> None:
        scan = self.scan
        alive = int(scan.live_in(tile).sum())
        for grid in scan.grids(tile.steps, tile.segment.centre):
            pairs = alive * len(grid.numbers)
            self.pruning.pairs += pairs
            wanted = np.zeros(len(scan.queries), bool)
            wanted[grid.numbers] = True
            if grid.steps != tile.steps:
                scan.dense(tile, self.running, wanted)
                left = [pairs, pairs]
            else:
                left = self._same_grid(tile, grid, wanted, pairs)
            self.pruning.after_means += left[0]
            self.pruning.after_pooled += left[1]

    def _same_grid(self, tile: Tile, grid: Grid, wanted, pairs: int) -> list[int]:
        scan, limits = self.scan, self.running.limits[grid.numbers]
        limits = np.nextafter(limits.astype(np.float32), np.float32(np.inf))
        line, column = np.nonzero(self._means(tile, grid) <= limits[:, None])
        after_means = len(line)
        if after_means == 0:
            return [0, 0]
        if after_means > DENSE * pairs:
            scan.dense(tile, self.running, wanted)
            return [after_means, pairs]
        line, column = self._pooled(tile, grid, limits, line, column)
        rows = tile.rows.start + column
        union = len(np.unique(column))
        if len(np.unique(line)) * union < PAIR * len(line) / 2 and union > 0.7 * pairs / len(
            limits
        ):
            scan.dense(tile, self.running, wanted)
            return [after_means, pairs]
        if len(line):
            number = np.full(len(line), tile.segment.number)
            evaluate(scan, grid.numbers[line], number, rows, self.running, self.order)
        return [after_means, len(line)]

    def _pooled(self, tile: Tile, grid: Grid, limits, line, column):
        """The pairs that the pooled sequences leave."""
        stream = tile.segment.streams[self.scan.asked]
        bound = self._bound(tile, grid, "pooled")
        chosen, place = np.unique(column, return_inverse=True)
        asking, at = np.unique(line, return_inverse=True)
        rows = tile.rows.start + chosen
        stored = stream.gather("pooled", _run_of(stream, tile.rows), rows)
        lower = bound.of(self.scan, tile, stored, rows, asking)
        keep = lower[at, place] <= limits[line]
        return line[keep], column[keep]


def _run_of(stream, rows: slice) -> slice:
    return stream.runs()[int(stream.run_of(np.asarray([rows.start]))[0])]
