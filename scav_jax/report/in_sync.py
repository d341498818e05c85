"""Clips that play in sync, as HTML: cards with their curves, the transport, its style and script.

Media elements drift and load at their own pace: a clock of our own leads, and they are moved when
they are off by more than can be heard. All works from the keyboard: the space bar plays and stops,
arrows move in time, figures choose what is heard.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from scav_jax.extract.containers.opening import Unusable
from scav_jax.report.markup import escape
from scav_jax.report.match import Curve
from scav_jax.report.playable import MAX_SECONDS, data_uri, make_playable

CURVE_WIDTH, CURVE_HEIGHT = 320, 56


@dataclass(frozen=True)
class Shown:
    """A clip as it is shown.

    Attributes:
      id, source, start, end, label: which clip, in seconds of its file.
      kind: "video" or "audio"; "" where it cannot be played.
      address: a `data:` address or a path on the same server; or why it cannot be played.
      still: its first picture as a `data:` address, which is there before the clip is; or "".
    """

    id: str
    source: str
    start: float
    end: float
    label: str
    kind: str
    address: str
    still: str = ""

    @property
    def seconds(self) -> float:
        return max(self.end - self.start, 0.0)


# Where clips play: (source, start, end, kinds) -> (kind, address, still), as of `Shown`.
Address = Callable[[str, float, float, tuple[str, ...]], tuple[str, str, str]]


def embedded_media(
    source: str, start: float, end: float, kinds: tuple[str, ...]
) -> tuple[str, str, str]:
    """A clip as a `data:` address and its first picture, or why there is none."""
    try:
        made = make_playable(Path(source), start, end, kinds=kinds)
    except Unusable as unusable:
        return "", unusable.reason, ""
    return made.kind, data_uri(made.type, made.content), made.still


def player(
    name: str, total: float, cards: str, below: str, above: str = "", columns: str = ""
) -> str:
    """Cards (HTML) that play in sync for `total` seconds; `below` and `above` are HTML too."""
    return (
        f'<div class="search" tabindex="0" role="group" aria-label="{escape(name)}" '
        f'data-seconds="{total:.3f}">\n<div class="transport">'
        '<button type="button" class="play" aria-pressed="false">&#9654; Play</button>'
        f'<input type="range" min="0" max="{total:.3f}" step="0.05" value="0" '
        'aria-label="time in seconds"><output></output></div>\n'
        f'{above}<div class="found {columns}">{cards}</div>\n{below}</div>'
    )


def scale_of(curves: Sequence[Curve]) -> tuple[float, float]:
    """The lowest and the highest distance of all curves, with some room."""
    if not curves:
        return 0.0, 1.0
    low = min(float(curve.values.min()) for curve in curves)
    high = max(float(curve.values.max()) for curve in curves)
    room = 0.08 * (high - low) or 0.5
    return max(low - room, 0.0), high + room


def card(
    clip: Shown,
    title: str,
    score: str,
    curve: str,
    heard: bool,
    kind: str,
    offset: float = 0.0,
) -> str:
    """A clip and what is known of it; it begins `offset` seconds after the page's clock."""
    cut = f"its first {MAX_SECONDS:.0f} s play" if clip.kind and clip.seconds > MAX_SECONDS else ""
    facts = [clip.label, f"{clip.start:.2f} to {clip.end:.2f} s", cut, score]
    told = escape(" · ".join(fact for fact in facts if fact))
    return (
        f'<div class="hit {kind}" data-id="{escape(clip.id)}"><h3><span>{title}</span>'
        f'<button type="button" class="hear" aria-pressed="{str(heard).lower()}" '
        f'aria-label="hear {escape(clip.id)}">Hear</button></h3>'
        f"{_media(clip, not heard, offset)}"
        f'<div class="id" title="{escape(clip.source)}">{_breakable(clip.id)}</div>'
        f'<div class="small">{told}</div><div class="match">{curve}</div></div>'
    )


def _breakable(name: str) -> str:
    return escape(name).replace("_", "_<wbr>").replace("/", "/<wbr>")


def _media(clip: Shown, muted: bool, offset: float) -> str:
    if not clip.kind:
        return f'<div class="nothing">cannot be played: {escape(clip.address)}</div>'
    address = escape(clip.address)
    silent = " muted" if muted else ""
    silent += f' data-offset="{offset:.3f}"' if offset else ""
    if clip.kind == "video":
        if clip.still:
            silent += f' poster="{escape(clip.still)}"'
        name = escape(f"picture of {clip.id}")
        return (
            f'<video src="{address}" preload="auto" playsinline aria-label="{name}"{silent}>'
            "</video>"
        )
    return f'<audio src="{address}" preload="auto"{silent}></audio><div class="sound">sound</div>'


