"""An index as one file that other tools read, and back: Parquet, or NumPy's npz.

A row is a clip: `id`, `source`, `start`, `end`, `label`, and of each stream that it has
`visual_steps`, `visual` (the sequence `[steps, C]`, flat), `visual_embedding` (of length 1), and
`visual_sketch` where the index has sketches; the same of `audio`. In an npz the same names hold all
clips: sequences one after the other, embeddings `[K, E]`, and no steps where a stream is missing.
The header of the index is JSON, in the schema's metadata or under `header`.

What is stored is written, so the same queries find the same clips with the same scores (of what is
stored in float32 to the digit but for DTW, else up to rounding); what an index knows of its bank of
queries (`bank`) stays behind.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from scav_jax.base.documents import parse_json, read_arrays, regular_file
from scav_jax.base.errors import InputError
from scav_jax.base.files import file_atomically, folder_atomically
from scav_jax.base.progress import progress_bar
from scav_jax.index.catalog import ABOUT, Header
from scav_jax.index.products import widen
from scav_jax.index.segments import Segment, StoredStream
from scav_jax.index.store import Index, create, open_index
from scav_jax.retrieval.embed import Embedded
from scav_jax.sequences import STREAMS, Sequences, whole_windows

CLIPS_AT_ONCE = 512
FORMAT_VERSION = 1
HEADER = b"scav_index"
KEPT = ("identity", "distance", "options", "sketch", "root", "clip_seconds")
MEND = "export the index again"
# What a header has to hold, by name.
RIGHT: dict[str, Callable] = {
    **{name: lambda value: isinstance(value, str) for name in ("identity", "distance", "sketch")},
    "options": lambda value: isinstance(value, dict),
    "root": lambda value: value is None or isinstance(value, str),
    "clip_seconds": lambda value: value is None or (_number(value) and value >= 0),
    "width": lambda value: type(value) is int and value > 0,
}
# What columns of another length, shape or type than `export_index` writes lead to.
MALFORMED = (LookupError, ValueError, TypeError, AttributeError, OverflowError)


# ---- out -----------------------------------------------------------------------------------------


def export_index(index: Index, file: Path) -> int:
    """Writes all clips in the order in which they were added; how many there are.

    Raises:
      InputError: a file that is there, or of another kind; an empty index; a damaged row.
      OSError: the disk is full; nothing is left behind.
    """
    if file.suffix not in (".parquet", ".npz"):
        raise InputError(f"--out: expected a .parquet or a .npz file, got {file}")
    if file.exists():
        raise InputError(f"--out: expected a path where nothing is, {file} is there")
    if not len(index):
        raise InputError(f"{index.path}: expected clips to export, the index is empty")
    write = _write_parquet if file.suffix == ".parquet" else _write_npz
    with file_atomically(file) as partial:
        write(index, partial)
    return len(index)


def _header(index: Index) -> str:
    kept = {name: getattr(index.header, name) for name in KEPT}
    widths = {name: getattr(index.header, name) for name in ("width", "embedding_width")}
    return json.dumps({"format_version": FORMAT_VERSION, **kept, **widths})


def _clips(index: Index) -> Iterator[list[dict]]:
    """What is known of clips and what is stored of them, some at a time, by key."""
    places = np.array(
        [
            (int(segment.keys[row]), number, row)
            for number, segment in index.snapshot.segments.items()
            for row in np.flatnonzero(index.snapshot.live[number])
        ]
    )
    places = places[np.argsort(places[:, 0])][:, 1:]
    with progress_bar("export", len(places), "clip") as bar:
        for first in range(0, len(places), CLIPS_AT_ONCE):
            some = places[first : first + CLIPS_AT_ONCE]
            about = index.about(some)
            yield [
                {name: about[tuple(place)][name] for name in ABOUT}
                | _stored(index.snapshot.segments[place[0]], place[1])
                for place in some.tolist()
            ]
            bar.update(len(some))


def _stored(segment: Segment, row: int) -> dict:
    """The sequences and vectors of a clip, float32."""
    found: dict = {}
    for name in STREAMS:
        stream = segment.streams.get(name)
        if stream is None:
            found |= {f"{name}_steps": None, name: None, f"{name}_embedding": None}
            found[f"{name}_sketch"] = None
            continue
        values = segment.sequence(name, row)
        found |= {f"{name}_steps": len(values), name: values}
        for what, column in (("embedding", "embeddings"), ("sketch", "sketches")):
            there = stream.has(column)
            found[f"{name}_{what}"] = _unit_vector(stream, column, row) if there else None
    return found


def _unit_vector(stream: StoredStream, column: str, row: int) -> np.ndarray:
    vector = widen(stream.read(column, slice(row, row + 1))[0])
    return vector / stream.rows[f"{column}_length"][row]


def _write_parquet(index: Index, file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    numbers = pa.list_(pa.float32())
    types = {"id": pa.string(), "source": pa.string(), "start": pa.float64(), "end": pa.float64()}
    types["label"] = pa.string()
    for name in STREAMS:
        types |= {f"{name}_steps": pa.int32(), name: numbers}
        types |= {f"{name}_embedding": numbers, f"{name}_sketch": numbers}
    schema = pa.schema(types, metadata={HEADER: _header(index).encode()})
    with parquet.ParquetWriter(file, schema, write_page_checksum=True) as writer:
        for clips in _clips(index):
            columns = {name: [_flat(clip[name]) for clip in clips] for name in types}
            writer.write_table(pa.Table.from_pydict(columns, schema=schema))


def _flat(value):
    return value.reshape(-1) if isinstance(value, np.ndarray) else value


def _write_npz(index: Index, file: Path) -> None:
    clips = [clip for some in _clips(index) for clip in some]
    arrays = {name: np.array([clip[name] for clip in clips]) for name in ABOUT}
    arrays["header"] = np.array(_header(index))
    for name in STREAMS:
        there = [clip for clip in clips if clip[name] is not None]
        arrays[f"{name}_steps"] = np.array([clip[f"{name}_steps"] or 0 for clip in clips], np.int32)
        if not there:
            continue
        arrays[name] = np.concatenate([clip[name] for clip in there])
        for what in ("embedding", "sketch"):
            vectors = [clip[f"{name}_{what}"] for clip in clips]
            width = next((len(one) for one in vectors if one is not None), 0)
            if width:
                none = np.zeros(width, np.float32)
                arrays[f"{name}_{what}"] = np.stack([none if v is None else v for v in vectors])
    with open(file, "wb") as content:
        np.savez(content, **arrays)  # type: ignore[arg-type]  # none is called allow_pickle


# ---- in ------------------------------------------------------------------------------------------


def import_index(file: Path, path: Path) -> Index:
    """A new index of what `export_index` wrote, or of what other tools wrote in its form.

    Raises:
      InputError: another kind of file, columns that are missing, or what `create` and `Index.add`
        refuse; then there is no index.
    """
    read = {".parquet": _read_parquet, ".npz": _read_npz}.get(file.suffix)
    if read is None or not file.is_file():
        raise InputError(
            f"expected a .parquet or a .npz file that `scav index export` wrote, got {file}"
        )
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path}: expected a path where nothing is; remove it or use another")
    try:
        header, count, parts = read(file)
        about = _checked(header)
        with (
            folder_atomically(path) as partial,  # half of one would be taken for a whole one
            progress_bar("import", count, "clip") as bar,
        ):
            _fill(partial, about, parts, bar.update)
    except MALFORMED as error:  # `InputError` too
        raise InputError(_words(file, error)) from None
    return open_index(path)


def _checked(header: str) -> dict:
    """The header of an exported index; `ValueError` says what is wrong with it."""
    about = parse_json(header)
    if not isinstance(about, dict):
        raise ValueError("its header is no object")
    if about.get("format_version") != FORMAT_VERSION:
        got = about.get("format_version")
        raise ValueError(f"expected format version {FORMAT_VERSION}, got {got!r}")
    for name, is_right in RIGHT.items():
        if not is_right(about[name]):
            raise ValueError(f"its header says {name} {about[name]!r}")
    return about


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _fill(
    path: Path, about: dict, parts: Iterator[list[dict]], told: Callable[[int], object]
) -> None:
    index = create(
        path,
        identity=about["identity"],
        distance=(about["distance"], about["options"]),
        root=about["root"],
        sketch=about["sketch"],
    )
    if about["root"] is not None or about["clip_seconds"] is not None:
        index.declare(about["root"], about["clip_seconds"])
    for clips in parts:
        for _, alike in itertools.groupby(clips, key=_streams):  # they stay in their order
            told(index.add(_embedded(list(alike), about, index.header)))


def _words(file: Path, error: Exception) -> str:
    if isinstance(error, InputError):
        return f"{file}: {str(error).removeprefix(f'{file}: ')}"
    words = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"{file}: expected an exported index ({words}); {MEND}"


@contextmanager
def _arrow_errors() -> Iterator[None]:
    """Arrow's words of a file or a page that it cannot read, as `ValueError`."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error)) from None


