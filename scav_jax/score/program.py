"""What `scav score` does: pairs of files in, offsets and scores out."""

import argparse
import csv
import dataclasses
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scav_jax.base.documents import read_text
from scav_jax.base.errors import InputError
from scav_jax.base.files import write_atomically, write_json
from scav_jax.base.names import shown
from scav_jax.base.progress import progress_bar
from scav_jax.extract.manifest import find_videos
from scav_jax.extract.streams import Unusable
from scav_jax.features import store
from scav_jax.features.clip import used_span
from scav_jax.report import match
from scav_jax.report.match import Curve
from scav_jax.retrieval import calibration
from scav_jax.retrieval.calibration import Calibration
from scav_jax.retrieval.embed import embed_clips
from scav_jax.retrieval.model import Model, load_as_asked
from scav_jax.retrieval.shifts import Track, clip_at
from scav_jax.retrieval.synchrony import MOST_S, Synchrony
from scav_jax.retrieval.tracks import tracks_of

AT_ONCE = 16  # pairs whose features are in memory
LIKELY = 0.05  # of strangers that score as well: above, nothing was found
COLUMNS = ("picture", "sound", "offset", "low", "high", "score", "sync", "match", "chance")


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


def run(arguments: argparse.Namespace) -> int:
    model = load_as_asked(arguments)
    calibrated = calibration_of(model, arguments)
    pairs, rejected = pairs_of(arguments)
    if not pairs and not rejected:
        return 0  # calibrated, nothing more was asked
    results = list(_scored(model, calibrated, pairs, arguments, rejected))
    if arguments.lay:
        results.sort(key=lambda one: -one.found.score)
    if results:
        print(table(results))
    _write(arguments, model, calibrated, results, rejected)
    if not results:
        raise InputError(f"nothing could be scored: {rejected[0]['file']}: {rejected[0]['reason']}")
    return 0


# ---- what is asked -----------------------------------------------------------------------------


def calibration_of(model: Model, arguments: argparse.Namespace) -> Calibration:
    """The model's calibration: what lies beside it, or made now of the run's validation clips.

    Raises:
      InputError: there is none, and the run's data are not at hand.
    """
    folder, data = model.run.path, model.run.config["data"]
    if not arguments.calibrate:
        found = calibration.load(folder, model.identity)
        if found is not None:
            return found
    path = arguments.data or Path(data["path"])
    if not (arguments.calibrate or (path / "scav.json").is_file()):
        raise InputError(
            f"{folder}: expected a calibrated model, and the data that it was trained on are not "
            f"at {path}; give --calibrate --data DATA --split SPLIT, of clips new to it"
        )
    split = store.read(path, arguments.split or data["validation_split"])
    made = calibration.calibrate(model.run, model.identity, split, progress=True)
    calibration.write(folder, made)
    print(made.in_words(f"{split.data} ({split.split})"), file=sys.stderr)
    return made


def pairs_of(arguments: argparse.Namespace) -> tuple[list[Pair], list[dict]]:
    """The pairs that the command line names, and files that may not be read."""
    if arguments.lay:
        return [Pair(arguments.under, sound) for sound in arguments.lay], []
    if arguments.picture:
        return [Pair(arguments.picture, arguments.sound)], []
    files = arguments.files
    if len(files) == 1 and files[0].is_dir():
        names, unreadable, _ = find_videos(files[0])
        if not names and not unreadable:
            raise InputError(f"{files[0]}: expected videos in it, it has none")
        return [Pair(files[0] / name, files[0] / name) for name in names], unreadable
    if len(files) == 1 and files[0].suffix.lower() == ".csv":
        return read_pairs(files[0]), []
    return [Pair(file, file) for file in files], []


def read_pairs(path: Path) -> list[Pair]:
    """The rows of a CSV with the columns picture and sound, relative to its folder."""
    what = "a CSV with the columns picture and sound"
    rows = list(csv.DictReader(io.StringIO(read_text(path, what, "correct it"))))
    if not rows or not {"picture", "sound"} <= set(rows[0]):
        got = ", ".join(map(str, rows[0])) if rows else "no rows"
        raise InputError(f"{path}: expected {what}, got {got}")
    for number, row in enumerate(rows, 2):
        if not (row["picture"] and row["sound"]):
            raise InputError(f"{path}: line {number}: expected a picture and a sound")
    folder = path.parent
    return [Pair(folder / row["picture"].strip(), folder / row["sound"].strip()) for row in rows]


# ---- scoring -----------------------------------------------------------------------------------


