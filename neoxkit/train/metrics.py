"""What a run tells about itself: metrics.jsonl, a line while it goes on, and a curve at the end."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from neoxkit.log import console, note

FILE = "metrics.jsonl"
CURVE = "loss.png"


def read(folder: Path) -> list[dict[str, Any]]:
    """The records of a run in order. A line that a crash cut short, or that is no record, is left out."""
    path = folder / FILE
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and type(record.get("step")) is int:
            records.append(record)
    return records


class Metrics:
    """Takes the records of a run from step `begun` on; earlier records stay, later ones are dropped.

    Without a folder, as on all processes of a job but the first, nothing is kept or shown.
    """

    def __init__(self, folder: Path | None, begun: int, steps: int, every: int) -> None:
        self.folder, self.steps, self.every = folder, steps, every
        self._drop_after(begun)
        self._file: TextIO | None = None  # opened with the first record: a run refused leaves nothing
        self._pace = 0.0  # seconds a step, smoothed
        self._live = Live(begun, steps) if folder and sys.stderr.isatty() else None

    def __enter__(self) -> Metrics:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live:
            self._live.__exit__(kind, error, at)
        if self._file:
            self._file.close()

    def _drop_after(self, step: int) -> None:
        if self.folder is None or not (path := self.folder / FILE).is_file():
            return
        kept = [json.dumps(record) + "\n" for record in read(self.folder) if record["step"] <= step]
        aside = path.with_name(f".{FILE}.partial")
        aside.write_text("".join(kept), encoding="utf-8")
        os.replace(aside, path)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record to the file."""
        if self.folder is None:
            return
        if self._file is None:
            self._file = (self.folder / FILE).open("a", encoding="utf-8", buffering=1)
        self._file.write(json.dumps(record) + "\n")

    def step(self, record: Mapping[str, Any]) -> None:
        """Append the record of a step, and tell of it: live on a terminal, else every so many steps."""
        self.write(record)
        seconds = record["seconds"]
        self._pace = 0.9 * self._pace + 0.1 * seconds if self._pace else seconds
        rate = record["tokens"] / self._pace if self._pace else 0.0
        if self._live:
            self._live.update(record, rate, self._pace)
        elif record["step"] % self.every == 0 or record["step"] == self.steps:
            left = timedelta(seconds=round((self.steps - record["step"]) * self._pace))
            note(
                f"step {record['step']}/{self.steps}  loss {record['loss']:.4f}  {rate:,.0f} tokens/s  "
                f"lr {record['lr']:.2e}  {left} left"
            )

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """Append the record of an evaluation, and tell of it."""
        self.write(record)
        bits = f"  {record['bits_per_byte']:.4f} bits per byte" if "bits_per_byte" in record else ""
        self.tell(f"step {record['step']}/{self.steps}  held-out loss {record['valid_loss']:.4f}{bits}")

    def tell(self, message: str) -> None:
        """A line that stays, above the live one."""
        if self._live:
            self._live.tell(message)
        else:
            note(message)


class Live:
    """The live line on a terminal: bar, step, loss, tokens/s, learning rate, time left."""

    def __init__(self, begun: int, steps: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._bar = Progress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            console=console(),
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("train", total=steps, completed=begun, said="")
        self._steps = steps

    def __enter__(self) -> Live:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def update(self, record: Mapping[str, Any], rate: float, pace: float) -> None:
        """Show a step."""
        left = timedelta(seconds=round((self._steps - record["step"]) * pace))
        said = f"loss {record['loss']:.4f}  {rate:,.0f} tokens/s  lr {record['lr']:.2e}  {left} left"
        self._bar.update(self._task, completed=record["step"], said=said)

    def tell(self, message: str) -> None:
        """Print a line above."""
        self._bar.console.print(message, markup=False, highlight=False)


def draw(folder: Path) -> Path | None:
    """Draw the losses of a run to loss.png; None, with a note, where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        note("no loss curve: matplotlib is not installed (pip install 'neoxkit[plot]')")
        return None
    records = read(folder)
    trained = [(r["step"], r["loss"]) for r in records if "loss" in r]
    judged = [(r["step"], r["valid_loss"]) for r in records if "valid_loss" in r]
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(*zip(*trained, strict=True), linewidth=1, label="training") if trained else None
    axes.plot(*zip(*judged, strict=True), marker="o", markersize=4, label="held-out") if judged else None
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    aside = folder / f".{CURVE}.partial"
    figure.savefig(aside, format="png", dpi=120)
    os.replace(aside, folder / CURVE)
    return folder / CURVE
