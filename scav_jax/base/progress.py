"""How long work shows itself: one kind of bar, on stderr, with a rate and the time left."""

import sys
from collections.abc import Iterable
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
    over: Iterable | None = None,
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
      over: what the bar goes through where a loop is over it.
    """
    from tqdm import tqdm  # the mathematics goes without it

    terminal = sys.stderr.isatty()
    return tqdm(
        over,
        desc=what,
        total=total,
        unit=unit,
        initial=initial,
        disable=not shown,
        unit_scale=scale,
        smoothing=smoothing,
        file=sys.stderr if terminal else _Lines(),
        dynamic_ncols=True,
        mininterval=1 if terminal else 10,
    )


class _Lines:
    """A bar in a file or a pipe: each state is a line, since nothing there is written over."""

    def __init__(self) -> None:
        self._out, self._last = sys.stderr, ""

    def write(self, text: str) -> None:
        line = text.replace("\x1b[A", "").strip()  # a bar below another one moves up
        if line and line != self._last:  # the last state is written again when the bar is closed
            self._out.write(f"{line}\n")
            self._last = line

    def flush(self) -> None:
        self._out.flush()