def _read_parquet(file: Path) -> tuple[str, int, Iterator[list[dict]]]:
    import pyarrow.parquet as parquet

    with _arrow_errors(), regular_file(file, "an exported index", MEND):
        opened = parquet.ParquetFile(file, page_checksum_verification=True)
    metadata = opened.schema_arrow.metadata or {}
    if HEADER not in metadata:
        raise InputError(f"{file}: expected an exported index, it has no header; {MEND}")

    def parts() -> Iterator[list[dict]]:
        with _arrow_errors():
            for batch in opened.iter_batches(CLIPS_AT_ONCE):
                yield batch.to_pylist()

    return metadata[HEADER].decode(), opened.metadata.num_rows, parts()


def _read_npz(file: Path) -> tuple[str, int, Iterator[list[dict]]]:
    arrays = read_arrays(file, "an exported index", MEND)
    clips = [
        {name: arrays[name][number].item() for name in ABOUT} for number in range(len(arrays["id"]))
    ]
    for name in STREAMS:
        ends = np.cumsum(arrays[f"{name}_steps"].astype(np.int64))
        for clip, steps, end in zip(clips, arrays[f"{name}_steps"].tolist(), ends, strict=True):
            clip[f"{name}_steps"] = steps or None
            clip[name] = arrays[name][end - steps : end] if steps else None
        for number, clip in enumerate(clips):
            for what in ("embedding", "sketch"):
                column = arrays.get(f"{name}_{what}")
                known = None if column is None or clip[name] is None else column[number]
                clip[f"{name}_{what}"] = known
    return str(arrays["header"]), len(clips), iter([clips])


