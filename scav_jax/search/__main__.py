"""Search on the command line: `scav search INDEX FILE... --model RUN`.

    scav search my.index door.wav --model runs/demo
    scav search my.index street.mp4 --model runs/demo --video --k 5 --html found.html
    ssh camera cat now.mp4 | scav search my.index /dev/stdin --model runs/demo

A file with both picture and sound asks by its sound, unless --video says by its picture, or --both
by the two together. Sounds find videos, and pictures find sounds.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scav_jax.base.commands import Parser, add_model, at_least, number
from scav_jax.base.errors import InputError, run_program

if TYPE_CHECKING:
    from scav_jax.index import Index
    from scav_jax.retrieval.model import Model


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="scav search",
        description="Finds videos by sound and sounds by video in an index.",
    )
    add = parser.add_argument
    add("index", type=Path, help="made by `scav index build`")
    add("files", type=Path, nargs="+", metavar="FILE", help="sounds or videos that ask")
    add_model(parser)
    by = parser.add_mutually_exclusive_group()
    by.add_argument("--sound", action="store_true", help="the sound asks (the default)")
    by.add_argument("--video", action="store_true", help="the picture asks")
    both = "both ask: the sum of both directions, each on its own scale; all clips are compared"
    by.add_argument("--both", action="store_true", help=both)
    methods = "exact (default), sequence, hybrid:K or aggregation"
    add("--retrieval", default="exact", metavar="METHOD", help=methods)
    add(
        "--filter",
        metavar="CONDITION",
        help="such as \"label = 'dog' AND start < 60\"; on id, source, start, end, label",
    )
    add("--static-weight", type=number, metavar="W", help="of what does not change over a clip, "
        "where the model learned it apart; 0: by what changes alone")  # fmt: skip
    add("--hubness", choices=("bank", "none"), help="relative to the bank of the index (the "
        "default where it has one), or by distances")  # fmt: skip
    add("--k", type=at_least(1), default=10, help="clips of each query (default 10)")
    add("--clip-seconds", type=number, help="cut the files into windows, each asks for itself")
    add("--start", type=number, default=0.0, help="of the part that asks, in seconds")
    add("--end", type=number, help="of the part that asks, in seconds")
    add("--json", action="store_true", help="for programs")
    add("--html", type=Path, metavar="FILE", help="a page: queries and results in sync")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    from scav_jax.base.containers import saved
    from scav_jax.base.files import check_may_be_written
    from scav_jax.index import open_index
    from scav_jax.index.rows import checked_filter
    from scav_jax.index.searching import parse_retrieval
    from scav_jax.retrieval.files import check_there
    from scav_jax.retrieval.model import load_as_asked

    parse_retrieval(arguments.retrieval, "both" if arguments.both else "")
    if arguments.filter is not None:
        checked_filter(arguments.filter)
    check_there(arguments.files)
    check_may_be_written(arguments.html)
    model = load_as_asked(arguments)
    index = open_index(arguments.index, model.identity)
    asked = index.header.asked(arguments.static_weight, arguments.hubness)
    model.distance = asked.distance, asked.options
    if not len(index):
        raise InputError(
            f"{arguments.index}: expected clips to search, the index is empty; add some with "
            "`scav index add`"
        )
    with contextlib.ExitStack() as stack:
        arguments.files = [stack.enter_context(saved(file)) for file in arguments.files]
        return _search(model, index, arguments)


def _search(model: "Model", index: "Index", arguments: argparse.Namespace) -> int:
    from scav_jax.base.files import write_atomically
    from scav_jax.search import asking

    queries, direction = asking.embed_queries(model, arguments)
    how = {name: getattr(arguments, name) for name in ("static_weight", "hubness")}
    how["where"] = arguments.filter
    asked = asking.ask(index, queries, direction, arguments.k, arguments.retrieval, **how)
    if arguments.json:
        print(json.dumps(asking.document(asked, index), indent=2))
    else:
        print(asking.text(asked, index.report.measure))
        if index.report.method == "exact":
            report = index.report
            left_out = f"{report.pruning.share:.1%} of {report.candidates:,} clips"
            print(f"\n{left_out} were ruled out by bounds, without a comparison")
    if note := asking.longer_than_found(asked):
        print(note, file=sys.stderr)
    if arguments.html:
        html = asking.page(asked, queries, model, index)
        write_atomically(arguments.html, html)
        print(arguments.html, file=sys.stderr)
    return 0


if __name__ == "__main__":
    run_program(main)
