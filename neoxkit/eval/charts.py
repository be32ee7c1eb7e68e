"""Scores as curves over steps, or as bars beside each other: what is drawn on pages and in pictures. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from neoxkit.errors import ConfigError
from neoxkit.eval.results import Score
from neoxkit.eval.scores import Model, Row, Scores
from neoxkit.eval.tables import metric_name, spell
from neoxkit.train.plot import WIDTH, Axis, Plot, Series, short

COLOURS = (
    ("#2a78d6", "#4a94e8"),
    ("#d9541e", "#ef7d49"),
    ("#1f7a4d", "#4cc38a"),
    ("#8e44ad", "#c58af9"),
    ("#9a6a00", "#e0b341"),
    ("#c2185b", "#ff7eb6"),
    ("#00707c", "#4dd0e1"),
    ("#5d4037", "#bcaaa4"),
)
"""Of models, on light and on dark; a ninth model has the first's again."""

LEFT, RIGHT, LABEL, BAR, FOOT = 8, 116, 19, 13, 22
"""Of bars, in pixels: margins, the line of a task's name, a bar with its gap, the axis."""


class Bars(NamedTuple):
    """Bars of several models for each of several tasks: of a task its name, and of each model a score or None."""

    title: str
    models: Sequence[str]
    groups: Sequence[tuple[str, Sequence[Score | None]]]


def charts(scores: Scores, tokens: bool = False) -> list[Plot] | list[Bars]:
    """A plot for each metric of each task over steps, or else bars for each metric.

    With `tokens` what a model has learned from takes the place of its step. Raises ConfigError when the results do
    not say it, or are not of several steps of a run.
    """
    if scores.over_steps:
        return [plot for plot in (_plot(scores, row, tokens) for row in scores.rows) if plot.series]
    if tokens:
        raise ConfigError("--tokens: these are not results of several steps of a run", "leave it out")
    return _bars(scores)


def _plot(scores: Scores, row: Row, tokens: bool) -> Plot:
    """Curves of the runs; a model that belongs to no step is a level line."""
    series, alone = [], []
    for label, models in scores.runs.items():
        known = [model for model in models if row in model.cells and math.isfinite(model.cells[row][0].value)]
        found = [model.cells[row][0] for model in known]
        if not found:
            continue
        if known[0].about.step is None and len(known) == 1:
            alone.append((label, found[0].value))
            continue
        points = [(_place(model, tokens), score.value) for model, score in zip(known, found, strict=True)]
        series.append(Series(label, points, errors=[score.error or 0.0 for score in found]))
    places = [place for each in series for place, _ in each.points]
    for label, value in alone if places else ():
        series.append(Series(label, [(min(places), value), (max(places), value)], "level"))
    title = f"{scores.name(row)}, {metric_name(scores, row)}"
    return Plot(title, series, short, across="token" if tokens else "step")


def _place(model: Model, tokens: bool) -> float:
    found = model.about.tokens if tokens else model.about.step
    if found is None and tokens:
        raise ConfigError(f"{model.about.path}: does not say how many tokens were trained", "leave --tokens out")
    return float(found or 0)


def _bars(scores: Scores) -> list[Bars]:
    found: dict[str, list[tuple[str, list[Score | None]]]] = {}
    for row in scores.rows:
        cells = [model.cells[row][0] if row in model.cells else None for model in scores.models]
        shown = [each if each is not None and math.isfinite(each.value) else None for each in cells]
        if any(shown):
            found.setdefault(metric_name(scores, row), []).append((scores.name(row), shown))
    return [Bars(metric, [model.label for model in scores.models], groups) for metric, groups in found.items()]


def extent(bars: Bars) -> tuple[float, float]:
    """From where to where its axis goes, in the metric's unit. 0 is always on it: bars begin there."""
    there = [score for _, scores in bars.groups for score in scores if score is not None]
    ends = [score.value + (score.error or 0.0) * (-1 if score.value < 0 else 1) for score in there]
    low, high = min(0.0, *ends), max(0.0, *ends)
    return (low, high) if low < high else (0.0, 1.0)


