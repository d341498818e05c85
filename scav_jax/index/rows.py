"""The rows of an index: a LanceDB table, one row for each clip.

A row says where a clip is from and where its sequences are. Each change is one commit, so a
reader sees the table before it or after it; old versions stay readable.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from scav_jax.errors import InputError
from scav_jax.index.layout import TABLE

SHOWN = 5  # ids in a message
CHUNK = 4096  # ids in one condition
NAMED = 16  # rows that are read as fast as one is named
ABOUT = ("id", "source", "start", "end", "label")
KEPT_HOURS = 24  # old versions, for readers that still use them


def _lancedb():
    os.environ.setdefault("LANCEDB_LOG", "error")  # it warns that a new table is not there yet
    try:
        import lancedb
    except ModuleNotFoundError as error:
        raise InputError(
            "an index needs the library lancedb, it is not installed; "
            "`pip install 'scav_jax[index]'` brings it"
        ) from error
    return lancedb


def schema():
    """What a row holds: the clip, its key (order of adding), place, and checksums (CRC-32)."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("start", pa.float64(), nullable=False),
            pa.field("end", pa.float64(), nullable=False),
            pa.field("label", pa.string(), nullable=False),
            pa.field("key", pa.int64(), nullable=False),
            pa.field("segment", pa.int32(), nullable=False),
            pa.field("row", pa.int32(), nullable=False),
            pa.field("checksum_visual", pa.uint32(), nullable=False),
            pa.field("checksum_audio", pa.uint32(), nullable=False),
        ]
    )


