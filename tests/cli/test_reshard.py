"""neoxkit reshard and import: cuts, layouts, and those that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from refusal import run

from neoxkit.checkpoint import plan


def files(folder: str) -> list[str]:
    """The data files of the weights."""
    return sorted(path.name for path in Path(folder, "model").iterdir())


@pytest.mark.parametrize(
    ("args", "names"),
    [
        ("", ["whole-00000.safetensors"]),
        ("--layout whole", ["whole-00000.safetensors"]),
        ("--layout sharded", ["pp00-tp00.safetensors"]),
        ("--tp 2", ["pp00-tp00.safetensors", "pp00-tp01.safetensors"]),
        ("--tp 2 --layout sharded --ep 1", ["pp00-tp00.safetensors", "pp00-tp01.safetensors"]),
    ],
)
def test_layouts(here: Path, args: str, names: list[str]) -> None:
    planned = run(f"reshard checkpoint out {args} --dry-run").stdout
    assert [line.split("model/")[1] for line in planned.splitlines()[:-1]] == names
    result = run(f"reshard checkpoint out {args}")
    assert result.exit_code == 0, result.output
    assert files("out") == names
    assert run("diff checkpoint out").exit_code == 0
    assert run("verify out").exit_code == 0
    mesh = json.loads(run("inspect out --json").stdout)["mesh"]
    assert mesh == {"pp": 1, "tp": 2 if "--tp 2" in args else 1, "ep": 1}


def test_whole_tensors_in_files_of_a_size(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MOST_FILE", 100_000)
    assert run("reshard checkpoint out --layout whole").exit_code == 0
    sizes = [path.stat().st_size for path in Path("out", "model").iterdir()]
    assert len(sizes) > 3
    assert max(sizes) < 100_000 + 10_000  # and a header
    about = json.loads(run("inspect out --json --tensors").stdout)
    assert all(each["pieces"] == 1 for each in about["tensors"])
    assert run("reshard out one --layout sharded").exit_code == 0
    assert files("one") == ["pp00-tp00.safetensors"]
    assert run("diff one checkpoint").exit_code == 0


def test_a_run_with_its_optimizer(here: Path) -> None:
    assert run("reshard run out --tp 2 --pp 2").exit_code == 0
    assert run("reshard out back --layout whole").exit_code == 0
    assert run("diff run back").exit_code == 0
    assert json.loads(run("inspect back --json").stdout)["mesh"] == {
        "pp": 1,
        "tp": 1,
        "cp": 1,
        "ep": 1,
        "dp": 1,
        "zero": 0,
    }


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("reshard checkpoint out --layout whole --tp 2", "the layout of whole tensors has no tp 2"),
        ("reshard checkpoint out --layout whole --pp 3", "the layout of whole tensors has no tp 1, pp 3"),
        ("reshard checkpoint out --ep 2", "--ep 2: the model has no experts that could be divided; leave --ep out"),
        ("reshard checkpoint out --ep 2 --dry-run", "--ep 2: the model has no experts"),
        ("reshard checkpoint out --layout flat", "--layout"),
        ("import hf out --ep 2", "--ep 2: the model has no experts"),
        ("reshard hf out", "run: neoxkit import hf"),
    ],
)
def test_refused(here: Path, command: str, said: str) -> None:
    result = run(command)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert not Path("out").exists()
