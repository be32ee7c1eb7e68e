"""Law 8: a + b steps equals a steps, save, load anew, b steps: bit for bit, whatever happened between."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_runs as runs
import torch
import yaml
from click.testing import CliRunner

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.cli.train import command
from neoxkit.convert.verify import verify
from neoxkit.errors import ConfigError
from neoxkit.train import loop, metrics
from neoxkit.train.loop import train


def start(folder: Path, family: str, name: str, **options: Any) -> Path:
    """Train in `folder`/`name`; returns the last checkpoint."""
    save = {"folder": str(folder / name), **options.pop("save", {})}
    config = runs.config(family, folder, save=save, **options)
    return train(config, config.model_dump(mode="json")).checkpoint


def contents(checkpoint: Path) -> dict[str, torch.Tensor]:
    with Checkpoint.open(checkpoint) as source:
        return {name: source.read(name) for name in source.names()}


def losses(folder: Path) -> list[tuple[int, float, float]]:
    """Step, loss and norm of each step; the loss alone of an evaluation."""
    return [(r["step"], r.get("loss", r.get("valid_loss")), r.get("norm", 0.0)) for r in metrics.read(folder)]


def assert_same(first: Path, second: Path) -> None:
    assert losses(first.parent) == losses(second.parent)  # first: a step says more than a tensor
    mine, theirs = contents(first), contents(second)
    assert set(mine) == set(theirs)
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    states = [Checkpoint.open(path).trainer_state() for path in (first, second)]
    assert states[0] == states[1]


@pytest.fixture(autouse=True)
def no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these runs do."""
    monkeypatch.setattr(loop, "draw", lambda folder: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    runs.write_tokens(tmp_path)
    return tmp_path


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", runs.MODELS)
def test_resumed_is_as_if_never_stopped(folder: Path, family: str, precision: str) -> None:
    """Accumulation of two micro-batches, clipping, warmup and decay; stopped after 3 of 7 steps, and after 5."""
    options = {"precision": precision, "schedule": {"warmup_steps": 2, "decay_steps": 7, "decay": "linear"}}
    whole = start(folder, family, "whole", steps=7, **options)
    norms = [norm for _, _, norm in losses(whole.parent) if norm]
    assert max(norms) > 0.5, "nothing was clipped"
    for steps in (3, 5, 7):
        epochs = {"data": {"train": str(folder / "tokens"), "valid": str(folder / "held-out")}}
        parts = start(folder, family, "parts", steps=steps, **options, **epochs)
    # Held-out losses are also judged where a part ended; only the last is common to both.
    path = parts.parent / metrics.FILE
    kept = [r for r in metrics.read(parts.parent) if "loss" in r or r["step"] == 7]
    path.write_text("".join(json.dumps(record) + "\n" for record in kept))
    assert_same(whole, parts)


KINDS: dict[str, dict[str, Any]] = {
    "lion": {"optimizer": {"kind": "lion", "lr": 0.003}},
    "sgd": {"optimizer": {"kind": "sgd", "lr": 0.1}, "precision": "bf16"},
    "sgd without momentum": {"optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.0}},
    "muon": {"optimizer": {"kind": "muon", "lr": 0.02, "rest": {"lr": 0.01}}, "precision": "bf16"},
    "adafactor": {"optimizer": {"kind": "adafactor", "lr": 0.1}, "precision": "bf16"},
    "adamw8bit": {"optimizer": {"kind": "adamw8bit", "lr": 0.01}},
    "fp16": {"precision": "fp16", "loss_scale": {"initial": 2.0**18, "window": 2}},
    "growing": {
        "batch": {"size": 6, "micro": 2, "warmup": {"start": 2, "increment": 2, "samples": 12}},
        "data": {"curriculum": {"start": 4, "steps": 5, "multiple": 4}},
    },
}


@pytest.mark.parametrize("name", KINDS)
def test_whatever_changes_a_run_resumes(folder: Path, name: str) -> None:
    """Optimizers and what they keep, fp16 with steps that are skipped, growing batches and samples."""
    options = {
        "family": "gpt_neox",
        "schedule": {"warmup_steps": 4, "decay_steps": 6, "decay": "constant"},
        **KINDS[name],
    }
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
        options["model"] = runs.tree("gpt_neox", folder)["model"] | {"width": 64, "mlp": {"hidden": 80}}
    data = {"train": str(folder / "tokens"), **options.pop("data", {})}
    whole = start(folder, name="whole", steps=6, data=data, **options)
    parts = [start(folder, name="parts", steps=steps, data=data, **options) for steps in (3, 6)]
    assert_same(whole, parts[-1])
    assert verify(parts[-1]).findings == []
    state = Checkpoint.open(parts[0]).trainer_state()
    records = metrics.read(whole.parent)
    if name == "fp16":
        # Two steps are skipped, then three at half the scale are made, which doubles it, and it is too high again.
        assert [r["skipped"] for r in records] == [True, True, False, False, False, True]
        assert [r["loss_scale"] for r in records] == [2.0**18, 2.0**18, *[2.0**17] * 3, 2.0**18]
        assert state["skipped"] == 2
        # Of four steps of warmup, those that are skipped are none.
        assert [r["lr"] for r in records] == pytest.approx([0.0025] * 4 + [0.005, 0.0075])
    if name == "growing":
        assert [r["tokens"] for r in records] == [2 * 4, 2 * 4, 2 * 8, 4 * 8, 4 * 12, 6 * 12]
        assert whole.name == "step-00000006"
        assert Checkpoint.open(whole).trainer_state()["samples"] == 20


def test_another_kind_of_optimizer_is_refused(folder: Path) -> None:
    start(folder, "gpt_neox", "run", steps=2)
    with pytest.raises(ConfigError, match=r"optimizer\.kind is lion, and the run in .* began with adamw"):
        start(folder, "gpt_neox", "run", steps=4, optimizer={"kind": "lion", "lr": 0.01})


def test_the_state_is_needed(folder: Path) -> None:
    """What the law guards against: with the moments lost, the same steps give other weights."""
    whole = start(folder, "llama", "whole", steps=6)
    middle = start(folder, "llama", "middle", steps=3)
    again = start(folder, "llama", "again", steps=3, load=str(middle))
    mine, theirs = contents(whole), contents(again)
    assert not torch.equal(mine["model/embed.weight"], theirs["model/embed.weight"])


def write_run(folder: Path, name: str, **options: Any) -> Path:
    """The file of a run in `folder`/`name` that saves every two steps."""
    path = folder / f"{name}.yaml"
    save = {"folder": str(folder / name), "every": 2}
    path.write_text(yaml.safe_dump(runs.tree("gpt_neox", folder, save=save, **options)))
    return path


def test_killed_runs_end_with_the_same_weights(folder: Path) -> None:
    """SIGKILL at moments of its own choosing; the same command again goes on from the last complete save."""
    whole = CliRunner().invoke(command, [str(write_run(folder, "whole", steps=16))])
    file, killed = write_run(folder, "killed", steps=16), folder / "killed"
    choose = random.Random(0)
    for aim in (3, 9):
        child = subprocess.Popen(
            [sys.executable, "-m", "neoxkit", "train", str(file)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while child.poll() is None and len(metrics.read(killed)) < aim:
            time.sleep(0.001)
        time.sleep(choose.random() * 0.01)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert not (killed / "step-00000016").exists()
    done = CliRunner().invoke(command, [str(file)])
    assert "going on from" in done.stderr
    assert done.stdout.strip() == str(killed / "step-00000016")
    assert_same(Path(whole.stdout.strip()), killed / "step-00000016")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(folder: Path, number: signal.Signals) -> None:
    file, stopped = write_run(folder, "run", steps=400), folder / "run"

    def send() -> None:
        while len(metrics.read(stopped)) < 3:
            time.sleep(0.001)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    done = CliRunner().invoke(command, [str(file)])
    sender.join()
    assert done.exit_code == 128 + number
    last = max(record["step"] for record in metrics.read(stopped))
    assert 3 <= last < 400
    assert done.stdout.strip() == str(stopped / f"step-{last:08d}")
    assert (stopped / "latest").read_text() == f"step-{last:08d}\n"
