"""Where pieces of sound stand: together as they were decoded, and on their own timestamps.

A decoder gives sound in pieces, each with a timestamp. Most containers round those (to 1 ms), and
recorders note when a piece arrived, so two that were one sound seem to overlap or to leave a gap:
taken literally, that is a click at each joint. So pieces follow each other without a gap, as a run
that stands where most of its timestamps say. A new run begins where they really jump.

What is placed are the pieces around one clip, from their timestamps alone: which clips were cut
before changes nothing.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
from jaxtyping import Float

JUMP_S = 0.025  # a piece whose timestamp is off by more begins a new run at once
STEP_S = 0.01  # that timestamps are moved by for good, or that they may drift in a run
SEEN, LEAST_SEEN = 16, 4  # pieces on each side of a step that have to agree on it


@dataclass(frozen=True)
class Piece:
    """Mono sound that was decoded at once.

    Attributes:
      seconds: when it begins in the film.
      rate: samples a second.
      samples: of it.
      unrelated: the energy (sum of squares) that the mean of its channels would have if they had
        nothing in common; less is there where they cancel each other.
    """

    seconds: float
    rate: int
    samples: Float[np.ndarray, " S"]
    unrelated: float = 0.0

    @property
    def end(self) -> float:
        return self.seconds + len(self.samples) / self.rate


def placed(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces, in the film's order, each at a whole sample of its rate counted from 0 s."""
    out: list[Piece] = []
    for rate, group in itertools.groupby(pieces, key=lambda piece: piece.rate):
        members = list(group)
        counts = [len(piece.samples) for piece in members]
        before = np.cumsum([0, *counts[:-1]])
        # Where each would put the first of them.
        origins = np.array([piece.seconds for piece in members]) * rate - before
        for begin, end in _runs(origins, rate):
            origin = float(np.median(origins[begin:end]))
            for piece, samples_before in zip(members[begin:end], before[begin:end], strict=True):
                index = round(origin + samples_before)
                out.append(replace(piece, seconds=index / rate))
    return out


def _runs(origins: Float[np.ndarray, " N"], rate: int) -> list[tuple[int, int]]:
    """(its first piece, the one after its last) of each run."""
    bounds, recent = [0], [float(origins[0])]
    for number, origin in enumerate(origins[1:], start=1):
        if abs(origin - median(recent)) > JUMP_S * rate:
            bounds.append(number)
            recent = []
        recent = [*recent[1 - SEEN :], float(origin)]
    parts = itertools.pairwise([*bounds, len(origins)])
    return [inner for part in parts for inner in _steady(origins, *part, STEP_S * rate)]


def _steady(
    origins: Float[np.ndarray, " N"], begin: int, end: int, step: float
) -> list[tuple[int, int]]:
    """A run in parts whose timestamps agree: cut at steps, and where they drift."""
    own = origins[begin:end]
    if np.ptp(own) <= step:  # as good as always
        return [(begin, end)]
    at = _step(own, step)
    if at is None:
        drift = abs(np.median(own[:SEEN]) - np.median(own[-SEEN:]))
        if drift <= 2 * step or len(own) < 2 * SEEN:
            return [(begin, end)]
        at = len(own) // 2
    parts = ((begin, begin + at), (begin + at, end))
    return [inner for part in parts for inner in _steady(origins, *part, step)]


def _step(own: Float[np.ndarray, " N"], least: float) -> int | None:
    """The piece from which on all are moved by more than `least`: the clearest such step."""
    best, rest_of_best = None, np.inf
    for at in range(LEAST_SEEN, len(own) - LEAST_SEEN + 1):
        before, after = own[max(at - SEEN, 0) : at], own[at : at + SEEN]
        low, high = np.median(before), np.median(after)
        if abs(high - low) > least:
            rest = np.abs(before - low).mean() + np.abs(after - high).mean()
            if rest < rest_of_best:
                best, rest_of_best = at, rest
    return best
