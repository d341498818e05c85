"""An index: create, open, add, delete, compact, search.

What is added and what a compaction moves go into new segments (`writing`). Segments that no row
names are nobody's: they come from a change that failed or was killed, and the next compaction takes
them away.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int

from scav_jax.base.documents import read_json
from scav_jax.base.errors import InputError, check_one_of, check_unique, listed
from scav_jax.base.files import ids_sha256, sync, write_json
from scav_jax.base.locks import LOCK
from scav_jax.base.progress import progress_bar
from scav_jax.index import catalog, mesh, searching, writing
from scav_jax.index.bank import digest, read_bank, write_bank
from scav_jax.index.catalog import Header
from scav_jax.index.encoding import Encoding
from scav_jax.index.rows import TABLE, Rows, about_in
from scav_jax.index.segments import ForeignRow, WrongRow
from scav_jax.index.snapshot import Snapshot
from scav_jax.retrieval.embed import Embedded
from scav_jax.retrieval.hubness import check_enough
from scav_jax.retrieve import Hit, with_parts
from scav_jax.sharding import local_mesh

WRITTEN = (catalog.HEADER, catalog.BANK)


def create(
    path: str | Path,
    *,
    identity: str,
    distance: tuple[str, dict] = ("euclidean", {}),
    storage: str = "float32",
    root: str | Path | None = None,
    bank: Embedded | None = None,
    sketch: str = "",
    static_weight: float | None = None,
) -> "Index":
    """A new, empty index.

    Args:
      path: where nothing is, or an empty folder.
      identity: of the model whose latents it will hold; queries must agree with it.
      distance: (name, options) in retrieval form.
      storage: of sequences: "float32", "bfloat16" (half) or "int8" (a quarter).
      root: the folder that ids and sources are relative to (see `catalog`); None where ids are
        the caller's business.
      bank: training queries that scores are relative to, see `retrieval.hubness`; None ranks by
        distances.
      sketch: what clips will be sketched by (`Embedded.sketched_by`), for the first stage; ""
        where that is the embedding.
      static_weight: of the static part of a distance that has one; None is that of its options.

    Raises:
      InputError: something is there, an unknown distance or storage, a weight of nothing, a bank
        that is too small, or lancedb is missing.
    """
    path = Path(path)
    header = catalog.make_header(identity, distance, storage, root)
    header = replace(header.with_weight(static_weight), sketch=sketch)
    if bank is not None:
        check_enough(len(bank))
        header = replace(header, bank=digest(bank), bank_clips=len(bank))
    # What a create that was killed leaves.
    begun = {LOCK, catalog.SEGMENTS, catalog.BANK, f"{TABLE}.lance"}
    names = {one.name for one in path.iterdir()} if path.is_dir() else set()
    begun |= {one.name for file in WRITTEN for one in path.glob(f"{file}*.partial")}
    if path.exists() and (not path.is_dir() or names - begun):
        raise InputError(f"{path}: expected a path where nothing is; remove it or use another")
    path.mkdir(parents=True, exist_ok=True)
    with catalog.one_writer(path):
        (path / catalog.SEGMENTS).mkdir(exist_ok=True)
        Rows.create(path)
        if bank is not None:
            write_bank(path, bank)
        catalog.write_header(path, header)  # last: without it there is no index
        sync(path)
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
    header = catalog.read_header(path)
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

    def __init__(self, path: Path, header: Header):
        self.path, self.header = path, header
        self.report = searching.Report("")
        self._asked: dict[str, int] = {}  # queries so far, by direction
        self._there: dict[str, tuple] = {}  # what is on accelerators: of which snapshot, and where
        self._rows = Rows.open(path)
        self._seen, self._synced = -1, set[str]()  # the snapshot's version; files of the table
        self.snapshot = Snapshot(header, {}, {})
        self.refresh()

    def __len__(self) -> int:
        return len(self.snapshot)

    def refresh(self) -> None:
        """Goes to the newest committed state.

        Raises:
          InputError: it is damaged, or another index lies there now.
        """
        for attempt in range(5):  # a compaction may take segments away in between
            self._rows.latest()
            self._rows.hold()
            self.header = self._header_now()
            try:
                with self._naming_clips():
                    self.snapshot = self.snapshot.now(self.path, self.header, self._rows.known())
                self._seen = self._rows.version
                return
            except FileNotFoundError as error:
                if attempt == 4:
                    raise InputError(
                        f"{error.filename}: expected a file of the index, there is none: the "
                        "table of rows is of another moment (a mixed-up copy?), or the file was "
                        f"removed; {catalog.MEND}"
                    ) from None

    def follow(self) -> bool:
        """Goes to the newest committed state if there is a newer one, which is quick to say."""
        self._rows.latest()
        self._rows.hold()
        if self._rows.version == self._seen and self._header_now() == self.header:
            return False
        self.refresh()
        return True

    def _header_now(self) -> catalog.Header:
        """The header as it lies there, read after the rows: where both were replaced it tells."""
        header = catalog.read_header(self.path)
        if header.name != self.header.name:
            raise InputError(
                f"{self.path}: expected the index that was opened, another one lies there now; "
                "open it anew"
            )
        return header

    def add(self, embedded: Embedded, on_duplicate: str = "refuse") -> int:
        """Adds clips, all or none; they are durable when this returns.

        Args:
          embedded: latents by the model of the index: of both streams, or, of silent films and of
            sounds alone, of one (then with its `partner`).
          on_duplicate: what happens with ids that are there: "refuse" adds nothing, "replace"
            takes the new ones, "skip" keeps the old ones.

        Returns:
          How many were added.

        Raises:
          InputError: duplicate ids, latents of another width, NaN, or another writer.
          OSError: the disk is full; the index is as it was.
        """
        check_one_of("on_duplicate", on_duplicate, ("refuse", "replace", "skip"))
        writing.check_texts(embedded, self.header)
        with self._writing():
            if on_duplicate == "refuse":
                self.check_new(embedded.ids)
            check_unique(embedded.ids)
            if on_duplicate == "skip":
                there = set(self._rows.existing(list(embedded.ids)))
                embedded = embedded.take(
                    [number for number, one in enumerate(embedded.ids) if one not in there]
                )
            if len(embedded):
                self._add(embedded, on_duplicate == "replace")
        self.refresh()
        return len(embedded)

    def check_new(self, ids: Sequence[str]) -> None:
        """Raises `InputError` for ids that come twice, or that are in the index."""
        check_unique(ids)
        if there := set(self._rows.existing(list(ids))):
            raise InputError(
                f"{self.path}: expected new ids, {len(there)} of {len(ids)} are there already: "
                f"{listed([repr(one) for one in ids if one in there])}; nothing was added, use "
                'on_duplicate="replace" (--replace) to take the new ones, or "skip" (`scav index '
                "build`) to add what is not there yet; if these are other files that are called "
                "alike, build the index with a root that holds both folders"
            )

    def check_files(self, clips: Mapping[str, tuple[str, float]], replacing: bool = False) -> None:
        """Raises `InputError` for files that the index knows otherwise; see `writing`."""
        writing.check_files(self.path, self._rows, self.header, clips, replacing)

    def declare(self, root: str | Path | None, clip_seconds: float | None) -> None:
        """Says what ids are relative to and how videos are cut, where that is not said yet.

        Raises:
          InputError: it contradicts what the index was begun with; or another writer.
        """
        root = None if root is None else os.path.abspath(root)
        self._set_header(lambda header: header.declared(self.path, root, clip_seconds))

    def move(self, root: str | Path) -> None:
        """Says where the folder of the index's videos lies now; ids and sources are relative to it.

        Raises:
          InputError: no such folder, an index without a root, or another writer.
        """
        if not Path(root).is_dir():
            raise InputError(f"expected the folder of the videos, {root} is none")
        if self.header.root is None:
            raise InputError(
                f"{self.path}: expected an index of videos below a root, this one has none; build "
                "it again with --root"
            )
        self._set_header(lambda header: replace(header, root=os.path.abspath(root)))

    def _set_header(self, change: Callable[[Header], Header]) -> None:
        with self._writing():
            changed = change(self.header)
            if changed != self.header:
                catalog.write_header(self.path, changed)
        self.refresh()

    @contextlib.contextmanager
    def adding(self, ids: Sequence[str]) -> Iterator[bool]:
        """Notes that these clips are being added, in parts; whether that was begun and not ended.

        A command that was interrupted and is given again goes on, where another one that brings
        the same clips is refused.
        """
        note, asked = self.path / catalog.ADDING, {"clips": ids_sha256(ids)}
        begun = False
        with contextlib.suppress(OSError, InputError):
            begun = read_json(note, "the clips of an add", catalog.MEND) == asked
        if not begun:
            self.check_new(ids)
            write_json(note, asked)
        yield begun
        note.unlink(missing_ok=True)

    def _add(self, embedded: Embedded, replacing: bool) -> None:
        streams = writing.stored_sequences(embedded, self.header)
        writing.check_streams(embedded, streams, self.header)
        present = list(self.snapshot.segments.values())
        encoding = self.snapshot.encoding if present else Encoding.of(streams, self.header)
        key = 1 + max((int(one.keys.max(initial=-1)) for one in present), default=-1)
        if self._rows.gather():
            self._sync_rows()
        if not self.header.width:
            self.header = writing.with_widths(self.header, embedded, encoding)
            catalog.write_header(self.path, self.header)
        try:
            bank = read_bank(self.path, self.header) if self.header.bank else None
            rows = writing.write_clips(
                self.path, embedded, streams, key, encoding, self.header, bank
            )
            self._rows.add(rows, replacing)
        except BaseException:
            with contextlib.suppress(OSError, InputError):  # the disk may not be read either
                self._rows.latest()
                used = {int(n) for part in self._rows.places() for n in np.unique(part[:, 0])}
                writing.sweep(self.path, used)
            raise
        self._sync_rows()

    def delete(self, ids: Sequence[str]) -> int:
        """Deletes clips, all or none; `compact` frees their bytes.

        Raises:
          InputError: ids that are not there, or another writer.
        """
        ids = list(dict.fromkeys(ids))
        with self._writing():
            if len(there := set(self._rows.existing(ids))) < len(ids):
                missing = [repr(one) for one in ids if one not in there]
                raise InputError(
                    f"{self.path}: expected ids of the index, {len(missing)} of {len(ids)} are not "
                    f"there: {listed(missing)}; nothing was deleted"
                )
            if ids:
                self._rows.delete(ids)
                self._sync_rows()
        self.refresh()
        return len(ids)

    def compact(self) -> dict:
        """Writes what is live together, and frees what is not.

        Readers that have the index open keep what they see.

        Returns:
          `bytes_before`, `bytes_after`, and the `swept` segments that no row named.
        """
        with self._writing():
            before = self._bytes()
            with self._naming_clips():
                moved = writing.compacted(self.path, self.snapshot)
            if moved:
                self._rows.overwrite(writing.with_new_places(self._rows, moved))
            self._sync_rows()
            self.refresh()
            swept = writing.sweep(self.path, set(self.snapshot.segments))
            for file in self.path.glob("*.partial"):  # of a write that was killed
                file.unlink(missing_ok=True)
            self._rows.latest()
            self._rows.clean()
        self.refresh()
        return {"bytes_before": before, "bytes_after": self._bytes(), "swept": swept}

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with catalog.one_writer(self.path):
            self.follow()
            self._rows.latest()
            yield

    def _sync_rows(self) -> None:
        """Makes a commit durable: LanceDB leaves that to the system."""
        sync(self.path / f"{TABLE}.lance", self._synced)
        self._rows.note_version()

    def _bytes(self) -> int:
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    def search(
        self,
        queries: Embedded,
        direction: str = "a2v",
        k: int = 10,
        retrieval: str = "exact",
        where: str | None = None,
        static_weight: float | None = None,
        hubness: str | None = None,
    ) -> list[list[Hit]]:
        """The k nearest clips of each query, nearest first; fewer where there are fewer.

        Args:
          queries: embedded by the model of the index; the stream that asks is enough.
          direction: "a2v": sounds ask for videos; "v2a": videos ask for sounds; "both": for clips
            with both streams, see `searching.search_both` (all are compared).
          k: how many.
          retrieval: "aggregation" (cosine of embeddings), "sequence" (all sequences are compared),
            "exact" (the same result, what cannot be near is left out, where the distance has
            bounds) or "hybrid:K" (the sequences of the K nearest by cosine, of sketches where the
            index has them).
          where: a condition on id, source, start, end and label, as in SQL.
          static_weight: how much the static part of clips counts beside the dynamic one, where the
            model learned both apart; None is the model's, 0 leaves it out.
          hubness: "bank" ranks by scores relative to the bank of the index, "none" by distances;
            None is "bank" where the index has one.

        Raises:
          InputError: see each argument; or a damaged row, with the clip's id.
        """
        snapshot = replace(self.snapshot, header=self.header.asked(static_weight, hubness))
        on_devices = None
        if where is not None:
            snapshot = snapshot.only(self._rows.places(where))
        with self._naming_clips():
            if direction == "both":
                found, self.report = searching.search_both(snapshot, queries, k, retrieval)
                return self.hits_of(found, len(queries.ids))
            if where is None and retrieval in searching.COMPARING:
                on_devices = self._on_accelerators(snapshot, direction, len(queries.ids))
            found, self.report = searching.search(
                snapshot, queries, direction, k, retrieval, on_devices
            )
        hits = self.hits_of(found, len(queries.ids))
        if found.static is None:
            return hits
        weight, cosines = snapshot.header.options["static_weight"], iter(found.static.tolist())
        return [[with_parts(hit, next(cosines), weight) for hit in of_query] for of_query in hits]

    def _on_accelerators(self, snapshot: Snapshot, direction: str, queries: int):
        """The asked stream on this process' accelerators, where they have room and it pays."""
        there, asked = self._there.get(direction), self._asked.get(direction, 0) + queries
        self._asked[direction] = asked
        if there and there[0] is self.snapshot and there[1].snapshot.header == snapshot.header:
            return there[1]
        # It takes as long as reading everything: a few queries are done by then.
        self._there.pop(direction, None)
        if asked < searching.FEW or not len(snapshot) or not mesh.have_room(snapshot, direction):
            return None
        found = mesh.OnMesh(snapshot, direction, local_mesh())
        self._there[direction] = self.snapshot, found
        return found

    def hits_of(self, found: searching.Found, queries: int) -> list[list[Hit]]:
        """What was found, with what is known of each clip."""
        places = np.stack([found.segment, found.row], axis=1).astype(np.int64)
        about = self._rows.at(places)
        for clip in about.values():
            clip["source"] = self.header.full_source(clip["source"])
        hits: list[list[Hit]] = [[] for _ in range(queries)]
        distances = [None] * len(places) if found.distance is None else found.distance.tolist()
        for query, place, score, distance in zip(
            found.query.tolist(), places.tolist(), found.score.tolist(), distances, strict=True
        ):
            rank, clip = len(hits[query]) + 1, about[tuple(place)]
            hits[query].append(Hit(**clip, score=score, rank=rank, distance=distance))
        return hits

    @contextlib.contextmanager
    def _naming_clips(self) -> Iterator[None]:
        try:
            yield
        except WrongRow as error:
            place = np.asarray([[error.number, error.row]])
            clips = [row["id"] for row in self._rows.at(place).values()]
            raise InputError(error.words(clips[0] if clips else "?")) from error

    def about(self, places: Int[np.ndarray, "n 2"]) -> dict[tuple[int, int], dict]:
        """What is known of the clips at some places, (segment, row), by place."""
        return self._rows.at(places)

    def clip(self, name: str) -> dict | None:
        """id, source (with its folder), start, end and label of a clip; None if it is not there."""
        for row in self._rows.with_values("id", [name]):
            return {**row, "source": self.header.full_source(row["source"])}
        return None

    def contents(self, ids: Sequence[str]) -> dict[str, str]:
        """`documents.content_sample` of the files of some clips, by id; "" where nobody looked."""
        return {row["id"]: row["content"] for row in self._rows.with_values("id", list(ids))}

    def ids(self) -> list[str]:
        """All clips."""
        return [one for batch in self._rows.tables() for one in batch.column("id").to_pylist()]

    def verify(self) -> int:
        """Reads everything; the number of clips, or `InputError` for the first that is damaged."""
        if self.header.bank:
            read_bank(self.path, self.header)
        with self._naming_clips():
            for batch in self._rows.tables():
                for number, row, there in about_in(batch):
                    segment = self.snapshot.segments[number]
                    if int(segment.clips[row]) != there:
                        raise ForeignRow(segment.folder, row)
            with progress_bar("verify", len(self), "clip", shown=len(self) > writing.MANY) as bar:
                for number, segment in self.snapshot.segments.items():
                    rows = np.flatnonzero(self.snapshot.live[number])
                    for stream in segment.streams.values():
                        stream.verify(rows)
                    bar.update(len(rows))
        return len(self)

    def info(self) -> dict:
        """What the index holds and how large it is."""
        mapped = self.snapshot.segments
        return {
            "path": str(self.path),
            "clips": len(self),
            **self.snapshot.counts(),
            "deleted": sum(len(segment) for segment in mapped.values()) - len(self),
            "version": self._rows.version,
            "segments": len(mapped),
            "orphan_segments": len(set(writing.segment_numbers(self.path)) - set(mapped)),
            "bytes": self._bytes(),
            "identity": self.header.identity,
            "distance": self.header.distance,
            "options": self.header.options,
            "storage": self.header.storage,
            "first_stage": self.header.first_stage_in_words,
            "hubness": f"bank of {self.header.bank_clips} clips" if self.header.bank else "none",
            "width": self.header.width,
            "root": self.header.root,
            "clip_seconds": self.header.clip_seconds,
        }
