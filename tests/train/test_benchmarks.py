"""A run evaluates its checkpoints by a process beside it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import tiny_runs as runs
from local_tasks import write_tasks

from neoxkit.data.tokenizer.train import train_bpe
from neoxkit.eval.watch import read
from neoxkit.parallel.world import World
from neoxkit.train import benchmarks
from neoxkit.train.benchmarks import LOG, Benchmarks, command_of
from neoxkit.train.loop import train


def asking(folder: Path, **more: object) -> dict[str, object]:
    return {"benchmarks": {"tasks": ["local_choice", "local_cloze"], "include_path": [str(folder / "tasks")], **more}}


def test_checkpoints_are_evaluated_while_it_goes_on(folder: Path) -> None:
    write_tasks(folder / "tasks")
    train_bpe(["import return yield"], 300, folder / "tokenizer")
    options = runs.tree("llama", folder, steps=4, evaluation=asking(folder))
    options["model"] |= {"vocab": 300, "context": 96}
    options["data"] |= {"tokenizer": str(folder / "tokenizer"), "sequence": 12}
    config = runs.config("llama", folder, "save.every=2", **{key: options[key] for key in options})
    train(config, {"steps": config.steps})
    found = read(folder / "run")
    assert [record["step"] for record in found] == [2, 4]
    assert {"local_choice/acc", "local_choice/acc_norm", "local_cloze/perplexity"} <= found[0]["scores"].keys()
    assert found[0]["scores"] != found[1]["scores"]
    results = [json.loads(path.read_text()) for path in (folder / "run/evaluation").glob("*/results_*.json")]
    assert sorted(each["config"]["neoxkit"]["step"] for each in results) == [2, 4]


def test_the_command_says_all(folder: Path) -> None:
    assert command_of(runs.config("llama", folder), folder / "run") is None
    config = runs.config("llama", folder, evaluation=asking(folder, num_fewshot=0, limit=0.5, device="cuda:3", tp=2))
    assert command_of(config, folder / "run") == [
        sys.executable, "-m", "neoxkit", "eval", str(folder / "run"), "--watch",
        "--tasks", "local_choice,local_cloze", "--include-path", str(folder / "tasks"),
        "--num-fewshot", "0", "--limit", "0.5", "--device", "cuda:3", "--tp", "2",
    ]  # fmt: skip


def test_a_process_that_fails_is_told_of_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = [sys.executable, "-c", "import sys; print('error: no such task', file=sys.stderr); sys.exit(2)"]
    monkeypatch.setattr(benchmarks, "command_of", lambda config, folder: failing)
    with Benchmarks(runs.config("llama", folder), folder / "run") as beside:
        assert beside._process is not None
        beside._process.wait()
        assert list(beside.poll()) == [f"warning: the benchmarks have ended: no such task (see {folder / 'run' / LOG})"]
        assert not list(beside.poll())


def test_it_ends_with_a_run_that_is_stopped_and_no_other_rank_has_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarks, "command_of", lambda *_: [sys.executable, "-c", "import time; time.sleep(600)"])
    with Benchmarks(runs.config("llama", folder), folder / "run") as beside:
        process = beside._process
    assert process is not None
    assert process.returncode == -15
    with Benchmarks(runs.config("llama", folder), folder / "other", World(rank=1, size=2)) as beside:
        assert beside._process is None
    assert not (folder / "other").exists()