def curve_html(curve: Curve, total: float, scale: tuple[float, float]) -> str:
    """The match over time as a picture; all results of a search have one scale."""
    low, high = scale
    mean = float(np.mean(curve.values))
    x = CURVE_WIDTH * np.asarray(curve.times) / total
    y, level = (CURVE_HEIGHT * (high - v) / (high - low) for v in (curve.values, mean))
    line = line_path(x, y)
    best = float(curve.times[int(np.argmin(curve.values))])
    told = f"distance over time: mean {mean:.3g}, closest at {best:.1f} s"
    return (
        f'<svg class="curve" viewBox="0 0 {CURVE_WIDTH} {CURVE_HEIGHT}" role="img" '
        f'preserveAspectRatio="none" aria-label="{told}"><title>{told}</title>'
        f'<path class="area" d="{line}L{x[-1]:.1f} {CURVE_HEIGHT}L{x[0]:.1f} {CURVE_HEIGHT}Z"/>'
        f'<path class="line" d="{line}"/>'
        f'<line class="mean" x1="0" x2="{CURVE_WIDTH}" y1="{level:.1f}" y2="{level:.1f}"/>'
        f'<line class="now" x1="0" x2="0" y1="0" y2="{CURVE_HEIGHT}"/></svg>'
        f'<div class="axis"><span>0 s</span><span>mean {mean:.3g}</span>'
        f"<span>{total:.1f} s</span></div>"
    )


def line_path(x: Float[np.ndarray, " T"], y: Float[np.ndarray, " T"]) -> str:
    points = (f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))
    return "M" + "L".join(points)


STYLE = """\
.search { outline-offset: 4px; }
.transport { display: flex; gap: 12px; align-items: center; margin: 4px 0 16px; position: sticky;
  top: 0; background: var(--ground); padding: 8px 0; z-index: 1; }
.transport button, .hear { font: inherit; font-size: 14px; border: 1px solid #b8bec4;
  background: #fff; border-radius: 6px; padding: 5px 14px; cursor: pointer; color: var(--ink); }
.transport .play { min-width: 88px; font-weight: 600; }
.transport input { flex: 1; min-width: 80px; accent-color: var(--sequence); }
.transport output { font-variant-numeric: tabular-nums; font-size: 14px; min-width: 104px;
  text-align: right; color: var(--soft); }
button:focus-visible, input:focus-visible, .search:focus-visible { outline: 3px solid #0072b2;
  outline-offset: 2px; }
.found { display: grid; grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); gap: 14px; }
@media (min-width: 1000px) { .wide3 { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  .wide4 { grid-template-columns: repeat(4, minmax(0, 1fr)); }
  .wide5 { grid-template-columns: repeat(5, minmax(0, 1fr)); } }
@media (min-width: 640px) and (max-width: 999px) {
  .middle2 { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .middle3 { grid-template-columns: repeat(3, minmax(0, 1fr)); } }
.query { margin-bottom: 14px; } .told { margin: 14px 0 0; }
@media (min-width: 640px) { .query .hit { display: grid; gap: 0 18px; align-content: start;
  grid-template-columns: minmax(0, 310px) minmax(0, 1fr); grid-template-rows: repeat(3, auto) 1fr; }
  .query .hit > video, .query .hit > .sound, .query .hit > .nothing { grid-area: 1 / 1 / 5 / 2; }
  .query .hit > :not(video, audio, .sound, .nothing) { grid-column: 2; } }
@media (max-width: 639px) { .found { grid-template-columns: minmax(0, 1fr); } }
.hit { border: 1px solid var(--line); border-radius: 8px; padding: 10px; min-width: 0; }
.hit.asking { background: #eef1f4; } .hit.heard { border-color: #0072b2;
  box-shadow: 0 0 0 1px #0072b2; }
.hit h3 { margin: 0 0 6px; font-size: 14px; display: flex; justify-content: space-between;
  gap: 8px; align-items: center; }
.hit .hear { padding: 2px 10px; font-size: 12.5px; white-space: nowrap; }
.hit .hear[aria-pressed=true] { background: #0072b2; border-color: #0072b2; color: #fff; }
.hit video { width: 100%; aspect-ratio: 16 / 9; background: #15191d; border-radius: 5px;
  display: block; object-fit: contain; }
.hit .sound, .hit .nothing { aspect-ratio: 16 / 9; border-radius: 5px; background: #e4e9ee;
  display: grid; place-items: center; color: var(--soft); font-size: 14px; padding: 8px;
  margin: 0; text-align: center; overflow-wrap: anywhere; }
.hit .id { font-weight: 600; font-size: 12.5px; overflow-wrap: anywhere; line-height: 1.35;
  margin-top: 7px; }
.hit .small { font-size: 12.5px; }
.curve { width: 100%; height: 64px; display: block; margin-top: 6px; cursor: crosshair;
  background: #f7f9fa; border-radius: 4px; }
.curve .area { fill: #0072b2; opacity: .18; } .curve .line { fill: none; stroke: #0072b2;
  stroke-width: 1.6; vector-effect: non-scaling-stroke; }
.curve .mean { stroke: #8c939a; stroke-dasharray: 4 3; vector-effect: non-scaling-stroke; }
.curve .now { stroke: #d55e00; stroke-width: 2; vector-effect: non-scaling-stroke; }
.axis { display: flex; justify-content: space-between; color: var(--soft); font-size: 11.5px; }
"""

