"""neoxkit eval, and the harness's own command line, from end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from local_tasks import NAMES, remember_index, write_tasks
from refusal import run
from served import make_model

from neoxkit import lm_eval
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.eval import desk
from neoxkit.eval.harness import NeoxkitLM

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tasks, a model of transformers and a checkpoint."""
    monkeypatch.chdir(tmp_path)
    remember_index(monkeypatch)
    write_tasks(tmp_path / "tasks")
    make_model(tmp_path / "hf")
    assert run("import hf checkpoint --tp 2").exit_code == 0
    return tmp_path


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/results_*.json"))]


def metrics(found: dict[str, Any]) -> dict[str, Any]:
    return {task: {key: value for key, value in row.items() if "," in key} for task, row in found["results"].items()}


ALL = f"--tasks {','.join(NAMES)} --include-path tasks --device cpu"


def test_results_are_printed_and_written(world: Path) -> None:
    done = run(f"eval checkpoint {ALL} --output out --name mine")
    assert done.exit_code == 0, done.stderr
    assert "|local_choice" in done.stdout
    assert "|±" in done.stdout
    (found,) = results(Path("out"))
    assert list(Path("out/mine").glob("samples_local_choice_*.jsonl"))
    fingerprint = Checkpoint.open("checkpoint").fingerprint
    config = found["config"]
    assert (config["model"], config["model_sha"], config["model_dtype"]) == ("neoxkit", fingerprint, "torch.float32")
    assert config["neoxkit"]["source"] == str(world / "checkpoint")
    assert found["versions"]["local_fewshot"] == 2.0
    assert (found["n-shot"]["local_fewshot"], found["n-shot"]["local_choice"]) == (3, 0)
    assert found["n-samples"]["local_choice"] == {"original": 10, "effective": 10}
    assert set(found["task_hashes"]) == set(NAMES)

    again = run(f"eval hf {ALL} --json")
    told = json.loads(again.stdout)
    assert metrics(told) == metrics(found)
    assert told["config"]["model_sha"] == fingerprint  # of what was not imported yet


def test_what_was_interrupted_goes_on(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = json.loads(run(f"eval checkpoint {ALL} --json").stdout)
    ticks = 0
    tick = desk.Desk.tick

    def interrupted(self: desk.Desk) -> Any:
        nonlocal ticks
        ticks += 1
        if ticks == 6:
            raise KeyboardInterrupt
        return tick(self)

    with monkeypatch.context() as patch:
        patch.setattr(desk.Desk, "tick", interrupted)
        assert run(f"eval checkpoint {ALL} --output out").exit_code == 130
    assert not results(Path("out"))
    (journal,) = Path("out/.answers").iterdir()
    before = journal.read_bytes()
    assert before
    done = run(f"eval checkpoint {ALL} --output out")
    assert f"{journal}: {len(before.splitlines())} answers are there already; going on" in done.stderr
    assert journal.read_bytes().startswith(before)
    (found,) = results(Path("out"))
    assert metrics(found) == metrics(whole)

    with monkeypatch.context() as patch:
        patch.setattr(desk.Desk, "take", lambda *each: pytest.fail("it was answered already"))
        assert run(f"eval checkpoint {ALL} --output out").exit_code == 0
    assert len(results(Path("out"))) == 2


def test_limits_and_examples(world: Path) -> None:
    tasks = "--tasks local_choice --tasks local_fewshot --include-path tasks"
    done = run(f"eval checkpoint {tasks} --limit 4 --num-fewshot 1 --device cpu --batch 2 --json")
    found = json.loads(done.stdout)
    assert found["n-samples"]["local_choice"]["effective"] == 4
    assert found["n-shot"]["local_fewshot"] == 1
    assert found["config"]["limit"] == 4


def test_a_file_and_a_pattern_name_tasks(world: Path) -> None:
    found = json.loads(run("eval hf --tasks tasks/until.yaml --device cpu --json").stdout)
    assert list(found["results"]) == ["local_until"]
    found = json.loads(run("eval hf --tasks local_*oice --include-path tasks --device cpu --json").stdout)
    assert list(found["results"]) == ["local_choice"]


def test_tasks_are_listed(world: Path) -> None:
    told = run("eval --list-tasks --include-path tasks").stdout.splitlines()
    assert {*NAMES, "arc_easy", "mmlu"} <= set(told)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("eval", "missing argument 'SOURCE'"),
        ("eval checkpoint", "missing option '--tasks'"),
        ("eval checkpoint --tasks a --perplexity b", "--tasks and --perplexity are two different things to do"),
        ("eval checkpoint --perplexity b --limit 3", "--limit is for --tasks"),
        ("eval checkpoint --perplexity b --output out", "--output is for --tasks"),
        (
            "eval checkpoint --tasks local_choise --include-path tasks",
            "the harness knows no such task; is it local_choice",
        ),
        ("eval checkpoint --tasks nowhere.yaml", "--tasks nowhere.yaml: no such file"),
        ("eval checkpoint --tasks a --include-path nowhere", "--include-path nowhere: no such folder"),
        ("eval checkpoint --tasks a --limit 0", "--limit"),
        ("eval hf --watch --tasks local_choice --include-path tasks", "hf: a model of another program, not a run's"),
        ("eval checkpoint --tasks a --batch some", "--batch"),
        ("eval nowhere --tasks local_choice --include-path tasks", "nowhere: no such file or folder"),
        ("eval checkpoint --tasks local_choice --include-path tasks --output hf/config.json", "not a folder"),
        ("eval checkpoint --tasks local_until --include-path tasks --gen-kwargs num_beams=3", "num_beams=3: a setting"),
    ],
)
def test_refusals(world: Path, arguments: str, said: str) -> None:
    done = run(arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("out").exists()


def test_the_harness_own_command_line(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = json.loads(run(f"eval checkpoint {ALL} --json").stdout)

    def stock(arguments: str) -> None:
        options = f"--include_path tasks --device cpu --batch_size 4 --tasks {','.join(NAMES)}"
        monkeypatch.setattr(sys, "argv", ["lm_eval", "--model", "neoxkit", *options.split(), *arguments.split()])
        lm_eval.main()

    for _ in range(2):  # the second finds all answers in the harness's own cache
        stock("--model_args checkpoint=checkpoint,dtype=float32 --output_path out --log_samples --use_cache cache/db")
        monkeypatch.setattr(desk.Desk, "take", lambda *each: pytest.fail("it was answered already"))
    assert len(results(Path("out"))) == 2
    for found in results(Path("out")):
        assert metrics(found) == metrics(mine)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        stock("--model_args checkpoint=nowhere")
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: nowhere: no such file or folder")


def test_it_is_a_program() -> None:
    command = [sys.executable, "-m", "neoxkit.lm_eval", "run", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert "--model_args" in done.stdout


def test_standard_output_has_the_results_alone(world: Path) -> None:
    """In a process of its own, in which libraries are loaded that speak as they load."""
    command = [sys.executable, "-m", "neoxkit", "eval", "hf", "--tasks", "local_cloze", "--include-path", "tasks"]
    done = subprocess.run([*command, "--device", "cpu", "--json"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["results"]) == ["local_cloze"]


def test_the_next_release_of_the_harness_finds_it() -> None:
    (found,) = [each for each in entry_points(group="lm_eval.models") if each.name == lm_eval.MODEL]
    assert found.value == lm_eval.TARGET
    assert issubclass(found.load(), NeoxkitLM)
