"""What was found (`findings.document`), as text for a terminal and as one HTML page."""

import itertools
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from scav_jax.report import figures, markup
from scav_jax.report.markup import escape
from scav_jax.retrieval.results import aligned, few_clips

LABELS_SHOWN, LABEL_LETTERS = 24, 44
SHOWN = 20  # of each fault, and groups of duplicates
SPLIT_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#7f7f7f")
SPLIT_COLUMNS = ("clips", "hours", "labels", "sources", "faults")


# ---- for a terminal ---------------------------------------------------------------------------


def text(found: dict) -> str:
    """The findings as aligned lines."""
    near = found["near_duplicates"]
    parts = [
        f"{found['path']}: {found['clips']:,} usable clips, {found['hours']:,.2f} hours, "
        f"{found['sources']:,} sources, {_size(found['disk']['bytes'])} on disk "
        f"({_size(found['disk']['bytes_per_clip'])} a clip){_said_extractor(found)}",
        _table([["split", *SPLIT_COLUMNS], *_split_rows(found)]),
        _table([["", "least", "median", "mean", "most", "common"], *_spread_rows(found)]),
        _said_variable(found),
        "faults:\n" + _table(_fault_rows(found)) if found["faults"] else "no faults",
        "duplicates:\n" + _table([["equal", "groups", "clips", "across splits"], *_copies(found)]),
        f"near-duplicates (as re-encoded copies are): {near['pairs']:,} pairs, "
        f"{near['across_splits']:,} across splits",
        *_cautions(found),
        "\n".join(f"{name}: {words}" for name, words in found["thresholds"].items()),
    ]
    return "\n\n".join(part for part in parts if part)


def _said_extractor(found: dict) -> str:
    """Of features, which one, as `data.backbone` in a config can name it."""
    extractor = found["about"].get("fingerprint_id")
    return f", extractor {extractor}" if extractor else ""


def _said_variable(found: dict) -> str:
    if found["kind"] == "features":  # no longer to be seen
        return ""
    return f"variable frame rate: {found['variable_frame_rate']:,} clips"


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"  {line}" for line in aligned(rows, words=1))


def _split_rows(found: dict) -> list[list[str]]:
    return [
        [
            name,
            *(f"{row[key]:,.2f}" if key == "hours" else f"{row[key]:,}" for key in SPLIT_COLUMNS),
        ]
        for name, row in found["splits"].items()
    ]


def _spread_rows(found: dict) -> list[list[str]]:
    named = {"seconds": found["seconds"], "frames/s": found["frame_rate"]}
    return [
        [
            name,
            *(f"{spread[key]:.4g}" for key in ("least", "median", "mean", "most")),
            ", ".join(f"{value:g} x {count:,}" for value, count in spread["common"][:4]),
        ]
        for name, spread in named.items()
        if spread
    ]


def _fault_rows(found: dict) -> list[list[str]]:
    return [
        [f"{row['stage']}: {row['reason']}", f"{row['clips']:,}", f"as {row['listed'][0][0]}"]
        for row in found["faults"]
    ]


def _copies(found: dict) -> list[list[str]]:
    return [
        [kind, *(f"{row[key]:,}" for key in ("groups", "clips", "across_splits"))]
        for kind, row in found["duplicates"].items()
    ]


def _leaks(found: dict) -> list[str]:
    """One line for each way in which splits are not disjoint."""
    lines = []
    shared = found["shared_sources"]
    if shared["count"]:
        source, splits = shared["listed"][0]
        lines.append(
            f"LEAK: sources with clips in several splits: {shared['count']:,}, as {source} in "
            f"{' and '.join(splits)}"
        )
    for kind, row in found["duplicates"].items():
        if row["across_splits"]:
            group = ", ".join(f"{name} ({split})" for name, split in row["listed"][0][:3])
            lines.append(
                f"LEAK: groups of equal {kind} across splits: {row['across_splits']:,}, as {group}"
            )
    near = found["near_duplicates"]
    if near["across_splits"]:
        one, split, other, other_split, similarity = near["listed"][0]
        lines.append(
            f"LEAK: near-duplicates across splits: {near['across_splits']:,} pairs, as {one} "
            f"({split}) and {other} ({other_split}), similarity {similarity:.3f}"
        )
    return lines