def draw_bars(bars: Bars) -> str:
    """The bars as a <figure>."""
    size = LABEL + BAR * len(bars.models) + 6
    height = size * len(bars.groups) + FOOT
    across = Axis(extent(bars), LEFT, WIDTH - RIGHT)
    body = "".join((*_marks(across, height), *_groups(bars, across, size)))
    keys = [f'<span class="{_colour("k", place)}">{escape(name)}</span>' for place, name in enumerate(bars.models)]
    count = len(bars.groups)
    told = f"{bars.title}: bars of {count} task{'s' if count > 1 else ''} for {', '.join(bars.models)}"
    return (
        f"<figure><figcaption><b>{escape(bars.title)}</b>{''.join(keys)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(told)}">{body}</svg></figure>'
    )


def _colour(kind: str, place: int) -> str:
    return f"{kind}{place % len(COLOURS) + 1}"


def _marks(across: Axis, height: int) -> Iterator[str]:
    for value in across.ticks():
        x = across(value)
        yield f'<path class="grid" d="M{x:.1f} 4V{height - FOOT}"/>'
        yield f'<text x="{x:.1f}" y="{height - 6}" text-anchor="middle">{short(value)}</text>'
    yield f'<path class="axis" d="M{across(0.0):.1f} 4V{height - FOOT}"/>'


def _groups(bars: Bars, across: Axis, size: int) -> Iterator[str]:
    for index, (task, scores) in enumerate(bars.groups):
        top = index * size
        name = task if len(task) <= 60 else task[:59] + "…"
        yield f'<text class="task" x="{LEFT}" y="{top + 15}">{escape(name)}</text>'
        for place, score in enumerate(scores):
            y = top + LABEL + place * BAR
            told = f"{task}, {bars.models[place]}: {spell(score)}"
            yield f'<text x="{WIDTH - 4}" y="{y + 10}" text-anchor="end">{escape(spell(score))}</text>'
            if score is None:
                continue
            begin, end = sorted((across(0.0), across(score.value)))
            yield (
                f'<rect class="{_colour("c", place)}" x="{begin:.1f}" y="{y}" width="{end - begin:.1f}" '
                f'height="{BAR - 2}"><title>{escape(told)}</title></rect>'
            )
            if score.error:
                ends = (across(score.value - score.error), across(score.value + score.error))
                yield f'<path class="whisker" d="M{ends[0]:.1f} {y + 5.5}H{ends[1]:.1f}"/>'


def style() -> str:
    """What the style sheet of pages does not have: colours of more models, bands and bars. Every second line is dashed,
    for who can not tell the colours."""
    light, dark = (";".join(f"--c{n}:{pair[side]}" for n, pair in enumerate(COLOURS, 1)) for side in (0, 1))
    classes = "".join(
        f"path.c{n}{{stroke:var(--c{n})}}circle.c{n},rect.c{n},path.band.c{n}{{fill:var(--c{n})}}"
        f"figcaption .k{n}::before{{background:var(--c{n})}}"
        for n in range(1, len(COLOURS) + 1)
    )
    return (
        f":root{{{light}}}@media (prefers-color-scheme: dark){{:root{{{dark}}}}}"
        "path.line,path.level{stroke-width:2;stroke-linejoin:round}"
        f"{classes}path.c2.line,path.c4.line,path.c6.line,path.c8.line{{stroke-dasharray:9 3}}"
        "path.band{stroke:none;opacity:.18}svg .whisker{stroke:var(--ink);stroke-width:1.2}svg .task{fill:var(--soft)}"
        "tbody th{color:var(--ink);text-align:left}th,td{overflow-wrap:normal;white-space:nowrap}"
        "td:last-child{white-space:normal;min-width:14em}.better{color:var(--good)}.worse{color:var(--bad)}"
    )
