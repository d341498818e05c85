"""Queries against stored sequences under the Euclidean distance: tiles, chosen pairs, final scores.

Everything here reads one stream of a snapshot through memory maps, a tile at a time.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from scav_jax.index import products
from scav_jax.index.grids import Queries, interpolate
from scav_jax.index.running import Running
from scav_jax.index.segments import Segment
from scav_jax.index.storage import widen

TILE_BYTES = 2**28  # of one tile of candidates, as float32
TILE_ROWS = 4096
TILE_PAIRS = 2**22  # with few queries, a tile has more rows
LONG = 4096  # numbers of a sequence that is compared alone; shorter ones together
TOGETHER = 8  # queries
_KEPT_BYTES = 2**29  # of queries on the grids of candidates


@dataclass(frozen=True)
class Grid:
    """Queries on one grid, less the centre.

    Attributes:
      numbers: of the queries.
      steps: of the grid.
      values: `[n, T C]`.
      squares: their squared norms.
    """

    numbers: Int[np.ndarray, " n"]
    steps: int
    values: Float[np.ndarray, "n TC"]
    squares: Float[np.ndarray, " n"]

    @functools.cached_property
    def placed(self):
        """The values where large products are computed; they go there once."""
        return products.place(self.values)


@dataclass(frozen=True)
class Block:
    """Distances of a block of candidates on one grid, under way."""

    numbers: Int[np.ndarray, " Q"]
    finish: Callable[[], Float[np.ndarray, "Q r"]]
    errors: Float[np.ndarray, " Q"]
    segment: int
    rows: Int[np.ndarray, " r"]

    def offer(self, running: Running) -> None:
        """Waits for the distances."""
        running.offer(self.numbers, self.finish(), self.errors, self.segment, self.rows)


@dataclass(frozen=True)
class Tile:
    """Some rows of one run of a segment."""

    segment: Segment
    rows: slice
    steps: int


def numbers_of(segments: dict[int, Segment], asked: str) -> int:
    """How many numbers the sequences of one of the segments have, about: the middle one's."""
    for segment in segments.values():
        steps = segment.streams[asked].rows["steps"]
        return int(steps[len(steps) // 2]) * segment.width
    return 1


class Scan:
    """One batch of queries against the live (and wanted) rows of a snapshot."""

    def __init__(self, queries: Queries, asked: str, segments: dict[int, Segment], live: dict):
        self.queries, self.asked = queries, asked
        self.segments, self.live = segments, live
        self._grids: dict[tuple, list[Grid]] = {}

    # -- queries ----------------------------------------------------------------------------------

    def grids(self, steps: int, centre: Float[np.ndarray, " C"]) -> list[Grid]:
        """The queries as they are compared with candidates of `steps` steps."""
        key = (None if self.queries.is_target else steps, centre.tobytes())
        if key not in self._grids:
            kept = sum(g.values.nbytes for grids in self._grids.values() for g in grids)
            if kept > _KEPT_BYTES:
                self._grids.clear()
            found = []
            for numbers, values in self.queries.groups(steps):
                flat = (values - centre if centre.any() else values).reshape(len(values), -1)
                found.append(Grid(numbers, values.shape[1], flat, products.squares_of(flat)))
            self._grids[key] = found
        return self._grids[key]

    def grid_rows(
        self, steps: int, centre: Float[np.ndarray, " C"]
    ) -> list[tuple[Grid, Int[np.ndarray, " Q"]]]:
        """Grids, each with the place of every query in it, -1 where it is not."""
        result = []
        for grid in self.grids(steps, centre):
            places = np.full(len(self.queries), -1)
            places[grid.numbers] = np.arange(len(grid.numbers))
            result.append((grid, places))
        return result

    @functools.cached_property
    def count(self) -> int:
        """How many candidates there are."""
        return sum(int(live.sum()) for live in self.live.values())

    @property
    def numbers(self) -> int:
        """How many numbers a candidate has, about."""
        return numbers_of(self.segments, self.asked)

    @property
    def has_bounds(self) -> bool:
        """Whether sketches of the candidates are stored."""
        return all(segment.basis is not None for segment in self.segments.values())

    # -- candidates -------------------------------------------------------------------------------

    def tiles(self, tile_bytes: int = TILE_BYTES) -> Iterator[Tile]:
        """All rows, in stretches of one length."""
        most = max(TILE_ROWS, TILE_PAIRS // max(len(self.queries), 1))
        for number, segment in self.segments.items():
            live, stream = self.live[number], segment.streams[self.asked]
            for run in stream.runs():
                steps = int(stream.rows["steps"][run.start])
                size = min(max(tile_bytes // (4 * steps * segment.width), 1), most)
                for begin in range(run.start, run.stop, size):
                    rows = slice(begin, min(begin + size, run.stop))
                    if live[rows].any():
                        yield Tile(segment, rows, steps)

    def live_in(self, tile: Tile) -> np.ndarray:
        """Which rows of a tile count."""
        return self.live[tile.segment.number][tile.rows]

    def every(self, running: Running) -> None:
        """Offers all rows to all queries: while one tile is multiplied, the last one is sorted."""
        waiting: list[Block] = []
        for tile in self.tiles():
            begun = self.begun(tile)
            for block in waiting:
                block.offer(running)
            waiting = begun
        for block in waiting:
            block.offer(running)

    def dense(self, tile: Tile, running: Running, wanted: np.ndarray | None = None) -> None:
        """Offers every row of a tile to every query, or to the `wanted` ones."""
        for block in self.begun(tile, wanted):
            block.offer(running)

    def begun(
        self, tile: Tile, wanted: np.ndarray | None = None, allowed: np.ndarray | None = None
    ) -> list[Block]:
        """Every row of a tile with every query, or with the `wanted` ones, under way.

        Args:
          tile: the candidates.
          wanted: `[Q]`, the queries that they are compared with; None is all.
          allowed: `[Q, r]`, the pairs that count; None is all.
        """
        stream = tile.segment.streams[self.asked]
        stored = stream.read("values", tile.rows)
        live = self.live_in(tile)
        if live.mean() < 0.5:  # worth a copy
            chosen = np.flatnonzero(live)
            stored, rows = stored[chosen], tile.rows.start + chosen
            dead = np.zeros(len(chosen), bool)
            allowed = None if allowed is None else allowed[:, chosen]
        else:
            rows, dead = np.arange(tile.rows.start, tile.rows.stop), ~live
        about, found = stream.rows[rows], []
        for grid in self.grids(tile.steps, tile.segment.centre):
            values, squares, scales = stored, about["square"], about["scale"]
            mine = slice(None) if wanted is None else wanted[grid.numbers]
            numbers = grid.numbers[mine]
            if not len(numbers):
                continue
            if grid.steps != tile.steps:
                values = self._stretched(values, scales, tile, grid.steps)
                squares, scales = products.squares_of(values), np.ones_like(scales)
            everyone = len(numbers) == len(grid.numbers)
            queries = grid.values if everyone else grid.values[mine]
            large = everyone and len(queries) * values.size > products.LARGE
            inner = products.started(queries, values, grid.placed if large else None)
            count, own = grid.values.shape[1], grid.squares[mine]
            largest = float(squares.max(initial=0.0))
            errors = products.rounding(count, tile.segment.width) * (own + largest) / count
            apart = dead[None] if dead.any() else None
            if allowed is not None:
                apart = ~allowed[numbers] if apart is None else ~allowed[numbers] | apart

            def finish(inner=inner, own=own, squares=squares, scales=scales, apart=apart, n=count):
                distances = products.squared(inner(), own, squares, scales)
                distances /= np.float32(n)
                if apart is not None:
                    np.copyto(distances, np.float32(np.inf), where=apart)
                return distances

            found.append(Block(numbers, finish, errors, tile.segment.number, rows))
        return found

    def _stretched(self, stored, scales, tile: Tile, steps: int) -> Float[np.ndarray, "r n"]:
        """Candidates of another length, brought to the grid of the queries."""
        values = widen(stored) * scales[:, None]
        values = values.reshape(len(values), tile.steps, tile.segment.width)
        return interpolate(values, 0.0, float(tile.steps), steps).reshape(len(values), -1)

    # -- chosen pairs -----------------------------------------------------------------------------

    def pairs(
        self,
        queries: Int[np.ndarray, " p"],
        segments: Int[np.ndarray, " p"],
        rows: Int[np.ndarray, " p"],
    ) -> Iterator[tuple[Tile, Grid, np.ndarray, np.ndarray, np.ndarray]]:
        """Pairs by run and grid, in the order of their places: reads go one way through a file.

        Yields:
          The run as a tile, the grid, which pairs, the place of each one's query in the grid, and
          its row.
        """
        for number in np.unique(segments):
            segment = self.segments[int(number)]
            stream = segment.streams[self.asked]
            own = np.flatnonzero(segments == number)
            runs, of = stream.runs(), stream.run_of(rows[own])
            for run in np.unique(of):
                steps = int(stream.rows["steps"][runs[run].start])
                inside = own[of == run]
                tile = Tile(segment, runs[run], steps)
                for grid, places in self.grid_rows(steps, segment.centre):
                    place = places[queries[inside]]
                    here = place >= 0
                    yield tile, grid, inside[here], place[here], rows[inside[here]]

    def scores(
        self,
        queries: Int[np.ndarray, " p"],
        segments: Int[np.ndarray, " p"],
        rows: Int[np.ndarray, " p"],
        order: Int[np.ndarray, " Q"] | None = None,
    ) -> Float[np.ndarray, " p"]:
        """The final scores of chosen pairs: mean squared differences of what is stored.

        Args:
          queries, segments, rows: the pairs.
          order: of the queries, where like ones want the same candidates: those that are compared
            one after the other then stay in the cache.
        """
        result = np.full(len(queries), np.nan, np.float32)
        with products.pool() as threads:
            for tile, grid, which, place, row in self.pairs(queries, segments, rows):
                if not len(which):
                    continue
                numbers = grid.values.shape[1]
                long = numbers >= LONG and grid.steps == tile.steps
                if long and order is not None:
                    group = np.empty(len(order), np.int64)
                    group[order] = np.arange(len(order)) // TOGETHER
                    sort = np.lexsort((row, group[queries[which]]))
                else:
                    sort = np.argsort(row, kind="stable")
                size = max(2**18 // numbers, 1)
                if long:
                    size = max(size, -(-len(sort) // (8 * products.THREADS)))
                parts = [sort[b : b + size] for b in range(0, len(sort), size)]

                def some(part, tile=tile, grid=grid, place=place, row=row, which=which, long=long):
                    if long:
                        stream = tile.segment.streams[self.asked]
                        scores = stream.differences(tile.rows, row[part], grid.values, place[part])
                    else:
                        x = self._values(tile, row[part], grid.steps)
                        np.subtract(x, grid.values[place[part]], out=x)
                        scores = products.mean_square(x, tile.segment.width)
                    result[which[part]] = scores

                list(threads.map(some, parts))
        return result

    def _values(self, tile: Tile, rows: Int[np.ndarray, " r"], steps: int):
        """A copy of what is stored, on a grid, as float32."""
        stream = tile.segment.streams[self.asked]
        stored = stream.gather("values", tile.rows, rows)
        scales = stream.rows["scale"][rows]
        if steps != tile.steps:
            return self._stretched(stored, scales, tile, steps)
        values = widen(stored)
        values *= scales[:, None]
        return values
