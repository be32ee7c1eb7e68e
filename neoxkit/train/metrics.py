"""What a run tells about itself: metrics.jsonl, a line while it goes on, and a curve at the end."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from neoxkit.config.run import RunConfig
from neoxkit.log import note
from neoxkit.train.live import Live
from neoxkit.train.trackers import Trackers, open_trackers

FILE = "metrics.jsonl"
EVENTS = "events.jsonl"
CURVE = "loss.png"


def read(folder: Path, name: str = FILE) -> list[dict[str, Any]]:
    """The records of a run in order. A line that a crash cut short, or that is no record, is left out."""
    path = folder / name
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

    Events stay for ever: they tell how the run came about. Without a folder, as on all processes of a
    job but the first, nothing is kept or shown.
    """

    def __init__(
        self, folder: Path | None, begun: int, steps: int, every: int, trackers: Trackers | None = None
    ) -> None:
        """Nothing is written before the first record: a run refused leaves nothing."""
        self.folder, self.begun, self.steps, self.every = folder, begun, steps, every
        self._drop_after(begun)
        self._trackers = trackers or Trackers({})
        self._files: dict[str, TextIO] = {}
        self._events: list[dict[str, Any]] = []
        self.code = 0
        """What the run ends with, as its process does."""
        self._pace = 0.0  # seconds a step, smoothed
        self._live = Live(begun, steps) if folder and sys.stderr.isatty() else None

    def __enter__(self) -> Metrics:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live:
            self._live.__exit__(kind, error, at)
        for file in self._files.values():
            file.close()
        if error is not None:
            code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)
            self._trackers.close(code, " ".join(str(error).split()) or type(error).__name__)
        else:
            self._trackers.close(self.code, f"signal {self.code - 128}" if self.code else "")

    def _drop_after(self, step: int) -> None:
        if self.folder is None or not (path := self.folder / FILE).is_file():
            return
        kept = [json.dumps(record) + "\n" for record in read(self.folder) if record["step"] <= step]
        aside = path.with_name(f".{FILE}.partial")
        aside.write_text("".join(kept), encoding="utf-8")
        os.replace(aside, path)

    def rewind(self, step: int) -> None:
        """Drop the records of later steps: they will be made anew."""
        if (file := self._files.pop(FILE, None)) is not None:
            file.close()
        self._drop_after(step)

    def write(self, record: Mapping[str, Any], name: str = FILE) -> None:
        """Append a record to a file of the run."""
        if self.folder is None:
            return
        if name not in self._files:
            self._files[name] = (self.folder / name).open("a", encoding="utf-8", buffering=1)
        self._files[name].write(json.dumps(record) + "\n")

    def event(self, what: str, step: int, **about: Any) -> None:
        """Append what happened after a step, with the time: begun, resumed, stopped, ended, failed.

        It is written once there is a step: of a run that is refused before that, nothing is left.
        """
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._events.append({"step": step, "event": what, "time": now, **about})
        if self._files:
            self._write_events()

    def _write_events(self) -> None:
        for event in self._events:
            self.write(event, EVENTS)
        self._events.clear()

    def step(self, record: Mapping[str, Any]) -> None:
        """Append the record of a step, and tell of it: live on a terminal, else every so many steps."""
        self.write(record)
        self._write_events()
        self._trackers.log(record)
        seconds = record["seconds"]
        self._pace = 0.9 * self._pace + 0.1 * seconds if self._pace else seconds
        rate = record["tokens"] / self._pace if self._pace else 0.0
        if self._live:
            self._live.update(record, rate, self._pace)
        elif record["step"] % self.every == 0 or record["step"] == self.steps:
            left = timedelta(seconds=round((self.steps - record["step"]) * self._pace))
            used = f"  MFU {record['mfu']:.1%}" if "mfu" in record else ""
            note(
                f"step {record['step']}/{self.steps}  loss {record.get('loss', math.nan):.4f}  "
                f"{rate:,.0f} tokens/s{used}  lr {record['lr']:.2e}  {left} left"
            )

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """Append the record of an evaluation, and tell of it."""
        self.write(record)
        self._trackers.log(record)
        if self._live:
            self._live.evaluation(record)
        bits = f"  {record['bits_per_byte']:.4f} bits per byte" if "bits_per_byte" in record else ""
        self.tell(f"step {record['step']}/{self.steps}  held-out loss {record['valid_loss']:.4f}{bits}")

    def tell(self, message: str) -> None:
        """A line that stays, above the live one."""
        if self._live:
            self._live.tell(message)
        else:
            note(message)


def open_metrics(config: RunConfig, folder: Path, begun: int, first: bool) -> Metrics:
    """What takes the records of a run that goes on after step `begun`, on the first process of a job or another.

    Raises ModuleNotFoundError for a tracker that is not installed.
    """
    trackers = open_trackers(config, folder, begun) if first else None
    return Metrics(folder if first else None, begun, config.steps, config.logging.every, trackers)


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