def _cautions(found: dict) -> list[str]:
    """Leaks, and splits with which too little can be told."""
    asked = {name: row["clips"] for name, row in found["splits"].items() if name != "train"}
    few = [f"{name}: {line}" for name, n in asked.items() if n for line in few_clips(n)]
    return _leaks(found) + few


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


# ---- the page ---------------------------------------------------------------------------------


def html(found: dict) -> str:
    """The findings as one self-contained HTML document."""
    what = {"features": "Data set of features", "videos": "Folder of videos"}[found["kind"]]
    header = [
        f'<p class="kicker">{what}</p>',
        f"<h1>{escape(found['path'])}</h1>",
        f'<p class="lead">{found["clips"]:,} usable clips of {found["sources"]:,} sources, '
        f"{found['hours']:,.2f} hours; {_size(found['disk']['bytes'])} on disk, "
        f"{_size(found['disk']['bytes_per_clip'])} a clip.</p>",
        *map(markup.note, _cautions(found)),
        _cards(found),
    ]
    splits = [[escape(cell) for cell in row] for row in _split_rows(found)]
    sections = [
        markup.section("Splits", markup.table(["split", *SPLIT_COLUMNS], splits)),
        _lengths_section(found),
        _labels_section(found),
        _faults_section(found),
        _duplicates_section(found),
        _facts_section(found),
    ]
    return markup.document(f"Inspection of {found['path']}", "\n".join(header), sections)


def _cards(found: dict) -> str:
    faults = sum(row["clips"] for row in found["faults"])
    copies = sum(row["clips"] for row in found["duplicates"].values())
    leaks = found["shared_sources"]["count"] + sum(
        row["across_splits"] for row in (*found["duplicates"].values(), found["near_duplicates"])
    )
    near = found["near_duplicates"]["pairs"]
    most = f"most often: {found['faults'][0]['reason']}" if faults else ""
    cards = [
        ("sequence", f"{found['clips']:,}", "usable clips", f"{found['hours']:,.2f} hours"),
        ("aggregation" if faults else "", f"{faults:,}", "faults", most),
        ("", f"{copies:,}", "clips with a duplicate", ", ".join(found["duplicates"])),
        ("", f"{near:,}", "pairs of near-duplicates", "as copies that were encoded again are"),
        ("aggregation" if leaks else "", f"{leaks:,}", "leaks between splits", "sources, copies"),
    ]
    return (
        '<div class="cards">'
        + "".join(
            f'<div class="card {kind}"><div class="big">{figure}</div><div>{name}</div>'
            f'<div class="small">{escape(more)}</div></div>'
            for kind, figure, name, more in cards
        )
        + "</div>"
    )


def _lengths_section(found: dict) -> str:
    if not found["clips"]:
        return ""
    variable = found["variable_frame_rate"]
    rows = [[escape(cell) for cell in row] for row in _spread_rows(found)]
    return markup.section(
        "Lengths and frame rates",
        markup.figure(
            _histograms({"seconds": found["seconds"], "frames a second": found["frame_rate"]}),
            "Histograms of the clips' lengths and frame rates",
            "Usable clips by their length and by their rate of visual steps."
            + (f" {variable:,} clips have a variable frame rate." if variable else ""),
        ),
        markup.table(["", "least", "median", "mean", "most", "most common"], rows),
    )


def _histograms(spreads: dict[str, dict]) -> str:
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(10, 2.6), layout="constrained")
        for panel, (name, spread) in zip(
            figure.subplots(1, 2, squeeze=False)[0], spreads.items(), strict=True
        ):
            edges, counts = spread["histogram"]["edges"], spread["histogram"]["counts"]
            widths = [b - a for a, b in itertools.pairwise(edges)]
            panel.bar(edges[:-1], counts, widths, align="edge", color=SPLIT_COLOURS[0], ec="white")
            if len(counts) == 1:
                panel.set_xlim(edges[0] - 4, edges[1] + 4)
            panel.set_xlabel(name)
            panel.set_ylabel("clips")
            panel.set_ylim(bottom=0)
            panel.yaxis.set_major_locator(MaxNLocator(5, integer=True))
            panel.grid(axis="y")
    return figures.image(figure)


