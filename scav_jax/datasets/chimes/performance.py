"""A performance: what is struck when, and how everything in the picture moves because of it."""

from dataclasses import dataclass

import numpy as np

from scav_jax.datasets.chimes.instrument import Instrument, random_generator
from scav_jax.datasets.chimes.presets import Parameters, Performance

SHORTEST_GAP_S = 0.11
BEATS = np.array([0.5, 1.0, 1.5, 2.0])  # times between strikes in beats, and how often
BEAT_SHARES = np.array([0.3, 0.45, 0.15, 0.1])
FIRST_STRIKE_S = 0.3
LAST_STRIKE_S = 0.15  # before the end, so that every strike is heard and seen


@dataclass(frozen=True)
class Score:
    """Every strike of a performance, in order of time.

    Attributes:
      times: `[strikes]` seconds at which the mallet meets the bar in the picture.
      sound_times: `[strikes]` seconds at which it is heard: `times` and the delays.
      bars: `[strikes]` which bar.
      strengths: `[strikes]` up to 1.
      mallets: `[strikes]` which mallet.
      points: `[strikes, 2]` where the bar is hit, in picture heights.
    """

    times: np.ndarray
    sound_times: np.ndarray
    bars: np.ndarray
    strengths: np.ndarray
    mallets: np.ndarray
    points: np.ndarray


def compose(
    instrument: Instrument,
    performance: Performance,
    parameters: Parameters,
    seed: int,
    what: str = "score",
) -> Score:
    """Draws a performance's strikes. Delays stay within the two `delay_ms` parameters' sum.

    Where instruments share a score, each plays it with delays of its own, and with strikes moved by
    up to `score_jitter_ms`. `what` names the random numbers: another name gives another score.
    """
    random = random_generator(seed, performance.shared_score or performance.played, what)
    times = _strike_times(random, parameters)
    count = len(times)
    bars = _choose_bars(random, count, instrument.bars)
    most = parameters.performance_delay_ms / 1000, parameters.event_delay_ms / 1000
    delays = random.uniform(-most[0], most[0]) + random.uniform(-most[1], most[1], count)
    strikes = times
    if performance.shared_score:
        own = random_generator(seed, performance.played, "own timing")
        delays = own.uniform(-most[0], most[0]) + own.uniform(-most[1], most[1], count)
        jitter = parameters.score_jitter_ms / 1000
        strikes = np.maximum(times + own.uniform(-jitter, jitter, count), 0.0)
    laid = instrument.look.bars
    points = laid.centers[bars] + laid.along[bars] * random.uniform(-0.2, 0.2, (count, 1))
    return Score(
        times=strikes,
        sound_times=np.maximum(strikes + delays, 0.0),
        bars=bars,
        strengths=1.0 - parameters.strength_spread * random.uniform(size=count),
        mallets=_choose_mallets(strikes, points, instrument.look.mallets),
        points=points,
    )


def _strike_times(random: np.random.Generator, parameters: Parameters) -> np.ndarray:
    """Strikes at random about a beat that drifts, with rests; the mean rate is the parameter's."""
    end = parameters.performance_seconds - LAST_STRIKE_S
    count = int(np.ceil(end * parameters.events_per_second)) * 3 + 10
    beats = random.choice(BEATS, size=count, p=BEAT_SHARES)
    # With no spread at all the rhythm is a pulse: the mix of note values is part of the spread.
    spread = parameters.rhythm_spread
    gaps = beats ** min(spread / 0.3, 1.0) * np.exp(spread * random.normal(size=count) / 2)
    gaps = gaps + (random.uniform(size=count) < parameters.rest_probability)
    gaps *= 1.0 / (gaps.mean() * parameters.events_per_second)
    period, phase = random.uniform(15, 40), random.uniform(0, 2 * np.pi)
    drift = parameters.tempo_drift * np.sin(2 * np.pi * np.cumsum(gaps) / period + phase)
    gaps = np.maximum(gaps * np.exp(drift), SHORTEST_GAP_S)
    times = random.uniform(0.5, 1.0) * FIRST_STRIKE_S + np.cumsum(gaps) - gaps[0]
    return times[times < end]


def _choose_bars(random: np.random.Generator, count: int, bars: int) -> np.ndarray:
    """`[count]` any bar follows any other; the same bar twice is half as likely as another."""
    first = random.integers(bars, size=count)
    second = random.integers(bars, size=count)
    redraw = random.uniform(size=count) < 0.5
    for k in range(1, count):
        if first[k] == first[k - 1] and redraw[k]:
            first[k] = second[k]
    return first


