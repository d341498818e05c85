"""The index on the command line: `scav index build|add|delete|compact|...`.

    scav index build my.index --model runs/demo --videos VIDEOS
    scav index build my.index --model runs/demo --data DATA --split test
    scav index tune my.index --model runs/demo --data DATA --split test

Ids belong to the root of the index: --root, or the folder of videos that it began with. A clip's id
is its file's path below the root (or the id in the folder's clips.csv, behind the folder's path
below the root), so `add --videos VIDEOS/holiday` knows what `build --videos VIDEOS` has added. What
does not lie below the root, or is cut by another --clip-seconds, is refused.

A build or an add that was interrupted goes on with the same command: what was committed stays.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from scav_jax.base.commands import Parser, add_model, at_least, number
from scav_jax.base.errors import run_program


def _clips(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--videos", type=Path, nargs="+", help="a folder of videos, or files")
    parser.add_argument("--clip-seconds", type=number, help="cut videos into clips of this length")
    parser.add_argument(
        "--workers",
        type=at_least(0),
        help="processes that decode; with one, a file that hangs or crashes the decoder is "
        "rejected too (default: one for each core, 0 for a few files)",
    )
    parser.add_argument("--data", type=Path, help="features on disk, instead of videos")
    parser.add_argument("--split", help="of --data")


def _options_of_build(build: argparse.ArgumentParser) -> None:
    build.add_argument(
        "--storage", default="float32", help="of sequences: float32 (default), bfloat16, int8"
    )
    build.add_argument(
        "--hubness",
        choices=("bank", "none"),
        default="none",
        help="bank: rank by how much nearer a clip is than to queries of the training data "
        "(default: none)",
    )
    build.add_argument(
        "--static-weight",
        type=number,
        metavar="W",
        help="of what does not change over a clip, where the model learned that apart: scores of a "
        "bank are of this weight (default: the model's)",
    )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="scav index", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    add = {
        name: commands.add_parser(name, help=words, description=words)
        for name, words in (
            ("build", "make an index, or go on with one that was interrupted"),
            ("add", "add clips"),
            ("delete", "delete clips by id"),
            ("compact", "join many small additions, free what deleted clips and kills left"),
            ("move", "say where the folder of its videos lies now"),
            ("info", "what is in an index"),
            ("export", "all clips with their vectors and sequences as one .parquet or .npz file"),
            ("import", "an index of such a file"),
            ("tune", "recall and speed of hybrid search over K, and a proposal"),
        )
    }
    for command in add.values():
        command.add_argument("index", type=Path, help="the index, a folder")
    for name in ("build", "add", "tune"):
        add_model(add[name])
        _clips(add[name])
    for name in ("build", "add"):
        add[name].add_argument("--root", type=Path, help="the folder that ids are relative to")
    add["export"].add_argument("--out", type=Path, required=True, help=".parquet or .npz")
    add["import"].add_argument("file", type=Path, help="what `export` wrote")
    add["move"].add_argument("root", type=Path, help="the folder that ids are relative to")
    _options_of_build(add["build"])
    replace = "clips whose id is there: what comes takes their place"
    add["add"].add_argument("--replace", action="store_true", help=replace)
    add["delete"].add_argument("ids", nargs="+", help="of the clips, whatever they begin with")
    add["info"].add_argument("--json", action="store_true", help="for programs")
    add["info"].add_argument("--verify", action="store_true", help="read and check every byte")
    tune = add["tune"]
    asks = "which asks: sound (a2v, the default) or picture"
    tune.add_argument("--direction", choices=("a2v", "v2a"), default="a2v", help=asks)
    tune.add_argument(
        "--k", type=at_least(1), default=10, help="how many clips are wanted (default 10)"
    )
    tune.add_argument("--queries", type=at_least(1), default=100, help="at random (default 100)")
    tune.add_argument("--out", type=Path, help="writes the result as JSON")
    words = list(sys.argv[1:] if argv is None else argv)
    ids = _ids_to_delete(words)
    if ids is None:
        return parser.parse_args(words)
    arguments = parser.parse_args(["delete", "INDEX", "ID"])
    arguments.index, arguments.ids = Path(ids[0]), ids[1:]
    return arguments


def _ids_to_delete(words: list[str]) -> list[str] | None:
    """The index and the ids of a `delete`, options in no way: an id may begin with a dash."""
    if words[:1] != ["delete"]:
        return None
    given = words[1:]
    if "--" in given:
        given.remove("--")
    elif {"-h", "--help"} & set(given):
        return None
    return given if len(given) > 1 else None


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    from scav_jax.index.program import COMMANDS

    return COMMANDS[arguments.command](arguments)


if __name__ == "__main__":
    run_program(main)
