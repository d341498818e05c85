"""Does a run find where a sound belongs? Clips of known offset, and pairs that do not belong.

    python scripts/benchmarks/synchrony.py --run RUN --data DATA [--quick] [--out FILE]

Calibrated as the run is, or where it is not (or with --anew) on DATA's validation split, which
writes nothing. Then, of 150 clips of --split (25 with --quick), evenly spread:

moved     the sound moved by -1 to 1 s, drawn for each clip: error of the offset, by the sequence
          distance and by the cosine of the embeddings (each less its constant error on validation),
          share within 0.16 s, share of 95 % intervals that hold the truth
cut       the same of picture and sound of three quarters of the clip each, cut so that neither has
          all of what the other has: two recordings that began at different times
0.4 s     the sound moved by 0.4 s, to either side: the share whose offset is nearer to that than
          to 0, and the share where the distance there is smaller than at 0
strangers the picture with the sound of another clip: the share of (own, stranger) pairs of scores
          in order, for the score and its parts, and the share of own pairs above all but 5 %

Means with 95 % intervals of 2,000 bootstraps over clips. The clips' sounds are taken to be in
place. JSON goes to --out.
"""

import argparse
from pathlib import Path

import numpy as np

from scav_jax.base.errors import run_program
from scav_jax.base.files import write_json
from scav_jax.base.progress import progress_bar
from scav_jax.features import store
from scav_jax.retrieval.calibration import calibrate, strangers
from scav_jax.retrieval.calibration import load as load_calibration
from scav_jax.retrieval.model import load
from scav_jax.retrieval.shifts import Shifted, Track, shifted
from scav_jax.retrieval.synchrony import MOST_S, STEP_S, best, read, smoothed

OFFSETS = -MOST_S + STEP_S * np.arange(round(2 * MOST_S / STEP_S) + 1)
SMALL_S, NEAR_S = 0.4, 0.16


