"""Recall in smaller galleries, so that figures of galleries of other sizes can be compared."""

from collections.abc import Sequence

import numpy as np

from scav_jax import metrics
from scav_jax.base.errors import InputError
from scav_jax.retrieve import DIRECTIONS

# SHA-256 of the ids -> a gallery that others publish figures of; docs/data.md makes the lists.
PUBLISHED = {
    "6cb21ff06dd71096710c23c877ef4c4bb2e82826f468f69a18d4af4f3b5c5ed7": "VGGSound's test list",
    "bbcf8c32dd90f3e8c22600be6ccc42e7be366da2e2adcd4846cffb8f777da2e1": "CAV-MAE Sync's 1,545",
    "7fd00ec5b673db9ff5b33f3157efda8d5f7b45d9437d842223dd69d9e39d8ef3": "VGGSounder's clips",
}


def check(sizes: Sequence[int], clips: int) -> None:
    """Raises `InputError` for a gallery of more clips than there are."""
    too_large = [size for size in sizes if size > clips]
    if too_large:
        raise InputError(
            f"--gallery: expected sizes up to the {clips:,} clips of the split, or all, got "
            f"{too_large[0]:,}"
        )


def recalls(
    ranks: dict[str, dict[str, np.ndarray]], clips: int, sizes: Sequence[int]
) -> dict[str, list[dict]]:
    """Method -> by size, ascending: recalls of both directions in galleries of so many clips."""
    if not sizes:
        return {}
    wanted = sorted({size or clips for size in sizes})
    return {
        method: [
            {"size": size}
            | {
                d: {f"recall_at_{k}": metrics.gallery_recall(ranks[d][method], clips, size, k)
                    for k in metrics.RECALLS}
                for d in DIRECTIONS
            }
            for size in wanted
        ]
        for method in ("aggregation", "sequence")
        if method in ranks[DIRECTIONS[0]]
    }  # fmt: skip
