"""The bank of an index: training queries that scores are relative to (`retrieval.hubness`).

It is a file of the index, so clips that are added later are compared with the same queries:

INDEX/
   bank.npz             latents of both streams of the bank, float32

How near a clip comes to it lies in its `ROW`, so deleting and compacting keep it.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from scav_jax.base.documents import read_arrays, write_arrays
from scav_jax.base.errors import InputError
from scav_jax.index.catalog import BANK, MEND, Header
from scav_jax.index.encoding import EncodedStream, Encoding, as_records, word_sums
from scav_jax.index.nearest import NearestSoFar
from scav_jax.index.products import squares_of
from scav_jax.index.scan import Queries, Scan, query_streams
from scav_jax.index.searching import compare
from scav_jax.index.segments import Segment
from scav_jax.index.snapshot import Snapshot
from scav_jax.retrieval.embed import Embedded
from scav_jax.retrieval.hubness import NEAREST, nearness
from scav_jax.sequences import STREAMS, Sequences

PARTS = ("values", "lengths", "windows")
MOST_BYTES = 2**34  # of a bank


class _NearestOfBank(NearestSoFar):
    """Is offered all candidates, as a search is, and keeps the nearest queries of each of them."""

    def __init__(self, rows: int):
        super().__init__(0, 1)
        self.distances = np.full((rows, NEAREST), np.inf, np.float32)

    def offer(
        self,
        numbers: Int[np.ndarray, " Q"],
        distances: Float[np.ndarray, "Q r"],
        errors: Float[np.ndarray, " Q"],
        segment: int,
        rows: Int[np.ndarray, " r"],
    ) -> None:
        both = np.concatenate([self.distances[rows], distances.T], axis=1)
        self.distances[rows] = np.partition(both, NEAREST - 1, axis=1)[:, :NEAREST]


def compare_with_bank(
    streams: dict[str, EncodedStream], encoding: Encoding, bank: Embedded, header: Header
) -> None:
    """Fills in what rows say of the distances to the bank; the same for a clip whatever it is
    added with, up to rounding.

    Args:
      streams: clips as they will be written.
      encoding, header: of the index.
      bank: of the index.
    """
    for direction in ("a2v", "v2a"):
        asked = query_streams(direction)[1]
        if asked not in streams:
            continue
        queries, stream, stored_as = Queries.of(bank, direction, header), streams[asked], encoding
        if header.one_grid and header.storage == "float32":  # the others have a centre
            stored_as = replace(encoding, centre=_middle(queries))
            stream = _about(stream, stored_as.centre)
        segment = Segment.in_memory({asked: stream}, stored_as, header)
        everyone, found = np.arange(len(segment)), _NearestOfBank(len(segment))
        live = {segment.number: np.ones(len(segment), bool)}
        snapshot = Snapshot(replace(header, bank=""), {segment.number: segment}, live)
        if header.one_grid:
            Scan(queries, snapshot).compare_all(found)
        else:
            numbers = np.arange(len(queries))
            compare(queries, snapshot, {segment.number: everyone}, found, numbers)
        streams[asked].rows["bank_near"] = nearness(found.distances)


def _middle(queries: Queries) -> Float[np.ndarray, " C"]:
    """The mean of all steps of the queries: what all have in common cancels in no product then."""
    values, lengths = queries.sequences.values, queries.sequences.lengths
    pairs = zip(values, lengths, strict=True)
    sums = [one[:length].sum(axis=0, dtype=np.float64) for one, length in pairs]
    return (np.sum(sums, axis=0) / np.sum(lengths)).astype(np.float32)


def _about(stream: EncodedStream, centre: Float[np.ndarray, " C"]) -> EncodedStream:
    """Sequences that are stored in float32, less a centre."""
    rows, records = stream.rows.copy(), []
    ends = np.cumsum([len(data) for data in stream.records["values"]])
    for data, end in zip(stream.records["values"], ends, strict=True):
        part = slice(end - len(data), end)
        count = int(rows["steps"][part.start]) * len(centre)
        flat = data.view(np.float32)[:, :count]
        flat = flat - np.tile(centre, count // len(centre))
        rows["square"][part] = squares_of(flat)
        records.append(as_records(flat))
        rows["values_sum"][part] = word_sums(records[-1])
    return EncodedStream(rows, {"values": records})


# ---- the file ------------------------------------------------------------------------------------


def digest(bank: Embedded) -> str:
    """16 hexadecimal digits of a bank."""
    found = hashlib.sha256()
    for name, values in sorted(_arrays(bank).items()):
        found.update(f"{name} {values.dtype} {values.shape}\n".encode() + values.tobytes())
    return found.hexdigest()[:16]


def write_bank(index: Path, bank: Embedded) -> None:
    """Whole or not at all."""
    write_arrays(index / BANK, _arrays(bank))


def read_bank(index: Path, header: Header) -> Embedded:
    """The bank of an index.

    Raises:
      InputError: the file is missing, or is not the one that its clips were compared with.
    """
    path, what = index / BANK, "the bank of an index"
    try:
        bank = _embedded(read_arrays(path, what, MEND, MOST_BYTES))
    except (OSError, KeyError) as error:
        raise InputError(f"{path}: expected {what} ({error}); {MEND}") from None
    if digest(bank) != header.bank:
        raise InputError(f"{path}: expected the bank {header.bank}, got {digest(bank)}; {MEND}")
    return bank


def _arrays(bank: Embedded) -> dict[str, np.ndarray]:
    found = {}
    for stream, latents in zip(STREAMS, bank.latents, strict=True):
        found |= {f"{stream}_{part}": getattr(latents, part) for part in PARTS}
        found[f"{stream}_embeddings"] = getattr(bank, f"{stream}_embeddings")
    return {name: np.ascontiguousarray(values) for name, values in found.items()}


def _embedded(arrays: dict[str, np.ndarray]) -> Embedded:
    count = len(arrays["audio_lengths"])
    streams = {s: Sequences(*(arrays[f"{s}_{part}"] for part in PARTS)) for s in STREAMS}
    means = {f"{s}_embeddings": arrays[f"{s}_embeddings"] for s in STREAMS}
    return Embedded(
        *([""] * count, [""] * count, np.zeros(count), np.zeros(count), [""] * count),
        **streams,
        **means,
    )
