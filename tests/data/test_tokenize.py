"""`neoxkit data tokenize`: what it writes, how it splits, what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from click.testing import CliRunner, Result
from tokenizers import models, pre_tokenizers

from neoxkit.cli.data import command
from neoxkit.data.text.documents import Document, held_out, thinned
from neoxkit.data.text.sources import Selection, Source, find
from neoxkit.data.tokenizer import Tokenizer
from neoxkit.data.tokenizer.train import train_bpe
from neoxkit.data.tokens.indexed import IndexedFile
from neoxkit.data.tokens.sidecar import Sidecar, read_sidecar
from neoxkit.errors import DataError

SOURCE = "def {name}(x):\n    return x * {k}  # \u00e9\u6587 {name}\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bpe") / "tokenizer"
    train_bpe([SOURCE.format(name=f"f{k}", k=k) for k in range(100)], 400, folder)
    return folder


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Forty modules, each a file and a package of two, among files that are not wanted."""
    root = tmp_path / "library"
    for k in range(40):
        package = root / f"m{k}"
        package.mkdir(parents=True)
        for path in (root / f"m{k}.py", package / "__init__.py", package / "inner.py"):
            path.write_text(SOURCE.format(name=path.stem, k=k) * 5)
    (root / "m0.so").write_bytes(b"\x7fELF\x00")
    (root / "m1" / "test").mkdir()
    (root / "m1" / "test" / "x.py").write_text("unwanted = 1\n")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x.py").write_text("unwanted = 1\n")
    return root


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, ["tokenize", *map(str, arguments)])


def fine(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exception is None, result.exception
    return result.stdout


def refused(*arguments: object) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, DataError), result.output
    return str(result.exception)


def texts(prefix: Path, tokenizer: Path) -> list[str]:
    """The documents that a pair holds, decoded by the tokenizers library; each ends with the EOD."""
    judge = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    file = IndexedFile(prefix)
    assert all(file[k][-1] == 0 for k in range(len(file)))
    return [judge.decode(file[k][:-1].tolist(), skip_special_tokens=False) for k in range(len(file))]


def python(library: Path) -> list[Path]:
    found = (p for p in library.rglob("*.py") if "test" not in p.parts and ".hidden" not in p.parts)
    return sorted(found, key=lambda path: path.as_posix())


PYTHON = ("--include", "*.py", "--exclude", "test")


def test_every_byte_comes_back(library: Path, tokenizer: Path, tmp_path: Path) -> None:
    shown = fine(library, "-o", tmp_path / "p", "--tokenizer", tokenizer, *PYTHON)
    wanted = [path.read_text() for path in python(library)]
    assert texts(tmp_path / "p", tokenizer) == wanted
    sidecar = read_sidecar(tmp_path / "p")
    assert sidecar is not None
    file = IndexedFile(tmp_path / "p")
    assert (sidecar.documents, sidecar.tokens) == (120, file.tokens)
    assert sidecar.bytes == sum(path.stat().st_size for path in python(library))
    opened = Tokenizer(tokenizer)
    assert (sidecar.tokenizer, sidecar.vocab, sidecar.eod) == (opened.fingerprint, opened.vocab, 0)
    assert (tmp_path / "p.files.txt").read_text().split() == [str(path) for path in python(library)]
    assert f"120 documents, 0.0 MB of text, {file.tokens:,} tokens" in shown
    assert {path.name for path in tmp_path.iterdir()} == {"library", "p.bin", "p.idx", "p.json", "p.files.txt"}


