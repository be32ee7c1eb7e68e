"""`neoxkit data train-tokenizer`: what it makes, judged by tokenizers and by transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusal import run

from neoxkit.cli.data_train_tokenizer import train_tokenizer
from neoxkit.data.tokenizer import Tokenizer
from neoxkit.data.tokenizer.train import MODELS, SPLITS, Recipe, train
from neoxkit.errors import DataError

LINES = [f"value_{k} = {k * 7919}  # it's the  item's\n\tnumber {k}\n" for k in range(300)]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A folder of JSON lines."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.jsonl").write_text("".join(json.dumps({"body": line}) + "\n" for line in LINES) + "{\n")
    return tmp_path / "text"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("split", [*SPLITS, r"\w+|\s"])
def test_every_text_comes_back_and_no_token_goes_over_a_cut(tmp_path: Path, model: str, split: str) -> None:
    train(LINES, Recipe(vocab=400, model=model, special=("<|user|>",), split=split), tmp_path / "t")
    ours = Tokenizer(tmp_path / "t")
    assert [ours.id(token) for token in ("<|endoftext|>", "<|padding|>", "<|user|>")] == [0, 1, 2]
    assert 259 < ours.vocab <= 400
    assert len(ours.encode(LINES[250])) < len(LINES[250]) * (0.7 if model == "bpe" else 1)

    @settings(max_examples=30)
    @given(st.text())
    def comes_back(text: str) -> None:
        assert ours.decode(ours.encode(text), special=True) == text

    comes_back()
    pieces = [ours.decode([number]) for number in ours.encode("it's 12345678 a\nb")]
    longest = max(len(piece.strip()) for piece in pieces if piece.strip().isdigit())
    assert longest <= {"digits": 1, "cl100k": 3, "llama3": 3, "o200k": 3}.get(split, 8)
    assert not any("a" in piece and "\n" in piece for piece in pieces)


def test_normalisation_is_for_those_who_ask(tmp_path: Path) -> None:
    train([*LINES, "e\u0301"], Recipe(vocab=300, normalize="nfc"), tmp_path / "nfc")
    train([*LINES, "e\u0301"], Recipe(vocab=300), tmp_path / "none")
    nfc, none = Tokenizer(tmp_path / "nfc"), Tokenizer(tmp_path / "none")
    assert nfc.decode(nfc.encode("e\u0301")) == "\u00e9"
    assert none.decode(none.encode("e\u0301")) == "e\u0301"


def test_a_pair_that_is_rarer_than_asked_is_not_joined(tmp_path: Path) -> None:
    texts = ["qzqz"] * 4 + ["wx"] * 20
    train(texts, Recipe(vocab=400, min_frequency=10), tmp_path / "t")
    ours = Tokenizer(tmp_path / "t")
    assert (len(ours.encode("qz")), len(ours.encode("wx"))) == (2, 1)


@pytest.mark.parametrize("model", MODELS)
def test_transformers_gives_the_same_ids(tmp_path: Path, model: str) -> None:
    transformers = pytest.importorskip("transformers")
    train(LINES, Recipe(vocab=400, model=model, special=("<|user|>",), split="llama3"), tmp_path / "t")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "t"), Tokenizer(tmp_path / "t")
    for text in (*LINES[:20], "<|user|>e\u0301 \U0001f600 <|endoftext|>\n\n   x", ""):
        assert theirs(text)["input_ids"] == ours.encode(text)
    assert (theirs.eos_token_id, theirs.pad_token_id, len(theirs)) == (0, 1, ours.vocab)


def test_the_command_makes_a_folder_and_says_how_well_it_does(text: Path, tmp_path: Path) -> None:
    command = f"data train-tokenizer {text} -o {tmp_path / 't'} --vocab 400 --key body"
    done = run(f"{command} --json")
    assert done.exit_code == 0, done.stderr
    assert f"skipped 1 document (broken JSON), the first at {text}/a.jsonl:301" in done.stderr
    report = json.loads(done.stdout)
    ours = Tokenizer(tmp_path / "t")
    assert (report["entries"], report["fingerprint"], report["held_out"]) == (ours.vocab, ours.fingerprint, True)
    assert 200 < report["documents"] < 300  # a fiftieth is kept aside
    assert report["bytes"] + report["measured_bytes"] == sum(map(len, LINES))
    first = (tmp_path / "t/tokenizer.json").read_bytes()
    again = run(command)
    assert (again.exit_code, again.stdout) == (2, "")
    assert "t exists; give --force" in again.stderr
    again = run(f"{command} --force")
    assert f"{ours.vocab} entries from {report['documents']} documents" in again.stdout
    assert "bytes a token in 0.0 MB of text kept aside" in again.stdout
    assert (tmp_path / "t/tokenizer.json").read_bytes() == first


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--vocab", "257"], "257 entries is too small; give at least 258"),
        (["--vocab", "258", "--special", "<x>"], "258 entries is too small; give at least 259: 3 special tokens"),
        (["--vocab", "300", "--split", "(("], 'split "((": '),
        (["--vocab", "300", "--split", "gpt5"], 'no such split: "gpt5"; one of gpt2, digits, cl100k, llama3, o200k'),
        (["--vocab", "300", "--min-frequency", "0"], "min-frequency is 0"),
        (["--vocab", "300", "--min-frequency", "3", "--model", "unigram"], "min-frequency is of BPE"),
        (["--vocab", "300", "--special", ""], "a special token is empty"),
        (["--vocab", "300", "--key", "none"], "no text to train a tokenizer on in 1 file;"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    text: Path, tmp_path: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError) as caught:
        train_tokenizer.main([str(text), "-o", str(tmp_path / "t"), "--key", "body", *options], standalone_mode=False)
    assert says in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
