"""The tokenizer of an import: its own, another that is named, or that which gpt-neox's settings name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from neox_checkpoints import unpack
from refusal import run
from tokenizing import sentencepiece_model

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.data.tokenizer import Tokenizer
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
    """vocab_file, where it is there: that is told. --no-tokenizer leaves it."""
    assert imported(f"import {oracle} out")[0] == {}
    (here / "data").mkdir()
    content = (here / "given" / "tokenizer.json").read_bytes()
    (here / "data" / "tokenizer.json").write_bytes(content)
    files, told = imported(f"import {oracle} out --force")
    assert files == {"tokenizer.json": content}
    assert "the tokenizer is data/tokenizer.json, which the settings name" in " ".join(told.split())
    assert imported(f"import {oracle} out --force --no-tokenizer")[0] == {}
    (here / "data" / "tokenizer.json").write_text(json.dumps({"a": 0, "b": 1}))  # as GPT2BPETokenizer has it
    files, told = imported(f"import {oracle} out --force")
    assert files == {}
    assert "which the settings name" in told
    assert "no merges lie beside it" in " ".join(told.split())
    (here / "data" / "merges.txt").write_text("#version: 0.2\n")
    files, _ = imported(f"import {oracle} out --force")
    assert json.loads(files["tokenizer.json"])["model"]["vocab"] == {"a": 0, "b": 1}


def test_a_tokenizer_of_bytes(oracle: Path, here: Path) -> None:
    (here / "bytes.yml").write_text("tokenizer_type: CharLevelTokenizer\n")
    _, told = imported(f"import {oracle} out --config bytes.yml")
    assert "the tokenizer is bytes, which the settings name" in told
    folder = Checkpoint.open(Path("out")).tokenizer
    assert folder is not None
    assert Tokenizer(folder).encode("a\u00e9") == list("a\u00e9".encode())


@pytest.mark.parametrize("given", ["llama", "llama/tokenizer.model"])
def test_a_sentencepiece_model(given: str, oracle: Path, here: Path) -> None:
    """As a tokenizer.json with its ids; of a folder the model itself comes along too."""
    sentencepiece = pytest.importorskip("sentencepiece")
    lines = [f"def add_{k}(left, right):\n    return left + right  # \u00e9 \u4e2d\u6587\n" for k in range(90)]
    content = sentencepiece_model(lines, "bpe", byte_fallback=True, vocab_size=500)
    (here / "llama").mkdir()
    (here / "llama" / "tokenizer.model").write_bytes(content)
    files, _ = imported(f"import {oracle} out --tokenizer {given}")
    assert files.get("tokenizer.model") == (content if given == "llama" else None)
    judge = sentencepiece.SentencePieceProcessor(model_proto=content)
    folder = Checkpoint.open(Path("out")).tokenizer
    assert folder is not None
    assert Tokenizer(folder).encode("def f(left): # \u00ea") == judge.encode("def f(left): # \u00ea")
    assert (Tokenizer(folder).bos, Tokenizer(folder).eos) == (1, 2)


def test_one_that_no_tokenizer_json_can_be_made_of_comes_along_as_it_is(oracle: Path, here: Path) -> None:
    (here / "odd").mkdir()
    (here / "odd" / "tokenizer.model").write_bytes(b"\x00")
    files, told = imported(f"import {oracle} out --tokenizer odd")
    assert files == {"tokenizer.model": b"\x00"}
    assert "odd: the tokenizer comes along as it is, without a tokenizer.json:" in " ".join(told.split())


def test_refusals(oracle: Path, here: Path) -> None:
    """What cannot be a tokenizer, and what the model has no rows for."""
    assert "--tokenizer and --no-tokenizer are both given" in refused(
        f"import {oracle} out --tokenizer given --no-tokenizer"
    )
    assert "nowhere: no such tokenizer; give" in refused(f"import {oracle} out --tokenizer nowhere")
    (here / "empty").mkdir()
    assert "--tokenizer empty: no files of a tokenizer" in refused(f"import {oracle} out --tokenizer empty")
    (here / "text").write_text("{}")
    assert 'text is not a tokenizer: it has no "model"' in refused(f"import {oracle} out --tokenizer text")
    assert "ids up to 599, the model 512 rows" in refused(f"import {oracle} out --tokenizer large")