SCRIPT = """\
(function () {
  "use strict";
  var OFF = 0.12;
  function setup(root) {
    if (root.dataset.ready) { return; }
    root.dataset.ready = "1";
    var clips = Array.prototype.slice.call(root.querySelectorAll("video, audio"));
    var hear = Array.prototype.slice.call(root.querySelectorAll(".hear"));
    var play = root.querySelector(".play"), slider = root.querySelector("input[type=range]");
    var told = root.querySelector("output"), total = Number(root.dataset.seconds);
    var now = 0, since = 0, running = false;
    function show() {
      slider.value = now;
      told.textContent = now.toFixed(1) + " / " + total.toFixed(1) + " s";
      slider.setAttribute("aria-valuetext", told.textContent);
      root.querySelectorAll(".now").forEach(function (mark) {
        var x = 320 * Math.min(now / total, 1);
        mark.setAttribute("x1", x); mark.setAttribute("x2", x);
      });
    }
    function follow(clip) {
      var length = clip.duration || Infinity, at = now - Number(clip.dataset.offset || 0);
      if (at < 0 || at >= length) { if (!clip.paused) { clip.pause(); } return; }
      if (Math.abs(clip.currentTime - at) > (running ? OFF : 0.01)) { clip.currentTime = at; }
      if (running && clip.paused) {
        var started = clip.play();
        if (started) { started.catch(function () {}); }
      }
      if (!running && !clip.paused) { clip.pause(); }
    }
    function step(stamp) {
      if (!running) { return; }
      now += Math.min((stamp - since) / 1000, 0.5);
      since = stamp;
      if (now >= total) { now = total; stop(); return; }
      clips.forEach(follow); show();
      window.requestAnimationFrame(step);
    }
    function start() {
      if (now >= total - 0.05) { now = 0; }
      document.querySelectorAll(".search").forEach(function (other) {
        if (other !== root && other.scavStop) { other.scavStop(); }
      });
      running = true; since = performance.now();
      play.textContent = "\\u25A0 Stop"; play.setAttribute("aria-pressed", "true");
      clips.forEach(follow); window.requestAnimationFrame(step);
    }
    function stop() {
      running = false;
      play.textContent = "\\u25B6 Play"; play.setAttribute("aria-pressed", "false");
      clips.forEach(follow); show();
    }
    function seek(seconds) {
      now = Math.max(0, Math.min(total, seconds)); clips.forEach(follow); show();
    }
    function choose(button) {
      hear.forEach(function (other) {
        var chosen = other === button, card = other.closest(".hit");
        other.setAttribute("aria-pressed", String(chosen));
        card.classList.toggle("heard", chosen);
        card.querySelectorAll("video, audio").forEach(function (clip) { clip.muted = !chosen; });
      });
    }
    root.scavStop = stop; root.scavShow = show;
    play.addEventListener("click", function () { if (running) { stop(); } else { start(); } });
    slider.addEventListener("input", function () { seek(Number(slider.value)); });
    hear.forEach(function (button) {
      button.addEventListener("click", function () { choose(button); });
    });
    root.addEventListener("click", function (event) {
      var curve = event.target.closest(".curve");
      if (!curve) { return; }
      var box = curve.getBoundingClientRect();
      seek(total * (event.clientX - box.left) / box.width);
    });
    root.addEventListener("keydown", function (event) {
      var field = event.target.tagName;
      if (event.ctrlKey || event.metaKey || event.altKey) { return; }
      if (event.key === " " && field !== "BUTTON") {
        event.preventDefault(); if (running) { stop(); } else { start(); }
      } else if (/^[0-9]$/.test(event.key) && hear[Number(event.key)]) {
        choose(hear[Number(event.key)]);
      } else if (field !== "INPUT" && event.key === "ArrowRight") { seek(now + 0.5);
      } else if (field !== "INPUT" && event.key === "ArrowLeft") { seek(now - 0.5); }
    });
    var pressed = root.querySelector(".hear[aria-pressed=true]") || hear[0];
    if (pressed) { choose(pressed); }
    show();
  }
  window.scavSetup = function () { document.querySelectorAll(".search").forEach(setup); };
  window.scavSetup();
}());
"""
POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
    "media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
)
