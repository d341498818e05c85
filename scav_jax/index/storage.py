"""How sequences are stored: float32, bfloat16 (centred), int8 (centred, one scale a clip).

What is stored *is* the sequence: distances are of the stored values, and exact for them. The
centre is one vector for all clips and both streams, so differences do not see it.
"""

import ml_dtypes
import numpy as np
from jaxtyping import Float, Shaped

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.int8),
}
ALIGNMENT = 64  # bytes; records begin on it, so that arithmetic never depends on the place


def padded_bytes(count: int) -> int:
    """The size of a record of `count` bytes on disk."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def encode(
    values: Float[np.ndarray, "n width"], storage: str, centre: Float[np.ndarray, " width"]
) -> tuple[Shaped[np.ndarray, "n width"], Float[np.ndarray, " n"]]:
    """Values as they are stored, and the scale of each row: value = stored * scale + centre."""
    ones = np.ones(len(values), np.float32)
    if storage == "float32":
        return np.ascontiguousarray(values, np.float32), ones
    values = values - centre
    if storage == "bfloat16":
        return values.astype(DTYPES[storage]), ones
    largest = np.abs(values).max(axis=1)
    scales = np.where(largest > 0, largest / np.float32(127), 1).astype(np.float32)
    return np.rint(values / scales[:, None]).astype(np.int8), scales


def widen(stored: np.ndarray, out: np.ndarray | None = None) -> Float[np.ndarray, "..."]:
    """Stored numbers as float32, exactly; into `out` (ten times as fast) where that is given."""
    if stored.dtype == np.float32:
        return stored
    if out is None:
        out = np.empty(stored.shape, np.float32)
    np.copyto(out, stored, casting="unsafe")
    return out


def records(stored: Shaped[np.ndarray, "n width"]) -> np.ndarray:
    """Rows as the bytes of records, `[n, padded]` uint8."""
    width = stored.shape[1] * stored.dtype.itemsize
    padded = np.zeros((len(stored), padded_bytes(width)), np.uint8)
    padded[:, :width] = np.ascontiguousarray(stored).view(np.uint8).reshape(len(stored), width)
    return padded


def word_sums(data: np.ndarray) -> np.ndarray:
    """The sum of the 64-bit words of each record, modulo 2^64.

    It changes with any change inside one word, so with every flipped bit or byte, and it is as
    fast as memory.
    """
    return np.add.reduce(data.view(np.uint64), axis=1)
