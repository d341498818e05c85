"""An index: create, open, add, delete, compact, search."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scav_jax.embed import Embedded
from scav_jax.errors import InputError
from scav_jax.index import adding, compaction, layout, lock, searching, segments
from scav_jax.index.adding import take
from scav_jax.index.grids import stored_sequences
from scav_jax.index.rows import Rows, live_rows
from scav_jax.index.segments import DamagedRow, Segment

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

    def follow(self) -> bool:
        """Goes to the newest committed state if there is a newer one, which is quick to say."""
        held = self._rows.version
        self._rows.latest()
        if self._rows.version == held:
            self._rows.hold()
            return False
        self.refresh()
        return True

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
        if on_duplicate == "refuse":
            self.check_new(ids)
            return embedded
        _check_unique(ids)
        there = set() if on_duplicate == "replace" else set(self._rows.existing(ids))
        return take(embedded, [number for number, one in enumerate(ids) if one not in there])

    def check_new(self, ids: list[str]) -> None:
        """Raises `InputError` for ids that come twice, or that are in the index."""
        _check_unique(ids)
        there = set(self._rows.existing(ids))
        if there:
            raise InputError(
                f"{self.path}: expected new ids, {len(there)} of {len(ids)} are there already: "
                f"{_named([one for one in ids if one in there])}; nothing was added, use "
                'on_duplicate="replace" (--replace) to take the new ones'
            )

    def _add(self, embedded: Embedded, replacing: bool) -> None:
        streams = stored_sequences(embedded, self.header)
        adding.check_streams(embedded, streams, self.header)
        centre = adding.centre_of(streams, self._segments, self.header.storage)
        basis = adding.basis_of(streams, self._segments, self.header, centre)
        keys = (int(one.keys.max(initial=-1)) for one in self._segments.values())
        key, number = 1 + max(keys, default=-1), self._next_segment()
        if not self.header.width:
            self.header = replace(self.header, width=len(centre))
            layout.write_header(self.path, self.header)
        try:
            rows = adding.write_clips(
                self.path, self.header, embedded, streams, centre, basis, number, key
            )
            (self._rows.replace if replacing else self._rows.add)(rows)
        except BaseException:
            self._sweep_uncommitted()
            raise
        layout.sync_table(self.path)

    def _sweep_uncommitted(self) -> None:
        """Removes what a change that failed left: segments that no row names."""
        self._rows.latest()
        used = {int(n) for part in self._rows.places() for n in np.unique(part[:, 0])}
        segments.sweep(self.path, used)

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
                layout.sync_table(self.path)
        self.refresh()
        return len(ids)

    def compact(self) -> dict:
        """Writes what is live together, and frees what is not.

        Readers that have the index open keep what they see.

        Returns:
          `bytes_before`, `bytes_after`, and the `swept` segments that no row named.
        """
        with self._writing():
            before = layout.bytes_of(self.path)
            with self._naming():
                compaction.rewrite(
                    self.path,
                    self.header.storage,
                    self._rows,
                    self._segments,
                    self._live,
                    self._next_segment(),
                )
            layout.sync_table(self.path)
            self.refresh()
            swept = segments.sweep(self.path, set(self._segments))
            self._rows.latest()
            self._rows.clean()
        self.refresh()
        return {"bytes_before": before, "bytes_after": layout.bytes_of(self.path), "swept": swept}

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
            "bytes": layout.bytes_of(self.path),
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


def _every(live: np.ndarray, part: int, parts: int) -> np.ndarray:
    """One in `parts` rows."""
    mine = np.zeros_like(live)
    mine[part::parts] = live[part::parts]
    return mine


def _check_unique(ids: list[str]) -> None:
    twice = {one for one in ids if ids.count(one) > 1} if len(set(ids)) < len(ids) else set()
    if twice:
        raise InputError(f"ids must be unique, these came twice: {_named(sorted(twice))}")


def _named(ids: list[str]) -> str:
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return ", ".join(repr(one) for one in ids[:SHOWN]) + more
