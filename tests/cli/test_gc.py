"""neoxkit gc: what it prints and removes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from refusal import run


@pytest.fixture
def kept(here: Path) -> Path:
    """A run of five checkpoints, of steps 2 to 10, and what an interrupted save left."""
    for step in (4, 6, 8, 10):
        shutil.copytree("run/step-00000002", f"run/step-{step:08d}")
    Path("run/latest").write_text("step-00000010\n")
    home = Path("run/.step-00000012.0a1b2c.partial")
    (home / "files").mkdir(parents=True)
    (home / "neoxkit.lock").touch()
    return here / "run"


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in folder.glob("step-*"))


def test_old_checkpoints_go(kept: Path) -> None:
    size = sum(path.stat().st_size for path in (kept / "step-00000002").rglob("*") if path.is_file())
    dry = run("gc run --keep-last 2 --keep-every 4 --dry-run")
    assert (dry.exit_code, dry.stderr) == (0, "")
    assert steps(kept) == [2, 4, 6, 8, 10]
    result = run("gc run --keep-last 2 --keep-every 4")
    assert result.stdout == dry.stdout.replace("would remove", "removed")
    assert steps(kept) == [4, 8, 10]
    said = result.stdout.splitlines()
    assert said[0].startswith("removed run/.step-00000012.0a1b2c.partial, which an interrupted command left")
    assert [line.split(" (")[0] for line in said[1:3]] == [f"removed run/step-{step:08d}" for step in (2, 6)]
    assert "kept run/step-00000008: one of the newest 2, step 8 is a multiple of 4" in said
    assert said[-1] == f"removed 3 folders, {2 * size:,} bytes"
    assert run("inspect run").exit_code == 0
    assert run("train run.yaml --set steps=10").exit_code == 0


def test_without_options_only_what_was_left(kept: Path) -> None:
    result = run("gc run --json")
    about = json.loads(result.stdout)
    assert set(about) == {"run", "kept", "left", "invalid", "removed", "attempts", "bytes", "dry_run"}
    assert list(about["attempts"]) == [".step-00000012.0a1b2c.partial"]
    assert about["removed"] == {}
    assert steps(kept) == [2, 4, 6, 8, 10]
    assert run("gc run").stdout.splitlines()[-1] == "removed 0 folders, 0 bytes"


def test_one_that_is_not_valid(kept: Path) -> None:
    os.truncate("run/step-00000010/manifest.json", 100)
    assert "left run/step-00000010: not valid: manifest.json: not valid JSON" in run("gc run --keep-last 1").stdout
    assert steps(kept) == [8, 10]
    assert run("gc run --invalid").exit_code == 0
    assert steps(kept) == [8]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("nowhere", "no such folder"),
        ("checkpoint --keep-last 1", "a checkpoint, not the folder of a run"),
        ("hf --keep-every 2", "it has no checkpoints"),
        ("run --keep-last 0", "--keep-last"),
        ("s3://bucket/run --keep-last 1", "not a folder of a disk"),
    ],
)
def test_refused(here: Path, args: str, said: str) -> None:
    result = run(f"gc {args}")
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
