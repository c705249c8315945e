"""What report/index.html looks like: its style sheet, its few lines of script, the frame."""

from __future__ import annotations

import base64
import hashlib
from html import escape

# The colours of the plots (train.figure): Okabe & Ito's, which everyone tells apart; lighter ones
# on dark. Every kind has a shape of its own besides.
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #59616b; --line: #dfe3e8; --page: #fff;
  --panel: #f6f7f9; --source: #0072b2; --target: #008a65; --copy: #b7578c; --conversion: #c95400;
  --good: #00724f; --bad: #b3261e; --heat: 0 114 178; --hot: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #a3abb5; --line: #343a42;
  --page: #15181c; --panel: #1d2126; --source: #56b4e9; --target: #2bc49a; --copy: #e3a0c8;
  --conversion: #f58b3d; --good: #4fd1a5; --bad: #ff8a80; --heat: 86 180 233; --hot: #101316; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 74rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; margin: 0; line-height: 1.2; }
h2 { font-size: 1.2rem; margin: 3rem 0 .3rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .3rem; }
p { margin: .3rem 0 .8rem; max-width: 46rem; }
.soft, small, caption { color: var(--soft); }
small { display: block; font-size: .78rem; line-height: 1.3; }
caption { text-align: left; padding-bottom: .4rem; font-size: .88rem; }
dl { display: grid; gap: .8rem 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); }
dt { color: var(--soft); font-size: .82rem; }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
dl.big dd b { font-size: 1.35rem; font-weight: 600; }
nav a { display: inline-block; margin-right: 1rem; } a { color: var(--source); }
.warning { border-left: 4px solid var(--bad); background: var(--panel); padding: .6rem .9rem; }
.scroll { overflow-x: auto; } :focus-visible { outline: 2px solid var(--source); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; font-weight: 400; }
th:first-child, td:first-child { padding-left: 0; }
thead th { color: var(--soft); font-size: .85rem; vertical-align: bottom; }
td.n, th.n { text-align: right; white-space: nowrap; }
td.why { color: var(--soft); white-space: normal; }
.conversion-cell { font-weight: 600; } .conversion-cell small, td.why { font-weight: 400; }
tr.group th { padding-top: 1.3rem; font-weight: 600; }
.met { color: var(--good); } .missed { color: var(--bad); font-weight: 600; }
.verdict { white-space: nowrap; }
svg { display: block; overflow: visible; } svg text { fill: var(--soft); font-size: 11px; }
svg .axis { stroke: var(--line); } svg .zero { stroke: var(--soft); stroke-dasharray: 2 2; }
.source { --c: var(--source); } .target { --c: var(--target); } .copy { --c: var(--copy); }
.conversion { --c: var(--conversion); }
svg .mark { fill: var(--c); stroke: var(--c); } svg .hollow { fill: var(--page); stroke-width: 2; }
svg .whisker { stroke: var(--c); stroke-width: 2; } svg .median { stroke: var(--ink); }
.key { display: inline-block; vertical-align: -1px; margin-right: .3rem; }
svg.dots { width: 15rem; max-width: 100%; }
.main td small { max-width: 8.5rem; margin-left: auto; } .main td.graphic { min-width: 14rem; }
.plots { display: grid; gap: 1rem 3rem;
  grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); }
.plots figure { margin: 0; } .plots svg { width: 100%; max-width: 30rem; }
.bar { display: block; position: relative; height: 5px; margin-top: 3px; min-width: 3.5rem;
  background: var(--line); } .bar i { position: absolute; inset: 0 auto 0 0; background: var(--c); }
.bar b { position: absolute; top: -3px; bottom: -3px; width: 2px; background: var(--ink); }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0;
  text-align: inherit; cursor: pointer; text-decoration: underline dotted; }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
.fixed th { overflow-wrap: normal; } .fixed small { white-space: nowrap; }
.fixed th:first-child { position: sticky; left: 0; background: var(--page); z-index: 1; }
.heat { width: auto; font-size: .8rem; } .heat td, .heat th { border: 1px solid var(--line); }
.heat td { width: 1.9rem; min-width: 1.9rem; height: 1.7rem; padding: 0; text-align: center;
  vertical-align: middle; background: rgb(var(--heat) / var(--v, 0)); }
.heat tr > th { padding: .1rem .45rem; white-space: nowrap; vertical-align: middle; }
.heat thead tr > th + th { writing-mode: vertical-rl; transform: rotate(180deg);
  padding: .45rem .1rem; } .heat td.strong { color: var(--hot); }
.heat td.own { outline: 2px solid var(--ink); outline-offset: -2px; }
.example { border-top: 1px solid var(--line); padding: .9rem 0 1.2rem; }
.example h3 { margin: 0; } .example p { margin: 0 0 .3rem; }
.players { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr));
  gap: 1rem; align-items: end; }
.players figure { margin: 0; } .players audio { display: block; width: 100%; height: 2.5rem; }
.players img { display: block; height: 72px; margin: .2rem 0 .3rem; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
@media (max-width: 52rem) {
  .main, .main tbody { display: block; } .main thead { display: none; }
  .main tr { display: grid; grid-template-columns: repeat(4, 1fr); padding: .6rem 0;
    border-bottom: 1px solid var(--line); }
  .main th, .main td { border: 0; padding: .1rem .3rem .1rem 0; text-align: left; }
  .main tr > th, .main td.graphic { grid-column: 1 / -1; } .main td.graphic { order: 1; }
  .main td small { margin: 0; } .main td.graphic { min-width: 0; }
  .main td.n { font-size: .88rem; white-space: normal; } .main td.n::before { display: block;
    content: attr(data-kind); color: var(--c); font-size: .72rem; font-weight: 400; }
  svg.dots { width: 100%; max-width: 20rem; padding-top: .3rem; }
  dl { grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
  th, td { padding: .35rem .35rem; } #verdict table { font-size: .9rem; } }
@media (min-width: 52.01rem) { .narrow-only { display: none; } }
@media print { body { max-width: none; } audio, nav { display: none; } }
"""
# Tables that can be sorted by a column; one player at a time. Without it nothing else is missing.
_SCRIPT = """
for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const th = button.parentNode, row = th.parentNode, table = row.closest("table");
  const up = th.getAttribute("aria-sort") !== "ascending", at = th.cellIndex;
  for (const each of row.cells) each.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = tr => tr.cells[at].dataset.v ?? "";
  const rank = (a, b) => a === "" || b === "" ? (a === "") - (b === "")
    : (isNaN(a) ? a.localeCompare(b) : a - b) * (up ? 1 : -1);
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort((a, b) => rank(key(a), key(b))));
};
document.addEventListener("play", event => {
  for (const each of document.querySelectorAll("audio")) if (each !== event.target) each.pause();
}, true);
"""


def framed(title: str, body: str) -> str:
    """A whole page. Its policy lets nothing be loaded, and no script run but the one above."""
    allowed = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{allowed}'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )
