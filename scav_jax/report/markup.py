"""The HTML of a report: one self-contained page without the network, and without scripts where it
is not a page of searches, which plays clips.

Plain pieces (section, figure, table, details) and how they look; `report` fills them.
"""

import html
import json
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from scav_jax.base.names import shown

# The streams that ask, by direction, and what they are called.
ASKING = {"a2v": ("audio",), "v2a": ("visual",), "both": ("audio", "visual")}
STREAM_WORDS = {"visual": "picture", "audio": "sound"}
ANSWERING = {"a2v": "a picture", "v2a": "a sound", "both": "both picture and sound"}
STYLE = """\
:root { color-scheme: light; --ink: #1d2329; --soft: #5b646d; --line: #e1e5e9; --ground: #ffffff;
  --aggregation: #d55e00; --hybrid: #009e73; --sequence: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f6f8; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 60px; }
header, section { background: var(--ground); border: 1px solid var(--line); border-radius: 10px;
  padding: 26px 34px; margin: 0 0 20px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 10px; letter-spacing: -0.01em; }
h2 { font-size: 20px; margin: 0 0 12px; } h3 { font-size: 16px; margin: 26px 0 4px; }
h1, h2, h3 { overflow-wrap: anywhere; }
p { margin: 0 0 14px; max-width: 75ch; }
.kicker { color: var(--soft); font-size: 13px; letter-spacing: .08em; text-transform: uppercase;
  margin: 0 0 6px; }
.lead { color: var(--soft); } .small { color: var(--soft); font-size: 13px; font-weight: 400; }
.note { background: #fff7e0; border-left: 4px solid #d9a400; padding: 8px 14px; font-size: 14px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 14px;
  margin-top: 20px; }
.card { border: 1px solid var(--line); border-top: 4px solid var(--soft); border-radius: 8px;
  padding: 12px 16px; }
.card.aggregation { border-top-color: var(--aggregation); }
.card.sequence { border-top-color: var(--sequence); }
.big { font-size: 34px; font-weight: 650; line-height: 1.2; font-variant-numeric: tabular-nums; }
figure { margin: 10px 0 18px; } figure img { width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); font-size: 14px; margin-top: 8px; max-width: 90ch; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 11px; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
thead td { border-bottom-color: transparent; }
thead tr + tr td, thead tr:only-child td { border-bottom: 2px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; } thead tr + tr th { border-bottom-width: 2px; }
th[colspan] { text-align: center; } th:first-child, th.word { text-align: left; }
tbody th { text-align: left; font-weight: 600; }
.dense { font-size: 13px; } .dense th, .dense td { padding: 6px 7px; }
.dense th:first-child { padding-left: 0; }
.facts th { vertical-align: top; color: var(--soft); padding-left: 0; }
.facts td { white-space: normal; text-align: left; overflow-wrap: anywhere; }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 5px; margin-right: 8px; }
.dot.aggregation { background: var(--aggregation); } .dot.hybrid { background: var(--hybrid); }
.dot.sequence { background: var(--sequence); } .dot.part { background: #7f7f7f; }
.rank { margin: 12px 0 6px; font-size: 14px; color: var(--soft); }
.clips { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 10px; }
.clip { border: 1px solid var(--line); border-radius: 8px; padding: 7px; font-size: 12.5px;
  min-width: 0; }
.clip img { width: 100%; display: block; border-radius: 4px; }
.clip svg { width: 100%; height: 30px; display: block; margin: 5px 0 3px; }
.clip audio { width: 100%; height: 32px; display: block; margin: 0 0 4px; }
.clip path { stroke: #4a525a; stroke-width: .8; fill: none; }
.clip .id { font-weight: 600; font-size: 11.5px; overflow-wrap: anywhere; line-height: 1.3; }
.clip .small { font-size: 11.5px; } .verdict { font-weight: 600; margin-bottom: 5px; }
.clip.query { background: #eef1f4; } .clip.right { border: 2px solid #00735a; background: #eaf7f2; }
.clip.right .verdict { color: #00735a; } .clip.same-source .verdict { color: #8a5a00; }
.clip.other .verdict { color: var(--soft); }
.nothing { background: #eceff2; color: var(--soft); border-radius: 4px; text-align: center;
  padding: 22px 4px; margin-bottom: 4px; }
details { border-top: 1px solid var(--line); padding: 10px 0; margin-top: 10px; }
details + details { margin-top: 0; }
summary { cursor: pointer; font-weight: 600; font-size: 14px; }
pre { font-size: 12.5px; line-height: 1.4; overflow-x: auto; background: #f5f6f8; padding: 12px;
  border-radius: 6px; }
@media (max-width: 700px) { figure { overflow-x: auto; } figure img { width: 640px; }
  .clips { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  header, section { padding: 18px; } .facts th { white-space: normal; } }
@media print { body { background: none; } section { break-inside: avoid; } }
"""


