"""Search with bounds: what cannot be among the k nearest is not compared.

Sketches (`sketches`) bound the score of a pair from below: a coarse one first, a fine one for what
that leaves. Stored sketches are rounded, with how far that moved them, so the triangle inequality
keeps the bounds; and a margin covers the rounding of this arithmetic and of the scores themselves.
A candidate is left out only if its bound is above the score of k others. So the result is that of
comparing all, scores included; where bounds leave so many pairs that products of all queries with
all candidates are faster, those decide.

`ExactSearch` is over all candidates, `nearest_of_chosen` over those of a first stage.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from scav_jax.index import products
from scav_jax.index.nearest import NearestSoFar
from scav_jax.index.products import FEW_QUERIES, widen
from scav_jax.index.scan import QueriesOnGrid, Scan, Tile
from scav_jax.index.sketches import SHARE, Basis

CACHED = 2**17  # numbers that stay in a core's cache
ROWS = 2048  # of candidates of a product of sketches
KEPT = 2**23  # pairs whose coarse distances are kept between the passes
IN_VAIN = 3  # tiles in a row whose bounds saved nothing, after which none are computed
SKETCH = 24  # pairs alone take as long as a query's fine sketch
WORTH = 4  # times k pairs of a query, from which on bounds are worth their reading


def pair_cost(numbers: int, queries: int) -> float:
    """How many pairs of a product take as long as one pair compared by itself.

    Such a pair reads its candidate, and costs something whatever its length; both measured on two
    cores. Products with few queries read as much as pairs do.
    """
    return 28 + 67_000 / numbers if queries >= FEW_QUERIES else 1.5


def sketch_pair_cost(numbers: int) -> float:
    """The same for products of sketches."""
    return 50 + 60_000 / numbers


class QuerySketches:
    """Queries on one grid as one of their sketches, as they meet stored ones."""

    def __init__(self, grid: QueriesOnGrid, basis: Basis, column: str):
        width = basis.table.shape[1]
        self.column, self.count = column, grid.values.shape[1]
        weights = basis.stored_weights(column, grid.steps)
        self.values = np.empty((len(grid.values), weights.size), np.float32)  # times the weights
        self.squares = np.empty(len(grid.values))
        # The rounding of values, sketches and scores moves a sequence by this share of its norm.
        self.slack = 10 * products.ROUNDING * np.sqrt(grid.squares)
        self.rounding = products.rounding(weights.size)
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

    def thresholds(self, about, limits: Float[np.ndarray, "Q n"]) -> Float[np.ndarray, "Q n"]:
        """How large those may be where a distance may be up to `limits`: of any row, or of each."""
        near = np.sqrt(np.maximum(limits, 0.0) * self.count / self.share * self.stretch)
        near += self.slack[:, None] + self.residual(about).max(initial=0.0)
        largest = float(about[f"{self.column}_square"].max(initial=0.0))
        error = self.rounding * (self.squares + largest)
        most = np.square(near) * (1 + 1e-6) + 2 * error[:, None]
        most = np.nextafter(most.astype(np.float32), np.float32(np.inf))
        return np.minimum(most, np.finfo(np.float32).max)  # rows that do not count are at infinity

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
        self._sketches: dict[tuple[str, int], QuerySketches] = {}

    def of(self, column: str, grid: QueriesOnGrid) -> QuerySketches:
        """The queries of a grid as they meet the sketches of tiles on that grid."""
        key = column, grid.steps
        if key not in self._sketches:
            if len(self._sketches) >= 16:
                self._sketches.clear()
            basis = self.scan.snapshot.encoding.basis
            self._sketches[key] = QuerySketches(grid, basis, column)
        return self._sketches[key]

    def pairs(
        self,
        column: str,
        queries: Int[np.ndarray, " p"],
        segments: Int[np.ndarray, " p"],
        rows: Int[np.ndarray, " p"],
    ) -> Float[np.ndarray, " p"]:
        """What the scores of chosen pairs are at least: those of 0 where nothing is known."""
        result = np.zeros(len(queries))
        for tile, grid, which, place, row in self.scan.pairs(queries, segments, rows):
            if grid.steps != tile.steps:
                continue
            sketches = self.of(column, grid)
            between = len(sketches.values) * int(row.max() - row.min() + 1)
            if len(which) * sketch_pair_cost(sketches.values.shape[1]) > between:
                inner = _inner_by_products(tile, sketches, place, row)
            else:
                inner = _inner_by_pairs(tile, sketches, place, row)
            result[which] = sketches.low(inner, place, tile.stream.rows[row])
        return self.scan.final(result, segments, rows)


def _inner_by_products(tile: Tile, sketches: QuerySketches, place, row) -> Float[np.ndarray, " p"]:
    """Products of pairs: of all queries with all rows in between, of which only the pairs count."""
    inner = np.empty(len(row), np.float32)
    for begin in range(row.min(), row.max() + 1, ROWS):
        here = np.flatnonzero((row >= begin) & (row < begin + ROWS))
        rows = slice(begin, min(begin + ROWS, tile.rows.stop))
        found = products.inner(sketches.values, tile.stream.read(sketches.column, rows))
        inner[here] = found[place[here], row[here] - begin]
    return inner


def _inner_by_pairs(tile: Tile, sketches: QuerySketches, place, row) -> Float[np.ndarray, " p"]:
    """Products of pairs, one by one: each candidate is read once."""
    inner = np.empty(len(row), np.float32)
    order = np.argsort(row, kind="stable")
    size = max(CACHED // sketches.values.shape[1], 1)
    parts = [order[begin : begin + size] for begin in range(0, len(order), size)]

    def some(part):
        rows, local = np.unique(row[part], return_inverse=True)
        wide = widen(tile.stream.gather(sketches.column, tile.rows, rows))
        inner[part] = products.dots(sketches.values[place[part]], wide[local])

    with products.thread_pool() as threads:
        list(threads.map(some, parts))
    return inner


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

    def count(self, pairs: int, after_coarse: int, after_fine: int) -> None:
        """Adds what was left of some pairs."""
        self.pairs += pairs
        self.after_coarse += after_coarse
        self.after_fine += after_fine


class ExactSearch:
    """One batch of queries against all candidates; what its bounds left is added to `pruning`."""

    def __init__(self, scan: Scan, k: int, pruning: Pruning):
        self.scan, self.k, self.pruning = scan, k, pruning
        self.nearest = scan.nearest(k)
        self._bounds = Bounds(scan)
        self._coarse_kept: dict[tuple[int, int, int], np.ndarray] = {}
        self._in_vain = 0
        self._fine_leaves = 0.3  # of what coarse ones leave, until it is known

    def run(self) -> NearestSoFar:
        self._first_limits()
        for tile in self.scan.tiles():
            self._search_tile(tile)
            self.nearest.tighten()
        return self.nearest

    def _coarse(self, tile: Tile, grid: QueriesOnGrid) -> Float[np.ndarray, "Q r"]:
        """Squared distances of coarse sketches; infinity for rows that do not count."""
        place = (tile.segment.number, tile.rows.start, grid.steps)
        if place in self._coarse_kept:
            return self._coarse_kept[place]
        stored, about = tile.stream.read("coarse", tile.rows), tile.stream.rows[tile.rows]
        squared = self._bounds.of("coarse", grid).squared(stored, about)
        live = self.scan.live_in(tile)
        if not live.all():
            squared[:, ~live] = np.inf
        if self.scan.count * len(self.scan.queries) <= KEPT:
            self._coarse_kept[place] = squared
        return squared

    def _first_limits(self) -> None:
        """Limits from the scores of the candidates with the nearest sketches."""
        scan, starters = self.scan, self.scan.nearest(self.k)
        for tile in scan.tiles():
            for grid in scan.grids(tile.steps):
                if grid.steps == tile.steps:
                    none = np.zeros(len(grid.numbers))
                    rows = np.arange(tile.rows.start, tile.rows.stop)
                    coarse = self._coarse(tile, grid)
                    if scan.hubness is not None:  # as scores of that size
                        coarse = coarse / np.float32(grid.values.shape[1])
                    starters.offer(grid.numbers, coarse, none, tile.segment.number, rows)
        places = starters.candidates()
        if not len(places[0]):
            return
        first = scan.nearest(self.k)
        scan.offer(first, *places)
        first.tighten()
        self.nearest.limits[:] = first.limits + 1e-6 * np.abs(first.limits)

    def _search_tile(self, tile: Tile) -> None:
        scan = self.scan
        alive = int(scan.live_in(tile).sum())
        for grid in scan.grids(tile.steps):
            pairs, left = alive * len(grid.numbers), None
            # Once bounds have saved nothing for a while, the rest is compared outright.
            if grid.steps == tile.steps and self._in_vain < IN_VAIN:
                left = self._by_bounds(tile, grid, pairs)
            if left is None:
                scan.compare_tile(tile, self.nearest, grid)
                left = (pairs, pairs)
            self.pruning.count(pairs, *left)

    def _by_bounds(self, tile: Tile, grid: QueriesOnGrid, pairs: int) -> tuple[int, int] | None:
        """Pairs that each bound left; None where comparing all of them is faster."""
        limits = self.nearest.limits[grid.numbers]
        about = tile.stream.rows[tile.rows]
        near = limits[:, None]
        if self.scan.hubness is not None:
            near = self.scan.hubness.most(limits, tile.segment.number, tile.rows)
        most = self._bounds.of("coarse", grid).thresholds(about, near)
        line, column = np.nonzero(self._coarse(tile, grid) <= most)
        after_coarse = len(line)
        if after_coarse == 0:
            self._in_vain = 0
            return 0, 0
        # What is left costs: fine sketches of all of it, then the pairs that these leave.
        each = pair_cost(grid.values.shape[1], len(grid.numbers))
        fine = min(each * after_coarse, pairs) / SHARE
        if fine + each * self._fine_leaves * after_coarse > pairs:
            self._in_vain += 1
            return None
        query, rows = grid.numbers[line], tile.rows.start + column
        number = np.full(len(line), tile.segment.number)
        keep = self._bounds.pairs("fine", query, number, rows) <= limits[line]
        query, number, rows = query[keep], number[keep], rows[keep]
        self._fine_leaves = 0.5 * self._fine_leaves + 0.5 * len(rows) / after_coarse
        if each * len(rows) > pairs:
            self._in_vain += 1
            return None
        self._in_vain = 0
        if len(rows):
            self.scan.offer(self.nearest, query, number, rows)
        return after_coarse, len(rows)


def nearest_of_chosen(
    scan: Scan,
    query: Int[np.ndarray, " p"],
    segment: Int[np.ndarray, " p"],
    row: Int[np.ndarray, " p"],
    k: int,
) -> tuple[np.ndarray, ...]:
    """(query, segment, row, score) of the k nearest of each query among chosen pairs, by rank.

    A pair that is compared reads a whole sequence; so the k pairs of each query with the lowest
    bounds are compared first, and then those whose bounds are not above the k-th score.

    Args:
      scan: the queries and where candidates are.
      query, segment, row: the pairs.
      k: how many.
    """
    queries, nearest = len(scan.queries), scan.nearest(k)
    if len(query) <= WORTH * k * queries:
        few = len(query) <= 2 * k * queries  # then hardly any is left out
        scan.offer(nearest, query, segment, row, np.float64 if few else np.float32)
        return scan.best(nearest)
    bounds = Bounds(scan)
    low = bounds.pairs("coarse", query, segment, row)
    by_bound = np.lexsort((low, query))
    rank = np.arange(len(query)) - np.searchsorted(query[by_bound], query[by_bound])
    first = np.zeros(len(query), bool)
    first[by_bound[rank < k]] = True
    scan.offer(nearest, query[first], segment[first], row[first], np.float64)
    nearest.tighten()
    near = ~first & (low <= nearest.limits[query])
    left = query[near], segment[near], row[near]
    if len(left[0]) > SKETCH * queries:
        near = bounds.pairs("fine", *left) <= nearest.limits[left[0]]
        left = tuple(column[near] for column in left)
    if len(left[0]) * pair_cost(scan.numbers, queries) > queries * scan.count:
        _offer_by_products(scan, nearest, *left)
    else:
        scan.offer(nearest, *left)
    return scan.best(nearest)


def _offer_by_products(scan: Scan, nearest: NearestSoFar, query, segment, row) -> None:
    """Offers pairs by products of all queries with all candidates, of which only these count."""
    for tile in scan.tiles():
        here = (segment == tile.segment.number) & (row >= tile.rows.start) & (row < tile.rows.stop)
        if here.any():
            allowed = np.zeros((len(scan.queries), tile.rows.stop - tile.rows.start), bool)
            allowed[query[here], row[here] - tile.rows.start] = True
            scan.compare_tile(tile, nearest, allowed=allowed)
