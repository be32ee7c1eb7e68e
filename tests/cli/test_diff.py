"""neoxkit diff: what it prints and exits with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from refusal import run, tensors


def test_the_same_is_0_without_torch(here: Path) -> None:
    assert run("reshard checkpoint recut --tp 1 --pp 3").exit_code == 0
    probe = (
        "import sys; from neoxkit.cli import main\n"
        "try: main(['diff', 'checkpoint', 'recut', '--values'])\n"
        "finally: print(sorted({'torch', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=here, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert done.stdout.splitlines()[-1] == "the same"


@pytest.mark.parametrize("values", ["", " --values"])
def test_different_is_1(here: Path, values: str) -> None:
    assert run("diff checkpoint hf" + values).exit_code == 0
    tensors("hf/model.safetensors", lambda found: found["model.layers.2.self_attn.k_proj.weight"][3].mul_(2))()
    result = run("diff checkpoint hf" + values)
    assert result.exit_code == 1
    first = result.stdout.splitlines()[0]
    assert first.startswith("model/layers.2.attn.k.weight: values differ")
    assert ("48 of 768 elements, max " in first) is bool(values)
    about = json.loads(run("diff checkpoint hf --json" + values).stdout)
    assert (about["a"], about["b"], about["same"]) == ("checkpoint", "hf", False)
    assert [row["name"] for row in about["tensors"]] == ["model/layers.2.attn.k.weight"]


def test_other_models_are_1(here: Path) -> None:
    result = run("diff run checkpoint")
    assert result.exit_code == 1
    assert "config depth: 2 | 3" in result.stdout
    assert "model/layers.2.norm1.weight: only in B" in result.stdout
    assert "model/embed.weight: shape [300, 16] | [300, 48]" in result.stdout


@pytest.mark.parametrize("args", ["nowhere checkpoint", "checkpoint text", "checkpoint"])
def test_unusable_is_2(here: Path, args: str) -> None:
    result = run(f"diff {args}")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
