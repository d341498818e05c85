"""Data sets of clips on disk: a TFDS data set in array_record form, with a list of its clips.

DATA/
    dataset_info.json, features.json, *.array_record-*   what `tfds.builder_from_directory` opens
    scav.json     format version, the extractor's fingerprint, widths and dtypes, SHA-256 of the
                  files below and of both .json above, sizes of the records; sealed
                  (`base.documents`)
    clips.csv     one row for each clip in record order: ids, labels, lengths, spans and the
                  checksum of the record, without reading features
    rejected.csv  what could not be used, and why

TFDS is imported when records are written or read, not before.
"""

import contextlib
import copy
import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np

from scav_jax.base.documents import read_bytes, read_object, unsealed, write_document
from scav_jax.base.errors import InputError, did_you_mean, number_of
from scav_jax.base.files import folder_atomically, full_disk_is_an_oserror
from scav_jax.base.tables import write_rows
from scav_jax.features.clip import (
    FORMAT_VERSION,
    STREAMS,
    Clip,
    check_clip,
    fingerprint_id,
    streams_of,
)

ABOUT, CLIPS, REJECTED = "scav.json", "clips.csv", "rejected.csv"
CLIP_COLUMNS = [
    "split",
    "id",
    "label",
    "source",
    "start",
    "end",
    "visual_steps",
    "audio_steps",
    "visual_begin",
    "visual_end",
    "audio_begin",
    "audio_end",
    "checksum",
]
REJECTED_COLUMNS = ("file", "start", "end", "id", "stage", "reason")
EVERY_CLIP = "clips"  # what the split "all" is called in TFDS, where "all" means all splits
DISK_FULL_BYTES = 2**20
TFDS_FILES = ("dataset_info.json", "features.json")
MOST_LIST_BYTES = 2**30  # of clips.csv: some five million clips
MEND = "bring it back from a copy, or extract the data set again"


def write(
    clips: Iterable[tuple[str, Clip]],
    out: Path,
    *,
    fingerprint: dict,
    videos: str,
    rejected: list[dict],
    name: str = "folder",
    manifest: str = "",
) -> None:
    """Writes a data set; it appears at `out` whole or not at all.

    Args:
      clips: (split, clip), in the order that records are to have within each split.
      out: a path where nothing is, or an empty folder.
      fingerprint: the extractor's settings (JSON types only).
      videos: the folder that sources are relative to; for thumbnails only.
      rejected: rows of `REJECTED_COLUMNS`.
      name: the TFDS name of the data set.
      manifest: an identity of the list of clips that were asked for, to recognise it.

    Raises:
      InputError: `out` exists, no clips, duplicate ids, clips of unequal width, a clip that
        `features.check_clip` refuses.
      OSError: the disk is full; nothing is left behind.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: expected a path where nothing is; remove it or use another")
    with folder_atomically(out) as building:
        with full_disk_is_an_oserror(building, DISK_FULL_BYTES):
            rows, columns = _write_records(clips, building, name)
        about = {
            "format_version": FORMAT_VERSION,
            "fingerprint": fingerprint,
            "fingerprint_id": fingerprint_id(fingerprint),
            "visual_width": columns[0].width,
            "audio_width": columns[1].width,
            "visual_dtype": columns[0].dtype.name,
            "audio_dtype": columns[1].dtype.name,
            "videos": videos,
            "manifest": manifest,
        }
        _write_list(building / CLIPS, CLIP_COLUMNS, rows)
        write_rejected(building / REJECTED, rejected)
        write_document(building / ABOUT, about | _files(building))


def _files(folder: Path) -> dict[str, dict]:
    """What scav.json says of the other files."""
    names = (CLIPS, REJECTED, *TFDS_FILES)
    return {
        "sha256": {name: _sha256((folder / name).read_bytes()) for name in names},
        "bytes": {
            path.name: path.stat().st_size for path in sorted(folder.glob("*.array_record-*"))
        },
    }


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write_records(
    clips: Iterable[tuple[str, Clip]], folder: Path, name: str
) -> tuple[list[dict], tuple]:
    """Writes the records; returns the rows of clips.csv and both streams' columns."""
    from scav_jax.features.records import Column, RecordWriter

    rows: dict[str, list[dict]] = {}
    seen: set[str] = set()
    with contextlib.ExitStack() as stack:
        records, columns = None, (Column(0), Column(0))
        for split, clip in clips:
            found = Column.of(clip.visual), Column.of(clip.audio)
            if records is None:
                columns, resampled = found, clip.shared is not None
                records = stack.enter_context(RecordWriter(folder, name, *columns, resampled))
            if found != columns:
                expected, got = (
                    ", ".join(f"{column.width} {column.dtype}" for column in some)
                    for some in (columns, found)
                )
                raise InputError(
                    f"clip {clip.id!r}: expected features of width {expected}, got {got}; one "
                    "extractor per data set"
                )
            check_clip(clip, streams_of(*(column.width for column in columns)))
            if clip.id in seen:
                raise InputError(f"ids must be unique, {clip.id!r} came twice; rename one clip")
            seen.add(clip.id)
            checksum = records.add(_stored_name(split), clip)
            rows.setdefault(split, []).append(_clip_row(split, clip, checksum))
    if records is None:
        raise InputError(f"{name}: expected at least one clip to write, got none")
    return [row for split in rows for row in rows[split]], columns


