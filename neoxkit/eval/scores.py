"""Results beside each other: which score is whose, how it came about, and which may be compared. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from neoxkit.errors import ConfigError, DataError
from neoxkit.eval.comparison import Asked, Difference, compare, pair, read_samples, same_direction
from neoxkit.eval.results import Result, Score
from neoxkit.eval.settings import Settings


class Row(NamedTuple):
    """A metric of a task that was put in one way."""

    task: str
    metric: str
    settings: Settings


@dataclass(eq=False)
class Model:
    """A model at one step: what its newest result says of it, and all its scores with the result each is from."""

    about: Result
    label: str = ""
    cells: dict[Row, tuple[Score, Result]] = field(default_factory=dict)

    @property
    def run(self) -> tuple[str, str, str]:
        """What models of several steps of one run have in common: name, backend and dtype."""
        return self.about.name, self.about.backend or "", self.about.dtype or ""

    def json(self) -> dict[str, Any]:
        """Ready for JSON."""
        about = self.about
        files = sorted({str(result.path) for _, result in self.cells.values()})
        return {
            "model": self.label,
            "name": about.name,
            "step": about.step,
            "tokens": about.tokens,
            "fingerprint": about.fingerprint,
            "backend": about.backend,
            "dtype": about.dtype,
            "date": datetime.fromtimestamp(about.date, timezone.utc).isoformat(timespec="seconds"),
            "files": files,
        }


@dataclass(frozen=True)
class Scores:
    """Models, and the rows of their table. A row holds only what may be compared."""

    models: Sequence[Model]
    rows: Sequence[Row]

    @cached_property
    def runs(self) -> Mapping[str, Sequence[Model]]:
        """By label: the models of a run, by step; a model without a step is a run of its own."""
        found: dict[tuple[str, str, str], list[Model]] = defaultdict(list)
        for model in self.models:
            found[model.run].append(model)
        members = [sorted(each, key=lambda model: model.about.step or 0) for each in found.values()]
        return dict(zip(_labels(list(found)), members, strict=True))

    @cached_property
    def over_steps(self) -> bool:
        """Whether these are steps of runs rather than models: more than two, several steps of one run."""
        several = any(len({model.about.step for model in models}) > 1 for models in self.runs.values())
        return len(self.models) > 2 and several

    @cached_property
    def variants(self) -> Mapping[str, Sequence[Settings]]:
        """By task: the ways in which it was put."""
        found: dict[str, list[Settings]] = {}
        for row in self.rows:
            ways = found.setdefault(row.task, [])
            if row.settings not in ways:
                ways.append(row.settings)
        return found

    @cached_property
    def unsure(self) -> Sequence[str]:
        """The tasks of which some result kept no samples: nobody knows whether its prompts were those of the others."""
        told: dict[str, dict[str, bool]] = defaultdict(dict)
        for model in self.models:
            for row, (_, result) in model.cells.items():
                told[row.task][model.label] = result.settings[row.task].prompts is None
        there = {row.task for row in self.rows}
        return [task for task, missing in told.items() if task in there and len(missing) > 1 and any(missing.values())]

    def name(self, row: Row) -> str:
        """The row's task; where it was put in several ways, with what tells this one: "arc_easy (n-shot 5)"."""
        ways = self.variants[row.task]
        differing = row.settings.differing(*ways)
        alike = [each for each in ways if all(getattr(each, n) == getattr(row.settings, n) for n in differing)]
        if len(alike) > 1:
            differing.append("prompts")
        return row.task + (f" ({', '.join(map(row.settings.spell, differing))})" if differing else "")

    def higher(self, row: Row) -> bool | None:
        """Whether higher is better; None where it is unknown."""
        return same_direction([model.cells[row][0] for model in self.models if row in model.cells])

    @cached_property
    def comparison(self) -> Mapping[Row, Difference | str] | None:
        """Of two models: by row how far the second is from the first, or why that can not be told."""
        if len(self.models) != 2:
            return None
        first, second = self.models
        samples: dict[tuple[Path, Path, str], tuple[Asked, Asked] | str] = {}
        found: dict[Row, Difference | str] = {}
        for row in self.rows:
            if row not in first.cells or row not in second.cells:
                found[row] = self._alone(row)
                continue
            (a, from_a), (b, from_b) = first.cells[row], second.cells[row]
            higher = self.higher(row)
            key = from_a.path, from_b.path, row.task
            if key not in samples:
                samples[key] = _samples(from_a, from_b, row.task)
            asked = samples[key]
            known = asked if isinstance(asked, str) else pair(*asked, row.metric, (a, b))
            found[row] = compare(replace(a, higher=higher), replace(b, higher=higher), known)
        return found

    def _alone(self, row: Row) -> str:
        """Why a row has a score of one of two models only."""
        mine = next(model for model in self.models if row in model.cells)
        other = next(model for model in self.models if model is not mine)
        theirs = [each.settings for each in other.cells if each[:2] == row[:2]]
        if not theirs:
            return f"only {mine.label}"
        nearest = min(theirs, key=lambda each: len(row.settings.differing(each)))
        a, b = (row.settings, nearest) if mine is self.models[0] else (nearest, row.settings)
        return "not comparable: " + ", ".join(f"{a.spell(name)} and {b.spell(name)}" for name in a.differing(b))

    def json(self) -> dict[str, Any]:
        """Ready for JSON, in which a number that is not finite is null.

        models       [{"model", "name", "step", "tokens", "fingerprint", "backend", "dtype", "date", "files"}]; model
                     is a label, each another
        scores       [{"task", "metric", "settings", "higher_is_better", "values"}]; settings is {"version", "shots",
                     "documents", "template", "instruction", "generation", "prompts"}, each null where it is unknown;
                     values is [{"model", "value", "error", "file"}], error the standard error or null. The same task
                     is there once for each way in which it was put
        unverified   [task] of which some results kept no samples: whether prompts were the same is not known
        comparison   of two models, else null: [{"task", "metric", "settings", "comparable", "reason", "difference",
                     "error", "paired", "verdict"}]; difference is the second minus the first; paired counts the
                     documents that were compared one by one, 0 when each model's own standard error was used, for
                     `reason`; where it is not comparable, reason says why, and the rest is null
        """
        return {
            "models": [model.json() for model in self.models],
            "scores": [self._row_json(row) for row in self.rows],
            "unverified": list(self.unsure),
            "comparison": None
            if self.comparison is None
            else [_difference_json(row, told) for row, told in self.comparison.items()],
        }

    def _row_json(self, row: Row) -> dict[str, Any]:
        values = [
            {
                "model": model.label,
                "value": _finite(model.cells[row][0].value),
                "error": model.cells[row][0].error,
                "file": str(model.cells[row][1].path),
            }
            for model in self.models
            if row in model.cells
        ]
        return {
            "task": row.task,
            "metric": row.metric,
            "settings": row.settings.json(),
            "higher_is_better": self.higher(row),
            "values": values,
        }


