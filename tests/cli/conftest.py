"""A small folder of everything that the command line takes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from refusal import run
from tiny import Tiny

RUN = """\
model:
  family: gpt_neox
  depth: 2
  width: 16
  vocab: 300
  context: 16
  residual: parallel
  mixer: {heads: 2}
data:
  train: tokens
  tokenizer: tokens-tokenizer
batch: {size: 4}
optimizer: {lr: 0.01}
steps: 2
precision: fp32
device: cpu
save: {folder: run}
"""


def done(command: str) -> None:
    """Call neoxkit, which must succeed."""
    result = run(command)
    assert result.exit_code == 0, (command, result.output, result.exception)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """text, tokens and their tokenizer; hf and neox, Hugging Face models; checkpoint, of hf; run.yaml and its run."""
    folder, before = tmp_path_factory.mktemp("world"), Path.cwd()
    os.chdir(folder)
    try:
        Path("text").mkdir()
        for path in sorted(Path(__file__).parent.glob("test_*.py")):
            shutil.copy(path, f"text/{path.stem}.txt")
        done("data tokenize text -o tokens --train-tokenizer 300")
        sizes = {"vocab_size": 300}
        Tiny("llama", "gqa", {**sizes, "num_key_value_heads": 2}).model().save_pretrained("hf")
        Tiny("gpt_neox", "parallel", sizes).model().save_pretrained("neox")
        for model in ("hf", "neox"):
            shutil.copytree("tokens-tokenizer", model, dirs_exist_ok=True)
        done("import hf checkpoint --tp 2")
        Path("run.yaml").write_text(RUN)
        done("train run.yaml")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the world, made the current directory."""
    shutil.copytree(world, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"