def test_the_split_is_by_module_and_stays(library: Path, tmp_path: Path) -> None:
    split = ("--train-tokenizer", 400, "--holdout", 0.3, *PYTHON)
    fine(library, "-o", tmp_path / "p", *split)
    held = (tmp_path / "p-heldout.files.txt").read_text().split()
    kept = (tmp_path / "p-train.files.txt").read_text().split()
    assert sorted(held + kept) == sorted(str(path) for path in python(library))
    modules = {Path(path).relative_to(library).parts[0].removesuffix(".py") for path in held}
    assert 4 <= len(modules) <= 20
    assert len(held) == 3 * len(modules), "a module's file and its package go together"
    trained = tmp_path / "p-tokenizer"
    assert texts(tmp_path / "p-heldout", trained) == [Path(path).read_text() for path in held]
    assert texts(tmp_path / "p-train", trained) == [Path(path).read_text() for path in kept]

    (library / "added.py").write_text("added = 1\n")
    fine(library, "-o", tmp_path / "q", *split)
    again = {*(tmp_path / "q-heldout.files.txt").read_text().split()} - {str(library / "added.py")}
    assert again == set(held), "a new file moves none of the others"


def test_the_tokenizer_learns_from_the_training_side_alone(library: Path, tmp_path: Path) -> None:
    split = ("--train-tokenizer", 400, "--holdout", 0.3, *PYTHON)
    fine(library, "-o", tmp_path / "p", *split)
    for path in (tmp_path / "p-heldout.files.txt").read_text().split():
        Path(path).write_text("zyxw" * 500)
    fine(library, "-o", tmp_path / "q", *split)
    one, two = (tmp_path / f"{name}-tokenizer" / "tokenizer.json" for name in "pq")
    assert one.read_bytes() == two.read_bytes()
    assert "zyxw" not in two.read_text()


def test_repeating_gives_the_same_bytes(library: Path, tmp_path: Path) -> None:
    def written() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file() and library not in p.parents}

    once = (library, "-o", tmp_path / "p", "--train-tokenizer", 300, "--holdout", 0.3, *PYTHON)
    fine(*once)
    first = written()
    assert "p-tokenizer exists; give --force" in refused(*once)
    assert written() == first
    fine(*once, "--force")
    assert written() == first


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


def test_lines_of_json_are_documents(tokenizer: Path, tmp_path: Path) -> None:
    rows = [{"body": f"line {k} \u00e9"} for k in range(50)]
    fine(lines(tmp_path / "x.jsonl", [*rows, b""]), "-o", tmp_path / "p", "--tokenizer", tokenizer, "--key", "body")
    assert texts(tmp_path / "p", tokenizer) == [row["body"] for row in rows]
    assert {path.name for path in tmp_path.glob("p.*")} == {"p.bin", "p.idx", "p.json"}, "no list of files"


