"""Search on the command line: `python -m scav_jax.search INDEX FILE... --model RUN`.

    python -m scav_jax.search my.index door.wav --model runs/demo
    python -m scav_jax.search my.index street.mp4 --model runs/demo --video --k 5 --html found.html

A file with both picture and sound asks by its sound, unless --video says by its picture. Sounds
find videos, and pictures find sounds.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from scav_jax.embed import Embedded
from scav_jax.errors import InputError, run_program
from scav_jax.files import write_atomically
from scav_jax.index import Hit, Index, open_index
from scav_jax.index.program import Parser, add_model, load_model
from scav_jax.index.searching import METHODS, parse_retrieval
from scav_jax.model import Model
from scav_jax.report.match import latents_of
from scav_jax.report.search_page import make_search, results_page


@dataclass(frozen=True)
class Asked:
    """One query and what it found.

    Attributes:
      id, source, start, end: the query's clip.
      direction: "a2v" if its sound asked for videos, "v2a" if its picture asked for sounds.
      hits: the nearest first.
    """

    id: str
    source: str
    start: float
    end: float
    direction: str
    hits: list[Hit]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="python -m scav_jax.search",
        description="Finds videos by sound and sounds by video in an index.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("index", type=Path, help="made by `python -m scav_jax.index build`")
    add("files", type=Path, nargs="+", metavar="FILE", help="sounds or videos that ask")
    add_model(parser)
    by = parser.add_mutually_exclusive_group()
    by.add_argument("--sound", action="store_true", help="the sound asks (the default)")
    by.add_argument("--video", action="store_true", help="the picture asks")
    add("--retrieval", default="exact", metavar="METHOD", help=f"{', '.join(METHODS)}")
    add("--filter", metavar="CONDITION", help="such as \"label = 'dog' AND start < 60\"")
    add("--k", type=int, default=10, help="clips of each query (default 10)")
    add("--clip-seconds", type=float, help="cut the files into windows, each asks for itself")
    add("--start", type=float, default=0.0, help="of the part that asks, in seconds")
    add("--end", type=float, help="of the part that asks, in seconds")
    add("--json", action="store_true", help="for programs")
    add("--html", type=Path, metavar="FILE", help="a page: queries and results in sync")
    return parser.parse_args(argv)


def embed_queries(model: Model, arguments: argparse.Namespace) -> tuple[Embedded, str]:
    """The files of the command line, embedded, and the direction in which they ask."""
    stream, direction = ("visual", "v2a") if arguments.video else ("audio", "a2v")
    queries = model.embed(
        arguments.files,
        clip_seconds=arguments.clip_seconds,
        start=arguments.start,
        end=arguments.end,
        streams=(stream,),
    )
    return queries, direction


def ask(
    index: Index, queries: Embedded, direction: str, k: int, retrieval: str, where: str | None
) -> list[Asked]:
    """Every query with its hits."""
    found = index.search(queries, direction, k, retrieval, where)
    return [
        Asked(
            queries.ids[number],
            str(queries.sources[number]),
            float(queries.starts[number]),
            float(queries.ends[number]),
            direction,
            hits,
        )
        for number, hits in enumerate(found)
    ]


def text(asked: Sequence[Asked], retrieval: str) -> str:
    """What people read."""
    lines = []
    measure = "cosine" if retrieval == "aggregation" else "distance"
    for one in asked:
        what = "sound" if one.direction == "a2v" else "picture"
        lines.append(f"{what} of {one.source} {one.start:.2f}-{one.end:.2f} s")
        if not one.hits:
            lines.append("  nothing: no clip of the index is left by the filter")
        else:
            lines.append(f"  {'rank':>4} {measure:>9}  {'seconds':>17}  file")
        for hit in one.hits:
            label = f"  [{hit.label}]" if hit.label else ""
            span = f"{hit.start:.2f}-{hit.end:.2f}"
            lines.append(f"  {hit.rank:>4} {hit.score:>9.4f}  {span:>17}  {hit.source}{label}")
        lines.append("")
    return "\n".join(lines).rstrip()


def document(asked: Sequence[Asked], index: Index) -> dict:
    """What programs read."""
    report = index.report
    about = {
        "retrieval": report.retrieval,
        "method": report.method,
        "seconds": report.seconds,
        "candidates": report.candidates,
    }
    if report.method == "exact":
        about["pruned_share"] = report.pruning.share
    return {"search": about, "queries": [asdict(one) for one in asked]}


def page(
    asked: Sequence[Asked], queries: Embedded, model: Model, index: Index, retrieval: str
) -> str:
    """The searches as one HTML document; clips whose files are gone are shown without."""
    stream = "visual" if asked and asked[0].direction == "a2v" else "audio"
    searches = [
        make_search(
            queries.take([number]),
            one.hits,
            direction=one.direction,
            model=model,
            latents=latents_of(model, one.hits, stream),
            score_name="cosine" if retrieval == "aggregation" else "distance",
        )
        for number, one in enumerate(asked)
    ]
    return results_page(searches, title=f"Search in {index.path.name}")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    parse_retrieval(arguments.retrieval)
    if arguments.k < 1:
        raise InputError(f"--k: expected at least 1, got {arguments.k}")
    model = load_model(arguments)
    index = open_index(arguments.index, model.identity)
    if not len(index):
        raise InputError(
            f"{arguments.index}: expected clips to search, the index is empty; add some with "
            "`python -m scav_jax.index add`"
        )
    retrieval = arguments.retrieval
    if retrieval == "exact" and not index.header.one_grid:
        retrieval = "sequence"  # the same result; there are no bounds for this distance
    queries, direction = embed_queries(model, arguments)
    asked = ask(index, queries, direction, arguments.k, retrieval, arguments.filter)
    if arguments.json:
        print(json.dumps(document(asked, index), indent=2))
    else:
        print(text(asked, retrieval))
        if index.report.method == "exact":
            print(f"\n{index.report.pruning.share:.1%} of {len(index):,} clips were ruled out")
    if arguments.html:
        html = page(asked, queries, model, index, retrieval)
        write_atomically(arguments.html, html.encode())
        print(arguments.html, file=sys.stderr)
    return 0


if __name__ == "__main__":
    run_program(main)
