"""What is known of a pair of a picture and a sound, as rows of a table and as a document."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scav_jax.base.names import shown
from scav_jax.report import match
from scav_jax.report.match import Curve
from scav_jax.retrieval.embed import embed_clips
from scav_jax.retrieval.model import Model
from scav_jax.retrieval.shifts import Track, cut_at
from scav_jax.retrieval.synchrony import Calibration, Synchrony

WIDE_S = 1.0  # an interval that says nothing of the place
LIKELY = 0.05  # of strangers that score as well: above, nothing was found


@dataclass(frozen=True)
class Pair:
    """The files of a picture and a sound; one file may be both."""

    picture: Path
    sound: Path

    @property
    def name(self) -> str:
        same = self.picture == self.sound
        return shown(self.picture if same else f"{self.sound} under {self.picture}")


@dataclass(frozen=True)
class Scored:
    """What became of a pair: `curve` is the distance over the picture's time, at the offset."""

    pair: Pair
    found: Synchrony
    curve: Curve

    def row(self) -> dict:
        told = dataclasses.asdict(self.found)
        files = {name: str(getattr(self.pair, name)) for name in ("picture", "sound")}
        return {**files, **told, "verdict": verdict(self.found)}


def verdict(found: Synchrony) -> str:
    """What a row says, in a word or two."""
    if found.chance > LIKELY:
        return "no fit found"
    if found.high - found.low > WIDE_S:
        return "place unclear"
    return "in place" if found.low <= 0 <= found.high else "move it"


def signed(seconds: float) -> str:
    """Seconds with their sign, of which nothing has none.

    >>> signed(-0.456), signed(-0.001), signed(1)
    ('-0.46', '0.00', '+1.00')
    """
    text = f"{seconds:+.2f}"
    return text if float(text) else text[1:]


def over_time(model: Model, visual: Track, audio: Sequence[Track], shift: float) -> Curve:
    """The distance at each step of the sound, in the picture's time; mean where windows overlap."""
    made = (cut_at(visual, track, shift) for track in audio)
    cuts = [cut for cut in made if cut is not None]
    clips = [cut.clip for cut in cuts]
    places, values = [np.zeros(0, int)], [np.zeros(0)]
    latents = embed_clips(model.run, clips, batch_size=model.batch_size).latents if clips else None
    for number, cut in enumerate(cuts):
        steps = {"visual_seconds": cut.end - cut.begin, "audio_step_s": model.audio_step_s}
        curve = match.match_curve(
            *model.distance, *(match.one(part, number) for part in latents), **steps
        )
        # A middle that lies on a border belongs behind it, whichever way it was rounded.
        at_step = (cut.begin + curve.times) / model.audio_step_s + 1e-6
        places.append(np.maximum(at_step, 0).astype(int))
        values.append(curve.values)
    at, value = np.concatenate(places), np.concatenate(values)
    counts, sums = np.bincount(at), np.bincount(at, value)
    there = np.flatnonzero(counts)
    return Curve((there + 0.5) * model.audio_step_s, sums[there] / counts[there])


def document(
    model: Model, calibrated: Calibration, results: Sequence[Scored], rejected: Sequence[dict]
) -> dict:
    """What programs read; null where a curve has no value."""
    rows = []
    for one in results:
        over = {"times": one.curve.times, "values": one.curve.values}
        rows.append({**one.row(), "over_time": over})
    about = dataclasses.asdict(calibrated)
    about.pop("strangers")
    said = {"model": model.identity, "calibration": about, "pairs": rows, "rejected": rejected}
    return _plain(said)


def _plain(value):
    """Values of JSON."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(one) for one in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value
