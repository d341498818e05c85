"""How the sequences of an index are stored: as rounded numbers, in records that are summed.

What is stored *is* the sequence: distances are of the stored values, and exact for them.
"""

import itertools
import zlib
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from jaxtyping import Float, Int, Shaped

from scav_jax.index.catalog import Header
from scav_jax.index.products import widen
from scav_jax.index.sketches import Basis
from scav_jax.sequences import Sequences, unit

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.int8),
}
SKETCH_STORAGES = {"coarse": "bfloat16", "fine": "int8"}
ALIGNMENT = 64  # bytes; records begin on it, so that arithmetic never depends on the place
ROW = np.dtype(
    [
        ("values_offset", "<i8"),
        ("fine_offset", "<i8"),
        ("steps", "<i4"),
        ("scale", "<f4"),
        ("square", "<f8"),  # of the stored values less the centre
        ("coarse_square", "<f8"),  # of the stored sketch
        ("coarse_residual", "<f4"),  # how far the stored sketch is from the right one, at most
        ("fine_scale", "<f4"),
        ("fine_square", "<f8"),
        ("fine_residual", "<f4"),
        ("embeddings_length", "<f4"),  # of the stored vector, which rounding has left near 1
        ("sketches_length", "<f4"),
        ("bank_near", "<f4"),  # how near it comes to the bank, see `bank`; 0 without one
        ("values_sum", "<u8"),
        ("embeddings_sum", "<u8"),
        ("sketches_sum", "<u8"),
        ("coarse_sum", "<u8"),
        ("fine_sum", "<u8"),
        ("checksum", "<u4"),
    ]
)
COLUMNS = ("values", "embeddings", "sketches", "coarse", "fine")


def dtypes(storage: str) -> dict[str, np.dtype]:
    """Of the numbers of each column."""
    kinds = {"values": storage, **SKETCH_STORAGES}
    vectors = "float32" if storage == "float32" else "bfloat16"
    kinds |= {"embeddings": vectors, "sketches": vectors}
    return {column: DTYPES[kind] for column, kind in kinds.items()}


def rounded(
    values: Float[np.ndarray, "n width"], storage: str
) -> tuple[Shaped[np.ndarray, "n width"], Float[np.ndarray, " n"]]:
    """Numbers as they are stored, and the scale of each row: value = stored * scale."""
    ones = np.ones(len(values), np.float32)
    if storage != "int8":
        return np.ascontiguousarray(values, DTYPES[storage]), ones
    largest = np.abs(values).max(axis=1)
    scales = np.where(largest > 0, largest / np.float32(127), 1).astype(np.float32)
    return np.rint(values / scales[:, None]).astype(np.int8), scales


