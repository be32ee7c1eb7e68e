"""Law 8 over meshes: a + b steps are a steps, a save, a load on another mesh, b steps."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree
from typing import Any

import jobs
import pytest
import tiny_runs as runs
import torch

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.train import metrics
from neoxkit.train.loop import train

MESHES = {
    "1": {},
    "dp2": {"dp": 2},
    "tp2": {"tp": 2},
    "dp4": {"dp": 4},
    "tp2 dp2": {"tp": 2, "dp": 2},
    "tp4": {"tp": 4},
    "cp4": {"cp": 4},
    "cp2 dp2": {"cp": 2, "dp": 2},
    "tp2 cp2": {"tp": 2, "cp": 2},
}
PAIRS = {
    "gpt_neox": [
        *((mesh, mesh) for mesh in MESHES if mesh not in ("cp4", "tp2 cp2")),
        ("1", "tp2 dp2"),
        ("1", "dp4"),
        ("tp4", "1"),
        ("tp4", "dp2"),
        ("dp4", "tp2"),
        ("tp2 dp2", "tp4"),
        ("tp2", "tp2 dp2"),
        ("dp2", "1"),
        ("tp4", "cp4"),
    ],
    "llama": [("1", "tp4"), ("tp4", "dp4"), ("dp4", "1"), ("tp2 dp2", "tp2"), ("tp4", "tp4"), ("tp2 cp2", "dp4")],
}
"""From one mesh to another; llama has two key/value heads, so at tp 4 neighbours share them, and a tied head."""

CASES = [(family, *pair) for family, pairs in PAIRS.items() for pair in pairs]
STEPS, HALF = 4, 2
BATCH = {"size": 8, "micro": 2}


def size(mesh: str) -> int:
    return int(torch.tensor([*MESHES[mesh].values(), 1]).prod())


def begin(family: str, mesh: str, data: Path, folder: Path, steps: int) -> None:
    """Train, or go on, to a step; `folder` is the run's."""
    model = {"mixer": {"heads": 4, "head_dim": 8}} if family == "gpt_neox" else {}  # tp 4 divides them
    overrides = [f"model.{key}.{k}={v}" for key, node in model.items() for k, v in node.items()]
    overrides += [f"save.folder={folder}", "init.std=0.1", f"schedule.decay_steps={STEPS}"]
    # A moment of a gradient that is zero but for rounding would be blown up by the usual eps.
    overrides += [f"save.every={HALF}", "optimizer.eps=0.01"]
    config = runs.config(family, data, *overrides, batch=BATCH, mesh=MESHES[mesh], steps=steps)
    train(config, {"steps": steps})


def losses(folder: Path) -> list[float]:
    return [record[key] for record in metrics.read(folder) if "loss" in record for key in ("loss", "norm")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("meshes")
    runs.write_tokens(folder)
    return folder


@pytest.fixture(scope="module")
def straight(data: Path) -> dict[tuple[str, str], Path]:
    """Runs of all steps without a stop, on each mesh; and `half`, stopped in the middle."""
    found: dict[tuple[str, str], Path] = {}
    work: dict[int, list[tuple[Any, ...]]] = {}
    for family, pairs in PAIRS.items():
        for mesh in sorted({"1", *(first for first, _ in pairs)}):
            for steps, name in ((STEPS, "straight"), (HALF, "half")):
                folder = data / f"{family} {mesh} {name}"
                found[family, f"{mesh} {name}"] = folder
                work.setdefault(size(mesh), []).append((family, mesh, data, folder, steps))
    perform(work, data)
    return found


def perform(work: dict[int, list[tuple[Any, ...]]], data: Path) -> None:
    for count, cases in work.items():
        if count == 1:
            for case in cases:
                begin(*case)
        else:
            jobs.run(count, begin, cases, data)


@pytest.fixture(scope="module")
def resumed(data: Path, straight: dict[tuple[str, str], Path]) -> dict[tuple[str, str, str], Path]:
    """For each pair of meshes the run that stopped on one and went on on the other."""
    found: dict[tuple[str, str, str], Path] = {}
    work: dict[int, list[tuple[Any, ...]]] = {}
    for family, first, second in CASES:
        folder = data / f"{family} {first} to {second}"
        copytree(straight[family, f"{first} half"], folder)
        found[family, first, second] = folder
        work.setdefault(size(second), []).append((family, second, data, folder, STEPS))
    perform(work, data)
    return found


@pytest.mark.parametrize(("family", "mesh"), sorted({(family, first) for family, first, _ in CASES}))
def test_every_mesh_trains_as_one_process(family: str, mesh: str, straight: dict[tuple[str, str], Path]) -> None:
    torch.testing.assert_close(
        losses(straight[family, f"{mesh} straight"]), losses(straight[family, "1 straight"]), rtol=2e-5, atol=0
    )


@pytest.mark.parametrize(("family", "first", "second"), CASES)
def test_a_run_goes_on_on_another_mesh(
    family: str,
    first: str,
    second: str,
    straight: dict[tuple[str, str], Path],
    resumed: dict[tuple[str, str, str], Path],
) -> None:
    ours, whole = resumed[family, first, second], straight[family, f"{first} straight"]
    if first == second:
        assert losses(ours) == losses(whole)
    else:
        torch.testing.assert_close(losses(ours), losses(whole), rtol=2e-5, atol=0)
    with Checkpoint.open(ours / f"step-{STEPS:08d}") as mine, Checkpoint.open(whole / f"step-{STEPS:08d}") as theirs:
        assert set(mine.names()) == set(theirs.names())
        for name in theirs.names():
            if first == second:
                assert torch.equal(mine.read(name), theirs.read(name)), name
            else:
                torch.testing.assert_close(mine.read(name), theirs.read(name), rtol=1e-4, atol=1e-6, msg=name)
