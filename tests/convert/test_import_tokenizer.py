"""The tokenizer of an import: its own, another that is named, or that which gpt-neox's settings name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from neox_checkpoints import unpack
from refusal import run

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.data.tokenizer.train import train_bpe

REMOTE = "neox_tp2pp1"


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of gpt-neox, whose vocab_file is data/tokenizer.json; it has 512 rows."""
    return unpack(tmp_path_factory.mktemp("oracles")) / REMOTE


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tokenizer in `given`, and one that is too large in `large`."""
    monkeypatch.chdir(tmp_path)
    words = [f"{a}{b}{c}{d} " * 3 for a in "abcdefgh" for b in "ijklmnop" for c in "qrstuvwx" for d in "stuvwxyz"]
    train_bpe(words, 300, tmp_path / "given")
    train_bpe(words, 600, tmp_path / "large")
    return tmp_path


def imported(command: str) -> tuple[dict[str, bytes], str]:
    """The tokenizer's files in the checkpoint `out`, and what was told."""
    result = run(command)
    assert result.exit_code == 0, (result.output, result.stderr)
    folder = Checkpoint.open(Path("out")).tokenizer
    return ({path.name: path.read_bytes() for path in folder.iterdir()} if folder else {}), result.stderr


def refused(command: str) -> str:
    """What is said of a command that cannot be; nothing is written."""
    result = run(command)
    assert result.exit_code == 2, result.output
    assert not Path("out").exists()
    return " ".join(result.stderr.split())


def test_a_folder(oracle: Path, here: Path) -> None:
    """All its files."""
    files, _ = imported(f"import {oracle} out --tokenizer given")
    assert files == {path.name: path.read_bytes() for path in (here / "given").iterdir()}


def test_a_file(oracle: Path, here: Path) -> None:
    """It becomes tokenizer.json, whatever it is called."""
    content = (here / "given" / "tokenizer.json").read_bytes()
    (here / "20B_tokenizer.json").write_bytes(content)
    files, _ = imported(f"import {oracle} out --tokenizer 20B_tokenizer.json")
    assert files == {"tokenizer.json": content}


def test_what_the_settings_name(oracle: Path, here: Path) -> None:
    """vocab_file, where it is there and is a tokenizer.json: that is told. --no-tokenizer leaves it."""
    assert imported(f"import {oracle} out")[0] == {}
    (here / "data").mkdir()
    content = (here / "given" / "tokenizer.json").read_bytes()
    (here / "data" / "tokenizer.json").write_bytes(content)
    files, told = imported(f"import {oracle} out --force")
    assert files == {"tokenizer.json": content}
    assert "the tokenizer is data/tokenizer.json, which the settings name" in " ".join(told.split())
    assert imported(f"import {oracle} out --force --no-tokenizer")[0] == {}
    (here / "data" / "tokenizer.json").write_text(json.dumps({"a": 0, "b": 1}))  # as GPT2BPETokenizer has it
    assert imported(f"import {oracle} out --force")[0] == {}


def test_refusals(oracle: Path, here: Path) -> None:
    """What cannot be a tokenizer, and what the model has no rows for."""
    assert "--tokenizer and --no-tokenizer are both given" in refused(
        f"import {oracle} out --tokenizer given --no-tokenizer"
    )
    assert "--tokenizer nowhere: no such file" in refused(f"import {oracle} out --tokenizer nowhere")
    (here / "empty").mkdir()
    assert "--tokenizer empty: no files of a tokenizer" in refused(f"import {oracle} out --tokenizer empty")
    (here / "text").write_text("{}")
    assert 'text is not a tokenizer: it has no "model"' in refused(f"import {oracle} out --tokenizer text")
    assert "ids up to 599, the model 512 rows" in refused(f"import {oracle} out --tokenizer large")
