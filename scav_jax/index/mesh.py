"""A search divided over the devices of a mesh.

Accelerators of this process are used where their memory has room for the sequences (`have_room`).

Every device has a part of the candidates, and the best of all are merged. Devices say which
candidates are near enough, with more than k each, by products; that these are all is proven by the
bound on rounding, else more are asked for. The final scores of these are sums in float64 there, and
the few that one machine might round otherwise are computed there again. So ids and scores are the
same for any number of devices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from scav_jax.base.errors import InputError
from scav_jax.index import products, searching
from scav_jax.index.nearest import NearestSoFar
from scav_jax.index.scan import Queries, QueriesOnGrid, Scan, query_streams
from scav_jax.index.searching import Found
from scav_jax.index.snapshot import Snapshot
from scav_jax.retrieval.embed import Embedded
from scav_jax.sharding import batch_sharded, map_shards, put_replicated

NUMBER_BYTES = 8  # at most: as it is stored, and widened for a product
SHARE = 0.8  # of the devices' free memory that sequences may have
SLACK = 8  # candidates of each device beyond k
MATRIX_BYTES = 2**28  # of distances on one device
QUERIES = 256  # at a time: the next ones go to the devices while these are multiplied
DOUBLES = 2**25  # numbers of candidates that are looked at again, at a time


@dataclass(frozen=True)
class OnDevices:
    """All candidates of one length, cut over the devices.

    Attributes:
      steps: of their sequences.
      arrays: what is stored, `[rows, steps C]`, and squared norms, scales, and how near they come
        to the bank (0 without one), `[rows]`; on the devices, padded.
      places: `[n, 2]`, segment and row.
      largest: of the squared norms.
      of_bank: the largest of these; 0 without a bank.
    """

    steps: int
    arrays: tuple[jax.Array, ...]
    places: np.ndarray
    largest: float
    of_bank: float


class OnMesh:
    """The asked stream of a snapshot, on the devices of a mesh."""

    def __init__(self, snapshot: Snapshot, direction: str, mesh):
        if not snapshot.header.one_grid:
            raise InputError(
                "search over devices: expected the Euclidean distance, got "
                f"{snapshot.header.distance!r}; search it on one device"
            )
        self.asked = query_streams(direction)[1]
        snapshot = snapshot.with_stream(self.asked)
        self.snapshot, self.direction, self.mesh = snapshot, direction, mesh
        lengths = {
            int(steps)
            for number, segment in snapshot.segments.items()
            for steps in np.unique(segment.streams[self.asked].rows["steps"][snapshot.live[number]])
        }
        self._by_length = [self._put(steps) for steps in sorted(lengths)]

    def _put(self, steps: int) -> OnDevices:
        parts, places = [], []
        for number, segment in self.snapshot.segments.items():
            stream = segment.streams[self.asked]
            for run in stream.runs():
                rows = run.start + np.flatnonzero(self.snapshot.live[number][run])
                if int(stream.rows["steps"][run.start]) != steps or not len(rows):
                    continue
                about = stream.rows[rows]
                near = about["bank_near"] if self.snapshot.header.bank else np.zeros(len(rows))
                values = stream.gather("values", run, rows)
                parts.append((values, about["square"], about["scale"], near))
                places.append(np.stack([np.full(len(rows), number), rows], axis=1))
        stored, squares, *about = (np.concatenate(column) for column in zip(*parts, strict=True))
        of_bank = float(about[1].max())
        largest, padding = float(squares.max()), -len(stored) % self.mesh.size
        stored = np.concatenate([stored, np.zeros((padding, stored.shape[1]), stored.dtype)])
        squares = np.concatenate([squares, np.full(padding, np.inf)]).astype(np.float32)
        about = [np.concatenate([one, np.ones(padding)]).astype(np.float32) for one in about]
        arrays = jax.device_put((stored, squares, *about), batch_sharded(self.mesh))
        return OnDevices(steps, arrays, np.concatenate(places), largest, of_bank)

    def search(self, queries: Embedded, k: int) -> Found:
        """The k nearest of each query: what `sequence` and `exact` find on one machine."""
        asked = searching.search(self.snapshot, queries, self.direction, k, "sequence", self)
        return asked[0]

    def nearest(self, asking: Queries, k: int) -> tuple:
        """(query, segment, row, score) by query and rank."""
        scan, waiting = Scan(asking, self.snapshot), None
        nearest = scan.nearest(k)
        for candidates in self._by_length:
            for grid in scan.grids(candidates.steps):
                if grid.steps != candidates.steps:
                    # Candidates of another length are brought to the queries' grid on the host.
                    for tile in scan.tiles():
                        if tile.steps == candidates.steps:
                            scan.compare_tile(tile, nearest, grid)
                    continue
                rows = MATRIX_BYTES * self.mesh.size // (4 * len(candidates.places))
                rows = max(min(rows, QUERIES), 1)
                for begin in range(0, len(grid.numbers), rows):
                    offer = self._start(scan, grid, slice(begin, begin + rows), candidates, k)
                    if waiting:
                        waiting(nearest)
                    waiting = offer
        if waiting:
            waiting(nearest)
        *places, squares = scan.best(nearest)
        return *places, self.snapshot.header.score_of(squares)

    def _start(
        self, scan: Scan, grid: QueriesOnGrid, part: slice, candidates: OnDevices, k: int
    ) -> Callable[[NearestSoFar], None]:
        """Some queries, under way: what waits for their nearest and offers these."""
        own, numbers = grid.squares[part], grid.numbers[part]
        asking = put_replicated((grid.values[part], own.astype(np.float32)), self.mesh)
        most = len(candidates.arrays[1]) // self.mesh.size
        kept = min(k + SLACK, most)

        def ask(kept: int) -> tuple:
            with jax.enable_x64(True):
                return _nearest(self.mesh, kept)(*asking, *candidates.arrays)

        def offer(nearest: NearestSoFar) -> None:
            distances, rows, squares = found
            errors = self._errors(own, grid.values.shape[1], candidates)
            many = kept
            while many < most and not _are_all(distances, errors, many, k):
                many = min(2 * many, most)
                distances, rows, squares = ask(many)
            query, column = np.nonzero(np.isfinite(distances))
            places = candidates.places[np.asarray(rows)[query, column]]
            squares = np.asarray(squares)[query, column]
            pairs = numbers[query], *places.T
            scores = scan.final(squares.astype(np.float32), *pairs[1:])
            unsure = ~products.certain(squares, grid.values.shape[1])
            scores[unsure] = scan.scores(*(one[unsure] for one in pairs))
            nearest.offer_pairs(
                pairs[0], scores.astype(np.float64), np.zeros(len(scores)), *pairs[1:]
            )

        found = ask(kept)
        return offer

    def _errors(self, own, count: int, candidates: OnDevices) -> Float[np.ndarray, " Q"]:
        """How far products on devices are from the final scores at most, of each query."""
        squares = (own + candidates.largest) / count
        errors = products.rounding(count) * squares
        if candidates.of_bank:  # the device rounds what it takes off
            errors = errors + 2.0**-21 * (squares + candidates.of_bank)
        return errors


def _are_all(distances, errors: Float[np.ndarray, " Q"], kept: int, k: int) -> bool:
    """Whether what devices kept, so many each, are all that can be among the k nearest."""
    distances = np.asarray(distances)
    high = np.sort(distances, axis=1)[:, min(k, distances.shape[1]) - 1]
    last = distances.reshape(len(errors), -1, kept)[:, :, -1]
    return bool((last - errors[:, None] > (high + errors)[:, None]).all())


def accelerators() -> list[jax.Device]:
    """The devices of this process that are no CPU."""
    return [device for device in jax.local_devices() if device.platform != "cpu"]


def have_room(snapshot: Snapshot, direction: str) -> bool:
    """Whether the asked stream fits on the accelerators of this process.

    False where there are none, or for a distance that is not the Euclidean.
    """
    devices = accelerators()
    if not devices or not snapshot.header.one_grid:
        return False
    asked = query_streams(direction)[1]
    streams = [one.streams[asked] for one in snapshot.segments.values() if asked in one.streams]
    steps = sum(int(one.rows["steps"].sum(dtype=np.int64)) for one in streams)
    needed = steps * snapshot.header.width * NUMBER_BYTES
    return needed <= SHARE * sum(map(_free_bytes, devices))


def _free_bytes(device: jax.Device) -> int:
    """Of its memory; 0 where it does not say."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)


@cache
def _nearest(mesh, kept: int):
    """The `kept` nearest candidates of each device, where they are among all, and final scores."""

    def local(queries, own, stored, squares, scales, near):
        inner, count = products.jax_inner(queries, stored), queries.shape[1]
        distances = own[:, None] + squares[None, :] - 2.0 * scales[None, :] * inner
        distances = distances / count - 0.5 * near[None]
        nearest, rows = jax.lax.top_k(-distances, kept)

        def final(pair):
            query, row = pair
            values = stored[row].astype(np.float32) * scales[row]
            apart = values.astype(np.float64) - queries[query].astype(np.float64)
            return (apart * apart).sum() / count

        pairs = jnp.arange(rows.size) // kept, rows.reshape(-1)
        finals = jax.lax.map(final, pairs, batch_size=max(DOUBLES // count, 1))
        first = jax.lax.axis_index(mesh.axis_names[0]) * len(stored)
        return -nearest, rows + first.astype(rows.dtype), finals.reshape(rows.shape)

    return jax.jit(map_shards(local, mesh, shared=2, cut=4))
