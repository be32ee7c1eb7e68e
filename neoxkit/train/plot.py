"""Curves as SVG, for a page that needs nothing else: no library, no network, no script."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 26
POINTS = 400
"""Of a curve, at most: there are no more pixels."""


class Series(NamedTuple):
    """A curve: its name, its points (step, value), and how it is drawn: line, level (dashed), faint, or dots.

    With `errors`, as many as points, there is a band from value - error to value + error.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: str = "line"
    errors: Sequence[float] = ()


class Plot(NamedTuple):
    """Curves that share axes. `spell` writes a value for a person; `across` says what the points are at.

    With `powers`, values that lie far above the others make the axis one of powers of ten. The first
    `skip` of the steps do not stretch the axis: what lies beyond it there is left out.
    """

    title: str
    series: Sequence[Series]
    spell: Callable[[float], str]
    powers: bool = False
    skip: float = 0.0
    across: str = "step"


def short(value: float) -> str:
    """A number in at most four digits: 1234567 is "1.23M", 0.00012 is "1.2e-04"."""
    if value == 0:
        return "0"
    for factor, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= factor:
            return f"{value / (1e3 if letter == 'k' else factor):.3g}{letter}"
    return f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.4g}"


def thin(points: Sequence[tuple[float, float]], most: int = POINTS) -> list[tuple[float, float]]:
    """A curve in about so many points that looks the same: of each stretch the lowest and the highest stay."""
    if len(points) <= most:
        return list(points)
    size = -(-2 * len(points) // most)
    kept = []
    for first in range(0, len(points), size):
        part = points[first : first + size]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept


def smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A moving average over about a fiftieth of the points, and at the beginning over fewer: the first is itself."""
    found = []
    mean = 0.0
    for index, (step, value) in enumerate(points):
        mean += (value - mean) / min(max(5, len(points) / 50), 1 + index / 10)
        found.append((step, mean))
    return found


def noisy(name: str, points: Sequence[tuple[float, float]]) -> list[Series]:
    """A curve and, where it has many points, its moving average over it."""
    if len(points) <= 100:
        return [Series(name, points)]
    return [Series(name, points, "faint"), Series(name, smooth(points))]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, 1, 2 or 5 times a power of ten apart: 2 to 6 of them.

    Example: from 0.9 to 5.1 they are 1, 2, 3, 4, 5.
    """
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


class Axis:
    """Where a value lies, in pixels from `at` to `to`; of powers, by their exponents."""

    def __init__(self, values: Sequence[float], at: float, to: float, powers: bool = False) -> None:
        self.powers, self.at, self.to = powers, at, to
        placed = [self._place(value) for value in values]
        self.low, self.high = min(placed), max(placed)
        if self.low == self.high:
            pad = abs(self.low) * 0.05 or 1.0
            self.low, self.high = self.low - pad, self.high + pad

    def _place(self, value: float) -> float:
        return math.log10(value) if self.powers else value

    def __call__(self, value: float) -> float:
        return self.at + (self._place(value) - self.low) / (self.high - self.low) * (self.to - self.at)

    def covers(self, value: float) -> bool:
        """Whether a value lies on the axis."""
        return self.low <= self._place(value) <= self.high

    def widen(self, part: float) -> None:
        """Leave room beyond the values."""
        room = (self.high - self.low) * part
        self.low, self.high = self.low - room, self.high + room

    def ticks(self) -> list[float]:
        """Where the axis is labelled."""
        if not self.powers:
            return ticks(self.low, self.high)
        whole = range(math.ceil(self.low), math.floor(self.high) + 1)
        every = max(1, -(-len(whole) // 5))
        return [10.0**exponent for exponent in whole if exponent % every == 0] if len(whole) > 1 else self._between()

    def _between(self) -> list[float]:
        return [10**exponent for exponent in ticks(self.low, self.high, 3)]


def draw(plot: Plot) -> str:
    """The plot as a <figure>."""
    steps = [step for series in plot.series for step, _ in series.points]
    begun = min(steps) + plot.skip * (max(steps) - min(steps))
    values = [value for series in plot.series for value in _reached(series, begun)]
    ordered = sorted(values)
    powers = plot.powers and ordered[0] > 0 and ordered[-1] > 20 * ordered[len(ordered) // 2]
    across = Axis(steps, LEFT, WIDTH - RIGHT)
    up = Axis(values, HEIGHT - BOTTOM, TOP, powers)
    up.widen(0.04)
    body = "".join((*_grid(across, up, plot.spell), *_curves(plot.series, across, up)))
    named = [each for each in plot.series if each.style != "faint"]
    last = ", ".join(plot.spell(each.points[-1][1]) for each in named)
    told = ", ".join(f"{each.name} {plot.spell(each.points[-1][1])}".strip() for each in named)
    keys = [f'<span class="k{number}">{escape(each.name)}</span>' for number, each in enumerate(named, 1) if each.name]
    return (
        f'<figure data-across="{escape(plot.across)}"><figcaption><b>{escape(plot.title)}</b>{"".join(keys)}'
        f"<output>{escape(last)}</output></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(plot.title)}, last {escape(told)}">'
        f"{body}</svg></figure>"
    )


def _reached(series: Series, begun: float) -> Iterator[float]:
    """The values of a curve from a step on, with the ends of its band."""
    errors = series.errors or [0.0] * len(series.points)
    for (step, value), error in zip(series.points, errors, strict=True):
        if step >= begun:
            yield from (value - error, value + error) if error else (value,)


def _grid(across: Axis, up: Axis, spell: Callable[[float], str]) -> Iterator[str]:
    for value in up.ticks():
        y = up(value)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(spell(value))}</text>'
    yield f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>'
    for step in across.ticks():
        yield f'<text x="{across(step):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{short(step)}</text>'


def _curves(series: Sequence[Series], across: Axis, up: Axis) -> Iterator[str]:
    number = 0
    for each in series:
        name = f"c{number + 1}"
        number += each.style != "faint"  # what is faint belongs to the next
        points = [(across(step), up(value)) for step, value in thin(each.points) if up.covers(value)]
        if any(each.errors):
            ends = [(s, v + e) for (s, v), e in zip(each.points, each.errors, strict=True)]
            ends += [(s, v - e) for (s, v), e in zip(each.points[::-1], each.errors[::-1], strict=True)]
            yield f'<path class="band {name}" d="M{"L".join(f"{across(s):.1f} {up(v):.1f}" for s, v in ends)}Z"/>'
        if each.style == "dots" or len(points) == 1:
            for x, y in points:
                yield f'<circle class="{name}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
        if len(points) > 1:
            line = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            yield f'<path class="{name} {each.style}" d="M{line}"/>'


def data(plots: Sequence[Plot]) -> str:
    """The points as JSON, for the script that tells the values under the pointer; safe inside a <script>."""
    told = [
        [[[*point, plot.spell(point[1])] for point in thin(s.points)] for s in plot.series if s.style != "faint"]
        for plot in plots
        if plot.series
    ]
    return json.dumps(told).replace("<", "\\u003c")
