"""An index: create, open, add, delete, compact, search."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from scav_jax.embed import Embedded
from scav_jax.errors import InputError
from scav_jax.index import layout, lock, searching, segments
from scav_jax.index.grids import stored_sequences
from scav_jax.index.layout import STREAMS
from scav_jax.index.rows import Rows, live_rows, schema
from scav_jax.index.segments import DamagedRow, Segment
from scav_jax.index.sketches import Basis
from scav_jax.sequences import Sequences

SEGMENT_BYTES = 2**28  # of one stream's sequences in one segment, about
SHOWN = 5
DUPLICATES = ("refuse", "replace", "skip")


@dataclass(frozen=True)
class Hit:
    """One clip that was found.

    Attributes:
      id: the clip.
      source: its file.
      start, end: where it is in the file, in seconds.
      label: its class, or "".
      score: a distance (smaller is closer), or for aggregation a cosine (larger is closer).
      rank: from 1.
    """

    id: str
    source: str
    start: float
    end: float
    label: str
    score: float
    rank: int


def create(
    path: str | Path,
    *,
    identity: str,
    distance: tuple[str, dict] = ("euclidean", {}),
    storage: str = "float32",
) -> "Index":
    """A new, empty index.

    Args:
      path: where nothing is, or an empty folder.
      identity: of the model whose latents it will hold; queries must agree with it.
      distance: (name, options) in retrieval form.
      storage: of sequences: "float32", "bfloat16" (half) or "int8" (a quarter).

    Raises:
      InputError: something is there, an unknown distance or storage, or lancedb is missing.
    """
    path = Path(path)
    header = layout.make_header(identity, distance, storage)
    begun = {layout.LOCK, layout.SEGMENTS, f"{layout.TABLE}.lance"}  # of a create that was killed
    if path.exists() and (not path.is_dir() or {one.name for one in path.iterdir()} - begun):
        raise InputError(f"{path}: expected a path where nothing is; remove it or use another")
    path.mkdir(parents=True, exist_ok=True)
    with lock.writing(path):
        (path / layout.SEGMENTS).mkdir(exist_ok=True)
        Rows.create(path)
        layout.write_header(path, header)  # last: without it there is no index
        layout.sync_folder(path)
    return open_index(path)


def open_index(path: str | Path, identity: str | None = None) -> "Index":
    """An index as it is now; it stays so until `refresh`, whatever a writer does meanwhile.

    Args:
      path: its folder.
      identity: of the model that will ask; None does not look.

    Raises:
      InputError: no index there, one of another model, or a damaged one.
    """
    path = Path(path)
    header = layout.read_header(path)
    if identity is not None and identity != header.identity:
        raise InputError(
            f"{path}: expected an index of the model {identity}, it was built with "
            f"{header.identity}; search with that model or build the index again"
        )
    return Index(path, header)


class Index:
    """An index on disk: a snapshot to search, and the writer's operations.

    Attributes:
      path: its folder.
      header: what its clips have in common.
      report: of the last search.
    """

    def __init__(self, path: Path, header: layout.Header):
        self.path, self.header = path, header
        self.report = searching.Report("")
        self._rows = Rows.open(path)
        self.refresh()

    def __len__(self) -> int:
        return sum(int(live.sum()) for live in self._live.values())

    def refresh(self) -> None:
        """Goes to the newest committed state."""
        for attempt in range(5):  # a compaction may take segments away in between
            self._rows.latest()
            self._rows.hold()
            try:
                self._map_segments()
            except FileNotFoundError:
                if attempt == 4:
                    raise
                continue
            break
        self.header = layout.read_header(self.path)

    def _map_segments(self) -> None:
        sizes = _Sizes(self.path)
        self._live = live_rows(self._rows.places(), sizes)
        self._segments = {number: sizes.segments[number] for number in self._live}

    # -- writing ----------------------------------------------------------------------------------

    def add(self, embedded: Embedded, on_duplicate: str = "refuse") -> int:
        """Adds clips, all or none; they are durable when this returns.

        Args:
          embedded: latents of both streams, by the model of the index.
          on_duplicate: what happens with ids that are there: "refuse" adds nothing, "replace"
            takes the new ones, "skip" keeps the old ones.

        Returns:
          How many were added.

        Raises:
          InputError: duplicate ids, latents of another width, NaN, or another writer.
          OSError: the disk is full; the index is as it was.
        """
        if on_duplicate not in DUPLICATES:
            raise InputError(f"on_duplicate: expected one of {DUPLICATES}, got {on_duplicate!r}")
        with self._writing():
            embedded = self._new(embedded, on_duplicate)
            if len(embedded.ids):
                self._add(embedded, on_duplicate == "replace")
        self.refresh()
        return len(embedded.ids)

    def _new(self, embedded: Embedded, on_duplicate: str) -> Embedded:
        """What is to be added; an error where that is refused."""
        ids = list(embedded.ids)
        twice = {one for one in ids if ids.count(one) > 1} if len(set(ids)) < len(ids) else set()
        if twice:
            raise InputError(f"ids must be unique, these came twice: {_named(sorted(twice))}")
        there = set() if on_duplicate == "replace" else set(self._rows.existing(ids))
        if there and on_duplicate == "refuse":
            raise InputError(
                f"{self.path}: expected new ids, {len(there)} of {len(ids)} are there already: "
                f"{_named([one for one in ids if one in there])}; nothing was added, use "
                'on_duplicate="replace" (--replace) to take the new ones'
            )
        return take(embedded, [number for number, one in enumerate(ids) if one not in there])

    def _add(self, embedded: Embedded, replacing: bool) -> None:
        streams = stored_sequences(embedded, self.header)
        _check_streams(embedded, streams, self.header)
        centre = self._centre(streams)
        basis = self._basis(streams, centre)
        key = 1 + max(
            (int(one.keys.max(initial=-1)) for one in self._segments.values()), default=-1
        )
        number = self._next_segment()
        if not self.header.width:
            self.header = replace(self.header, width=len(centre))
            layout.write_header(self.path, self.header)
        order = np.lexsort((streams["visual"].lengths, streams["audio"].lengths))
        written, table = [], []
        try:
            for part in self._split(order, streams):
                about = self._write(number, part, streams, embedded, centre, key, basis)
                written.append(number)
                table.append(about)
                number += 1
            rows = _arrow(embedded, np.concatenate([one[0] for one in table]), key, table)
            (self._rows.replace if replacing else self._rows.add)(rows)
        except BaseException:
            self._rows.latest()
            used = {int(n) for part in self._rows.places() for n in np.unique(part[:, 0])}
            segments.sweep(self.path, used)
            raise
        _sync_table(self.path)

    def _split(self, order: np.ndarray, streams: dict[str, Sequences]) -> list[np.ndarray]:
        """Rows by segment: of about `SEGMENT_BYTES`."""
        steps = np.maximum(*(np.asarray(stream.lengths)[order] for stream in streams.values()))
        sizes = np.cumsum(steps.astype(np.int64)) * self.header.width * 4
        return [
            part for part in np.split(order, np.flatnonzero(np.diff(sizes // SEGMENT_BYTES)) + 1)
        ]

    def _write(self, number, part, streams, embedded, centre, first_key, basis):
        encoded = {}
        for name in STREAMS:
            lengths = np.asarray(streams[name].lengths)[part]
            edges = np.concatenate([[0], np.flatnonzero(np.diff(lengths)) + 1, [len(part)]])
            runs = [part[a:b] for a, b in itertools.pairwise(edges)]
            units = getattr(embedded, f"{name}_embeddings")
            encoded[name] = segments.join(
                [
                    segments.encode_run(
                        np.asarray(streams[name].values)[run, : int(streams[name].lengths[run[0]])],
                        np.asarray(units)[run],
                        self.header.storage,
                        centre,
                        basis,
                    )
                    for run in runs
                ]
            )
        segments.write_segment(
            self.path, number, encoded, first_key + part, centre, self.header.storage, basis
        )
        checksums = [encoded[name].rows["checksum"] for name in STREAMS]
        return part, np.full(len(part), number), np.arange(len(part)), *checksums

    def _centre(self, streams: dict[str, Sequences]) -> Float[np.ndarray, " C"]:
        """What is taken off before rounding: of the clips that came first, for all that follow."""
        for segment in self._segments.values():
            return np.asarray(segment.centre)
        width = np.asarray(streams["audio"].values).shape[2]
        if self.header.storage == "float32":
            return np.zeros(width, np.float32)
        total, steps = np.zeros(width), 0
        for stream in streams.values():
            for values, length in zip(stream.values, stream.lengths, strict=True):
                total += np.sum(values[: int(length)], axis=0, dtype=np.float64)
                steps += int(length)
        return (total / steps).astype(np.float32)

    def _basis(self, streams: dict[str, Sequences], centre) -> Basis | None:
        """What sketches are coefficients of, by the clips that came first, as the centre."""
        for segment in self._segments.values():
            return segment.basis
        return Basis.of(streams, centre) if self.header.one_grid else None

    def _next_segment(self) -> int:
        return 1 + max(segments.segment_numbers(self.path), default=-1)

    def delete(self, ids: Sequence[str]) -> int:
        """Deletes clips, all or none; `compact` frees their bytes.

        Raises:
          InputError: ids that are not there, or another writer.
        """
        ids = list(dict.fromkeys(ids))
        with self._writing():
            there = set(self._rows.existing(ids))
            if len(there) < len(ids):
                missing = [one for one in ids if one not in there]
                raise InputError(
                    f"{self.path}: expected ids of the index, {len(missing)} of {len(ids)} are not "
                    f"there: {_named(missing)}; nothing was deleted"
                )
            if ids:
                self._rows.delete(ids)
                _sync_table(self.path)
        self.refresh()
        return len(ids)

    def compact(self) -> dict:
        """Writes what is live together, and frees what is not.

        Readers that have the index open keep what they see.

        Returns:
          `bytes_before`, `bytes_after`, and the `swept` segments that no row named.
        """
        with self._writing():
            before = _bytes(self.path)
            with self._naming():
                self._rewrite()
            _sync_table(self.path)
            self.refresh()
            swept = segments.sweep(self.path, set(self._segments))
            self._rows.latest()
            self._rows.clean()
        self.refresh()
        return {"bytes_before": before, "bytes_after": _bytes(self.path), "swept": swept}

    def _rewrite(self) -> None:
        """Live rows of segments that are small or have dead rows, in new segments; one commit."""
        moving = [n for n, one in self._segments.items() if self._worth_moving(n, one)]
        if not moving:
            return
        moved, number = {}, self._next_segment()
        for sources in self._batches(moving):
            rows = self._copy(sources, number)
            for place, (segment, row) in enumerate(rows):
                moved[segment, row] = (number, place)
            number += 1
        self._rows.overwrite(_moved(self._rows, moved))

    def _worth_moving(self, number: int, segment: Segment) -> bool:
        live = self._live[number]
        alone = len(self._segments) == 1
        return not live.all() or (not alone and segment.bytes < SEGMENT_BYTES)

    def _batches(self, moving: list[int]) -> Iterator[list[int]]:
        """Segments that become one."""
        batch, size = [], 0
        for number in moving:
            share = self._live[number].mean() * self._segments[number].bytes
            if batch and size + share > 2 * SEGMENT_BYTES:
                yield batch
                batch, size = [], 0
            batch.append(number)
            size += share
        yield batch

    def _copy(self, sources: list[int], number: int) -> list[tuple[int, int]]:
        """Writes live rows of some segments as one, sorted by length, then key."""
        places = np.concatenate(
            [
                np.stack([np.full(int(live.sum()), n), np.flatnonzero(live)], axis=1)
                for n in sources
                for live in [self._live[n]]
            ]
        )
        steps = {
            name: np.concatenate(
                [self._segments[n].streams[name].rows["steps"][self._live[n]] for n in sources]
            )
            for name in STREAMS
        }
        keys = np.concatenate([self._segments[n].keys[self._live[n]] for n in sources])
        order = np.lexsort((keys, steps["visual"], steps["audio"]))
        places = places[order]
        streams = {
            name: segments.copied(self._segments, name, places, steps[name][order])
            for name in STREAMS
        }
        first = self._segments[sources[0]]
        segments.write_segment(
            *(self.path, number, streams, keys[order], np.asarray(first.centre)),
            *(self.header.storage, first.basis),
        )
        return [(int(segment), int(row)) for segment, row in places]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with lock.writing(self.path):
            self.refresh()
            self._rows.latest()
            yield

    # -- reading ----------------------------------------------------------------------------------

    def search(
        self,
        queries: Embedded,
        direction: str = "a2v",
        k: int = 10,
        retrieval: str = "exact",
        where: str | None = None,
    ) -> list[list[Hit]]:
        """The k nearest clips of each query, nearest first; fewer where there are fewer.

        Args:
          queries: embedded by the model of the index; the stream that asks is enough.
          direction: "a2v": sounds ask for videos; "v2a": videos ask for sounds.
          k: how many.
          retrieval: "aggregation" (cosine of embeddings), "sequence" (all sequences are compared),
            "exact" (the same result, what cannot be near is left out) or "hybrid:K" (the sequences
            of the K nearest by cosine).
          where: a condition on id, source, start, end and label, as in SQL.

        Raises:
          InputError: see each argument; or a damaged row, with the clip's id.
        """
        live = self._live_where(where)
        mapped = {number: self._segments[number] for number in live}
        with self._naming():
            found, self.report = searching.search(
                self.header, mapped, live, queries, direction, k, retrieval
            )
        return self.hits_of(found, len(queries.ids))

    def on_mesh(self, mesh, direction: str):
        """The sequences on the devices of a mesh; `hits_of` reads what its `search` finds."""
        from scav_jax.index.mesh import OnMesh

        with self._naming():
            return OnMesh(self.header, self._segments, self._live, direction, mesh)

    def search_parts(
        self,
        parts: int,
        queries: Embedded,
        direction: str = "a2v",
        k: int = 10,
        retrieval: str = "sequence",
        only: Sequence[int] | None = None,
    ) -> list[searching.Found]:
        """What each part of the index finds alone, as processes or machines would divide it.

        Args:
          parts: how many.
          queries, direction, k, retrieval: see `search`.
          only: the parts that this process searches; None is all.

        Returns:
          Results of the parts; `merge_parts` makes one of them, equal to `search`.
        """
        found = []
        for part in range(parts) if only is None else only:
            live = {n: _every(one, part, parts) for n, one in self._live.items()}
            with self._naming():
                one, self.report = searching.search(
                    self.header, self._segments, live, queries, direction, k, retrieval
                )
            found.append(one)
        return found

    def merge_parts(self, found: Sequence[searching.Found], queries: int, k: int = 10):
        """The k best of what parts found, as hits of each query."""
        columns = [
            np.concatenate([getattr(one, name) for one in found])
            for name in ("query", "segment", "row", "score")
        ]
        similar = -1 if self.report.method == "aggregation" else 1
        query, segment, row, score = searching.ranked(
            *columns[:3], similar * columns[3], self._segments, k
        )
        return self.hits_of(searching.Found(query, segment, row, similar * score), queries)

    def _live_where(self, where: str | None) -> dict[int, np.ndarray]:
        if where is None:
            return self._live
        sizes = {number: len(segment) for number, segment in self._segments.items()}
        return live_rows(self._rows.places(where), sizes)

    def hits_of(self, found: searching.Found, queries: int) -> list[list[Hit]]:
        """What was found, with what is known of each clip."""
        about = self._rows.at(np.stack([found.segment, found.row], axis=1).astype(np.int64))
        hits: list[list[Hit]] = [[] for _ in range(queries)]
        for query, segment, row, score in zip(
            found.query.tolist(),
            found.segment.tolist(),
            found.row.tolist(),
            found.score.tolist(),
            strict=True,
        ):
            clip = about[segment, row]
            named = {name: clip[name] for name in ("id", "source", "start", "end", "label")}
            hits[query].append(Hit(**named, score=score, rank=len(hits[query]) + 1))
        return hits

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        """Puts the clip's id into the message of a damaged row."""
        try:
            yield
        except DamagedRow as error:
            place = np.asarray([[error.number, error.row]])
            clips = [row["id"] for row in self._rows.at(place).values()]
            raise InputError(error.words(clips[0] if clips else "?")) from error

    def ids(self) -> list[str]:
        """All clips."""
        return [one for batch in self._rows.tables() for one in batch.column("id").to_pylist()]

    def verify(self) -> int:
        """Reads everything and compares it with its checksums; the number of clips.

        Raises:
          InputError: the first row that differs, by name.
        """
        with self._naming():
            for number, segment in self._segments.items():
                for stream in segment.streams.values():
                    stream.forget_checks()
                    segments.check_all(stream, self._live[number])
        return len(self)

    def info(self) -> dict:
        """What the index holds and how large it is."""
        rows = sum(len(segment) for segment in self._segments.values())
        orphans = set(segments.segment_numbers(self.path)) - set(self._segments)
        return {
            "path": str(self.path),
            "clips": len(self),
            "deleted": rows - len(self),
            "version": self._rows.version,
            "segments": len(self._segments),
            "orphan_segments": len(orphans),
            "bytes": _bytes(self.path),
            "identity": self.header.identity,
            "distance": self.header.distance,
            "options": self.header.options,
            "storage": self.header.storage,
            "width": self.header.width,
        }