def _difference_json(row: Row, told: Difference | str) -> dict[str, Any]:
    known = isinstance(told, Difference)
    return {
        "task": row.task,
        "metric": row.metric,
        "settings": row.settings.json(),
        "comparable": known,
        "reason": told.why or None if isinstance(told, Difference) else told,
        "difference": _finite(told.value) if isinstance(told, Difference) else None,
        "error": told.error if isinstance(told, Difference) else None,
        "paired": told.paired if isinstance(told, Difference) else None,
        "verdict": told.verdict if isinstance(told, Difference) else None,
    }


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def _samples(first: Result, second: Result, task: str) -> tuple[Asked, Asked] | str:
    paths = [result.samples(task) for result in (first, second)]
    if paths[0] is None or paths[1] is None:
        return "no samples"
    return read_samples(paths[0]), read_samples(paths[1])


def collect(results: Sequence[Result], tasks: Sequence[str] = (), metrics: Sequence[str] = ()) -> Scores:
    """Results beside each other; of several of a model, a task and the same settings the newest counts.

    `tasks` and `metrics` choose by name or pattern ("mmlu_*"); all when empty. Raises ConfigError when they choose
    nothing, DataError when two models would be one point: other weights at the same step of a run.
    """
    filled = _fill_prompts(results)
    models: dict[tuple[object, ...], Model] = {}
    for result in results:  # in the order in which they were named
        models.setdefault(_identity(result), Model(result))
    for index in sorted(range(len(results)), key=lambda index: (results[index].date, results[index].path.name)):
        result = results[index]
        model = models[_identity(result)]
        model.about = result
        for task, scores in result.scores.items():
            settings = filled[index, task]
            for row in [each for each in model.cells if (each.task, each.settings) == (task, settings)]:
                del model.cells[row]
            model.cells.update({Row(task, metric, settings): (score, result) for metric, score in scores.items()})
    rows = dict.fromkeys(row for model in models.values() for row in model.cells)
    chosen = [row for row in rows if _is_chosen(row, tasks, metrics)]
    if not chosen:
        there = sorted({row.task for row in rows} | {row.metric for row in rows})
        raise ConfigError("there is no score of what --task and --metric name", f"there are {', '.join(there[:40])}")
    found = Scores([model for model in models.values() if not model.cells.keys().isdisjoint(chosen)], _ordered(chosen))
    _name(found)
    return found


