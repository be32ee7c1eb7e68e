"""How a run went, as one page of HTML that needs nothing else: `neoxkit report`. No torch."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from html import escape
from pathlib import Path
from typing import Any

import yaml

from neoxkit.checkpoint.folder import list_checkpoints, lock
from neoxkit.checkpoint.format import MODEL
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.errors import CheckpointError
from neoxkit.log import warn
from neoxkit.spec import volume, whole
from neoxkit.train.metrics import EVENTS, FILE, read
from neoxkit.train.page import document, section, table
from neoxkit.train.plot import Plot, Series, draw, noisy, short

MANY = 200
"""Rows of a table, at most; the newest."""


@dataclass(frozen=True)
class Run:
    """What a run's folder says: its records and events, its checkpoints (path, bytes, time), the newest of them."""

    folder: Path
    records: Sequence[Mapping[str, Any]]
    events: Sequence[Mapping[str, Any]]
    checkpoints: Sequence[tuple[Path, int, datetime]]
    newest: Checkpoint | None
    given: Mapping[str, Any]
    resolved: Mapping[str, Any]
    alive: bool
    """Whether a process trains in the folder now."""

    @property
    def trained(self) -> list[Mapping[str, Any]]:
        """The records of steps."""
        return [record for record in self.records if "tokens" in record]

    def points(self, key: str) -> list[tuple[float, float]]:
        """The values of a measurement, by step."""
        return [(record["step"], float(record[key])) for record in self.records if key in record]

    @property
    def state(self) -> str:
        """going on, ended, stopped, failed, or unknown: when it was killed, or began before there were events."""
        if self.alive:
            return "going on"
        last = self.events[-1]["event"] if self.events else ""
        return last if last in ("ended", "stopped", "failed") else "not running"


def look(folder: Path) -> Run:
    """The run in a folder. Raises CheckpointError when nothing of a run is there."""
    if not folder.is_dir() or not (folder / FILE).is_file():
        raise CheckpointError(f"{folder} has no {FILE}", "name the folder of a run, its save.folder")
    found = [(path, *_extent(path)) for path in list_checkpoints(folder)]
    held = lock(folder)
    if held is not None:
        os.close(held)
    newest, given, resolved = _newest(folder) if found else (None, {}, {})
    records = [{key: value for key, value in record.items() if _is_number(value)} for record in read(folder)]
    return Run(folder, records, read(folder, EVENTS), found, newest, given, resolved, held is None)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _newest(folder: Path) -> tuple[Checkpoint | None, Mapping[str, Any], Mapping[str, Any]]:
    """The newest valid checkpoint, and the options of the run that it holds: as given, and resolved."""
    try:
        checkpoint = Checkpoint.open(folder)
        options = yaml.safe_load(checkpoint.run_yaml or "") or {}
    except (CheckpointError, yaml.YAMLError) as error:
        warn(f"the report does without the newest checkpoint: {error}")
        return None, {}, {}
    return checkpoint, options.get("given", {}), options.get("resolved", {})


def _extent(checkpoint: Path) -> tuple[int, datetime]:
    """The bytes of a checkpoint's files, and when it was written. Another process may remove it meanwhile."""
    total, written = 0, 0.0
    for path in checkpoint.rglob("*"):
        try:
            about = path.stat()
        except FileNotFoundError:
            continue
        total += about.st_size if path.is_file() else 0
        written = max(written, about.st_mtime)
    return total, datetime.fromtimestamp(written, timezone.utc)


def plots(run: Run) -> list[Plot]:
    """The curves of what was measured."""
    mfu, hfu = run.points("mfu"), run.points("hfu")
    loss = [*noisy("training", run.points("loss")), Series("held-out", run.points("valid_loss"), "dots")]
    found = [
        Plot("loss, nats a token", loss, lambda value: f"{value:.3f}", skip=0.02),
        Plot("learning rate", [Series("", run.points("lr"))], short),
        Plot("norm of the gradient", noisy("", run.points("norm")), short, powers=True),
        Plot("norm of the weights", [Series("", run.points("parameter_norm"))], short),
        Plot("noise scale, tokens", noisy("", run.points("noise_scale")), short, powers=True),
        Plot("tokens a second", noisy("", run.points("tokens_per_second")), short),
        Plot("utilisation", [*noisy("MFU", mfu), *noisy("HFU", hfu if hfu != mfu else [])], _percent),
        Plot("peak memory", [Series("", run.points("memory"))], size),
        Plot("waiting, part of a step", _waits(run), _percent),
        Plot("loss scale", [Series("", run.points("loss_scale"))], short, powers=True),
    ]
    drawn = []
    for plot in found:
        series = [each for each in plot.series if each.points]
        if series:
            drawn.append(plot._replace(series=series))
    return drawn


def _waits(run: Run) -> list[Series]:
    """Which part of each step went by waiting for data, and for other processes."""
    series = []
    for name, key in (("data", "data_seconds"), ("others", "wait_seconds")):
        shares = [(r["step"], r[key] / r["seconds"]) for r in run.records if key in r and r.get("seconds")]
        series += noisy(name, shares)
    return series


def _percent(value: float) -> str:
    return f"{value:.1%}"


def size(value: float) -> str:
    """Bytes: "1.5 GB"."""
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} B"


