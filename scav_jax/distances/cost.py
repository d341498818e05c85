"""What a distance of one pair costs in training, forward and backward: `scav plan` asks for it."""

from typing import NamedTuple

FLOAT = 4  # bytes
HELD = 8  # numbers of a cell that are kept for the gradient, about
READ = 4  # arrays of what is compared at a time: as read, as multiplied, both gradients


class PairCost(NamedTuple):
    """Of one pair.

    Attributes:
      operations: floating point, a multiplication and an addition counted as two.
      memory: working memory in bytes; that of all pairs together stays below
        `train.distance_memory_bytes`.
      of_clip: the same for each clip of either stream, where clips are read once for all pairs.
    """

    operations: float
    memory: float = 0.0
    of_clip: float = 0.0


def of_cells(each: float, steps: tuple[int, int], width: int, /, **_) -> PairCost:
    """Where every visual step is compared with every audio step: a cell for each two.

    Args:
      each: operations of a cell besides the product of two steps.
      steps: of the visual and the audio sequence.
      width: of both.
    """
    cells = steps[0] * steps[1]
    return PairCost(cells * (6.0 * width + each), FLOAT * HELD * cells)


def of_grid(
    steps: tuple[int, int], width: int, /, *, resample: str = "visual_to_audio", **_
) -> PairCost:
    """Where one sequence is brought to the steps of the other: a product for each of these."""
    visual, audio = steps
    target = min(visual, audio) if resample == "visual_to_audio" else visual
    return PairCost(6.0 * target * width, of_clip=FLOAT * READ * target * width)