def test_a_list_of_files_that_are_replaced_goes_with_them(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    fine(tmp_path / "a.txt", "-o", tmp_path / "p", "--tokenizer", tokenizer)
    assert (tmp_path / "p.files.txt").read_text() == f"{tmp_path / 'a.txt'}\n"
    fine(lines(tmp_path / "x.jsonl", [{"text": "b"}]), "-o", tmp_path / "p", "--tokenizer", tokenizer, "--force")
    assert not (tmp_path / "p.files.txt").exists()


def test_equal_lines_fall_on_one_side(tokenizer: Path, tmp_path: Path) -> None:
    rows = [{"text": f"line {k % 20}"} for k in range(60)]
    fine(lines(tmp_path / "x.jsonl", rows), "-o", tmp_path / "p", "--tokenizer", tokenizer, "--holdout", 0.5)
    held, kept = (texts(tmp_path / f"p-{part}", tokenizer) for part in ("heldout", "train"))
    assert len(held) + len(kept) == 60
    assert not set(held) & set(kept)


BAD_LINES: list[Any] = [
    {"text": "good"},
    b"{broken",
    {"other": "x"},
    {"text": 5},
    {"text": ""},
    b'{"text": "\xff"}',
    b'{"text": "\\ud800"}',
    [1],
    {"text": "good too"},
]


def test_what_cannot_be_used_is_counted_and_named(tokenizer: Path, tmp_path: Path) -> None:
    source = lines(tmp_path / "x.jsonl", BAD_LINES)
    (tmp_path / "bad.txt").write_bytes(b"one\ntwo \xff\n")
    (tmp_path / "empty.txt").write_bytes(b"")
    inputs = (source, tmp_path / "bad.txt", tmp_path / "empty.txt")
    result = run(*inputs, "-o", tmp_path / "p", "--tokenizer", tokenizer, "--rejects", tmp_path / "r.txt")
    assert result.exception is None, result.exception
    sidecar = read_sidecar(tmp_path / "p")
    assert sidecar is not None
    assert sidecar.skipped == {
        "broken JSON": 1,
        'no key "text"': 2,
        '"text" is not a string': 1,
        "empty": 2,
        "not UTF-8": 2,
        "not Unicode": 1,
    }
    assert sidecar.documents == 2
    listed = (tmp_path / "r.txt").read_text().splitlines()
    assert [line.split(": ")[0] for line in listed] == [
        *(f"{source}:{number}" for number in range(2, 9)),
        f"{tmp_path / 'bad.txt'}:2",
        f"{tmp_path / 'empty.txt'}",
    ]
    assert f"skipped 2 documents (not UTF-8), the first at {source}:6" in result.stderr


@pytest.mark.parametrize("number", range(1, 8))
def test_strict_stops_at_the_first(tokenizer: Path, tmp_path: Path, number: int) -> None:
    source = lines(tmp_path / "x.jsonl", [BAD_LINES[0], BAD_LINES[number]])
    before = set(tmp_path.iterdir())
    assert f"{source}:2: " in refused(source, "-o", tmp_path / "p", "--tokenizer", tokenizer, "--strict")
    assert set(tmp_path.iterdir()) == before


def test_a_document_longer_than_a_batch(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neoxkit.data.text.reading.BLOCK", 50)
    rows = [{"text": "word " * length} for length in (1, 2, 100, 3, 1, 60)]
    fine(lines(tmp_path / "x.jsonl", rows), "-o", tmp_path / "p", "--tokenizer", tokenizer)
    assert texts(tmp_path / "p", tokenizer) == [row["text"] for row in rows]


def test_another_end_of_document(tokenizer: Path, tmp_path: Path) -> None:
    source = lines(tmp_path / "x.jsonl", [{"text": "a"}])
    fine(source, "-o", tmp_path / "p", "--tokenizer", tokenizer, "--eod", "<|padding|>")
    assert IndexedFile(tmp_path / "p")[0][-1] == 1


def test_golden_bytes(tmp_path: Path) -> None:
    """Text to the bytes that gpt-neox writes of these tokens."""
    made = tokenizers.Tokenizer(models.WordLevel({"a": 5, "b": 6, "c": 7, "d": 1, "e": 9, "f": 8}, unk_token=""))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "t.json"))
    source = lines(tmp_path / "x.jsonl", [{"text": "a b c"}, {"text": "d"}, {"text": "e f c b"}])
    fine(source, "-o", tmp_path / "p", "--tokenizer", tmp_path / "t.json", "--no-append-eod")
    assert (tmp_path / "p.bin").read_bytes().hex() == "05000600070001000900080007000600"
    assert (tmp_path / "p.idx").read_bytes().hex() == (
        "4d4d4944494458000001000000000000000803000000000000000400000000000000"
        "030000000100000004000000000000000000000006000000000000000800000000000000"
        "0000000000000000010000000000000002000000000000000300000000000000"
    )  # fmt: skip
    sidecar = read_sidecar(tmp_path / "p")
    assert sidecar is not None
    assert (sidecar.eod, sidecar.tokens, sidecar.options["append_eod"]) == (-1, 8, False)


