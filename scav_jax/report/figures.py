"""The figures of a report, as self-contained image addresses (`data:` URIs), and thumbnails.

One colour and marker for each retrieval method, one for each run, chosen to be told apart without
colour vision as well (Okabe and Ito's palette; markers and dashes repeat what colours say).
"""

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from scav_jax.extract.containers.opening import Unusable
from scav_jax.extract.decoding.measured import picture_ratio
from scav_jax.extract.decoding.media import Reader
from scav_jax.report.playable import data_uri, jpeg

COLOURS = {
    "aggregation": "#d55e00",
    "hybrid": "#009e73",
    "sequence": "#0072b2",
    "part": "#7f7f7f",
}
MARKERS = {"aggregation": "o", "hybrid": "s", "sequence": "D", "part": "^"}
RUN_COLOURS = ("#1b4f72", "#cc79a7", "#56b4e9", "#8a7d1f", "#7f7f7f")
DIRECTION_NAMES = {"a2v": "audio → video", "v2a": "video → audio"}
DIRECTION_STYLES = {"a2v": ("-", "o"), "v2a": ("--", "s")}
GREY = "#8c939a"
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#b8bec4",
    "axes.labelcolor": "#30363c",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e6e9ec",
    "xtick.color": "#565d64",
    "ytick.color": "#565d64",
    "legend.frameon": False,
    "svg.hashsalt": "scav_jax",  # the same figure has the same bytes
}
# A training curve: what the panel is called, and the keys that a line of metrics.jsonl may have.
CURVES = (
    ("Loss", ("loss",), "train"),
    ("Temperature", ("temperature",), "train"),
    ("Spread of the distances in a batch", ("distance_spread",), "train"),
    (
        "Validation R@1, %",
        ("sequence_a2v", "sequence_v2a", "aggregation_a2v", "aggregation_v2a"),
        "validation",
    ),
)


def image(figure: Figure) -> str:
    """A figure as the address of an SVG image."""
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return data_uri("image/svg+xml", file.getvalue())


def _panels(columns: int, width: float, height: float, **options) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False, **options)[0])


# ---- recall ---------------------------------------------------------------------------------


def recall_by_method(rows: Sequence[tuple[str, dict]]) -> str:
    """R@1 with its interval, R@5 and R@10, a row for each method and a panel for each direction.

    Args:
      rows: (name, method) with a method's `method`, `a2v` and `v2a` as in `metrics.json`.
    """
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(2, 10, 0.95 + 0.42 * len(rows), sharey=True, sharex=True)
        best = max(method[d]["recall_at_10"] for _, method in rows for d in DIRECTION_NAMES)
        highest = min(100, max(5, 120 * best))
        for panel, direction in zip(panels, DIRECTION_NAMES, strict=True):
            panel.set_xlim(-0.02 * highest, 1.04 * highest)
            for y, (_, method) in enumerate(rows):
                _recall_row(panel, y, method["method"], method[direction])
            panel.set_title(f"{DIRECTION_NAMES[direction]}", pad=14)
            panel.grid(axis="x")
            panel.set_xlabel("recall, %")
            panel.tick_params(left=False)
        panels[0].set_yticks(range(len(rows)), [name for name, _ in rows])
        panels[0].set_ylim(len(rows) - 0.3, -0.6)
    return image(figure)


def _recall_row(panel: Axes, y: int, method: str, summary: dict) -> None:
    colour, marker = COLOURS[method], MARKERS[method]
    values = [100 * summary[f"recall_at_{k}"] for k in (1, 5, 10)]
    panel.plot(values, [y] * 3, color=colour, alpha=0.25, lw=2, solid_capstyle="round")
    panel.scatter(values[1:], [y, y], s=30, marker=marker, fc="white", ec=colour, lw=1, zorder=3)
    if y == 0:
        five, ten = values[1:]
        labels = (
            [("@5", five), ("@10", ten)]
            if ten - five > 0.07 * panel.get_xlim()[1]
            else [("@5, @10", ten)]
        )
        for label, value in labels:
            _above(panel, label, value, y, color=GREY)
    if "recall_at_1_interval" in summary:
        low, high = (100 * end for end in summary["recall_at_1_interval"])
        panel.plot([low, high], [y, y], color=colour, lw=5, alpha=0.55, solid_capstyle="butt")
    panel.scatter(values[:1], [y], s=46, marker=marker, color=colour, zorder=4)
    _above(panel, f"{values[0]:.1f}", values[0], y, -15, color=colour, fontweight="bold")


