"""Scores relative to a bank of training queries (`retrieval.hubness`), in an index.

The bank is a file of the index, so clips that are added later are compared with the same queries:

INDEX/
   bank.npz             latents of both streams of the bank, float32

How near every clip's stored sequences come to it lies in its `ROW`, so deleting and compacting keep
it. Under the Euclidean distance that is in units of what is compared, mean squared differences of
stored sequences and a weighted query.

A search ranks by scores: `NearestByScore` takes distances and their errors as before, `Hubness`
turns bounds on distances into bounds on scores and back.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from scav_jax.base.documents import read_arrays, write_arrays
from scav_jax.base.errors import InputError
from scav_jax.index.products import NearestSoFar
from scav_jax.index.stored.catalog import BANK, MEND, Header
from scav_jax.index.stored.segments import Snapshot
from scav_jax.retrieval.embed import Embedded
from scav_jax.retrieval.hubness import scores
from scav_jax.sequences import STREAMS, Sequences

PARTS = ("values", "lengths", "windows")
MOST_BYTES = 2**34  # of a bank
ROUNDED = 3e-7  # of a score: what float32 may have moved it, and more


@dataclass(frozen=True)
class Hubness:
    """How near the clips of a snapshot come to the bank, of the stream that is asked.

    Attributes:
      rows: of each segment, its stream's rows.
    """

    rows: dict[int, np.ndarray]

    @classmethod
    def of(cls, snapshot: Snapshot, asked: str) -> "Hubness | None":
        """None where the snapshot is searched by distances."""
        if not snapshot.header.bank:
            return None
        return cls({number: one.streams[asked].rows for number, one in snapshot.segments.items()})

    def at(
        self, segments: Int[np.ndarray, " p"], rows: Int[np.ndarray, " p"]
    ) -> Float[np.ndarray, " p"]:
        """How near clips at some places come."""
        found = np.empty(len(rows), np.float32)
        for number in np.unique(segments):
            here = segments == number
            found[here] = self.rows[int(number)]["bank_near"][rows[here]]
        return found

    def scores(
        self,
        distances: Float[np.ndarray, " p"],
        segments: Int[np.ndarray, " p"],
        rows: Int[np.ndarray, " p"],
    ) -> Float[np.ndarray, " p"]:
        """Final scores of final distances; of lower bounds, lower bounds."""
        return scores(distances, self.at(segments, rows))

    def distances(
        self,
        found: Float[np.ndarray, " p"],
        segments: Int[np.ndarray, " p"],
        rows: Int[np.ndarray, " p"],
    ) -> Float[np.ndarray, " p"]:
        """What the distances of some scores are, up to rounding."""
        return found + np.float32(0.5) * self.at(segments, rows)

    def most(
        self, limits: Float[np.ndarray, " Q"], segment: int, rows: slice
    ) -> Float[np.ndarray, "Q r"]:
        """Distances above which no score is within the limits of its query."""
        half = 0.5 * self.rows[segment]["bank_near"][rows].astype(np.float64)
        return half * (1 + ROUNDED) + (limits + ROUNDED * np.abs(limits))[:, None]


class NearestByScore(NearestSoFar):
    """`NearestSoFar` by scores: distances that are offered become scores; pairs are ones."""

    def __init__(self, queries: int, k: int, hubness: Hubness):
        super().__init__(queries, k)
        self.hubness = hubness

    def offer(
        self,
        numbers: Int[np.ndarray, " Q"],
        distances: Float[np.ndarray, "Q r"],
        errors: Float[np.ndarray, " Q"],
        segment: int,
        rows: Int[np.ndarray, " r"],
    ) -> None:
        found = scores(distances, self.hubness.rows[segment]["bank_near"][rows])
        if errors.any():
            largest = np.max(np.abs(found), axis=1, initial=0.0, where=np.isfinite(found))
            errors = errors + ROUNDED * largest
        super().offer(numbers, found, errors, segment, rows)


def nearest_so_far(hubness: Hubness | None, queries: int, k: int) -> NearestSoFar:
    """What collects the nearest, by distances or by scores."""
    return NearestSoFar(queries, k) if hubness is None else NearestByScore(queries, k, hubness)


# The bank of an index


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
