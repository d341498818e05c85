"""How well a sound fits a picture, and where it belongs: read off the distance over time shifts.

`offset` is what the sound has to be moved by, in seconds; positive: it comes too early, lay it
later. A model has a constant error of its own (`bias_s`) and a sharpness of its own; both are
measured on reference clips whose sound is taken to be in place, see `calibration`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from scav_jax.base.errors import InputError
from scav_jax.retrieval.shifts import Shifted, Track, shifted
from scav_jax.training.runs import Run

MOST_S, STEP_S = 1.0, 0.04
SMOOTH_S = 0.08  # of a curve; chosen on validation clips
NEAR_S = 0.4  # from the best shift: what lies beyond are other shifts
COVERAGE = 0.95
FEW = 100  # reference clips: with fewer, intervals and scores are rough
NOTHING_SHARED = (
    "expected a picture and a sound that share at least a second, half of the shorter one, at some "
    "offset; try another range of offsets"
)


@dataclass(frozen=True)
class Calibration:
    """What reference clips say of a model.

    Attributes:
      identity: of the model.
      content: of the reference clips, `Split.content`.
      data: what their data set is called, the last two parts of its path.
      split: which of its splits they are.
      clips: how many.
      clip_seconds: their length, of which windows of longer sounds are made.
      bias_s: the shift at which sounds in place are found, the median.
      sharpness: k of the probability of an offset, `exp(-k n D)` over n clip lengths: the largest
        with which intervals hold the true offset of 95 % of the clips.
      dip: (mean, deviation) of `dip` of pictures with sounds of other clips.
      level: the same of the distance at their best shift.
      strangers: sorted scores of those pairs.
    """

    identity: str
    content: str
    data: str
    split: str
    clips: int
    clip_seconds: float
    bias_s: float
    sharpness: float
    dip: tuple[float, float]
    level: tuple[float, float]
    strangers: tuple[float, ...]

    def chance(self, score: float) -> float:
        """The share of N strangers that score as well, at least 1 / (N + 1)."""
        above = sum(one >= score for one in self.strangers)
        return (1 + above) / (1 + len(self.strangers))

    def in_words(self) -> str:
        """What was found, for people."""
        told = (
            f"calibrated on {self.clips:,} clips of {self.data} ({self.split}): constant error "
            f"{self.bias_s:+.3f} s"
        )
        if self.clips < FEW:
            told += f"; intervals and scores want {FEW} clips or more: take them as rough"
        return told


@dataclass(frozen=True)
class Synchrony:
    """Of one picture and one sound; scores are None without a calibration.

    Attributes:
      offset: seconds that the sound has to be moved by.
      low, high: its 95 % interval; NaN without a calibration.
      sync: by what share the distance falls at the offset, against other shifts of the same sound,
        in deviations from what it does for strangers (pictures with sounds of other clips).
      match: how small the distance is there, against strangers', in their deviations.
      score: the mean of both. Strangers have 0 on average.
      chance: the share of strangers that score as well.
      offsets: `[S]` seconds.
      curve: `[S]`, the distance at each, mean over windows; NaN where too little is shared.
      seconds: of sound that was compared.
      spans: (begin, end) of the picture and of the sound, in seconds of each.
      windows: of each window of the sound that lies under the picture at the offset: begin, end,
        and the offset that it has alone.
    """

    offset: float
    low: float
    high: float
    sync: float | None
    match: float | None
    score: float | None
    chance: float | None
    offsets: Float[np.ndarray, " S"]
    curve: Float[np.ndarray, " S"]
    seconds: float
    spans: tuple[tuple[float, float], tuple[float, float]]
    windows: list[dict]


def synchrony(
    run: Run,
    visual: Track,
    audio: Sequence[Track],
    calibration: Calibration | None = None,
    *,
    around: tuple[float, float] = (-MOST_S, MOST_S),
    step_s: float = STEP_S,
) -> Synchrony:
    """Where windows of a sound belong under a picture, and how well they fit.

    Args:
      run: the model.
      visual, audio: features, see `shifts.shifted`.
      calibration: of this model; None takes its bias as 0.
      around: the smallest and the largest offset that is tried, in seconds. Where they are less
        than 2 `MOST_S` apart, more is compared for `sync`, which is against other shifts.
      step_s: between offsets.

    Raises:
      InputError: offsets that make no sense, or none at which enough is shared.
    """
    if not (around[1] - around[0] >= 4 * step_s > 0):
        raise InputError(
            f"offsets: expected a range of at least four steps, got {around[0]:g} to {around[1]:g} "
            f"s in steps of {step_s:g} s"
        )
    count = math.floor((around[1] - around[0]) / step_s + 1e-6)
    more = max(math.ceil((2 * MOST_S - (around[1] - around[0])) / (2 * step_s) - 1e-6), 0)
    first = (around[0] + around[1] - count * step_s) / 2
    offsets = first + step_s * np.arange(-more, count + 1 + more)
    bias = calibration.bias_s if calibration else 0.0
    found = shifted(run, visual, audio, offsets + bias)
    return read(found, offsets, visual, audio, calibration, slice(more, more + count + 1))


def read(
    found: Shifted,
    offsets: Float[np.ndarray, " S"],
    visual: Track,
    audio: Sequence[Track],
    calibration: Calibration | None,
    tried: slice = slice(None),
) -> Synchrony:
    """What distances at some offsets say, without the model's constant error.

    Args:
      found, offsets: distances, and where.
      visual, audio, calibration: see `synchrony`.
      tried: which of the offsets may be the answer; the others are what it is compared with.
    """
    step_s = float(offsets[1] - offsets[0])
    whole = curve_of(found, step_s)
    depth = dip(offsets, whole, tried)
    found = Shifted(*(one[:, tried] for one in found))
    offsets, curve, seconds = offsets[tried], whole[tried], compared_seconds(found, audio)
    offset, at = best(offsets, curve), int(np.nanargmin(curve))
    low = high = np.nan
    scores: dict = dict.fromkeys(("sync", "match", "score", "chance"))
    if calibration is not None:
        lengths = seconds / calibration.clip_seconds
        low, high = interval(offsets, calibration.sharpness * lengths * curve, offset)
        values = depth, -np.nanmin(curve)
        nulls = calibration.dip, (-calibration.level[0], calibration.level[1])
        sync, match = ((v - mean) / std for v, (mean, std) in zip(values, nulls, strict=True))
        score = float((sync + match) / 2)
        scores = {"sync": float(sync), "match": float(match), "score": score}
        scores["chance"] = calibration.chance(score)
    windows = [
        {
            "begin": track.span[0],
            "end": track.span[1],
            "offset": best(offsets, curve_of(_window(found, number), step_s)),
        }
        for number, track in enumerate(audio)
        # Another one was compared at other offsets alone.
        if np.isfinite(found.distances[number, at])
    ]
    spans = visual.span, (audio[0].span[0], audio[-1].span[1])
    about: dict = {"seconds": seconds, "spans": spans, "windows": windows}
    return Synchrony(offset, low, high, **scores, offsets=offsets, curve=curve, **about)


def _window(found: Shifted, number: int) -> Shifted:
    return Shifted(*(one[number : number + 1] for one in found))


# ---- of a curve ------------------------------------------------------------------------------


def curve_of(found: Shifted, step_s: float) -> Float[np.ndarray, " S"]:
    """One curve of all windows: what each says adds up over the seconds that it shares.

    `level + sum_w seconds_w (D_w - mean_w) / seconds`, with the most seconds that are shared at any
    shift: where less is shared, less is known, and a distance that is low by chance counts less.
    Then smoothed over `SMOOTH_S`, since a step of sound meets few frames at any one shift.

    Raises:
      InputError: no window shares enough with the picture at any shift.
    """
    there = np.isfinite(found.distances)
    if not there.any():
        raise InputError(NOTHING_SHARED)
    used = there.any(axis=1)
    distances, there = found.distances[used], there[used]
    seconds = np.where(there, found.seconds[used], 0.0)
    means = np.nanmean(distances, axis=1)
    level = np.average(means, weights=seconds.max(axis=1))
    total = seconds.sum(axis=0)
    moved = (seconds * np.where(there, distances - means[:, None], 0.0)).sum(axis=0) / total.max()
    return smoothed(np.where(total > 0, level + moved, np.nan), step_s)


def smoothed(curve: Float[np.ndarray, " S"], step_s: float) -> Float[np.ndarray, " S"]:
    """The mean of what lies near each point, weighted by a bell of deviation `SMOOTH_S`.

    Ten deviations away nothing weighs: no matrix of all offsets, of which there may be thousands.
    """
    there = np.isfinite(curve)
    reach = math.ceil(10 * SMOOTH_S / step_s)
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) * step_s / SMOOTH_S) ** 2)
    sums = (np.convolve(one, bell) for one in (np.where(there, curve, 0.0), there.astype(float)))
    values, weights = (one[reach : reach + len(curve)] for one in sums)
    return np.where(there, values / np.where(there, weights, 1.0), np.nan)


def compared_seconds(found: Shifted, audio: Sequence[Track]) -> float:
    """The seconds of a sound that were compared; where windows overlap, once."""
    total, reached = 0.0, -np.inf
    for track, seconds in zip(audio, found.seconds.max(axis=1), strict=True):
        total += max(min(float(seconds), track.span[1] - max(reached, track.span[0])), 0.0)
        reached = max(reached, track.span[1]) if seconds > 0 else reached
    return total


def best(offsets: Float[np.ndarray, " S"], curve: Float[np.ndarray, " S"]) -> float:
    """The lowest point, between the steps where a parabola through three of them has it."""
    at = int(np.nanargmin(curve))
    if not 0 < at < len(curve) - 1:
        return float(offsets[at])
    before, here, after = curve[at - 1 : at + 2]
    bend = before - 2 * here + after
    moved = 0.5 * (before - after) / bend if np.isfinite(bend) and bend > 0 else 0.0
    return float(offsets[at] + moved * (offsets[at + 1] - offsets[at]))


def dip(
    offsets: Float[np.ndarray, " S"], curve: Float[np.ndarray, " S"], tried: slice = slice(None)
) -> float:
    """By what share the lowest point lies below the mean of other shifts; 0 where there are none.

    A share, because distances are larger where more happens. The lowest point is one of `tried`.

    Raises:
      InputError: there nothing is known.
    """
    if not np.isfinite(curve[tried]).any():
        raise InputError(NOTHING_SHARED)
    at = tried.indices(len(curve))[0] + int(np.nanargmin(curve[tried]))
    # `NEAR_S` is a whole number of steps: rounding is not to say on which side of it one lies.
    others = curve[(np.abs(offsets - offsets[at]) > NEAR_S + 1e-6) & np.isfinite(curve)]
    level = float(np.mean(others)) if len(others) else 0.0
    return 1.0 - float(curve[at]) / level if level > 0 else 0.0


def interval(
    offsets: Float[np.ndarray, " S"], energy: Float[np.ndarray, " S"], offset: float
) -> tuple[float, float]:
    """The middle 95 % of `exp(-energy)`, `offset` included."""
    there = np.isfinite(energy)
    offsets, energy = offsets[there], energy[there]
    weights = np.exp(energy.min() - energy)
    step = offsets[1] - offsets[0] if len(offsets) > 1 else 0.0
    edges = np.append(offsets - step / 2, offsets[-1] + step / 2)
    shares = np.append(0.0, np.cumsum(weights)) / weights.sum()
    tail = (1 - COVERAGE) / 2
    low, high = np.clip(np.interp((tail, 1 - tail), shares, edges), offsets[0], offsets[-1])
    return min(float(low), offset), max(float(high), offset)
