"""`neoxkit data chat`: the shapes that it reads, what it writes, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_templates import PLAIN, write_tokenizer
from click.testing import CliRunner, Result

from neoxkit.cli.data import command
from neoxkit.data.prepare.conversations import Conversation, Passage, conversation_of
from neoxkit.data.rows.arrange import Arrangement
from neoxkit.data.rows.cache import Cache
from neoxkit.data.rows.rows import Reading, Rows
from neoxkit.data.text.documents import UnusableError
from neoxkit.data.tokenizer import Tokenizer
from neoxkit.data.tokens.indexed import IndexedFile
from neoxkit.data.tokens.sidecar import read_sidecar
from neoxkit.errors import NeoxkitError

TALK = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "It is that."}]
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("chat") / "words", PLAIN["chatml"])


def run(name: str, *arguments: object) -> Result:
    return CliRunner().invoke(command, [name, *map(str, arguments)])


def fine(*arguments: object) -> str:
    result = run("chat", *arguments)
    assert result.exception is None, result.exception
    return result.stdout


def refused(*arguments: object) -> str:
    result = run("chat", *arguments)
    assert isinstance(result.exception, NeoxkitError), result.output
    return str(result.exception)


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def documents(prefix: Path, words: Path) -> list[tuple[str, str]]:
    """Each document: its text, and the text of what is learned of it."""
    tokenizer, ids, labels = Tokenizer(words), IndexedFile(prefix), IndexedFile(f"{prefix}-labels")
    assert labels.dtype == np.dtype("<i4")
    assert ids.sizes.tolist() == labels.sizes.tolist()
    found = []
    for at in range(len(ids)):
        learned = labels[at] != -100
        assert (ids[at][learned] == labels[at][learned]).all()
        texts = [tokenizer.decode(each.tolist(), special=True) for each in (ids[at], ids[at][learned])]
        found.append((texts[0], texts[1]))
    return found


WRITTEN = (
    "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\nIt is that.<|im_end|>\n",
    "It is that.<|im_end|>",
)

SHAPES: list[Any] = [
    {"messages": TALK},
    TALK,
    {"conversations": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "It is that."}]},
    {"conversations": TALK, "messages": None},
    {"instruction": "What is it?", "output": "It is that."},
    {"instruction": "What is it?", "input": "", "output": "It is that.", "history": []},
    {"prompt": TALK[:1], "completion": TALK[1:]},
    {"prompt": "What is it?", "completion": TALK[1:]},
    {"prompt": TALK[:1], "completion": "It is that."},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"}]}, TALK[1]], "tools": "[]"},
]


def test_shapes(words: Path, tmp_path: Path) -> None:
    """Conversations that are the same, whatever their shape, become the same documents."""
    prefix = tmp_path / "chats"
    assert "10 documents" in fine(lines(tmp_path / "x.jsonl", *SHAPES), "-o", prefix, "--tokenizer", words)
    assert documents(prefix, words) == [WRITTEN] * len(SHAPES)
    array = tmp_path / "x.json"
    array.write_text(json.dumps(SHAPES, indent=1))
    fine(array, "-o", tmp_path / "array", "--tokenizer", words)
    assert (tmp_path / "array.bin").read_bytes() == (tmp_path / "chats.bin").read_bytes()


def test_what_is_beside_the_messages() -> None:
    def messages(row: Any) -> list[tuple[str, Any]]:
        found = conversation_of(row)
        assert isinstance(found, Conversation)
        return [(each["role"], each.get("content")) for each in found.messages]

    first, *rest = [(each["role"], each["content"]) for each in (SYSTEM, *TALK)]
    assert messages({"messages": TALK, "system": "Be brief."}) == [first, *rest]
    assert messages({"messages": [SYSTEM, *TALK], "system": "Be long."}) == [first, *rest]
    alpaca = {"instruction": "What", "input": "is it?", "output": "It is that.", "history": [["a", "b"]]}
    assert messages(alpaca) == [("user", "a"), ("assistant", "b"), ("user", "What\nis it?"), rest[1]]
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'}
    found = conversation_of({"conversations": [call, {"from": "observation", "value": "2"}], "tools": '[{"a": 1}]'})
    assert isinstance(found, Conversation)
    assert found.tools == [{"a": 1}]
    assert [each["role"] for each in found.messages] == ["assistant", "tool"]
    assert found.messages[0]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    openai = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"x": 1}'}}]}
    found = conversation_of([openai])
    assert isinstance(found, Conversation)
    assert found.messages[0]["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    found = conversation_of({"prompt": [*TALK, *TALK[:1]], "completion": TALK[1:], "system": "x"})
    assert isinstance(found, Conversation)
    assert found.learn == [False, False, False, False, True]
    assert conversation_of({"prompt": "a", "completion": "b"}) == Passage("a", "b")


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (1, "no conversation"),
        ({"text": "x"}, "its keys are text"),
        ({"messages": "x"}, "no list of messages"),
        ({"messages": []}, "no messages"),
        ({"messages": ["x"]}, "message 0 is of type str"),
        ({"messages": [{"content": "x"}]}, "message 0 has no role"),
        ({"messages": [{"role": "user"}]}, "message 0 has no content"),
        ({"messages": [{"role": "user", "content": [{"image": 1}]}]}, "neither text nor a list of texts"),
        ({"messages": [{**TALK[1], "weight": 0.5}]}, "message 0 has 0.5"),
        ({"messages": [{**TALK[1], "train": "no"}]}, 'a "train" that is neither'),
        ({"messages": [{"role": "assistant", "tool_calls": {"a": 1}}]}, "tool_calls that are no list"),
        ({"messages": [{"role": "assistant", "tool_calls": [1]}]}, "tool call that is no object"),
        ({"messages": TALK, "tools": "{"}, "broken JSON inside"),
        ({"messages": TALK, "chat_template_kwargs": "x"}, "is no object"),
        ({"instruction": 1, "output": "x"}, "are not all texts"),
        ({"instruction": "x", "output": "x", "history": ["x"]}, "no list of pairs"),
        ({"conversations": [{"from": "function_call", "value": "3"}]}, "calls no function"),
        ({"prompt": "x", "completion": ""}, "empty completion"),
    ],
)
def test_rows_that_are_no_conversation(row: Any, kind: str) -> None:
    with pytest.raises(UnusableError, match=kind):
        conversation_of(row)


def test_another_key(words: Path, tmp_path: Path) -> None:
    file = lines(tmp_path / "x.jsonl", {"talk": TALK, "messages": [SYSTEM]}, {"messages": TALK})
    out = fine(file, "-o", tmp_path / "p", "--tokenizer", words, "--key", "talk", "--json")
    assert json.loads(out)["skipped"] == {'no key "talk"': 1}
    assert documents(tmp_path / "p", words) == [WRITTEN]


def test_roles_and_the_last(words: Path, tmp_path: Path) -> None:
    file = lines(tmp_path / "x.jsonl", [SYSTEM, *TALK, *TALK])

    def learned(*more: object) -> str:
        fine(file, "-o", tmp_path / "p", "--tokenizer", words, "--force", *more)
        [(_, found)] = documents(tmp_path / "p", words)
        return found

    answer, question = "It is that.<|im_end|>", "What is it?<|im_end|>"
    assert learned() == answer * 2
    assert learned("--only-last") == answer
    assert learned("--learn", "user") == question * 2
    assert learned("--learn", "user", "--learn", "assistant") == (question + answer) * 2
    assert learned("--learn", "all") == documents(tmp_path / "p", words)[0][0]


def test_another_template(words: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text(PLAIN["zephyr"])
    file = lines(tmp_path / "x.jsonl", TALK)
    fine(file, "-o", tmp_path / "p", "--tokenizer", words, "--chat-template", tmp_path / "t.jinja")
    text = "<|user|>\nWhat is it?</s>\n<|assistant|>\nIt is that.</s>\n"
    assert documents(tmp_path / "p", words) == [(text, "It is that.</s>")]


def test_plain_text(words: Path, tmp_path: Path) -> None:
    """A prompt and a completion that are texts have no template around them, and end with the eos."""
    file = lines(tmp_path / "x.jsonl", {"prompt": "What is", "completion": " the answer"})
    fine(file, "-o", tmp_path / "p", "--tokenizer", words)
    assert documents(tmp_path / "p", words) == [("What is the answer</s>", " the answer</s>")]
    fine(file, "-o", tmp_path / "q", "--tokenizer", words, "--eod", "<|end|>")
    assert documents(tmp_path / "q", words) == [("What is the answer<|end|>", " the answer<|end|>")]


def test_mask_before(words: Path, tmp_path: Path) -> None:
    """As gpt-neox's --mask-before-token, for a text; what does not have it is skipped, not learned whole."""
    rows = [{"text": "What is\n\nthe answer\n\nIt"}, {"text": "What"}, {"text": "It\n\n"}, {"text": 3}, TALK]
    file = lines(tmp_path / "x.jsonl", *rows)
    out = fine(file, "-o", tmp_path / "p", "--tokenizer", words, "--mask-before", "\n\n", "--json")
    assert documents(tmp_path / "p", words) == [("What is\n\nthe answer\n\nIt</s>", "the answer\n\nIt</s>")]
    kinds = {'no "\n\n" in it': 1, "nothing to learn": 1, '"text" is not a string': 1, 'no key "text"': 1}
    assert json.loads(out)["skipped"] == kinds


