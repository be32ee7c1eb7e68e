"""Law 10: kill a save, or an export, at any moment; what was there loads, and the new one is complete or absent."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from killing import Saver
from sound import damaged
from transformers import AutoModelForCausalLM

from neoxkit.checkpoint.attempt import dead_attempts
from neoxkit.checkpoint.reader import Checkpoint

SCRIPT = Path(__file__).with_name("crash_writer.py")


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("crash_writer", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


crash_writer = _load()
values = crash_writer.values


@pytest.fixture(scope="module")
def saver() -> Iterator[Saver]:
    saver = Saver(SCRIPT)
    yield saver
    saver.close()


def seed_of(folder: Path) -> int:
    """The seed whose tensors a checkpoint holds, all of it verified."""
    with Checkpoint.open(folder) as checkpoint:
        assert damaged(checkpoint.path) == []
        seed = checkpoint.manifest.step
        assert checkpoint.trainer_state() == {"seed": seed}
        for name, value in values(seed).items():
            assert torch.equal(checkpoint.read(name), value), name
    return seed


def check(run: Path, old: Path, old_seed: int, new: Path, new_seed: int, before: int | None) -> bool:
    """The law; returns whether the new checkpoint is there. `before` is the seed that `new` held before, if any."""
    if old != new:
        assert seed_of(old) == old_seed
    if before is None and not new.exists():
        assert seed_of(run) == old_seed
        return False
    found = seed_of(new)
    assert found in (before, new_seed)
    return found == new_seed


def test_killed_at_a_hundred_random_moments(tmp_path: Path, saver: Saver) -> None:
    """New checkpoints, and replacements of one, in turn, until a hundred kills have hit a save at work.

    How long a save takes is learned on the way: a machine's speed changes.
    """
    dice = random.Random(0)
    run = tmp_path
    folder = run / "step-00000001"
    durations = []
    for _ in range(3):
        begin = time.perf_counter()
        saver.begin(folder, 1)
        assert saver.end() == (0, "")
        durations.append(time.perf_counter() - begin)
    held = {folder: 1}
    hit = there = left = 0
    limit, seed = 1.1 * min(durations), 1
    while hit < 100:
        seed += 1
        assert seed < 1000, "saves end before they can be killed"
        old = max(held)
        new = run / f"step-{seed:08d}" if seed % 2 else old
        child = saver.begin(new, seed)
        time.sleep(dice.uniform(0, limit))
        os.kill(child, signal.SIGKILL)
        struck = saver.end()[0] == signal.SIGKILL
        hit += struck
        limit *= 1.01 if struck else 0.96  # so that one in five comes too late
        left += bool(dead_attempts(run))
        if check(run, old, held[old], new, seed, held.get(new)):
            held[new] = seed
            there += 1
    assert left >= 20
    assert there >= 5
    saver.begin(run / "step-99999999", 1000)
    assert saver.end() == (0, "")
    assert dead_attempts(run) == []
    assert all(seed_of(path) == seed for path, seed in held.items())
    assert seed_of(run) == 1000


@pytest.mark.parametrize("replace", [False, True], ids=["new", "replaced"])
def test_killed_before_each_call_that_changes_the_disk(tmp_path: Path, saver: Saver, replace: bool) -> None:
    """Every open, write, flush, rename and unlink of a save, in turn."""
    old = tmp_path / "step-00000001"
    saver.begin(old, 1)
    assert saver.end()[0] == 0
    held, number, killed = 1, 0, set()
    while True:
        number += 1
        new = old if replace else tmp_path / f"step-{number + 1:08d}"
        saver.begin(new, number + 1, number)
        died, call = saver.end()
        if not died:
            break
        killed.add(call)
        if check(tmp_path, old, held, new, number + 1, held if replace else None) and replace:
            held = number + 1
    assert number > 40
    assert {"mkdir", "open", "pwrite", "fsync", "replace", "unlink"} <= killed
    assert ("exchange" in killed or "rename" in killed) if replace else "rename" in killed
    assert seed_of(new) == number + 1


def exported(folder: Path) -> float:
    """The seed whose model a folder holds, every tensor and file of it read."""
    model, _ = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    (seed,) = {value.item() for parameter in model.parameters() for value in (parameter.min(), parameter.max())}
    assert (
        json.loads((folder / "neoxkit.json").read_text())["model"]
        == Checkpoint.open(crash_writer.source(folder, int(seed))).fingerprint
    )
    return seed


def test_an_export_killed_before_each_call_that_changes_the_disk(tmp_path: Path, saver: Saver) -> None:
    """It replaces a model: the old one is there, or the new one, and the next export leaves nothing else."""
    model = tmp_path / "model"
    for seed in (1, 2):
        crash_writer.save_model(crash_writer.source(model, seed), seed)
    saver.begin(model, 1, act="export")
    assert saver.end() == (0, "")
    held, number, killed, left = 1, 0, set(), 0
    while True:
        number += 1
        new = 3 - held
        saver.begin(model, new, number, "export")
        died, call = saver.end()
        if not died:
            break
        killed.add(call)
        left += bool(dead_attempts(tmp_path))
        if os.path.lexists(model):
            found = exported(model)
            assert found in (held, new)
            held = int(found)
        else:  # set aside, between two renames; the next export puts it back
            assert "exchange" not in killed
    assert number > 30
    assert left > 20
    assert {"mkdir", "open", "pwrite", "fsync", "replace"} <= killed
    assert exported(model) == new
    assert {path.name for path in tmp_path.iterdir()} == {"model", "sources"}
