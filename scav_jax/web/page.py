"""What the browser shows: one page, its script and its style, all from this server."""

import json

from scav_jax.index.rows import FILTERED
from scav_jax.report import in_sync, markup, search_page

_BODY = (
    """\
<section aria-label="query">
<form id="form">
<label id="drop" for="file"><b>Drop a sound or a video here</b><span>or choose a file</span>
<span id="name" class="small"></span></label>
<input id="file" type="file" accept="audio/*,video/*,.mkv,.avi,.flac,.ogg">
<div class="options">
<label>Results <input id="k" type="number" min="1" max="50" value="9"></label>
<label>From second <input id="start" type="number" min="0" step="0.5" value="0"></label>
<label class="how">Retrieval <select id="retrieval"><option value="exact">by sequence</option>
<option value="hybrid:100">hybrid, k = 100</option><option value="aggregation">by mean</option>
</select></label>
<label class="where">Filter <input id="where" type="text" autocomplete="off" spellcheck="false"
placeholder="label = 'dog' AND start &lt; 60" aria-describedby="columns"></label>
<button id="go" type="submit" disabled>Search</button>
</div>
<p id="columns" class="small">A filter is a condition on """
    + ", ".join(FILTERED)
    + """.</p>
</form>
<div class="state"><p id="status" role="status"></p>
<progress id="progress" max="1" value="0" aria-label="progress of the search" hidden></progress>
</div>
<p id="error" role="alert" class="note" hidden></p>
</section>
<section id="results" aria-labelledby="title" hidden><h2 id="title"></h2>
<p id="note" class="small"></p>
<div id="tabs" role="tablist" aria-label="what asks" hidden>
<button type="button" role="tab" id="tab-a2v" data-direction="a2v" aria-controls="found">\
Sound finds videos</button>
<button type="button" role="tab" id="tab-v2a" data-direction="v2a" aria-controls="found">\
Picture finds sounds</button>
<button type="button" role="tab" id="tab-both" data-direction="both" aria-controls="found">\
Both together</button>
</div>
<div id="found"></div>
<p class="small"><a id="link" href="/"></a></p></section>
<script src="/app.js"></script>"""
)

STYLE = (
    markup.STYLE
    + in_sync.STYLE
    + """\
#drop { display: flex; flex-direction: column; gap: 4px; align-items: center; cursor: pointer;
  border: 2px dashed #b8bec4; border-radius: 10px; padding: 30px 16px; text-align: center; }
#drop.over { border-color: #0072b2; background: #eaf3f9; }
#drop:has(+ #file:focus-visible) { outline: 3px solid #0072b2; outline-offset: 2px; }
#name { overflow-wrap: anywhere; } form { position: relative; }
#file { position: absolute; opacity: 0; width: 1px; height: 1px; }
.options { display: grid; gap: 14px 16px; align-items: end; margin-top: 16px;
  grid-template-columns: 90px 110px 160px minmax(150px, 1fr) 110px; }
.options label { font-size: 13px; color: var(--soft); display: grid; gap: 3px; min-width: 0; }
.options select, .options input, #go { font: inherit; font-size: 15px; height: 38px; width: 100%;
  min-width: 0; padding: 0 10px; border: 1px solid #7d868f; border-radius: 6px; background: #fff;
  color: var(--ink); }
#go { font-weight: 600; border: 0; background: #0072b2; color: #fff; cursor: pointer; }
#go:disabled { background: #e4e9ee; color: var(--soft); cursor: default; }
#columns { margin: 6px 0 0; }
.state { display: flex; gap: 14px; align-items: center; min-height: 1.5em; margin-top: 12px; }
#status { margin: 0; color: var(--soft); } #progress { flex: 1; max-width: 300px; height: 10px;
  accent-color: #0072b2; }
#error { margin: 8px 0 0; overflow-wrap: anywhere; } [hidden] { display: none !important; }
#title { overflow-wrap: anywhere; }
#tabs { display: flex; flex-wrap: wrap; gap: 4px; border-bottom: 1px solid #b8bec4;
  margin-bottom: 8px; }
#tabs button { font: inherit; font-size: 14px; padding: 8px 16px; border: 1px solid #b8bec4;
  border-bottom: 0; border-radius: 6px 6px 0 0; background: #f5f6f8; color: var(--ink);
  cursor: pointer; }
#tabs button[aria-selected=true] { background: #0072b2; border-color: #0072b2; color: #fff;
  font-weight: 600; }
.hit .ask { font: inherit; font-size: 12.5px; margin-top: 7px; padding: 2px 10px; cursor: pointer;
  border: 1px solid #b8bec4; border-radius: 6px; background: #fff; color: var(--ink); }
.match { min-height: 88px; } .asking .match { min-height: 0; }
a:focus-visible, select:focus-visible { outline: 3px solid #0072b2; outline-offset: 2px; }
@media (max-width: 820px) { .options { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  .options .where { grid-column: 1 / 3; } }
@media (max-width: 480px) { .options { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .options .how, .options .where, #go { grid-column: 1 / 3; } main { padding: 14px 8px 30px; }
  #tabs { display: grid; border-bottom: 0; } #tabs button { border: 1px solid #b8bec4;
  border-radius: 6px; } }
"""
)

