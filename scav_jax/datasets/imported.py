"""Others' features -> a data set: `scav datasets import MANIFEST.csv --out DATA --name NAME`.

A row of the manifest is a clip:

    id, split      the split is `all` where it is left out
    visual, audio  where its array `[steps, width]` lies, relative to the manifest; one of them may
                   be left out, in all rows
    seconds        what the steps of both cover evenly, from the clip's start; or, where the streams
                   differ, visual_begin, visual_end, audio_begin, audio_end
    label, source, start, end   as of `scav extract`; source is the id where it is left out

An array lies in a `.npy` file, in `FILE.npz:NAME`, in a WebDataset shard `SHARD.tar:MEMBER.npy`, or
in `FILE.h5:DATASET` (with the extra `hdf5`). Nothing is executed: arrays of objects are refused. A
clip that is too long or whose array cannot be used stands in DATA/rejected.csv with the reason, and
the rest goes on; a manifest with a fault is refused whole.
"""

import hashlib
import io
import os
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from reprlib import repr as short  # of cells, which may be as long as the file
from typing import Any

import numpy as np

from scav_jax.base.documents import NO_ARRAY, regular_file
from scav_jax.base.errors import InputError, check_unique, first_line
from scav_jax.base.progress import progress_bar
from scav_jax.base.ranges import read_number
from scav_jax.base.tables import Table
from scav_jax.features.clip import (
    DEFAULT_SPLIT,
    FORMAT_VERSION,
    IMPORTED,
    MAX_CLIP_S,
    STREAMS,
    Clip,
    as_stored,
    check_clip,
    check_scale,
    check_splits,
)

SPANS = tuple(f"{stream}_{end}" for stream in STREAMS for end in ("begin", "end"))
TIMES = ("seconds", "start", "end", *SPANS)
COLUMNS = ("id", "split", *STREAMS, "label", "source", *TIMES)
MOST_ARRAY_BYTES = 2**30
MOST_SECONDS = 1e8  # of a start; times are stored in float32
LENGTH_MARGIN_S = 0.5  # a step or two beyond ten minutes
OPEN_AT_ONCE = 8  # shards
HDF5 = (".h5", ".hdf5")
STAGE = "import"


@dataclass(frozen=True)
class Row:
    """One clip of a manifest: where its arrays lie, and its times in seconds."""

    line: int
    id: str
    split: str
    places: dict[str, str]
    spans: dict[str, tuple[float, float]]
    label: str
    source: str
    start: float
    end: float


@dataclass
class Imported:
    """The clips of a manifest, read one after another; `rejected` grows as they are.

    Attributes:
      manifest: the CSV.
      rows: of it.
      rejected: rows of rejected.csv.
    """

    manifest: Path
    rows: list[Row]
    rejected: list[dict] = field(default_factory=list)

    @property
    def streams(self) -> tuple[str, ...]:
        """Those that the clips have."""
        return tuple(self.rows[0].places)

    @cached_property
    def sha256(self) -> str:
        """Of the manifest: what names its source, beside the name that is given."""
        return hashlib.sha256(self.manifest.read_bytes()).hexdigest()

    @cached_property
    def first(self) -> Clip:
        """The first clip that can be used; `InputError` where none can."""
        reasons = []
        with Arrays(self.manifest.parent) as arrays:
            for row in self.rows:
                try:
                    return self._usable(row, arrays)
                except InputError as error:
                    reasons.append(f"{row.id}: {error}")
        raise InputError(
            f"{self.manifest}: expected a clip that can be imported, got none in {len(reasons):,}; "
            f"the first: {reasons[0]}"
        )

    def fingerprint(self, name: str) -> dict:
        """Says whose features they are, and that nothing here can make more of them.

        The step of sound is that of the first clip that can be used, in seconds.
        """
        first, step_s = self.first, 0.0
        if "audio" in self.streams:
            step_s = (first.audio_span[1] - first.audio_span[0]) / len(first.audio)
        return {
            "format_version": FORMAT_VERSION,
            "backbone": {"name": name, IMPORTED: {"manifest": self.sha256}},
            "audio_step_s": step_s,
        }

    def clips(self) -> Iterator[tuple[str, Clip]]:
        """(split, clip), in the manifest's order; what cannot be used is told in `rejected`."""
        like = None
        with (
            Arrays(self.manifest.parent) as arrays,
            progress_bar("importing", len(self.rows), "clip") as bar,
        ):
            for row in self.rows:
                try:
                    clip = self._usable(row, arrays)
                    like = _check_alike(clip, like)
                except InputError as error:
                    self.rejected.append(_rejection(row, str(error)))
                else:
                    yield row.split, clip
                bar.update()

    def _usable(self, row: Row, arrays: "Arrays") -> Clip:
        _check_length(row)
        clip = _clip(row, arrays)
        check_clip(clip, self.streams)
        return clip