def test_what_is_written(words: Path, tmp_path: Path) -> None:
    """The format of gpt-neox: labels are int32, -100 where nothing is learned, aligned with the ids."""
    prefix = tmp_path / "p"
    told = fine(lines(tmp_path / "x.jsonl", TALK, TALK), "-o", prefix, "--tokenizer", words)
    names = {"p.bin", "p.idx", "p.json", "p-labels.bin", "p-labels.idx", "x.jsonl"}
    assert {each.name for each in tmp_path.iterdir()} == names
    assert (tmp_path / "p-labels.idx").read_bytes()[17] == 4
    labels = np.fromfile(tmp_path / "p-labels.bin", "<i4")
    ids = np.fromfile(tmp_path / "p.bin", "<u2")
    assert set(labels[labels != ids]) == {-100}
    sidecar = read_sidecar(prefix)
    assert sidecar is not None
    assert (sidecar.columns, sidecar.documents, sidecar.tokens) == (("labels",), 2, len(ids))
    assert sidecar.learned == int((labels != -100).sum())
    assert sidecar.eod == Tokenizer(words).id("</s>")
    assert sidecar.template.startswith("sha256:")
    assert f"{len(ids):,} tokens, of which {sidecar.learned} ({sidecar.learned / len(ids):.1%})" in told
    shown = run("info", prefix)
    assert shown.exception is None
    assert "labels" in shown.stdout


