"""Search over devices: every device has a part of the candidates, and the best of all are merged.

Devices say which candidates are near enough, with more than k each; that these are all is proven
by the bound on rounding, else more are asked for. Their final scores are computed as on one
machine, so ids and scores are the same for any number of devices.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scav_jax.embed import Embedded
from scav_jax.errors import InputError
from scav_jax.index import products
from scav_jax.index.cosine import ranked
from scav_jax.index.grids import queries_of, query_streams
from scav_jax.index.running import Running
from scav_jax.index.scan import Scan
from scav_jax.index.searching import Found
from scav_jax.index.segments import Segment
from scav_jax.sharding import batch_sharded, map_shards, put_replicated

SLACK = 8  # candidates of each device beyond k
MATRIX_BYTES = 2**28  # of distances on one device


class OnMesh:
    """The asked stream of a snapshot, on the devices of a mesh."""

    def __init__(self, header, segments: dict[int, Segment], live: dict, direction: str, mesh):
        if not header.one_grid:
            raise InputError(
                f"search over devices: expected the Euclidean distance, got {header.distance!r}; "
                "search it on one device, or over parts"
            )
        self.header, self.segments, self.live = header, segments, live
        self.direction, self.mesh = direction, mesh
        self.asked = query_streams(direction)[1]
        self._blocks = [self._put(steps) for steps in self._lengths()]

    def _lengths(self) -> list[int]:
        found = {
            int(steps)
            for number, segment in self.segments.items()
            for steps in np.unique(segment.streams[self.asked].rows["steps"][self.live[number]])
        }
        return sorted(found)

    def _put(self, steps: int):
        """All candidates of one length: what is stored, cut over the devices."""
        parts, places = [], []
        for number, segment in self.segments.items():
            stream = segment.streams[self.asked]
            for run in stream.runs():
                if int(stream.rows["steps"][run.start]) != steps:
                    continue
                rows = run.start + np.flatnonzero(self.live[number][run])
                if not len(rows):
                    continue
                about = stream.rows[rows]
                parts.append((stream.gather("values", run, rows), about["square"], about["scale"]))
                places.append(np.stack([np.full(len(rows), number), rows], axis=1))
        stored, squares, scales = (np.concatenate(column) for column in zip(*parts, strict=True))
        padding = -len(stored) % self.mesh.size
        stored = np.concatenate([stored, np.zeros((padding, stored.shape[1]), stored.dtype)])
        squares = np.concatenate([squares, np.full(padding, np.inf)]).astype(np.float32)
        scales = np.concatenate([scales, np.ones(padding, np.float32)])
        arrays = jax.device_put((stored, squares, scales), batch_sharded(self.mesh))
        return steps, arrays, np.concatenate(places)

    def search(self, queries: Embedded, k: int) -> Found:
        """The k nearest of each query: what `sequence` and `exact` find on one machine."""
        asking = queries_of(queries, self.direction, self.header)
        scan = Scan(asking, self.asked, self.segments, self.live)
        running = Running(len(asking), k)
        for steps, arrays, places in self._blocks:
            centre = np.asarray(next(iter(self.segments.values())).centre)
            for grid in scan.grids(steps, centre):
                if grid.steps != steps:
                    self._stretched(scan, steps, grid, running)
                    continue
                rows = max(MATRIX_BYTES * self.mesh.size // (4 * len(places)), 1)
                for begin in range(0, len(grid.numbers), rows):
                    part = slice(begin, begin + rows)
                    self._offer(grid, part, arrays, places, running)
        query, segment, row = running.candidates()
        scores = scan.scores(query, segment, row)
        return Found(*ranked(query, segment, row, scores, self.segments, k))

    def _stretched(self, scan: Scan, steps: int, grid, running: Running) -> None:
        """Candidates of another length than the queries are brought to their grid on the host."""
        wanted = np.zeros(len(scan.queries), bool)
        wanted[grid.numbers] = True
        for tile in scan.tiles():
            if tile.steps == steps:
                scan.dense(tile, running, wanted)

    def _offer(self, grid, part: slice, arrays, places, running: Running) -> None:
        values, own = grid.values[part], grid.squares[part]
        largest = float(np.max(np.where(np.isfinite(arrays[1]), arrays[1], 0)))
        count = values.shape[1]
        errors = products.rounding(count, self.header.width) * (own + largest) / count
        asking = put_replicated((values, own.astype(np.float32)), self.mesh)
        most = len(arrays[1]) // self.mesh.size
        kept = min(running.k + SLACK, most)
        while True:
            near = _nearest(self.mesh, kept)(*asking, *arrays)
            distances, rows = (np.asarray(one) for one in near)
            high = np.sort(distances, axis=1)[:, min(running.k, distances.shape[1]) - 1]
            last = distances.reshape(len(own), self.mesh.size, kept)[:, :, -1]
            # A device whose last candidate may be among the k may have more of them.
            if kept == most or (last - errors[:, None] > (high + errors)[:, None]).all():
                break
            kept = min(2 * kept, most)
        query, column = np.nonzero(np.isfinite(distances))
        found, near = places[rows[query, column]], distances[query, column].astype(np.float64)
        for number in np.unique(found[:, 0]):
            own_rows = found[:, 0] == number
            running.pairs(
                grid.numbers[part][query[own_rows]],
                near[own_rows],
                errors[query[own_rows]],
                int(number),
                found[own_rows, 1],
            )


@cache
def _nearest(mesh, kept: int):
    """The `kept` nearest candidates of each device, and where they are among all."""

    def local(queries, own, stored, squares, scales):
        distances = _distances(queries, own, stored, squares, scales)
        nearest, rows = jax.lax.top_k(-distances, kept)
        first = jax.lax.axis_index(mesh.axis_names[0]) * len(stored)
        return -nearest, rows + first.astype(rows.dtype)

    return jax.jit(map_shards(local, mesh, shared=2, cut=3))


def _distances(
    queries: Float[Array, "Q n"],
    own: Float[Array, " Q"],
    stored: Array,
    squares: Float[Array, " r"],
    scales: Float[Array, " r"],
) -> Float[Array, "Q r"]:
    """Mean squared distances, summed piece by piece as `products` says."""
    total = jnp.zeros((len(queries), len(stored)), jnp.float32)
    multiply = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    for begin in range(0, queries.shape[1], products.PIECE):
        piece = slice(begin, begin + products.PIECE)
        total += multiply(queries[:, piece], stored[:, piece].astype(jnp.float32).T)
    squared = own[:, None] + squares[None, :] - 2.0 * scales[None, :] * total
    return squared / queries.shape[1]