class _Sizes(dict):
    """How many rows a segment has, mapping it when that is first asked."""

    def __init__(self, path: Path):
        self.path, self.segments = path, {}

    def __missing__(self, number: int) -> int:
        self.segments[number] = Segment(self.path, number)
        self[number] = len(self.segments[number])
        return self[number]


def take(embedded: Embedded, chosen: list[int]) -> Embedded:
    """Some of the clips."""
    if len(chosen) == len(embedded.ids):
        return embedded

    def part(value):
        if isinstance(value, Sequences):
            return Sequences(*(np.asarray(leaf)[chosen] for leaf in
                               (value.values, value.lengths, value.windows)))  # fmt: skip
        if isinstance(value, list):
            return [value[number] for number in chosen]
        return None if value is None else np.asarray(value)[chosen]

    names = ("ids", "sources", "starts", "ends", "labels", "visual", "audio")
    names += ("visual_embeddings", "audio_embeddings")
    return replace(embedded, **{name: part(getattr(embedded, name)) for name in names})


def _check_streams(embedded: Embedded, streams: dict[str, Sequences], header) -> None:
    widths = {np.asarray(stream.values).shape[2] for stream in streams.values()}
    if len(widths) > 1 or (header.width and widths != {header.width}):
        raise InputError(
            f"expected latents of width {header.width or 'one'}, got {sorted(widths)}; embed them "
            "with the model of the index"
        )
    for name, stream in streams.items():
        values, lengths = np.asarray(stream.values), np.asarray(stream.lengths)
        real = np.arange(values.shape[1]) < lengths[:, None]
        good = (np.isfinite(values).all(axis=2) | ~real).all(axis=1)
        if not good.all() or (lengths < 1).any():
            bad = int(np.flatnonzero(~good | (lengths < 1))[0])
            raise InputError(
                f"clip {embedded.ids[bad]!r}: expected finite {name} latents of at least a step, "
                "got NaN, infinity or none; nothing was added"
            )