@contextlib.contextmanager
def system_errors() -> Iterator[None]:
    """A full disk is an `OSError` whatever LanceDB wraps it in."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        for number, words in (
            (errno.ENOSPC, "no space left"),
            (errno.EDQUOT, "quota exceeded"),
            (errno.EFBIG, "file too large"),
        ):
            if words in str(error).lower():
                raise OSError(number, str(error).splitlines()[0]) from error
        raise


class Rows:
    """The table, at its latest version or at one that a reader holds on to."""

    def __init__(self, path: Path, table):
        self.path = path
        self._table = table

    @classmethod
    def create(cls, path: Path) -> "Rows":
        connection = _lancedb().connect(str(path))
        with system_errors():
            return cls(path, connection.create_table(TABLE, schema=schema(), mode="overwrite"))

    @classmethod
    def open(cls, path: Path) -> "Rows":
        connection = _lancedb().connect(str(path))
        try:
            return cls(path, connection.open_table(TABLE))
        except (ValueError, RuntimeError, OSError) as error:
            raise InputError(
                f"{path}: expected the table of rows of an index, it cannot be opened "
                f"({str(error).splitlines()[0]}); build the index again"
            ) from error

    @property
    def version(self) -> int:
        return self._table.version

    def hold(self) -> None:
        """Stays at the present version whatever is written."""
        self._table.checkout(self._table.version)

    def latest(self) -> None:
        """Goes to the latest version."""
        self._table.checkout_latest()

    def __len__(self) -> int:
        return self._table.count_rows()

    # -- reading ----------------------------------------------------------------------------------

    def places(self, where: str | None = None) -> Iterator[Int[np.ndarray, "n 2"]]:
        """(segment, row) of the clips that a condition holds for, or of all, part by part.

        Raises:
          InputError: a condition that is none.
        """
        if len(self) == 0 and where is None:
            return
        for batch in self._scan(["segment", "row"], where):
            columns = [batch.column(name).to_numpy() for name in ("segment", "row")]
            yield np.stack(columns, axis=1)

    def _scan(self, columns: list[str], where: str | None):
        query = self._table.search().select(columns)
        if where is not None:
            query = query.where(where)
        try:
            yield from query.limit(max(len(self), 1)).to_batches()
        except (ValueError, RuntimeError, OSError) as error:
            if where is None:
                raise
            reason = str(error).splitlines()[0].removeprefix("Invalid input, ")
            raise InputError(
                f"filter {where!r}: expected a condition on id, source, start, end or label such "
                f"as \"label = 'dog' AND start < 60\", got: {reason.strip()}"
            ) from error

    def at(self, places: Int[np.ndarray, "n 2"]) -> dict[tuple[int, int], dict]:
        """What is known of the clips at some places: `ABOUT` of each."""
        found: dict[tuple[int, int], dict] = {}
        unique = np.unique(_place_numbers(places))
        # A condition costs about as much as reading so many rows for each place that it names.
        if len(unique) * NAMED > len(self):
            conditions = [None]
        else:
            parts = np.split(unique, range(CHUNK, len(unique), CHUNK))
            conditions = [_condition(part) for part in parts if len(part)]
        for condition in conditions:
            for batch in self._scan([*ABOUT, "segment", "row"], condition):
                segment, row = (batch.column(name).to_numpy() for name in ("segment", "row"))
                wanted = np.isin(_place_numbers(np.stack([segment, row], axis=1)), unique)
                if not wanted.any():
                    continue
                kept = batch.filter(wanted)
                columns = [kept.column(name).to_pylist() for name in ABOUT]
                rows = [
                    dict(zip(ABOUT, values, strict=True)) for values in zip(*columns, strict=True)
                ]
                keys = zip(segment[wanted].tolist(), row[wanted].tolist(), strict=True)
                found.update(zip(keys, rows, strict=True))
        return found

    def existing(self, ids: list[str]) -> list[str]:
        """Those of some ids that are in the table."""
        found: list[str] = []
        for begin in range(0, len(ids), CHUNK):
            condition = f"id IN ({_texts(ids[begin : begin + CHUNK])})"
            for batch in self._scan(["id"], condition):
                found += batch.column("id").to_pylist()
        return found

    def tables(self, batch_rows: int = 65536) -> Iterator:
        """All rows as Arrow record batches."""
        del batch_rows
        if len(self):
            yield from self._scan(schema().names, None)

    # -- commits ----------------------------------------------------------------------------------

    def add(self, table) -> None:
        with system_errors():
            self._table.add(table)

    def replace(self, table) -> None:
        """Adds rows; those whose id is there take its place."""
        with system_errors():
            merge = self._table.merge_insert("id").when_matched_update_all()
            merge.when_not_matched_insert_all().execute(table)

    def delete(self, ids: list[str]) -> None:
        with system_errors():
            self._table.delete(f"id IN ({_texts(ids)})")

    def overwrite(self, batches: Iterator) -> None:
        """All rows anew, in one commit."""
        import pyarrow as pa

        with system_errors():
            self._table.add(pa.RecordBatchReader.from_batches(schema(), batches), mode="overwrite")

    def clean(self) -> None:
        """Drops versions that no reader can still want."""
        import datetime

        self._table.optimize(cleanup_older_than=datetime.timedelta(hours=KEPT_HOURS))


def _place_numbers(places: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, " n"]:
    """One number for each (segment, row)."""
    return places[:, 0].astype(np.int64) << 32 | places[:, 1]


def _condition(numbers: Int[np.ndarray, " n"]) -> str:
    """That a row is at one of these places."""
    segments, rows = numbers >> 32, numbers & 0xFFFFFFFF
    return " OR ".join(
        f"(segment = {segment} AND row IN ({_numbers(rows[segments == segment])}))"
        for segment in np.unique(segments)
    )


def _numbers(values: np.ndarray) -> str:
    return ", ".join(str(int(value)) for value in values)


def _texts(values: list[str]) -> str:
    return ", ".join("'" + value.replace("'", "''") + "'" for value in values)


def live_rows(
    places: Iterator[Int[np.ndarray, "n 2"]], sizes: dict[int, int]
) -> dict[int, Bool[np.ndarray, " rows"]]:
    """Which rows of each segment are among the places; segments without any are left out."""
    live: dict[int, np.ndarray] = {}
    for part in places:
        for segment in np.unique(part[:, 0]):
            number = int(segment)
            if number not in live:
                live[number] = np.zeros(sizes[number], bool)
            live[number][part[part[:, 0] == segment, 1]] = True
    return live
