"""Segments: the sequences of some clips and what searches need of them, written once.

segments/00000007/
   segment.json        rows, width, storage; checksums of the small files
   keys.npy            `[rows]` int64: in which order clips were added, over the whole index
   centre.npy          `[C]`, see `storage`
   basis.npy           what sketches are coefficients of, see `sketches`
   visual.rows.npy     one `ROW` for each clip: lengths, places, scales, norms, checksums
   visual.values       stored sequences, one record after the other
   visual.embeddings   unit embeddings, the first stage
   visual.coarse       sketches of the sequences, rounded, and
   visual.fine         longer ones: the bounds of exact search, see `sketches`
   audio.*             the same

A segment is written under another name, synced, and renamed; only then does a row name it. A
reader maps the files, so memory does not grow with the number of clips, and what is mapped stays
readable after the files are gone.
"""

import itertools
import json
import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Shaped

from scav_jax.errors import InputError
from scav_jax.index import storage as stored_as
from scav_jax.index.layout import SEGMENTS, STREAMS, sync_folder
from scav_jax.index.products import mean_square
from scav_jax.index.sketches import Basis, sizes
from scav_jax.retrieve import unit

ROW = np.dtype(
    [
        ("values_offset", "<i8"),
        ("fine_offset", "<i8"),
        ("steps", "<i4"),
        ("scale", "<f4"),
        ("square", "<f8"),  # of the stored values less the centre
        ("coarse_square", "<f8"),  # of the stored sketch
        ("coarse_residual", "<f4"),  # how far the stored sketch is from the right one, at most
        ("fine_scale", "<f4"),
        ("fine_square", "<f8"),
        ("fine_residual", "<f4"),
        ("values_sum", "<u8"),
        ("embeddings_sum", "<u8"),
        ("coarse_sum", "<u8"),
        ("fine_sum", "<u8"),
        ("checksum", "<u4"),
    ]
)
COLUMNS = ("values", "embeddings", "coarse", "fine")
CHECKED_AT_ONCE = 256  # rows


class DamagedRow(InputError):
    """A row whose bytes are not those that were written."""

    def __init__(self, segment: Path, stream: str, column: str, row: int):
        self.row, self.number = row, int(segment.name)
        self.place = f"{segment / f'{stream}.{column}'}, row {row}"
        super().__init__(self.words("?"))

    def words(self, clip: str) -> str:
        return (
            f"{self.place}: expected the bytes that were written, they have changed (clip "
            f"{clip!r}); the disk is failing or the file was edited: delete that clip and add it "
            "again"
        )


# -- writing --------------------------------------------------------------------------------------


@dataclass
class StreamRows:
    """One stream of clips, as it is written: `[n]` of `ROW`, and the records of each column."""

    rows: np.ndarray
    records: dict[str, list[np.ndarray]]


def encode_run(
    run: Float[np.ndarray, "n T C"],
    embeddings: Float[np.ndarray, "n C"],
    storage: str,
    centre: Float[np.ndarray, " C"],
    basis: Basis | None,
) -> StreamRows:
    """Encodes sequences of one length.

    Args:
      run: the sequences.
      embeddings: of the same clips, not normalised; they need a direction.
      storage: one of `layout.STORAGES`.
      centre: see `storage`.
      basis: of the sketches that exact search prunes by; None stores none.
    """
    count, steps, width = run.shape
    rows = np.zeros(count, ROW)
    rows["steps"] = steps
    stored, scales = stored_as.encode(
        run.reshape(count, steps * width), storage, np.tile(centre, steps)
    )
    rows["scale"] = scales
    wide = stored_as.widen(stored).astype(np.float64) * scales[:, None].astype(np.float64)
    rows["square"] = np.einsum("ij,ij->i", wide, wide)
    records = {"values": stored_as.records(stored)}
    kind = "float32" if storage == "float32" else "bfloat16"
    records["embeddings"] = stored_as.records(unit(embeddings).astype(stored_as.DTYPES[kind]))
    if basis is not None:
        records |= _sketches(rows, wide.reshape(run.shape), basis)
    for column, data in records.items():
        rows[f"{column}_sum"] = stored_as.word_sums(data)
    rows["checksum"] = [zlib.crc32(record) for record in records["values"]]
    return StreamRows(rows, {column: [data] for column, data in records.items()})


