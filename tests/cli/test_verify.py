"""neoxkit verify: what it prints and exits with."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from refusal import flip, remove, run

DATA = "checkpoint/model/pp00-tp00.safetensors"


@pytest.mark.parametrize("source", ["checkpoint", "run", "hf", "neox"])
def test_sound_is_0(here: Path, source: str) -> None:
    result = run(f"verify {source}")
    assert result.exit_code == 0, result.output
    assert ": sound (" in result.stdout
    assert "bad" not in result.stdout
    about = json.loads(run(f"verify {source} --json").stdout)
    assert (about["sound"], about["findings"], about["against"]) == (True, [], None)


def test_a_flipped_bit_is_1_and_named(here: Path) -> None:
    flip(DATA)()
    result = run("verify checkpoint")
    assert result.exit_code == 1
    bad = [line for line in result.stdout.splitlines() if line.startswith("bad: ")]
    assert len(bad) == 2
    assert f"{DATA}: damaged" in bad[0]
    assert f"{DATA}: model/" in bad[1]
    about = json.loads(run("verify checkpoint --json").stdout)
    assert [finding["kind"] for finding in about["findings"]] == ["file", "damage"]


def test_a_missing_file_is_1(here: Path) -> None:
    remove(DATA)()
    result = run("verify checkpoint --against hf")
    assert result.exit_code == 1
    assert f"bad: {DATA}: the file is missing" in result.stdout
    assert "not compared with hf" in result.stdout


@pytest.mark.parametrize("source", ["nowhere", "text", "checkpoint/config.json"])
def test_nothing_to_check_is_2(here: Path, source: str) -> None:
    result = run(f"verify {source}")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")


def test_against_another(here: Path) -> None:
    same = run("verify checkpoint --against hf")
    assert same.exit_code == 0, same.output
    assert "logits: the same as those of hf" in same.stdout
    about = json.loads(run("verify checkpoint --against hf --json").stdout)["against"]
    assert set(about) == {"path", "max", "mean", "scale", "tolerance", "within"}
    assert about["within"]
    assert about["max"] <= 1e-5
    other = run("verify checkpoint --against neox")
    assert other.exit_code == 1
    assert "logits: different from those of neox" in other.stdout
    assert run("verify checkpoint --against neox --tolerance 1000").exit_code == 0


def test_against_hugging_face_without_transformers(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    result = run("verify checkpoint --against hf")
    assert result.exit_code == 2
    assert "pip install 'neoxkit[hf]'" in result.stderr
