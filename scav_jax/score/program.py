"""What `scav score` does: pairs of files in, offsets and scores out."""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from scav_jax.base.errors import InputError, counted, counted_reasons, in_a_line
from scav_jax.base.files import check_may_be_written, write_atomically, write_json
from scav_jax.base.interrupts import termination_interrupts
from scav_jax.base.names import shown
from scav_jax.base.progress import progress_bar
from scav_jax.base.tables import Table, csv_text, named
from scav_jax.retrieval import calibration
from scav_jax.retrieval.files import check_there, requests_for
from scav_jax.retrieval.model import Model, load_as_asked
from scav_jax.retrieval.shifts import Track
from scav_jax.retrieval.synchrony import FEW, MOST_S, Calibration
from scav_jax.retrieval.tracks import tracks_of
from scav_jax.score.journal import ENDING, Journal
from scav_jax.score.scored import Pair, Scored, document, over_time, signed, verdict

AT_ONCE = 16  # pairs whose features are in memory
COLUMNS = ("picture", "sound", "offset", "low", "high", "score", "sync", "match", "chance")


def run(arguments: argparse.Namespace) -> int:
    pairs, rejected = pairs_of(arguments)  # before what takes seconds: names may be mistyped
    check_may_be_written(arguments.json, arguments.csv, arguments.html)
    model = load_as_asked(arguments)
    if pairs:
        _ = model.backbone  # of features that nothing here can make, none is asked for
    calibrated = calibration_of(model, arguments)
    if not pairs and not rejected:
        return 0  # calibrated, nothing more was asked
    for row in rejected:
        print(shown(f"rejected {row['file']}: {row['reason']}"), file=sys.stderr)
    journal = _journal(model, calibrated, pairs, arguments)
    try:
        with termination_interrupts(), journal.writing():
            _score_all(model, calibrated, pairs, arguments, journal)
    except KeyboardInterrupt as stopped:
        done = f"{len(journal.done)} of {len(set(pairs))} pairs are scored"
        way = "goes on from there" if journal.path else "scores all of them anew"
        stopped.args = (f"interrupted; {done}; the same command {way}",)
        raise
    finally:  # of a folder that somebody stopped, what was scored
        results, unusable = _in_order(pairs, journal.done)
        rejected += unusable
        if arguments.lay:
            results.sort(key=lambda one: -one.found.score)
        _write(arguments, model, calibrated, results, rejected)
    journal.remove()
    if not results:
        raise InputError(f"nothing could be scored: {rejected[0]['file']}: {rejected[0]['reason']}")
    return 0


# ---- what is asked -----------------------------------------------------------------------------


def calibration_of(model: Model, arguments: argparse.Namespace) -> Calibration:
    """The model's calibration: what lies beside it, or made now of the run's validation clips.

    Made only for what is to be scored now, it need not be kept: the run may be another's.

    Raises:
      InputError: there is none, and the run's data are not at hand.
      OSError: it was asked for and cannot be written.
    """
    folder, data = model.run.path, model.run.config["data"]
    if not arguments.calibrate:
        found = calibration.load(folder, model.identity)
        if found is not None:
            if found.clips < FEW:
                print(found.in_words(), file=sys.stderr)
            return found
    path = arguments.data or Path(data["path"])
    if not (arguments.calibrate or (path / "scav.json").is_file()):
        raise InputError(
            f"{folder}: expected a calibrated model, and the data that it was trained on are not "
            f"at {path}; give --calibrate --data DATA --split SPLIT, of clips new to it"
        )
    try:
        check_may_be_written(folder / calibration.FILE)
        not_kept = None
    except OSError as error:
        if arguments.calibrate:
            raise
        not_kept = error
    made = calibration.of_data(model.run, model.identity, arguments.data, arguments.split)
    print(made.in_words(), file=sys.stderr)
    if not_kept is None:
        calibration.write(folder, made)
    else:
        print(
            f"NOTE: {in_a_line(not_kept)}; so every call calibrates anew, until somebody who may "
            f"write there has called scav score --calibrate --model {folder}",
            file=sys.stderr,
        )
    return made


