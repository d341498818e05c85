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
from scav_jax.index.products import FEW_QUERIES
from scav_jax.index.running import Running
from scav_jax.index.scan import Grid, Scan, Tile
from scav_jax.index.second_stage import PAIR, evaluate
from scav_jax.index.segments import part_edges, pool
from scav_jax.index.storage import widen

STARTERS = 1  # times k candidates that give the first limits
IN_VAIN = 3  # tiles in a row whose bounds saved nothing, after which none are computed


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

    def squared(self, tile: Tile, stored, about, mine) -> Float[np.ndarray, "Q r"]:
        """Squared distances of `mine` queries to stored rounded means, float32."""
        scales = about["pooled_scale"] if self.column == "pooled" else np.ones(len(stored), "f4")
        wide = widen(stored)
        squares = products.squares_of(wide) * np.square(scales, dtype=np.float64)
        self.largest = float(squares.max(initial=0.0))
        inner = products.inner(self.values[mine], wide)
        return products.squared(inner, self.squares[mine], squares, scales)

    def thresholds(self, tile: Tile, about, mine, limits) -> Float[np.ndarray, " Q"]:
        """How large those may be where a score may be up to `limits`.

        A score up to s means sequences up to sqrt(s C) apart, so their rounded means are at most
        the residuals further; the rest is rounding, of scores, sequences and of `squared`.
        """
        residual = about[f"{self.column}_residual"].astype(np.float64)
        residual += 8 * products.ROUNDING * np.sqrt(about["square"] / tile.steps)
        share = 1 - 8 * (self.width + 8) * products.ROUNDING
        near = np.sqrt(limits * self.width / share)
        near += self.slack[mine] + residual.max(initial=0.0)
        count = self.values.shape[1]
        error = products.rounding(count, self.width) * (self.squares[mine] + self.largest)
        return np.square(near) * (1 + 1e-6) + 2 * error


class ExactSearch:
    """One batch of queries, with what its bounds left."""

    def __init__(self, scan: Scan, k: int, order: Int[np.ndarray, " Q"]):
        self.scan, self.k, self.order = scan, k, order
        self.running = Running(len(scan.queries), k)
        self.pruning = Pruning()
        self._bounds: dict[tuple, Bounds] = {}
        self._in_vain = 0
        self._pooled_leave = 0.3  # of what means leave, until it is known

    def run(self) -> Running:
        self._start()
        for tile in self.scan.tiles():
            self._tile(tile)
            self.running.tighten()
        return self.running

    def _bound(self, tile: Tile, grid: Grid, column: str) -> Bounds:
        key = (id(grid), column)
        if key not in self._bounds:
            if len(self._bounds) >= 16:
                self._bounds.clear()
            self._bounds[key] = Bounds(grid, tile.segment.width, column)
        return self._bounds[key]

    def _means(self, tile: Tile, grid: Grid) -> Float[np.ndarray, "Q r"]:
        """Squared distances of means; infinity for rows that do not count."""
        stream = tile.segment.streams[self.scan.asked]
        bound, everyone = self._bound(tile, grid, "means"), slice(None)
        stored = stream.read("means", tile.rows)
        squared = bound.squared(tile, stored, stream.rows[tile.rows], everyone)
        live = self.scan.live_in(tile)
        if not live.all():
            squared[:, ~live] = np.inf
        return squared

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
            wanted = np.zeros(len(scan.queries), bool)
            wanted[grid.numbers] = True
            left = None
            if grid.steps == tile.steps and not self._hopeless:
                left = self._same_grid(tile, grid, pairs)
            if left is None:
                scan.dense(tile, self.running, wanted)
                left = [pairs, pairs]
            self.pruning.pairs += pairs
            self.pruning.after_means += left[0]
            self.pruning.after_pooled += left[1]

    @property
    def _hopeless(self) -> bool:
        """Whether bounds have saved nothing so far, so that the rest is compared outright."""
        return self._in_vain >= IN_VAIN

    def _same_grid(self, tile: Tile, grid: Grid, pairs: int) -> list[int] | None:
        """Pairs that each bound left; None where comparing all of them is faster."""
        limits = self.running.limits[grid.numbers]
        stream = tile.segment.streams[self.scan.asked]
        squared = self._means(tile, grid)
        bound = self._bound(tile, grid, "means")
        most = bound.thresholds(tile, stream.rows[tile.rows], slice(None), limits)
        most = np.nextafter(most.astype(np.float32), np.float32(np.inf))
        line, column = np.nonzero(squared <= most[:, None])
        after_means = len(line)
        if after_means == 0:
            self._in_vain = 0
            return [0, 0]
        # What is left costs: pooled sequences of all of it, then the pairs that these leave.
        alone = PAIR if len(grid.numbers) >= FEW_QUERIES else 1.5
        parts = (len(part_edges(tile.steps)) - 1) / tile.steps
        chosen, place = np.unique(column, return_inverse=True)
        asking, at = np.unique(line, return_inverse=True)
        pooled = parts * len(chosen) * len(asking)
        if pooled + alone * self._pooled_leave * after_means > pairs:
            self._in_vain += 1
            return None
        rows = tile.rows.start + chosen
        bound = self._bound(tile, grid, "pooled")
        stored = stream.gather("pooled", _run_of(stream, tile.rows), rows)
        squared = bound.squared(tile, stored, stream.rows[rows], asking)
        most = bound.thresholds(tile, stream.rows[rows], asking, limits[asking])
        most = np.nextafter(most.astype(np.float32), np.float32(np.inf))
        keep = squared[at, place] <= most[at]
        line, rows = line[keep], rows[place[keep]]
        self._pooled_leave = 0.5 * self._pooled_leave + 0.5 * len(line) / after_means
        if alone * len(line) > pairs:
            self._in_vain += 1
            return None
        self._in_vain = 0
        if len(line):
            number = np.full(len(line), tile.segment.number)
            evaluate(self.scan, grid.numbers[line], number, rows, self.running, self.order)
        return [after_means, len(line)]


def _run_of(stream, rows: slice) -> slice:
    return stream.runs()[int(stream.run_of(np.asarray([rows.start]))[0])]