def padded_bytes(count: int) -> int:
    """The size of a record of `count` bytes on disk."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def as_records(stored: Shaped[np.ndarray, "n width"]) -> Shaped[np.ndarray, "n padded"]:
    """Rows as the bytes of records, uint8."""
    width = stored.shape[1] * stored.dtype.itemsize
    padded = np.zeros((len(stored), padded_bytes(width)), np.uint8)
    padded[:, :width] = np.ascontiguousarray(stored).view(np.uint8).reshape(len(stored), width)
    return padded


def word_sums(data: Shaped[np.ndarray, "n padded"]) -> Shaped[np.ndarray, " n"]:
    """The sum of the 64-bit words of each record, modulo 2^64.

    It changes with any change inside one word, so with every flipped bit or byte, and it is as
    fast as memory.
    """
    return np.add.reduce(data.view(np.uint64), axis=1)


@dataclass
class EncodedStream:
    """One stream of clips as it is written: `[n]` of `ROW`, and the records of each column."""

    rows: np.ndarray
    records: dict[str, list[np.ndarray]]

    @classmethod
    def join(cls, parts: "list[EncodedStream]") -> "EncodedStream":
        """Parts one after the other, with the places that their records get."""
        rows = np.concatenate([part.rows for part in parts])
        columns = parts[0].records
        records = {name: [one for part in parts for one in part.records[name]] for name in columns}
        for column in {"values", "fine"} & set(records):
            lengths = [np.full(len(data), data.shape[1], np.int64) for data in records[column]]
            ends = np.cumsum(np.concatenate(lengths))
            rows[f"{column}_offset"] = ends - np.concatenate(lengths)
        return cls(rows, records)


@dataclass(frozen=True)
class Encoding:
    """How the sequences of an index are stored: decided by the clips that came first.

    The centre is one vector for all clips and both streams, so differences do not see it.

    Attributes:
      storage: "float32", "bfloat16" (less the centre) or "int8" (less the centre, and with one
        scale for each clip).
      centre: `[C]`, taken off before rounding; zeros for float32.
      basis: of the sketches that exact search prunes by; None where there are none.
    """

    storage: str
    centre: Float[np.ndarray, " C"]
    basis: Basis | None

    @classmethod
    def of(cls, streams: dict[str, Sequences], header: Header) -> "Encoding":
        """That of an index whose first clips these are."""
        width = next(iter(streams.values())).values.shape[2]
        centre = np.zeros(width, np.float32)
        if header.storage != "float32":
            total, steps = np.zeros(width), 0
            for stream in streams.values():
                for values, length in zip(stream.values, stream.lengths, strict=True):
                    total += np.sum(values[: int(length)], axis=0, dtype=np.float64)
                    steps += int(length)
            centre = (total / steps).astype(np.float32)
        return cls(header.storage, centre, Basis.of(streams, centre) if header.one_grid else None)

    def encode(
        self,
        stream: Sequences,
        vectors: dict[str, Float[np.ndarray, "K _"]],
        clips: Int[np.ndarray, " n"],
    ) -> EncodedStream:
        """One stream of some clips; those of one length follow each other.

        `vectors` are their embeddings, and their sketches where the index has them.
        """
        lengths = np.asarray(stream.lengths)[clips]
        runs = [clips[a:b] for a, b in itertools.pairwise(edges(lengths))]
        return EncodedStream.join(
            [
                self._encode_run(
                    np.asarray(stream.values)[run, : int(stream.lengths[run[0]])],
                    {name: np.asarray(one)[run] for name, one in vectors.items()},
                )
                for run in runs
            ]
        )

    def _encode_run(
        self, run: Float[np.ndarray, "n T C"], vectors: dict[str, Float[np.ndarray, "n _"]]
    ) -> EncodedStream:
        count, steps, width = run.shape
        rows = np.zeros(count, ROW)
        rows["steps"] = steps
        flat = run.reshape(count, steps * width)
        if self.storage != "float32":
            flat = flat - np.tile(self.centre, steps)
        stored, scales = rounded(flat, self.storage)
        rows["scale"] = scales
        wide = widen(stored).astype(np.float64) * scales[:, None].astype(np.float64)
        rows["square"] = np.einsum("ij,ij->i", wide, wide)
        records = {"values": as_records(stored)}
        for name, one in vectors.items():
            vector = _unit_once(one).astype(dtypes(self.storage)[name])
            records[name] = as_records(vector)
            rows[f"{name}_length"] = 1.0
            if vector.dtype != np.float32:
                rows[f"{name}_length"] = np.linalg.norm(widen(vector).astype(np.float64), axis=1)
        if self.basis is not None:
            for column in SKETCH_STORAGES:
                records[column] = self._sketches(column, rows, wide.reshape(run.shape))
        for column, data in records.items():
            rows[f"{column}_sum"] = word_sums(data)
        rows["checksum"] = [zlib.crc32(record) for record in records["values"]]
        return EncodedStream(rows, {column: [data] for column, data in records.items()})

    def _sketches(
        self, column: str, rows: np.ndarray, sequences: Float[np.ndarray, "n T C"]
    ) -> np.ndarray:
        """Records of sketches; what is known of them goes into `rows`."""
        assert self.basis is not None, "sketches are asked for where there is a basis only"
        weights, parts = self.basis.stored_weights(column, sequences.shape[1]), []
        for part, exact, off in self.basis.sketch(column, sequences):
            stored, scales = rounded((exact / weights).astype(np.float32), SKETCH_STORAGES[column])
            wide = widen(stored).astype(np.float64)
            wide *= weights * scales[:, None].astype(np.float64)
            rows[f"{column}_square"][part] = np.vecdot(wide, wide)
            moved = (np.linalg.norm(exact - wide, axis=1) + off) * (1 + 1e-6)
            moved = np.nextafter(moved.astype(np.float32), np.float32(np.inf))
            rows[f"{column}_residual"][part] = moved
            if column == "fine":
                rows["fine_scale"][part] = scales
            parts.append(as_records(stored))
        return np.concatenate(parts)


def _unit_once(vectors: Float[np.ndarray, "n E"]) -> Float[np.ndarray, "n E"]:
    """`unit`; what has length 1 stays as it is to the bit, as when an index comes back."""
    found, norms = unit(vectors), np.linalg.norm(vectors.astype(np.float64), axis=1)
    alone = np.abs(norms - 1) < 1e-6
    found[alone] = vectors[alone]
    return found


def edges(steps: Int[np.ndarray, " n"]) -> Int[np.ndarray, " edges"]:
    """Where stretches of one length begin, and where the last ends."""
    return np.concatenate([[0], np.flatnonzero(np.diff(steps)) + 1, [len(steps)]])