def _streams(clip: dict) -> tuple[str, ...]:
    return tuple(name for name in STREAMS if clip[name] is not None)


def _check(clip: dict, sketch: str) -> None:
    """Raises `ValueError` for a clip that lacks what it has to have."""
    parts = ("steps", "embedding", "sketch") if sketch else ("steps", "embedding")
    wanted = [*ABOUT, *(f"{name}_{part}" for name in _streams(clip) for part in parts)]
    absent = [name for name in wanted if clip[name] is None]
    if absent:
        raise ValueError(f"clip {clip['id']!r} has no {absent[0]}")
    for name in ("id", "source", "label"):
        if not isinstance(clip[name], str):
            raise ValueError(f"clip {clip['id']!r}: {name} is {clip[name]!r}")
    start, end = clip["start"], clip["end"]
    if not (_number(start) and _number(end) and 0 <= start < end):
        raise ValueError(f"clip {clip['id']!r} lasts from {start!r} to {end!r}")


def _embedded(clips: list[dict], about: dict, header: Header) -> Embedded:
    for clip in clips:
        _check(clip, about["sketch"])
    found: dict = {}
    for name in _streams(clips[0]):
        steps = np.array([clip[f"{name}_steps"] for clip in clips], np.int32)
        values = np.zeros((len(clips), steps.max(), about["width"]), np.float32)
        for row, clip, length in zip(values, clips, steps.tolist(), strict=True):
            row[:length] = np.asarray(clip[name], np.float32).reshape(length, -1)
        found[name] = Sequences(values, steps, np.asarray(whole_windows(steps)))
        found[f"{name}_embeddings"] = np.array([c[f"{name}_embedding"] for c in clips], np.float32)
        if about["sketch"]:
            found[f"{name}_sketches"] = np.array([c[f"{name}_sketch"] for c in clips], np.float32)
    if len(_streams(clips[0])) == 1:  # it lies on its partner's steps already
        (stream,) = _streams(clips[0])
        own = found[stream]
        found["partner"] = own.replace(values=own.values[..., :0])
    for name in STREAMS:
        for field in (name, f"{name}_embeddings"):
            found.setdefault(field, None)
    return Embedded(
        ids=[clip["id"] for clip in clips],
        sources=[header.full_source(clip["source"]) for clip in clips],
        starts=np.array([clip["start"] for clip in clips]),
        ends=np.array([clip["end"] for clip in clips]),
        labels=[clip["label"] for clip in clips],
        sketched_by=about["sketch"],
        **found,
    )