def _above(panel: Axes, text: str, x: float, y: float, points: float = 7, **style) -> None:
    """Small words over (or under) a point."""
    style = {"fontsize": 8, "ha": "center", "textcoords": "offset points"} | style
    panel.annotate(text, (x, y), (0, points), **style)


def k_sweep(methods: Sequence[dict], first_stage: Sequence[dict]) -> str:
    """R@1 and time of hybrid(k) against k, beside what its first stage lets through.

    Args:
      methods: the hybrid methods as in `metrics.json`, by k.
      first_stage: `k`, `a2v`, `v2a`: recall at k of aggregation-based retrieval.
    """
    ks = [method["k"] for method in methods]
    with matplotlib.rc_context(STYLE):
        figure, (recall, seconds) = _panels(2, 10, 3.9, width_ratios=(1.35, 1))
        for direction in DIRECTION_STYLES:
            found = [100 * method[direction]["recall_at_1"] for method in methods]
            passed = [100 * stage[direction] for stage in first_stage]
            open_markers = {"ms": 4, "lw": 1.2, "mfc": "white"}
            _line(recall, direction, ks, passed, GREY, "first stage, recall@k", **open_markers)
            _line(recall, direction, ks, found, COLOURS["hybrid"], "hybrid(k), R@1", ms=5.5, lw=2)
        recall.set_title("Recall, %")
        recall.set_ylim(-3, 104)
        figure.legend(loc="outside lower left", ncols=2, fontsize=8)
        times = [1e3 * method["seconds_per_query"] for method in methods]
        seconds.plot(ks, times, color=COLOURS["hybrid"], marker="o", ms=5.5, lw=2)
        for k, value in zip(ks, times, strict=True):
            _above(seconds, f"{value:.3g}", k, value, color="#30363c")
        seconds.set_title("Time for one query, ms")
        seconds.set_yscale("log")
        seconds.margins(x=0.1, y=0.2)
        seconds.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        seconds.yaxis.set_major_locator(
            LogLocator(subs=(1, 2, 5) if max(times) < 20 * min(times) else (1,))
        )
        seconds.yaxis.set_minor_locator(NullLocator())
        for panel in (recall, seconds):
            panel.set_xscale("log")
            crowded = [a for a, b in itertools.pairwise(ks) if b < 1.6 * a]
            panel.set_xticks(ks, ["" if k in crowded else f"{k:,}" for k in ks])
            panel.xaxis.set_minor_locator(NullLocator())
            panel.set_xlabel("k: candidates that the second stage orders")
            panel.grid()
    return image(figure)


def _line(panel: Axes, direction: str, x, y, colour: str, what: str, **style) -> None:
    """A line in the style of a direction, its markers filled in one of them."""
    dashes, marker = DIRECTION_STYLES[direction]
    face = colour if dashes == "-" else "white"
    style = {"mfc": face, "label": f"{what}, {DIRECTION_NAMES[direction]}"} | style
    panel.plot(x, y, dashes, color=colour, marker=marker, **style)


def gallery_curve(galleries: dict[str, Sequence[dict]]) -> str:
    """R@1 against the size of the gallery, by method and direction, as in `metrics.json`."""
    with matplotlib.rc_context(STYLE):
        figure, (panel,) = _panels(1, 7, 3.6)
        for method, sizes in galleries.items():
            for direction in DIRECTION_STYLES:
                x = [found["size"] for found in sizes]
                y = [100 * found[direction]["recall_at_1"] for found in sizes]
                _line(panel, direction, x, y, COLOURS[method], method, ms=5)
        panel.set_title("R@1, %")
        panel.set_xscale("log")
        panel.set_ylim(-3, 104)
        ticks = [found["size"] for found in next(iter(galleries.values()))]
        panel.set_xticks(ticks, [f"{size:,}" for size in ticks])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel("clips in the gallery")
        panel.grid()
        figure.legend(loc="outside lower left", ncols=2, fontsize=8)
    return image(figure)


# ---- training -------------------------------------------------------------------------------