def test_each_key_has_its_own_text_and_the_same_rows(tokenizer: Path, tmp_path: Path) -> None:
    """gpt-neox gives every key the text of the first."""
    rows = [{"q": f"question {k}", "a": f"{k} is an answer", "n": k} for k in range(30)]
    bad: list[Any] = [{"q": "no answer"}, {"q": "", "a": "no question"}, {"q": "wrong", "a": 5}]
    source = lines(tmp_path / "x.jsonl", [*rows[:10], *bad, *rows[10:]])
    keys = ("--key", "q", "--key", "a")
    shown = fine(source, "-o", tmp_path / "p", "--tokenizer", tokenizer, *keys)
    assert texts(tmp_path / "p-q", tokenizer) == [row["q"] for row in rows]
    assert texts(tmp_path / "p-a", tokenizer) == [row["a"] for row in rows]
    assert shown.count(": 30 documents") == 2
    assert read_sidecar(tmp_path / "p-a").options["key"] == "a"  # type: ignore[union-attr]
    assert not (tmp_path / "p.bin").exists()
    fine(source, "-o", tmp_path / "s", "--tokenizer", tokenizer, *keys, "--holdout", 0.3)
    for part in ("train", "heldout"):
        numbers = [
            [next(int(word) for word in text.split() if word.isdigit()) for text in texts(path, tokenizer)]
            for path in (tmp_path / f"s-q-{part}", tmp_path / f"s-a-{part}")
        ]
        assert numbers[0] == numbers[1] != []


def test_the_beginning_of_documents(tokenizer: Path, tmp_path: Path) -> None:
    source = lines(tmp_path / "x.jsonl", [{"text": "a"}, {"text": "b"}])
    fine(source, "-o", tmp_path / "p", "--tokenizer", tokenizer, "--prepend-bos")
    found = IndexedFile(tmp_path / "p")
    bos = Tokenizer(tokenizer).bos
    assert [(found[k][0], found[k][-1], len(found[k])) for k in range(2)] == [(bos, 0, 3)] * 2
    (tmp_path / "bare.json").write_bytes((tokenizer / "tokenizer.json").read_bytes())
    said = refused(source, "-o", tmp_path / "q", "--tokenizer", tmp_path / "bare.json", "--prepend-bos")
    assert "no token that begins a document; leave --prepend-bos out" in said


def test_texts_are_mended_by_ftfy(tokenizer: Path, tmp_path: Path) -> None:
    rows = [{"text": "caf\u00c3\u00a9 \ufb01x"}, {"text": "\u0000\ufeff"}]
    source = lines(tmp_path / "x.jsonl", rows)
    fine(source, "-o", tmp_path / "p", "--tokenizer", tokenizer)
    assert texts(tmp_path / "p", tokenizer) == [row["text"] for row in rows]
    fine(source, "-o", tmp_path / "q", "--tokenizer", tokenizer, "--ftfy")
    assert texts(tmp_path / "q", tokenizer) == ["caf\u00e9 fix"]
    plain, mended = read_sidecar(tmp_path / "p"), read_sidecar(tmp_path / "q")
    assert plain is not None
    assert mended is not None
    assert mended.bytes == len("caf\u00e9 fix".encode())
    assert mended.skipped == {"empty": 1}
    assert mended.sources != plain.sources


