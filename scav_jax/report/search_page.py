"""What a search found, to see and hear: the query and the results play in sync.

    latents = latents_from_files(model, hits, "visual")   # of scav_jax.report.match, for the curves
    search = make_search(query, hits, direction="a2v", model=model, latents=latents)
    Path("found.html").write_text(results_page([search]))

One self-contained page: clips are embedded as data, nothing is loaded from elsewhere. Under each
result runs its match over time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scav_jax.base.errors import InputError, check_one_of
from scav_jax.extract.containers.film import KINDS
from scav_jax.report import markup
from scav_jax.report.in_sync import (
    POLICY,
    SCRIPT,
    STYLE,
    Address,
    Shown,
    card,
    curve_html,
    embedded_media,
    player,
    scale_of,
)
from scav_jax.report.markup import ASKING, STREAM_WORDS, escape
from scav_jax.report.match import Curve, match_curve, one
from scav_jax.retrieval.embed import Embedded
from scav_jax.retrieval.model import Model
from scav_jax.retrieval.results import distance_name
from scav_jax.retrieve import Hit
from scav_jax.sequences import Sequences

ASKED = {
    "a2v": "Videos found for the sound of",
    "v2a": "Sounds found for the picture of",
    "both": "Clips found for picture and sound of",
}
# Columns of which the last row has more than one card, where there is room for many and for some.
WIDE, MIDDLE = (3, 4, 5), (2, 3)
LONGER = 1.5  # a query this many times as long as what it found is no clip like them


@dataclass(frozen=True)
class Result:
    """A result: the clip, its rank from 1, its score in words, its match over time if known."""

    clip: Shown
    rank: int
    score: str
    curve: Curve | None = None


@dataclass(frozen=True)
class Search:
    """One query and what was found for it; `direction` is "a2v", "v2a" or "both"."""

    query: Shown
    results: list[Result]
    direction: str
    distance: str = ""


def make_search(
    query: Embedded,
    hits: Sequence[Hit],
    *,
    direction: str,
    model: Model,
    latents: Sequence[Sequences | None] | None = None,
    score_name: str = "distance",
    address: Address = embedded_media,
    query_name: str | None = None,
) -> Search:
    """What is shown of one query.

    Args:
      query: one clip.
      hits: what was found for it, the closest first.
      direction: "a2v" (a sound finds videos), "v2a" (a video finds sounds) or "both", whose
        curves are those of "a2v".
      model: whose latents they are; its distance draws the curves.
      latents: `[T, C]` of each hit, in their order: audio for "v2a", else visual; None draws no
        curve.
      score_name: what the hits' scores are: "distance", "cosine" for aggregation, or "score".
      address: how a clip is reached; the default embeds it in the page.
      query_name: what the query is called, if not by its id.

    Raises:
      InputError: an unknown direction, a query without the stream that asks, hits and latents of
        different number.
    """
    check_one_of("direction", direction, ASKING)
    if latents is not None and len(latents) != len(hits):
        raise InputError(f"expected latents of the {len(hits)} hits, got {len(latents)}")
    for stream in ASKING[direction]:
        if getattr(query, stream) is None:
            word = STREAM_WORDS[stream]
            raise InputError(f"expected a query with a {word}, it was embedded without")
    start, end = float(query.starts[0]), float(query.ends[0])
    asked = Shown(
        query_name or query.ids[0],
        query_name or query.sources[0],
        start,
        end,
        query.labels[0],
        *address(query.sources[0], start, end, KINDS),
    )
    curves = curves_of(query, hits, latents or [None] * len(hits), direction, model)
    results = []
    for hit, curve in zip(hits, curves, strict=True):
        where = address(hit.source, float(hit.start), float(hit.end), KINDS)
        clip = Shown(hit.id, hit.source, float(hit.start), float(hit.end), hit.label or "", *where)
        results.append(Result(clip, hit.rank, _told(hit, score_name), curve))
    name, options = model.distance
    told = distance_name({"name": name, "options": options})
    return Search(asked, results, direction, told)


def curves_of(
    query: Embedded,
    hits: Sequence[Hit],
    latents: Sequence[Sequences | None],
    direction: str,
    model: Model,
) -> list[Curve | None]:
    """The match over time of each hit whose latents are known; see `make_search`."""
    return [
        None if found is None else _curve(query, hit, found, direction, model)
        for hit, found in zip(hits, latents, strict=True)
    ]


def _curve(query: Embedded, hit: Hit, found: Sequences, direction: str, model: Model) -> Curve:
    if direction == "v2a":
        visual, audio = one(query.visual, 0), found
        seconds = float(query.ends[0] - query.starts[0])
    else:
        visual, audio = found, one(query.audio, 0)
        seconds = hit.end - hit.start
    steps = {"visual_seconds": seconds, "audio_step_s": model.audio_step_s}
    return match_curve(*model.distance, visual, audio, **steps)


def _told(hit: Hit, score_name: str) -> str:
    """A hit's score, and which part found it where a model learned two."""
    score = f"{score_name} {hit.score:.4g}"
    if hit.static is None:
        return score
    return f"{score}, dynamic {hit.dynamic:.3g}, static cosine {hit.static:.2f}"


