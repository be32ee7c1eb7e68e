"""`neoxkit data show`: documents, and samples as a run reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import yaml
from click.testing import CliRunner
from tiny_runs import tree
from tokenizers import decoders, models, pre_tokenizers

from neoxkit.cli import main
from neoxkit.config.load import load_run
from neoxkit.data.tokenizer import Tokenizer
from neoxkit.data.tokens.columns import write_column
from neoxkit.data.tokens.indexed import IndexedWriter
from neoxkit.data.tokens.sidecar import Sidecar, path_of, write_sidecar
from neoxkit.train.feed import Feed
from neoxkit.train.length import lasting

WORDS = ["<|endoftext|>", "one", "two", "three", "line\n", "\x1b[31mred"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tokens with labels, and a tokenizer of six words."""
    judge = tokenizers.Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}))
    judge.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    judge.decoder = decoders.Fuse()
    judge.save(str(tmp_path / "tokenizer.json"))
    documents = [[1, 2, 0], [3, 3, 4, 1, 0], [5, 0]]
    with IndexedWriter(tmp_path / "p", 6) as writer, write_column(tmp_path / "p", "labels") as labels:
        for document in documents:
            writer.add(document)
            labels.add([-100 if token == 3 else token for token in document])
        writer.commit()
        labels.commit()
    sidecar = Sidecar(Tokenizer(tmp_path / "tokenizer.json").fingerprint, 6, 0, 3, 10, 0, columns=("labels",))
    write_sidecar(path_of(tmp_path / "p"), sidecar)
    return tmp_path


def show(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["data", "show", *map(str, arguments)])


def test_documents(folder: Path) -> None:
    found = show(folder / "p", "--number", "0-2", "--tokenizer", folder / "tokenizer.json")
    assert found.exit_code == 0, found.output
    p = folder / "p"
    assert found.stdout == (
        f"document 0 of {p}: 3 tokens\n+ onetwo<|endoftext|>\n\n"
        f"document 1 of {p}: 5 tokens\n  threethree\n+ line\n+ one<|endoftext|>\n\n"
        f"document 2 of {p}: 2 tokens\n+ \\x1b[31mred<|endoftext|>\n\n"
    )
    found = show(folder / "p", "--number", "1", "--tokens", "3")
    assert found.stdout == f"document 1 of {p}: 5 tokens\n  3 3\n+ 4\n  ... and 2 tokens\n\n"


def run_file(folder: Path, **data: Any) -> Path:
    given = tree("gpt_neox", folder)
    given["model"]["vocab"] = 6
    given["model"]["context"] = given["data"]["sequence"] = 10
    given["data"] = {"train": str(folder / "p"), **data}
    (folder / "run.yaml").write_text(yaml.safe_dump(given))
    return folder / "run.yaml"


def test_samples_of_a_run(folder: Path) -> None:
    """In the order of the run, with the borders of documents, and what is padding."""
    path = run_file(folder, packing="whole")
    found = show(path, "--json", "--number", "0-1")
    assert found.exit_code == 0, found.output
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    for line in lines:
        ids = [token for stretch in line["stretches"] for token in stretch["ids"]]
        learned = [stretch["learned"] for stretch in line["stretches"] for _ in stretch["ids"]]
        documents = [stretch["document"] for stretch in line["stretches"] for _ in stretch["ids"]]
        assert len(ids) == 11
        assert sorted(set(documents)) == [-1, 0, 1, 2]
        assert documents[-1] == -1
        for at, (token, known) in enumerate(zip(ids, learned, strict=True)):
            first = at == 0 or documents[at] != documents[at - 1]
            assert known == (not first and token != 3 and documents[at] >= 0)
    text = show(path, "--number", "0", "--tokenizer", folder / "tokenizer.json").stdout
    assert text.count("-" * 40) == 3
    assert "of 10 tokens learned" in text
    assert "  (1 token of padding)\n" in text
    assert text.count("<|endoftext|>") == 3


def test_samples_of_a_run_of_epochs(folder: Path) -> None:
    """They are shuffled together, as training has them."""
    generator = np.random.default_rng(0)
    for name in ("q", "r"):
        with IndexedWriter(folder / name, 6) as writer:
            for _ in range(9):
                writer.add(generator.integers(0, 6, size=generator.integers(2, 20)))
            writer.commit()
    path = run_file(folder, train=[str(folder / "q"), str(folder / "r")])
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "steps": None, "epochs": 3}))
    feed = Feed(lasting(load_run([path])))
    lines = show(path, "--json", "--number", "0-7").stdout.splitlines()
    shown = [[token for stretch in json.loads(line)["stretches"] for token in stretch["ids"]] for line in lines]
    assert shown == [feed.row(number).ids.tolist() for number in range(8)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("p", "--number", "3"), "has 3 documents, and not number 3"),
        (("p", "--number", "2-1"), "is no number and no range such as 0-2"),
        (("q",), "no such index"),
        (("none.yaml",), "none.yaml"),
        (("p", "--tokenizer", "nothing-here"), "nothing-here"),
        (("p", "--tokenizer", "bytes"), "p was made with tokenizer sha256:"),
    ],
)
def test_what_is_not_there_is_told(
    folder: Path, arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    found = show(*arguments)
    assert found.exit_code == 2
    assert said in found.stderr
    assert "Traceback" not in found.stderr
