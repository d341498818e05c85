"""What a reader sees of an index: its segments, mapped, and which of their rows are clips."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from scav_jax.base.errors import InputError
from scav_jax.index.catalog import Header
from scav_jax.index.encoding import Encoding
from scav_jax.index.segments import ForeignRow, Segment, written


@dataclass(frozen=True)
class Snapshot:
    """What a reader sees of an index.

    Attributes:
      header: of the index.
      segments: mapped, by number; those with live rows.
      live: `[rows]` bool of each segment: which of its rows are clips, and wanted.
    """

    header: Header
    segments: dict[int, Segment]
    live: dict[int, np.ndarray]

    def now(self, index: Path, header: Header, known: Iterable[np.ndarray]) -> "Snapshot":
        """All clips of a table, `[n, 5]` (segment, row, key, two checksums), compared with theirs.

        Segments that this snapshot, of the same index, has mapped are not opened again.

        Raises:
          InputError: table and segments do not belong together.
          FileNotFoundError: a segment is not there (any more).
        """
        segments, live = dict[int, Segment](), dict[int, np.ndarray]()
        for part in known:
            for number in np.unique(part[:, 0]).tolist():
                if number not in live:
                    own = self.segments.get(number)  # numbers come again, segments do not change
                    if own is None or own.written != written(own.folder):
                        own = Segment(index, number, header)
                    segments[number] = own
                    live[number] = np.zeros(len(segments[number]), bool)
                rows = part[part[:, 0] == number, 1:]
                segments[number].belongs(rows)
                if live[number][rows[:, 0]].any() or len(np.unique(rows[:, 0])) < len(rows):
                    raise ForeignRow(segments[number].folder, int(rows[0, 0]))  # twice
                live[number][rows[:, 0]] = True
        _check_one_encoding(list(segments.values()))
        return Snapshot(header, segments, live)

    def only(self, places: Iterable[Int[np.ndarray, "n 2"]]) -> "Snapshot":
        """The clips at some places, given as (segment, row)."""
        live = {number: np.zeros_like(rows) for number, rows in self.live.items()}
        for part in places:
            for number in np.unique(part[:, 0]).tolist():
                live[number][part[part[:, 0] == number, 1]] = True
        live = {number: rows for number, rows in live.items() if rows.any()}
        return Snapshot(self.header, {number: self.segments[number] for number in live}, live)

    def with_stream(self, stream: str) -> "Snapshot":
        """The clips that have a stream."""
        there = {number: one for number, one in self.segments.items() if stream in one.streams}
        return Snapshot(self.header, there, {number: self.live[number] for number in there})

    def counts(self) -> dict[str, int]:
        """How many clips have picture and sound, a picture alone, a sound alone."""
        names = {("visual", "audio"): "both", ("visual",): "pictures alone"}
        found = {"both": 0, "pictures alone": 0, "sounds alone": 0}
        for number, segment in self.segments.items():
            kind = names.get(tuple(segment.streams), "sounds alone")
            found[kind] += int(self.live[number].sum())
        return found

    @property
    def encoding(self) -> Encoding:
        """That of all segments; there is one at least."""
        return next(iter(self.segments.values())).encoding

    def __len__(self) -> int:
        return sum(int(live.sum()) for live in self.live.values())


def _check_one_encoding(segments: list[Segment]) -> None:
    """Raises `InputError` where segments are not rounded or sketched alike."""
    for one in segments[1:]:
        for file in ("centre.npy", "basis.npy"):
            if one.checksums.get(file) != segments[0].checksums.get(file):
                raise InputError(
                    f"{one.folder}: expected a segment of the index of {segments[0].folder}, its "
                    f"{file} is another; bring the index back from one copy, or build it again"
                )
