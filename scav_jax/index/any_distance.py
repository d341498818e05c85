"""Search by distances that are no product of matrices: blocks of pairs through `pairwise`."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from scav_jax.distances import pairwise
from scav_jax.index.grids import Queries
from scav_jax.index.layout import Header
from scav_jax.index.running import Running
from scav_jax.index.segments import Segment
from scav_jax.index.storage import widen
from scav_jax.sequences import Sequences

ROWS = 256  # candidates at a time
QUERIES = 32


@functools.cache
def _matrix(name: str, options: tuple) -> Callable:
    return jax.jit(functools.partial(pairwise, name, **dict(options)))


def _sequences(segment: Segment, asked: str, rows: Int[np.ndarray, " r"], steps: int, count: int):
    """Stored sequences, padded to `steps` steps and `count` rows (the last one again)."""
    stream, width = segment.streams[asked], segment.width
    lengths = np.asarray(stream.rows["steps"][rows], np.int32)
    values = np.zeros((count, steps, width), np.float32)
    for place, (row, length) in enumerate(zip(rows.tolist(), lengths.tolist(), strict=True)):
        stored = widen(stream.read("values", slice(row, row + 1))[0])
        sequence = (stored * stream.rows["scale"][row]).reshape(length, width) + segment.centre
        values[place, :length] = sequence
    values[len(rows) :] = values[len(rows) - 1]
    lengths = np.concatenate([lengths, np.repeat(lengths[-1:], count - len(rows))])
    return _whole(values, lengths)


def _whole(values: np.ndarray, lengths: np.ndarray) -> Sequences:
    windows = np.stack([np.zeros(len(lengths)), lengths], axis=1).astype(np.float32)
    return Sequences(values, lengths.astype(np.int32), windows)


def _distances(header: Header, asking: Sequences, asked: Sequences, v2a: bool) -> np.ndarray:
    compute = _matrix(header.distance, tuple(sorted(header.options.items())))
    asking, asked = jax.tree.map(jnp.asarray, (asking, asked))
    return np.asarray(compute(asking, asked) if v2a else compute(asked, asking).T)


def longest(segments: dict[int, Segment], asked: str) -> int:
    """Steps of the longest stored sequence: what all are padded to."""
    return max(int(one.streams[asked].rows["steps"].max()) for one in segments.values())


def evaluate(
    queries: Queries,
    asked: str,
    segments: dict[int, Segment],
    chosen: dict[int, Int[np.ndarray, " n"]],
    header: Header,
    running: Running,
    numbers: Int[np.ndarray, " Q"],
) -> None:
    """Offers chosen rows of each segment to some queries.

    Blocks have one shape, so there is one program, and a pair's distance does not depend on how
    many others are asked for.
    """
    steps = longest(segments, asked)
    of_queries = queries.sequences
    for number, rows in chosen.items():
        for begin in range(0, len(rows), ROWS):
            part = rows[begin : begin + ROWS]
            candidates = _sequences(segments[number], asked, part, steps, ROWS)
            for first in range(0, len(numbers), QUERIES):
                asking = numbers[first : first + QUERIES]
                filled = np.concatenate([asking, np.repeat(asking[-1:], QUERIES - len(asking))])
                values = of_queries.values[filled].astype(np.float32)
                sequences = _whole(values, of_queries.lengths[filled])
                distances = _distances(header, sequences, candidates, queries.stream == "visual")
                distances = distances[: len(asking), : len(part)]
                none = np.zeros(len(asking))
                running.offer(asking, np.ascontiguousarray(distances), none, number, part)


def scored(running: Running) -> tuple[np.ndarray, ...]:
    """(query, segment, row, distance) of what was kept: the distances are final."""
    query, segment, row = running.candidates()
    return query, segment, row, running.distances().astype(np.float32)
