"""What an index knows of its clips: the header that they share, a row for each, one writer's lock.

INDEX/
   index.json           the header: format version, the model's identity, distance, storage, width,
                        the root of its videos and how they are cut
   rows.lance           a LanceDB table with a row for each clip
   rows.json            the version of that table that was written last
   segments/00000000/   sequences and what is computed from them, appended and never changed
   bank.npz             what scores are relative to, where there is that, see `hubness`
   lock                 held by the one writer
   adding.json          the clips of an `add` that has not ended

Ids belong to the root. A clip's id is the one that it has in its folder of videos (the file's path
below it, or what its clips.csv says), behind the way from the root to that folder; its source is
the file's path below the root. So one file has one id whichever folder is given, and files that are
called alike in two folders have two.

A row says where a clip is from and where its sequences are. Each change is one commit, so a
reader sees the table before it or after it; old versions stay readable.
"""

import contextlib
import datetime
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from reprlib import repr as short

import numpy as np
from jaxtyping import Float, Int, UInt32

from scav_jax.base.conditions import NUMBER, TEXT, as_sql
from scav_jax.base.documents import read_document, read_object, unsealed, write_document
from scav_jax.base.errors import OUR_FAULTS, InputError, check_one_of
from scav_jax.base.files import full_disk_is_an_oserror
from scav_jax.base.locks import only_one
from scav_jax.base.names import is_text
from scav_jax.distances import find, option_names
from scav_jax.distances.static import SUFFIX
from scav_jax.sequences import DIRECTIONS as RESAMPLINGS
from scav_jax.sequences import STREAMS

