"""Adding: the latents of clips, cut by size into new segments, and the rows that name them."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from scav_jax.embed import Embedded
from scav_jax.errors import InputError
from scav_jax.index import segments
from scav_jax.index.layout import SEGMENT_BYTES, STREAMS, Header
from scav_jax.index.rows import schema
from scav_jax.index.segments import Segment
from scav_jax.index.sketches import Basis
from scav_jax.sequences import Sequences


def take(embedded: Embedded, chosen: list[int]) -> Embedded:
    """Some of the clips."""
    if len(chosen) == len(embedded.ids):
        return embedded

    def part(value):
        if isinstance(value, Sequences):
            return Sequences(*(np.asarray(leaf)[chosen] for leaf in
                               (value.values, value.lengths, value.windows)))  # fmt: skip
        if isinstance(value, list):
            return [value[number] for number in chosen]
        return None if value is None else np.asarray(value)[chosen]

    names = ("ids", "sources", "starts", "ends", "labels", "visual", "audio")
    names += ("visual_embeddings", "audio_embeddings")
    return replace(embedded, **{name: part(getattr(embedded, name)) for name in names})


def check_streams(embedded: Embedded, streams: dict[str, Sequences], header: Header) -> None:
    """Raises `InputError` for latents that are not finite, empty, or of another width."""
    widths = {np.asarray(stream.values).shape[2] for stream in streams.values()}
    if len(widths) > 1 or (header.width and widths != {header.width}):
        raise InputError(
            f"expected latents of width {header.width or 'one'}, got {sorted(widths)}; embed them "
            "with the model of the index"
        )
    for name, stream in streams.items():
        values, lengths = np.asarray(stream.values), np.asarray(stream.lengths)
        real = np.arange(values.shape[1]) < lengths[:, None]
        good = (np.isfinite(values).all(axis=2) | ~real).all(axis=1)
        if not good.all() or (lengths < 1).any():
            bad = int(np.flatnonzero(~good | (lengths < 1))[0])
            raise InputError(
                f"clip {embedded.ids[bad]!r}: expected finite {name} latents of at least a step, "
                "got NaN, infinity or none; nothing was added"
            )


def centre_of(
    streams: dict[str, Sequences], mapped: dict[int, Segment], storage: str
) -> Float[np.ndarray, " C"]:
    """What is taken off before rounding: of the clips that came first, for all that follow."""
    for segment in mapped.values():
        return np.asarray(segment.centre)
    width = np.asarray(streams["audio"].values).shape[2]
    if storage == "float32":
        return np.zeros(width, np.float32)
    total, steps = np.zeros(width), 0
    for stream in streams.values():
        for values, length in zip(stream.values, stream.lengths, strict=True):
            total += np.sum(values[: int(length)], axis=0, dtype=np.float64)
            steps += int(length)
    return (total / steps).astype(np.float32)


def basis_of(
    streams: dict[str, Sequences], present: dict[int, Segment], header: Header, centre
) -> Basis | None:
    """What sketches are coefficients of: by the clips that came first, as the centre."""
    for segment in present.values():
        return segment.basis
    return Basis.of(streams, centre) if header.one_grid else None


def write_clips(
    path: Path,
    header: Header,
    embedded: Embedded,
    streams: dict[str, Sequences],
    centre: Float[np.ndarray, " C"],
    basis: Basis | None,
    first: int,
    first_key: int,
):
    """Writes the sequences of clips into new segments; without their rows nobody sees them.

    Args:
      path: of the index.
      header: with the width of the latents.
      embedded, streams: the clips, and their sequences as they are stored.
      centre, basis: see `centre_of` and `basis_of`.
      first: number of the first new segment.
      first_key: of the first clip; the others follow in their order.

    Returns:
      Their rows, an Arrow table.
    """
    order = np.lexsort((streams["visual"].lengths, streams["audio"].lengths))
    parts = _split(order, streams, header.width)
    table = [
        _write(path, number, part, streams, embedded, centre, basis, first_key, header)
        for number, part in enumerate(parts, first)
    ]
    return _arrow(embedded, np.concatenate([one[0] for one in table]), first_key, table)


def _split(order: np.ndarray, streams: dict[str, Sequences], width: int) -> list[np.ndarray]:
    """Rows by segment: of about `SEGMENT_BYTES`."""
    steps = np.maximum(*(np.asarray(stream.lengths)[order] for stream in streams.values()))
    sizes = np.cumsum(steps.astype(np.int64)) * width * 4
    return [part for part in np.split(order, np.flatnonzero(np.diff(sizes // SEGMENT_BYTES)) + 1)]


def _write(
    path, number, part, streams, embedded, centre, basis, first_key, header: Header
) -> tuple:
    """One segment; the clips in it, and for each its segment, row and checksums."""
    encoded = {
        name: _encoded(name, part, streams[name], embedded, centre, basis, header)
        for name in STREAMS
    }
    segments.write_segment(path, number, encoded, first_key + part, centre, header.storage, basis)
    checksums = [encoded[name].rows["checksum"] for name in STREAMS]
    return part, np.full(len(part), number), np.arange(len(part)), *checksums


def _encoded(name, part, stream: Sequences, embedded, centre, basis, header: Header):
    """One stream of a segment, run by run of one length."""
    lengths = np.asarray(stream.lengths)[part]
    edges = np.concatenate([[0], np.flatnonzero(np.diff(lengths)) + 1, [len(part)]])
    runs = [part[a:b] for a, b in itertools.pairwise(edges)]
    units = getattr(embedded, f"{name}_embeddings")
    return segments.join(
        [
            segments.encode_run(
                np.asarray(stream.values)[run, : int(stream.lengths[run[0]])],
                np.asarray(units)[run],
                header.storage,
                centre,
                basis,
            )
            for run in runs
        ]
    )


def _arrow(embedded: Embedded, order: np.ndarray, key: int, table: list) -> object:
    """The rows of added clips."""
    import pyarrow as pa

    chosen = order.tolist()
    columns = {
        "id": [embedded.ids[n] for n in chosen],
        "source": [str(embedded.sources[n]) for n in chosen],
        "start": np.asarray(embedded.starts, np.float64)[order],
        "end": np.asarray(embedded.ends, np.float64)[order],
        "label": [str(embedded.labels[n]) for n in chosen],
        "key": (key + order).astype(np.int64),
        "segment": np.concatenate([one[1] for one in table]).astype(np.int32),
        "row": np.concatenate([one[2] for one in table]).astype(np.int32),
        "checksum_visual": np.concatenate([one[3] for one in table]).astype(np.uint32),
        "checksum_audio": np.concatenate([one[4] for one in table]).astype(np.uint32),
    }
    return pa.table(columns, schema=schema())