def _stored_name(split: str) -> str:
    """What TFDS calls a split: it cannot read one that is named "all" (it recurses for ever)."""
    return EVERY_CLIP if split == "all" else split


def _clip_row(split: str, clip: Clip, checksum: int) -> dict[str, Any]:
    """A row of clips.csv. Times are written as the float32 that the record holds, exactly."""
    (visual_begin, visual_end), (audio_begin, audio_end) = clip.visual_span, clip.audio_span
    times = dict(
        start=clip.start,
        end=clip.end,
        visual_begin=visual_begin,
        visual_end=visual_end,
        audio_begin=audio_begin,
        audio_end=audio_end,
    )
    return {
        "split": split,
        "id": clip.id,
        "label": clip.label,
        "source": clip.source,
        "visual_steps": len(clip.visual),
        "audio_steps": len(clip.audio),
        **{key: str(np.float32(value)) for key, value in times.items()},
        "checksum": f"{checksum:016x}",
    }


class Split:
    """The clips of one split: random access to features, and everything else without reading.

    `split[i]` is a checked `Clip`; it raises `InputError` where a record cannot be used. Cheap to
    open, picklable, safe to read from several threads.

    Attributes:
      data: the data set's folder.
      split: its name.
      ids, labels, sources: one string for each clip.
      starts, ends: float64 `[n]`, seconds in the source.
      visual_lengths, audio_lengths: int32 `[n]`, steps before any trimming to shared time.
      visual_spans, audio_spans: float64 `[n, 2]`, the seconds that the steps cover.
      fingerprint, fingerprint_id: the extractor's settings and their name.
      visual_width, audio_width: Dv and Da; 0 for a stream that the data set does not have.
      visual_dtype, audio_dtype: what they are stored in: float16, or uint8 for pixels.
      videos: the folder that sources are relative to, or "".
      checksums: uint64 `[n]`, of the records.
    """

    def __init__(self, data: Path, split: str, about: dict, rows: list[dict]):
        self.data, self.split = data, split
        self.fingerprint: dict = about["fingerprint"]
        self.fingerprint_id: str = about["fingerprint_id"]
        self.visual_width: int = about["visual_width"]
        self.audio_width: int = about["audio_width"]
        self.visual_dtype = np.dtype(about["visual_dtype"])
        self.audio_dtype = np.dtype(about["audio_dtype"])
        self.videos: str = about["videos"]
        self.ids = [row["id"] for row in rows]
        self.labels = [row["label"] for row in rows]
        self.sources = [row["source"] for row in rows]
        self.starts = _times(rows, "start")
        self.ends = _times(rows, "end")
        self.visual_lengths = _counts(rows, "visual_steps")
        self.audio_lengths = _counts(rows, "audio_steps")
        self.visual_spans = _spans(rows, "visual_begin", "visual_end")
        self.audio_spans = _spans(rows, "audio_begin", "audio_end")
        self.checksums = np.array([int(row["checksum"], 16) for row in rows], np.uint64)
        self._records = _open_records(data, split)
        self._rows = np.arange(len(self.ids))  # of the records

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Clip:
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        clip = self._records.read(int(self._rows[index]), int(self.checksums[index]))
        try:
            check_clip(clip, self.streams)
        except InputError as error:
            raise InputError(f"{self.data} ({self.split}): {error}") from None
        return clip

    @property
    def content(self) -> str:
        """16 hexadecimal digits of the clips: their order, all that is known of them, features."""
        return hashlib.sha256(self.checksums.astype("<u8").tobytes()).hexdigest()[:16]

    @property
    def streams(self) -> tuple[str, ...]:
        """ "visual", "audio" or both: what the data set has features of."""
        return streams_of(self.visual_width, self.audio_width)

    def check_both_streams(self) -> None:
        """Raises `InputError` where there are pictures alone, or sound alone."""
        if len(self.streams) < 2:
            raise InputError(
                f"{self.data}: expected features of picture and sound, which are compared with "
                f"each other, got {self.streams[0]} features alone; extract with a side for both: "
                "--visual and --audio"
            )

    def take(self, numbers: Sequence[int] | np.ndarray) -> "Split":
        """Some of the clips as a split of their own; the records are shared."""
        numbers = np.asarray(numbers, np.int64)
        result = copy.copy(self)
        for name in ("ids", "labels", "sources"):
            values = getattr(self, name)
            setattr(result, name, [values[number] for number in numbers])
        arrays = ("starts", "ends", "checksums", "_rows")
        for name in (*arrays, *(f"{s}_{what}" for s in STREAMS for what in ("lengths", "spans"))):
            setattr(result, name, getattr(self, name)[numbers])
        return result

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_records": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._records = _open_records(self.data, self.split)

    def __repr__(self) -> str:
        return f"Split({str(self.data)!r}, {self.split!r}, {len(self)} clips)"


