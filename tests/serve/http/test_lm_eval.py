"""The stock command line of lm-evaluation-harness prints for our server what it prints for the model itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from local_tasks import write_tasks
from served import NAME, Live

COMMAND = """
from functools import partialmethod
from lm_eval.__main__ import cli_evaluate
from lm_eval.tasks import TaskManager
TaskManager.__init__ = partialmethod(TaskManager.__init__, include_defaults=False)
cli_evaluate()
"""
"""`lm_eval`, but that it does not list its own thousands of tasks first, for 7 seconds."""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"), growth=2)  # all of them fit into the context


def evaluate(tasks: Path, output: Path, model: str, arguments: str) -> dict[str, Any]:
    """The metrics, by task, that `lm_eval` writes, and the log-likelihoods or texts of every document."""
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(output / "home"), "OMP_NUM_THREADS": "1", "OPENAI_API_KEY": "none",
    }  # fmt: skip
    command = [
        sys.executable, "-c", COMMAND, "--model", model, "--model_args", arguments, "--include_path", str(tasks),
        "--tasks", "local_choice,local_rolling,local_until", "--batch_size", "4", "--output_path", str(output),
        "--log_samples", "--device", "cpu",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = output.glob("**/results_*.json")
    found = json.loads(results.read_text())["results"]
    metrics = {task: {key: value for key, value in row.items() if "," in key} for task, row in found.items()}
    for path in output.glob("**/samples_*.jsonl"):
        task = path.name.split("_2")[0].removeprefix("samples_")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        metrics[task]["samples"] = [row["filtered_resps"] for row in sorted(rows, key=lambda row: row["doc_id"])]
    return metrics


@pytest.mark.slow
def test_the_same_figures_as_of_the_model_itself(server: Live, tasks: Path, tmp_path: Path) -> None:
    folder = server.serving.folder
    served = f"model={NAME},base_url={server.url}/completions,tokenizer={folder},num_concurrent=2,max_retries=1"
    ours = evaluate(tasks, tmp_path / "served", "local-completions", served)
    theirs = evaluate(tasks, tmp_path / "hf", "hf", f"pretrained={folder},dtype=float32")
    assert set(ours) == set(theirs) == {"local_choice", "local_rolling", "local_until"}
    for task, row in theirs.items():
        for key, value in row.items():
            if key == "samples":
                continue
            if isinstance(value, float):
                assert ours[task][key] == pytest.approx(value, rel=1e-5), (task, key)
            else:
                assert ours[task][key] == value, (task, key)
    assert ours["local_until"]["samples"] == theirs["local_until"]["samples"]
    for here, there in zip(ours["local_choice"]["samples"], theirs["local_choice"]["samples"], strict=True):
        for (a, greedy), (b, best) in zip(here, there, strict=True):
            assert float(a) == pytest.approx(float(b), abs=1e-4)
            assert greedy == best
