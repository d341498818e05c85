"""How long work shows itself: one kind of bar, on stderr, with a rate and the time left."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm


def progress_bar(
    what: str,
    total: int,
    unit: str,
    *,
    initial: int = 0,
    shown: bool = True,
    scale: bool = False,
    smoothing: float = 0.3,
) -> "tqdm":
    """A bar on stderr; where that is not a terminal, at most a line every ten seconds.

    Args:
      what: the work, in a word or two.
      total: how many units there are.
      unit: what is counted, in the singular.
      initial: how many were done before.
      shown: False shows nothing.
      scale: write large numbers as 1.2M.
      smoothing: of the rate, from 0 (mean of all) to 1 (the last one only).
    """
    from tqdm import tqdm  # the mathematics goes without it

    return tqdm(
        desc=what,
        total=total,
        unit=unit,
        initial=initial,
        disable=not shown,
        unit_scale=scale,
        smoothing=smoothing,
        file=sys.stderr,
        dynamic_ncols=True,
        mininterval=1 if sys.stderr.isatty() else 10,
    )
