"""The table of an index: a row for each clip, where it is from and where its sequences are."""

import contextlib
import datetime
import functools
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from reprlib import repr as short

import numpy as np
from jaxtyping import Int, UInt32

from scav_jax.base.conditions import NUMBER, TEXT, as_sql
from scav_jax.base.documents import read_document, write_document
from scav_jax.base.errors import OUR_FAULTS, InputError, first_line, in_a_line
from scav_jax.base.files import check_readable, full_disk_is_an_oserror
from scav_jax.base.names import is_text
from scav_jax.index.catalog import ABOUT, COMMITTED, MEND, SEGMENTS
from scav_jax.sequences import STREAMS

TABLE = "rows"
PANICS = ("PanicException", "RustPanic")  # of Rust, which are no `Exception`
KNOWN = ("segment", "row", "key", "checksum_visual", "checksum_audio")
FILTERED = {"id": TEXT, "source": TEXT, "start": NUMBER, "end": NUMBER, "label": TEXT}
FILTER_SECONDS = 20.0  # what a condition may take
IDS_AT_ONCE = 4096  # in one condition
NAMED = 16  # rows that are read as fast as one is named
FRAGMENTS = 64  # of the table: each commit leaves one, and each one slows every reading
KEPT_HOURS = 24  # old versions, for readers that still use them


