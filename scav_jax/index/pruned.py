"""Exact search with bounds: what cannot be among the k nearest is not compared.

Sketches bound the score of a pair from below (`sketches`, `bounds`): a coarse one for all pairs, a
fine one for those that are left. A candidate is left out only if its bound is above the score of k
others. So the result is that of exhaustive search, scores included.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from scav_jax.index.bounds import Bounds
from scav_jax.index.cosine import ranked
from scav_jax.index.running import Running
from scav_jax.index.scan import Grid, Scan, Tile
from scav_jax.index.second_stage import alone, limits_of
from scav_jax.index.sketches import SHARE

STARTERS = 1  # times k candidates that give the first limits
KEPT = 2**23  # pairs whose coarse distances are kept between the passes
IN_VAIN = 3  # tiles in a row whose bounds saved nothing, after which none are computed


@dataclass
class Pruning:
    """How many pairs there were, and how many were left after each bound."""

    pairs: int = 0
    after_coarse: int = 0
    after_fine: int = 0

    @property
    def share(self) -> float:
        """Of the pairs, how many were never compared."""
        return 1.0 - self.after_fine / self.pairs if self.pairs else 0.0


class ExactSearch:
    """One batch of queries, with what its bounds left."""

    def __init__(self, scan: Scan, k: int, order: Int[np.ndarray, " Q"]):
        self.scan, self.k, self.order = scan, k, order
        self.running = Running(len(scan.queries), k)
        self.pruning = Pruning()
        self._bounds = Bounds(scan)
        self._kept: dict[tuple, tuple[Grid, np.ndarray]] = {}
        self._in_vain = 0
        self._fine_leaves = 0.3  # of what coarse ones leave, until it is known

    def run(self) -> Running:
        self._start()
        for tile in self.scan.tiles():
            self._tile(tile)
            self.running.tighten()
        return self.running

    def _coarse(self, tile: Tile, grid: Grid) -> Float[np.ndarray, "Q r"]:
        """Squared distances of coarse sketches; infinity for rows that do not count."""
        place = (tile.segment.number, tile.rows.start, tile.steps, id(grid))
        if place in self._kept:
            return self._kept[place][1]
        stream = tile.segment.streams[self.scan.asked]
        stored = stream.read("coarse", tile.rows)
        squared = self._bounds.of("coarse", tile, grid).squared(stored, stream.rows[tile.rows])
        live = self.scan.live_in(tile)
        if not live.all():
            squared[:, ~live] = np.inf
        if self.scan.count * len(self.scan.queries) <= KEPT:
            self._kept[place] = grid, squared
        return squared

    def _start(self) -> None:
        """Limits from the scores of the candidates with the nearest sketches."""
        scan, starters = self.scan, Running(len(self.scan.queries), STARTERS * self.k)
        for tile in scan.tiles():
            for grid in scan.grids(tile.steps, tile.segment.centre):
                if grid.steps == tile.steps:
                    none = np.zeros(len(grid.numbers))
                    rows = np.arange(tile.rows.start, tile.rows.stop)
                    starters.offer(
                        grid.numbers, self._coarse(tile, grid), none, tile.segment.number, rows
                    )
        query, segment, row = starters.candidates()
        if not len(query):
            return
        scores = scan.scores(query, segment, row, self.order)
        best = ranked(query, segment, row, scores, scan.segments, self.k)
        self.running.limits[:] = limits_of(best, self.k, len(scan.queries)) * (1 + 1e-6)

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
            self.pruning.after_coarse += left[0]
            self.pruning.after_fine += left[1]

    @property
    def _hopeless(self) -> bool:
        """Whether bounds have saved nothing so far, so that the rest is compared outright."""
        return self._in_vain >= IN_VAIN

    def _same_grid(self, tile: Tile, grid: Grid, pairs: int) -> list[int] | None:
        """Pairs that each bound left; None where comparing all of them is faster."""
        limits = self.running.limits[grid.numbers]
        stream = tile.segment.streams[self.scan.asked]
        squared = self._coarse(tile, grid)
        asking = self._bounds.of("coarse", tile, grid)
        most = asking.thresholds(stream.rows[tile.rows], limits)
        line, column = np.nonzero(squared <= most[:, None])
        after_coarse = len(line)
        if after_coarse == 0:
            self._in_vain = 0
            return [0, 0]
        # What is left costs: fine sketches of all of it, then the pairs that these leave.
        each = alone(grid.values.shape[1], len(grid.numbers))
        fine = min(each * after_coarse, pairs) / SHARE
        if fine + each * self._fine_leaves * after_coarse > pairs:
            self._in_vain += 1
            return None
        query, rows = grid.numbers[line], tile.rows.start + column
        number = np.full(len(line), tile.segment.number)
        low = self._bounds.pairs("fine", query, number, rows)
        keep = low <= limits[line]
        query, number, rows = query[keep], number[keep], rows[keep]
        self._fine_leaves = 0.5 * self._fine_leaves + 0.5 * len(rows) / after_coarse
        if each * len(rows) > pairs:
            self._in_vain += 1
            return None
        self._in_vain = 0
        if len(rows):
            scores = self.scan.scores(query, number, rows, self.order).astype(np.float64)
            self.running.pairs(query, scores, np.zeros(len(rows)), tile.segment.number, rows)
        return [after_coarse, len(rows)]