def _sketches(
    rows: np.ndarray, sequences: Float[np.ndarray, "n T C"], basis: Basis
) -> dict[str, np.ndarray]:
    """Records of both sketches; what is known of them goes into `rows`."""
    result = {}
    for column, kind in (("coarse", "bfloat16"), ("fine", "int8")):
        weights = stored_weights(basis, column, sequences.shape[1])
        zero, parts = np.zeros(weights.size, np.float32), []
        for part, exact, off in basis.sketch(column, sequences):
            rounded, scales = stored_as.encode((exact / weights).astype(np.float32), kind, zero)
            wide = stored_as.widen(rounded).astype(np.float64)
            wide *= weights * scales[:, None].astype(np.float64)
            rows[f"{column}_square"][part] = np.vecdot(wide, wide)
            moved = (np.linalg.norm(exact - wide, axis=1) + off) * (1 + 1e-6)
            moved = np.nextafter(moved.astype(np.float32), np.float32(np.inf))
            rows[f"{column}_residual"][part] = moved
            if column == "fine":
                rows["fine_scale"][part] = scales
            parts.append(stored_as.records(rounded))
        result[column] = np.concatenate(parts)
    return result


def stored_weights(basis: Basis, column: str, steps: int) -> Float[np.ndarray, " m"]:
    """What the numbers of stored sketches are to be multiplied with, and the scale of each clip.

    Bytes have one step for all numbers of a clip, which differ in size; other numbers have none.
    """
    weights = basis.kept(column, steps).weights
    return weights if column == "fine" else np.ones_like(weights)


def join(parts: list[StreamRows]) -> StreamRows:
    """Runs one after the other, with the places that their records get."""
    rows = np.concatenate([part.rows for part in parts])
    columns = parts[0].records
    records = {name: [data for part in parts for data in part.records[name]] for name in columns}
    for column in ("values", "fine"):
        sizes = np.concatenate(
            [np.full(len(data), data.shape[1], np.int64) for data in records.get(column, [])]
            or [np.zeros(0, np.int64)]
        )
        if sizes.size:
            rows[f"{column}_offset"] = np.cumsum(sizes) - sizes
    return StreamRows(rows, records)