def _check_length(row: Row) -> None:
    """`InputError` where a clip is longer than one that `scav extract` takes."""
    begin = min(0.0, *(begin for begin, _ in row.spans.values()))
    covered = max(end for _, end in row.spans.values()) - begin
    seconds = max(row.end - row.start, covered)
    if seconds > MAX_CLIP_S + LENGTH_MARGIN_S:
        raise InputError(
            f"too long: {seconds:.1f} s, a clip has at most {MAX_CLIP_S:g} s; cut its arrays into "
            "rows of their own, whose seconds count from their own start"
        )


def _check_alike(clip: Clip, like: dict | None) -> dict:
    """Widths and dtypes of a clip, those of all before it; `InputError` where they are others."""
    own = {
        stream: (values.shape[1], values.dtype.name)
        for stream, values in (("visual", clip.visual), ("audio", clip.audio))
    }
    if like is not None and own != like:
        words = [
            "; ".join(f"{stream} {width} {dtype}" for stream, (width, dtype) in one.items())
            for one in (like, own)
        ]
        raise InputError(
            f"clip {clip.id!r}: expected the width and dtype of the first clip ({words[0]}), got "
            f"{words[1]}"
        )
    return own


def _rejection(row: Row, reason: str) -> dict:
    return {
        "file": ", ".join(row.places.values()),
        "start": f"{row.start:g}",
        "end": f"{row.end:g}",
        "id": row.id,
        "stage": STAGE,
        "reason": reason,
    }


def _clip(row: Row, arrays: "Arrays") -> Clip:
    values = {}
    for stream in STREAMS:
        if stream not in row.places:
            values[stream] = np.zeros((0, 0), np.float16)
            continue
        read = arrays.read(row.places[stream])
        if read.ndim != 2 or read.dtype.kind not in "fiu":
            raise InputError(
                f"{row.places[stream]}: expected numbers [steps, width], got "
                f"{read.dtype} {list(read.shape)}"
            )
        check_scale(read, row.places[stream])
        with np.errstate(over="ignore"):  # beside NaN or infinity, which are refused
            values[stream] = as_stored(read)
    spans = {f"{stream}_span": row.spans.get(stream, (0.0, 0.0)) for stream in STREAMS}
    about = {"source": row.source, "start": row.start, "end": row.end, "label": row.label}
    return Clip(id=row.id, **values, **spans, **about)


# ---- the manifest --------------------------------------------------------------------------------


def read_manifest(path: Path) -> Imported:
    """The rows of a manifest; `InputError` names the first line with a fault."""
    table = Table(path, "a manifest of features", "correct the list")
    table.check(COLUMNS[:1], COLUMNS[1:])
    rows = [_row(cells, line, path) for line, cells in table.rows()]
    check_unique([row.id for row in rows], (f"{path}, line {row.line}" for row in rows))
    for row in rows:
        if row.places.keys() != rows[0].places.keys():
            raise InputError(
                f"{path}, line {row.line}: expected the streams of the first clip "
                f"({', '.join(rows[0].places)}), got {', '.join(row.places)}; leave out the row, "
                "or one of both streams in all rows"
            )
    check_splits({row.split for row in rows}, str(path))
    return Imported(path, rows)


def _row(cells: dict[str, str], line: int, path: Path) -> Row:
    where = f"{path}, line {line}"
    places = {stream: cells[stream] for stream in STREAMS if cells.get(stream)}
    if not cells["id"] or not places:
        raise InputError(f"{where}: expected an id and visual, audio or both: where its arrays lie")
    split = cells.get("split") or DEFAULT_SPLIT
    if not split.isidentifier() or not split.isascii():
        raise InputError(f"{where}: split: expected letters, digits and underscores, got {split!r}")
    times = {name: _seconds(cells[name], name, where) for name in TIMES if cells.get(name)}
    spans = {stream: _span(stream, times, where) for stream in places}
    start = times.get("start", 0.0)
    end = times.get("end", start + max(end for _, end in spans.values()))
    if not 0 <= start < end < MOST_SECONDS:
        raise InputError(
            f"{where}: expected start before end, both seconds of the source below "
            f"{MOST_SECONDS:g} (0 or more), got {start:g} and {end:g}"
        )
    source = cells.get("source") or cells["id"]
    return Row(line, cells["id"], split, places, spans, cells.get("label", ""), source, start, end)


def _seconds(cell: str, name: str, where: str) -> float:
    try:
        return read_number(cell)
    except ValueError:
        raise InputError(f"{where}: {name}: expected seconds, got {short(cell)}") from None


def _span(stream: str, times: dict[str, float], where: str) -> tuple[float, float]:
    """What a stream's steps cover."""
    begin = times.get(f"{stream}_begin", 0.0)
    end = times.get(f"{stream}_end", times.get("seconds"))
    if end is None or not end > begin:
        came = "no end" if end is None else f"{begin:g} and {end:g}"
        raise InputError(
            f"{where}: expected seconds, or {stream}_begin before {stream}_end, which say what "
            f"time the {stream} steps cover; got {came}"
        )
    return begin, end