def test_too_long(words: Path, tmp_path: Path) -> None:
    long = [TALK[0], {"role": "assistant", "content": "It is that. " * 9}]
    late = [{"role": "user", "content": "What " * 90}, TALK[1]]
    file = lines(tmp_path / "x.jsonl", TALK, long, late)
    base = (file, "--tokenizer", words, "--max-tokens", 30, "--json")
    assert json.loads(fine(*base, "-o", tmp_path / "p"))["skipped"] == {"too long": 2}
    assert documents(tmp_path / "p", words) == [WRITTEN]
    told = json.loads(fine(*base, "-o", tmp_path / "q", "--overlong", "cut"))
    assert told["skipped"] == {"nothing to learn": 1}
    assert told["outputs"][0]["cut"] == 1
    assert IndexedFile(tmp_path / "q").sizes.tolist()[1:] == [30]


BROKEN = (
    json.dumps(TALK).encode(),
    b"",
    b'{"messages": [}',
    b"\xff",
    json.dumps({"messages": [*TALK, {"role": "user", "content": "\ud800"}]}).encode(),
    b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    json.dumps(TALK[:1]).encode(),
    json.dumps({"messages": [{**TALK[0], "content": None}]}).encode(),
)


def test_rows_that_cannot_be_used(words: Path, tmp_path: Path) -> None:
    file, rejects = tmp_path / "x.jsonl", tmp_path / "rejects.txt"
    file.write_bytes(b"\n".join(BROKEN))
    result = run("chat", file, "-o", tmp_path / "p", "--tokenizer", words, "--rejects", rejects)
    assert result.exception is None
    assert "warning: skipped 1 row (broken JSON), the first at" in result.stderr
    listed = rejects.read_text().splitlines()
    assert [line.split(": ")[0] for line in listed] == [f"{file}:{number}" for number in (3, 4, 5, 6, 7, 8)]
    kinds = ["broken JSON", "not UTF-8", "not Unicode", "too deep", "nothing to learn", "broken message"]
    assert [line.split(": ")[1].split(" (")[0] for line in listed] == kinds
    said = refused(file, "-o", tmp_path / "q", "--tokenizer", words, "--strict")
    assert said.startswith(f"{file}:3: broken JSON")
    assert not list(tmp_path.glob("*q*"))