def _scored(
    model: Model,
    calibrated: Calibration,
    pairs: Sequence[Pair],
    arguments: argparse.Namespace,
    rejected: list[dict],
) -> Iterator[Scored]:
    """Scores pairs, some at a time; what cannot be used is named, and noted in `rejected`."""
    with progress_bar("score", len(pairs), "pair", shown=len(pairs) > 1) as bar:
        for first in range(0, len(pairs), AT_ONCE):
            some = pairs[first : first + AT_ONCE]
            tracks = _tracks(model, calibrated, some, arguments.workers)
            for pair in some:
                try:
                    yield _score(model, calibrated, pair, tracks, arguments)
                except (InputError, Unusable) as error:
                    reason = error.reason if isinstance(error, Unusable) else str(error)
                    rejected.append(
                        {
                            **{name: str(getattr(pair, name)) for name in ("picture", "sound")},
                            "file": pair.name,
                            "reason": reason,
                        }
                    )
                    bar.write(shown(f"rejected {pair.name}: {reason}"), file=sys.stderr)
                bar.update()


def _tracks(
    model: Model, calibrated: Calibration, pairs: Sequence[Pair], workers: int
) -> dict[tuple[Path, str], list[Track] | Unusable]:
    wanted = dict.fromkeys(
        key for pair in pairs for key in ((pair.picture, "visual"), (pair.sound, "audio"))
    )
    seconds = calibrated.clip_seconds
    found = tracks_of(model.backbone, list(wanted), seconds, workers=workers)
    return dict(zip(wanted, found, strict=True))


def _score(
    model: Model, calibrated: Calibration, pair: Pair, tracks: dict, arguments: argparse.Namespace
) -> Scored:
    both = tracks[pair.picture, "visual"], tracks[pair.sound, "audio"]
    for one in both:
        if isinstance(one, Unusable):
            raise one
    (visual,), audio = both
    most = arguments.most_offset or MOST_S
    around = (-most, most)
    if arguments.lay and arguments.most_offset is None:
        around = (visual.span[0] - audio[-1].span[1], visual.span[1] - audio[0].span[0])
    how = {"around": around, "step_s": arguments.step, "calibration": calibrated}
    found = model.synchrony(visual, audio, **how)
    return Scored(pair, found, over_time(model, visual, audio, found.offset + calibrated.bias_s))


def over_time(model: Model, visual: Track, audio: Sequence[Track], shift: float) -> Curve:
    """The distance at each step of the sound, in the picture's time; mean where windows overlap."""
    made = (clip_at(visual, track, shift) for track in audio)
    clips = [clip for clip in made if clip is not None]
    places, values = [np.zeros(0, int)], [np.zeros(0)]
    latents = embed_clips(model.run, clips, batch_size=model.batch_size).latents if clips else None
    for number, clip in enumerate(clips):
        begin, end = used_span(clip)
        steps = {"visual_seconds": end - begin, "audio_step_s": model.audio_step_s}
        curve = match.match_curve(
            *model.distance, *(match.one(part, number) for part in latents), **steps
        )
        places.append(np.maximum((begin + curve.times) / model.audio_step_s, 0).astype(int))
        values.append(curve.values)
    at, value = np.concatenate(places), np.concatenate(values)
    counts, sums = np.bincount(at), np.bincount(at, value)
    there = np.flatnonzero(counts)
    return Curve((there + 0.5) * model.audio_step_s, sums[there] / counts[there])


# ---- what comes out ------------------------------------------------------------------------------


def verdict(found: Synchrony) -> str:
    """What a row says, in a word or two."""
    if found.chance > LIKELY:
        return "no fit found"
    return "in place" if found.low <= 0 <= found.high else "move it"


def table(results: Sequence[Scored]) -> str:
    """What people read."""
    head = (
        f"{'offset':>9} {'95 % interval':>18} {'score':>6} {'sync':>6} {'match':>6} {'chance':>7}"
    )
    lines = [f"{head}  {'':<12}  file"]
    for one in results:
        found = one.found
        between = f"{found.low:+.2f} to {found.high:+.2f} s"
        scores = f"{found.score:6.2f} {found.sync:6.2f} {found.match:6.2f} {found.chance:7.3f}"
        told = f"{found.offset:+7.2f} s {between:>18} {scores}  {verdict(found):<12}"
        lines.append(f"{told}  {one.pair.name}")
    return "\n".join(lines)


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


def _write(
    arguments: argparse.Namespace,
    model: Model,
    calibrated: Calibration,
    results: Sequence[Scored],
    rejected: Sequence[dict],
) -> None:
    if arguments.json:
        write_json(arguments.json, document(model, calibrated, results, rejected))
    if arguments.csv:
        text = io.StringIO()
        writer = csv.DictWriter(text, (*COLUMNS, "verdict", "reason"), extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**one.row(), "reason": ""} for one in results)
        writer.writerows({"picture": row["file"], **row} for row in rejected)
        write_atomically(arguments.csv, text.getvalue())
    if arguments.html:
        from scav_jax.score.page import page

        write_atomically(arguments.html, page(results))
    for path in (arguments.json, arguments.csv, arguments.html):
        if path:
            print(path, file=sys.stderr)