SCRIPT = (
    in_sync.SCRIPT
    + """\
(function () {
  "use strict";
  var SETTINGS = ["k", "retrieval", "where", "start"], POLL_MS = 250;
  var TITLES = """
    + json.dumps(search_page.ASKED)
    + """;
  var chosen = null, clip = "", direction = "", asking = null, answers = new Map();
  var tabs = Array.prototype.slice.call(document.querySelectorAll("#tabs button"));
  var usual = {};
  SETTINGS.forEach(function (id) { usual[id] = by(id).value; });
  function by(id) { return document.getElementById(id); }
  function fail(words) { by("error").textContent = words; by("error").hidden = !words; }
  function say(words, share) {
    if (by("status").textContent !== words) { by("status").textContent = words; }
    by("progress").hidden = share === undefined;
    by("progress").value = share || 0;
  }
  function choose(file, id) {
    chosen = file || null; clip = id || ""; direction = ""; answers.clear();
    by("name").textContent = chosen ? chosen.name : clip;
    by("go").disabled = !chosen && !clip;
    if (!chosen) { by("file").value = ""; }
  }

  // ---- links: what a search was, except a file

  function link() {
    var query = new URLSearchParams();
    if (clip) { query.set("clip", clip); }
    if (direction) { query.set("direction", direction); }
    SETTINGS.forEach(function (id) {
      if (by(id).value !== usual[id] && !(clip && id === "start")) { query.set(id, by(id).value); }
    });
    var words = query.toString();
    return words ? "/?" + words : "/";
  }
  function remember() {
    var here = link();
    if (here !== location.pathname + location.search) { history.pushState(null, "", here); }
    by("link").href = here;
    by("link").textContent = clip ? "Link to this search" :
      "Link to these settings (a link cannot hold a file: it has to be chosen again)";
  }
  function recall() {
    var query = new URLSearchParams(location.search);
    SETTINGS.forEach(function (id) { by(id).value = query.get(id) || usual[id]; });
    if (asking) { asking.abort(); }
    by("results").hidden = true; fail(""); say("");
    choose(null, query.get("clip"));
    direction = query.get("direction") || "";
    if (clip) { search();
    } else if (location.search) { say("The settings are those of the link; choose the file."); }
  }

  // ---- a search

  function name() {
    return Array.from(crypto.getRandomValues(new Uint8Array(16)), function (byte) {
      return byte.toString(16).padStart(2, "0");
    }).join("");
  }
  async function watch(job, signal) {
    while (!signal.aborted) {
      await new Promise(function (done) { setTimeout(done, POLL_MS); });
      try {
        var now = await (await fetch("/progress/" + job, { signal: signal })).json();
        if (now.words && !signal.aborted) { say(now.words + " \\u2026", now.stage / now.of); }
      } catch (error) { return; }
    }
  }
  async function ask(signal) {
    var query = new URLSearchParams({ direction: direction });
    SETTINGS.forEach(function (id) { query.set(id, by(id).value); });
    query.set(clip ? "clip" : "name", clip || chosen.name);
    var key = query.toString();
    if (answers.has(key)) { return answers.get(key); }
    var watching = new AbortController(), job = name();
    query.set("job", job);
    signal.addEventListener("abort", function () { watching.abort(); });
    watch(job, watching.signal);
    try {
      var answer = await fetch("/search?" + query, {
        method: "POST", body: clip ? null : chosen, signal: signal,
        headers: { "Content-Type": "application/octet-stream" }
      });
      var found = await answer.json();
      if (!answer.ok) { throw new Error(found.error); }
      answers.set(key, found);
      return found;
    } finally { watching.abort(); }
  }
  async function search(tab) {
    if (!chosen && !clip) { return; }
    if (!by("form").reportValidity()) { return; }
    if (asking) { asking.abort(); }
    var mine = asking = new AbortController(), begun = performance.now();
    fail(""); remember();
    by("results").hidden = !tab; by("found").textContent = ""; by("note").textContent = "";
    if (tab) { select(tab.dataset.direction); }
    say(clip ? "Searching \\u2026" : "Sending the file \\u2026", 0);
    try {
      var found = await ask(mine.signal);
      if (mine.signal.aborted) { return; }
      show(found);
      say(found.hits.length + " found in " +
        ((performance.now() - begun) / 1000).toFixed(1) + " s");
      curves(found, mine.signal);
    } catch (error) {
      if (mine.signal.aborted) { return; }
      say("");
      fail(error instanceof TypeError ? "The server does not answer, or refused the file: " +
        "it may be too large." : error.message);
    }
  }
  function select(direction) {
    by("title").textContent = TITLES[direction] + " " + (clip || chosen.name);
    tabs.forEach(function (tab) {
      var here = tab.dataset.direction === direction;
      tab.setAttribute("aria-selected", String(here)); tab.tabIndex = here ? 0 : -1;
    });
  }
  function show(found) {
    by("note").textContent = found.note;
    by("found").innerHTML = found.html;  // made by the server, names are escaped there
    by("results").hidden = false;
    by("tabs").hidden = found.streams.length < 2;
    select(found.direction);
    if (by("tabs").hidden) {
      by("found").removeAttribute("role"); by("found").removeAttribute("aria-labelledby");
    } else {
      by("found").setAttribute("role", "tabpanel");
      by("found").setAttribute("aria-labelledby", "tab-" + found.direction);
    }
    document.querySelectorAll(".found .hit").forEach(function (card) {
      var button = document.createElement("button");
      button.type = "button"; button.className = "ask"; button.textContent = "Ask with this";
      button.setAttribute("aria-label", "Ask with this: " + card.dataset.id);
      button.addEventListener("click", function () { choose(null, card.dataset.id); search(); });
      card.appendChild(button);
    });
    window.scavSetup();
    var first = document.querySelector(".search .play");
    if (first && !by("tabs").contains(document.activeElement)) {
      first.focus({ preventScroll: true });
    }
  }

  // Curves take the server longer than all else: they are asked for when clips can play.
  async function curves(found, signal) {
    var root = document.querySelector(".search");
    if (!root) { return; }
    if (!found.drawn) {
      var clips = Array.from(root.querySelectorAll("video, audio"));
      await Promise.race([Promise.all(clips.map(function (one) {
        return one.readyState >= 3 || new Promise(function (done) {
          one.addEventListener("canplay", done); one.addEventListener("error", done);
        });
      })), new Promise(function (done) { setTimeout(done, 10000); })]);
      try {
        var answer = await fetch(found.curves, { signal: signal });
        if (!answer.ok) { return; }
        found.drawn = await answer.json();
      } catch (error) { return; }
    }
    if (signal.aborted || !root.isConnected) { return; }
    root.querySelectorAll(".found .match").forEach(function (place, number) {
      place.innerHTML = found.drawn.curves[number];
    });
    root.querySelector(".told").innerHTML = found.drawn.told;
    root.scavShow();
  }

  by("file").addEventListener("change", function () {
    if (by("file").files.length) { choose(by("file").files[0]); search(); }
  });
  by("form").addEventListener("submit", function (event) { event.preventDefault(); search(); });
  tabs.forEach(function (tab, number) {
    tab.addEventListener("click", function () { direction = tab.dataset.direction; search(tab); });
    tab.addEventListener("keydown", function (event) {
      var step = { ArrowRight: 1, ArrowLeft: tabs.length - 1 }[event.key];
      if (step) { tabs[(number + step) % tabs.length].focus(); }
    });
  });
  window.addEventListener("popstate", recall);
  ["dragover", "dragleave", "drop"].forEach(function (kind) {
    document.addEventListener(kind, function (event) {
      event.preventDefault();
      by("drop").classList.toggle("over", kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files.length) {
        choose(event.dataTransfer.files[0]); search();
      }
    });
  });
  recall();
}());
"""
)


def html(clips: int, identity: str) -> str:
    """The page."""
    header = (
        '<p class="kicker">Audio-visual search</p><h1>What sounds like this? What looks like it?'
        f'</h1><p class="lead">{clips:,} clips, model {identity}. A file that you drop is removed '
        "after the search; what plays of it beside the results goes when the server ends. Space "
        "plays and stops, the arrow keys move, 0 to 9 choose which sound is heard (0 is the "
        "query).</p>"
    )
    look = '<link rel="stylesheet" href="/app.css">\n<link rel="icon" href="data:,">'
    return markup.frame("Audio-visual search", header, _BODY, "", look)