def training_curves(histories: Sequence[tuple[str, Sequence[dict]]]) -> str | None:
    """Loss, temperature, spread and validation recall by step; None where nothing was logged.

    Args:
      histories: (name of the run, the lines of its metrics.jsonl).
    """
    drawn = [curve for curve in CURVES if any(_points(lines, *curve[1:]) for _, lines in histories)]
    if not drawn:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 2.6 * -(-len(drawn) // 2)), layout="constrained")
        panels = figure.subplots(-(-len(drawn) // 2), 2, squeeze=False).ravel()
        for panel, (title, keys, kind) in zip(panels, drawn, strict=False):
            for number, (name, lines) in enumerate(histories):
                _curves(panel, _points(lines, keys, kind), name, number, len(histories) > 1)
            panel.set_title(title)
            panel.set_xlabel("step")
            panel.grid()
            if len(histories) > 1 or kind == "validation":
                panel.legend(fontsize=7.5)
        for panel in panels[len(drawn) :]:
            panel.set_visible(False)
    return image(figure)


def _points(lines: Sequence[dict], keys: Sequence[str], kind: str) -> dict[str, np.ndarray]:
    """`key -> [points, 2]` of step and value, for the keys that were logged."""
    logged = {
        key: [(line["step"], line[key]) for line in lines if line["kind"] == kind and key in line]
        for key in keys
    }
    return {key: np.asarray(points, float) for key, points in logged.items() if points}


def _curves(panel: Axes, curves: dict[str, np.ndarray], run: str, number: int, several: bool):
    """Draws the curves of one run; of several runs, recalls as the mean of both directions."""
    for key, points in curves.items():
        method, _, direction = key.rpartition("_")
        if direction not in DIRECTION_STYLES:
            panel.plot(*points.T, color=RUN_COLOURS[number % len(RUN_COLOURS)], lw=1.5, label=run)
            continue
        dashes, marker = DIRECTION_STYLES[direction]
        label = f"{method}, {DIRECTION_NAMES[direction]}"
        if several:
            if direction == "v2a" or len(points) != len(curves.get(f"{method}_v2a", ())):
                continue
            points = (points + curves[f"{method}_v2a"]) / 2
            dashes, marker = ("-", "--", ":", "-.")[number % 4], "osD^v"[number % 5]
            label = f"{run}, {method}"
        panel.plot(
            points[:, 0],
            100 * points[:, 1],
            dashes,
            color=COLOURS[method],
            marker=marker,
            ms=3.5,
            lw=1.4,
            label=label,
        )


# ---- matrices -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matrices:
    """D of some clips, and its z-scores over rows and over columns.

    Attributes:
      distances: `[n, n]`, D[visual, audio].
      row_scores: z-scored over each row (video -> audio).
      column_scores: z-scored over each column (audio -> video).
      sources: the video that each clip is from, equal ones side by side: lines part them.
    """

    distances: Float[np.ndarray, "n n"]
    row_scores: Float[np.ndarray, "n n"]
    column_scores: Float[np.ndarray, "n n"]
    sources: list[str]


def distance_matrices(found: Matrices) -> str:
    """All three side by side."""
    sources, scores = found.sources, (found.row_scores, found.column_scores)
    borders = [i for i in range(1, len(sources)) if sources[i] != sources[i - 1]]
    limit = float(max(*(np.abs(matrix).max() for matrix in scores), 1e-9))
    titles = ("D", "z-scored by row (video → audio)", "z-scored by column (audio → video)")
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(3, 10, 3.75)
        matrices = (found.distances, *scores)
        for panel, matrix, title in zip(panels, matrices, titles, strict=True):
            raw = panel is panels[0]
            scale = {"cmap": "cividis"} if raw else {"cmap": "PuOr", "vmin": -limit, "vmax": limit}
            shown = panel.imshow(matrix, interpolation="nearest", **scale)
            for border in borders if len(borders) < len(sources) - 1 else ():
                panel.axhline(border - 0.5, color="white", lw=0.8)
                panel.axvline(border - 0.5, color="white", lw=0.8)
            panel.set_title(title, fontsize=9.5)
            panel.set_xticks([])
            panel.set_yticks([])
            panel.set_xlabel("audio of clip")
            bar = figure.colorbar(shown, ax=panel, location="bottom", shrink=0.85, pad=0.03)
            bar.outline.set_visible(False)
        panels[0].set_ylabel("video of clip")
    return image(figure)


@dataclass(frozen=True)
class Alignment:
    """One pair, step by step.

    Attributes:
      title: which pair, and its distance.
      costs: `[N, M]`, the squared difference of visual step n and audio step m, mean over channels.
      weights: `[N, M]`, how much the distance compares them.
      path: `[L, 2]`, (visual, audio) steps of one way through, drawn as a line; or None.
    """

    title: str
    costs: Float[np.ndarray, "N M"]
    weights: Float[np.ndarray, "N M"]
    path: Int[np.ndarray, "L 2"] | None = None


def alignments(pairs: Sequence[Alignment]) -> str:
    """The steps that a distance compares, over the cost of comparing them."""
    low = min(float(pair.costs.min()) for pair in pairs)
    high = max(float(pair.costs.max()) for pair in pairs)
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(len(pairs), min(5 * len(pairs), 12), 4.1, sharey=True)
        for panel, pair in zip(panels, pairs, strict=True):
            shown = panel.imshow(
                pair.costs, cmap="cividis", vmin=low, vmax=high, aspect="auto", origin="lower"
            )
            largest = float(pair.weights.max()) or 1.0
            visual, audio = np.nonzero(pair.weights > 0.05 * largest)
            panel.scatter(
                audio,
                visual,
                s=42 * pair.weights[visual, audio] / largest,
                c="#ffffff",
                edgecolors="#d55e00",
                linewidths=0.9,
            )
            if pair.path is not None:
                panel.plot(pair.path[:, 1], pair.path[:, 0], color="#d55e00", lw=1.4)
            panel.set_title(pair.title, fontsize=9.5)
            panel.set_xlabel("audio step")
        panels[0].set_ylabel("visual step")
        figure.colorbar(shown, ax=panels, shrink=0.8, pad=0.015).outline.set_visible(False)
    return image(figure)


@dataclass(frozen=True)
class Resampled:
    """One pair on one grid: what the interpolated Euclidean distance compares.

    Attributes:
      visual, audio: `[T, c]`, some channels of both latents at the same steps.
      differences: what is compared -> `[T]`, squared difference of each step, mean over channels.
      moved: "visual" or "audio", which of them was resampled.
    """

    visual: Float[np.ndarray, "T c"]
    audio: Float[np.ndarray, "T c"]
    differences: dict[str, Float[np.ndarray, " T"]]
    moved: str = "visual"


def resampled_pair(pair: Resampled) -> str:
    """Both latents on one grid, and how far they differ from step to step."""
    limit = float(max(np.abs(pair.visual).max(), np.abs(pair.audio).max(), 1e-9))
    scale = {"cmap": "PuOr", "vmin": -limit, "vmax": limit, "aspect": "auto"}
    with matplotlib.rc_context(STYLE):
        figure, (*maps, curve) = _panels(3, 11, 3.3)
        streams = (("visual", pair.visual), ("audio", pair.audio))
        for panel, (name, values) in zip(maps, streams, strict=True):
            shown = panel.imshow(values.T, interpolation="nearest", **scale)
            panel.set_title(f"{name}{', resampled' * (name == pair.moved)}", fontsize=9.5)
            panel.set_xlabel("step")
            panel.set_yticks([])
        maps[0].set_ylabel("channel")
        figure.colorbar(shown, ax=maps, shrink=0.8, pad=0.015).outline.set_visible(False)
        colours = (COLOURS["sequence"], COLOURS["aggregation"])
        lines = zip(pair.differences.items(), colours, ("-", "--"), strict=False)
        for (label, values), colour, dashes in lines:
            curve.plot(np.arange(len(values)), values, dashes, color=colour, label=label)
        curve.set_title("squared difference of a step", fontsize=9.5)
        curve.set_ylim(bottom=0)
        curve.grid(axis="y")
        curve.set_xlabel("step")
        curve.legend()
    return image(figure)


# ---- clips ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thumbnail:
    """What a clip looks and sounds like, small.

    Attributes:
      picture: the address of its first frame.
      envelope: `[bins]` in [0, 1], how loud it is over time, of the loudest moment.
    """

    picture: str
    envelope: Float[np.ndarray, " bins"]


def thumbnail(
    video: Path, start: float, end: float, *, height: int = 144, bins: int = 96
) -> Thumbnail | str:
    """A clip's first frame and loudness from the source video, or why there is none."""
    try:
        width = max(2, 2 * round(height * picture_ratio(video) / 2))
        with Reader(video, (width, height)) as reader:
            media = reader.cut(start, end)
    except Unusable as unusable:
        return f"{video.name}: {unusable.reason}"
    power = np.square(media.waveform)
    edges = np.linspace(0, len(power), bins + 1).astype(int)[:-1]
    loudness = np.sqrt(np.add.reduceat(power, edges)) if len(power) >= bins else np.zeros(bins)
    picture = jpeg(media.frames[0], quality=82)
    return Thumbnail(picture, loudness / max(float(loudness.max()), 1e-9))