FORMAT_VERSION = 6
HEADER, SEGMENTS, TABLE, COMMITTED = "index.json", "segments", "rows", "rows.json"
ADDING, BANK = "adding.json", "bank.npz"
STORAGES = ("float32", "bfloat16", "int8")
ABOUT = ("id", "source", "start", "end", "label")
FILTERED = {"id": TEXT, "source": TEXT, "start": NUMBER, "end": NUMBER, "label": TEXT}
FILTER_SECONDS = 20.0  # what a condition may take
WHOLE = 0.0  # clip seconds of an index whose videos are not cut
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
      embedding_width: E, of embeddings; 0 until then.
      root: the folder that ids and sources of videos are relative to; None where nobody said so.
      clip_seconds: into which videos are cut; `WHOLE` where they are not, None where none came.
      bank: names the bank that scores are relative to; "" where clips are ranked by distances.
      bank_clips: how many it has.
      sketch, sketch_width: what makes sketches, the first stage, and S; "" where there are none.
    """

    identity: str
    distance: str = "euclidean"
    options: dict = field(default_factory=dict)
    storage: str = "float32"
    width: int = 0
    embedding_width: int = 0
    root: str | None = None
    clip_seconds: float | None = None
    bank: str = ""
    bank_clips: int = 0
    sketch: str = ""
    sketch_width: int = 0
    format_version: int = FORMAT_VERSION

    @property
    def one_grid(self) -> bool:
        """Whether sequences are compared step by step, on the grid of the target stream."""
        return self.distance in ("euclidean", f"euclidean{SUFFIX}")

    @property
    def static_width(self) -> int:
        """How many of the channels, the last ones, are constant over a clip (`distances.static`).

        Those of the clips are stored as they are, and a query's are multiplied by the weight, so
        any weight can be asked with.
        """
        return self.options.get("static_width", 0)

    def with_weight(self, weight: float | None) -> "Header":
        """The header of a search with this weight of the static part; None keeps the index's."""
        if weight is None:
            return self
        if not self.static_width:
            raise InputError(
                f"static weight: expected an index of a model with a static part, this one ranks "
                f"by {self.distance!r} alone; leave it out"
            )
        if not 0 <= weight < float("inf"):
            raise InputError(f"static weight: expected 0 or more, got {weight}")
        if self.bank and weight != self.options["static_weight"]:
            raise InputError(
                f"static weight: expected {self.options['static_weight']:g}, that of the bank's "
                f"distances, got {weight:g}; leave it out, or use --hubness none"
            )
        return replace(self, options=self.options | {"static_weight": float(weight)})

    def asked(self, static_weight: float | None = None, hubness: str | None = None) -> "Header":
        """The header of a search, see `Index.search`; `InputError` for what cannot be asked."""
        if hubness is not None:
            check_one_of("hubness", hubness, ("bank", "none"))
        if hubness == "bank" and not self.bank:
            raise InputError("hubness: expected an index built with --hubness bank; leave it out")
        header = replace(self, bank="") if hubness == "none" else self
        return header.with_weight(static_weight)

    def score_of(self, squares: Float[np.ndarray, " p"]) -> Float[np.ndarray, " p"]:
        """Distances, of mean squared differences of what is stored and a weighted query.

        With a static part of weight w: both differ by the lengths of static vectors, `(1 - w)^2`.
        Scores that are relative to a bank are final: none of this matters to them.
        """
        if not self.static_width or self.bank:
            return squares
        share = self.width / (self.width - self.static_width)
        return (squares * share - (1.0 - self.options["static_weight"]) ** 2).astype(np.float32)

    @property
    def first_stage(self) -> str:
        """The column that the first stage of a hybrid search reads."""
        return "sketches" if self.sketch else "embeddings"

    @property
    def target(self) -> str:
        """The stream whose steps are compared; the other one is interpolated at them."""
        resample = self.options.get("resample", RESAMPLINGS[0])
        return "audio" if resample == "visual_to_audio" else "visual"

    @property
    def stored_as(self) -> dict:
        """What sequences depend on, as JSON: that of every segment."""
        names = ("identity", "distance", "options", "storage", "bank", "sketch")
        told = {name: getattr(self, name) for name in names}
        told["options"] = {k: v for k, v in self.options.items() if k != "static_weight"}
        return json.loads(json.dumps(told))

    def declared(self, path: Path, root: str | None, clip_seconds: float | None) -> "Header":
        """The header of an index to which such videos are added.

        Args:
          path: of the index, for messages.
          root: the folder that was named as root; None keeps what is.
          clip_seconds: see the attribute; None keeps what is.

        Raises:
          InputError: they contradict what the index was begun with.
        """
        if None not in (root, self.root) and not same_folder(root, self.root):
            raise InputError(
                f"{path}: expected the root {self.root}, to which the ids of the index are "
                f"relative, got {root}; leave out --root, or build an index with that root. If the "
                "videos have moved, `scav index move` says where to"
            )
        if None not in (clip_seconds, self.clip_seconds) and clip_seconds != self.clip_seconds:
            raise InputError(
                f"{path}: expected {_cut_words(self.clip_seconds)}, as its videos were cut, got "
                f"{_cut_words(clip_seconds)}; give the same, or build another index"
            )
        return replace(
            self,
            root=root if self.root is None else self.root,
            clip_seconds=clip_seconds if self.clip_seconds is None else self.clip_seconds,
        )

    def stored_source(self, source: str) -> str:
        """A file's path as rows hold it: below the root, where it lies there."""
        below = f"{self.root}/".replace("//", "/")
        return source.removeprefix(below) if self.root else source

    def full_source(self, source: str) -> str:
        """A file's path with its folder, where that is known."""
        return os.path.join(self.root, source) if self.root else source


def same_folder(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _cut_words(clip_seconds: float) -> str:
    return f"--clip-seconds {clip_seconds:g}" if clip_seconds else "no --clip-seconds"


def make_header(
    identity: str, distance: tuple[str, dict], storage: str, root: str | Path | None = None
) -> Header:
    """A checked header."""
    name, options = distance
    find(name, options)
    check_one_of("storage", storage, STORAGES)
    if "resample" in option_names(name):
        options = {"resample": RESAMPLINGS[0], **options}
    # How the training multiplied is no business of the index: it has a storage of its own.
    options = {key: value for key, value in options.items() if key != "storage"}
    root = None if root is None else os.path.abspath(root)
    return Header(str(identity), name, options, storage, root=root)


def write_header(path: Path, header: Header) -> None:
    """Atomically."""
    write_document(path / HEADER, asdict(header))


def about_checksums(rows: Mapping[str, Sequence]) -> UInt32[np.ndarray, " n"]:
    """CRC-32 of what is known of each clip, uint32: its segment has it too."""
    clips = zip(*(rows[name] for name in ABOUT), strict=True)
    sums = [zlib.crc32(json.dumps(list(clip)).encode()) for clip in clips]
    return np.array(sums, np.uint32)


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
    except (InputError, MemoryError, *OUR_FAULTS):
        raise
    except BaseException as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the machine's word, not the file's
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
    if not is_text(str(path.absolute())):
        raise InputError(f"{path}: expected a path that is text in UTF-8 for an index; rename it")
    return lancedb.connect(str(path))


def schema():
    """What a row holds: the clip, its key (order of adding), place, and checksums (CRC-32)."""
    import pyarrow as pa

    types = {"id": pa.string(), "source": pa.string(), "start": pa.float64(), "end": pa.float64()}
    types |= {"label": pa.string(), "key": pa.int64(), "segment": pa.int32(), "row": pa.int32()}
    types |= {f"checksum_{stream}": pa.uint32() for stream in STREAMS}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in types.items()])