# ---- arrays on disk ------------------------------------------------------------------------------


class Arrays:
    """Reads arrays by their place; the shards used last stay open, for clips lie side by side."""

    def __init__(self, folder: Path):
        self._folder, self._shards = folder, {}

    def __enter__(self) -> "Arrays":
        return self

    def __exit__(self, *error) -> None:
        for shard, close in self._shards.values():
            close(shard)
        self._shards.clear()

    def read(self, place: str) -> np.ndarray:
        """The array at a place; `InputError` says what is there instead."""
        file, name = _file_and_name(place)
        path = self._folder / file
        try:
            if name is None:
                with regular_file(path, "an array (.npy)", "correct the manifest") as content:
                    _check_size(os.fstat(content.fileno()).st_size, place)
                    return _npy(content.read(), place)
            with regular_file(path, "a file of arrays", "correct the manifest"):
                pass  # no pipe, no folder
            return self._member(path, name, place)
        except InputError:
            raise
        except FileNotFoundError:
            raise InputError(
                f"{place}: expected a file in {self._folder}, there is none; correct the manifest"
            ) from None
        except (*NO_ARRAY, ValueError, tarfile.TarError) as error:
            raise InputError(f"{place}: {type(error).__name__}: {error}") from None

    def _member(self, path: Path, name: str, place: str) -> np.ndarray:
        if path.suffix in HDF5:
            return _hdf5(self._open(path, lambda: _h5py().File(path, "r")), name, place)
        if path.suffix == ".npz":
            archive = self._open(path, lambda: zipfile.ZipFile(path))
            try:
                info = archive.getinfo(name if name.endswith(".npy") else f"{name}.npy")
            except KeyError:
                raise InputError(
                    f"{place}: expected an array of that name, there is none"
                ) from None
            _check_size(info.file_size, place)
            with archive.open(info) as content:
                return _npy(content.read(info.file_size), place)
        shard = self._open(path, lambda: tarfile.open(path, "r:"))  # noqa: SIM115
        try:
            member = shard.getmember(name)
        except KeyError:
            raise InputError(f"{place}: expected a member of that name, there is none") from None
        if not member.isreg():
            raise InputError(f"{place}: expected a file in the shard, got a link or a folder")
        _check_size(member.size, place)
        return _npy(shard.extractfile(member).read(), place)

    def _open(self, path: Path, opened) -> Any:
        if path not in self._shards:
            if len(self._shards) >= OPEN_AT_ONCE:
                shard, close = self._shards.pop(next(iter(self._shards)))
                close(shard)
            shard = opened()
            self._shards[path] = (shard, type(shard).close)
        return self._shards[path][0]


def _file_and_name(place: str) -> tuple[str, str | None]:
    """`a.tar:b.npy` is a member of a shard; a lone `.npy` has none.

    >>> _file_and_name("shards/0.tar:clip.visual.npy"), _file_and_name("a:b.npy")
    (('shards/0.tar', 'clip.visual.npy'), ('a:b.npy', None))
    """
    for ending in (".npz", ".tar", *HDF5):
        file, mark, name = place.partition(f"{ending}:")
        if mark and name:
            return file + ending, name
    if not place.endswith(".npy"):
        raise InputError(
            f"{place}: expected FILE.npy, FILE.npz:NAME, SHARD.tar:MEMBER.npy or FILE.h5:DATASET"
        )
    return place, None


def _npy(content: bytes, place: str) -> np.ndarray:
    """An `.npy` file; its header cannot claim more than there is."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of a header that is no Python
            return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except (*NO_ARRAY, ValueError) as error:
        words = first_line(error)
        raise InputError(f"{place}: expected an array of numbers (.npy): {words}") from None


def _hdf5(file: Any, name: str, place: str) -> np.ndarray:
    found = file.get(name)
    if not isinstance(found, _h5py().Dataset) or found.shape is None:
        raise InputError(f"{place}: expected a data set of that name with numbers, there is none")
    _check_size(found.size * found.dtype.itemsize, place)
    return np.asarray(found[()])  # a scalar comes as a number, or as bytes


def _check_size(size: int, place: str) -> None:
    if size > MOST_ARRAY_BYTES:
        raise InputError(
            f"{place}: expected the array of one clip, at most {MOST_ARRAY_BYTES / 2**30:g} GiB, "
            f"got {size / 2**30:.1f} GiB"
        )


def _h5py() -> Any:
    try:
        import h5py
    except ModuleNotFoundError:
        raise InputError("HDF5 needs h5py: pip install -c constraints.txt '.[hdf5]'") from None
    return h5py
