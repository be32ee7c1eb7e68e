"""Each checkpoint of a run is evaluated once, and what came of it is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_runs as runs

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.errors import CheckpointError, ConfigError
from neoxkit.eval import watch as watching
from neoxkit.eval.watch import FILE, is_complete, read, scores, settings_key, watch
from neoxkit.train.loop import train

FIRST, SECOND, LAST = (f"step-{step:08d}" for step in (2, 4, 6))

RESULTS = {
    "results": {
        "a": {"alias": "a", "acc,none": 0.5, "acc_stderr,none": 0.1, "exact_match,strict": 0.25, "sample_len": 3},
        "b": {"perplexity,none": 12.0, "perplexity_stderr,none": "N/A"},
    },
    "groups": {"g": {"acc,none": 0.75}},
}


def test_scores_of_results() -> None:
    values, errors = scores(RESULTS)
    assert values == {"a/acc": 0.5, "a/exact_match,strict": 0.25, "b/perplexity": 12.0, "g/acc": 0.75}
    assert errors == {"a/acc": 0.1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, with a checkpoint after every second."""
    folder = tmp_path_factory.mktemp("trained")
    runs.write_tokens(folder)
    config = runs.config("gpt_neox", folder, "save.every=2", steps=6)
    train(config, {"steps": config.steps})
    return folder / "run"


@pytest.fixture
def run(tmp_path: Path, trained: Path) -> Path:
    """The same before its end."""
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / LAST).rename(tmp_path / LAST)
    return tmp_path / "run"


class Fake:
    """Evaluates nothing, and says what it was given."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, checkpoint: Path) -> dict[str, Any]:
        self.seen.append(checkpoint.name)
        return {**RESULTS, "config": {"model_sha": Checkpoint.open(checkpoint).fingerprint}}


def test_each_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it waits, the last one comes."""
    fake = Fake()
    waits = []

    def come(seconds: float) -> None:
        waits.append(seconds)
        (run.parent / LAST).rename(run / LAST)

    monkeypatch.setattr(watching.time, "sleep", come)
    found = list(watch(run, fake, "key", 30))
    assert waits == [30]
    assert fake.seen == [FIRST, SECOND, LAST]
    assert found == read(run)
    assert [record["step"] for record in found] == [2, 4, 6]
    assert [record["tokens"] for record in found] == [96, 192, 288]
    assert len({record["model_sha"] for record in found}) == 3
    assert found[0]["scores"]["a/acc"] == 0.5
    list(watch(run, fake, "key", 30))
    assert len(fake.seen) == 3  # nothing is done twice
    list(watch(run, fake, "others", 30, begin=3))
    assert fake.seen[3:] == [SECOND, LAST]  # but with other settings


def test_a_line_that_was_cut_short_spoils_no_other(run: Path) -> None:
    (run.parent / LAST).rename(run / LAST)
    (run / FILE).write_text(json.dumps({"step": 4, "settings": "key"}) + '\n{"step": 2, "sett')
    fake = Fake()
    list(watch(run, fake, "key", 30))
    assert fake.seen == [FIRST, LAST]
    assert [record["step"] for record in read(run)] == [4, 2, 6]


def test_one_that_is_gone_is_passed_over(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run.parent / LAST).rename(run / LAST)
    fake = Fake()

    def evaluate(checkpoint: Path) -> dict[str, Any]:
        if checkpoint.name == FIRST:
            raise CheckpointError("it is gone")
        return fake(checkpoint)

    list(watch(run, evaluate, "key", 30))
    assert fake.seen == [SECOND, LAST]
    assert f"{FIRST} is not evaluated: it is gone" in capsys.readouterr().err


def test_only_a_run_can_be_watched(run: Path, tmp_path: Path) -> None:
    for folder, said in ((tmp_path / "nowhere", "no such folder"), (run / FIRST, "not a run's folder")):
        with pytest.raises(ConfigError, match=said):
            next(watch(folder, Fake(), "key", 30))


def test_a_run_is_complete_with_its_last_step(run: Path, tmp_path: Path) -> None:
    assert not is_complete(run)
    (tmp_path / LAST).rename(run / LAST)
    assert is_complete(run)
    (tmp_path / "empty").mkdir()
    assert not is_complete(tmp_path / "empty")


def test_settings_tell_apart() -> None:
    assert settings_key({"a": 1, "b": None}) == settings_key({"b": None, "a": 1}) != settings_key({"a": 2, "b": None})