KNOWN = ("segment", "row", "key", "checksum_visual", "checksum_audio")


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
            silently, or deleted ones be back.
        """
        what, file = "the version of an index's rows", self.path / COMMITTED
        if not file.exists():
            raise InputError(f"{file}: expected {what}, it is not there; {MEND}")
        written = read_document(file, what, MEND).get("version")
        self._table.checkout_latest()
        if type(written) is not int or self.version < written:
            raise InputError(
                f"{self.path / TABLE}.lance: expected version {short(written)} of the rows or a "
                f"later one, the latest there is {self.version}; {MEND}"
            )

    def note_version(self) -> None:
        """Says what the latest version is, after a change."""
        write_document(self.path / COMMITTED, {"version": self.version})

    def __len__(self) -> int:
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
            reason = str(error).splitlines()[0].removeprefix("Invalid input, ")
            reason = reason.partition(", /")[0].strip()[:300]  # without places in Lance's source
            if "timeout" in str(error).lower():
                reason = f"no answer within {FILTER_SECONDS:g} s"
            raise InputError(f"filter {where[:200]!r}: {reason}; ask for less") from error

    def at(self, places: Int[np.ndarray, "n 2"]) -> dict[tuple[int, int], dict]:
        """What is known of the clips at some places: `ABOUT` of each."""
        found: dict[tuple[int, int], dict] = {}
        unique = np.unique(_place_numbers(places))
        if not len(unique):
            return found
        # A condition costs about as much as reading so many rows for each place that it names.
        if len(unique) * NAMED > len(self):
            conditions = [None]
        else:
            parts = np.split(unique, range(IDS_AT_ONCE, len(unique), IDS_AT_ONCE))
            conditions = [_condition(part) for part in parts if len(part)]
        for condition in conditions:
            for batch in self._scan([*ABOUT, "segment", "row"], None, condition):
                here = numbers_in(batch, "segment", "row")
                wanted = np.isin(_place_numbers(here), unique)
                batch, here = batch.filter(wanted), here[wanted]
                for place, row in zip(here.tolist(), batch.to_pylist(), strict=True):
                    found[tuple(place)] = {name: row[name] for name in ABOUT}
        return found

    def existing(self, ids: list[str]) -> list[str]:
        """Those of some ids that are in the table."""
        return [row["id"] for row in self.with_values("id", ids)]

    def with_values(self, column: str, values: Sequence[str]) -> Iterator[dict]:
        """`ABOUT` of the clips whose id, or source, is one of some."""
        for begin in range(0, len(values), IDS_AT_ONCE):
            condition = _is_in(column, values[begin : begin + IDS_AT_ONCE])
            for batch in self._scan(list(ABOUT), None, condition):
                yield from batch.to_pylist()

    def tables(self) -> Iterator:
        """All rows as Arrow record batches."""
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
            self._table.delete(_is_in("id", ids))

    def overwrite(self, batches: Iterator) -> None:
        """All rows anew, in one commit."""
        import pyarrow as pa

        with full_disk_is_an_oserror(self.path):
            self._table.add(pa.RecordBatchReader.from_batches(schema(), batches), mode="overwrite")

    def clean(self) -> None:
        """Drops versions that no reader can still want."""
        self._table.optimize(cleanup_older_than=datetime.timedelta(hours=KEPT_HOURS))


def checked_filter(where: str) -> str:
    """A condition of a user as the table takes it; `InputError` for anything else."""
    return as_sql(where, FILTERED)


def numbers_in(batch, *names: str) -> Int[np.ndarray, "n columns"]:
    """Some columns of an Arrow record batch, int64."""
    columns = [batch.column(name).to_numpy().astype(np.int64) for name in names]
    return np.stack(columns, axis=1)


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


def _is_in(column: str, values: Sequence[str]) -> str:
    texts = ("'" + one.replace("'", "''") + "'" for one in values)
    return f"{column} IN ({', '.join(texts)})"