def nothing_found(direction: str) -> str:
    """Why a search came back empty."""
    return f"no clip with {ANSWERING[direction]} is in the index, or passes the filter"


def escape(name: object) -> str:
    """A name, or a line with names, as text of a page: on one line, whatever letters it has."""
    return html.escape(shown(name))


def document(
    title: str, header: str, sections: Sequence[str], *, head: str = "", style: str = ""
) -> str:
    """The whole page; empty sections are left out. `head` is HTML, `style` more of CSS."""
    body = "\n".join(section for section in sections if section)
    return frame(title, header, body, head, f"<style>\n{STYLE}{style}</style>")


def frame(title: str, header: str, body: str, head: str, look: str) -> str:
    """A page, of HTML but for its title: `head` comes before that, `look` behind it."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{head}<title>{escape(title)}</title>
{look}
</head>
<body>
<main>
<header>
{header}
</header>
{body}
</main>
</body>
</html>
"""


def section(title: str, *parts: str) -> str:
    """A titled part of the page."""
    body = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>"


def figure(uri: str, alternative: str, caption: str) -> str:
    """An image, words for who cannot see it, and a caption (HTML) that says what it shows."""
    return (
        f'<figure><img src="{uri}" alt="{escape(alternative)}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def note(text: str) -> str:
    """Something the reader should know first."""
    return f'<p class="note">{escape(text)}</p>'


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    above: Sequence[tuple[str, int]] = (),
    words: int = 1,
    kind: str = "",
) -> str:
    """A table; cells are HTML.

    Args:
      columns: their names; none for a table of facts.
      rows: as many cells each.
      above: (name, how many columns it spans) of a line above the names.
      words: how many columns from the left hold words, not figures.
      kind: a class of the style.
    """
    lines = []
    for names in (above, [(name, 1) for name in columns]):
        cells = (
            f'<th colspan="{span}">{name}</th>'
            if span > 1
            else "<td></td>"  # a heading without words is read aloud as one
            if not name
            else f"<th{' class=word' if column < words else ''}>{name}</th>"
            for column, (name, span) in enumerate(names)
        )
        lines += [f"<tr>{''.join(cells)}</tr>"] if names else []
    body = "".join(
        f"<tr>{''.join(f'<th>{c}</th>' if i < words else f'<td>{c}</td>' for i, c in pairs)}</tr>"
        for pairs in (list(enumerate(row)) for row in rows)
    )
    head = f"<thead>{''.join(lines)}</thead>" if lines else ""
    return (
        '<div class="wide" tabindex="0" role="group" aria-label="table">'  # scrolls with the arrows
        f'<table class="{kind}">{head}<tbody>{body}</tbody></table></div>'
    )


def details(title: str, content: dict) -> str:
    """A document that can be unfolded."""
    text = json.dumps(content, indent=1, sort_keys=True)
    pre = f"<pre>{html.escape(text)}</pre>"
    return f"<details><summary>{escape(title)}</summary>{pre}</details>"


def envelope(levels: Float[np.ndarray, " bins"]) -> str:
    """How loud a sound is over time, as a small picture."""
    bars = "".join(
        f"M{x + 0.5:g} {20 - 19 * level:.1f}V{20 + 19 * level:.1f}"
        for x, level in enumerate(np.maximum(levels, 0.02))
    )
    return (
        f'<svg viewBox="0 0 {len(levels)} 40" preserveAspectRatio="none" role="img" '
        f'aria-label="loudness over time"><path d="{bars}"/></svg>'
    )
