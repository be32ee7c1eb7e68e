"""`neoxkit data pairs`: preferences of every shape into aligned token files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_templates import PLAIN, write_tokenizer
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from neoxkit.cli.data import command
from neoxkit.data.prepare.conversations import Conversation, Passage
from neoxkit.data.prepare.pairs import labelled_row, pair_row, scored_row
from neoxkit.data.text.documents import UnusableError
from neoxkit.data.tokenizer import Tokenizer
from neoxkit.data.tokens.indexed import IndexedFile
from neoxkit.data.tokens.sidecar import read_sidecar
from neoxkit.errors import NeoxkitError

ASKED = [{"role": "user", "content": "What is it?"}]
GOOD = [{"role": "assistant", "content": "It is that."}]
BAD = [{"role": "assistant", "content": "There."}]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("pairs") / "words", PLAIN["chatml"])


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, ["pairs", *map(str, arguments)])


def fine(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exception is None, result.exception
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def refused(*arguments: object) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, NeoxkitError), result.output
    return str(result.exception)


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def documents(prefix: str | Path, words: Path) -> list[tuple[str, str]]:
    """Each document: what of it is not learned, and what is."""
    tokenizer, ids, labels = Tokenizer(words), IndexedFile(prefix), IndexedFile(f"{prefix}-labels")
    found = []
    for at in range(len(ids)):
        learned = labels[at] != -100
        assert labels[at][learned].tolist() == ids[at][learned].tolist()
        found.append(
            (tokenizer.decode(ids[at][~learned].tolist(), True), tokenizer.decode(ids[at][learned].tolist(), True))
        )
    return found


def scores(prefix: str | Path) -> list[float]:
    file = IndexedFile(f"{prefix}-scores")
    assert file.dtype == np.dtype("<f4")
    assert file.sizes.tolist() == [1] * len(IndexedFile(prefix))
    return [float(file[at][0]) for at in range(len(file))]


SAID = "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n\n"

CONVERSATIONAL: list[dict[str, Any]] = [
    {"prompt": ASKED, "chosen": GOOD, "rejected": BAD},
    {"chosen": ASKED + GOOD, "rejected": ASKED + BAD},
    {"prompt": "What is it?", "chosen": ASKED + GOOD, "rejected": ASKED + BAD, "messages": ASKED},
    {"prompt": ASKED, "chosen": ASKED + GOOD, "rejected": ASKED + BAD},
    {"prompt": "What is it?", "chosen": GOOD, "rejected": BAD},
    {"prompt": ASKED, "chosen": GOOD[0], "rejected": BAD[0]},
    {"prompt": ASKED, "chosen": "It is that.", "rejected": "There."},
]


def test_pairs_of_messages(words: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "p"
    told = fine(lines(tmp_path / "x.jsonl", *CONVERSATIONAL), "-o", prefix, "--tokenizer", words)
    assert [each["prefix"] for each in told["outputs"]] == [f"{prefix}-chosen", f"{prefix}-rejected"]
    assert documents(f"{prefix}-chosen", words) == [(SAID, "It is that.<|im_end|>")] * 7
    assert documents(f"{prefix}-rejected", words) == [(SAID, "There.<|im_end|>")] * 7
    names = {f"p-{side}{end}" for side in ("chosen", "rejected") for end in (".bin", ".idx", ".json")}
    names |= {f"p-{side}-labels{end}" for side in ("chosen", "rejected") for end in (".bin", ".idx")}
    assert {each.name for each in tmp_path.iterdir()} == {*names, "x.jsonl"}
    for side in ("chosen", "rejected"):
        sidecar = read_sidecar(f"{prefix}-{side}")
        assert sidecar is not None
        assert (sidecar.columns, sidecar.documents) == (("labels",), 7)


def test_pairs_of_texts(words: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": "What is", "chosen": " the answer", "rejected": " it"},
        {"chosen": "\n\nHuman: What?\n\nAssistant: It is", "rejected": "\n\nHuman: What?\n\nAssistant: It was"},
        {"chosen": "It is that, the answer", "rejected": "It is that, there"},
    ]
    fine(lines(tmp_path / "x.jsonl", *rows), "-o", tmp_path / "p", "--tokenizer", words)
    assert documents(tmp_path / "p-chosen", words) == [
        ("What is", " the answer</s>"),
        ("\n\nHuman: What?\n\nAssistant:", " It is</s>"),
        ("It is that,", " the answer</s>"),
    ]
    assert [learned for _, learned in documents(tmp_path / "p-rejected", words)] == [
        " it</s>",
        " It was</s>",
        " there</s>",
    ]


def test_pairs_with_scores(words: Path, tmp_path: Path) -> None:
    """As UltraFeedback has them; the first row decides that all have."""
    row = CONVERSATIONAL[2]
    rows = [{**row, "score_chosen": 8.5, "score_rejected": 2}, row, {**row, "score_chosen": 1, "score_rejected": None}]
    told = fine(lines(tmp_path / "x.jsonl", *rows), "-o", tmp_path / "p", "--tokenizer", words)
    assert told["skipped"] == {'no key "score_chosen"': 1, 'no key "score_rejected"': 1}
    assert [each["columns"] for each in told["outputs"]] == [["labels", "scores"]] * 2
    assert (scores(tmp_path / "p-chosen"), scores(tmp_path / "p-rejected")) == ([8.5], [2.0])


def test_liked_or_not(words: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": ASKED, "completion": GOOD, "label": True},
        {"prompt": "What is", "completion": " it", "label": False},
        {"prompt": "What is", "completion": " it", "label": 1},
    ]
    told = fine(lines(tmp_path / "x.jsonl", *rows), "-o", tmp_path / "p", "--tokenizer", words)
    assert told["skipped"] == {'"label" is neither true nor false': 1}
    assert documents(tmp_path / "p", words) == [(SAID, "It is that.<|im_end|>"), ("What is", " it</s>")]
    assert scores(tmp_path / "p") == [1.0, -1.0]
    assert (tmp_path / "p-scores.idx").read_bytes()[17] == 6  # gpt-neox's code of float32


@pytest.mark.parametrize(("key", "more"), [("score", ()), ("reward", ()), ("stars", ("--score-key", "stars"))])
def test_scores(key: str, more: tuple[str, ...], words: Path, tmp_path: Path) -> None:
    rows = [
        {"messages": ASKED + GOOD, key: 0.25},
        {"text": "It is", key: -3},
        {"text": "", key: 1},
        {"text": "It is", key: "1"},
        {"text": "It is", key: 10**400},
        {"text": "It is", key: True},
    ]
    told = fine(lines(tmp_path / "x.jsonl", *rows), "-o", tmp_path / "p", "--tokenizer", words, *more)
    assert told["skipped"] == {"empty": 1, f'"{key}" is not a number': 3}
    assert documents(tmp_path / "p", words) == [(SAID, "It is that.<|im_end|>"), ("", "It is</s>")]
    assert scores(tmp_path / "p") == [0.25, -3.0]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"chosen": "a", "rejected": "a"}, "identical pair"),
        ({"chosen": "a", "rejected": " "}, "empty rejected"),
        ({"chosen": [], "rejected": GOOD}, "empty chosen"),
        ({"chosen": None, "rejected": "a"}, 'no key "chosen"'),
        ({"chosen": "a"}, 'no key "rejected"'),
        ({"chosen": "a b", "rejected": "a b c"}, None),
        ({"chosen": "a ", "rejected": "a b"}, "empty chosen"),
        ({"chosen": ASKED, "rejected": ASKED + BAD}, "empty chosen"),
        ({"chosen": "a", "rejected": BAD}, "mixed pair"),
        ({"prompt": 3, "chosen": GOOD, "rejected": BAD}, "no prompt"),
        ({"chosen": 3, "rejected": 4}, "no list of messages"),
        ([GOOD, BAD], 'no key "chosen"'),
    ],
)
def test_rows_that_are_no_pair(row: Any, kind: str | None) -> None:
    if kind is None:
        assert pair_row(row).texts == [Passage("a", " b"), Passage("a", " b c")]
        return
    with pytest.raises(UnusableError, match=kind):
        pair_row(row)


def test_other_rows_of_no_use() -> None:
    with pytest.raises(UnusableError, match="no conversation"):
        labelled_row({"label": True})
    with pytest.raises(UnusableError, match='no key "score"'):
        scored_row({"messages": GOOD}, "score")
    with pytest.raises(UnusableError, match='no key "label"'):
        labelled_row(3)


@given(st.text("ab \n", max_size=9), st.text("ab \n", max_size=9), st.text("ab \n", max_size=9))
def test_a_shared_beginning_is_no_part_of_an_answer(prompt: str, one: str, other: str) -> None:
    """Prompt and answer together are the text that was given, and what is learned of the two differs."""
    row = {"chosen": prompt + one, "rejected": prompt + other}
    try:
        sides = pair_row(row).texts
    except UnusableError:
        return
    for side, key in zip(sides, ("chosen", "rejected"), strict=True):
        assert isinstance(side, Passage)
        assert side.prompt + side.completion == row[key]
        assert side.completion.strip()
    assert sides[0] != sides[1]


def test_messages_after_a_shared_beginning() -> None:
    long = [*ASKED, *GOOD, *ASKED]
    chosen, rejected = pair_row({"chosen": long + GOOD, "rejected": long + BAD}).texts
    assert isinstance(chosen, Conversation)
    assert isinstance(rejected, Conversation)
    assert chosen.learn == rejected.learn == [False, False, False, True]
    assert chosen.messages == long + GOOD


def test_both_sides_or_none(words: Path, tmp_path: Path) -> None:
    """A pair with a side that is too long, or cannot be written, is left out of both files."""
    long = [{"role": "assistant", "content": "It is that. " * 20}]
    refuses = [{"role": "assistant", "content": "\udc00"}]
    rows = [{"prompt": ASKED, "chosen": side, "rejected": BAD} for side in (long, refuses, GOOD)]
    rows.append({"prompt": ASKED, "chosen": GOOD, "rejected": long})
    told = fine(lines(tmp_path / "x.jsonl", *rows), "-o", tmp_path / "p", "--tokenizer", words, "--max-tokens", 30)
    assert told["skipped"] == {"too long": 2, "not Unicode": 1}
    assert len(IndexedFile(tmp_path / "p-chosen")) == len(IndexedFile(tmp_path / "p-rejected")) == 1
    told = fine(
        tmp_path / "x.jsonl", "-o", tmp_path / "q", "--tokenizer", words, "--max-tokens", 30, "--overlong", "cut"
    )  # fmt: skip
    assert [(each["documents"], each["cut"]) for each in told["outputs"]] == [(3, 1), (3, 1)]


def test_refusals(words: Path, tmp_path: Path) -> None:
    file = lines(tmp_path / "x.jsonl", {"messages": GOOD})
    base = (file, "-o", tmp_path / "p", "--tokenizer", words)
    assert "no row is a preference: none has chosen and rejected, or label" in refused(*base)
    assert 'or "stars"' in refused(*base, "--score-key", "stars")
    lines(file, *CONVERSATIONAL[:1], {"prompt": "a", "chosen": "b", "rejected": "b"})
    assert f"{file}:2: identical pair" in refused(*base, "--strict")
    assert [each.name for each in tmp_path.iterdir()] == ["x.jsonl"]
    fine(*base)
    assert "p-chosen-labels.bin exists" in refused(*base)
    assert len(fine(*base, "--force")["outputs"]) == 2
