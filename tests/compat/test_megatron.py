"""Token files of Megatron-core's builder and of datatrove are ours byte for byte, and Megatron-core reads ours.

Both are installed aside, without their dependencies, and run in a process of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from packages import installed

from neoxkit.cli.data import command
from neoxkit.data.tokenizer import EOD, Tokenizer
from neoxkit.data.tokenizer.train import train_bpe
from neoxkit.data.tokens.columns import IGNORED, write_column
from neoxkit.data.tokens.indexed import IndexedFile, IndexedWriter
from neoxkit.data.tokens.merge import merge
from neoxkit.errors import DataError

MEGATRON = ("megatron-core==0.16.1",)
DATATROVE = ("datatrove==0.10.1", "dill==0.4.1", "multiprocess==0.70.19", "humanize==4.17.0", "loguru==0.7.3")

VOCABULARIES = {"uint16": 65_499, "int32": 65_500}
DOCUMENTS = {
    name: [[[5, 6, 7], [1]], [[9, 8]], [[]], [], [[2], [], [vocabulary - 1]]]
    for name, vocabulary in VOCABULARIES.items()
}
"""Documents of sequences of ids, by the dtype that they are written in."""

LABELS = [[[IGNORED, 6, 7], [1]], [[9, 8]], [[]], [], [[2], [], [IGNORED]]]

WITH_DATATROVE = """
import json, sys
from datatrove.data import Document
from datatrove.pipeline.tokens.megatron_tokenizer import MegatronDocumentTokenizer

folder, tokenizer, end = sys.argv[1:]
writer = MegatronDocumentTokenizer(folder, "their", tokenizer, end)
texts = [json.loads(line)["text"] for line in open(f"{folder}/texts.jsonl", encoding="utf-8")]
writer.run(iter([Document(text=text, id=str(number)) for number, text in enumerate(texts)]))
print("{}")
"""


def add(writer: IndexedWriter, documents: list[list[list[int]]]) -> None:
    for sequences in documents:
        writer.add([token for each in sequences for token in each], [len(each) for each in sequences])
    writer.commit()


@pytest.fixture(scope="module")
def megatron(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder of files of ours and theirs, and what Megatron-core reads of ours."""
    folder = tmp_path_factory.mktemp("megatron")
    for name, vocabulary in VOCABULARIES.items():
        with IndexedWriter(folder / f"our-{name}", vocabulary) as writer:
            add(writer, DOCUMENTS[name])
    with write_column(folder / "our-int32", "labels") as writer:
        add(writer, LABELS)
    script = Path(__file__).with_name("token_files.py").read_text()
    return folder, run(script, MEGATRON, "megatron-core-0.16.1", str(folder), json.dumps(DOCUMENTS))


def run(code: str, packages: tuple[str, ...], name: str, *arguments: str) -> dict[str, Any]:
    """What a program prints, run with packages that are installed aside."""
    environment = {**os.environ, "PYTHONPATH": str(installed(name, packages)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def flat(documents: list[list[list[int]]]) -> list[list[int]]:
    return [sequence for document in documents for sequence in document]


def test_megatron_reads_ours(megatron: tuple[Path, dict[str, Any]]) -> None:
    _, said = megatron
    starts = [0, 2, 3, 4, 4, 7]
    for name, documents in DOCUMENTS.items():
        assert said[f"our-{name}"] == [name, flat(documents), starts]
    assert said["our-int32-labels"] == ["int32", flat(LABELS), starts]
    assert len(said) == 3


@pytest.mark.parametrize("name", VOCABULARIES)
def test_the_bytes_are_those_of_its_builder(megatron: tuple[Path, dict[str, Any]], name: str) -> None:
    folder, _ = megatron
    for end in ("bin", "idx"):
        assert (folder / f"our-{name}.{end}").read_bytes() == (folder / f"their-{name}.{end}").read_bytes()


def test_a_merge_is_that_of_its_builder(megatron: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = megatron
    merge([folder / "their-uint16"] * 2, tmp_path / "both")
    for end in ("bin", "idx"):
        assert (tmp_path / f"both.{end}").read_bytes() == (folder / f"their-both.{end}").read_bytes()


def test_files_of_its_builder_are_read(megatron: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = megatron
    for name, documents in DOCUMENTS.items():
        file = IndexedFile(folder / f"their-{name}")
        assert [file[k].tolist() for k in range(len(file))] == flat(documents)
        assert file.document_sizes().tolist() == [sum(len(each) for each in document) for document in documents]
    assert IndexedFile(folder / "their-text").documents.tolist() == [0, 2, 3]
    with pytest.raises(DataError, match="several modes"):
        IndexedFile(folder / "their-images")
    for name in ("float32", "float64"):
        file = IndexedFile(folder / f"their-{name}")
        assert (file.dtype, [file[k].tolist() for k in range(2)]) == (np.dtype(name), [[0.5], [-1.0]])


def test_datatrove_writes_the_same(tmp_path: Path) -> None:
    texts = [f"def f{n}(x): return x + {n}\n" * (n % 7 + 1) for n in range(200)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train_bpe(texts[:100], 300, tmp_path / "tokenizer")
    tokenizer = tmp_path / "tokenizer" / "tokenizer.json"
    run(WITH_DATATROVE, DATATROVE, "datatrove-0.10.1", str(tmp_path), str(tokenizer), EOD)
    arguments = ["tokenize", str(tmp_path / "texts.jsonl"), "-o", str(tmp_path / "our"), "--tokenizer", str(tokenizer)]
    assert CliRunner().invoke(command, arguments).exit_code == 0
    for end in ("bin", "idx"):
        assert (tmp_path / f"our.{end}").read_bytes() == (tmp_path / f"their_00000_tokens.{end}").read_bytes()
    file = IndexedFile(tmp_path / "their_00000_tokens")
    assert Tokenizer(tokenizer).decode(file[7].tolist()[:-1]) == texts[7]
