"""Clips that are written, compared with the bank of their index: means and deviations for each."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from scav_jax.index.catalog import Header
from scav_jax.index.encoding import EncodedStream, Encoding
from scav_jax.index.products import NearestSoFar
from scav_jax.index.scan import Queries, Scan, query_streams
from scav_jax.index.searching import compare
from scav_jax.index.segments import Segment, Snapshot
from scav_jax.retrieval.embed import Embedded
from scav_jax.retrieval.hubness import moments


class _Sums(NearestSoFar):
    """Is offered all candidates, as a search is, and keeps sums instead of the nearest."""

    def __init__(self, rows: int):
        super().__init__(0, 1)
        self.sums, self.squares = np.zeros(rows), np.zeros(rows)

    def offer(
        self,
        numbers: Int[np.ndarray, " Q"],
        distances: Float[np.ndarray, "Q r"],
        errors: Float[np.ndarray, " Q"],
        segment: int,
        rows: Int[np.ndarray, " r"],
    ) -> None:
        wide = distances.astype(np.float64)
        self.sums[rows] += wide.sum(axis=0)
        self.squares[rows] += np.square(wide).sum(axis=0)


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
    segment = Segment.in_memory(streams, encoding, header)
    everyone = np.arange(len(segment))
    live = {segment.number: np.ones(len(segment), bool)}
    snapshot = Snapshot(replace(header, bank=""), {segment.number: segment}, live)
    for direction in ("a2v", "v2a"):
        if query_streams(direction)[1] not in streams:
            continue
        queries, found = Queries.of(bank, direction, header), _Sums(len(segment))
        if header.one_grid:
            Scan(queries, snapshot).compare_all(found)
        else:
            numbers = np.arange(len(queries))
            compare(queries, snapshot, {segment.number: everyone}, found, numbers)
        rows = streams[queries.asked].rows
        told = moments(len(queries), found.sums, found.squares)
        rows["bank_mean"], rows["bank_deviation"] = told
