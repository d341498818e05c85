"""What an index knows of its clips: the header that they share, a row for each, one writer's lock.

INDEX/
   index.json           the header: format version, the model's identity, distance, storage, width
   rows.lance           a LanceDB table with a row for each clip
   segments/00000000/   sequences and what is computed from them, appended and never changed
   lock                 held by the one writer

A row says where a clip is from and where its sequences are. Each change is one commit, so a
reader sees the table before it or after it; old versions stay readable.
"""

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from reprlib import repr as short

import numpy as np
from jaxtyping import Int

from scav_jax.base.documents import read_object, unsealed, write_document
from scav_jax.base.errors import OUR_FAULTS, InputError, did_you_mean
from scav_jax.base.files import full_disk_is_an_oserror
from scav_jax.base.locks import only_one
from scav_jax.distances import find, option_names
from scav_jax.sequences import DIRECTIONS as RESAMPLINGS

FORMAT_VERSION = 2
HEADER, SEGMENTS, TABLE = "index.json", "segments", "rows"
STREAMS = ("visual", "audio")
STORAGES = ("float32", "bfloat16", "int8")
ABOUT = ("id", "source", "start", "end", "label")
IDS_AT_ONCE = 4096  # in one condition
NAMED = 16  # rows that are read as fast as one is named
MEND = "bring it back from a copy, or build the index again"
KEPT_HOURS = 24  # old versions, for readers that still use them


@dataclass(frozen=True)
class Header:
    """What all clips of an index have in common.

    Attributes:
      identity: names the model and the features that the latents are of.
      distance: ranks sequences, in its retrieval form.
      options: its options, all of them.
      storage: how sequences are stored, one of `STORAGES`.
      width: latent channels C; 0 until the first clips come.
    """

    identity: str
    distance: str = "euclidean"
    options: dict = field(default_factory=dict)
    storage: str = "float32"
    width: int = 0
    format_version: int = FORMAT_VERSION

    @property
    def one_grid(self) -> bool:
        """Whether sequences are compared step by step, on the grid of the target stream."""
        return self.distance == "euclidean"

    @property
    def target(self) -> str:
        """The stream whose steps are compared; the other one is interpolated at them."""
        resample = self.options.get("resample", RESAMPLINGS[0])
        return "audio" if resample == "visual_to_audio" else "visual"


def make_header(identity: str, distance: tuple[str, dict], storage: str) -> Header:
    """A checked header."""
    name, options = distance
    find(name, options)
    if storage not in STORAGES:
        raise InputError(
            f"storage: expected one of {', '.join(STORAGES)}, got {storage!r}."
            + did_you_mean(str(storage), STORAGES)
        )
    if "resample" in option_names(name):
        options = {"resample": RESAMPLINGS[0], **options}
    # How the training multiplied is no business of the index: it has a storage of its own.
    options = {key: value for key, value in options.items() if key != "storage"}
    return Header(str(identity), name, options, storage)


def write_header(path: Path, header: Header) -> None:
    """Atomically."""
    write_document(path / HEADER, asdict(header))


def read_header(path: Path) -> Header:
    """The header of the index at `path`.

    Raises:
      InputError: no index there, or one of another format.
    """
    what = "the header of an index"
    try:
        document = read_object(path / HEADER, what, MEND)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{path}: expected an index (a folder with {HEADER}), found none; "
            "make one with `python -m scav_jax.index build`"
        ) from None
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path}: expected an index of format {FORMAT_VERSION}, got {short(version)}; build it "
            "again with this version"
        )
    return Header(**unsealed(document, f"{path / HEADER}: expected {what}", MEND))