def _arrow(embedded: Embedded, order: np.ndarray, key: int, table: list) -> object:
    """The rows of added clips."""
    import pyarrow as pa

    chosen = order.tolist()
    columns = {
        "id": [embedded.ids[n] for n in chosen],
        "source": [str(embedded.sources[n]) for n in chosen],
        "start": np.asarray(embedded.starts, np.float64)[order],
        "end": np.asarray(embedded.ends, np.float64)[order],
        "label": [str(embedded.labels[n]) for n in chosen],
        "key": (key + order).astype(np.int64),
        "segment": np.concatenate([one[1] for one in table]).astype(np.int32),
        "row": np.concatenate([one[2] for one in table]).astype(np.int32),
        "checksum_visual": np.concatenate([one[3] for one in table]).astype(np.uint32),
        "checksum_audio": np.concatenate([one[4] for one in table]).astype(np.uint32),
    }
    return pa.table(columns, schema=schema())


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


def _every(live: np.ndarray, part: int, parts: int) -> np.ndarray:
    """One in `parts` rows."""
    mine = np.zeros_like(live)
    mine[part::parts] = live[part::parts]
    return mine


def _sync_table(path: Path) -> None:
    """Makes a commit durable: LanceDB leaves that to the system."""
    import os

    for folder, _, files in os.walk(path / f"{layout.TABLE}.lance"):
        for file in files:
            handle = os.open(Path(folder) / file, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        layout.sync_folder(Path(folder))


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _named(ids: list[str]) -> str:
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return ", ".join(repr(one) for one in ids[:SHOWN]) + more
