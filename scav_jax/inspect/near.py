"""Near-duplicates: clips that show and sound the same though their bytes differ, found by content.

A re-encoded copy changes in the same way at the same time. Each stream of a clip is reduced to a
signature: its features' means over 32 equal parts of its time, less their mean, through a fixed
random projection. The similarity of two clips is the lowest correlation of their streams'
signatures. What does not change has no signature and is not compared; copies that were cut or
shifted by more than a part of 32 are not found.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Shaped

PARTS = 32  # of a clip's time: 0.3 s of 10 s, more than an encoder's delay
PROJECTED = 16  # numbers that are left of a step
SIMILAR = 0.95  # correlation, from which two clips are said to be near
STILL = 0.01  # of its own size that a stream must change by to be compared
NEAR = f"picture and sound each change over time alike: correlations of at least {SIMILAR:g}"
ROWS = 2048  # of all pairs at a time


def signature(values: Shaped[np.ndarray, "T C"]) -> Float[np.ndarray, " 512"] | None:
    """How a stream changes over time, of length 1; None where it does not."""
    steps, width = values.shape
    if steps < 2:
        return None
    signs = np.random.default_rng(width).choice(np.float32([-1, 1]), (width, PROJECTED))
    projected = values.astype(np.float32) @ (signs / np.float32(width**0.5))
    sums = np.concatenate([np.zeros((1, PROJECTED)), np.cumsum(projected, axis=0, dtype=float)])
    edges = np.linspace(0.0, steps, PARTS + 1)
    left = np.minimum(edges.astype(int), steps - 1)
    at = sums[left] + (edges - left)[:, None] * (sums[left + 1] - sums[left])
    means = np.diff(at, axis=0) * (PARTS / steps)
    change = means - means.mean(axis=0)
    size = float(np.linalg.norm(change))
    if size <= STILL * float(np.linalg.norm(means)) or not np.isfinite(size):
        return None
    return (change / size).ravel().astype(np.float32)


def near_pairs(
    signatures: Sequence[Mapping[str, np.ndarray]],
) -> list[tuple[int, int, float]]:
    """All pairs of clips that are near, (i, j, similarity) with i < j; the most similar first.

    Clips are compared by the streams that both have a signature of, and need all that either has.
    """
    streams = sorted({name for one in signatures for name in one})
    count = len(signatures)
    if not streams or count < 2:
        return []
    table, known = {}, {}
    for name in streams:
        table[name] = np.zeros((count, PARTS * PROJECTED), np.float32)
        known[name] = np.array([name in one for one in signatures])
        for row, one in enumerate(signatures):
            if name in one:
                table[name][row] = one[name]
    any_known = np.any(list(known.values()), axis=0)
    found: list[tuple[int, int, float]] = []
    for begin in range(0, count, ROWS):
        rows = slice(begin, begin + ROWS)
        lowest = np.where(any_known[rows, None] & any_known[None], 1.0, -1.0).astype(np.float32)
        for name in streams:
            either = known[name][rows, None] | known[name][None]
            correlation = np.where(either, table[name][rows] @ table[name].T, 1.0)
            np.minimum(lowest, correlation, out=lowest)
        for i, j in np.argwhere(lowest >= SIMILAR):
            if begin + i < j:
                found.append((int(begin + i), int(j), min(float(lowest[i, j]), 1.0)))
    return sorted(found, key=lambda pair: (-pair[2], pair[:2]))