def spread(count: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def tracks(clip) -> tuple[Track, Track]:
    return Track(clip.visual, clip.visual_span), Track(clip.audio, clip.audio_span)


def moved(track: Track, seconds: float) -> Track:
    return track._replace(span=(track.span[0] + seconds, track.span[1] + seconds))


def part(track: Track, begin: float, seconds: float) -> Track:
    """The whole steps of a stretch."""
    step = (track.span[1] - track.span[0]) / len(track.values)
    first = round((begin - track.span[0]) / step)
    count = int(seconds / step + 1e-6)
    start = track.span[0] + first * step
    return Track(track.values[first : first + count], (start, start + count * step))


def apart(visual: Track, audio: Track, seconds: float) -> tuple[Track, Track, float]:
    """Three quarters of each, the sound moved by about `seconds`; and by how much it is."""
    whole = min(visual.span[1], audio.span[1])
    length = 0.75 * whole
    room = whole - length
    begin = room / 2 - seconds / 2 * room / MOST_S
    picture, sound = part(visual, begin, length), part(audio, room - begin, length)
    # Both clocks begin with their recording: the sound's is behind by what it lacks more.
    return moved(picture, -picture.span[0]), moved(sound, -sound.span[0]), (
        picture.span[0] - sound.span[0]
    )  # fmt: skip


class Compared:
    """A pair at all offsets, by distance and by cosine."""

    def __init__(self, pair, found, calibration, cosine_bias):
        visual, audio = pair
        self.found = read(found, OFFSETS, visual, [audio], calibration)
        self.cosines = smoothed(found.cosines[0], STEP_S)
        self.cosine_offsets = OFFSETS + calibration.bias_s - cosine_bias
        self.by_cosine = best(self.cosine_offsets, -self.cosines)

    def cosine_at(self, offset: float) -> float:
        """The cosine nearest to an offset in seconds."""
        return self.cosines[np.argmin(np.abs(self.cosine_offsets - offset))]


def beside(found: Shifted, steps: int) -> Shifted:
    """Of shifts from -2 to 2 s those around a sound that was moved by some steps.

    A sound that is moved by s is at shift d what it was at d + s before.
    """
    first = len(OFFSETS) // 2 + steps
    return Shifted(*(values[:, first : first + len(OFFSETS)] for values in found))


def interval(values, random) -> dict:
    values = np.asarray(values, np.float64)
    means = values[random.integers(0, len(values), (2000, len(values)))].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return {"mean": float(values.mean()), "low": float(low), "high": float(high), "n": len(values)}


def cosine_bias(run, split) -> float:
    clips = [split[int(number)] for number in spread(len(split), 50)]
    found = []
    for clip in clips:
        visual, audio = tracks(clip)
        found.append(
            best(OFFSETS, -smoothed(shifted(run, visual, [audio], OFFSETS).cosines[0], STEP_S))
        )
    return float(np.median(found))


def in_order(own, others) -> float:
    """The share of pairs of an own and a stranger's score that are in order; ties count half."""
    own, others = np.asarray(own)[:, None], np.asarray(others)[None]
    return float(np.mean((own > others) + 0.5 * (own == others)))


def errors(results, truths, random) -> dict:
    found = [one.found for one in results]
    off = np.array([abs(one.offset + truth) for one, truth in zip(found, truths, strict=True)])
    pooled = [abs(one.by_cosine + truth) for one, truth in zip(results, truths, strict=True)]
    held = [one.low <= -truth <= one.high for one, truth in zip(found, truths, strict=True)]
    widths = [one.high - one.low for one in found]
    return {
        "error_s": interval(off, random),
        "median_error_s": float(np.median(off)),
        "within_0.16_s": interval(off <= NEAR_S, random),
        "cosine_error_s": interval(pooled, random),
        "interval_holds": interval(held, random),
        "interval_width_s": interval(widths, random),
    }


def calibrated(model, options):
    """What lies beside the run, or made now of the validation split."""
    stored = None if options.anew else load_calibration(options.run, model.identity)
    if stored is not None:
        return stored
    split = store.read(options.data, options.validation)
    return calibrate(model.run, model.identity, split, most=options.reference, progress=True)


def compared(run, clips, calibration, cosine_bias, random) -> tuple[dict, dict]:
    """Every clip in all cases; by how much the sounds were moved in "moved" and "cut"."""
    half = len(OFFSETS) // 2
    far = STEP_S * np.arange(-2 * half, 2 * half + 1) + calibration.bias_s
    near = OFFSETS + calibration.bias_s
    steps = random.integers(-half, half + 1, len(clips))
    small = random.choice([-1, 1], len(clips)) * round(SMALL_S / STEP_S)
    others = strangers([clip.source for clip in clips])
    cases: dict = {name: [] for name in ("moved", "cut", "small", "own", "strangers")}
    cut = []
    with progress_bar("compare", len(clips), "clip") as bar:
        for number, clip in enumerate(clips):
            pair = tracks(clip)
            whole = shifted(run, pair[0], pair[1:], far)
            *parts, truth = apart(*pair, steps[number] * STEP_S)
            cut.append(truth)
            stranger = pair[0], tracks(clips[others[number]])[1]
            for name, of, found in (
                ("moved", pair, beside(whole, steps[number])),
                ("small", pair, beside(whole, small[number])),
                ("own", pair, beside(whole, 0)),
                ("cut", parts, shifted(run, parts[0], parts[1:], near)),
                ("strangers", stranger, shifted(run, stranger[0], stranger[1:], near)),
            ):
                cases[name].append(Compared(of, found, calibration, cosine_bias))
            bar.update()
    return cases, {"moved": steps * STEP_S, "cut": np.array(cut), "small": small * STEP_S}


def measure(options) -> dict:
    model = load(options.run)
    run, random = model.run, np.random.default_rng(0)
    calibration = calibrated(model, options)
    print(calibration.in_words())
    own_bias = cosine_bias(run, store.read(options.data, options.validation))
    split = store.read(options.data, options.split)
    clips = [split[int(number)] for number in spread(len(split), options.clips)]
    cases, truths = compared(run, clips, calibration, own_bias, random)
    sides = truths["small"]
    scores = {
        name: [[getattr(one.found, name) for one in cases[kind]] for kind in ("own", "strangers")]
        for name in ("score", "sync", "match")
    }
    bound = np.quantile(scores["score"][1], 0.95)
    at_side = [
        (one.found.curve[np.argmin(np.abs(OFFSETS + side))], one.found.curve[len(OFFSETS) // 2])
        for one, side in zip(cases["small"], sides, strict=True)
    ]
    nearer = [
        abs(one.found.offset + side) < abs(one.found.offset)
        for one, side in zip(cases["small"], sides, strict=True)
    ]
    cosine_nearer = [
        abs(one.by_cosine + side) < abs(one.by_cosine)
        for one, side in zip(cases["small"], sides, strict=True)
    ]
    cosine_larger = [
        one.cosine_at(-side) > one.cosine_at(0.0)
        for one, side in zip(cases["small"], sides, strict=True)
    ]
    return {
        "run": str(options.run),
        "split": options.split,
        "calibration": {"clips": calibration.clips, "bias_s": calibration.bias_s},
        "cosine_bias_s": own_bias,
        "moved": errors(cases["moved"], truths["moved"], random),
        "cut": errors(cases["cut"], truths["cut"], random),
        "0.4 s": {
            "nearer_to_it": interval(nearer, random),
            "closer_there_than_at_0": interval([there < zero for there, zero in at_side], random),
            "cosine_nearer_to_it": interval(cosine_nearer, random),
            "cosine_larger_there_than_at_0": interval(cosine_larger, random),
        },
        "strangers": {
            **{f"{name}_in_order": in_order(*values) for name, values in scores.items()},
            "own_above_95_percent": interval(np.array(scores["score"][0]) > bound, random),
        },
    }


def table(document: dict, prefix: str = "") -> list[str]:
    lines = []
    for key, value in document.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and "low" in value:
            told = f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
            lines.append(f"{name:<36} {told}  n = {value['n']}")
        elif isinstance(value, dict):
            lines += table(value, f"{name}: ")
        else:
            lines.append(f"{name:<36} {value if isinstance(value, str) else f'{value:.3f}'}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--validation", default="validation")
    parser.add_argument("--anew", action="store_true", help="calibrate, whatever the run has")
    parser.add_argument("--quick", action="store_true", help="25 clips, 40 to calibrate on")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.clips, options.reference = (25, 40) if options.quick else (150, 300)
    document = measure(options)
    print("\n".join(table(document)))
    if options.out:
        write_json(options.out, document)


if __name__ == "__main__":
    run_program(main)
