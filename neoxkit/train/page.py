"""What pages of HTML that need nothing else have in common: style sheet, tables, and the script that tells values
under the pointer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from types import MappingProxyType

from neoxkit.train.plot import Plot, data

STYLE = """
:root {
  --page: #f9f9f7; --card: #fcfcfb; --ink: #0b0b0b; --soft: #52514e; --faint: #6f6d68;
  --grid: #e7e6df; --axis: #c3c2b7; --edge: rgba(11, 11, 11, .1);
  --c1: #2a78d6; --c2: #d9541e; --good: #0a7a0a; --bad: #c23030;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0d0d0d; --card: #1a1a19; --ink: #ffffff; --soft: #c3c2b7; --faint: #98968f;
    --grid: #2c2c2a; --axis: #45443f; --edge: rgba(255, 255, 255, .12);
    --c1: #4a94e8; --c2: #ef7d49; --good: #3fc23f; --bad: #f07070;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 20px 16px 48px; max-width: 1320px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; overflow-wrap: anywhere;
}
h1 { margin: 0; font-size: 24px; line-height: 1.2; }
h2 { margin: 28px 0 8px; font-size: 17px; }
p { margin: 4px 0; color: var(--soft); }
.quiet { font-size: 13px; color: var(--faint); }
.state { font-weight: 600; }
.state::before { content: "\\25cf\\a0"; }
.going-on, .ended { color: var(--good); }
.failed { color: var(--bad); }
.bar { height: 6px; margin: 10px 0; border-radius: 3px; background: var(--grid); overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--c1); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(132px, 1fr)); gap: 10px; margin: 16px 0; }
.tile, figure { background: var(--card); border: 1px solid var(--edge); border-radius: 8px; }
.tile { display: flex; flex-direction: column; padding: 10px 12px; }
.tile b { font-size: 21px; line-height: 1.3; font-weight: 600; }
.tile span, .tile small { font-size: 13px; color: var(--soft); }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 370px), 1fr)); gap: 12px; }
figure { margin: 0; padding: 12px 10px 6px; }
figcaption { display: flex; flex-wrap: wrap; gap: 0 12px; padding: 0 4px 4px; }
figcaption b { font-weight: 600; }
figcaption span { font-size: 13px; line-height: 23px; color: var(--soft); }
figcaption span::before { content: ""; display: inline-block; width: 9px; height: 9px; margin-right: 5px; }
figcaption span::before { border-radius: 50%; background: var(--c1); }
figcaption .k2::before { background: var(--c2); }
output { margin-left: auto; color: var(--soft); font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: auto; overflow: visible; touch-action: pan-y; }
svg text { fill: var(--faint); font-size: 12px; font-variant-numeric: tabular-nums; }
svg path { fill: none; }
.grid { stroke: var(--grid); }
.axis { stroke: var(--axis); }
.pointer { stroke: var(--faint); stroke-dasharray: 3 3; }
path.c1, path.c2 { stroke-width: 2; stroke-linejoin: round; }
path.c1 { stroke: var(--c1); } circle.c1 { fill: var(--c1); }
path.c2 { stroke: var(--c2); } circle.c2 { fill: var(--c2); }
path.faint { stroke-width: 1; opacity: .35; }
path.dots { stroke-width: 1.5; opacity: .7; }
path.level { stroke-dasharray: 6 4; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; min-width: min(100%, 420px); font-size: 14px; }
th, td { padding: 4px 18px 4px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--grid); }
th { color: var(--soft); font-weight: 500; }
td { font-variant-numeric: tabular-nums; overflow-wrap: normal; }
details { margin-top: 16px; }
summary { cursor: pointer; font-weight: 600; }
pre { padding: 12px; overflow-x: auto; font-size: 13px; background: var(--card); border: 1px solid var(--edge); }
@media print { body { max-width: none; } figure, .tile { break-inside: avoid; } }
"""
"""Light or dark as the reader's system is; one column on a phone."""

SCRIPT = """
const told = JSON.parse(document.getElementById("data").textContent);
document.querySelectorAll("figure[data-across]").forEach((figure, number) => {
  const svg = figure.querySelector("svg"), output = figure.querySelector("output"), last = output.textContent;
  const box = svg.viewBox.baseVal, left = 52, right = box.width - 10, series = told[number];
  const steps = series.flatMap(points => points.map(point => point[0]));
  const low = Math.min(...steps), high = Math.max(...steps);
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  line.setAttribute("class", "pointer");
  svg.addEventListener("pointermove", event => {
    const area = svg.getBoundingClientRect();
    const x = Math.min(right, Math.max(left, (event.clientX - area.left) / area.width * box.width));
    const step = low + (x - left) / (right - left) * (high - low);
    const near = series.map(points => points.reduce((a, b) =>
      Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a));
    output.textContent = figure.dataset.across + " " + near[0][0].toLocaleString("en") + ": " +
      near.map(point => point[2]).join(", ");
    line.setAttribute("d", "M" + x + " 10V" + (box.height - 26));
    svg.append(line);
  });
  svg.addEventListener("pointerleave", () => { output.textContent = last; line.remove(); });
});
"""
"""Not needed to see the curves: only for the values under the pointer."""


def document(title: str, body: str, plots: Sequence[Plot] = (), style: str = "") -> str:
    """A whole page. `body` is HTML and has the figures of `plots` in their order; `style` is added to the sheet."""
    script = f'<script type="application/json" id="data">{data(plots)}</script><script>{SCRIPT}</script>'
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<style>{STYLE}{style}</style></head><body>{body}{script}</body></html>\n"
    )


def table(
    names: Sequence[str],
    cells: Sequence[Sequence[str]],
    caption: str = "",
    headers: int = 0,
    marked: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """A table of texts under their names. Nothing for no rows.

    A `caption` names it to who hears it. The first `headers` cells of a row say what it is about. `marked` has the
    classes of texts that stand out.
    """
    if not cells:
        return ""
    told = f' role="region" tabindex="0" aria-label="{escape(caption)}"' if caption else ""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)

    def cell(column: int, text: str) -> str:
        if column < headers:
            return f'<th scope="row">{escape(text)}</th>'
        mark = f' class="{marked[text]}"' if text in marked else ""
        return f"<td{mark}>{escape(text)}</td>"

    body = "".join(f"<tr>{''.join(cell(*each) for each in enumerate(row))}</tr>" for row in cells)
    return f'<div class="scroll"{told}><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def section(title: str, body: str) -> str:
    """A section under a heading. Nothing for no body."""
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def write(path: Path, text: str) -> None:
    """Write a page: whole, or not at all."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
