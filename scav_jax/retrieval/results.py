"""The results of an evaluation as one document, and as a table for a terminal.

The document is what `metrics.json` holds, and what `report` draws:

    format_version, data {path, split, n, sources, ids_sha256, fingerprint, fingerprint_id,
    rendered}, bootstrap, seed, tie_rule, machine, runs [one for each run]

and a run holds `name`, `run`, `config`, `objective`, `trained_with`, `training` (what it has seen),
`parameters` (how many), `distance` {name, options},
`methods` (`method`, `k`, `a2v` and `v2a` of `metrics.summary`, `seconds_per_query`, and a `label`
where the method has a name of its own; "part" is a part of the distance, or a corrected one),
`first_stage` (`k`, `a2v`, `v2a`: recall at k of aggregation), `galleries` (method -> `size`, `a2v`,
`v2a`: recalls in smaller galleries, where they were asked for), `per_class` (method -> class ->
`a2v`, `v2a`), `per_subset` (the same of subsets, where the queries were divided further) and
`seconds` of each stage; where distances were corrected, `hubness` (`bank`, its clips, and `rows`:
`label`, `over`, `a2v` and `v2a` of `metrics.paired_gain`). Recalls are shares in 0..1, times are in
seconds.
"""

from collections.abc import Sequence

from scav_jax.base.names import shown
from scav_jax.metrics import few_queries
from scav_jax.retrieval.hubness import caution

FORMAT_VERSION = 4
BASELINE = "baseline"  # the objective of a row that nobody trained
TRANSDUCTIVE = "Sinkhorn, transductive"  # the label of what no search can do
RENDERED = "Rendered data set of this project; figures are ours."
DIRECTIONS = {"a2v": "A->V", "v2a": "V->A"}


def method_name(method: dict) -> str:
    """`"hybrid, k = 100"`, the method's own label, or the method alone."""
    if "label" in method:
        return method["label"]
    return f"hybrid, k = {method['k']:,}" if method["method"] == "hybrid" else method["method"]


def distance_name(distance: dict) -> str:
    """`"euclidean (resample=visual_to_audio)"`: a distance with its options."""
    options = ", ".join(f"{key}={value}" for key, value in sorted(distance["options"].items()))
    return f"{distance['name']} ({options})" if options else distance["name"]


def main_methods(run: dict) -> list[dict]:
    """The methods without hybrid(1) and hybrid(all), which are aggregation and sequence again."""
    last = max((m["k"] for m in run["methods"] if m["method"] == "sequence"), default=0)
    return [m for m in run["methods"] if m["method"] != "hybrid" or 1 < m["k"] < last]


def searching_methods(run: dict) -> list[dict]:
    """The main methods that a search can have: they look at one query."""
    return [method for method in main_methods(run) if method_name(method) != TRANSDUCTIVE]


def own_method(run: dict) -> dict:
    """The method that a run was trained for."""
    return next(method for method in run["methods"] if method["method"] == run["own_method"])


def unbeaten(results: dict) -> list[str]:
    """A sentence for each trained run that a baseline finds as much as, by the mean of both R@1."""

    def found(method: dict) -> float:
        return sum(method[direction]["recall_at_1"] for direction in DIRECTIONS) / 2

    baselines = [
        (found(method), f"{run['name']}, {method_name(method)}")
        for run in results["runs"]
        if run["objective"] == BASELINE
        for method in main_methods(run)
    ]
    words = []
    for run in results["runs"]:
        best = max((found(method) for method in searching_methods(run)), default=0.0)
        better = max(((share, name) for share, name in baselines if share >= best), default=None)
        if run["objective"] != BASELINE and better is not None:
            words.append(
                f"{run['name']} finds {percent(best)} %, {better[1]} costs nothing and finds "
                f"{percent(better[0])} %: this training was not worth its electricity"
            )
    return words


def percent(share: float) -> str:
    """A share as a percentage with one decimal, without the sign."""
    return f"{100 * share:.1f}"


def recalls(found: dict) -> list[str]:
    """R@1, R@5 and R@10 in percent, of both directions after each other."""
    return [percent(found[d][f"recall_at_{k}"]) for d in DIRECTIONS for k in (1, 5, 10)]


def interval(summary: dict) -> str:
    """The interval of R@1 in percent, or nothing where none was asked for."""
    if "recall_at_1_interval" not in summary:
        return ""
    low, high = summary["recall_at_1_interval"]
    return f"[{percent(low)}, {percent(high)}]"


def table(results: dict) -> str:
    """The results as aligned text, a row for each method of each run; recalls in percent."""
    data = results["data"]
    head = ["run", "retrieval", "N"]
    for arrow in DIRECTIONS.values():
        head += [f"{arrow} R@1", "95 %", "R@5", "R@10", "MedR"]
    rows = [[*head, "ms/query"]]
    for run in results["runs"]:
        for method in main_methods(run):
            cells = [run["name"], method_name(method), f"{method['a2v']['n']:,}"]
            for direction in DIRECTIONS:
                summary = method[direction]
                cells += [percent(summary["recall_at_1"]), interval(summary)]
                cells += [percent(summary[f"recall_at_{k}"]) for k in (5, 10)]
                cells += [f"{summary['median_rank']:g}"]
            rows.append([*cells, f"{1e3 * method['seconds_per_query']:.3g}"])
    lines = aligned(rows) + _galleries(results) + _subsets(results)
    n = data["n"]
    notes = [
        f"{data['path']}, split {data['split']}: N = {n:,} clips, chance R@1 {100 / n:.3g} %, "
        f"sha256 of the ids {data['ids_sha256'][:16]} {data.get('gallery', '')}".rstrip(),
        *(
            f"sequence distance of {run['name']}: {distance_name(run['distance'])}"
            for run in results["runs"]
            if any(method["method"] == "sequence" for method in run["methods"])
        ),
        *(
            f"{run['name']}: {run['parameters']:,} parameters, has seen {run['training']}"
            for run in results["runs"]
        ),
    ]
    notes += [words for run in results["runs"] for words in hubness_words(run)]
    notes += [f"CAUTION: {word}" for word in unbeaten(results)]
    notes += few_clips(n)
    if data["rendered"]:
        notes.append(RENDERED)
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", *map(shown, notes)])


def few_clips(clips: int, what: str = "R@1") -> list[str]:
    """A line below a table where so few clips tell little of a share; none where they do."""
    word = few_queries(clips, what)
    return [f"CAUTION: {word}"] if word else []


def _galleries(results: dict) -> list[str]:
    """R@1 in smaller galleries; nothing where none was asked for."""
    heads = [f"{arrow} R@{k}" for arrow in DIRECTIONS.values() for k in (1, 5, 10)]
    rows = [["run", "retrieval", "gallery", *heads]]
    for run in results["runs"]:
        for method, sizes in run["galleries"].items():
            for found in sizes:
                rows.append([run["name"], method, f"{found['size']:,}", *recalls(found)])
    return ["", *aligned(rows)] if len(rows) > 1 else []


def hubness_words(run: dict) -> list[str]:
    """What correcting distances has gained, a sentence for each way; none where none was asked."""
    if "hubness" not in run:
        return []
    words = []
    for row in run["hubness"]["rows"]:
        told = []
        for direction, arrow in DIRECTIONS.items():
            bounds = [f"{100 * bound:+.1f}" for bound in row[direction].get("interval", ())]
            between = f" [{', '.join(bounds)}]" if bounds else ""
            told.append(f"{arrow} {100 * row[direction]['gain']:+.1f}{between}")
        words.append(
            f"{run['name']}, {row['label']}: R@1 {', '.join(told)} points over {row['over']} "
            "(paired 95 %)"
        )
        if row["label"] == TRANSDUCTIVE:
            words[-1] += "; it looks at all queries at once, which no search can do"
    if word := caution(run["hubness"]["bank"]):
        words.append(word)
    return words


def _subsets(results: dict) -> list[str]:
    """Each run's own method on subsets of the queries; nothing where there are none."""
    heads = [head for arrow in DIRECTIONS.values() for head in (f"{arrow} R@1", "MedR")]
    rows = [["run", "queries", "N", *heads]]
    for run in results["runs"]:
        for name, found in run["per_subset"].get(run["own_method"], {}).items():
            cells = [run["name"], name, f"{found['a2v']['n']:,}"]
            rows.append(cells + [cell for d in DIRECTIONS for cell in figures_of(found[d])])
    return ["", *aligned(rows)] if len(rows) > 1 else []


def figures_of(summary: dict) -> list[str]:
    """R@1 in percent, and the median rank."""
    return [percent(summary["recall_at_1"]), f"{summary['median_rank']:,g}"]


def aligned(rows: Sequence[Sequence[str]], words: int = 2) -> list[str]:
    """Columns of equal width: the first ones are words, the others figures; a row is a line."""
    rows = [[shown(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column < words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
