"""Results files as lm-evaluation-harness writes them, for the tests of scores."""

from __future__ import annotations

import json
import statistics
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DAY = 86400.0


def write(
    folder: Path,
    values: Mapping[str, Sequence[float]],
    name: str = "models/a",
    *,
    date: float = DAY,
    step: int | None = None,
    samples: bool = True,
    metric: str = "acc",
    kept: str = "none",
    higher: bool | None = True,
    **keys: Any,
) -> Path:
    """Results of tasks, each given as the metric's value of every document; the newer, the later its `date`.

    `keys` replaces keys of the file, and what a mapping has is added to what is there.
    """
    source = name if step is None else f"{name}/step-{step:08d}"
    tree: dict[str, Any] = {
        "results": {task: _metrics(task, each, metric, kept) for task, each in values.items()},
        "group_subtasks": {},
        "configs": {task: {"task": task, "output_type": "multiple_choice"} for task in values},
        "versions": dict.fromkeys(values, 1.0),
        "n-shot": dict.fromkeys(values, 0),
        "higher_is_better": {task: {metric: higher} for task in values},
        "n-samples": {task: {"original": len(each), "effective": len(each)} for task, each in values.items()},
        "config": {
            "model": "neoxkit",
            "model_args": None,
            "model_dtype": "fp32",
            "model_sha": f"{zlib.crc32(source.encode()):016x}",
            "limit": None,
            "neoxkit": {"source": source, "step": step, "tokens": None if step is None else step * 1000},
        },
        "date": date,
        "chat_template_sha": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": None,
        "task_hashes": {task: f"{len(each):064x}" for task, each in values.items()} if samples else {},
    }
    for key, value in keys.items():
        key = key.replace("_", "-") if key in ("n_shot", "n_samples") else key
        tree[key] = {**tree[key], **value} if isinstance(value, dict) and isinstance(tree.get(key), dict) else value
    folder.mkdir(parents=True, exist_ok=True)
    stamp = f"2026-01-{int(date / DAY) + 1:02d}T00-00-{date % DAY:09.6f}"
    path = folder / f"results_{stamp}.json"
    path.write_text(json.dumps(tree))
    for task, each in values.items() if samples else ():
        rows = (_sample(number, value, metric, kept) for number, value in enumerate(each))
        (folder / f"samples_{task}_{stamp}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _metrics(task: str, values: Sequence[float], metric: str, kept: str) -> dict[str, Any]:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else "N/A"
    mean = statistics.fmean(values)
    counted = {"name": task, "alias": task, "sample_len": len(values)}
    return {**counted, f"{metric},{kept}": mean, f"{metric}_stderr,{kept}": error}


def _sample(number: int, value: float, metric: str, kept: str) -> dict[str, Any]:
    digests = {"doc_hash": f"d{number}", "prompt_hash": f"p{number}", "target_hash": f"t{number}"}
    return {"doc_id": number, "doc": {}, "filter": kept, "metrics": [metric], **digests, metric: value}
