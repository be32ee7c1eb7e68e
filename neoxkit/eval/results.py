"""Results of lm-evaluation-harness, written by `neoxkit eval` or by the harness itself. No torch, no harness."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neoxkit.checkpoint.json_text import parse_object
from neoxkit.errors import CheckpointError, DataError
from neoxkit.eval.settings import Settings, settings_of

_STEP = re.compile(r"(?:step|checkpoint|global_step)[-_]?0*(\d+)")
_LAST = 253_402_300_800  # the end of the year 9999, in seconds since 1970
_NO_METRIC = {"name", "alias", "sample_len", "sample_count", "samples"}
REMEDY = "name files that lm_eval or `neoxkit eval --tasks` wrote, or folders of them"


@dataclass(frozen=True, slots=True)
class Score:
    """A value of a metric, its standard error (None where there is none), and whether higher is better, if known."""

    value: float
    error: float | None
    higher: bool | None


@dataclass(frozen=True, slots=True)
class Result:
    """What a results file says.

    name is the model's: of a checkpoint of a run, the run's; step says which checkpoint. fingerprint tells the
    weights: neoxkit's of a checkpoint, or the commit of a model of the Hugging Face Hub. backend is what ran the
    model, as the harness calls it. date is in seconds since 1970.
    """

    path: Path
    date: float
    name: str
    step: int | None
    tokens: int | None
    fingerprint: str | None
    dtype: str | None
    backend: str | None
    scores: Mapping[str, Mapping[str, Score]]
    """By task, then by metric; with a filter as "exact_match,strict-match"."""
    settings: Mapping[str, Settings]
    """By task."""

    def samples(self, task: str) -> Path | None:
        """The file of what was asked and answered, when it is beside this one."""
        date = self.path.stem.rpartition("_")[2]
        found = self.path.with_name(f"samples_{task}_{date}.jsonl")
        return found if found.is_file() else None


def find(places: Sequence[Path]) -> list[Path]:
    """The results files that are named, and those in the folders named, each once.

    Raises DataError for what is not there, and for a folder without any.
    """
    found: dict[Path, Path] = {}
    for where in places:
        if where.is_dir():
            files = sorted(where.rglob("results_*.json"))
            if not files:
                raise DataError(f"{where}: no results_*.json in this folder", REMEDY)
        elif where.is_file():
            files = [where]
        else:
            raise DataError(f"{where}: no such file or folder", REMEDY)
        for path in files:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def read(path: Path) -> Result:
    """What a results file says. Raises DataError when it is none."""
    try:
        tree = parse_object(path.read_bytes(), str(path), REMEDY)
    except CheckpointError as error:
        raise DataError(error.cause, error.remedy) from error
    results, config = tree.get("results"), tree.get("config")
    if not isinstance(results, dict) or not isinstance(config, dict) or "versions" not in tree:
        raise DataError(f"{path}: not results of an evaluation, which have `results`, `versions` and `config`", REMEDY)
    higher = tree.get("higher_is_better")
    scores = {
        str(task): dict(_scores(metrics, higher.get(task) if isinstance(higher, dict) else None))
        for task, metrics in results.items()
        if isinstance(metrics, dict)
    }
    scores = {task: found for task, found in scores.items() if found}  # a group may have none of its own
    date = tree.get("date")
    name, step, tokens = _model(tree, config)
    return Result(
        path=path,
        date=date if isinstance(date, (int, float)) and 0 < date < _LAST else 0.0,
        name=name,
        step=step,
        tokens=tokens,
        fingerprint=_text(config.get("model_sha")),
        dtype=(_text(config.get("model_dtype")) or "").removeprefix("torch.") or None,
        backend=_text(config.get("model")),
        scores=scores,
        settings={task: settings_of(tree, task) for task in scores},
    )


def _scores(metrics: Mapping[str, Any], higher: object) -> Iterator[tuple[str, Score]]:
    """Metric and score: the harness writes "acc,none": 0.5 and "acc_stderr,none": 0.1, or "N/A"."""
    for key, value in metrics.items():
        metric, _, kept = key.partition(",")
        if key in _NO_METRIC or metric.endswith("_stderr") or isinstance(value, bool):
            continue
        if not isinstance(value, (int, float)):
            continue
        error = metrics.get(f"{metric}_stderr,{kept}" if kept else f"{metric}_stderr")
        better = higher.get(metric) if isinstance(higher, dict) else None
        yield (
            metric if kept in ("", "none") else key,
            Score(_number(value), _finite(error), better if isinstance(better, bool) else None),
        )


def _number(value: float) -> float:
    """JSON may have whole numbers that no float can hold."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(_number(value)) else None


def _text(value: object) -> str | None:
    return str(value) if value not in (None, "") else None


def _model(tree: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, int | None, int | None]:
    """The model's name, the step of its run and the tokens that it learned from, where they are known."""
    ours = config.get("neoxkit")
    given = config.get("model_args")
    arguments = dict(given) if isinstance(given, dict) else dict(_arguments(given)) if isinstance(given, str) else {}
    if isinstance(ours, dict) and _text(ours.get("source")):
        name, step = _run(str(ours["source"]))
        name = name if name.strip("./") else _text(tree.get("model_name")) or name
        step = ours["step"] if isinstance(ours.get("step"), int) else step
        return name, step, ours["tokens"] if isinstance(ours.get("tokens"), int) else None
    called = (tree.get("model_name"), arguments.get("pretrained"), arguments.get("model"), config.get("model"))
    name, step = _run(next(filter(None, map(_text, called)), "unnamed"))
    revision = _text(arguments.get("revision")) or _text(config.get("model_revision")) or "main"
    if found := _STEP.fullmatch(revision):
        step = int(found[1])
    elif revision != "main":
        name += f"@{revision}"
    return name, step, None


def _arguments(text: str) -> Iterator[tuple[str, str]]:
    for each in text.split(","):
        key, _, value = each.partition("=")
        yield key.strip(), value.strip()


def _run(source: str) -> tuple[str, int | None]:
    """The run and the step of a checkpoint's path: RUN/step-00000010 is step 10 of RUN."""
    name = source.rstrip("/") or source
    above, _, last = name.rpartition("/")
    found = _STEP.fullmatch(last)
    return (above, int(found[1])) if found and above else (name, None)
