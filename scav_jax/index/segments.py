"""Segments: the sequences of some clips and what searches need of them, in files written once.

segments/00000007/
   segment.json        rows, width, what its sequences depend on; checksums of the small files
   keys.npy            `[rows]` int64: in which order clips were added, over the whole index
   clips.npy           `[rows]` uint32: checksums of what the table knows of each clip
   centre.npy          `[C]`, see `encoding`
   basis.npy           what sketches are coefficients of, see `sketches`
   visual.rows.npy     one `ROW` for each clip: lengths, places, scales, norms, checksums
   visual.values       stored sequences, one record after the other
   visual.embeddings   unit embeddings, the first stage where there are no
   visual.sketches     unit vectors that know time, by `retrieval.sketch`
   visual.coarse       sketches of the sequences, rounded, and
   visual.fine         longer ones: the bounds of exact search, see `sketches`
   audio.*             the same

A segment is written under another name, synced, and renamed; only then does a row name it. A
reader maps the files, so memory does not grow with the number of clips, and what is mapped stays
readable after the files are gone.
"""

import io
import itertools
import os
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Shaped

from scav_jax.base.documents import read_document, regular_file, write_document
from scav_jax.base.errors import InputError
from scav_jax.base.files import folder_atomically
from scav_jax.features.clip import fingerprint_difference
from scav_jax.index.catalog import MEND, SEGMENTS, Header
from scav_jax.index.encoding import (
    COLUMNS,
    SKETCH_STORAGES,
    EncodedStream,
    Encoding,
    dtypes,
    edges,
    padded_bytes,
    word_sums,
)
from scav_jax.index.products import mean_square, widen
from scav_jax.index.sketches import Basis, sizes
from scav_jax.sequences import STREAMS

IN_CACHE = 2**17  # numbers of differences at a time


class WrongRow(InputError):
    """A row that is not what was written, by its place; whoever has the table names the clip."""

    told: str

    def __init__(self, segment: Path, row: int, file: str = ""):
        self.number, self.row, self._place = int(segment.name), row, f"{segment / file}, row {row}"
        super().__init__(self.words("?"))

    def words(self, clip: str) -> str:
        return self.told.format(place=self._place, clip=clip)


class DamagedRow(WrongRow):
    """A row whose bytes are not those that were written."""

    told = (
        "{place}: expected the bytes that were written, they have changed (clip {clip!r}); the "
        "disk is failing or the file was edited: delete that clip and add it again"
    )


class ForeignRow(WrongRow):
    """A row of the table and one of a segment that do not belong together."""

    told = (
        "{place}: expected the clip that the table of rows names there ({clip!r}), it is another "
        "one or of another moment: the table or the segment is not of this index (a mixed-up "
        "copy?); bring both back from one copy, or build the index again"
    )


def write_segment(
    index: Path,
    number: int,
    streams: dict[str, EncodedStream],
    clips: dict[str, Shaped[np.ndarray, " n"]],
    encoding: Encoding,
    header: Header,
) -> None:
    """Writes a segment; it appears whole or not at all, and survives a power cut.

    Args:
      index, number: where.
      streams: the sequences.
      clips: "keys", and "clips", the checksums of what the table knows of them.
      encoding, header: of the index.

    Raises:
      OSError: the disk is full; nothing is left behind.
    """
    with folder_atomically(folder_of(index, number)) as folder:
        small = {"keys.npy": clips["keys"].astype(np.int64), "centre.npy": encoding.centre}
        small["clips.npy"] = clips["clips"].astype(np.uint32)
        if encoding.basis is not None:
            small["basis.npy"] = encoding.basis.table
        for name, stream in streams.items():
            small[f"{name}.rows.npy"] = stream.rows
            for column, records in stream.records.items():
                with open(folder / f"{name}.{column}", "wb") as file:
                    file.writelines(records)
        for name, array in small.items():
            content = io.BytesIO()  # NumPy does not say why a file took fewer bytes
            np.save(content, array)
            # Not a view of it: Python 3.12.0 and 3.12.1 crash where a full disk leaves one behind.
            (folder / name).write_bytes(content.getvalue())
        sums = {name: zlib.crc32((folder / name).read_bytes()) for name in small}
        about = {
            "rows": len(clips["keys"]),
            "width": len(encoding.centre),
            "embedding_width": header.embedding_width,
            "sketch_width": header.sketch_width,
            "of": header.stored_as,
            "small": sums,
            "bytes": {file.name: file.stat().st_size for file in folder.iterdir()},
        }
        write_document(folder / "segment.json", about)


