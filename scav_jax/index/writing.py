"""New segments: of clips that are added, and of what is live of segments with little left.

What is added is cut by size; compaction writes what is live of segments that are small or have dead
rows together. Without rows of the table that name them nobody sees them.
"""

import itertools
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from scav_jax.base.documents import content_sample
from scav_jax.base.errors import InputError, listed
from scav_jax.base.names import is_text, shown
from scav_jax.base.progress import progress_bar
from scav_jax.index.bank import compare_with_bank
from scav_jax.index.catalog import COMMITTED, SEGMENTS, Header
from scav_jax.index.encoding import COLUMNS, EncodedStream, Encoding
from scav_jax.index.rows import Rows, about_checksums, schema
from scav_jax.index.scan import LARGEST, are_comparable
from scav_jax.index.segments import folder_of, write_segment
from scav_jax.index.snapshot import Snapshot
from scav_jax.retrieval.embed import Embedded
from scav_jax.sequences import STREAMS, Sequences, resample_like

_NUMBER = re.compile("[0-9]{8}")
CLIPS_AT_ONCE = 256  # brought to the grid of their partners
MANY = 4096  # clips, of which copying and reading all takes seconds
SEGMENT_BYTES = 2**28  # of one stream's sequences in one segment, about


def stored_sequences(embedded: Embedded, header: Header) -> dict[str, Sequences]:
    """The streams that clips have, both or one, as an index stores them.

    A silent film lies on the grid that a silence of its length would have (`Embedded.partner`), so
    that it is found as the same film with sound is.

    Raises:
      InputError: clips without latents, or of one stream and without a partner.
    """
    streams = {name: getattr(embedded, name) for name in embedded.streams}
    if not streams:
        raise InputError("expected clips with picture or sound to index, got no latents")
    moved = "visual" if header.target == "audio" else "audio"
    if header.one_grid and moved in streams:
        target = streams.get(header.target, embedded.partner)
        if target is None:
            raise InputError(
                f"expected {header.target} latents, or the steps that they would have "
                "(Embedded.partner), got neither; embed the files with the model of the index"
            )
        streams[moved] = _on_grid_of(streams[moved], target)
    return streams


