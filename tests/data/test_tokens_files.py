"""Token files merged, divided, counted and shown: what comes out is what went in, document by document."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from neoxkit.cli.data import command
from neoxkit.data.rows.pack import split as training_split
from neoxkit.data.tokens.columns import IGNORED, column_path, open_column, write_column
from neoxkit.data.tokens.indexed import IndexedFile, IndexedWriter
from neoxkit.data.tokens.merge import merge
from neoxkit.data.tokens.sidecar import Sidecar, path_of, read_sidecar, write_sidecar
from neoxkit.data.tokens.split import split
from neoxkit.errors import DataError

Documents = list[list[list[int]]]
"""Documents of sequences of ids."""


def write(prefix: Path, documents: Documents, vocab: int | None = 100, columns: bool = False, **about: Any) -> Path:
    """A token file; with a sidecar where something is said about it, with a label and a score of each if asked."""
    with IndexedWriter(prefix, vocab) as writer:
        for sequences in documents:
            writer.add([token for each in sequences for token in each], [len(each) for each in sequences])
        writer.commit()
    if columns:
        with write_column(prefix, "labels") as labels, write_column(prefix, "scores") as scores:
            for number, sequences in enumerate(documents):
                flat = [token for each in sequences for token in each]
                labels.add([t if t % 2 else IGNORED for t in flat], [len(each) for each in sequences])
                scores.add([number + len(flat) / 100])
            labels.commit()
            scores.commit()
    if about or columns:
        tokens = sum(len(each) for sequences in documents for each in sequences)
        base = {"tokenizer": "sha256:1", "vocab": vocab or 70_000, "eod": 0, "documents": len(documents)}
        base |= {"tokens": tokens, "bytes": 10, "columns": ("labels", "scores") if columns else ()}
        write_sidecar(path_of(prefix), Sidecar(**{**base, **about}))
    return prefix


def read(prefix: Path) -> Documents:
    file = IndexedFile(prefix)
    borders = file.documents.tolist()
    return [[file[k].tolist() for k in range(*ends)] for ends in pairwise(borders)]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def fine(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


SEQUENCES = st.lists(st.lists(st.integers(0, 99), max_size=4), min_size=1, max_size=3)
FILES = st.lists(st.lists(SEQUENCES, min_size=1, max_size=6), min_size=1, max_size=4)


@settings(deadline=None, max_examples=20)
@given(files=FILES, vocabs=st.lists(st.sampled_from([100, None]), min_size=4, max_size=4))
def test_a_merge_is_the_files_end_to_end(
    tmp_path_factory: pytest.TempPathFactory, files: list[Documents], vocabs: list[int | None]
) -> None:
    here = tmp_path_factory.mktemp("merge")
    prefixes = [write(here / f"p{k}", each, vocab) for k, (each, vocab) in enumerate(zip(files, vocabs, strict=False))]
    done = merge(prefixes, here / "all")
    assert read(here / "all") == [document for each in files for document in each]
    file = IndexedFile(here / "all")
    assert (done.documents, done.tokens, done.dtype) == (file.document_count, file.tokens, file.dtype)
    assert file.dtype.name == ("int32" if None in vocabs[: len(files)] else "uint16")
    if len(set(vocabs[: len(files)])) == 1:
        write(here / "direct", [document for each in files for document in each], vocabs[0])
        for end in ("bin", "idx"):
            assert (here / f"all.{end}").read_bytes() == (here / f"direct.{end}").read_bytes()


def test_a_merge_takes_columns_and_sidecars_along(tmp_path: Path) -> None:
    first: Documents = [[[1, 2], [3]], [[4]]]
    second: Documents = [[[5, 6, 7]]]
    write(tmp_path / "a", first, columns=True, sources="sha256:a", skipped={"x": 1}, part="train")
    write(tmp_path / "b", second, columns=True, sources="sha256:b", skipped={"x": 2, "y": 1}, part="train")
    assert "3 documents, 7 tokens, uint16" in fine("merge", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "c")
    sidecar = read_sidecar(tmp_path / "c")
    assert sidecar is not None
    assert (sidecar.documents, sidecar.tokens, sidecar.bytes, sidecar.part) == (3, 7, 20, "train")
    assert (sidecar.skipped, sidecar.columns) == ({"x": 3, "y": 1}, ("labels", "scores"))
    assert sidecar.sources.startswith("sha256:")
    assert open_column(tmp_path / "c", "labels")[0].tolist() == [1, IGNORED]
    assert read(column_path(tmp_path / "c", "labels")) == [[[1, -100], [3]], [[-100]], [[5, -100, 7]]]
    scores = open_column(tmp_path / "c", "scores")
    assert [scores[k].tolist() for k in range(3)] == [[np.float32(0.03)], [np.float32(1.01)], [np.float32(0.03)]]
    assert run("merge", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "c").exit_code, "it is there"
    fine("merge", tmp_path / "b", tmp_path / "c", "-o", tmp_path / "c", "--force")
    assert read(tmp_path / "c") == [*second, *first, *second], "what is replaced may be among what is merged"


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"tokenizer": "sha256:2"}, "different tokenizers"),
        ({"eod": 1}, "different tokenizers"),
        ({}, "b has no b.json, so its tokenizer is not known"),
        ({"columns": True}, "columns: .*a has none, and .*b labels, scores"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, other: dict[str, Any], says: str) -> None:
    write(tmp_path / "a", [[[1]]], eod=0)
    write(tmp_path / "b", [[[2]]], **other)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match=says):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert sorted(tmp_path.iterdir()) == before
    if "columns" not in other:
        write_sidecar(tmp_path / "c.json", Sidecar("sha256:0", 1, 0, 1, 1, 1))
        fine("merge", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "c", "--any-tokenizer", "--force")
        assert read(tmp_path / "c") == [[[1]], [[2]]]
        assert read_sidecar(tmp_path / "c") is None, "the old one spoke of other tokens"


def test_numbers_and_tokens_are_not_merged(tmp_path: Path) -> None:
    write(tmp_path / "a", [[[1]]], columns=True)
    with pytest.raises(DataError, match=r"holds int32, .* float32"):
        merge([tmp_path / "a-labels", tmp_path / "a-scores"], tmp_path / "c", any_tokenizer=True)


@settings(deadline=None, max_examples=20)
@given(
    documents=st.lists(SEQUENCES, min_size=6, max_size=20),
    weights=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    seed=st.sampled_from([None, 0, 1]),
)
def test_each_document_is_in_one_part(
    tmp_path_factory: pytest.TempPathFactory, documents: Documents, weights: list[int], seed: int | None
) -> None:
    here = tmp_path_factory.mktemp("split")
    for number, document in enumerate(documents):
        document[0].insert(0, number)
    write(here / "p", documents, columns=True, sources="sha256:a")
    shares = [(f"n{k}", float(weight)) for k, weight in enumerate(weights)]
    stretches = training_split(weights, len(documents))[: len(weights)]
    if any(start == stop for start, stop in stretches):
        with pytest.raises(DataError, match="gets none of its"):
            split(here / "p", here / "out", shares, seed=seed)
        return
    parts = split(here / "p", here / "out", shares, seed=seed)
    found = [read(here / f"out-n{k}") for k in range(len(weights))]
    assert [len(each) for each in found] == [stop - start for start, stop in stretches]
    if seed is None:
        assert found == [documents[start:stop] for start, stop in stretches]
    numbers = [document[0][0] for each in found for document in each]
    assert sorted(numbers) == list(range(len(documents)))
    sources = set()
    for part, each in zip(parts, found, strict=True):
        assert [document[0][0] for document in each] == sorted(document[0][0] for document in each)
        assert each == [documents[document[0][0]] for document in each]
        labels = [[[t if t % 2 else IGNORED for t in s] for s in document] for document in each]
        assert read(column_path(part.prefix, "labels")) == labels
        open_column(part.prefix, "labels")
        scores = open_column(part.prefix, "scores")
        assert [int(scores[k][0]) for k in range(len(scores))] == [document[0][0] for document in each]
        sidecar = read_sidecar(part.prefix)
        assert sidecar is not None
        assert (sidecar.documents, sidecar.tokens, sidecar.bytes) == (len(each), part.tokens, 0)
        sources.add(sidecar.sources)
    assert len(sources) == len(parts)


def test_a_split_is_merged_to_what_it_was(tmp_path: Path) -> None:
    write(tmp_path / "p", [[[k, k + 1]] for k in range(50)])
    shown = fine("split", tmp_path / "p", "-o", tmp_path / "q", "--weights", "8/1,1")
    assert shown.splitlines()[0] == f"{tmp_path}/q-train: 40 documents, 80 tokens"
    fine("merge", *(tmp_path / f"q-{name}" for name in ("train", "valid", "test")), "-o", tmp_path / "r")
    for end in ("bin", "idx"):
        assert (tmp_path / f"r.{end}").read_bytes() == (tmp_path / f"p.{end}").read_bytes()


def test_what_is_learned_is_counted(tmp_path: Path) -> None:
    write(tmp_path / "p", [[[1, 3]], [[2, 4]], [[5, 7, 9]]], columns=True, learned=5)
    fine("split", tmp_path / "p", "-o", tmp_path / "q", "--weights", "2,1", "--names", "x,y")
    wanted = {"x": 2, "y": 3}
    for name, learned in wanted.items():
        sidecar = read_sidecar(tmp_path / f"q-{name}")
        assert sidecar is not None
        assert sidecar.learned == learned
    fine("merge", tmp_path / "q-x", tmp_path / "q-y", tmp_path / "q-x", "-o", tmp_path / "r")
    merged = read_sidecar(tmp_path / "r")
    assert merged is not None
    assert merged.learned == 7


def test_a_seed_deals_alike(tmp_path: Path) -> None:
    write(tmp_path / "p", [[[k]] for k in range(60)])
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        fine("split", tmp_path / "p", "-o", tmp_path / name, "--weights", "1,1", "--names", "x,y", "--shuffle",
             "--seed", seed)  # fmt: skip
    assert read(tmp_path / "a-x") == read(tmp_path / "b-x") != read(tmp_path / "c-x")
    assert sorted(read(tmp_path / "a-x") + read(tmp_path / "a-y")) == [[[k]] for k in range(60)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--weights", "a"], "not numbers above 0"),
        (["--weights", "1,0"], "not numbers above 0"),
        (["--weights", "1,nan"], "not numbers above 0"),
        (["--weights", "1,1,1,1"], "4 weights, and 3 names"),
        (["--weights", "1,1", "--names", "x"], "2 weights, and 1 names"),
        (["--weights", "1,1", "--names", "x,x"], "not all different"),
        (["--weights", "1,1", "--names", "x,../y"], "not all different, or no ends of file names"),
        (["--weights", "1,1", "--seed", "1"], "--seed is of --shuffle"),
        (["--weights", "1000,1"], "valid, of weight 1, gets none of its 2 documents"),
    ],
)
def test_a_wrong_split_is_refused(tmp_path: Path, arguments: list[str], says: str) -> None:
    write(tmp_path / "p", [[[1]], [[2]]])
    result = run("split", tmp_path / "p", "-o", tmp_path / "q", *arguments)
    assert says in str(result.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.bin", "p.idx"]


def test_info_of_documents_of_several_sequences(tmp_path: Path) -> None:
    write(tmp_path / "p", [[[1, 2], [3]], [[]], [[4], [5, 6], [7, 8, 9]]], columns=True)
    found = json.loads(fine("info", tmp_path / "p", "--json"))
    assert (found["documents"], found["sequences"], found["tokens"], found["empty"]) == (3, 6, 9, 1)
    assert (found["longest"], found["mean"], found["p50"], found["p99"]) == (6, 3.0, 3, 6)
    assert (found["form"], found["columns"]) == ("megatron", ["labels", "scores"])
    files = [tmp_path / f"p{column}.{end}" for column in ("", "-labels", "-scores") for end in ("bin", "idx")]
    assert found["size"] == sum(path.stat().st_size for path in files)
    both = fine("info", tmp_path / "p", tmp_path / "p-labels", "--json").splitlines()
    assert [json.loads(line)["dtype"] for line in both] == ["uint16", "int32"]
    people = fine("info", tmp_path / "p")
    assert "columns       labels, scores\n" in people
    assert "skipped       none\n" in people
    assert "learned       none\n" in people
    assert "template      none\n" in people


def test_percentiles_are_of_documents_that_are_there(tmp_path: Path) -> None:
    write(tmp_path / "p", [[[0] * size] for size in range(1, 101)])
    found = json.loads(fine("info", tmp_path / "p", "--json"))
    assert [found[f"p{k}"] for k in (50, 90, 99)] == [50, 90, 99]


def test_count(tmp_path: Path) -> None:
    write(tmp_path / "p", [[[1, 2], [3]], [[]]])
    write(tmp_path / "q", [[[1] * 1500]])
    found = json.loads(fine("count", tmp_path / "p", tmp_path / "q.bin", "--json"))
    assert [(each["documents"], each["tokens"]) for each in found["files"]] == [(2, 3), (1, 1500)]
    assert (found["documents"], found["tokens"]) == (3, 1503)
    shown = fine("count", tmp_path / "p", tmp_path / "q")
    assert shown.splitlines()[-1].split() == ["1,503", "tokens", "3", "documents", "all"]
    assert len(fine("count", tmp_path / "p").splitlines()) == 1


def test_text_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n')
    for name in ("count", "info"):
        with pytest.raises(
            DataError, match=r"x.jsonl is not a token file; .*`neoxkit data tokenize .*x.jsonl -o PREFIX"
        ):
            raise run(name, tmp_path / "x.jsonl").exception or AssertionError


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    write(tmp_path / "p", [[[1]]])
    (tmp_path / "p.bin").rename(tmp_path / "q.bin")
    assert "p.bin: no such token file" in str(run("count", tmp_path / "p.idx").exception)
    assert "q.idx: no such index" in str(run("count", tmp_path / "q.bin").exception)


@pytest.mark.parametrize(
    ("column", "harm", "says"),
    [
        ("labels", [[1], [2]], "does not have a number for each token of"),
        ("labels", None, "p-labels.idx: no such index"),
        ("scores", [[1, 2]], "does not have a number for each document of"),
        ("scores", [[1], [2]], "does not have a number for each document of"),
    ],
)
def test_a_column_that_lies_apart_is_refused(
    tmp_path: Path, column: str, harm: list[list[int]] | None, says: str
) -> None:
    write(tmp_path / "p", [[[1, 2]]], columns=True)
    for end in ("bin", "idx"):
        column_path(tmp_path / "p", column).with_suffix(f".{end}").unlink()
    if harm:
        with write_column(tmp_path / "p", column) as writer:
            for each in harm:
                writer.add(each)
            writer.commit()
    assert says in str(run("info", tmp_path / "p").exception)
    assert says in str(run("merge", tmp_path / "p", "-o", tmp_path / "c").exception)
    assert says in str(run("split", tmp_path / "p", "-o", tmp_path / "c", "--weights", "1").exception)


def test_a_column_of_another_kind_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "p", [[[1]]], columns=True)
    with IndexedWriter(tmp_path / "p-labels", dtype="f4", force=True) as writer:
        writer.add([0.5])
        writer.commit()
    with pytest.raises(DataError, match="holds float32, which labels are not"):
        open_column(tmp_path / "p", "labels")
    with pytest.raises(DataError, match='a column "mood", which is not known'):
        open_column(tmp_path / "p", "mood")


@pytest.mark.parametrize(("column", "wrong"), [("labels", 1 << 31), ("scores", float("nan")), ("scores", 1e39)])
def test_a_number_that_a_column_cannot_hold_is_refused(tmp_path: Path, column: str, wrong: float) -> None:
    refused = pytest.raises(DataError, match=r"p-.*document 0 has")
    with write_column(tmp_path / "p", column) as writer, refused:
        writer.add([wrong])


def test_no_torch(tmp_path: Path) -> None:
    write(tmp_path / "p", [[[k]] for k in range(10)], columns=True)
    code = (
        "import sys; from neoxkit.cli.data import command\n"
        f"for name in ({str(tmp_path / 'p')!r},): pass\n"
        "for each in (['info', name], ['count', name], ['merge', name, '-o', name + '2'],\n"
        "             ['split', name, '-o', name + '3', '--weights', '1,1']):\n"
        "    command(each, standalone_mode=False)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("False\n"), done.stderr