def results_page(searches: Sequence[Search], title: str = "Search") -> str:
    """The whole page as one HTML document."""
    header = (
        f'<p class="kicker">Audio-visual search</p><h1>{escape(title)}</h1>'
        '<p class="lead">Query and results play in sync. Space plays and stops, the arrow keys '
        "move, 0 to 9 choose which sound is heard (0 is the query). The curve under a result is "
        "its distance to the query over time: lower is a closer match.</p>"
    )
    sections = [
        markup.section(
            f"{ASKED[search.direction]} {Path(search.query.id).name}", search_html(search)
        )
        for search in searches
    ] or [markup.section("Nothing", markup.note("No query was asked."))]
    sections.append(f"<script>\n{SCRIPT}</script>")
    return markup.document(title, header, sections, head=POLICY, style=STYLE)


def search_html(search: Search) -> str:
    """One search: the transport, the query, the results."""
    if not search.results:
        return markup.note(f"Nothing was found: {markup.nothing_found(search.direction)}.")
    hear_query = search.direction != "v2a" or not search.results[0].clip.kind
    asking = card(search.query, "Query", "", "", hear_query, "asking")
    pictures, told = curves_html(search)
    cards = []
    for place, (result, picture) in enumerate(zip(search.results, pictures, strict=True)):
        heard = not hear_query and place == 0
        cards.append(card(result.clip, f"{result.rank}.", result.score, picture, heard, ""))
    return _longer_than_found(search) + player(
        f"search with {search.query.id}",
        total_seconds(search),
        "".join(cards),
        f'<p class="small told">{told}</p>',
        above=f'<div class="query">{asking}</div>\n',
        columns=columns_of(len(cards)),
    )


def _longer_than_found(search: Search) -> str:
    """A note where a query is squeezed onto the steps of what it found; else nothing."""
    most = max(result.clip.seconds for result in search.results)
    if search.query.seconds <= LONGER * most:
        return ""
    return markup.note(
        f"The query lasts {search.query.seconds:.1f} s, what it found {most:.1f} s at most, and "
        "clips are compared as wholes: ask with a part of it."
    )


def total_seconds(search: Search) -> float:
    """How long the longest of its clips plays."""
    clips = (search.query, *(result.clip for result in search.results))
    return max(0.1, *(clip.seconds for clip in clips))


def curves_html(search: Search) -> tuple[list[str], str]:
    """The picture of each result's match, "" where none is known, and what they are (HTML)."""
    total = total_seconds(search)
    known = [result.curve for result in search.results if result.curve is not None]
    scale = scale_of(known)
    pictures = [
        "" if result.curve is None else curve_html(result.curve, total, scale)
        for result in search.results
    ]
    told = f"Distance: {escape(search.distance)}."
    if known:
        told += f" All curves of a search have one scale, {scale[0]:.3g} to {scale[1]:.3g}."
    return pictures, told


def columns_of(cards: int) -> str:
    """Classes of the style by which no card is alone in the last row, where that can be.

    >>> columns_of(9), columns_of(10)
    ('wide3 middle3', 'wide4 middle2')
    """
    wide, middle = (
        next((n for n in choices if cards % n != 1), choices[0]) for choices in (WIDE, MIDDLE)
    )
    return f"wide{wide} middle{middle}"