def one_writer(path: Path) -> contextlib.AbstractContextManager[None]:
    """Holds the index for writing; the system lets go of it when the holder ends, however it ends.

    Raises:
      InputError: another writer holds it.
    """
    return only_one(
        path,
        f"{path}: expected to be the only writer, another process is writing; wait until it is "
        "done (readers need not)",
    )


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Says in a line that the table cannot be read, whatever LanceDB makes of damaged files.

    A panic of its Rust code is no `Exception`; KeyboardInterrupt and the like pass.
    """
    try:
        yield
    except (InputError, PermissionError, MemoryError, *OUR_FAULTS):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path / TABLE}.lance: expected the rows of an index, they cannot be read ({reason}); "
            f"{MEND}"
        ) from error


def _connect(path: Path):
    os.environ.setdefault("LANCEDB_LOG", "error")  # it warns that a new table is not there yet
    try:
        import lancedb
    except ModuleNotFoundError as error:
        raise InputError(
            "an index needs the library lancedb, it is not installed; "
            "`pip install 'scav_jax[index]'` brings it"
        ) from error
    return lancedb.connect(str(path))


def schema():
    """What a row holds: the clip, its key (order of adding), place, and checksums (CRC-32)."""
    import pyarrow as pa

    types = {"id": pa.string(), "source": pa.string(), "start": pa.float64(), "end": pa.float64()}
    types |= {"label": pa.string(), "key": pa.int64(), "segment": pa.int32(), "row": pa.int32()}
    types |= {f"checksum_{stream}": pa.uint32() for stream in STREAMS}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in types.items()])


def _check_files(folder: Path) -> None:
    """Raises `InputError` for what is no file below a folder: LanceDB would wait for a pipe."""
    for below, _, names in os.walk(folder):
        for name in names:
            path = Path(below, name)
            if path.exists() and not path.is_file():
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
            return cls(path, connection.create_table(TABLE, schema=schema(), mode="overwrite"))

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
        """Goes to the latest version."""
        self._table.checkout_latest()

    def __len__(self) -> int:
        return self._table.count_rows()

    def places(self, where: str | None = None) -> Iterator[Int[np.ndarray, "n 2"]]:
        """(segment, row) of the clips that a condition holds for, or of all, part by part.

        Raises:
          InputError: a condition that is none.
        """
        if len(self) == 0 and where is None:
            return
        for batch in self._scan(["segment", "row"], where):
            yield _places(batch)

    def _scan(self, columns: list[str], where: str | None):
        query = self._table.search().select(columns)
        if where is not None:
            query = query.where(where)
        try:
            with _damage_named(self.path) if where is None else contextlib.nullcontext():
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
            parts = np.split(unique, range(IDS_AT_ONCE, len(unique), IDS_AT_ONCE))
            conditions = [_condition(part) for part in parts if len(part)]
        for condition in conditions:
            for batch in self._scan([*ABOUT, "segment", "row"], condition):
                batch = batch.filter(np.isin(_place_numbers(_places(batch)), unique))
                for place, row in zip(_places(batch).tolist(), batch.to_pylist(), strict=True):
                    found[tuple(place)] = {name: row[name] for name in ABOUT}
        return found

    def existing(self, ids: list[str]) -> list[str]:
        """Those of some ids that are in the table."""
        found: list[str] = []
        for begin in range(0, len(ids), IDS_AT_ONCE):
            for batch in self._scan(["id"], _ids_in(ids[begin : begin + IDS_AT_ONCE])):
                found += batch.column("id").to_pylist()
        return found

    def tables(self) -> Iterator:
        """All rows as Arrow record batches."""
        if len(self):
            yield from self._scan(schema().names, None)

    def add(self, table, replace: bool = False) -> None:
        """Adds rows in one commit; with `replace`, those whose id is there take its place."""
        with full_disk_is_an_oserror(self.path):
            if not replace:
                self._table.add(table)
                return
            merge = self._table.merge_insert("id").when_matched_update_all()
            merge.when_not_matched_insert_all().execute(table)

    def delete(self, ids: list[str]) -> None:
        with full_disk_is_an_oserror(self.path):
            self._table.delete(_ids_in(ids))

    def overwrite(self, batches: Iterator) -> None:
        """All rows anew, in one commit."""
        import pyarrow as pa

        with full_disk_is_an_oserror(self.path):
            self._table.add(pa.RecordBatchReader.from_batches(schema(), batches), mode="overwrite")

    def clean(self) -> None:
        """Drops versions that no reader can still want."""
        self._table.optimize(cleanup_older_than=datetime.timedelta(hours=KEPT_HOURS))


def _places(batch) -> Int[np.ndarray, "n 2"]:
    return np.stack([batch.column(name).to_numpy() for name in ("segment", "row")], axis=1)


def _place_numbers(places: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, " n"]:
    """One number for each (segment, row)."""
    return places[:, 0].astype(np.int64) << 32 | places[:, 1]


def _condition(numbers: Int[np.ndarray, " n"]) -> str:
    """That a row is at one of these places."""
    segments, rows = numbers >> 32, numbers & 0xFFFFFFFF
    return " OR ".join(
        f"(segment = {segment} AND row IN ({', '.join(map(str, rows[segments == segment]))}))"
        for segment in np.unique(segments)
    )


def _ids_in(ids: list[str]) -> str:
    texts = ("'" + one.replace("'", "''") + "'" for one in ids)
    return f"id IN ({', '.join(texts)})"
