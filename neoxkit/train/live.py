"""The live view of a run on a terminal: a bar, and under it what was measured last."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

from neoxkit.log import console

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

BARS = "▁▂▃▄▅▆▇█"
POINTS = 24
"""Columns of the loss's small curve."""


class Live:
    """A few lines at the foot of the terminal, drawn anew four times a second; what is told stays above them."""

    def __init__(self, begun: int, steps: int) -> None:
        from rich.live import Live as Region
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn

        self._console = console()
        self._steps, self._begun = steps, begun
        self._bar = Progress(
            TextColumn("[bold]train"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            expand=True,
        )
        self._task = self._bar.add_task("train", total=steps, completed=begun, left="")
        self._records: deque[Mapping[str, Any]] = deque(maxlen=POINTS * 8)
        self._rate = 0.0
        self._judged: Mapping[str, Any] | None = None
        self._since = time.monotonic()
        self._region = Region(
            console=self._console, get_renderable=self.view, refresh_per_second=4, redirect_stdout=False
        )

    def __enter__(self) -> Live:
        self._region.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._region.stop()

    def update(self, record: Mapping[str, Any], rate: float, pace: float) -> None:
        """Show a step: tokens a second and seconds a step, both smoothed."""
        left = timedelta(seconds=round((self._steps - record["step"]) * pace))
        self._records.append(record)
        self._rate = rate
        self._bar.update(self._task, completed=record["step"], left=f"{left} left")

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """Show the newest loss on held-out data."""
        self._judged = record

    def tell(self, message: str) -> None:
        """Print a line above."""
        self._console.print(message, markup=False, highlight=False)

    def view(self) -> RenderableType:
        """What is shown now."""
        from rich.console import Group
        from rich.text import Text

        if not self._records:
            return Group(self._bar, Text("waiting for the first step", style="dim"))
        lines = [line for pairs in (self._learning(), self._speed()) for line in self._lines(pairs)]
        return Group(self._bar, *lines)

    def _lines(self, pairs: list[tuple[str, str]]) -> list[Text]:
        """Names and values in as many lines as the terminal's width asks for; a name stands with its value."""
        from rich.text import Text

        lines: list[Text] = []
        for name, value in pairs:
            if not lines or lines[-1].cell_len + len(name) + len(value) + 4 > self._console.width:
                lines.append(Text())
            line = lines[-1]
            line.append("   " if line else "").append(f"{name} ", style="dim")
            line.append(value, style="bold" if name == "loss" else "")
        return lines

    def _learning(self) -> list[tuple[str, str]]:
        """What the last step says of the model."""
        last = self._records[-1]
        told = []
        if "loss" in last:
            told.append(("loss", f"{last['loss']:.4f} {self._curve()}".rstrip()))
        if "perplexity" in last:
            told.append(("perplexity", f"{last['perplexity']:,.4g}"))
        if self._judged is not None:
            told.append(("held-out", f"{self._judged['valid_loss']:.4f} at step {self._judged['step']:,}"))
        told.append(("lr", f"{last['lr']:.2e}"))
        if "norm" in last:
            told.append(("gradient", f"{last['norm']:.3g}"))
        if (skipped := sum(bool(record.get("skipped")) for record in self._records)) > 0:
            told.append(("skipped", f"{skipped} of the last {len(self._records)} steps"))
        return told

    def _speed(self) -> list[tuple[str, str]]:
        """What it says of the machine."""
        last = self._records[-1]
        told = [("tokens/s", f"{self._rate:,.0f}")]
        if "mfu" in last:
            told.append(("MFU", f"{last['mfu']:.1%}"))
        if "memory" in last:
            told.append(("memory", f"{last['memory'] / 1e9:.2f} GB"))
        for name, key in (("data", "data_seconds"), ("waiting", "wait_seconds")):
            if key in last and last["seconds"]:
                told.append((name, f"{last[key] / last['seconds']:.0%}"))
        told.append(("running", str(timedelta(seconds=round(time.monotonic() - self._since)))))
        return told

    def _curve(self) -> str:
        """The losses of the last steps as small bars, where the terminal knows such letters."""
        losses = [record["loss"] for record in self._records if "loss" in record]
        if len(losses) < 2 or not self._console.encoding.lower().startswith("utf"):
            return ""
        return curve(losses, POINTS)


def curve(values: list[float], points: int) -> str:
    """Numbers as a line of at most `points` bars, each the mean of as many neighbours.

    Example: [3, 2, 1] is "█▅▁".
    """
    size = -(-len(values) // points)
    means = [sum(part) / len(part) for i in range(0, len(values), size) if (part := values[i : i + size])]
    low, span = min(means), max(means) - min(means)
    return "".join(BARS[round((mean - low) / span * (len(BARS) - 1)) if span else 0] for mean in means)