def page(run: Run) -> str:
    """The whole page."""
    shown = plots(run)
    name = run.folder.resolve().name
    parts = (
        _head(run, escape(name)),
        _tiles(run),
        '<section class="plots">',
        *(draw(plot) for plot in shown),
        "</section>",
        section("Last values", table(("measurement", "value", "step"), _last(run))),
        section("Events", table(("time", "step", "event"), list(_events(run))[-MANY:])),
        section("Checkpoints", table(("checkpoint", "size", "written"), _checkpoints(run)[-MANY:])),
        section("Where it comes from", table(("event", "about"), _lineage(run))),
        _yaml("Options as given", run.given),
        _yaml("All options", run.resolved),
    )
    return document(name, "".join(parts), shown)


def _head(run: Run, name: str) -> str:
    model, steps = run.resolved.get("model", {}), run.resolved.get("steps")
    step = run.trained[-1]["step"] if run.trained else 0
    about = []
    if model:
        about.append(f"{model.get('family')}, {model.get('depth')} layers of {model.get('width')}")
    if run.newest is not None:
        tensors = run.newest.manifest.tensors.items()
        count = sum(volume(whole(entry.spec.shape)) for key, entry in tensors if key.startswith(MODEL))
        about.append(f"{short(count)} parameters")
    if run.resolved.get("precision"):
        about.append(str(run.resolved["precision"]))
    of = f" of {steps:,}" if isinstance(steps, int) else ""
    part = min(1.0, step / steps) if isinstance(steps, int) and steps else 0.0
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    state = run.state
    return (
        f'<header><h1>{name}</h1><p class="state {state.replace(" ", "-")}">{state}</p>'
        f"<p>step {step:,}{of}{' · ' + escape(', '.join(about)) if about else ''}</p>"
        f'<div class="bar"><i style="width:{part:.1%}"></i></div><p class="quiet">As of {made}</p></header>'
    )


def _tiles(run: Run) -> str:
    """The numbers that one looks for first."""
    trained = run.trained
    last = trained[-1] if trained else {}
    seconds = sum(record.get("seconds", 0.0) for record in trained)
    tokens = sum(record["tokens"] for record in trained)
    tiles = [
        ("loss", f"{last['loss']:.4f}" if "loss" in last else "", "nats a token"),
        ("held-out loss", *_judged(run)),
        ("perplexity", short(last["perplexity"]) if "perplexity" in last else "", "training"),
        ("tokens", short(tokens) if trained else "", "learned from"),
        ("speed", short(last["tokens_per_second"]) if "tokens_per_second" in last else "", "tokens a second"),
        ("MFU", _percent(last["mfu"]) if "mfu" in last else "", "of the devices' peak"),
        ("memory", size(last["memory"]) if "memory" in last else "", "at most"),
        ("time", str(timedelta(seconds=round(seconds))) if trained else "", "in steps"),
    ]
    made = (
        f'<div class="tile"><span>{name}</span><b>{escape(value)}</b><small>{escape(unit)}</small></div>'
        for name, value, unit in tiles
        if value
    )
    return f'<section class="tiles">{"".join(made)}</section>'


def _judged(run: Run) -> tuple[str, str]:
    points = run.points("valid_loss")
    if not points:
        return "", ""
    best = min(points, key=lambda point: point[1])
    return f"{points[-1][1]:.4f}", f"best {best[1]:.4f} at step {best[0]:,}"


def _last(run: Run) -> list[tuple[str, str, str]]:
    """The newest value of each measurement."""
    newest: dict[str, tuple[Any, int]] = {}
    for record in run.records:
        newest.update({key: (value, record["step"]) for key, value in record.items() if key != "step"})
    rows = []
    for key, (value, step) in sorted(newest.items()):
        said = f"{value:.6g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
        rows.append((key, said, f"{step:,}"))
    return rows


def _events(run: Run) -> Iterator[tuple[str, str, str]]:
    """What happened, by step: the events of the folder, and stretches of skipped steps."""
    rows = [
        (e["step"], str(e.get("time", "")), str(e["event"]) + (f": {e['cause']}" if "cause" in e else ""))
        for e in run.events
        if "event" in e
    ]
    stretch: list[int] = []
    skipped = [record["step"] for record in run.records if record.get("skipped")]
    for step in [*skipped, None]:
        if stretch and step != stretch[-1] + 1:
            steps = f"step {stretch[0]:,}" if len(stretch) == 1 else f"steps {stretch[0]:,} to {stretch[-1]:,}"
            rows.append((stretch[0], "", f"{steps} skipped: the gradient overflowed"))
            stretch = []
        if step is not None:
            stretch.append(step)
    for step, time, what in sorted(rows, key=lambda row: row[0]):
        yield time.replace("T", " ").removesuffix("+00:00"), f"{step:,}", what


def _checkpoints(run: Run) -> list[tuple[str, str, str]]:
    return [(path.name, size(count), f"{at:%Y-%m-%d %H:%M} UTC") for path, count, at in run.checkpoints]


def _lineage(run: Run) -> list[tuple[str, str]]:
    """How the newest checkpoint came about."""
    events = run.newest.manifest.lineage if run.newest is not None else ()
    return [
        (str(event.get("event")), ", ".join(f"{key} {value}" for key, value in event.items() if key != "event"))
        for event in events
    ]


def _yaml(title: str, options: Mapping[str, Any]) -> str:
    if not options:
        return ""
    text = yaml.safe_dump(dict(options), sort_keys=False, allow_unicode=True)
    return f"<details><summary>{title}</summary><pre>{escape(text)}</pre></details>"