def _choose_mallets(times: np.ndarray, points: np.ndarray, mallets: int) -> np.ndarray:
    """`[strikes]` the mallet whose way is shorter; one that has just struck needs time to lift."""
    chosen = np.zeros(len(times), int)
    at = np.linspace(0.3, 1.2, mallets + 2)[1:-1]
    struck = np.full(mallets, -9.0)
    for k, time in enumerate(times):
        cost = np.abs(points[k, 0] - at) + 0.5 * np.exp(-(time - struck) / 0.2)
        chosen[k] = int(np.argmin(cost))
        at[chosen[k]], struck[chosen[k]] = points[k, 0], time
    return chosen


@dataclass(frozen=True)
class Motion:
    """How far everything is from rest, at every frame.

    Attributes:
      flash: `[frames, bars]` 0 at rest, about 1 at a strong strike.
      shift: `[frames, bars]` downward displacement in pixels.
      camera: `[frames, 2]` the picture's displacement (x, y) in pixels.
      mallets: `[frames, mallets, 3]` x, y where the mallet's head would touch, and its height
        above that, all in pixels.
    """

    flash: np.ndarray
    shift: np.ndarray
    camera: np.ndarray
    mallets: np.ndarray


def motion_of(
    instrument: Instrument,
    performance: Performance,
    score: Score,
    parameters: Parameters,
    seed: int,
) -> Motion:
    """The motion that a score causes, at every frame of the performance.

    Frame n is exposed from n to n + 1 frames: a flash that starts within it is as bright there as
    the part of the exposure that it fills. So a frame shows what happens while it is on screen.
    """
    random = random_generator(seed, performance.played, "motion")
    rate = parameters.frame_rate
    frames = round(parameters.performance_seconds * rate)
    opened = np.arange(frames) / rate
    flash = np.zeros((frames, instrument.bars))
    shift = np.zeros((frames, instrument.bars))
    tau = parameters.flash_decay_s
    ring = 1.5 * tau
    pitch = 11.0 - 4.0 * np.arange(instrument.bars) / instrument.bars  # Hz, slow enough to be seen
    seen = int(np.ceil(8 * tau * rate)) + 2
    for time, bar, strength in zip(score.times, score.bars, score.strengths, strict=True):
        here = slice(int(time * rate), min(int(time * rate) + seen, frames))
        began = np.maximum(opened[here] - time, 0.0)
        ended = opened[here] - time + 1.0 / rate
        flash[here, bar] += strength * tau * rate * (np.exp(-began / tau) - np.exp(-ended / tau))
        since = np.maximum(opened[here] + 0.5 / rate - time, 0.0)
        swing = np.sin(2 * np.pi * pitch[bar] * since + 0.6) * np.exp(-since / ring)
        shift[here, bar] += strength * parameters.vibration_px * swing
    return Motion(
        flash=flash,
        shift=shift,
        camera=_camera_path(random, opened, parameters.camera_jitter_px),
        mallets=_mallet_paths(instrument, score, opened + 0.5 / rate) * parameters.height,
    )


def _camera_path(random: np.random.Generator, times: np.ndarray, amplitude: float) -> np.ndarray:
    """`[frames, 2]` a slow wander of both axes, at most `amplitude` each."""
    rates = random.uniform(0.08, 0.7, (3, 2))
    phases = random.uniform(0, 2 * np.pi, (3, 2))
    waves = np.sin(2 * np.pi * rates * times[:, None, None] + phases)
    return amplitude * waves.mean(axis=1)


def _mallet_paths(instrument: Instrument, score: Score, times: np.ndarray) -> np.ndarray:
    """`[frames, mallets, 3]` x, y and height in picture heights.

    A mallet lifts after a strike, sets out for its next bar in time, and comes down on it.
    """
    paths = []
    for mallet in range(instrument.look.mallets):
        mine = score.mallets == mallet
        if not mine.any():
            paths.append(np.tile([instrument.look.bars.centers[0, 0], 0.9, 0.15], (len(times), 1)))
            continue
        struck = np.concatenate([[-1.0], score.times[mine], [times[-1] + 1.0]])
        point = score.points[mine][[0, *range(mine.sum()), -1]]
        force = np.concatenate([[0.5], score.strengths[mine], [0.5]])
        after = np.searchsorted(struck, times, side="right")
        before = after - 1
        since, left = times - struck[before], struck[after] - times
        travel = np.minimum(struck[after] - struck[before], 0.4)
        way = np.clip(1.0 - left / travel, 0.0, 1.0)
        way = (way * way * (3.0 - 2.0 * way))[:, None]
        ground = point[before] * (1.0 - way) + point[after] * way
        lift = 0.08 + 0.1 * force[after]
        height = lift * (1.0 - np.exp(-since / 0.07)) * np.minimum(left / 0.13, 1.0)
        paths.append(np.concatenate([ground, height[:, None]], axis=1))
    return np.stack(paths, axis=1)
