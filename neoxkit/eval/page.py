"""Scores as one page of HTML that needs nothing else. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from html import escape

from neoxkit.eval import tables
from neoxkit.eval.charts import Bars, draw_bars, style
from neoxkit.eval.scores import Scores
from neoxkit.train.page import document, section, table
from neoxkit.train.plot import Plot, draw

ERRORS = "Bands and whiskers, and what follows ±, are one standard error."


def page(scores: Scores, charts: Sequence[Plot] | Sequence[Bars]) -> str:
    """The whole page: charts, the scores, how the tasks were put, and which weights these are."""
    names = list(scores.runs) if scores.over_steps else [model.label for model in scores.models]
    title = f"Scores of {', '.join(names[:4])}" + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    drawn = [draw_bars(chart) if isinstance(chart, Bars) else draw(chart) for chart in charts]
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    body = (
        f'<main><header><h1>{escape(title)}</h1><p class="quiet">As of {made}. {ERRORS}</p></header>',
        section("Charts", f'<div class="plots">{"".join(drawn)}</div>' if drawn else ""),
        section("Scores", _table(tables.table(scores), "Scores") + _notes(scores)),
        section("How the tasks were put", _table(tables.settings_table(scores), "Settings of tasks")),
        section("Models", _table(tables.models_table(scores), "Models")),
        "</main>",
    )
    return document(title, "".join(body), [chart for chart in charts if isinstance(chart, Plot)], style())


def _table(shown: tables.Table, caption: str) -> str:
    return table(shown.head, shown.rows, caption, headers=1, marked={"better": "better", "worse": "worse"})


def _notes(scores: Scores) -> str:
    return "".join(f"<p>{escape(note)}</p>" for note in tables.notes(scores))
