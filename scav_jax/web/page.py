"""What the browser shows: one page, its script and its style, all from this server."""

from scav_jax.report import markup, search_page

_BODY = """\
<section>
<form id="form">
<label id="drop" for="file"><b>Drop a sound or a video here</b><span>or choose a file</span>
<span id="name" class="small"></span></label>
<input id="file" type="file" accept="audio/*,video/*,.mkv,.avi,.flac,.ogg">
<div class="options">
<label>Search by <select id="direction"><option value="">what the file has</option>
<option value="a2v">its sound, for videos</option><option value="v2a">its picture, for sounds\
</option></select></label>
<label>Results <input id="k" type="number" min="1" max="50" value="9"></label>
<label>Retrieval <select id="retrieval"><option value="exact">by sequence</option>
<option value="hybrid:100">hybrid, k = 100</option><option value="aggregation">by mean</option>
</select></label>
<label>From second <input id="start" type="number" min="0" step="0.5" value="0"></label>
<button id="go" type="submit" disabled>Search</button>
</div>
</form>
<p id="status" role="status" aria-live="polite"></p>
<p id="error" role="alert" class="note" hidden></p>
</section>
<section id="results" hidden><h2 id="title"></h2><p id="note" class="small"></p>
<div id="found"></div></section>
<script src="/app.js"></script>"""

STYLE = (
    markup.STYLE
    + search_page.STYLE
    + """\
#drop { display: flex; flex-direction: column; gap: 4px; align-items: center; cursor: pointer;
  border: 2px dashed #b8bec4; border-radius: 10px; padding: 30px 16px; text-align: center; }
#drop.over { border-color: #0072b2; background: #eaf3f9; }
#file:focus-visible + .options { outline: 3px solid #0072b2; outline-offset: 4px; }
#file { position: absolute; opacity: 0; width: 1px; height: 1px; }
.options { display: flex; flex-wrap: wrap; gap: 14px 20px; align-items: end; margin-top: 16px; }
.options label { font-size: 13px; color: var(--soft); display: grid; gap: 3px; }
.options select, .options input { font: inherit; padding: 5px 8px; border: 1px solid #b8bec4;
  border-radius: 6px; background: #fff; color: var(--ink); }
.options input { width: 86px; }
#go { font: inherit; font-weight: 600; padding: 7px 22px; border-radius: 6px; border: 0;
  background: #0072b2; color: #fff; cursor: pointer; } #go:disabled { background: #9fb4c2;
  cursor: default; }
#status { margin: 12px 0 0; min-height: 1.5em; color: var(--soft); }
#error { margin: 8px 0 0; } [hidden] { display: none !important; }
"""
)

SCRIPT = (
    search_page.SCRIPT
    + """\
(function () {
  "use strict";
  function by(id) { return document.getElementById(id); }
  var chosen = null, asking = null;
  function choose(file) {
    chosen = file || null;
    by("name").textContent = chosen ? chosen.name : "";
    by("go").disabled = !chosen;
  }
  function fail(words) { by("error").textContent = words; by("error").hidden = !words; }
  async function search() {
    if (!chosen) { return; }
    if (asking) { asking.abort(); }
    var mine = asking = new AbortController(), begun = performance.now();
    fail(""); by("results").hidden = true; by("status").textContent = "Searching \\u2026";
    by("go").disabled = true;
    try {
      var query = new URLSearchParams({
        name: chosen.name, direction: by("direction").value, k: by("k").value,
        retrieval: by("retrieval").value, start: by("start").value
      });
      var answer = await fetch("/search?" + query, {
        method: "POST", body: chosen, signal: mine.signal,
        headers: { "Content-Type": "application/octet-stream" }
      });
      var found = await answer.json();
      if (!answer.ok) { throw new Error(found.error); }
      by("title").textContent = (found.direction === "a2v" ? "Videos found for the sound of " :
        "Sounds found for the picture of ") + found.query.name;
      by("note").textContent = found.note;
      by("found").innerHTML = found.html;  // made by the server, names are escaped there
      by("results").hidden = false;
      by("status").textContent = found.hits.length + " found in " +
        ((performance.now() - begun) / 1000).toFixed(1) + " s";
      window.scavSetup();
      var first = document.querySelector(".search");
      if (first) { first.focus({ preventScroll: true }); }
    } catch (error) {
      if (error.name === "AbortError") { return; }
      by("status").textContent = "";
      fail(error instanceof TypeError ? "The server does not answer, or refused the file: " +
        "it may be too large." : error.message);
    } finally {
      if (asking === mine) { asking = null; by("go").disabled = !chosen; }
    }
  }
  by("file").addEventListener("change", function () { choose(by("file").files[0]); });
  by("form").addEventListener("submit", function (event) { event.preventDefault(); search(); });
  ["dragover", "dragleave", "drop"].forEach(function (kind) {
    document.addEventListener(kind, function (event) {
      event.preventDefault();
      by("drop").classList.toggle("over", kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files.length) {
        choose(event.dataTransfer.files[0]); search();
      }
    });
  });
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
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Audio-visual search</title>
<link rel="stylesheet" href="/app.css">
<link rel="icon" href="data:,">
</head>
<body>
<main>
<header>
{header}
</header>
{_BODY}
</main>
</body>
</html>
"""
