"""A model's synchrony, calibrated: its constant error, how sharp it is, what strangers score.

Done once for a model, on clips that it was not trained on and whose sound is taken to be in place;
stored beside it as `synchrony.json`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from scav_jax.base.documents import read_document, write_document
from scav_jax.base.errors import InputError
from scav_jax.base.names import last_parts, shown
from scav_jax.base.progress import progress_bar
from scav_jax.features import store
from scav_jax.features.batches import covered_seconds
from scav_jax.features.clip import used_span
from scav_jax.features.store import Split
from scav_jax.retrieval.embed import check_features
from scav_jax.retrieval.own_data import own_split
from scav_jax.retrieval.shifts import LEAST_S, Track, shifted
from scav_jax.retrieval.synchrony import (
    COVERAGE,
    MOST_S,
    NEAR_S,
    STEP_S,
    Calibration,
    best,
    curve_of,
    dip,
    interval,
)
from scav_jax.training.runs import Run

FILE, FORMAT = "synchrony.json", 2
FEWEST, MOST = 20, 300  # reference clips: refused below, taken at most
SHORTEST_S = LEAST_S + NEAR_S + 0.1  # of them: others than the best shift have to be compared too
MEND = "calibrate again: scav score --calibrate --model RUN"


def of_data(run: Run, identity: str, data: Path | None, name: str | None) -> Calibration:
    """`calibrate`, with a bar, on a split of a data set.

    Args:
      data, name: the data set and its split; without both, the run's own validation clips, which
        must be those that it was trained with.

    Raises:
      InputError: they are the clips that the model has learned from; else as `calibrate`.
    """
    if data is None and name is None:
        split = own_split(run, "validation")
    else:
        own = run.config["data"]
        split = store.read(data or Path(own["path"]), name or own["validation_split"])
    learned = run.config.get("features", {}).get("content", {}).get("train")
    if split.content == learned:
        raise InputError(
            f"{split.data} ({split.split}): expected clips that are new to the model, it has "
            "learned from these: they fit better than others will; name another split"
        )
    return calibrate(run, identity, split, progress=True)


def calibrate(
    run: Run, identity: str, split: Split, *, most: int = MOST, progress: bool = False
) -> Calibration:
    """What a model's curves look like for clips whose sound is in place, and for strangers.

    Args:
      run, identity: the model, `Model.identity`.
      split: clips that it was not trained on, in sync; those below `SHORTEST_S` are left out.
      most: how many are taken, evenly spread.
      progress: show a bar.

    Raises:
      InputError: too few clips that are long enough, or features of another extractor.
    """
    usable = _usable(run, split)
    places = np.linspace(0, len(usable) - 1, min(most, len(usable))).round().astype(int)
    chosen = usable[np.unique(places)]
    others_of = strangers([split.sources[number] for number in chosen])
    near = np.arange(-MOST_S, MOST_S + STEP_S / 2, STEP_S)
    far = np.arange(-2 * MOST_S, 2 * MOST_S + STEP_S / 2, STEP_S)
    clips = [split[int(number)] for number in chosen]
    own, lengths = [], []
    with progress_bar("calibrate", 2 * len(clips), "pair", shown=progress) as bar:

        def compared(one: int, other: int, shifts: np.ndarray) -> np.ndarray:
            visual, audio = clips[one], clips[other]
            bar.update()
            tracks = Track(visual.visual, visual.visual_span), Track(audio.audio, audio.audio_span)
            return curve_of(shifted(run, tracks[0], tracks[1:], shifts), STEP_S)

        for number, clip in enumerate(clips):
            begin, end = used_span(clip)
            lengths.append(end - begin)
            own.append(compared(number, number, far))
        inside = np.abs(far) <= MOST_S + STEP_S / 2
        bias = float(np.median([best(far[inside], curve[inside]) for curve in own]))
        others = [compared(one, other, near + bias) for one, other in enumerate(others_of)]
    dips = np.array([dip(near, curve) for curve in others])
    levels = np.array([np.nanmin(curve) for curve in others])
    seconds = float(np.median(lengths))
    mean, std = (lambda x: float(np.mean(x))), (lambda x: max(float(np.std(x)), 1e-12))
    scores = (dips - mean(dips)) / std(dips) + (mean(levels) - levels) / std(levels)
    return Calibration(
        identity=identity,
        content=split.content,
        data=shown(last_parts(split.data) or split.data.resolve().name),  # of "." too
        split=split.split,
        clips=len(clips),
        clip_seconds=seconds,
        bias_s=bias,
        sharpness=_sharpness(far - bias, own, np.asarray(lengths) / seconds),
        dip=(mean(dips), std(dips)),
        level=(mean(levels), std(levels)),
        strangers=tuple(np.sort(scores / 2).round(4).tolist()),
    )


def _usable(run: Run, split: Split) -> Int[np.ndarray, " K"]:
    """The clips that share enough at shifts on either side too: those of `SHORTEST_S` or more."""
    check_features(run, split)
    split.check_both_streams()
    begins, ends = covered_seconds(split).T
    usable = np.flatnonzero(ends - begins >= SHORTEST_S)
    if len(usable) < FEWEST:
        raise InputError(
            f"{split.data} ({split.split}): expected at least {FEWEST} clips to calibrate on, of "
            f"{SHORTEST_S:g} s or more, got {len(usable)} (of {len(split)}); name a larger one: "
            "scav score --calibrate --model RUN --data DATA --split SPLIT"
        )
    return usable


def strangers(sources: Sequence[str]) -> list[int]:
    """For each clip another one, of another file where there is one; the same in every run."""
    order = np.random.default_rng(0).permutation(len(sources))
    following = dict(zip(order, np.roll(order, -1), strict=True))
    found = []
    for number, source in enumerate(sources):
        other = int(following[number])
        while sources[other] == source and other != number:
            other = int(following[other])
        found.append(other if other != number else int(following[number]))
    return found


def _sharpness(
    offsets: Float[np.ndarray, " S"], own: list[np.ndarray], lengths: Float[np.ndarray, " K"]
) -> float:
    """The largest of a grid with which intervals hold the true offset as often as they should.

    Each clip's sound is moved by -0.8 to 0.8 s and looked for within 1 s: a part of its curve.
    """
    parts = []
    for curve, length in zip(own, lengths, strict=True):
        for moved in np.linspace(-0.8, 0.8, 5) * MOST_S:
            inside = np.abs(offsets + moved) <= MOST_S + STEP_S / 2
            if np.isfinite(curve[inside]).sum() > 4:
                parts.append((offsets[inside] + moved, length * curve[inside], moved))
    spread = np.mean([np.nanstd(energy) for _, energy, _ in parts])
    held = 0.0
    for sharpness in np.geomspace(100.0, 0.01, 81) / max(spread, 1e-12):
        held = np.mean([_holds(*part, sharpness) for part in parts])
        if held >= COVERAGE:
            break
    return float(sharpness)


def _holds(offsets: np.ndarray, curve: np.ndarray, moved: float, sharpness: float) -> bool:
    low, high = interval(offsets, sharpness * curve, best(offsets, curve))
    return bool(low <= moved <= high)


def write(folder: Path, calibration: Calibration) -> None:
    """Stores a calibration with the run or the export that it is of."""
    write_document(folder / FILE, {"format": FORMAT, **dataclasses.asdict(calibration)})


def load(folder: Path, identity: str) -> Calibration | None:
    """The calibration that lies beside a model; None where there is none.

    Raises:
      InputError: it is of another model or format, or damaged.
    """
    try:
        told = read_document(folder / FILE, "the calibration of a model", MEND)
    except (FileNotFoundError, NotADirectoryError):  # other systems' weights are a file
        return None
    if told.pop("format", None) != FORMAT:
        raise InputError(f"{folder / FILE}: expected a calibration of format {FORMAT}; {MEND}")
    if told["identity"] != identity:
        raise InputError(
            f"{folder / FILE}: expected the calibration of the model {identity}, it is of "
            f"{told['identity']}; {MEND}"
        )
    return Calibration(**{k: tuple(v) if isinstance(v, list) else v for k, v in told.items()})
