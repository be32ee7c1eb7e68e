"""Scores as tables of text, for the terminal and for a page. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from math import isfinite
from typing import NamedTuple

from neoxkit.eval.comparison import CONFIDENCE, QUANTILE, Difference
from neoxkit.eval.results import Score
from neoxkit.eval.scores import Model, Row, Scores
from neoxkit.eval.settings import NAMES, short

EXPECTED_FROM = 10
"""Comparisons from which on some would exceed their error by chance alone, so that it is worth saying."""


class Table(NamedTuple):
    """Texts under names. The first `left` columns name the rows, numbers follow; with `verdict` words are last."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int
    verdict: bool = False


def number(value: float) -> str:
    """A value of a metric: four decimals, fewer for large ones, and a power of ten for what is beyond reading."""
    if not isfinite(value):
        return "no number"
    if abs(value) < 1000:
        return f"{value:.4f}"
    return f"{value:,.1f}" if abs(value) < 1e7 else f"{value:.3e}"


def spell(score: Score | None) -> str:
    """A score with its standard error: "0.4700 ± 0.0500"."""
    if score is None:
        return "-"
    return number(score.value) + ("" if score.error is None else f" ± {number(score.error)}")


def metric_name(scores: Scores, row: Row) -> str:
    """The metric; where it is so, that lower is better."""
    return row.metric + (" (lower is better)" if scores.higher(row) is False else "")


def table(scores: Scores) -> Table:
    """Tasks by models; with two models their difference; of steps of runs, tasks and steps by runs."""
    return _steps(scores) if scores.over_steps else _models(scores)


def _about(scores: Scores, row: Row) -> list[str]:
    return [scores.name(row), metric_name(scores, row), row.settings.shots or "-"]


def _models(scores: Scores) -> Table:
    head = ["task", "metric", "n-shot", *(model.label for model in scores.models)]
    compared = scores.comparison
    if compared is not None:
        head += ["difference", "error from", f"{scores.models[1].label} is"]
    rows = []
    for row in scores.rows:
        cells = [*_about(scores, row), *(spell(_score(model, row)) for model in scores.models)]
        if compared is not None:
            cells += _difference(compared[row])
        rows.append(cells)
    return Table(head, rows, 3, compared is not None)


def _difference(told: Difference | str) -> list[str]:
    if isinstance(told, str):
        return ["-", "-", told]
    sign = "+" if told.value >= 0 else ""
    value = sign + number(told.value) + ("" if told.error is None else f" ± {number(told.error)}")
    how = f"{told.paired:,} pairs" if told.paired else f"each alone: {told.why}"
    return [value, how if told.error is not None else "-", told.verdict]


def _score(model: Model, row: Row) -> Score | None:
    return model.cells[row][0] if row in model.cells else None


def _steps(scores: Scores) -> Table:
    rows = []
    for row in scores.rows:
        steps = {model.about.step for model in scores.models if row in model.cells}
        for step in sorted(steps, key=lambda step: -1 if step is None else step):
            cells = []
            for models in scores.runs.values():
                there = [model for model in models if model.about.step == step]
                cells.append(spell(_score(there[0], row) if there else None))
            rows.append([*_about(scores, row), "-" if step is None else f"{step:,}", *cells])
    return Table(["task", "metric", "n-shot", "step", *scores.runs], rows, 3)


def models_table(scores: Scores) -> Table:
    """Which weights the scores are of, and when and by what they were measured."""
    rows = []
    for model in scores.models:
        about = model.about
        when = datetime.fromtimestamp(about.date, timezone.utc)
        counts = ["-" if count is None else f"{count:,}" for count in (about.step, about.tokens)]
        rows.append(
            [
                model.label,
                about.name,
                *counts,
                about.fingerprint or "-",
                about.dtype or "-",
                about.backend or "-",
                f"{when:%Y-%m-%d %H:%M} UTC" if about.date else "-",
            ]
        )
    return Table(["model", "name", "step", "tokens", "fingerprint", "dtype", "run by", "measured"], rows, 2)


def settings_table(scores: Scores) -> Table:
    """How each task was put."""
    rows = []
    for row in {(row.task, row.settings): row for row in scores.rows}.values():
        told = (getattr(row.settings, field) for field in NAMES)
        rows.append([scores.name(row), *("-" if value is None else short(value) for value in told)])
    return Table(["task", *NAMES.values()], rows, 1)


def notes(scores: Scores) -> Iterator[str]:
    """What one has to know to read the table, a sentence each."""
    if several := [task for task, ways in scores.variants.items() if len(ways) > 1]:
        yield f"Put in several ways, which are not compared with each other: {', '.join(several)}."
    if scores.unsure:
        yield f"Without samples (--log_samples) nobody knows whether prompts were the same: {', '.join(scores.unsure)}."
    compared = [told for told in (scores.comparison or {}).values() if isinstance(told, Difference)]
    judged = [told for told in compared if told.error is not None]
    if compared:
        yield f"Differences are {scores.models[1].label} minus {scores.models[0].label}."
    if judged:
        yield f"A difference counts when it exceeds {QUANTILE:.2f} of its standard errors ({CONFIDENCE:.0%})."
    if len(judged) >= EXPECTED_FROM:
        chance = (1 - CONFIDENCE) * len(judged)
        yield f"Of {len(judged)} comparisons of equal models about {chance:.0f} would exceed their error by chance."


def lines(shown: Table) -> Iterator[str]:
    """A table for a terminal: words to the left, numbers to the right, the last column as it is."""
    last = len(shown.head) - 1
    cells = [shown.head, *shown.rows]
    widths = [max(len(row[column]) for row in cells) for column in range(last + 1)]
    words = set(range(shown.left)) | ({last} if shown.verdict else set())
    for row in cells:
        padded = (
            cell.ljust(width) if column in words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(padded).rstrip()