def test_arrays_and_tables(words: Path, tmp_path: Path) -> None:
    """Also compressed: what `tokenize` reads is read here."""
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path / "x.json"
    file.write_text("\n[\n" + json.dumps(TALK) + ",\n\n" + json.dumps([SYSTEM]) + "]")
    result = run("chat", file, "-o", tmp_path / "p", "--tokenizer", words, "--rejects", tmp_path / "r")
    assert result.exception is None
    assert documents(tmp_path / "p", words) == [WRITTEN]
    assert (tmp_path / "r").read_text().startswith(f"{file}, row 2: nothing to learn")
    (tmp_path / "y.jsonl.gz").write_bytes(gzip.compress(json.dumps(TALK).encode()))
    pq.write_table(pa.table({"messages": [TALK], "other": [3]}), tmp_path / "z.parquet")
    fine(tmp_path / "y.jsonl.gz", tmp_path / "z.parquet", "-o", tmp_path / "q", "--tokenizer", words)
    assert documents(tmp_path / "q", words) == [WRITTEN, WRITTEN]
    file.write_text("[{]")
    assert f"{file} is no JSON" in refused(file, "-o", tmp_path / "s", "--tokenizer", words)
    (tmp_path / "x.txt").write_text(json.dumps(TALK))
    assert "x.txt: not JSON" in refused(tmp_path / "x.txt", "-o", tmp_path / "s", "--tokenizer", words)


def test_refusals(words: Path, tmp_path: Path) -> None:
    file, prefix = lines(tmp_path / "x.jsonl", TALK), tmp_path / "p"
    bare = write_tokenizer(tmp_path / "bare")
    assert "has no chat template; give one with --chat-template" in refused(file, "-o", prefix, "--tokenizer", bare)
    (tmp_path / "t").write_text("{% for %}")
    assert "is not a template" in refused(file, "-o", prefix, "--tokenizer", words, "--chat-template", tmp_path / "t")
    assert "nothing to read" in refused("-o", prefix, "--tokenizer", words)
    assert "no such file" in refused(tmp_path / "none", "-o", prefix, "--tokenizer", words)
    assert "is no prefix" in refused(file, "-o", tmp_path, "--tokenizer", words)
    assert not list(tmp_path.glob("*p*.partial"))
    fine(file, "-o", prefix, "--tokenizer", words)
    before = (tmp_path / "p-labels.bin").stat().st_mtime_ns
    assert "p-labels.bin exists; give --force" in refused(file, "-o", prefix, "--tokenizer", words)
    assert (tmp_path / "p-labels.bin").stat().st_mtime_ns == before
    assert run("chat", file, "-o", prefix, "--tokenizer", words, "--mask-before", "").exit_code == 2


def test_workers_change_nothing(words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes write the same bytes as one, rejects at their places."""
    from neoxkit.data.text import reading

    monkeypatch.setattr(reading, "BLOCK", 2000)
    rows = [[{**TALK[0], "content": f"{number}?"}, TALK[1]] if number % 7 else [SYSTEM] for number in range(200)]
    file = lines(tmp_path / "x.jsonl", *rows)
    for name, workers in (("one", 1), ("two", 2)):
        prefix = tmp_path / name
        fine(file, "-o", prefix, "--tokenizer", words, "--workers", workers, "--rejects", f"{prefix}.rejects")
    for ending in (".bin", ".idx", ".json", "-labels.bin", "-labels.idx", ".rejects"):
        assert (tmp_path / f"one{ending}").read_bytes() == (tmp_path / f"two{ending}").read_bytes()


def test_needs_no_torch(words: Path, tmp_path: Path) -> None:
    file = lines(tmp_path / "x.jsonl", TALK)
    code = (
        "import sys; from neoxkit.cli import main\n"
        f"main(['data', 'chat', {str(file)!r}, '-o', {str(tmp_path / 'p')!r}, '--tokenizer', {str(words)!r}], "
        "standalone_mode=False)\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert documents(tmp_path / "p", words) == [WRITTEN]


def test_training_counts_what_is_learned(words: Path, tmp_path: Path) -> None:
    """The rows that training reads count the tokens that are learned, and no others."""
    prefix = tmp_path / "p"
    fine(lines(tmp_path / "x.jsonl", TALK, [SYSTEM, *TALK]), "-o", prefix, "--tokenizer", words)
    file, tokenizer = IndexedFile(prefix), Tokenizer(words)
    order = Arrangement(kind="single", context=64, seed=1, first=0, last=2).order(file, Cache(None))
    rows = Rows(file, order, Reading(context=64), IndexedFile(f"{prefix}-labels"))
    for number in range(2):
        row = rows.row(number)
        assert row.counts is not None
        assert tokenizer.decode(row.ids[1:][row.counts].tolist(), special=True) == WRITTEN[1]
