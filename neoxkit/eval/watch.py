"""The checkpoints of a run, evaluated as they come: a line of scores for each, beside the run's metrics."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from neoxkit.checkpoint.folder import list_checkpoints, step_of
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.convert.open import is_foreign
from neoxkit.errors import CheckpointError, ConfigError
from neoxkit.log import note, warn
from neoxkit.train import metrics

FILE = "evaluations.jsonl"
"""In a run's folder: a record for each checkpoint and each set of benchmarks.

step        of the checkpoint
tokens      that it was trained on
model_sha   the fingerprint of its weights
settings    16 hexadecimal digits that stand for the benchmarks and how they were asked
date        when it was done, in UTC
scores      {"TASK/METRIC": value}; with a filter other than none, "TASK/METRIC,FILTER"
errors      {"TASK/METRIC": standard error}, where there is one
"""


def settings_key(settings: Mapping[str, Any]) -> str:
    """What a record knows its settings by: equal for equal ones."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def read(run: Path) -> list[dict[str, Any]]:
    """The records of a run in order. A line that a crash cut short, or that is no record, is left out."""
    return metrics.read(run, FILE)


def scores(results: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """The values and the standard errors of the harness's results, by "TASK/METRIC"."""
    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    for task, row in {**results["results"], **results.get("groups", {})}.items():
        for key, value in row.items():
            metric, comma, chosen = key.partition(",")
            if not comma or not isinstance(value, int | float):
                continue
            name = f"{task}/{metric.removesuffix('_stderr')}" + ("" if chosen == "none" else f",{chosen}")
            (errors if metric.endswith("_stderr") else values)[name] = value
    return values, errors


def watch(
    run: Path, evaluate: Callable[[Path], Mapping[str, Any]], settings: str, poll: float, begin: int = 0
) -> Iterator[dict[str, Any]]:
    """Evaluate each checkpoint of a run, from step `begin` on, that has no record yet; each record as it is added.

    Looks for new ones every `poll` seconds, and ends when the run's last step is evaluated. Raises ConfigError when
    it is not a run's folder, and whatever `evaluate` raises but for a checkpoint that is gone or damaged: that is told,
    and passed over.
    """
    if not run.is_dir():
        raise ConfigError(f"{run}: no such folder", "name the folder of a run (save.folder)")
    if (run / "manifest.json").is_file():
        raise ConfigError(f"{run}: a checkpoint, not a run's folder", f"name {run.parent}, or leave --watch out")
    if is_foreign(run):
        raise ConfigError(f"{run}: a model of another program, not a run's folder", "leave --watch out")
    passed_over: set[Path] = set()
    told = False
    while True:
        done = {record["step"] for record in read(run) if record.get("settings") == settings}
        waiting = [path for path in list_checkpoints(run) if path not in passed_over and step_of(path) >= begin]
        for path in (each for each in waiting if step_of(each) not in done):
            try:
                with Checkpoint.open(path) as checkpoint:
                    manifest = checkpoint.manifest
                found = evaluate(path)
            except CheckpointError as error:
                warn(f"{path} is not evaluated: {error.cause}")
                passed_over.add(path)
                continue
            yield _append(run, manifest.step, manifest.tokens, settings, found)
            break  # others may have come, or gone
        else:
            if is_complete(run):
                return
            if not told:
                note(f"waiting for checkpoints of {run}")
                told = True
            time.sleep(poll)


def _append(run: Path, step: int, tokens: int, settings: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """Add a record; a file whose last line was cut short goes on with a new one."""
    values, errors = scores(results)
    record = {
        "step": step,
        "tokens": tokens,
        "model_sha": results["config"]["model_sha"],
        "settings": settings,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "scores": values,
        "errors": errors,
    }
    with open(run / FILE, "a+b") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(record).encode() + b"\n")
    return record


def is_complete(run: Path) -> bool:
    """Whether a run has its last checkpoint: that of the step at which it ends by its own configuration."""
    from yaml import YAMLError, safe_load

    found = list_checkpoints(run)
    if not found:
        return False
    try:
        with Checkpoint.open(found[-1]) as checkpoint:
            stated = safe_load(checkpoint.run_yaml or "")
    except (CheckpointError, YAMLError):
        return False
    resolved = stated.get("resolved") if isinstance(stated, dict) else None
    steps = resolved.get("steps") if isinstance(resolved, dict) else None
    return isinstance(steps, int) and step_of(found[-1]) >= steps
