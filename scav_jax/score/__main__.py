"""Synchrony on the command line: how well a sound fits a picture, and where it belongs.

    scav score take1.mp4 take2.mp4 --model RUN              # each with its own sound
    scav score VIDEOS --model RUN --csv scores.csv          # a folder; or pairs.csv: picture,sound
    scav score --picture A.mp4 --sound B.wav --model RUN --html fit.html
    scav score --lay a.wav b.wav --under PICTURE.mp4 --model RUN
    scav score --calibrate --model RUN --data DATA --split validation

The offset is what the sound has to be moved by, in seconds; positive: it comes too early.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scav_jax.base.commands import Parser, add_model, at_least, number
from scav_jax.base.errors import InputError, run_program


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; anything wrong with it is an `InputError`."""
    parser = Parser(prog="scav score", description=__doc__)
    add = parser.add_argument
    add("files", type=Path, nargs="*", metavar="FILE", help="videos with their sound, or folders "
        "of them; or a CSV of pairs with the columns picture and sound")  # fmt: skip
    add_model(parser, "--run")
    add("--picture", type=Path, metavar="FILE", help="of a pair")
    add("--sound", type=Path, metavar="FILE", help="of a pair")
    add("--lay", type=Path, nargs="+", metavar="SOUND", help="which of these fit, and "
        "where; or folders of them")  # fmt: skip
    add("--under", type=Path, metavar="PICTURE", help="with --lay")
    add("--most-offset", type=number, metavar="S", help="offsets from -S to S seconds (default 1; "
        "with --lay: wherever at least half of the shorter one is shared)")  # fmt: skip
    add("--step", type=number, default=0.04, metavar="S", help="between offsets (default 0.04)")
    add("--workers", type=at_least(0), help="processes that decode (default: one a core, 0 for few "
        "files)")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="all, with the curves")
    add("--csv", type=Path, metavar="FILE", help="a row a pair")
    add("--html", type=Path, metavar="FILE", help="a page: curves, and both played in sync")
    group = parser.add_argument_group("calibration (done by itself where the run's data are there)")
    group.add_argument("--calibrate", action="store_true", help="anew")
    group.add_argument("--data", type=Path, help="features; default: those of the run")
    group.add_argument("--split", help="default: the run's validation split")
    arguments = parser.parse_args(argv)
    _check(arguments)
    return arguments


def _check(given: argparse.Namespace) -> None:
    ways = {
        "files": bool(given.files),
        "--picture and --sound": given.picture is not None or given.sound is not None,
        "--lay and --under": given.lay is not None or given.under is not None,
    }
    asked = [name for name, there in ways.items() if there]
    if len(asked) > 1 or not (asked or given.calibrate):
        got = " and ".join(asked) or "none"
        raise InputError(f"expected one of {', '.join(ways)}, or --calibrate, got {got}")
    if ways["--picture and --sound"] and None in (given.picture, given.sound):
        raise InputError("expected --picture and --sound, got one of them")
    if ways["--lay and --under"] and None in (given.lay, given.under):
        raise InputError("expected --lay and --under, got one of them")
    if not given.calibrate and (given.data or given.split):
        raise InputError("--data, --split: expected with --calibrate")
    if not 0.005 <= given.step <= 1:
        raise InputError(f"--step: expected 0.005 to 1 s, got {given.step:g}")
    if given.most_offset is not None and not 4 * given.step <= given.most_offset <= 600:
        raise InputError(
            f"--most-offset: expected from 4 steps ({4 * given.step:g} s) to 600 s, got "
            f"{given.most_offset:g}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    from scav_jax.score import program

    return program.run(arguments)


if __name__ == "__main__":
    run_program(main)