def pairs_of(arguments: argparse.Namespace) -> tuple[list[Pair], list[dict]]:
    """The pairs that the command line names, and files that may not be read.

    Raises:
      InputError: a file without which nothing can be scored is not there, or a list is wrong.
    """
    if arguments.lay:
        check_there([arguments.under])
        sounds, rejected = _listed(arguments.lay, ("audio",))
        return [Pair(arguments.under, sound) for sound in sounds], rejected
    if arguments.picture:
        check_there([arguments.picture, arguments.sound])
        return [Pair(arguments.picture, arguments.sound)], []
    files = arguments.files
    if len(files) == 1 and files[0].suffix.lower() == ".csv" and not files[0].is_dir():
        return read_pairs(files[0]), []
    if len(files) == 1:  # of several, the others can be scored
        check_there(files)
    names, rejected = _listed(files, None)
    return [Pair(name, name) for name in names], rejected


def _listed(
    paths: Sequence[Path], streams: tuple[str, ...] | None
) -> tuple[list[Path], list[dict]]:
    """Files, each folder replaced by those in it, and what in folders may not be read."""
    names: dict[Path, None] = {}
    rejected: list[dict] = []
    for path in paths:
        if not path.is_dir():
            names[path] = None
            continue
        wanted = requests_for(path, None, 0.0, None, streams, None)
        names.update(dict.fromkeys(wanted.folder / request.file for request in wanted.requests))
        rejected += wanted.rejected
        if wanted.passed_over:
            print(shown(f"{path}: {wanted.passed_over}"), file=sys.stderr)
    return list(names), rejected


def read_pairs(path: Path) -> list[Pair]:
    """The rows of a CSV with the columns picture and sound, relative to its folder."""
    wanted = ("picture", "sound")
    table = Table(path, "a CSV of pairs", "correct it")
    table.check(wanted, None)
    pairs = []
    for line, row in table.rows(as_written=wanted):
        picture, sound = (named(path.parent, row[name]) for name in wanted)
        if not (picture and sound):
            lacks = "sound" if picture else "picture"
            raise InputError(
                f"{path}, line {line}: expected a picture and a sound, got no {lacks}; name one "
                "file twice where a film is to be scored with its own sound"
            )
        pairs.append(Pair(path.parent / picture, path.parent / sound))
    return pairs


# ---- scoring -----------------------------------------------------------------------------------


def _journal(
    model: Model, calibrated: Calibration, pairs: Sequence[Pair], arguments: argparse.Namespace
) -> Journal:
    """Of a call with many pairs and an output, beside which it keeps what is done."""
    out = arguments.csv or arguments.json or arguments.html
    path = Path(f"{out}{ENDING}") if out and len(pairs) > AT_ONCE else None
    how = {name: getattr(arguments, name) for name in ("step", "most_offset")}
    about = {"model": model.identity, "calibration": dataclasses.asdict(calibrated), **how}
    journal = Journal(path, about | {"lay": bool(arguments.lay)}, pairs)
    if journal.done:
        done, all_of = len(journal.done), len(set(pairs))
        print(f"going on: {done:,} of {all_of:,} are done", file=sys.stderr)
    return journal


def _score_all(
    model: Model,
    calibrated: Calibration,
    pairs: Sequence[Pair],
    arguments: argparse.Namespace,
    journal: Journal,
) -> None:
    """Scores the pairs that are not done, some at a time; what cannot be used is named."""
    wanted = [pair for pair in dict.fromkeys(pairs) if pair not in journal.done]
    with progress_bar("score", len(wanted), "pair", shown=len(wanted) > 1) as bar:
        for first in range(0, len(wanted), AT_ONCE):
            some = wanted[first : first + AT_ONCE]
            tracks = _tracks(model, calibrated, some, arguments.workers)
            found: dict[Pair, Scored | str] = {}
            try:
                for pair in some:
                    try:
                        found[pair] = _score(model, calibrated, pair, tracks, arguments)
                    except InputError as error:
                        found[pair] = str(error)
                        bar.write(shown(f"rejected {pair.name}: {error}"), file=sys.stderr)
                    bar.update()
            finally:
                journal.add(found)


