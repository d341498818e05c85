"""What an evaluation shows, as one self-contained HTML page.

Every number comes from the `results` document (`metrics.json`), every picture from `Pictures`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scav_jax.base.names import last_parts
from scav_jax.report import figures, markup, probed
from scav_jax.report.markup import escape
from scav_jax.retrieval.results import (
    DIRECTIONS,
    RENDERED,
    distance_name,
    few_clips,
    figures_of,
    hubness_words,
    interval,
    main_methods,
    method_name,
    own_method,
    percent,
    recalls,
    unbeaten,
)
from scav_jax.retrieve import TIMED_QUERIES

VERDICTS = {
    "right": "✓ right clip",
    "same source": "same video",
    "other": "other video",
}
CLASSES_SHOWN = 12


@dataclass(frozen=True)
class ClipView:
    """A clip as it is shown: its name, where it is from, its thumbnail and its sound (a `data:`
    address), if there are any."""

    id: str
    source: str
    start: float
    end: float
    label: str
    thumbnail: figures.Thumbnail | None
    sound: str = ""


@dataclass(frozen=True)
class ExampleSearch:
    """One query and what was found.

    Attributes:
      direction: "a2v" or "v2a".
      query: the clip that asks.
      rank: of the right candidate, from 1.
      found: the closest candidates with a key of `VERDICTS` and their distance, closest first.
      by_part: its rank by each part alone, by name, where parts were learned apart.
    """

    direction: str
    query: ClipView
    rank: int
    found: list[tuple[ClipView, str, float]]
    by_part: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Pictures:
    """What the page shows besides the results; what is empty is left out or explained.

    Attributes:
      histories: (run name, lines of its metrics.jsonl).
      matrices: of the first run.
      alignments: of the first run.
      comparison: one pair of the first run, as each distance aligns it.
      resampled: the same pair on one grid, or None.
      searches: of the first run, by sequence.
      probes: documents of `scav probe` on the same clips, of the runs that have one.
      no_thumbnails: why clips have no pictures, or "".
    """

    histories: list[tuple[str, list[dict]]] = field(default_factory=list)
    matrices: figures.Matrices | None = None
    alignments: list[figures.Alignment] = field(default_factory=list)
    comparison: list[figures.Alignment] = field(default_factory=list)
    resampled: figures.Resampled | None = None
    searches: list[ExampleSearch] = field(default_factory=list)
    probes: list[dict] = field(default_factory=list)
    no_thumbnails: str = ""


# ---- the page -------------------------------------------------------------------------------


def html(results: dict, pictures: Pictures) -> str:
    """The whole report as one HTML document."""
    data, runs = results["data"], results["runs"]
    names = " and ".join(run["name"] for run in runs)
    title = f"{names} on {last_parts(Path(data['path']))}, {data['split']}"
    header = [
        '<p class="kicker">Audio-visual retrieval report</p>',
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">N = {data["n"]:,} clips of {data["sources"]:,} videos. Each clip is a '
        f"query once in each direction, and all {data['n']:,} are candidates: chance R@1 is "
        f"{100 / data['n']:.3g} %.</p>",
        markup.note(RENDERED) if data["rendered"] else "",
        *(markup.note(word) for word in [*few_clips(data["n"]), *unbeaten(results)]),
        *(markup.note(word) for run in runs for word in hubness_words(run)),
        _cards(runs),
    ]
    sections = [
        _recall_section(runs),
        _search_section(pictures, runs[0]),
        _hybrid_section(runs),
        _gallery_section(runs[0]),
        _matrix_section(pictures.matrices, runs[0]),
        _alignment_section(pictures, runs[0]),
        _training_section(pictures.histories),
        _class_section(runs[0]),
        _subset_section(runs[0]),
        *(probed.section(document) for document in pictures.probes),
        _facts_section(results),
    ]
    return markup.document(title, "\n".join(part for part in header if part), sections)


def _cards(runs: Sequence[dict]) -> str:
    cards = []
    for run in runs:
        method = own_method(run)
        for direction, name in figures.DIRECTION_NAMES.items():
            summary = method[direction]
            cards.append(
                f'<div class="card {method["method"]}">'
                f'<div class="big">{percent(summary["recall_at_1"])} %</div>'
                f"<div>R@1, {name}</div>"
                f'<div class="small">{escape(run["name"])} by {method_name(method)}</div>'
                f'<div class="small">{interval(summary)}</div></div>'
            )
    return f'<div class="cards">{"".join(cards)}</div>'


def _recall_section(runs: Sequence[dict]) -> str:
    pairs = [(run, method) for run in runs for method in main_methods(run)]
    several = len(runs) > 1
    names = [f"{r['name']}, {method_name(m)}" if several else method_name(m) for r, m in pairs]
    picture = figures.recall_by_method(
        [(name, method) for name, (_, method) in zip(names, pairs, strict=True)]
    )
    rows = []
    for name, (_, method) in zip(names, pairs, strict=True):
        cells = [f'<i class="dot {method["method"]}"></i>{escape(name)}']
        for direction in DIRECTIONS:
            s = method[direction]
            cells += [f"<b>{percent(s['recall_at_1'])}</b>"]
            cells += [f'<span class="small">{interval(s)}</span>']
            cells += [percent(s[f"recall_at_{k}"]) for k in (5, 10)]
            cells += [f"{s['median_rank']:,g}", f"{s['mean_rank']:,.1f}"]
        rows.append([*cells, f"{1e3 * method['seconds_per_query']:.3g}"])
    columns = ("R@1", "95 %", "R@5", "R@10", "MedR", "MeanR")
    above = [(name, len(columns)) for name in figures.DIRECTION_NAMES.values()]
    return markup.section(
        "Recall by method",
        "<p>A query is right at k when its own clip is among the k candidates that lie closest. "
        "<em>Aggregation</em> compares the time-averages of two clips, <em>sequence</em> compares "
        "them step by step, <em>hybrid</em> orders the k best of aggregation by sequence.</p>",
        markup.figure(
            picture,
            "Recall at 1, 5 and 10 of each method in both directions",
            "Filled marker and figure: R@1; the band is its 95 % bootstrap interval over queries. "
            "Open markers: R@5 and R@10.",
        ),
        markup.table(
            ["retrieval", *columns, *columns, "ms/query"],
            rows,
            above=[("", 1), *above, ("", 1)],
            kind="dense",
        ),
    )


def _hybrid_section(runs: Sequence[dict]) -> str:
    run = next((run for run in runs if run["own_method"] != "aggregation"), runs[0])
    methods = [method for method in run["methods"] if method["method"] == "hybrid"]
    if not methods:
        return ""
    extremes = {1: "= aggregation", run["methods"][-1]["k"]: "= sequence"}
    rows = [
        [
            f'{method["k"]:,} <span class="small">{extremes.get(method["k"], "")}</span>',
            *(f"<b>{percent(method[d]['recall_at_1'])}</b>" for d in DIRECTIONS),
            *(percent(stage[d]) for d in DIRECTIONS),
            f"{1e3 * method['seconds_per_query']:.3g}",
        ]
        for method, stage in zip(methods, run["first_stage"], strict=True)
    ]
    return markup.section(
        f"How many candidates the second stage needs ({run['name']})",
        markup.figure(
            figures.k_sweep(methods, run["first_stage"]),
            "R@1 of hybrid retrieval, and time for a query, against k",
            "Left: R@1 of hybrid(k), green, cannot exceed the share of queries whose own clip is "
            "among the first stage's k, grey. Right: the time that one query takes once all "
            f"clips are embedded, {TIMED_QUERIES} queries asked at once; in a small gallery, one "
            "matrix product over all candidates can be cheaper than gathering a few for each "
            "query. The shape of the paper's Table III.",
        ),
        markup.table(
            ["k", *("A→V", "V→A") * 2, "ms/query"],
            rows,
            above=[("", 1), ("hybrid R@1", 2), ("first stage recall@k", 2), ("", 1)],
        ),
    )


def _gallery_section(run: dict) -> str:
    if not run["galleries"]:
        return ""
    rows = [
        [method, f"{found['size']:,}", *recalls(found)]
        for method, sizes in run["galleries"].items()
        for found in sizes
    ]
    return markup.section(
        f"In smaller galleries ({run['name']})",
        markup.figure(
            figures.gallery_curve(run["galleries"]),
            "R@1 against the size of the gallery",
            "The mean over all subsets of the clips that hold the right one, exactly: what this "
            "model would find among fewer clips. Figures of galleries of other sizes compare here.",
        ),
        markup.table(
            ["", "clips", *("R@1", "R@5", "R@10") * 2],
            rows,
            above=[("", 2), ("A→V", 3), ("V→A", 3)],
        ),
    )


def _matrix_section(matrices: figures.Matrices | None, run: dict) -> str:
    if matrices is None:
        return ""
    return markup.section(
        "Distance matrices before and after the z-score",
        markup.figure(
            figures.distance_matrices(matrices),
            "Three distance matrices",
            f"{len(matrices.sources)} clips of {len(set(matrices.sources))} videos, sorted by "
            "video (white lines part them): each row is a clip's video, each column a clip's "
            "audio, and matching pairs lie on the diagonal. Left: the distance that ranks, "
            f"{escape(distance_name(run['distance']))}; a dark block is clips of one video, which "
            "look and sound alike. Middle and right: what L<sub>seq</sub> would see with these "
            "clips as a batch; the darkest orange is closest.",
        ),
    )


def _alignment_section(pictures: Pictures, run: dict) -> str:
    if not pictures.alignments:
        return ""
    parts = [
        markup.figure(
            figures.alignments(pictures.alignments),
            "Cost of comparing each visual step with each audio step, and the alignment",
            "Colour: squared difference of a visual and an audio latent, mean over channels (dark "
            f"is alike). Circles: the steps that {escape(distance_name(run['distance']))} "
            "compares; a larger one has more weight.",
        )
    ]
    if pictures.comparison:
        parts.append(
            markup.figure(
                figures.alignments(pictures.comparison),
                "The same pair, as each distance aligns it",
                "The clip with its own audio under each distance. Euclidean: the steps that "
                "interpolation reads. Soft-DTW: the expected alignment, and as a line the cheapest "
                "path (DTW). Wasserstein: the transport plan, how much of a visual step moves to "
                "which audio step.",
            )
        )
    if pictures.resampled is not None:
        parts.append(
            markup.figure(
                figures.resampled_pair(pictures.resampled),
                "The pair on one grid",
                "What the interpolated Euclidean distance compares: the channels that vary most, "
                "of video and audio, one of them resampled to the other's steps, and the squared "
                "difference of each step. Their mean is the distance.",
            )
        )
    return markup.section("Alignment of one pair", *parts)


def _training_section(histories: Sequence[tuple[str, list[dict]]]) -> str:
    picture = figures.training_curves(histories)
    if picture is None:
        return markup.section("Training", markup.note("There is no metrics.jsonl to draw."))
    return markup.section(
        "Training",
        markup.figure(
            picture,
            "Training curves",
            "Means between two log lines. A temperature that runs to a bound, or a spread of the "
            "distances that goes to 0, is a sign of trouble. Validation ranks the whole "
            "validation split"
            + (" (here the mean of both directions)." if len(histories) > 1 else "."),
        ),
    )


def _class_section(run: dict) -> str:
    own = own_method(run)
    classes = run["per_class"][own["method"]]
    if not classes:
        return ""
    order = sorted(classes, key=lambda name: (-classes[name]["a2v"]["recall_at_1"], name))
    every = len(order) <= 2 * CLASSES_SHOWN
    shown = order if every else order[:CLASSES_SHOWN] + order[-CLASSES_SHOWN:]
    which = f"The {CLASSES_SHOWN} best and the {CLASSES_SHOWN} worst of {len(order)}"
    return markup.section(
        f"By class ({run['name']}, {method_name(own)})",
        f"<p>{'All' if every else which} classes by R@1, audio → video. Only the queries are "
        "divided: every clip of the split is a candidate. metrics.json has all of them.</p>",
        _divided_table("class", {name: classes[name] for name in shown}),
    )


def _subset_section(run: dict) -> str:
    own = own_method(run)
    subsets = run["per_subset"].get(own["method"])
    if not subsets:
        return ""
    return markup.section(
        f"By subset ({run['name']}, {method_name(own)})",
        "<p>By what is heard and seen in the clip that asks (VGGSounder). Only the queries are "
        "divided: every clip of the split is a candidate.</p>",
        _divided_table("subset", subsets),
    )


def _divided_table(what: str, parts: dict) -> str:
    rows = [
        [escape(name), str(found["a2v"]["n"])]
        + [cell for d in DIRECTIONS for cell in figures_of(found[d])]
        for name, found in parts.items()
    ]
    return markup.table([what, "queries", "A→V R@1", "MedR", "V→A R@1", "MedR"], rows)


# ---- retrieved clips ------------------------------------------------------------------------


def _search_section(pictures: Pictures, run: dict) -> str:
    if not pictures.searches:
        return ""
    parts = []
    asked = {"a2v": "Videos found for a sound", "v2a": "Sounds found for a video"}
    for direction, heading in asked.items():
        searches = [s for s in pictures.searches if s.direction == direction]
        parts += [f"<h3>{heading}</h3>", *map(_search, searches)] if searches else []
    why = pictures.no_thumbnails
    return markup.section(
        f"Retrieved clips ({run['name']}, {list(run['per_class'])[-1]})",
        "<p>Queries drawn at random; from left to right the query and the candidates that lie "
        "closest. A clip is shown by its first frame and by the loudness of its sound, which "
        "plays. Green is the query's own clip, amber another clip of its video.</p>",
        markup.note(f"Thumbnails are missing: {why}") if why else "",
        *parts,
    )


def _search(search: ExampleSearch) -> str:
    asking = "sound" if search.direction == "a2v" else "video"
    cards = [_clip(search.query, "query", f"Query: its {asking}", "")]
    cards += [
        _clip(clip, verdict.replace(" ", "-"), f"{place}. {VERDICTS[verdict]}", f"d = {d:.4g}")
        for place, (clip, verdict, d) in enumerate(search.found, 1)
    ]
    alone = ", ".join(f"by the {name} alone {rank:,}" for name, rank in search.by_part.items())
    rank = f"The right clip is at rank {search.rank:,}{f' ({alone})' if alone else ''}."
    rank = f'<p class="rank">{rank}</p>'
    return f'{rank}<div class="clips">{"".join(cards)}</div>'


def _clip(clip: ClipView, kind: str, title: str, distance: str) -> str:
    media = '<div class="nothing">no picture</div>'
    if clip.thumbnail:
        alternative = escape(f"First frame of {clip.id}")
        media = f'<img src="{clip.thumbnail.picture}" alt="{alternative}">'
        media += markup.envelope(clip.thumbnail.envelope)
    if clip.sound:
        name = escape(f"sound of {clip.id}")
        media += f'<audio controls preload="none" src="{clip.sound}" aria-label="{name}"></audio>'
    breakable = escape(clip.id).replace("_", "_<wbr>")
    facts = [clip.label, f"{clip.start:.1f} to {clip.end:.1f} s", distance]
    return (
        f'<div class="clip {kind}"><div class="verdict">{title}</div>{media}'
        f'<div class="id" title="{escape(clip.source)}">{breakable}</div>'
        f'<div class="small">{escape(" · ".join(fact for fact in facts if fact))}</div></div>'
    )


# ---- facts ----------------------------------------------------------------------------------


def _facts_section(results: dict) -> str:
    data = results["data"]
    facts = [
        ("Data", f"{data['path']}, split {data['split']}, N = {data['n']:,}"),
        ("SHA-256 of the sorted ids", f"{data['ids_sha256']} {data.get('gallery', '')}"),
        ("Features", f"extractor {data['fingerprint_id']}"),
        ("Ranks", f"by counting; {results['tie_rule']}; NaN is an error"),
        (
            "Intervals",
            f"95 %, {results['bootstrap']:,} bootstrap resamples of the queries, seed "
            f"{results['seed']}; clips of one video are resampled as if independent",
        ),
        ("Machine", results["machine"]),
    ]
    for run in results["runs"]:
        seconds = ", ".join(f"{name} {value:.1f} s" for name, value in run["seconds"].items())
        facts += [
            (f"{run['name']}: run", run["run"]),
            (f"{run['name']}: trained with", run["trained_with"]),
            (f"{run['name']}: sequence retrieval", distance_name(run["distance"])),
            (f"{run['name']}: whole evaluation", f"{seconds} (compiling included)"),
        ]
    return markup.section(
        "What was measured",
        markup.table((), [[escape(name), escape(str(fact))] for name, fact in facts], kind="facts"),
        *(
            markup.details(f"Config of {run['name']}", run["config"])
            for run in results["runs"]
            if run["config"]
        ),
        markup.details("Extractor (data fingerprint)", data["fingerprint"]),
    )
