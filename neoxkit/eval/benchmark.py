"""Benchmarks of lm-evaluation-harness on a model, and their results in its own format."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neoxkit.errors import ConfigError, NeoxkitError
from neoxkit.eval.harness import NeoxkitLM

Results = dict[str, Any]
"""What the harness makes of an evaluation."""

NAME = "neoxkit"
"""What the harness calls a model of ours."""


@dataclass(frozen=True, kw_only=True)
class Benchmarks:
    """What is evaluated, and how: the harness's own settings, under its own names where it has one."""

    tasks: tuple[str, ...]
    include_path: tuple[Path, ...] = ()
    num_fewshot: int | None = None
    limit: float | None = None
    apply_chat_template: bool | str = False
    fewshot_as_multiturn: bool = True
    system_instruction: str | None = None
    gen_kwargs: str | None = None
    seed: int | None = None
    cache_requests: bool = False
    unsafe_code: bool = False


def quiet_harness() -> None:
    """Let the harness speak of warnings only. It may have been imported before or not."""
    logging.getLogger("lm_eval").setLevel(logging.WARNING)


def check_tasks(benchmarks: Benchmarks) -> Any:
    """The harness's task manager, which has all tasks. Raises ConfigError for one that it does not know.

    Names, patterns, tags and groups are known to it; a task may also be a YAML file.
    """
    for folder in benchmarks.include_path:
        if not folder.is_dir():
            raise ConfigError(f"--include-path {folder}: no such folder", "name a folder with tasks in YAML")
    files = [task for task in benchmarks.tasks if task.endswith((".yaml", ".yml"))]
    for task in files:
        if not Path(task).is_file():
            raise ConfigError(f"--tasks {task}: no such file", "name a file, or a task")
    manager = _manager(benchmarks, with_own=False)
    names = [task for task in benchmarks.tasks if task not in files]
    if names and set(names) <= set(manager.all_subtasks):
        return manager
    manager = _manager(benchmarks, with_own=True)
    for task in names:
        if not manager.match_tasks([task]):
            close = _closest(task, manager.all_tasks)
            raise ConfigError(f"--tasks {task}: the harness knows no such task", close or "see --list-tasks")
    return manager


def _manager(benchmarks: Benchmarks, with_own: bool) -> Any:
    """A task manager, with the harness's own tasks or without: to look through those takes ten seconds."""
    from lm_eval.tasks import TaskManager

    folders = [str(each) for each in benchmarks.include_path]
    return TaskManager(include_path=folders or None, include_defaults=with_own)


def _closest(task: str, known: Sequence[str]) -> str:
    from difflib import get_close_matches

    found = get_close_matches(task, known, n=3)
    return f"is it {' or '.join(found)}?" if found else ""


def evaluate(model: NeoxkitLM, benchmarks: Benchmarks, manager: Any, output: Path | None, name: str) -> Results:
    """Evaluate a model; with an `output` folder, results and every answer are written there, as `name`.

    `manager` is what `check_tasks` gave. Files are those of the harness: NAME/results_DATE.json, and for each task
    NAME/samples_TASK_DATE.jsonl. The harness writes to standard output what it does. Raises what it raises.
    """
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker

    quiet_harness()
    tracker = EvaluationTracker(output_path=None if output is None else str(output))
    known = [
        str(Path(task).absolute()) if Path(task).suffix in (".yaml", ".yml") else task for task in benchmarks.tasks
    ]
    matched = [each for task in known for each in (manager.match_tasks([task]) or [task])]
    seeds = {} if benchmarks.seed is None else dict.fromkeys(_SEEDS, benchmarks.seed)
    found: Results | None = simple_evaluate(
        model=model,
        model_args={"pretrained": name},
        tasks=list(dict.fromkeys(matched)),
        num_fewshot=benchmarks.num_fewshot,
        limit=_limit(benchmarks.limit),
        cache_requests=benchmarks.cache_requests,
        evaluation_tracker=tracker,
        system_instruction=benchmarks.system_instruction,
        apply_chat_template=benchmarks.apply_chat_template,
        fewshot_as_multiturn=benchmarks.fewshot_as_multiturn,
        gen_kwargs=benchmarks.gen_kwargs,
        task_manager=manager,
        confirm_run_unsafe_code=benchmarks.unsafe_code,
        **seeds,
    )
    assert found is not None, "the harness gives results on the first process"
    found["config"]["model"] = NAME
    samples = found.pop("samples", {})
    if output is not None:
        _write(tracker, found, samples)
    return found


_SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")


class NotWrittenError(NeoxkitError):
    """Results could not be written."""


def _write(tracker: Any, results: Results, samples: Mapping[str, Any]) -> None:
    """Write results and samples as the harness does. It would go on without a word where it cannot."""
    tracker.save_results_aggregated(results=results, samples=dict(samples))
    folder = Path(tracker.output_path) / tracker.general_config_tracker.model_name_sanitized
    date = getattr(tracker, "date_id", None)
    if date is None or not (folder / f"results_{date}.json").is_file():
        raise NotWrittenError(f"{folder}: the results could not be written", "is there room, and may you write there?")
    for task, rows in samples.items():
        tracker.save_results_samples(task_name=task, samples=rows)


def _limit(limit: float | None) -> float | int | None:
    """A whole number above 1 is a count of documents, as the harness wants it."""
    return limit if limit is None or limit < 1 else int(limit)


def table(results: Results) -> str:
    """The results as the harness prints them."""
    from lm_eval.utils import make_table

    tables = [make_table(results)]
    if results.get("groups"):
        tables.append(make_table(results, "groups"))
    return "\n".join(tables)


def as_json(results: Results) -> str:
    """The results as the harness writes them."""
    from lm_eval.utils import handle_non_serializable

    return json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False)
