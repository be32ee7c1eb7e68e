"""What is damaged or made to do harm: told in one line, skipped by line number, never held whole."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tokenizing import bpe, fine, jsonl, refused, rows

from neoxkit.data.text.pieces import Fault
from neoxkit.data.text.reading import Reader
from neoxkit.data.text.sources import Selection, find
from neoxkit.data.tokenizer import Tokenizer
from neoxkit.data.tokens.indexed import IndexedFile

GOOD = b'{"text": "good"}\n'


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bpe(tmp_path_factory.mktemp("bpe") / "tokenizer")


def decoded(prefix: Path, tokenizer: Path) -> list[str]:
    file, opened = IndexedFile(prefix), Tokenizer(tokenizer)
    return [opened.decode(file[k][:-1].tolist(), special=True) for k in range(len(file))]


def used(content: bytes, name: str, tokenizer: Path, folder: Path, *more: object) -> tuple[list[str], list[str]]:
    """The texts that a file gave, and the rejects without the file's name."""
    path = folder / name
    path.write_bytes(content)
    fine(path, "-o", folder / "p", "--tokenizer", tokenizer, "--rejects", folder / "r.txt", *more)
    found = (folder / "r.txt").read_text().splitlines()
    return decoded(folder / "p", tokenizer), [line.removeprefix(str(path)) for line in found]


PACKED = {
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


@pytest.mark.parametrize("cut", [0.5, 0.999])
@pytest.mark.parametrize("ending", PACKED)
def test_truncated_archives(ending: str, cut: float, tokenizer: Path, tmp_path: Path) -> None:
    content = PACKED[ending](jsonl(tmp_path / "x", rows(300)).read_bytes())
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(content[: int(len(content) * cut)])
    before = set(tmp_path.iterdir())
    said = refused(path, "-o", tmp_path / "p", "--tokenizer", tokenizer)
    assert said.startswith(f"{path} is truncated"), said
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("ending", PACKED)
def test_archives_that_are_none_or_damaged(ending: str, tokenizer: Path, tmp_path: Path) -> None:
    content = bytearray(PACKED[ending](jsonl(tmp_path / "x", rows(300)).read_bytes()))
    path = tmp_path / f"a.jsonl{ending}"
    arguments = (path, "-o", tmp_path / "p", "--tokenizer", tokenizer)
    path.write_bytes(b'{"text": "not packed at all"}\n' * 10)
    assert str(path) in (said := refused(*arguments))
    assert "is damaged, or no" in said
    for at in range(len(content) // 2, len(content) // 2 + 40):
        content[at] ^= 0x5A
    path.write_bytes(content)
    if ending != ".zst":  # whose frames have no checksum, unless one asks for it
        assert str(path) in refused(*arguments)


@pytest.mark.parametrize("keep", [4, 100, -9])
def test_truncated_parquet(keep: int, tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [row["text"] for row in rows(50)]}), path)
    path.write_bytes(path.read_bytes()[:keep])
    said = refused(path, "-o", tmp_path / "p", "--tokenizer", tokenizer)
    assert said.startswith(f"{path} is damaged, or no Parquet file")
    assert {each.name for each in tmp_path.iterdir()} == {"a.parquet"}


def test_parquet_with_damaged_pages(tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [row["text"] for row in rows(500)]}), path)
    content = bytearray(path.read_bytes())
    content[20:4000] = bytes(3980)
    path.write_bytes(content)
    assert f"{path} is damaged" in refused(path, "-o", tmp_path / "p", "--tokenizer", tokenizer)


def test_a_truncated_file_after_whole_ones_leaves_the_work_on_them_alone(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neoxkit.data.text.reading.BLOCK", 500)
    monkeypatch.setattr("neoxkit.data.prepare.journal.EVERY", 0.0)
    whole = jsonl(tmp_path / "a.jsonl", rows(100))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(whole.read_bytes())[:-20])
    before = set(tmp_path.iterdir())
    said = refused(whole, tmp_path / "b.jsonl.gz", "-o", tmp_path / "p", "--tokenizer", tokenizer)
    assert said.endswith("the same command then goes on")
    assert set(tmp_path.iterdir()) == {*before, tmp_path / ".p.partial"}


