"""Scores as a picture, by matplotlib. No torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neoxkit.eval.charts import COLOURS, Bars, extent
from neoxkit.eval.tables import spell
from neoxkit.train.plot import Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = (".png", ".svg", ".pdf")
"""What a picture may be, by the end of its name."""

MOST_ACROSS = 3


def write(path: Path, charts: Sequence[Plot] | Sequence[Bars]) -> None:
    """Write charts as one picture, PNG, SVG or PDF by its name: whole, or not at all."""
    from matplotlib.figure import Figure  # not pyplot, which looks for a screen

    across = min(MOST_ACROSS, len(charts))
    down = -(-len(charts) // across)
    tall = max(_height(chart) for chart in charts)
    figure = Figure(figsize=(5.2 * across, tall * down), layout="constrained", dpi=144)
    axes = figure.subplots(down, across, squeeze=False)
    places: list[Axes] = list(axes.flat)
    for place, chart in zip(places, list[Plot | Bars](charts), strict=False):
        _bars(place, chart) if isinstance(chart, Bars) else _curves(place, chart)
        place.set_title(chart.title, fontsize=10)
        place.spines[["top", "right"]].set_visible(False)
    for place in places[len(charts) :]:
        place.set_axis_off()
    aside = path.with_name(f".{path.name}.partial")
    try:
        figure.savefig(aside, format=path.suffix[1:].lower())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _height(chart: Plot | Bars) -> float:
    """Inches."""
    return 1.1 + len(chart.groups) * (0.12 + 0.17 * len(chart.models)) if isinstance(chart, Bars) else 3.4


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)][0]


def _curves(axes: Axes, plot: Plot) -> None:
    for place, series in enumerate(plot.series):
        steps, values = zip(*series.points, strict=True)
        line = "--" if series.style == "level" or place % 2 else "-"
        mark = "" if series.style == "level" else "o"
        axes.plot(steps, values, line, marker=mark, markersize=3, color=_colour(place), label=series.name)
        if any(series.errors):
            low, high = ([v + sign * e for v, e in zip(values, series.errors, strict=True)] for sign in (-1, 1))
            axes.fill_between(steps, low, high, color=_colour(place), alpha=0.18, linewidth=0)
    axes.set_xlabel("trained tokens" if plot.across == "token" else plot.across, fontsize=9)
    axes.grid(axis="y", alpha=0.3)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, frameon=False)


def _bars(axes: Axes, bars: Bars) -> None:
    thick = 0.8 / len(bars.models)
    low, high = extent(bars)
    for place, label in enumerate(bars.models):
        found = [(row, scores[place]) for row, (_, scores) in enumerate(bars.groups)]
        shown = [(row - 0.4 + (place + 0.5) * thick, score) for row, score in found if score is not None]
        where, values = [row for row, _ in shown], [score.value for _, score in shown]
        axes.barh(where, values, thick * 0.9, color=_colour(place), label=label)
        for row, score in shown:
            if score.error:
                axes.errorbar(score.value, row, xerr=score.error, color="black", linewidth=0.9, capsize=1.5)
            axes.text(high, row, " " + spell(score), fontsize=7, verticalalignment="center")
    axes.set_yticks(range(len(bars.groups)), [task for task, _ in bars.groups], fontsize=8)
    axes.set_xlim(low, high)
    axes.invert_yaxis()  # the first task on top, as in the table
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(axis="x", labelsize=8)
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.25 / _height(bars)))