def _in_order(
    pairs: Sequence[Pair], done: Mapping[Pair, Scored | str]
) -> tuple[list[Scored], list[dict]]:
    """What was scored, as it was asked for, and what could not be, with its reason."""
    results, rejected = [], []
    for pair in pairs:
        outcome = done.get(pair)
        if isinstance(outcome, Scored):
            results.append(outcome)
        elif outcome is not None:
            files = {"picture": str(pair.picture), "sound": str(pair.sound)}
            rejected.append({**files, "file": pair.name, "reason": outcome})
    return results, rejected


def _tracks(
    model: Model, calibrated: Calibration, pairs: Sequence[Pair], workers: int | None
) -> dict[tuple[Path, str], list[Track] | str]:
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
        if isinstance(one, str):
            raise InputError(one)
    (visual,), audio = both
    most = arguments.most_offset or MOST_S
    around = (-most, most)
    if arguments.lay and arguments.most_offset is None:
        around = (visual.span[0] - audio[-1].span[1], visual.span[1] - audio[0].span[0])
    how = {"around": around, "step_s": arguments.step, "calibration": calibrated}
    found = model.synchrony(visual, audio, **how)
    return Scored(pair, found, over_time(model, visual, audio, found.offset + calibrated.bias_s))


# ---- what comes out ------------------------------------------------------------------------------


def table(results: Sequence[Scored]) -> str:
    """What people read."""
    head = (
        f"{'offset':>9} {'95 % interval':>18} {'score':>6} {'sync':>6} {'match':>6} {'chance':>7}"
    )
    lines = [f"{head}  {'':<13}  file"]
    for one in results:
        found = one.found
        between = f"{signed(found.low)} to {signed(found.high)} s"
        scores = f"{found.score:6.2f} {found.sync:6.2f} {found.match:6.2f} {found.chance:7.3f}"
        told = f"{signed(found.offset):>7} s {between:>18} {scores}  {verdict(found):<13}"
        lines.append(f"{told}  {one.pair.name}")
    return "\n".join(lines)


def summary(results: Sequence[Scored], rejected: Sequence[dict]) -> str:
    """How many rows say what, in a line: of a folder, nobody counts them."""
    told = f"{len(results):,} scored"
    if results:
        told += f": {counted(verdict(one.found) for one in results)}"
    if rejected:
        told += f"; rejected {len(rejected):,}: {counted_reasons(rejected)}"
    return shown(told)


def _write(
    arguments: argparse.Namespace,
    model: Model,
    calibrated: Calibration,
    results: Sequence[Scored],
    rejected: Sequence[dict],
) -> None:
    if not (results or rejected):  # stopped before the first: older files stay
        return
    if results:
        print(table(results))
    if len(results) + len(rejected) > 1:
        print(summary(results, rejected), file=sys.stderr)

    def to_json(path: Path) -> None:
        write_json(path, document(model, calibrated, results, rejected))

    def to_csv(path: Path) -> None:
        rows = [one.row() for one in results]
        rows += [{"picture": row["file"], **row} for row in rejected]
        write_atomically(path, csv_text((*COLUMNS, "verdict", "reason"), rows))

    def to_html(path: Path) -> None:
        from scav_jax.score.page import page

        write_atomically(path, page(results, rejected))

    ways = ((to_json, arguments.json), (to_csv, arguments.csv), (to_html, arguments.html))
    refused = None
    for write, path in ways:
        if path:
            try:
                write(path)
                print(path, file=sys.stderr)
            except OSError as error:  # the others may be elsewhere
                refused = refused or error
    if refused:
        raise refused