def _identity(result: Result) -> tuple[object, ...]:
    """What tells one model from another."""
    return result.name, result.step, result.fingerprint, result.backend, result.dtype


def _fill_prompts(results: Sequence[Result]) -> dict[tuple[int, str], Settings]:
    """The settings of each result's tasks.

    A result that kept no samples does not say what was asked. It is taken to have asked what others did in the
    same settings, when these agree; see `Scores.unsure`.
    """
    known: dict[tuple[str, Settings], set[str]] = defaultdict(set)
    for result in results:
        for task, settings in result.settings.items():
            if settings.prompts is not None:
                known[task, replace(settings, prompts=None)].add(settings.prompts)
    filled = {}
    for index, result in enumerate(results):
        for task, settings in result.settings.items():
            told = known[task, replace(settings, prompts=None)]
            filled[index, task] = replace(settings, prompts=next(iter(told))) if len(told) == 1 else settings
    return filled


def _is_chosen(row: Row, tasks: Sequence[str], metrics: Sequence[str]) -> bool:
    named = not tasks or any(fnmatchcase(row.task, each) for each in tasks)
    spelled = (row.metric, row.metric.partition(",")[0])
    return named and (not metrics or any(fnmatchcase(each, wanted) for each in spelled for wanted in metrics))


def _ordered(rows: Iterable[Row]) -> list[Row]:
    """Rows of a task together, in the order in which the tasks were met."""
    together: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        together.setdefault(row.task, {}).setdefault(row.metric, []).append(row)
    return [row for metrics in together.values() for same in metrics.values() for row in same]


def _labels(runs: Sequence[tuple[str, str, str]]) -> list[str]:
    """Short names of runs, given as name, backend and dtype: the end of a path, and more of it only where needed."""
    names = {name for name, _, _ in runs}
    ends = [name.rpartition("/")[2] for name in names]
    found = []
    for name, backend, dtype in runs:
        end = name.rpartition("/")[2]
        parts = [end if ends.count(end) == 1 else name]
        same = [run for run in runs if run[0] == name]
        if len({run[1] for run in same}) > 1:
            parts.append(backend or "no backend")
        if len({run[2] for run in same if run[1] == backend}) > 1:
            parts.append(dtype or "no dtype")
        found.append(", ".join(parts))
    return found


def _name(scores: Scores) -> None:
    """Give each model a label that no other has. Raises DataError when runs are shown that have a step twice."""
    for label, models in scores.runs.items():
        steps = [model.about.step for model in models]
        for model in models:
            about = model.about
            model.label = label if about.step is None else f"{label} step {about.step:,}"
            if steps.count(about.step) == 1:
                continue
            if scores.over_steps:
                twice = [str(other.about.path) for other in models if other.about.step == about.step]
                raise DataError(f"{' and '.join(twice)}: the same step of {label}, other weights", "name one of them")
            model.label += f", {(about.fingerprint or 'no fingerprint')[:16]}"