def write_segment(
    index: Path,
    number: int,
    streams: dict[str, StreamRows],
    keys: Int[np.ndarray, " n"],
    centre: Float[np.ndarray, " C"],
    storage: str,
    basis: Basis | None = None,
) -> Path:
    """Writes a segment; it appears whole or not at all, and survives a power cut.

    Raises:
      OSError: the disk is full; nothing is left behind.
    """
    final = index / SEGMENTS / f"{number:08d}"
    partial = final.with_name(f"{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        small = {"keys.npy": keys.astype(np.int64), "centre.npy": centre.astype(np.float32)}
        if basis is not None:
            small["basis.npy"] = basis.table
        for name, stream in streams.items():
            small[f"{name}.rows.npy"] = stream.rows
            for column, records in stream.records.items():
                _write(partial / f"{name}.{column}", records)
        checksums = {}
        for file, array in small.items():
            checksums[file] = zlib.crc32(np.ascontiguousarray(array).view(np.uint8))
            with open(partial / file, "wb") as handle:
                np.save(handle, array)
                _sync(handle)
        sizes = {file.name: file.stat().st_size for file in partial.iterdir()}
        about = {
            "rows": len(keys),
            "width": len(centre),
            "storage": storage,
            "small": checksums,
            "bytes": sizes,
        }
        _write(partial / "segment.json", [json.dumps(about, indent=1).encode()])
        sync_folder(partial)
        os.rename(partial, final)
        sync_folder(final.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


def _write(path: Path, records: list) -> None:
    with open(path, "wb") as handle:
        for part in records:
            handle.write(part)
        _sync(handle)


def _sync(handle) -> None:
    handle.flush()
    os.fsync(handle.fileno())


# -- reading --------------------------------------------------------------------------------------


class Stream:
    """One stream of a segment, mapped."""

    def __init__(self, folder: Path, name: str, rows: np.ndarray, storage: str, width: int):
        self.folder, self.name, self.rows = folder, name, rows
        self.width = width
        kind = "float32" if storage == "float32" else "bfloat16"
        self._dtypes = {
            "values": stored_as.DTYPES[storage],
            "embeddings": stored_as.DTYPES[kind],
            "coarse": stored_as.DTYPES["bfloat16"],
            "fine": stored_as.DTYPES["int8"],
        }
        self._data = {column: _mapped(folder / f"{name}.{column}") for column in COLUMNS}
        self._checked = {column: np.zeros(len(rows), bool) for column in COLUMNS}
        steps = rows["steps"]
        self._edges = np.concatenate([[0], np.flatnonzero(np.diff(steps)) + 1, [len(rows)]])

    def runs(self) -> list[slice]:
        """Stretches of rows whose sequences have one length."""
        edges = self._edges
        return [slice(int(a), int(b)) for a, b in itertools.pairwise(edges) if b > a]

    def read(self, column: str, rows: slice) -> Shaped[np.ndarray, "n columns"]:
        """Stored numbers of some rows of one run: a view of the file, its checksums looked at.

        Raises:
          DamagedRow: bytes have changed since they were written.
        """
        columns, size = self._shape(column, int(self.rows["steps"][rows.start]))
        offset = self._offset(column, rows.start, size)
        count = rows.stop - rows.start
        data = self._data[column][offset : offset + count * size]
        if len(data) != count * size:
            raise DamagedRow(self.folder, self.name, column, rows.start)
        data = data.reshape(count, size)
        self._check(column, rows, data)
        return data.view(self._dtypes[column])[:, :columns]

    def record(self, column: str, row: int) -> np.ndarray:
        """The bytes of one record, checked; none where the column is not stored."""
        if not len(self._data[column]):
            return self._data[column]
        _, size = self._shape(column, int(self.rows["steps"][row]))
        offset = self._offset(column, row, size)
        data = self._data[column][offset : offset + size]
        self._check(column, slice(row, row + 1), data.reshape(1, size))
        return data

    def gather(
        self, column: str, run: slice, rows: Int[np.ndarray, " n"]
    ) -> Shaped[np.ndarray, "n columns"]:
        """A copy of the stored numbers of chosen rows of one run."""
        columns, size = self._shape(column, int(self.rows["steps"][run.start]))
        offset = self._offset(column, run.start, size)
        data = self._data[column][offset : offset + (run.stop - run.start) * size]
        if len(data) != (run.stop - run.start) * size:
            raise DamagedRow(self.folder, self.name, column, run.start)
        data = data.reshape(-1, size)[rows - run.start]
        wrong = stored_as.word_sums(data) != self.rows[f"{column}_sum"][rows]
        if wrong.any():
            raise DamagedRow(
                self.folder, self.name, column, int(rows[int(np.flatnonzero(wrong)[0])])
            )
        return data.view(self._dtypes[column])[:, :columns]

    def differences(
        self,
        run: slice,
        rows: Int[np.ndarray, " p"],
        queries: Float[np.ndarray, "Q n"],
        places: Int[np.ndarray, " p"],
    ) -> Float[np.ndarray, " p"]:
        """Mean squared differences of chosen rows of one run and one query each, without copies.

        Args:
          run: the run.
          rows: of the candidates.
          queries: all of them, on the grid of the run.
          places: which of them.
        """
        columns, size = self._shape("values", int(self.rows["steps"][run.start]))
        offset = self._offset("values", run.start, size)
        data = self._data["values"][offset : offset + (run.stop - run.start) * size]
        data = data.reshape(-1, size)
        checked, sums = self._checked["values"], self.rows["values_sum"]
        scales, dtype = self.rows["scale"], self._dtypes["values"]
        result, wide = np.empty(len(rows), np.float32), np.empty(columns, np.float32)
        room, last = np.empty((1, columns), np.float32), -1
        for number, (row, place) in enumerate(zip(rows.tolist(), places.tolist(), strict=True)):
            if row != last:
                record, last = data[row - run.start], row
                if not checked[row]:
                    if np.add.reduce(record.view(np.uint64)) != sums[row]:
                        raise DamagedRow(self.folder, self.name, "values", row)
                    checked[row] = True
                values = stored_as.widen(record.view(dtype)[:columns], wide)
                if scales[row] != 1:
                    values = np.multiply(values, scales[row], out=wide)
            np.subtract(values, queries[place], out=room[0])
            result[number] = mean_square(room, self.width)[0]
        return result

    def run_of(self, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The number of the run that each row is in."""
        return np.searchsorted(self._edges, rows, side="right") - 1

    def _shape(self, column: str, steps: int) -> tuple[int, int]:
        """How many numbers a record has, and its bytes."""
        columns = self.width
        if column == "values":
            columns *= steps
        elif column in ("coarse", "fine"):
            columns = sizes(steps, self.width)[column == "fine"]
        return columns, stored_as.padded_bytes(columns * self._dtypes[column].itemsize)

    def _offset(self, column: str, row: int, size: int) -> int:
        if column in ("values", "fine"):
            return int(self.rows[f"{column}_offset"][row])
        return row * size

    def _check(self, column: str, rows: slice, data: np.ndarray) -> None:
        """Once for each row: the pages that were read then are what is used from now on."""
        checked = self._checked[column][rows]
        if checked.all():
            return
        for begin in range(0, len(data), CHECKED_AT_ONCE):
            part = slice(begin, begin + CHECKED_AT_ONCE)
            wrong = stored_as.word_sums(data[part]) != self.rows[f"{column}_sum"][rows][part]
            if wrong.any():
                row = rows.start + begin + int(np.flatnonzero(wrong)[0])
                raise DamagedRow(self.folder, self.name, column, row)
        self._checked[column][rows] = True

    def forget_checks(self) -> None:
        """Looks at every checksum anew."""
        for checked in self._checked.values():
            checked[:] = False


class Segment:
    """A segment, mapped."""

    def __init__(self, index: Path, number: int):
        self.number = number
        self.folder = index / SEGMENTS / f"{number:08d}"
        about = json.loads((self.folder / "segment.json").read_text())
        self.storage, self.width = about["storage"], about["width"]
        self._checksums = about["small"]
        self.bytes = sum(about["bytes"].values())
        for file, size in about["bytes"].items():
            if (self.folder / file).stat().st_size != size:
                raise InputError(
                    f"{self.folder / file}: expected {size} bytes, got "
                    f"{(self.folder / file).stat().st_size}; it was cut off: build the index again"
                )
        self.keys = self._small("keys.npy")
        self.centre = self._small("centre.npy")
        self.basis = None
        if "basis.npy" in self._checksums:
            self.basis = Basis(self._small("basis.npy"))
        self.streams = {
            name: Stream(
                self.folder, name, self._small(f"{name}.rows.npy"), self.storage, self.width
            )
            for name in STREAMS
            if f"{name}.rows.npy" in self._checksums
        }

    def __len__(self) -> int:
        return len(self.keys)

    def _small(self, file: str) -> np.ndarray:
        """A small file, mapped, once its checksum is right."""
        damaged = InputError(
            f"{self.folder / file}: expected the bytes that were written, they have changed; the "
            "disk is failing or the file was edited: build the index again"
        )
        try:
            array = np.load(self.folder / file, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError):
            raise damaged from None
        array = array.view(np.ndarray)
        if zlib.crc32(np.ascontiguousarray(array).view(np.uint8)) != self._checksums[file]:
            raise damaged
        return array


def _mapped(path: Path) -> np.ndarray:
    """The bytes of a file, mapped; none if there is no such file or nothing in it."""
    if not path.exists() or path.stat().st_size == 0:
        return np.zeros(0, np.uint8)
    return np.memmap(path, np.uint8, mode="r").view(np.ndarray)


def segment_numbers(index: Path) -> list[int]:
    """The segments that are there, those that no row names included."""
    folder = index / SEGMENTS
    names = [one.name for one in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def sweep(index: Path, used: set[int]) -> list[str]:
    """Removes segments that no row names, and what a kill left of one; returns their names."""
    folder, removed = index / SEGMENTS, []
    for one in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not one.name.isdigit() or int(one.name) not in used:
            shutil.rmtree(one, ignore_errors=True)
            removed.append(one.name)
    return removed


def copied(
    sources: dict[int, Segment],
    name: str,
    places: Int[np.ndarray, "n 2"],
    steps: Int[np.ndarray, " n"],
) -> StreamRows:
    """One stream of chosen rows of some segments as it is written again, byte for byte.

    Args:
      sources: the segments.
      name: of the stream.
      places: (segment, row), sorted by length.
      steps: the lengths.
    """
    rows = np.empty(len(places), ROW)
    records: dict[str, list[np.ndarray]] = {}
    edges = np.flatnonzero(np.diff(steps, prepend=-1, append=-1))
    for begin, end in itertools.pairwise(edges):
        for number in np.unique(places[begin:end, 0]):
            here = begin + np.flatnonzero(places[begin:end, 0] == number)
            rows[here] = sources[int(number)].streams[name].rows[places[here, 1]]
    for begin, end in itertools.pairwise(edges):
        for column in COLUMNS:
            data = [
                sources[int(number)].streams[name].record(column, int(row))
                for number, row in places[begin:end]
            ]
            if len(data[0]):
                records.setdefault(column, []).append(np.stack(data))
    return join([StreamRows(rows, records)])


def check_all(stream: Stream, live: np.ndarray) -> None:
    """Reads every live record of a stream; raises `DamagedRow`."""
    for row in np.flatnonzero(live).tolist():
        for column in COLUMNS:
            stream.record(column, row)
        if zlib.crc32(stream.record("values", row)) != int(stream.rows["checksum"][row]):
            raise DamagedRow(stream.folder, stream.name, "values", row)
