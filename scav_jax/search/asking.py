"""Queries of an index: files in, ranked clips out, as text, as a document and as a page."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from scav_jax.base.errors import InputError
from scav_jax.base.names import from_here, shown
from scav_jax.index import Hit, Index
from scav_jax.report.in_sync import embedded_media
from scav_jax.report.markup import ASKING, STREAM_WORDS, nothing_found
from scav_jax.report.match import latents_from_files
from scav_jax.report.playable import ANOTHER, is_another
from scav_jax.report.search_page import LONGER, make_search, results_page
from scav_jax.retrieval.embed import Embedded
from scav_jax.retrieval.model import Model

# What to type where a file lacks the stream that was to ask.
OTHERWISE = {
    "no audio stream": "--video asks by its picture",
    "no video stream": "--sound asks by its sound",
}
# Most such files hold one picture; those that move are films.
PICTURE = re.compile(
    r"\.(png|jpe?g|webp|gif|bmp|tiff?|avif|heic): .*(no audio stream|too short)", re.IGNORECASE
)
STILL = "one still picture has no time to compare: ask with a film (--video) or a sound"


@dataclass(frozen=True)
class Asked:
    """One query and what it found.

    Attributes:
      id, source, start, end: the query's clip.
      direction: "a2v" if its sound asked for videos, "v2a" if its picture asked for sounds, "both".
      hits: the nearest first.
    """

    id: str
    source: str
    start: float
    end: float
    direction: str
    hits: list[Hit]


def embed_queries(model: Model, arguments: argparse.Namespace) -> tuple[Embedded, str]:
    """The files of the command line, embedded, and the direction in which they ask."""
    direction = "v2a" if arguments.video else "both" if arguments.both else "a2v"
    try:
        queries = model.embed(
            arguments.files,
            clip_seconds=arguments.clip_seconds,
            start=arguments.start,
            end=arguments.end,
            streams=ASKING[direction],
        )
    except InputError as error:
        if PICTURE.search(str(error)):
            raise InputError(f"{error}; {STILL}") from None
        for reason, words in OTHERWISE.items():
            if str(error).endswith(reason):
                raise InputError(f"{error}; {words}") from None
        raise
    return queries, direction


def ask(
    index: Index, queries: Embedded, direction: str, k: int, retrieval: str, **how
) -> list[Asked]:
    """Every query with its hits; `how` is what else `Index.search` takes."""
    found = index.search(queries, direction, k, retrieval, **how)
    spans = queries.starts.tolist(), queries.ends.tolist()
    clips = zip(queries.ids, map(str, queries.sources), *spans, found, strict=True)
    return [Asked(*clip, direction, hits) for *clip, hits in clips]


def text(asked: Sequence[Asked], measure: str) -> str:
    """What people read; `measure` is what scores are, see `searching.Report`."""
    lines = []
    for one in asked:
        what = " and ".join(STREAM_WORDS[stream] for stream in ASKING[one.direction])
        lines.append(f"{what} of {shown(from_here(one.source))} {one.start:.2f}-{one.end:.2f} s")
        if not one.hits:
            lines.append(f"  nothing: {nothing_found(one.direction)}")
        else:
            parts = f" {'dynamic':>9} {'static':>7}" if one.hits[0].static is not None else ""
            lines.append(f"  {'rank':>4} {measure:>9}{parts}  {'seconds':>17}  file")
        for hit in one.hits:
            name = shown(from_here(hit.source) + (f"  [{hit.label}]" if hit.label else ""))
            span = f"{hit.start:.2f}-{hit.end:.2f}"
            parts = "" if hit.static is None else f" {hit.dynamic:>9.4f} {hit.static:>7.3f}"
            lines.append(f"  {hit.rank:>4} {hit.score:>9.4f}{parts}  {span:>17}  {name}")
        lines.append("")
    return "\n".join(lines).rstrip()


def longer_than_found(asked: Sequence[Asked]) -> str:
    """What to say where a query lasts much longer than any clip that it found; else nothing.

    Both are laid on one grid of time, so a long query is squeezed, and its ranks say little.
    """
    for one in asked:
        seconds = one.end - one.start
        most = max((hit.end - hit.start for hit in one.hits), default=seconds)
        if seconds > LONGER * most:
            return (
                f"NOTE: {shown(from_here(one.source))} asks with {seconds:.1f} s, what it found "
                f"lasts {most:.1f} s at most, and clips are compared as wholes: "
                f"--clip-seconds {most:g} asks with each part, --start S --end E with one"
            )
    return ""


def document(asked: Sequence[Asked], index: Index) -> dict:
    """What programs read."""
    report = index.report
    about = {
        "retrieval": report.retrieval,
        "method": report.method,
        "seconds": report.seconds,
        "candidates": report.candidates,
        "measure": report.measure,
    }
    if report.method == "exact":
        about["pruned_share"] = report.pruning.share
    return {"search": about, "queries": [asdict(one) for one in asked]}


def page(asked: Sequence[Asked], queries: Embedded, model: Model, index: Index) -> str:
    """The searches as one HTML document; clips whose files are gone or others now lack them."""
    stream = "audio" if asked and asked[0].direction == "v2a" else "visual"
    others = _replaced([hit for one in asked for hit in one.hits], index)

    def address(source: str, start: float, end: float, kinds: tuple[str, ...]):
        if (source, start, end) in others:
            return "", ANOTHER, ""
        return embedded_media(source, start, end, kinds)

    searches = [
        make_search(
            queries.take([number]),
            one.hits,
            direction=one.direction,
            model=model,
            latents=_latents(model, one.hits, stream, others),
            score_name=index.report.measure,
            address=address,
        )
        for number, one in enumerate(asked)
    ]
    return results_page(searches, title=f"Search in {index.path.name}")


SourceSpan = tuple[str, float, float]  # a clip's source, and its start and end there in seconds


def _source_span(hit: Hit) -> SourceSpan:
    return hit.source, float(hit.start), float(hit.end)


def _replaced(hits: Sequence[Hit], index: Index) -> set[SourceSpan]:
    """Clips whose files are others now than those that were indexed."""
    contents = index.contents([hit.id for hit in hits])
    return {_source_span(hit) for hit in hits if is_another(hit.source, contents.get(hit.id, ""))}


def _latents(model: Model, hits: Sequence[Hit], stream: str, others: set[SourceSpan]) -> list:
    """The latents of hits, for their curves; None of another file than was indexed."""
    same = [hit for hit in hits if _source_span(hit) not in others]
    found = iter(latents_from_files(model, same, stream))
    return [None if _source_span(hit) in others else next(found) for hit in hits]
