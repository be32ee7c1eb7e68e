"""Saves in the background: the same checkpoints, failures told, nothing half-written; which are saved and kept."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import jobs
import pytest
import tiny_runs as runs
import torch

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.config.saving import Save
from neoxkit.train.engine import Engine
from neoxkit.train.loop import train
from neoxkit.train.resume import Position
from neoxkit.train.saving.background import Background
from neoxkit.train.saving.saver import Saver


def start(folder: Path, *overrides: str, **options: Any) -> Path:
    config = runs.config("gpt_neox", folder, *overrides, **options)
    path = train(config, {"steps": config.steps}).checkpoint
    assert isinstance(path, Path)
    return path


def steps_of(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in run.iterdir() if path.name.startswith("step-"))


def assert_equal(ours: Path, theirs: Path) -> None:
    with Checkpoint.open(ours) as mine, Checkpoint.open(theirs) as other:
        assert set(mine.names()) == set(other.names())
        for name in other.names():
            assert torch.equal(mine.read(name), other.read(name)), name
        assert mine.trainer_state() == other.trainer_state()
        assert mine.rng() == other.rng()


def test_a_save_in_the_background_holds_the_run_at_that_moment(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"steps": 4}
    start(folder, "save.every=1", "save.background=always", f"save.folder={folder}/aside", **options)
    assert "training waited" in capsys.readouterr().err
    start(folder, "save.every=1", "save.background=never", f"save.folder={folder}/ahead", **options)
    assert "training waited" not in capsys.readouterr().err
    assert steps_of(folder / "aside") == steps_of(folder / "ahead") == [1, 2, 3, 4]
    for step in (1, 2, 3, 4):
        assert_equal(folder / "aside" / f"step-{step:08d}", folder / "ahead" / f"step-{step:08d}")


@pytest.mark.parametrize("background", ["always", "never"])
def test_a_failed_save_is_told_of_and_training_goes_on(
    folder: Path, background: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, save = folder / "run", Saver.save

    def with_something_in_the_way(self: Saver, engine: Engine, at: Position, last: bool = False) -> Path:
        if at.step == 2:
            self.path(2).write_text("in the way")
        return save(self, engine, at, last)

    monkeypatch.setattr(Saver, "save", with_something_in_the_way)
    path = start(folder, "save.every=1", f"save.background={background}", steps=3)
    assert "step-00000002 was not saved, and training goes on: " in capsys.readouterr().err
    assert path == run / "step-00000003"
    assert steps_of(run) == [1, 2, 3]
    assert (run / "step-00000002").read_text() == "in the way"
    assert not [each for each in run.iterdir() if each.name.endswith(".partial")]


def test_a_writer_that_is_killed_is_told_of_and_replaced(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = Background.submit

    def and_kill(self: Background, order: Any, values: Any) -> None:
        submit(self, order, values)
        if order.path.name == "step-00000001":
            assert self._child is not None
            assert self._child.pid is not None
            os.kill(self._child.pid, signal.SIGKILL)

    monkeypatch.setattr(Background, "submit", and_kill)
    start(folder, "save.every=1", "save.background=always", steps=3)
    assert "step-00000001 was not saved, and training goes on: the process that wrote it ended with -9" in (
        capsys.readouterr().err
    )
    assert steps_of(folder / "run") == [2, 3]
    assert not [each for each in (folder / "run").iterdir() if each.name.endswith(".partial")]


def _train(folder: Path, options: dict[str, Any], name: str, overrides: list[str]) -> None:
    config = runs.config("gpt_neox", folder, f"save.folder={folder / name}", *overrides, **options)
    train(config, {"steps": config.steps})


def test_every_rank_writes_in_the_background(folder: Path) -> None:
    options = {"steps": 3, "mesh": {"dp": 2}}
    cases = [(folder, options, way, ["save.every=1", f"save.background={way}"]) for way in ("always", "never")]
    jobs.run(2, _train, cases, folder)
    for step in (1, 2, 3):
        assert_equal(folder / "always" / f"step-{step:08d}", folder / "never" / f"step-{step:08d}")
    with Checkpoint.open(folder / "always" / "step-00000002") as source:
        files = [file.path for file in source.manifest.files]
    assert {"model/pp00-tp00-dp00.safetensors", "model/pp00-tp00-dp01.safetensors"} < set(files)


def test_steps_that_are_saved() -> None:
    pythia = Save(folder="", every=1000, steps=(0, 3), log_factor=2.0, log_last=512)
    assert [step for step in range(2001) if pythia.wants(step)] == [
        *(0, 1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000)
    ]
    assert pythia.stays(512)
    assert not pythia.stays(1000)
    slow = Save(folder="", log_factor=1.5)
    assert [step for step in range(40) if slow.wants(step)] == [
        1,
        2,
        3,
        5,
        7,
        11,
        17,
        25,
        38,
    ]


def test_what_was_asked_for_by_step_is_kept(folder: Path) -> None:
    start(folder, "save.every=1", "save.keep_last=2", "save.steps=[0, 2]", "save.keep_every=4", steps=7)
    assert steps_of(folder / "run") == [0, 2, 4, 6, 7]
