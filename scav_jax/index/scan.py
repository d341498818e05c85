"""Queries against stored sequences under the Euclidean distance: tiles, chosen pairs, final scores.

The interpolated Euclidean distance compares step by step on the grid of its target stream (audio,
for `visual_to_audio`). An index stores both streams of a clip on that clip's own target grid. A
clip's own pair is then compared as it was in training; all clips of one duration are compared by
one product of matrices.

At search time a query has no partner. A query of the target stream brings the grid: candidates of
another length are stretched onto it, from their own. A query of the other stream is interpolated
at the grid of each candidate, as the definition says. Windows are whole on a stored grid: a part
of a step at the ends, which trimming left, is not told apart.

All other distances compare sequences of any lengths, and store them as they are.

A scan reads one stream of a snapshot through memory maps, a tile at a time.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from scav_jax.base.errors import InputError
from scav_jax.index import products
from scav_jax.index.catalog import Header
from scav_jax.index.nearest import ROUNDED, Hubness, NearestSoFar, k_smallest
from scav_jax.index.products import widen
from scav_jax.index.segments import Segment, StoredStream
from scav_jax.index.snapshot import Snapshot
from scav_jax.retrieval.embed import Embedded
from scav_jax.sequences import Sequences

TILE_BYTES = 2**28  # of one tile of candidates, as float32
TILE_ROWS = 4096
TILE_PAIRS = 2**22  # with few queries, a tile has more rows
# Of a number of latents: squares of differences, summed over a sequence, stay within float32.
LARGEST = np.float32(1e15)
LONG = 4096  # numbers of a sequence that is compared alone; shorter ones together
TOGETHER = 8  # queries
STRETCHED = 2**18  # numbers that are stretched at a time
_KEPT_BYTES = 2**29  # of queries on the grids of candidates


def are_comparable(sequences: Sequences) -> Bool[np.ndarray, " K"]:
    """Which sequences hold no number beyond `LARGEST`, NaN or infinity in their real steps."""
    values, lengths = np.asarray(sequences.values), np.asarray(sequences.lengths)
    good = _are_short(values)
    unsure = np.flatnonzero(~good)
    if len(unsure):
        values, real = values[unsure], np.arange(values.shape[1]) < lengths[unsure, None]
        good[unsure] = ((np.abs(values) <= LARGEST).all(axis=2) | ~real).all(axis=1)
    return good


def _are_short(values: Shaped[np.ndarray, "K T C"]) -> Bool[np.ndarray, " K"]:
    """Whose norm says already that no number is beyond `LARGEST`, padding included."""
    if values.dtype != np.float32:
        return np.zeros(len(values), bool)
    squares = products.squares_of(values.reshape(len(values), -1))
    return squares <= 0.5 * float(LARGEST) ** 2


def interpolate(
    values: Float[np.ndarray, "n S C"], begin: float, extent: float, steps: int
) -> Float[np.ndarray, "n steps C"]:
    """`sequences.resample` of sequences of one length and window to a whole grid, in NumPy."""
    last = values.shape[1] - 1
    pace = np.float32(extent) / np.float32(steps)
    centres = np.arange(steps, dtype=np.float32) + np.float32(0.5)
    positions = np.float32(begin) + centres * pace - np.float32(0.5)
    positions = np.clip(positions, np.float32(0), np.float32(last))
    left = np.minimum(np.floor(positions).astype(np.int64), last)
    weight = (positions - left.astype(np.float32))[None, :, None]
    lower, upper = values[:, left], values[:, np.minimum(left + 1, last)]
    return lower + weight * (upper - lower)


@dataclass(frozen=True)
class Queries:
    """Query sequences of one stream, and their form on the grids of candidates.

    Attributes:
      stream: "visual" or "audio".
      is_target: whether candidates are brought to their grid, or they to that of candidates.
      sequences: `[Q, T, C]` with lengths and windows, on the host.
      embeddings: `[Q, E]`.
      sketches: `[Q, S]`, where the index and they have those of one name.
    """

    stream: str
    is_target: bool
    sequences: Sequences
    embeddings: Float[np.ndarray, "Q E"]
    sketches: Float[np.ndarray, "Q S"] | None = None

    @classmethod
    def of(cls, embedded: Embedded, direction: str, header: Header) -> "Queries":
        """The clips that ask.

        Raises:
          InputError: they were not embedded, are of another width, not finite, or too large.
        """
        stream = query_streams(direction)[0]
        sequences, embeddings = getattr(embedded, stream), getattr(embedded, f"{stream}_embeddings")
        if sequences is None or embeddings is None:
            what = "sound" if stream == "audio" else "picture"
            raise InputError(
                f"expected queries with {stream} latents for {direction}, got none; embed the "
                f"{what} of the query, or search in the other direction"
            )
        width = sequences.values.shape[2]
        if header.width and width != header.width:
            raise InputError(
                f"expected queries of width {header.width}, got {width}; embed them with the model "
                "of the index"
            )
        good = are_comparable(sequences)
        if not good.all():
            raise InputError(
                f"query {embedded.ids[int(np.flatnonzero(~good)[0])]!r}: expected finite latents "
                f"up to {LARGEST:g}, whose squares float32 can sum, got NaN, infinity or more; "
                "look at the model's training log"
            )
        sequences, embeddings = jax.tree.map(np.asarray, (sequences, embeddings))
        if header.one_grid and header.static_width:
            weights = np.ones(width, np.float32)
            weights[width - header.static_width :] = header.options["static_weight"]
            sequences = sequences.replace(values=sequences.values * weights)
        known = header.sketch and embedded.sketched_by == header.sketch
        sketches = getattr(embedded, f"{stream}_sketches") if known else None
        return cls(stream, header.target == stream, sequences, embeddings, sketches)

    @property
    def asked(self) -> str:
        """The stream that is searched."""
        return "visual" if self.stream == "audio" else "audio"

    def __len__(self) -> int:
        return len(self.sequences.lengths)

    def part(self, rows: slice) -> "Queries":
        """Some of the queries."""
        whole = self.sequences, self.embeddings, self.sketches
        cut = jax.tree.map(lambda leaf: leaf[rows], whole)
        return Queries(self.stream, self.is_target, *cut)

    def groups(self, steps: int) -> list[tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n T C"]]]:
        """Queries that are compared with candidates of `steps` steps on one grid.

        Returns:
          For each grid, the numbers of the queries and their values on it. A grid that is not of
          `steps` steps is one that candidates are brought to.
        """
        values, lengths = self.sequences.values, self.sequences.lengths
        if self.is_target:
            different = np.unique(lengths)
            if len(different) == 1:  # most often, and then nothing need be copied
                whole = np.ascontiguousarray(values[:, : different[0]], np.float32)
                return [(np.arange(len(self)), whole)]
            return [
                (numbers, np.ascontiguousarray(values[numbers, :length], np.float32))
                for length in different
                for numbers in [np.flatnonzero(lengths == length)]
            ]
        keys = np.column_stack([lengths, self.sequences.windows])
        different = np.unique(keys, axis=0)
        if len(different) == 1 and _is_whole(different[0], steps):
            return [(np.arange(len(self)), np.ascontiguousarray(values[:, :steps], np.float32))]
        result = np.empty((len(self), steps, values.shape[2]), np.float32)
        for key in different:
            same = np.flatnonzero((keys == key).all(axis=1))
            source = values[same, : int(key[0])].astype(np.float32)
            if _is_whole(key, steps):
                result[same] = source
            else:
                result[same] = interpolate(source, key[1], key[2], steps)
        return [(np.arange(len(self)), result)]


def _is_whole(key: Float[np.ndarray, " 3"], steps: int) -> bool:
    """Whether a length and a window (begin, extent) are the whole grid of so many steps already."""
    length, begin, extent = key.tolist()
    return length == steps and abs(begin) <= 0.5 and abs(begin + extent - steps) <= 0.5


def query_streams(direction: str) -> tuple[str, str]:
    """(the stream that asks, the one that is asked)."""
    if direction not in ("a2v", "v2a"):
        raise InputError(f"direction: expected a2v or v2a, got {direction!r}")
    return ("audio", "visual") if direction == "a2v" else ("visual", "audio")


@dataclass(frozen=True)
class QueriesOnGrid:
    """Queries on one grid, less the centre.

    Attributes:
      numbers: of the queries.
      steps: of the grid.
      values: `[n, T C]`.
    """

    numbers: Int[np.ndarray, " n"]
    steps: int
    values: Float[np.ndarray, "n TC"]

    @functools.cached_property
    def squares(self) -> Float[np.ndarray, " n"]:
        """Their squared norms."""
        return products.squares_of(self.values)

    @functools.cached_property
    def on_device(self):
        """The values where large products are computed; they go there once."""
        return products.to_device(self.values)


@dataclass(frozen=True)
class Tile:
    """Some rows of one run of a stream of a segment: candidates of one length."""

    segment: Segment
    stream: StoredStream
    rows: slice
    steps: int


def numbers_of(snapshot: Snapshot, asked: str) -> int:
    """How many numbers the sequences of one of the segments have, about: the middle one's."""
    for segment in snapshot.segments.values():
        steps = segment.streams[asked].rows["steps"]
        return int(steps[len(steps) // 2]) * segment.width
    return 1


class Scan:
    """One batch of queries against the live (and wanted) rows of a snapshot."""

    def __init__(self, queries: Queries, snapshot: Snapshot):
        self.queries, self.asked, self.snapshot = queries, queries.asked, snapshot
        self.segments, self.live = snapshot.segments, snapshot.live
        self.count = len(snapshot)  # candidates
        self.numbers = numbers_of(snapshot, queries.asked)  # of a candidate, about
        self.hubness = Hubness.of(snapshot, queries.asked)
        self._grids: dict[int, list[QueriesOnGrid]] = {}

    def grids(self, steps: int) -> list[QueriesOnGrid]:
        """The queries as they are compared with candidates of `steps` steps."""
        key = 0 if self.queries.is_target else steps
        if key not in self._grids:
            kept = sum(g.values.nbytes for grids in self._grids.values() for g in grids)
            if kept > _KEPT_BYTES:
                self._grids.clear()
            found, centre = [], self.snapshot.encoding.centre
            for numbers, values in self.queries.groups(steps):
                flat = (values - centre if centre.any() else values).reshape(len(values), -1)
                found.append(QueriesOnGrid(numbers, values.shape[1], flat))
            self._grids[key] = found
        return self._grids[key]

    @functools.cached_property
    def _alike(self) -> Int[np.ndarray, " Q"]:
        """The group of each query: of like ones, by the most similar of a few of all.

        They want the same candidates, which stay in the cache from one to the next.
        """
        embeddings = self.queries.embeddings
        pivots = embeddings[:: max(len(embeddings) // 64, 1)]
        norms = np.linalg.norm(pivots, axis=1, keepdims=True)
        order = np.argsort(np.argmax(embeddings @ (pivots / norms).T, axis=1), kind="stable")
        groups = np.empty(len(order), np.int64)
        groups[order] = np.arange(len(order)) // TOGETHER
        return groups

    def nearest(self, k: int) -> NearestSoFar:
        """What collects the k nearest of each query."""
        return NearestSoFar(len(self.queries), k, self.hubness)

    def final(self, distances, segments, rows) -> Float[np.ndarray, " p"]:
        """The scores of distances of chosen pairs; of lower bounds, lower bounds."""
        hubness = self.hubness
        return distances if hubness is None else hubness.scores(distances, segments, rows)

    def tiles(self, tile_bytes: int = TILE_BYTES) -> Iterator[Tile]:
        """All rows, in stretches of one length."""
        most = max(TILE_ROWS, TILE_PAIRS // max(len(self.queries), 1))
        longest = self.queries.is_target * int(self.queries.sequences.lengths.max(initial=0))
        for number, segment in self.segments.items():
            live, stream = self.live[number], segment.streams[self.asked]
            for run in stream.runs():
                steps = int(stream.rows["steps"][run.start])
                size = min(max(tile_bytes // (4 * max(steps, longest) * segment.width), 1), most)
                for begin in range(run.start, run.stop, size):
                    rows = slice(begin, min(begin + size, run.stop))
                    if live[rows].any():
                        yield Tile(segment, stream, rows, steps)

    def live_in(self, tile: Tile) -> Bool[np.ndarray, " r"]:
        """Which rows of a tile count."""
        return self.live[tile.segment.number][tile.rows]

    def compare_all(self, nearest: NearestSoFar) -> None:
        """Offers all rows to all queries: while one tile is multiplied, the last one is sorted."""
        waiting: list[Callable[[NearestSoFar], None]] = []
        for tile in self.tiles():
            started = self.start(tile)
            for offer in waiting:
                offer(nearest)
            waiting = started
        for offer in waiting:
            offer(nearest)

    def compare_tile(
        self,
        tile: Tile,
        nearest: NearestSoFar,
        grid: QueriesOnGrid | None = None,
        allowed: np.ndarray | None = None,
    ) -> None:
        """Offers every row of a tile; see `start`."""
        for offer in self.start(tile, grid, allowed):
            offer(nearest)

    def start(
        self, tile: Tile, grid: QueriesOnGrid | None = None, allowed: np.ndarray | None = None
    ) -> list[Callable[[NearestSoFar], None]]:
        """Every row of a tile with every query, under way: what waits for distances and offers.

        Args:
          tile: the candidates.
          grid: the queries that they are compared with; None is all.
          allowed: `[Q, r]`, the pairs that count; None is all.
        """
        stored, live = tile.stream.read("values", tile.rows), self.live_in(tile)
        if live.mean() < 0.5:  # worth a copy
            chosen = np.flatnonzero(live)
            stored, rows = stored[chosen], tile.rows.start + chosen
            dead = np.zeros(len(chosen), bool)
            allowed = None if allowed is None else allowed[:, chosen]
        else:
            rows, dead = np.arange(tile.rows.start, tile.rows.stop), ~live
        about, found = tile.stream.rows[rows], []
        for one in self.grids(tile.steps) if grid is None else [grid]:
            values, squares, scales = stored, about["square"], about["scale"]
            if one.steps != tile.steps:
                values = self._stretched_in_parts(values, scales, tile, one.steps)
                squares, scales = products.squares_of(values), np.ones_like(scales)
            apart = dead[None] if allowed is None else ~allowed[one.numbers] | dead
            found.append(_start(one, values, squares, scales, apart, tile, rows))
        return found

    def _stretched(self, stored, scales, tile: Tile, steps: int) -> Float[np.ndarray, "r n"]:
        """Candidates of another length, brought to the grid of the queries."""
        values = widen(stored) * scales[:, None]
        values = values.reshape(len(values), tile.steps, tile.segment.width)
        return interpolate(values, 0.0, float(tile.steps), steps).reshape(len(values), -1)

    def _stretched_in_parts(self, stored, scales, tile: Tile, steps: int):
        """The same of many: what comes between, as large as the result, stays in the cache."""
        result = np.empty((len(stored), steps * tile.segment.width), np.float32)
        size = max(STRETCHED // result.shape[1], 1)

        def some(rows: slice) -> None:
            result[rows] = self._stretched(stored[rows], scales[rows], tile, steps)

        with products.thread_pool() as threads:
            list(threads.map(some, (slice(b, b + size) for b in range(0, len(stored), size))))
        return result

    def pairs(
        self,
        queries: Int[np.ndarray, " p"],
        segments: Int[np.ndarray, " p"],
        rows: Int[np.ndarray, " p"],
    ) -> Iterator[tuple[Tile, QueriesOnGrid, np.ndarray, np.ndarray, np.ndarray]]:
        """Pairs by run and grid, in the order of their places: reads go one way through a file.

        Yields:
          The run as a tile, the grid, which pairs, the place of each one's query in the grid, and
          its row.
        """
        places = np.empty(len(self.queries), np.int64)
        for number in np.unique(segments):
            segment = self.segments[int(number)]
            stream = segment.streams[self.asked]
            own = np.flatnonzero(segments == number)
            runs, of = stream.runs(), stream.run_of(rows[own])
            for run in np.unique(of):
                steps = int(stream.rows["steps"][runs[run].start])
                inside = own[of == run]
                for grid in self.grids(steps):
                    places[:] = -1
                    places[grid.numbers] = np.arange(len(grid.numbers))
                    place = places[queries[inside]]
                    here = place >= 0
                    if here.any():
                        which = inside[here]
                        tile = Tile(segment, stream, runs[run], steps)
                        yield tile, grid, which, place[here], rows[which]

    def scores(
        self,
        queries: Int[np.ndarray, " p"],
        segments: Int[np.ndarray, " p"],
        rows: Int[np.ndarray, " p"],
    ) -> Float[np.ndarray, " p"]:
        """Final scores of chosen pairs: mean squared differences of what is stored (`final`)."""
        return self.final(self._distances(queries, segments, rows, np.float64), segments, rows)

    def offer(
        self,
        nearest: NearestSoFar,
        queries: Int[np.ndarray, " p"],
        segments: Int[np.ndarray, " p"],
        rows: Int[np.ndarray, " p"],
        precision: type = np.float32,
    ) -> None:
        """Offers chosen pairs: by sums in float32, or by final scores, which take twice as long."""
        distances = self._distances(queries, segments, rows, precision)
        scores = self.final(distances, segments, rows).astype(np.float64)
        errors = np.zeros(len(scores))
        if precision == np.float32:
            errors += products.rough_rounding(self.snapshot.header.width) * distances
            if self.hubness is not None:
                errors += ROUNDED * np.abs(scores)
        nearest.offer_pairs(queries, scores, errors, segments, rows)

    def _distances(self, queries, segments, rows, precision) -> Float[np.ndarray, " p"]:
        """Mean squared differences of chosen pairs, of differences in some precision."""
        result = np.full(len(queries), np.nan, np.float32)
        with products.thread_pool() as threads:
            for tile, grid, which, place, row in self.pairs(queries, segments, rows):
                numbers = grid.values.shape[1]
                long = numbers >= LONG and grid.steps == tile.steps
                size = max(2**18 // numbers, 1)
                if long:
                    sort = np.lexsort((row, self._alike[queries[which]]))
                    size = max(size, -(-len(sort) // (8 * products.THREADS)))
                    compare = functools.partial(tile.stream.differences, tile.rows, grid.values)
                else:
                    sort = np.argsort(row, kind="stable")
                    compare = functools.partial(self._differences, tile, grid)
                compare = functools.partial(compare, precision=precision)
                parts = [sort[b : b + size] for b in range(0, len(sort), size)]
                pairs = [row[part] for part in parts], [place[part] for part in parts]
                for part, distances in zip(parts, threads.map(compare, *pairs), strict=True):
                    result[which[part]] = distances
        return result

    def best(self, nearest: NearestSoFar) -> tuple[np.ndarray, ...]:
        """(query, segment, row, score) of the k best of each query, by rank; final scores."""
        places, scores = nearest.candidates(), nearest.distances().astype(np.float32)
        rough = nearest.errors() > 0
        scores[rough] = self.scores(*(column[rough] for column in places))
        return k_smallest(*places, scores, self.snapshot, nearest.k)

    def _differences(self, tile: Tile, grid: QueriesOnGrid, rows, place, precision):
        """Mean squared differences of chosen rows of a tile and one query each."""
        stored = tile.stream.gather("values", tile.rows, rows)
        scales = tile.stream.rows["scale"][rows]
        if grid.steps != tile.steps:
            values = self._stretched(stored, scales, tile, grid.steps)
        else:
            values = widen(stored)
            values *= scales[:, None]
        differences = np.subtract(values, grid.values[place], dtype=precision)
        return products.mean_square(differences, tile.segment.width)


def _start(grid: QueriesOnGrid, values, squares, scales, apart, tile: Tile, rows):
    """What waits for mean squared distances of the queries on a grid, and offers them."""
    own, count = grid.squares, grid.values.shape[1]
    inner = products.start_inner(grid.values, values, lambda: grid.on_device)
    largest = float(squares.max(initial=0.0))
    errors = products.rounding(count) * (own + largest) / count

    def offer(nearest: NearestSoFar) -> None:
        distances = products.squared(inner(), own, squares, scales)
        distances /= np.float32(count)
        if apart.any():
            np.copyto(distances, np.float32(np.inf), where=apart)
        nearest.offer(grid.numbers, distances, errors, tile.segment.number, rows)

    return offer