def folder_of(index: Path, number: int) -> Path:
    return index / SEGMENTS / f"{number:08d}"


class StoredStream:
    """One stream of a segment, mapped."""

    def __init__(
        self,
        folder: Path,
        name: str,
        rows: np.ndarray,
        storage: str,
        widths: dict[str, int],
        data: dict[str, np.ndarray] | None = None,
    ):
        self.folder, self.name, self.rows = folder, name, rows
        self.width, self._widths = widths["values"], widths
        self._dtypes = dtypes(storage)
        if data is None:
            data = {column: _mapped(folder / f"{name}.{column}") for column in COLUMNS}
        self._data = data
        self._checked = {column: np.zeros(len(rows), bool) for column in COLUMNS}
        self._edges = edges(rows["steps"])

    def runs(self) -> list[slice]:
        """Stretches of rows whose sequences have one length."""
        return [slice(int(a), int(b)) for a, b in itertools.pairwise(self._edges) if b > a]

    def run_of(self, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The number of the run that each row is in."""
        return np.searchsorted(self._edges, rows, side="right") - 1

    def read(self, column: str, rows: slice) -> Shaped[np.ndarray, "n columns"]:
        """Stored numbers of some rows of one run: a view of the file, its checksums looked at.

        Raises:
          DamagedRow: bytes have changed since they were written.
        """
        data = self._bytes(column, rows)
        self._check(column, rows, data)
        return self._numbers(column, rows, data)

    def gather(
        self, column: str, run: slice, rows: Int[np.ndarray, " n"]
    ) -> Shaped[np.ndarray, "n columns"]:
        """A copy of the stored numbers of chosen rows of one run."""
        data = self._bytes(column, run)[rows - run.start]
        wrong = np.flatnonzero(word_sums(data) != self.rows[f"{column}_sum"][rows])
        if len(wrong):
            raise self._damaged(column, rows[wrong[0]])
        return self._numbers(column, run, data)

    def has(self, column: str) -> bool:
        """Whether a column is stored."""
        return len(self._data[column]) > 0

    def record(self, column: str, row: int) -> Shaped[np.ndarray, " padded"]:
        """The bytes of one record, checked; none where the column is not stored."""
        if not len(self._data[column]):
            return self._data[column]
        data = self._bytes(column, slice(row, row + 1))
        self._check(column, slice(row, row + 1), data)
        return data[0]

    def differences(
        self,
        run: slice,
        queries: Float[np.ndarray, "Q n"],
        rows: Int[np.ndarray, " p"],
        places: Int[np.ndarray, " p"],
        precision: type,
    ) -> Float[np.ndarray, " p"]:
        """Mean squared differences of chosen rows of one run and one query each, without copies.

        Args:
          run: the run.
          queries: all of them, on the grid of the run.
          rows: of the candidates.
          places: which of the queries.
          precision: of the differences, see `mean_square`.
        """
        data, columns = self._bytes("values", run), queries.shape[1]
        stored, scales = self._numbers("values", run, data), self.rows["scale"][rows].tolist()
        result, wide = np.empty(len(rows), np.float32), np.empty(columns, np.float32)
        size, last = max(IN_CACHE // columns, 1), -1  # several are summed by one call
        room = np.empty((size, columns), precision)
        pairs = list(zip(rows.tolist(), places.tolist(), scales, strict=True))
        for begin in range(0, len(pairs), size):
            some = pairs[begin : begin + size]
            for line, (row, place, scale) in zip(room, some, strict=False):
                if row != last:
                    self._check_one(row, data[row - run.start])
                    values, last = widen(stored[row - run.start], wide), row
                    if scale != 1:
                        values = np.multiply(values, np.float32(scale), out=wide)
                np.subtract(values, queries[place], out=line, dtype=precision)
            result[begin : begin + size] = mean_square(room[: len(some)], self.width)
        return result

    def _check_one(self, row: int, record: Shaped[np.ndarray, " padded"]) -> None:
        """As `_check`, of one sequence."""
        if not self._checked["values"][row]:
            if np.add.reduce(record.view(np.uint64)) != self.rows["values_sum"][row]:
                raise self._damaged("values", row)
            self._checked["values"][row] = True

    def verify(self, rows: Int[np.ndarray, " n"]) -> None:
        """Reads every record of some rows anew; raises `DamagedRow`."""
        for checked in self._checked.values():
            checked[:] = False
        for row in rows.tolist():
            for column in COLUMNS:
                self.record(column, row)
            if zlib.crc32(self.record("values", row)) != int(self.rows["checksum"][row]):
                raise self._damaged("values", row)

    def _count(self, column: str, rows: slice) -> int:
        """How many numbers a record of a run has."""
        steps = int(self.rows["steps"][rows.start])
        if column in SKETCH_STORAGES:
            return sizes(steps, self.width)[column == "fine"]
        return self._widths[column] * (steps if column == "values" else 1)

    def _bytes(self, column: str, rows: slice) -> Shaped[np.ndarray, "n padded"]:
        """Records of rows of one run, as they lie in the file."""
        size = padded_bytes(self._count(column, rows) * self._dtypes[column].itemsize)
        count, offset = rows.stop - rows.start, rows.start * size
        if column in ("values", "fine"):
            offset = int(self.rows[f"{column}_offset"][rows.start])
        data = self._data[column][offset : offset + count * size]
        if len(data) != count * size:
            raise self._damaged(column, rows.start)
        return data.reshape(count, size)

    def _numbers(self, column: str, rows: slice, data) -> Shaped[np.ndarray, "n columns"]:
        return data.view(self._dtypes[column])[:, : self._count(column, rows)]

    def _check(self, column: str, rows: slice, data: np.ndarray) -> None:
        """Once for each row: the pages that were read then are what is used from now on."""
        if self._checked[column][rows].all():
            return
        wrong = np.flatnonzero(word_sums(data) != self.rows[f"{column}_sum"][rows])
        if len(wrong):
            raise self._damaged(column, rows.start + wrong[0])
        self._checked[column][rows] = True

    def _damaged(self, column: str, row: int | np.integer) -> DamagedRow:
        return DamagedRow(self.folder, int(row), f"{self.name}.{column}")


class Segment:
    """A segment, mapped.

    Attributes:
      number: its name.
      width: latent channels C.
      bytes: on disk.
      encoding: of its sequences.
      keys: `[rows]`, in which order clips were added.
      clips: `[rows]`, checksums of what the table knows of each.
      checksums: of the small files that there are, by name.
      streams: "visual" and "audio"; of silent films, or of sounds alone, the one that they have.
    """

    def __init__(self, index: Path, number: int, header: Header):
        self.number, self.folder = number, folder_of(index, number)
        self.written = written(self.folder)
        about = self._read_about(header)
        storage = header.storage
        self.width, self.checksums = about["width"], about["small"]
        self.bytes = sum(about["bytes"].values())
        for file, size in about["bytes"].items():
            with regular_file(self.folder / file, f"a file of {size} bytes", MEND) as opened:
                there = os.fstat(opened.fileno()).st_size
            if there != size:
                raise InputError(
                    f"{self.folder / file}: expected {size} bytes, got {there}; it was cut off: "
                    "build the index again"
                )
        self.keys, self.clips = self._small("keys.npy"), self._small("clips.npy")
        basis = Basis(self._small("basis.npy")) if "basis.npy" in self.checksums else None
        self.encoding = Encoding(storage, self._small("centre.npy"), basis)
        widths = _widths(self.width, about["embedding_width"], about["sketch_width"])
        self.streams = {
            name: StoredStream(self.folder, name, self._small(f"{name}.rows.npy"), storage, widths)
            for name in STREAMS
            if f"{name}.rows.npy" in self.checksums
        }

    @classmethod
    def in_memory(
        cls, streams: dict[str, EncodedStream], encoding: Encoding, header: Header
    ) -> "Segment":
        """Sequences before they are written, as a scan reads them."""
        segment = cls.__new__(cls)
        segment.number, segment.folder, segment.encoding = 0, Path(), encoding
        segment.width, segment.streams = len(encoding.centre), {}
        widths = _widths(segment.width, header.embedding_width, header.sketch_width)
        for name, stream in streams.items():
            segment.keys = np.arange(len(stream.rows))
            values = np.concatenate([one.reshape(-1) for one in stream.records["values"]])
            data = dict.fromkeys(COLUMNS, np.zeros(0, np.uint8)) | {"values": values}
            segment.streams[name] = StoredStream(
                Path(), name, stream.rows, header.storage, widths, data
            )
        return segment

    def __len__(self) -> int:
        return len(self.keys)

    def sequence(self, name: str, row: int) -> Float[np.ndarray, "T C"]:
        """The stored sequence of one stream of a row, float32."""
        stream = self.streams[name]
        values = widen(stream.read("values", slice(row, row + 1))[0]) * stream.rows["scale"][row]
        values = values.reshape(-1, self.width) + self.encoding.centre
        return values.astype(np.float32, copy=False)

    def _read_about(self, header: Header) -> dict:
        """segment.json; `InputError` where it is damaged, or of an index of another kind."""
        about = read_document(self.folder / "segment.json", "what a segment holds", MEND)
        if about["of"] != header.stored_as or header.width not in (0, about["width"]):
            differs = fingerprint_difference(
                {**header.stored_as, "width": header.width},
                {**about["of"], "width": about["width"]},
            )
            raise InputError(
                f"{self.folder}: expected a segment of this index, it is one of another "
                f"({differs}); bring the index back from one copy, or build it again"
            )
        return about

    def belongs(self, known: Int[np.ndarray, "n 4"]) -> None:
        """Compares what the table says of rows with what this segment holds.

        Args:
          known: of each row its number, its key, and the checksums of picture and sound.

        Raises:
          ForeignRow: they differ.
        """
        rows = known[:, 0]
        outside = (rows < 0) | (rows >= len(self))
        inside = np.where(outside, 0, rows)
        none = np.zeros(len(self), np.uint32)
        sums = (self.streams[n].rows["checksum"] if n in self.streams else none for n in STREAMS)
        there = [self.keys, *sums]
        wrong = outside.copy()
        for column, values in enumerate(there, 1):
            wrong |= values[inside] != known[:, column] if len(self) else True
        if wrong.any():
            raise ForeignRow(self.folder, int(rows[np.flatnonzero(wrong)[0]]))

    def _small(self, file: str) -> np.ndarray:
        """A small file, mapped, once its checksum is right."""
        if zlib.crc32(_mapped(self.folder / file)) != self.checksums[file]:
            raise InputError(
                f"{self.folder / file}: expected the bytes that were written, they have changed; "
                "the disk is failing or the file was edited: build the index again"
            )
        array = np.load(self.folder / file, mmap_mode="r", allow_pickle=False)
        return array.view(np.ndarray)


def written(folder: Path) -> tuple[int, ...]:
    """What tells a segment from another one of its number; () where reading it will say why."""
    try:
        about = os.stat(folder / "segment.json")
    except OSError:
        return ()
    return about.st_ino, about.st_mtime_ns, about.st_size


def _widths(values: int, embeddings: int, sketches: int) -> dict[str, int]:
    return {"values": values, "embeddings": embeddings, "sketches": sketches}


def _mapped(path: Path) -> np.ndarray:
    """The bytes of a file, mapped; none if there is no such file or nothing in it."""
    if not path.exists() or path.stat().st_size == 0:
        return np.zeros(0, np.uint8)
    return np.memmap(path, np.uint8, mode="r").view(np.ndarray)
