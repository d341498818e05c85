"""What a distance of one pair costs in training, forward and backward: `scav plan` asks for it."""

from collections.abc import Callable
from typing import NamedTuple

FLOAT = 4  # bytes
HELD = 8  # numbers of a cell that are kept for the gradient, about


class PairCost(NamedTuple):
    """Of one pair.

    Attributes:
      operations: floating point, a multiplication and an addition counted as two.
      memory: working memory in bytes; that of all pairs together stays below
        `train.distance_memory_bytes`.
      of_clips: `(rows, clips, memory_bytes, on_cpu) -> bytes` beside latents and their gradients
        while the latter are made, where clips are read once for all pairs: of so many visual clips
        on a device and of all audio ones; None where the pairs' memory is all.
    """

    operations: float
    memory: float = 0.0
    of_clips: Callable[[int, int, int, bool], float] | None = None


def of_cells(each: float, steps: tuple[int, int], width: int, /, **_) -> PairCost:
    """Where every visual step is compared with every audio step: a cell for each two.

    Args:
      each: operations of a cell besides the product of two steps.
      steps: of the visual and the audio sequence.
      width: of both.
    """
    cells = steps[0] * steps[1]
    return PairCost(cells * (6.0 * width + each), FLOAT * HELD * cells)