def _labels_section(found: dict) -> str:
    labels = {name or "(no label)": counts for name, counts in found["labels"].items()}
    if len(labels) < 2:
        return ""
    shown = list(labels)[:LABELS_SHOWN]
    least = list(labels)[-1]
    every = len(shown) == len(labels)
    return markup.section(
        "Labels",
        markup.figure(
            _label_bars({name: labels[name] for name in shown}, list(found["splits"])),
            "Clips of each label, by split",
            f"{'All' if every else f'The {len(shown)} most frequent of'} {len(labels):,} labels. "
            f"The rarest is {escape(least)} with {sum(labels[least].values()):,}.",
        ),
    )


def _label_bars(labels: dict[str, dict[str, int]], splits: Sequence[str]) -> str:
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(10, 0.7 + 0.24 * len(labels)), layout="constrained")
        panel = figure.subplots()
        begin = [0] * len(labels)
        for number, split in enumerate(splits):
            counts = [counts.get(split, 0) for counts in labels.values()]
            colour = SPLIT_COLOURS[number % len(SPLIT_COLOURS)]
            panel.barh(range(len(labels)), counts, left=begin, color=colour, label=split)
            begin = [a + b for a, b in zip(begin, counts, strict=True)]
        panel.set_yticks(range(len(labels)), [_short(name) for name in labels])
        panel.set_ylim(len(labels) - 0.4, -0.6)
        panel.set_xlabel("clips")
        panel.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        panel.grid(axis="x")
        panel.tick_params(left=False)
        if len(splits) > 1:
            panel.legend(loc="lower right")
    return figures.image(figure)


def _short(name: str) -> str:
    name = name.replace("$", r"\$")  # not mathematics
    return name if len(name) <= LABEL_LETTERS else f"{name[: LABEL_LETTERS - 1]}…"


def _faults_section(found: dict) -> str:
    if not found["faults"]:
        return markup.section("Faults", "<p>None.</p>")
    rows = [
        [escape(row["reason"]), escape(row["stage"]), f"{row['clips']:,}"]
        for row in found["faults"]
    ]
    return markup.section(
        "Faults",
        "<p>What cannot be used, or looks as if it should not be; where each begins is below.</p>",
        markup.table(["reason", "stage", "clips"], rows, words=2),
        *(_first(row["reason"], row["listed"]) for row in found["faults"]),
    )


def _first(what: str, listed: Sequence) -> str:
    """The first of what is listed by name, to unfold; the document has all of it."""
    more = f"; the first {SHOWN}, --json has all" if len(listed) > SHOWN else ""
    return markup.details(f"{what} ({len(listed):,}{more})", dict(listed[:SHOWN]))


def _duplicates_section(found: dict) -> str:
    parts = [markup.table(["equal", "groups", "clips", "across splits"], _copies(found))]
    for kind, row in found["duplicates"].items():
        if row["groups"]:
            groups = [
                (f"group {number}", [f"{name} ({split})" for name, split in group[:SHOWN]])
                for number, group in enumerate(row["listed"], 1)
            ]
            parts.append(_first(f"Groups of equal {kind}", groups))
    near = found["near_duplicates"]
    if near["pairs"]:
        rows = [
            [escape(f"{one} ({split})"), escape(f"{other} ({other_split})"), f"{similarity:.3f}"]
            for one, split, other, other_split, similarity in near["listed"][:SHOWN]
        ]
        parts.append(markup.table(["near-duplicates", "and", "similarity"], rows))
        if len(rows) < near["pairs"]:
            told = f"{len(rows):,} of {near['pairs']:,} pairs, those across splits first"
            parts.append(f"<p>{told}; --json has all.</p>")
    shared = found["shared_sources"]
    if shared["count"]:
        parts.append(_first("Sources in several splits", shared["listed"]))
    return markup.section(
        "Duplicates and leaks",
        "<p>Clips whose content is equal to the last bit, and pairs that look and sound alike over "
        "time, as copies that were encoded again do (so may talkers before one wall: look at the "
        "pairs). Copies across splits, and sources that several splits share, let a model be "
        "tested on what it was trained on.</p>",
        *parts,
    )


def _facts_section(found: dict) -> str:
    facts = [(name.capitalize(), words) for name, words in found["thresholds"].items()]
    return markup.section(
        "Where faults begin",
        markup.table((), [[escape(name), escape(words)] for name, words in facts], kind="facts"),
        markup.details("What was inspected", found["about"]),
    )