def about_checksums(rows: Mapping[str, Sequence]) -> UInt32[np.ndarray, " n"]:
    """CRC-32 of what is known of each clip, uint32: its segment has it too."""
    clips = zip(*(rows[name] for name in ABOUT), strict=True)
    sums = [zlib.crc32(json.dumps(list(clip)).encode()) for clip in clips]
    return np.array(sums, np.uint32)


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Says in a line that the table cannot be read, whatever LanceDB makes of damaged files.

    A panic of its Rust code is no `Exception`; KeyboardInterrupt and the like pass.
    """
    try:
        yield
    except (InputError, MemoryError, *OUR_FAULTS):
        raise
    except BaseException as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the machine's word, not the file's
        if not isinstance(error, Exception) and type(error).__name__ not in PANICS:
            raise
        check_readable(path / f"{TABLE}.lance")
        raise InputError(
            f"{path / TABLE}.lance: expected the rows of an index, they cannot be read "
            f"({in_a_line(error)}); {MEND}"
        ) from error


def _connect(path: Path):
    os.environ.setdefault("LANCEDB_LOG", "error")  # it warns that a new table is not there yet
    try:
        import lancedb
    except ModuleNotFoundError as error:
        raise InputError(
            "an index needs the library lancedb, it is not installed; "
            "`pip install -c constraints.txt '.[index]'` brings it"
        ) from error
    if not is_text(str(path.absolute())):
        raise InputError(f"{path}: expected a path that is text in UTF-8 for an index; rename it")
    return lancedb.connect(str(path))


def schema():
    """What a row holds: the clip, what its file was like, its key, place, and checksums.

    `content` is `base.documents.content_sample` of the source, "" where nobody looked; keys follow
    the order of adding; checksums are CRC-32.
    """
    import pyarrow as pa

    types = {"id": pa.string(), "source": pa.string(), "start": pa.float64(), "end": pa.float64()}
    types |= {"label": pa.string(), "content": pa.string(), "key": pa.int64()}
    types |= {"segment": pa.int32(), "row": pa.int32()}
    types |= {f"checksum_{stream}": pa.uint32() for stream in STREAMS}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in types.items()])


def _check_files(folder: Path) -> None:
    """Raises `InputError` for what is no file below a folder: LanceDB would wait for a pipe."""
    for below, _, names in os.walk(folder):
        for name in names:
            path = Path(below, name)
            if os.path.lexists(path) and not path.is_file():
                raise InputError(f"{path}: expected a file of an index, got another thing; {MEND}")
            if path.suffix == ".manifest" and not _is_manifest(path.read_bytes()):
                raise InputError(f"{path}: expected a version of an index's rows, damaged; {MEND}")


def _is_manifest(content: bytes) -> bool:
    """Whether a version of a LanceDB table reaches no further than its file.

    Its library does not look, and panics, at length. At the end: where the description lies, two
    numbers of a version, four letters; the description begins with its length.
    """
    place = int.from_bytes(content[-16:-8], "little")
    length = int.from_bytes(content[place : place + 4], "little")
    return content[-4:] == b"LANC" and place + 4 + length <= len(content) - 16


class Rows:
    """The table, at its latest version or at one that a reader holds on to."""

    def __init__(self, path: Path, table):
        self.path, self._table = path, table

    @classmethod
    def create(cls, path: Path) -> "Rows":
        connection = _connect(path)
        with full_disk_is_an_oserror(path):
            rows = cls(path, connection.create_table(TABLE, schema=schema(), mode="overwrite"))
        rows.note_version()
        return rows

    @classmethod
    def open(cls, path: Path) -> "Rows":
        connection = _connect(path)
        with _damage_named(path):
            _check_files(path / f"{TABLE}.lance")
            return cls(path, connection.open_table(TABLE))

    @property
    def version(self) -> int:
        return self._table.version

    def hold(self) -> None:
        """Stays at the present version whatever is written."""
        self._table.checkout(self._table.version)

    def latest(self) -> None:
        """Goes to the latest version.

        Raises:
          InputError: a later one was written, its file is gone: without it clips would be missing
            silently, or deleted ones be back; or there are more or fewer clips than were left.
        """
        noted, before = self._noted(), None
        while noted != before:  # a writer may have been at work between the two readings
            self._table.checkout_latest()
            if type(noted["version"]) is not int or self.version < noted["version"]:
                raise InputError(
                    f"{self.path / TABLE}.lance: expected version {short(noted['version'])} of the "
                    f"rows or a later one, the latest there is {self.version}; {MEND}"
                )
            later = (noted["coming"],) if self.version > noted["version"] else ()
            if len(self) in (noted["clips"], *later):
                return
            noted, before = self._noted(), noted
        raise InputError(
            f"{self.path / TABLE}.lance: expected {short(noted['clips'])} rows, as `scav index` "
            f"left them, got {len(self)}: another program has changed the table; {MEND}"
        )

    def _noted(self) -> dict:
        what, file = "the version of an index's rows", self.path / SEGMENTS / COMMITTED
        if not file.exists():
            raise InputError(f"{file}: expected {what}, it is not there; {MEND}")
        found = read_document(file, what, MEND)
        return {name: found.get(name) for name in ("version", "clips", "coming")}

    def note_version(self, coming: int | None = None) -> None:
        """Says what the latest version is, after a change, or how many clips one will leave."""
        clips = len(self)
        about = {"version": self.version, "clips": clips}
        about["coming"] = clips if coming is None else coming
        write_document(self.path / SEGMENTS / COMMITTED, about)

    def __len__(self) -> int:
        with _damage_named(self.path):
            return self._table.count_rows()

    def places(self, where: str | None = None) -> Iterator[Int[np.ndarray, "n 2"]]:
        """(segment, row) of the clips that a condition holds for, or of all, part by part.

        Raises:
          InputError: a condition that is none (see `base.conditions`), or that takes too long.
        """
        for batch in self._scan(["segment", "row"], where):
            yield numbers_in(batch, "segment", "row")

    def known(self) -> Iterator[Int[np.ndarray, "n 5"]]:
        """Of all clips: segment, row, key, and the checksums of picture and sound."""
        for batch in self._scan(list(KNOWN), None):
            yield numbers_in(batch, *KNOWN)

    def _scan(self, columns: list[str], where: str | None, inner: str | None = None):
        """Rows that a condition of a user holds for, or one of ours (`inner`)."""
        condition = inner if where is None else checked_filter(where)
        if len(self) == 0:
            return
        with _damage_named(self.path):
            query = self._table.search().select(columns)
        if condition is not None:
            query = query.where(condition)
        limit = None if where is None else datetime.timedelta(seconds=FILTER_SECONDS)
        try:
            with _damage_named(self.path) if where is None else contextlib.nullcontext():
                yield from query.limit(len(self)).to_batches(timeout=limit)
        except (ValueError, RuntimeError, OSError) as error:
            if where is None:
                raise
            reason = first_line(error).removeprefix("Invalid input, ")
            reason = reason.partition(", /")[0].strip()[:300]  # without places in Lance's source
            if "timeout" in str(error).lower():
                reason = f"no answer within {FILTER_SECONDS:g} s"
            raise InputError(f"filter {where[:200]!r}: {reason}; ask for less") from error

    def at(self, places: Int[np.ndarray, "n 2"]) -> dict[tuple[int, int], dict]:
        """What is known of the clips at some places: `ABOUT` of each."""
        found: dict[tuple[int, int], dict] = {}
        unique = np.unique(numbered(*places.T))
        for condition in self._conditions(unique, _is_at):
            for batch in self._scan([*ABOUT, "segment", "row"], None, condition):
                here = numbers_in(batch, "segment", "row")
                wanted = np.isin(numbered(*here.T), unique)
                batch, here = batch.filter(wanted).select(list(ABOUT)), here[wanted]
                found |= zip(map(tuple, here.tolist()), batch.to_pylist(), strict=True)
        return found

    def existing(self, ids: list[str]) -> list[str]:
        """Those of some ids that are in the table."""
        return [row["id"] for row in self.with_values("id", ids)]

    def with_values(self, column: str, values: Sequence[str]) -> Iterator[dict]:
        """`ABOUT` and `content` of the clips whose id, or source, is one of some."""
        import pyarrow as pa

        wanted = set(values)
        for condition in self._conditions(values, functools.partial(_is_in, column)):
            for batch in self._scan([*ABOUT, "content"], None, condition):
                there = [one in wanted for one in batch.column(column).to_pylist()]
                yield from batch.filter(pa.array(there, pa.bool_())).to_pylist()

    def _conditions(self, wanted, condition: Callable[..., str]) -> list[str | None]:
        """Conditions that name what is wanted, some at a time; None (all rows) where it is much."""
        if len(wanted) * NAMED > len(self):
            return [None]
        begins = range(0, len(wanted), IDS_AT_ONCE)
        return [condition(wanted[begin : begin + IDS_AT_ONCE]) for begin in begins]

    def tables(self) -> Iterator:
        """All rows as Arrow record batches."""
        yield from self._scan(schema().names, None)

    def add(self, table, replace: bool = False) -> None:
        """Adds rows in one commit; with `replace`, those whose id is there take its place."""
        there = len(self.existing(table.column("id").to_pylist())) if replace else 0
        with full_disk_is_an_oserror(self.path):
            self.note_version(len(self) + len(table) - there)
            if not replace:
                self._table.add(table)
                return
            merge = self._table.merge_insert("id").when_matched_update_all()
            merge.when_not_matched_insert_all().execute(table)

    def delete(self, ids: list[str]) -> None:
        with full_disk_is_an_oserror(self.path):
            self.note_version(len(self) - len(ids))
            self._table.delete(_is_in("id", ids))

    def overwrite(self, batches: Iterator) -> None:
        """All rows anew, in one commit."""
        import pyarrow as pa

        with full_disk_is_an_oserror(self.path):
            self._table.add(pa.RecordBatchReader.from_batches(schema(), batches), mode="overwrite")

    def gather(self) -> bool:
        """Writes the fragments of many commits together; whether that made a new version."""
        if self._table.stats()["fragment_stats"]["num_fragments"] < FRAGMENTS:
            return False
        with full_disk_is_an_oserror(self.path):
            self.clean()
        return True

    def clean(self) -> None:
        """Joins fragments, and drops versions that no reader can still want."""
        self._table.optimize(cleanup_older_than=datetime.timedelta(hours=KEPT_HOURS))


def checked_filter(where: str) -> str:
    """A condition of a user as the table takes it; `InputError` for anything else."""
    return as_sql(where, FILTERED)


def numbers_in(batch, *names: str) -> Int[np.ndarray, "n columns"]:
    """Some columns of an Arrow record batch, int64."""
    columns = [batch.column(name).to_numpy().astype(np.int64) for name in names]
    return np.stack(columns, axis=1)


def about_in(batch) -> Iterator[tuple[int, int, int]]:
    """(segment, row, checksum) of what an Arrow record batch says of each clip."""
    sums = about_checksums({name: batch.column(name).to_pylist() for name in ABOUT})
    for place, there in zip(numbers_in(batch, "segment", "row").tolist(), sums, strict=True):
        yield *place, int(there)


def numbered(segments: Int[np.ndarray, " n"], rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """One number for each place, in the order of places."""
    return segments.astype(np.int64) << 32 | rows


def _is_at(numbers: Int[np.ndarray, " n"]) -> str:
    """That a row is at one of these places."""
    segments, rows = numbers >> 32, numbers & 0xFFFFFFFF
    return " OR ".join(
        f"(segment = {segment} AND row IN ({', '.join(map(str, rows[segments == segment]))}))"
        for segment in np.unique(segments)
    )


def _is_in(column: str, values: Sequence[str]) -> str:
    texts = ("'" + one.replace("'", "''") + "'" for one in values)
    return f"{column} IN ({', '.join(texts)})"