def _on_grid_of(moved: Sequences, target: Sequences) -> Sequences:
    """Each sequence interpolated at the steps of its own partner."""
    if moved.values.shape[:2] == target.values.shape[:2] and all(
        np.array_equal(getattr(moved, name), getattr(target, name))
        for name in ("lengths", "windows")
    ):
        return moved
    parts = []
    for begin in range(0, len(moved.lengths), CLIPS_AT_ONCE):
        cut = slice(begin, begin + CLIPS_AT_ONCE)
        pair = jax.tree.map(lambda leaf, cut=cut: jnp.asarray(leaf[cut]), (moved, target))
        parts.append(jax.device_get(_resample_pairs(*pair)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


_resample_pairs = jax.jit(jax.vmap(resample_like))


def check_texts(embedded: Embedded, header: Header) -> None:
    """Raises `InputError` for what no table can hold: names whose bytes are no text."""
    sources = [header.stored_source(str(source)) for source in embedded.sources]
    for name, texts in (("ids", embedded.ids), ("sources", sources), ("labels", embedded.labels)):
        for text in map(str, texts):
            if not is_text(text):
                raise InputError(
                    f"{name}: expected text in UTF-8, got {shown(text)}; rename the file, or build "
                    "the index with a root below which all names are text"
                )


def check_files(
    index: Path,
    rows: Rows,
    header: Header,
    clips: Mapping[str, tuple[str, float]],
    replacing: bool,
) -> None:
    """Whether files that are in the index already are so under these ids, and as they are now.

    Args:
      index, rows, header: of the index.
      clips: id -> the file, with its folder, and where the clip begins in it.
      replacing: clips that are there are made anew: their files may have changed.

    Raises:
      InputError: a part of a file has another id, or a file another content.
    """
    places = {one: (header.stored_source(file), start) for one, (file, start) in clips.items()}
    paths = {header.stored_source(file): file for file, _ in clips.values()}
    ids, held = {place: one for one, place in places.items()}, set()
    for row in rows.with_values("id", list(clips)):
        if places[row["id"]] != (row["source"], row["start"]):
            source, start = places[row["id"]]
            raise InputError(
                f"{index}: expected an id to name one clip, {row['id']!r} is "
                f"{row['source']} from {row['start']:g} s in the index, it comes as {source} "
                f"from {start:g} s; give that one another id, or delete the old one first"
            )
    for row in rows.with_values("source", sorted(paths)):
        new = ids.get((row["source"], row["start"]))
        if new is not None and row["id"] not in clips:
            raise InputError(
                f"{index}: expected every clip of a file once, {row['source']} from "
                f"{row['start']:g} s is in the index as {row['id']!r}, it comes as {new!r}; "
                "delete that one first, or leave the file out"
            )
        if row["content"]:
            held.add((row["source"], row["content"]))
    if not replacing:
        _check_unchanged(index, held, paths)


def _check_unchanged(
    index: Path, held: Collection[tuple[str, str]], paths: Mapping[str, str]
) -> None:
    """Raises `InputError` where a file is another than a row says: (source, content) of each."""
    now = {source: content_sample(paths[source]) for source, _ in held}
    changed = sorted({source for source, content in held if now[source] not in ("", content)})
    if changed:
        raise InputError(
            f"{index}: expected files as they were when their clips were added, "
            f"{len(changed)} of {len(paths)} have another content now: {listed(changed)}; take "
            "them as they are with `scav index add --replace`, or delete their clips first"
        )


def check_streams(embedded: Embedded, streams: dict[str, Sequences], header: Header) -> None:
    """Raises `InputError` for latents not finite, too large, empty, or of another width."""
    widths = {np.asarray(stream.values).shape[2] for stream in streams.values()}
    if len(widths) > 1 or (header.width and widths != {header.width}):
        raise InputError(
            f"expected latents of width {header.width or 'one'}, got {sorted(widths)}; embed them "
            "with the model of the index"
        )
    if header.sketch != (embedded.sketched_by if header.sketch else ""):
        raise InputError(
            f"expected clips with the sketch {header.sketch}, got "
            f"{embedded.sketched_by or 'none'}; embed them with the run as it was when the index "
            "was begun, or build the index again"
        )
    for name, stream in streams.items():
        good = are_comparable(stream) & (np.asarray(stream.lengths) >= 1)
        if not good.all():
            raise InputError(
                f"clip {embedded.ids[int(np.flatnonzero(~good)[0])]!r}: expected finite {name} "
                f"latents up to {LARGEST:g}, whose squares float32 can sum, and a step at least, "
                "got NaN, infinity, more or no step; nothing was added"
            )


def with_widths(header: Header, embedded: Embedded, encoding: Encoding) -> Header:
    """A header with the fields that the first clips decide."""
    stream = embedded.streams[0]
    sketched = np.shape(getattr(embedded, f"{stream}_sketches"))[1] if header.sketch else 0
    return replace(
        header,
        width=len(encoding.centre),
        embedding_width=np.shape(getattr(embedded, f"{stream}_embeddings"))[1],
        sketch_width=sketched,
    )


def write_clips(
    index: Path,
    embedded: Embedded,
    streams: dict[str, Sequences],
    first_key: int,
    encoding: Encoding,
    header: Header,
    bank: Embedded | None,
):
    """Writes the sequences of clips into new segments; without their rows nobody sees them.

    Args:
      index: its folder.
      embedded, streams: the clips, and their sequences as they are stored.
      first_key: of the first clip; the others follow in their order.
      encoding, header, bank: of the index, the last where it has one.

    Returns:
      Their rows, an Arrow table.
    """
    import pyarrow as pa

    lengths = [np.asarray(stream.lengths) for stream in streams.values()]
    order = np.lexsort(lengths)
    steps = np.max(lengths, axis=0)[order]
    sizes = np.cumsum(steps.astype(np.int64)) * len(encoding.centre) * 4
    parts = np.split(order, np.flatnonzero(np.diff(sizes // SEGMENT_BYTES)) + 1)
    batches = []
    for number, part in enumerate(parts, _next_segment(index)):
        encoded = {
            name: encoding.encode(stream, _vectors(embedded, name, header), part)
            for name, stream in streams.items()
        }
        if bank is not None:
            compare_with_bank(encoded, encoding, bank, header)
        about = {
            "id": [embedded.ids[clip] for clip in part],
            "source": [header.stored_source(str(embedded.sources[clip])) for clip in part],
            "start": np.asarray(embedded.starts, np.float64)[part].tolist(),
            "end": np.asarray(embedded.ends, np.float64)[part].tolist(),
            "label": [str(embedded.labels[clip]) for clip in part],
        }
        clips = {"keys": first_key + part, "clips": about_checksums(about)}
        write_segment(index, number, encoded, clips, encoding, header)
        none = np.zeros(len(part), np.uint32)
        sums = {name: stream.rows["checksum"] for name, stream in encoded.items()}
        columns = {
            **about,
            "content": [embedded.contents[clip] if embedded.contents else "" for clip in part],
            "key": first_key + part,
            "segment": np.full(len(part), number, np.int32),
            "row": np.arange(len(part), dtype=np.int32),
            **{f"checksum_{name}": sums.get(name, none) for name in STREAMS},
        }
        batches.append(pa.RecordBatch.from_pydict(columns, schema=schema()))
    return pa.Table.from_batches(batches)


def _vectors(embedded: Embedded, stream: str, header: Header) -> dict[str, np.ndarray]:
    """What a first stage may read, by column."""
    columns = {"embeddings", header.first_stage}
    return {name: getattr(embedded, f"{stream}_{name}") for name in sorted(columns)}


def _next_segment(index: Path) -> int:
    return 1 + max(segment_numbers(index), default=-1)


def segment_numbers(index: Path) -> list[int]:
    """The segments that are there, those that no row names included."""
    folder = index / SEGMENTS
    names = [one.name for one in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if _NUMBER.fullmatch(name))


def sweep(index: Path, used: set[int]) -> list[str]:
    """Removes segments that no row names, and what a kill left of one; returns their names."""
    folder, removed = index / SEGMENTS, []
    kept = {COMMITTED, *(folder_of(index, number).name for number in used)}
    for one in sorted(folder.iterdir()) if folder.is_dir() else []:
        if one.name not in kept:
            if one.is_dir():
                shutil.rmtree(one, ignore_errors=True)
            else:
                one.unlink(missing_ok=True)
            removed.append(one.name)
    return removed


# Compaction


def compacted(index: Path, snapshot: Snapshot) -> dict[tuple[int, int], tuple[int, int]]:
    """Writes what is worth moving into new segments: (segment, row) before -> after."""
    mapped, live, moved = snapshot.segments, snapshot.live, {}
    batches: list[list[int]] = []
    for streams in {tuple(segment.streams): None for segment in mapped.values()}:
        like = {n: segment for n, segment in mapped.items() if tuple(segment.streams) == streams}
        begun, size = len(batches), 0
        for number, segment in like.items():
            if live[number].all() and (len(like) == 1 or segment.bytes >= SEGMENT_BYTES):
                continue
            share = live[number].mean() * segment.bytes
            if len(batches) == begun or size + share > 2 * SEGMENT_BYTES:
                batches.append([])
                size = 0
            batches[-1].append(number)
            size += share
    streams = sum(int(live[n].sum()) * len(mapped[n].streams) for some in batches for n in some)
    count = streams * len(COLUMNS)
    with progress_bar("compact", count, "record", shown=streams > MANY, scale=True) as bar:
        for number, sources in enumerate(batches, _next_segment(index)):
            places = _copy_live(index, snapshot, sources, number, bar.update)
            moved.update((tuple(place), (number, row)) for row, place in enumerate(places.tolist()))
    return moved


def _copy_live(
    index: Path,
    snapshot: Snapshot,
    sources: list[int],
    number: int,
    told: Callable[[int], object],
) -> Int[np.ndarray, "n 2"]:
    """Writes live rows of some segments as one, sorted by length, then key; where they were."""
    rows = {one: np.flatnonzero(snapshot.live[one]) for one in sources}
    places = np.concatenate(
        [np.stack([np.full(len(some), one), some], axis=1) for one, some in rows.items()]
    )
    clips = {
        name: np.concatenate([getattr(snapshot.segments[one], name)[r] for one, r in rows.items()])
        for name in ("keys", "clips")
    }
    about = {
        name: np.concatenate(
            [snapshot.segments[one].streams[name].rows[some] for one, some in rows.items()]
        )
        for name in snapshot.segments[sources[0]].streams
    }
    order = np.lexsort((clips["keys"], *(one["steps"] for one in about.values())))
    places = places[order]
    streams = {name: _copied(snapshot, name, places, about[name][order], told) for name in about}
    clips = {name: values[order] for name, values in clips.items()}
    write_segment(index, number, streams, clips, snapshot.encoding, snapshot.header)
    return places


def _copied(
    snapshot: Snapshot,
    name: str,
    places: Int[np.ndarray, "n 2"],
    rows: np.ndarray,
    told: Callable[[int], object],
) -> EncodedStream:
    """One stream of clips at some places as it is written again, byte for byte."""
    records: dict[str, list[np.ndarray]] = {}
    edges = np.flatnonzero(np.diff(rows["steps"], prepend=-1, append=-1))
    for begin, end in itertools.pairwise(edges):
        for column in COLUMNS:
            data = [
                snapshot.segments[number].streams[name].record(column, row)
                for number, row in places[begin:end].tolist()
            ]
            if len(data[0]):
                records.setdefault(column, []).append(np.stack(data))
            told(len(data))
    return EncodedStream.join([EncodedStream(rows, records)])


def with_new_places(rows: Rows, moved: dict[tuple[int, int], tuple[int, int]]) -> Iterator:
    """The table after a compaction, as Arrow record batches."""
    import pyarrow as pa

    for batch in rows.tables():
        old = zip(batch.column("segment").to_pylist(), batch.column("row").to_pylist(), strict=True)
        new = np.array([moved.get(place, place) for place in old], np.int32).reshape(-1, 2)
        columns = {name: batch.column(name) for name in batch.schema.names}
        columns |= {"segment": pa.array(new[:, 0]), "row": pa.array(new[:, 1])}
        yield pa.RecordBatch.from_pydict(columns, schema=schema())
