"""Scores as a page: the distance over offsets and over time, and both files played in sync."""

from collections.abc import Sequence

import numpy as np

from scav_jax.report import markup
from scav_jax.report.in_sync import (
    POLICY,
    SCRIPT,
    STYLE,
    Shown,
    card,
    curve_html,
    embedded_media,
    line_path,
    player,
    scale_of,
)
from scav_jax.report.markup import escape
from scav_jax.retrieval.synchrony import Synchrony
from scav_jax.score.scored import Scored, signed, verdict

MOST = 20  # pairs of a page: their films lie in it
WIDTH, HEIGHT = 640, 120
OFFSETS_STYLE = """\
.offsets { width: 100%; height: 150px; display: block; background: #f7f9fa; border-radius: 4px; }
.offsets path { fill: none; stroke: #0072b2; stroke-width: 1.8;
  vector-effect: non-scaling-stroke; }
.offsets rect { fill: #009e73; opacity: .2; } .offsets line { stroke: #009e73; stroke-width: 2;
  vector-effect: non-scaling-stroke; } .offsets .zero { stroke: #8c939a; stroke-dasharray: 4 3; }
.wide tbody th { white-space: normal; overflow-wrap: anywhere; min-width: 10em; }
"""


def page(results: Sequence[Scored], rejected: Sequence[dict] = ()) -> str:
    """The whole page as one HTML document; the first `MOST` pairs are played.

    Args:
      results: pairs that were scored.
      rejected: `file` and `reason` of those that could not be.
    """
    header = (
        '<p class="kicker">Synchrony</p><h1>How well the sound fits, and where</h1>'
        '<p class="lead">Picture and sound play with the offset that was found. Space plays and '
        "stops, the arrow keys move, 1 and 2 choose the sound with its offset or as it came. The "
        "upper curve is the distance at each offset (the band is the 95 % interval), the curve "
        "under the sound is the distance over time at the offset: lower fits better.</p>"
    )
    columns = ("file", "offset", "95 %", "score", "sync", "match", "chance", "verdict")
    rows = [
        (
            escape(one.pair.name),
            f"{signed(one.found.offset)} s",
            f"{signed(one.found.low)} to {signed(one.found.high)}",
            *(f"{getattr(one.found, name):.2f}" for name in ("score", "sync", "match")),
            f"{one.found.chance:.3f}",
            verdict(one.found),
        )
        for one in results
    ]
    sections = [markup.section("All", markup.table(columns, rows))]
    if rejected:
        told = [(escape(row["file"]), escape(row["reason"])) for row in rejected]
        sections.append(markup.section("Rejected", markup.table(("file", "reason"), told, words=2)))
    if len(results) > MOST:
        sections.append(markup.note(f"The first {MOST} of {len(results):,} are played below."))
    sections += [markup.section(one.pair.name, _one(one)) for one in results[:MOST]]
    sections.append(f"<script>\n{SCRIPT}</script>")
    return markup.document("Synchrony", header, sections, head=POLICY, style=STYLE + OFFSETS_STYLE)


def _one(scored: Scored) -> str:
    found, pair = scored.found, scored.pair
    picture_s, sound_s = found.spans[0][1], found.spans[1][1]
    total = max(picture_s, sound_s + max(found.offset, 0.0), 0.1)
    clips = [
        Shown(str(file), str(file), 0.0, seconds, "",
              *embedded_media(str(file), 0.0, seconds, (kind,)))
        for file, seconds, kind in (
            (pair.picture, picture_s, "video"), (pair.sound, sound_s, "audio"))
    ]  # fmt: skip
    curve = scored.curve
    over = curve_html(curve, total, scale_of([curve])) if len(curve.values) else ""
    told = f"score {found.score:.2f}, {verdict(found)}"
    cards = [
        card(clips[0], "Picture", "", "", False, "asking"),
        card(clips[1], f"Sound, {signed(found.offset)} s", told, over, True, "", found.offset),
        card(clips[1], "Sound as it came", "", "", False, ""),
    ]
    return _offsets(found) + player(pair.name, total, "".join(cards), "")


def _offsets(found: Synchrony) -> str:
    """The distance over offsets as a picture."""
    there = np.isfinite(found.curve)
    offsets, curve = found.offsets[there], found.curve[there]
    first, last = float(offsets[0]), float(offsets[-1])
    low, high = float(curve.min()), float(curve.max())
    room = 0.08 * (high - low) or 0.5

    def x(seconds: float) -> float:
        return WIDTH * (min(max(seconds, first), last) - first) / max(last - first, 1e-9)

    y = HEIGHT * (high + room - curve) / (high - low + 2 * room)
    path = line_path(np.array([x(one) for one in offsets]), y)
    band = x(found.low), x(found.high)
    place, ends = signed(found.offset), f"{signed(first)} to {signed(last)} s"
    told = f"distance over offsets, {ends}; lowest at {place} s"
    marks = f'<line x1="{x(found.offset):.1f}" x2="{x(found.offset):.1f}" y1="0" y2="{HEIGHT}"/>'
    if first < 0 < last:
        marks += f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="0" y2="{HEIGHT}"/>'
    return (
        f'<svg class="offsets" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'preserveAspectRatio="none" aria-label="{told}"><title>{told}</title>'
        f'<rect x="{band[0]:.1f}" y="0" width="{band[1] - band[0]:.1f}" height="{HEIGHT}"/>'
        f'<path d="{path}"/>{marks}</svg><div class="axis"><span>{signed(first)} s</span>'
        f"<span>offset {place} s ({signed(found.low)} to {signed(found.high)})</span>"
        f"<span>{signed(last)} s</span></div>"
    )
