"""Results of lm-evaluation-harness in the Hub's metadata, and as a table for people. No torch.

A task's results are filed under the task's name, which is what tells them apart; the number of
examples in the prompt, the filter, the version of the task and the standard error are arguments of
the metric. Measured again in the same way, a number takes the place of the old one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from neoxkit.errors import DataError

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

Results = Mapping[str, Any]
"""What a results file of lm-evaluation-harness holds: `results`, `versions`, `n-shot`, `config`."""

TASK = "text-generation"
BEGIN, END = "<!-- neoxkit: results -->", "<!-- neoxkit: end of results -->"
"""The table of results in a card's text stands between these."""

_FINGERPRINT = re.compile(r"[0-9a-f]{16}")
_TABLE = re.compile(rf"\n*{re.escape(BEGIN)}.*?{re.escape(END)}\n*", re.DOTALL)


def check(files: Sequence[Results], fingerprint: str | None) -> None:
    """Raise DataError for what is no results file, and for one of another model, by the fingerprint that it states."""
    measured(files)
    for each in files:
        config = each.get("config")
        stated = str(config.get("model_sha")) if isinstance(config, Mapping) else ""
        if fingerprint is not None and _FINGERPRINT.fullmatch(stated) and stated != fingerprint:
            raise DataError(
                f"results: they are of the model {stated}, not of {fingerprint}", "give those of this model"
            )


def measured(files: Iterable[Results]) -> list[EvalResult]:
    """What results files say, metric by metric. Raises DataError for what is no results file."""
    return [result for each in files for result in _of_file(each)]


def _of_file(file: Results) -> Iterator[EvalResult]:
    from huggingface_hub import EvalResult

    tasks = file.get("results") if isinstance(file, Mapping) else None
    if not isinstance(tasks, Mapping) or not tasks:
        raise DataError("results: no results of lm-evaluation-harness", "give a results_*.json that it wrote")
    for task, values in tasks.items():
        if not isinstance(values, Mapping):
            raise DataError(f"results: {task} has no metrics", "give a results_*.json that lm-evaluation-harness wrote")
        shots, version = _about(file, "n-shot", task), _about(file, "versions", task)
        for key, value in values.items():
            metric, comma, kind = str(key).partition(",")
            if not comma or metric.endswith("_stderr") or not _is_number(value):
                continue
            error = values.get(f"{metric}_stderr,{kind}")
            about = {
                "num_few_shot": shots,
                "filter": kind,
                "version": version,
                "stderr": error if _is_number(error) else None,
            }
            yield EvalResult(
                task_type=TASK,
                dataset_type=str(task),
                dataset_name=str(values.get("alias") or task).strip(" -"),
                metric_type=metric,
                metric_value=value,
                metric_name=metric if kind == "none" else f"{metric} ({kind})",
                metric_args={name: given for name, given in about.items() if given is not None},
            )


def _about(file: Results, kind: str, task: str) -> Any:
    """What a results file says of a task beside its metrics; None when it does not."""
    found = file.get(kind)
    return found.get(task) if isinstance(found, Mapping) else None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def include(card: ModelCard, results: Sequence[EvalResult], name: str) -> None:
    """Put results in a card, metadata and table; `name` is the model's, if the card has none for it yet."""
    if not results:
        return
    taken = {_same(each) for each in results}
    data: Any = card.data
    data.model_name = data.model_name or name
    data.eval_results = [*(each for each in data.eval_results or () if _same(each) not in taken), *results]
    table = "\n".join([BEGIN, "", "## Evaluation", "", *_table(data.eval_results), "", END])
    body = card.text.rstrip("\n")
    card.text = _TABLE.sub(lambda _: f"\n\n{table}\n\n", body, count=1) if BEGIN in body else f"{body}\n\n{table}\n"


def _same(result: EvalResult) -> tuple[str, ...]:
    """What tells a measurement from another of the same model."""
    about = result.metric_args if isinstance(result.metric_args, Mapping) else {}
    told = (about.get("num_few_shot"), about.get("filter"), about.get("version"))
    return tuple(map(str, (result.task_type, result.dataset_type, result.metric_type, *told)))


def _table(results: Iterable[EvalResult]) -> Iterator[str]:
    yield "| task | examples in the prompt | metric | value |"
    yield "|---|---|---|---|"
    for each in results:
        about = each.metric_args if isinstance(each.metric_args, Mapping) else {}
        value = f"{each.metric_value:.4g}" if _is_number(each.metric_value) else str(each.metric_value)
        if _is_number(error := about.get("stderr")):
            value += f" ± {error:.2g}"
        cells = each.dataset_name, about.get("num_few_shot", ""), each.metric_name or each.metric_type, value
        yield "| " + " | ".join(str(cell).replace("|", " ") for cell in cells) + " |"