def test_odd_but_right(tokenizer: Path, tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n") + b'{"text": "a\\u0000b\\r\\nc"}\r\n\r\n  \n'
    content += b'{"text": "first", "text": "last"}\n{"text": "\\ud83d\\ude00", "n": NaN}'
    texts, rejects = used(content, "a.jsonl", tokenizer, tmp_path)
    assert texts == ["good", "a\0b\r\nc", "last", "\U0001f600"]
    assert rejects == []


def test_text_with_odd_bytes(tokenizer: Path, tmp_path: Path) -> None:
    texts, _ = used(b"\xef\xbb\xbfa\0b\r\nc\r", "a.txt", tokenizer, tmp_path)
    assert texts == ["a\0b\r\nc\r"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_utf_16_is_not_utf_8(name: str, tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes('{"text": "x"}\n'.encode("utf-16"))
    said = refused(tmp_path / name, "-o", tmp_path / "p", "--tokenizer", tokenizer)
    assert f"not UTF-8: {tmp_path / name}:1" in said


MIXED = [None, 1, 1.5, True, ["x"], {"x": "y"}, "x"]


def test_mixed_types(tokenizer: Path, tmp_path: Path) -> None:
    content = b"".join(json.dumps(each).encode() + b"\n" for each in [*MIXED, *({"text": each} for each in MIXED)])
    texts, rejects = used(content, "a.jsonl", tokenizer, tmp_path)
    assert texts == ["x"]
    kinds = ("NoneType", "int", "float", "bool", "list", "dict")
    assert rejects == [
        *(f':{number}: no key "text"' for number in range(1, 8)),
        *(f':{number}: "text" is not a string ({kind})' for number, kind in enumerate(kinds, start=8)),
    ]


@pytest.mark.parametrize(("opened", "closed"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_deep_json(opened: bytes, closed: bytes, tokenizer: Path, tmp_path: Path) -> None:
    deep = 200_000
    content = GOOD + b'{"text": "x", "more": ' + opened * deep + b"1" + closed * deep + b"}\n" + GOOD
    texts, rejects = used(content, "a.jsonl", tokenizer, tmp_path)
    assert texts == ["good", "good"]
    assert rejects == [":2: too deep (JSON within JSON)"]
    (tmp_path / "b.json").write_bytes(opened.replace(b"{", b"[{") * deep)
    assert "b.json is no JSON" in refused(tmp_path / "b.json", "-o", tmp_path / "q", "--tokenizer", tokenizer)


def test_endless_numbers(tokenizer: Path, tmp_path: Path) -> None:
    texts, rejects = used(GOOD + b'{"text": "x", "n": ' + b"9" * 10_000 + b"}\n", "a.jsonl", tokenizer, tmp_path)
    assert texts == ["good"]
    assert rejects[0].startswith(":2: broken JSON")


@pytest.mark.parametrize("workers", [1, 2])
def test_lines_that_are_too_long(
    workers: int, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which they are does not depend on where a block ends."""
    lines = []
    for number in range(400):
        lines.append(
            b'{"text": "%s"}\n' % (b"x" * (37 * number % 700)) if number % 3 else b" " * (31 * number % 700) + b"\n"
        )
    content = b"".join(lines)
    seen = set()
    for block in (100, 1000, 1 << 20):
        monkeypatch.setattr("neoxkit.data.text.reading.BLOCK", block)
        more = ("--max-document", 400, "--force", "--workers", workers)
        seen.add(json.dumps(used(content, "a.jsonl", tokenizer, tmp_path, *more)))
    assert len(seen) == 1
    rejects = json.loads(seen.pop())[1]
    numbers = [number for number, line in enumerate(lines, start=1) if len(line) > 400]
    assert [line for line in rejects if "too long" in line] == [
        f":{number}: too long (more than 400 bytes)" for number in numbers
    ]


def test_a_line_of_100_mb(tokenizer: Path, tmp_path: Path) -> None:
    """Its text is short, and found; with a lower limit it is passed over, and the next line is not."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b'{"page": "' + b"x" * 100_000_000 + b'", "text": "kept"}\n' + GOOD)
    fine(path, "-o", tmp_path / "p", "--tokenizer", tokenizer)
    assert decoded(tmp_path / "p", tokenizer) == ["good", "kept", "good"]
    shown = fine(path, "-o", tmp_path / "q", "--tokenizer", tokenizer, "--max-document", "10M").stderr
    assert f"skipped 1 document (too long), the first at {path}:2" in shown
    assert decoded(tmp_path / "q", tokenizer) == ["good", "good"]


@pytest.mark.parametrize("ending", [".gz", ".zst", ".xz"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_bombs_are_passed_over_and_not_held(ending: str, name: str, tmp_path: Path) -> None:
    """50 MB of zeros in some kB: whatever reads them holds a few MB."""
    path = tmp_path / (name + ending)
    path.write_bytes(PACKED[ending](GOOD + bytes(50 << 20) + b"\n" + GOOD))
    assert path.stat().st_size < 200_000
    reader = Reader(find([path], Selection()), ("text",), 1 << 20)
    tracemalloc.start()
    try:
        blocks = list(reader.blocks())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    faults = [piece for block in blocks for piece in block.pieces if isinstance(piece, Fault)]
    where = f"{path}:2" if name == "a.jsonl" else str(path)
    assert faults == [Fault(where, "too long", "more than 1,048,576 bytes")]
    assert peak < 20 << 20


def test_a_parquet_bomb_is_passed_over_and_not_held(tmp_path: Path) -> None:
    """A text that a dictionary repeats is there once, and the rows come in blocks."""
    path = tmp_path / "a.parquet"
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), ["x" * (1 << 20)])
    pq.write_table(pa.table({"text": texts}), path)
    assert path.stat().st_size < 2_000_000
    reader = Reader(find([path], Selection()), ("text",), 1 << 20)
    tracemalloc.start()
    try:
        assert sum(len(piece.rows) for block in reader.blocks() for piece in block.pieces) == 5000  # type: ignore[union-attr]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 << 20


def test_an_array_that_is_too_long_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(rows(50)))
    arguments = (tmp_path / "a.json", "-o", tmp_path / "p", "--tokenizer", tokenizer, "--max-document", 200)
    assert "is one JSON value of more than 200 bytes, which is read whole" in refused(*arguments)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.jsonl.gz", "a.json"])
def test_empty_files(name: str, tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    arguments = (tmp_path / name, "-o", tmp_path / "p", "--tokenizer", tokenizer)
    assert "no document can be used" in refused(*arguments)
    jsonl(tmp_path / "b.jsonl", rows(2))
    fine(*arguments, tmp_path / "b.jsonl")


def test_names_that_are_no_unicode(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "a\udcff.txt").write_text("some text")
    (tmp_path / "b\udcfe.txt").write_bytes(b"")
    fine(tmp_path, "-o", tmp_path / "p", "--tokenizer", tokenizer, "--rejects", tmp_path / "r")
    assert (tmp_path / "p.files.txt").read_bytes() == bytes(tmp_path) + b"/a\xff.txt\n"
    assert (tmp_path / "r").read_bytes() == bytes(tmp_path) + b"/b\xfe.txt: empty\n"
