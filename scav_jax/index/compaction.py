"""Compaction: live rows of segments that are small or have dead rows, together in new ones."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from scav_jax.index import segments
from scav_jax.index.layout import SEGMENT_BYTES, STREAMS
from scav_jax.index.rows import Rows, schema
from scav_jax.index.segments import Segment

Live = dict[int, np.ndarray]  # which rows of each segment are live


def rewrite(
    path: Path,
    storage: str,
    rows: Rows,
    mapped: dict[int, Segment],
    live: Live,
    first: int,
) -> None:
    """Writes what is worth moving into new segments, and says so in one commit.

    Args:
      path: of the index.
      storage: of its sequences.
      rows: the table.
      mapped, live: all segments, and which of their rows are live.
      first: number of the first new segment.
    """
    moving = [one for one in mapped if _worth_moving(one, mapped, live)]
    if not moving:
        return
    moved = {}
    for number, sources in enumerate(_batches(moving, mapped, live), first):
        copied = _copy(path, storage, {n: mapped[n] for n in sources}, live, number)
        for place, (segment, row) in enumerate(copied):
            moved[segment, row] = (number, place)
    rows.overwrite(_moved(rows, moved))


def _worth_moving(number: int, mapped: dict[int, Segment], live: Live) -> bool:
    alone = len(mapped) == 1
    return not live[number].all() or (not alone and mapped[number].bytes < SEGMENT_BYTES)


def _batches(moving: list[int], mapped: dict[int, Segment], live: Live) -> Iterator[list[int]]:
    """Segments that become one."""
    batch, size = [], 0
    for number in moving:
        share = live[number].mean() * mapped[number].bytes
        if batch and size + share > 2 * SEGMENT_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(number)
        size += share
    yield batch


def _copy(
    path: Path, storage: str, sources: dict[int, Segment], live: Live, number: int
) -> list[tuple[int, int]]:
    """Writes live rows of some segments as one, sorted by length, then key; where they were."""
    places = np.concatenate(
        [
            np.stack([np.full(int(live[n].sum()), n), np.flatnonzero(live[n])], axis=1)
            for n in sources
        ]
    )
    steps = {
        name: np.concatenate(
            [one.streams[name].rows["steps"][live[n]] for n, one in sources.items()]
        )
        for name in STREAMS
    }
    keys = np.concatenate([one.keys[live[n]] for n, one in sources.items()])
    order = np.lexsort((keys, steps["visual"], steps["audio"]))
    places = places[order]
    streams = {name: segments.copied(sources, name, places, steps[name][order]) for name in STREAMS}
    first = next(iter(sources.values()))
    centre = np.asarray(first.centre)
    segments.write_segment(path, number, streams, keys[order], centre, storage, first.basis)
    return [(int(segment), int(row)) for segment, row in places]


def _moved(rows: Rows, moved: dict[tuple[int, int], tuple[int, int]]) -> Iterator:
    """The table with the new places."""
    import pyarrow as pa

    for batch in rows.tables():
        old = zip(batch.column("segment").to_pylist(), batch.column("row").to_pylist(), strict=True)
        new = [moved.get(place, place) for place in old]
        columns = {name: batch.column(name) for name in batch.schema.names}
        columns["segment"] = pa.array([place[0] for place in new], pa.int32())
        columns["row"] = pa.array([place[1] for place in new], pa.int32())
        yield pa.RecordBatch.from_pydict(columns, schema=schema())