def _open_records(data: Path, split: str):
    """Opened here, not by the threads that read.

    While TFDS loads its modules it replaces Python's import for all threads, so that an import in
    another one may get a placeholder.
    """
    from scav_jax.features.records import ClipRecords

    return ClipRecords(data, _stored_name(split))


def read(data: Path, split: str) -> Split:
    """Opens one split of a data set.

    Raises:
      InputError: no such folder, not a data set, written in another format version, no such
        split, duplicate ids, or a list of clips that does not fit the records.
    """
    data = Path(data)
    about = read_about(data)
    rows = _read_rows(data, about)
    counts = Counter(row["split"] for row in rows)
    if split not in counts:
        known = ", ".join(f"{name} ({count} clips)" for name, count in counts.items())
        raise InputError(
            f"{data}: no split {split!r}, it has {known}."
            f"{did_you_mean(split, list(counts)) or _how_to_split(counts)}"
        )
    _check_files(data, about)
    return Split(data, split, about, [row for row in rows if row["split"] == split])


def _check_files(data: Path, about: dict) -> None:
    """Raises `InputError` where a file that TFDS reads is not the one that was written."""
    for name in TFDS_FILES:
        _read_checked(data, name, about)
    for name, size in about["bytes"].items():
        path = data / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            got = "none" if found is None else f"{found:,}"
            raise InputError(f"{path}: expected a file of {size:,} bytes, got {got}; {MEND}")


def _read_checked(data: Path, name: str, about: dict) -> bytes:
    """A file whose SHA-256 is in scav.json."""
    path, what = data / name, "the file that was written with this data set"
    try:
        content = read_bytes(path, what, MEND, MOST_LIST_BYTES)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; {MEND}") from None
    if _sha256(content) != about["sha256"][name]:
        raise InputError(
            f"{path}: expected {what}, it was changed since and may contradict the records; {MEND}"
        )
    return content


def _how_to_split(counts: dict[str, int]) -> str:
    if set(counts) != {"all"}:
        return ""
    return (
        " To have splits, extract again with --split train=0.8 validation=0.1 test=0.1, or with "
        "a CSV that has a column 'split' (as a manifest that is imported may)"
    )


def splits(data: Path) -> dict[str, int]:
    """The splits of a data set and how many clips each has."""
    data = Path(data)
    return dict(Counter(row["split"] for row in _read_rows(data, read_about(data))))


def splits_in_words(data: Path) -> str:
    """How many clips there are, in all and in each split."""
    counts = splits(data)
    each = ", ".join(f"{split} {count:,}" for split, count in counts.items())
    return f"{number_of(sum(counts.values()), 'clip')} ({each})"


def read_about(data: Path) -> dict:
    """The content of scav.json, checked."""
    path = Path(data) / ABOUT
    make = "`scav extract --videos FOLDER --out DATA` makes one"
    if not Path(data).is_dir():
        what = "it is a file" if Path(data).exists() else "it does not exist"
        raise InputError(f"{data}: expected the folder of a data set, {what}; {make}")
    try:
        about = read_object(path, "what a data set was made of", MEND)
    except FileNotFoundError:
        raise InputError(
            f"{data}: expected a data set of features, it has no {ABOUT}; {make}"
        ) from None
    version = about.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{data}: expected features of format version {FORMAT_VERSION}, got {short(version)}; "
            "extract them again with this version of scav_jax"
        )
    return unsealed(about, f"{path}: expected what a data set was made of", MEND)


def _read_rows(data: Path, about: dict, name: str = CLIPS) -> list[dict]:
    """The rows of clips.csv, or of rejected.csv, as they were written."""
    text = _read_checked(data, name, about).decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def _counts(rows: list[dict], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows]).astype(np.int32)


def _times(rows: list[dict], name: str) -> np.ndarray:
    """The same numbers as the records hold: float32, in float64."""
    return np.array([row[name] for row in rows]).astype(np.float32).astype(np.float64)


def _spans(rows: list[dict], begin: str, end: str) -> np.ndarray:
    return np.stack([_times(rows, begin), _times(rows, end)], axis=1)


def write_rejected(path: Path, rows: Iterable[dict]) -> None:
    """Writes rejected.csv: what could not be used, at which stage, and why."""
    _write_list(path, REJECTED_COLUMNS, rows)


def read_rejected(data: Path) -> list[dict]:
    """The rows of rejected.csv."""
    return _read_rows(Path(data), read_about(data), REJECTED)


def _write_list(path: Path, columns: Sequence[str], rows: Iterable[dict]) -> None:
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        write_rows(file, columns, rows)