def test_a_log_file_has_a_line_now_and_then(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neoxkit.log.INTERVAL", 0.0)
    monkeypatch.setattr("neoxkit.data.text.reading.BLOCK", 100)
    source = lines(tmp_path / "x.jsonl", [{"text": f"text {k} " * 5} for k in range(20)])
    shown = run(source, "-o", tmp_path / "p", "--tokenizer", tokenizer).stderr
    assert re.search(r"^tokenize: [0-9.]+ %, [0-9]+ documents, [0-9,]+ tokens, [0-9.,]+ k?M?B/s$", shown, re.MULTILINE)
    assert "tokenize: 100.0 %, 20 documents" in shown


def test_what_was_made_as_json(tokenizer: Path, tmp_path: Path) -> None:
    source = lines(tmp_path / "x.jsonl", [{"text": "a"}, {"text": ""}])
    shown = json.loads(fine(source, "-o", tmp_path / "p", "--tokenizer", tokenizer, "--json"))
    part = {"prefix": str(tmp_path / "p"), "part": "all", "key": "text", "documents": 1, "tokens": 2, "bytes": 1}
    assert shown["parts"] == [part]
    assert shown["skipped"] == {"empty": 1}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("absent", "-o", "p", "--tokenizer", "TOK"), "absent: no such file or folder"),
        (
            ("text", "-o", "p", "--tokenizer", "TOK", "--include", "*.rst"),
            "no text found in text: no file is named *.rst",
        ),
        (("text", "-o", "p", "--tokenizer", "TOK", "--exclude", "a.*"), "no text found"),
        (("text", "text/a.txt", "-o", "p", "--tokenizer", "TOK"), "in two of the inputs"),
        (("text", "-o", "p"), "one tokenizer is needed"),
        (("text", "-o", "p", "--tokenizer", "TOK", "--train-tokenizer", "300"), "one tokenizer is needed"),
        (("text", "-o", "p", "--tokenizer", "text"), "no tokenizer.json"),
        (("text", "-o", "p", "--tokenizer", "text/a.txt"), "is not a tokenizer"),
        (("text", "-o", "p", "--train-tokenizer", "257"), "too small; give at least 258"),
        (("text", "-o", "gone/p", "--tokenizer", "TOK"), "gone: no such folder"),
        (("text", "-o", "text/..", "--tokenizer", "TOK"), "is no prefix"),
        (("text", "-o", "text", "--tokenizer", "TOK"), "is no prefix"),
        (("text", "-o", "p.bin", "--tokenizer", "TOK"), "is no prefix"),
        (("text", "-o", "p", "--tokenizer", "TOK", "--holdout", "1"), "not a share"),
        (("text", "-o", "p", "--tokenizer", "TOK", "--holdout", "nan"), "not a share"),
        (("text", "-o", "p", "--tokenizer", "TOK", "--holdout", "1e-9"), "no group is held out"),
        (("text", "-o", "p", "--train-tokenizer", "300", "--holdout", "0.999999"), "no text to train a tokenizer on"),
        (("text", "-o", "p", "--tokenizer", "TOK", "--holdout", "0.999999"), "every group is held out"),
        (("void.txt", "-o", "p", "--tokenizer", "TOK"), "no document can be used (skipped: 1); empty: void.txt"),
        (("rows.jsonl", "-o", "p", "--tokenizer", "TOK", "--key", "x"), "; name with --key where a row has its text"),
        (("text", "-o", "p", "--tokenizer", "TOK", "--eod", "<x>"), 'no token "<x>"'),
        (("text", "-o", "old", "--tokenizer", "TOK"), "old.bin exists; give --force"),
        (("-o", "p", "--tokenizer", "TOK"), "nothing to tokenize; name files, folders or URLs, or a --dataset"),
        (("text", "-o", "p", "--tokenizer", "TOK", "--key", "a", "--key", "a"), "a --key is given twice"),
        (("text", "-o", "p", "--tokenizer", "TOK", "--key", "a", "--key", "b/c"), "cannot be part of a file name"),
        (("text", "-o", "p", "--tokenizer", "TOK", "--eod", "x", "--no-append-eod"), "give one of the two"),
        (("text", "-o", "p", "--tokenizer", "TOK", "--rejects", "gone/r"), "gone: no such folder"),
    ],
)
def test_bad_requests_are_refused(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").mkdir()
    Path("text/a.txt").write_text("some text")
    Path("void.txt").write_text("")
    Path("rows.jsonl").write_text('{"text": "a"}')
    Path("old.bin").write_text("")
    before = sorted(tmp_path.rglob("*"))
    cause = refused(*(str(tokenizer) if part == "TOK" else part for part in arguments))
    assert says in cause
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"


@pytest.mark.parametrize(("given", "size"), [("0", None), ("x", None), ("1.5G", None), ("M", None), ("3K", 3072)])
def test_sizes(tokenizer: Path, tmp_path: Path, given: str, size: int | None) -> None:
    source = lines(tmp_path / "x.jsonl", [{"text": "a"}])
    result = run(source, "-o", tmp_path / "p", "--tokenizer", tokenizer, "--train-bytes", given)
    assert (result.exit_code == 0) == (size is not None)


def test_a_folder_is_read_in_one_order_with_hidden_names_left_out(library: Path) -> None:
    found = find([library], Selection(("*.py",), ("m1",)))
    assert [file.name for file in found] == sorted(file.name for file in found)
    names = {file.name for file in found}
    assert "m1.py" in names, "a pattern without a suffix is of the folder"
    assert not any(name.startswith(("m1/", ".hidden")) for name in names)
    assert {file.group for file in found if file.name.startswith("m2/") or file.name == "m2.py"} == {"m2"}


def test_thinned_text_is_the_share_asked_for() -> None:
    made = [Document(("x" * size,), (b"x" * size,)) for size in (7, 1, 30, 2, 5) * 40]
    total = sum(document.bytes for document in made)
    for share in (0.01, 0.3, 0.9):
        assert abs(sum(d.bytes for d in thinned(iter(made), share)) - share * total) <= 30
    assert list(thinned(iter(made), 1.0)) == made
    assert list(thinned(iter(made[:1]), 1e-6)) == made[:1]


def test_the_tokenizer_can_be_trained_on_a_part(library: Path, tmp_path: Path) -> None:
    for name, size in (("p", "64M"), ("q", "2K")):
        fine(library, "-o", tmp_path / name, "--train-tokenizer", 400, "--train-bytes", size, *PYTHON)
    assert read_sidecar(tmp_path / "p").tokens < read_sidecar(tmp_path / "q").tokens  # type: ignore[union-attr]


def test_the_share_held_out_is_near_what_was_asked() -> None:
    count = sum(held_out(f"module{k}", 0.1) for k in range(10_000))
    assert 850 < count < 1150
    assert not any(held_out(f"module{k}", 0.0) for k in range(1000))


def test_lone_text_file_is_its_own_group(tmp_path: Path) -> None:
    path = tmp_path / "book.one.txt"
    path.write_text("x")
    assert find([path], Selection()) == [Source(path, "book.one.txt", "book", 1, str(path.stat().st_mtime_ns))]


def test_info(tokenizer: Path, tmp_path: Path) -> None:
    fine(lines(tmp_path / "x.jsonl", [{"text": "a"}, {"text": "b"}]), "-o", tmp_path / "p", "--tokenizer", tokenizer)
    result = CliRunner().invoke(command, ["info", str(tmp_path / "p"), "--json"])
    shown = json.loads(result.stdout)
    assert (shown["documents"], shown["tokens"], shown["bytes"], shown["dtype"]) == (2, 4, 2, "uint16")
    plain = CliRunner().invoke(command, ["info", str(tmp_path / "p")])
    assert "tokens        4\n" in plain.stdout
    (tmp_path / "p.json").unlink()
    bare = json.loads(CliRunner().invoke(command, ["info", str(tmp_path / "p"), "--json"]).stdout)
    assert "tokenizer" not in bare


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not JSON"),
        ("{}", "does not describe tokens"),
        ('{"format": {"name": "neoxkit-tokens", "version": 2}}', "does not describe tokens"),
        ('{"format": {"name": "neoxkit-tokens", "version": 1}}', "lacks vocab"),
    ],
)
def test_a_damaged_sidecar_is_refused(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(DataError, match=says):
        read_sidecar(tmp_path / "p")


def test_a_sidecar_of_other_tokens_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    fine(lines(tmp_path / "x.jsonl", [{"text": "a"}]), "-o", tmp_path / "p", "--tokenizer", tokenizer)
    content = (tmp_path / "p.json").read_text()
    (tmp_path / "p.json").write_text(content.replace('"documents": 1', '"documents": 2'))
    result = CliRunner().invoke(command, ["info", str(tmp_path / "p")])
    assert "do not belong together" in str(result.exception)


def test_a_model_with_too_small_a_vocabulary_is_refused() -> None:
    sidecar = Sidecar(tokenizer="sha256:1", vocab=10, eod=0, documents=1, tokens=1, bytes=1)
    sidecar.check(10, "p")
    with pytest.raises(DataError, match="p has a vocabulary of 10, and the model one of 9"):
        sidecar.check(9, "p")


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys; from neoxkit.cli.data import command\n"
        "try: command(['tokenize', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'tokenizers', 'rich'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert shown.endswith("[]\n"), shown
