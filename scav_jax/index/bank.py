"""Clips that are written, compared with the bank of their index: how near each comes to it."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from scav_jax.index.nearest.scan import Queries, Scan, query_streams
from scav_jax.index.nearest.searching import compare
from scav_jax.index.products import NearestSoFar, squares_of
from scav_jax.index.stored.catalog import Header
from scav_jax.index.stored.encoding import EncodedStream, Encoding, as_records, word_sums
from scav_jax.index.stored.segments import Segment, Snapshot
from scav_jax.retrieval.embed import Embedded
from scav_jax.retrieval.hubness import NEAREST, nearness


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
