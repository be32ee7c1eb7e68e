"""Where text may lie, and in which form: each gives the same tokens."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tokenizing import bpe, fine, jsonl, made, refused, rows, run

from neoxkit.cli import explain
from neoxkit.data.text.sources import Dataset, Selection, find

ROWS = rows(120)
ALL = {
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bpe(tmp_path_factory.mktemp("bpe") / "tokenizer")


@pytest.fixture(scope="module")
def wanted(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("wanted")
    fine(jsonl(folder / "a.jsonl", ROWS), "-o", folder / "p", "--tokenizer", tokenizer)
    return made(folder / "p")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neoxkit.data.text.reading.BLOCK", 1000)


@pytest.mark.parametrize("ending", ALL)
def test_compressed_lines(ending: str, tokenizer: Path, wanted: dict[str, bytes], tmp_path: Path) -> None:
    packed = tmp_path / f"a.jsonl{ending}"
    packed.write_bytes(ALL[ending](jsonl(tmp_path / "a", ROWS).read_bytes()))
    fine(packed, "-o", tmp_path / "p", "--tokenizer", tokenizer)
    assert made(tmp_path / "p") == wanted


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_several_members_and_frames(ending: str, tokenizer: Path, wanted: dict[str, bytes], tmp_path: Path) -> None:
    content = jsonl(tmp_path / "a", ROWS).read_bytes()
    packed = tmp_path / f"a.jsonl{ending}"
    packed.write_bytes(ALL[ending](content[:777]) + ALL[ending](b"") + ALL[ending](content[777:]))
    fine(packed, "-o", tmp_path / "p", "--tokenizer", tokenizer)
    assert made(tmp_path / "p") == wanted


@pytest.mark.parametrize("ending", ["", *ALL])
def test_compressed_text(ending: str, tokenizer: Path, tmp_path: Path) -> None:
    content = "".join(row["text"] for row in ROWS).encode()
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(ALL[ending](content) if ending else content)
    fine(path, "-o", tmp_path / "p", "--tokenizer", tokenizer)
    sidecar = json.loads((tmp_path / "p.json").read_text())
    assert (sidecar["documents"], sidecar["bytes"]) == (1, len(content))


@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "dictionary"])
def test_parquet(kind: str, tokenizer: Path, wanted: dict[str, bytes], tmp_path: Path) -> None:
    types: dict[str, Any] = {
        "string": pa.string(),
        "large_string": pa.large_string(),
        "binary": pa.binary(),
        "dictionary": pa.dictionary(pa.int32(), pa.string()),
    }
    texts = [row["text"].encode() if kind == "binary" else row["text"] for row in ROWS]
    table = pa.table({"n": range(len(texts)), "text": pa.array(texts, types[kind])})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=50)
    fine(tmp_path / "a.parquet", "-o", tmp_path / "p", "--tokenizer", tokenizer)
    assert made(tmp_path / "p") == wanted


@pytest.mark.parametrize("start", [b"", b"\n ", b"\xef\xbb\xbf"])
def test_an_array_of_json(start: bytes, tokenizer: Path, wanted: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(start + json.dumps(ROWS, indent=1).encode())
    fine(tmp_path / "a.json", "-o", tmp_path / "p", "--tokenizer", tokenizer)
    assert made(tmp_path / "p") == wanted


@pytest.mark.parametrize("indent", [None, 2])
def test_one_object_of_json_is_one_row(indent: int | None, tokenizer: Path, tmp_path: Path) -> None:
    row = {"about": {"id": 1}, "text": "One row\nof two lines."}
    (tmp_path / "a.json").write_text(json.dumps(row, indent=indent))
    fine(tmp_path / "a.json", "-o", tmp_path / "p", "--tokenizer", tokenizer)
    fine(jsonl(tmp_path / "b.jsonl", [row]), "-o", tmp_path / "q", "--tokenizer", tokenizer)
    assert made(tmp_path / "p")[".bin"] == made(tmp_path / "q")[".bin"]


def test_json_that_is_lines(tokenizer: Path, wanted: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "c4.json.gz").write_bytes(gzip.compress(jsonl(tmp_path / "a", ROWS).read_bytes()))
    fine(tmp_path / "c4.json.gz", "-o", tmp_path / "p", "--tokenizer", tokenizer)
    assert made(tmp_path / "p") == wanted


def split_up(root: Path) -> None:
    """The rows in files of several kinds, by name in order, among what is not wanted."""
    (root / "b").mkdir(parents=True)
    (root / "a.jsonl.zst").write_bytes(ALL[".zst"](jsonl(root / ".x", ROWS[:40]).read_bytes()))
    jsonl(root / "b" / "c.jsonl", ROWS[40:70])
    pq.write_table(pa.table({"text": [row["text"] for row in ROWS[70:]]}), root / "d.parquet")
    (root / "e.py").write_text("unwanted = 1")
    (root / "b" / "loop").symlink_to(root, target_is_directory=True)


@pytest.mark.parametrize("given", ["{root}", "{root}/*", "{root}/**/*.[jp]*[lt]*", "{root}/[a-d]*"])
def test_folders_and_patterns(given: str, tokenizer: Path, wanted: dict[str, bytes], tmp_path: Path) -> None:
    root = tmp_path / "root"
    split_up(root)
    more = [] if given != "{root}/*" else [root / "e.py"]
    if more:
        (root / "e.py").unlink()
    fine(given.format(root=root), "-o", tmp_path / "p", "--tokenizer", tokenizer)
    assert made(tmp_path / "p") == wanted


def test_a_pattern_that_nothing_matches(tokenizer: Path, tmp_path: Path) -> None:
    said = refused(tmp_path / "*.jsonl", "-o", tmp_path / "p", "--tokenizer", tokenizer)
    assert "*.jsonl: no file or folder is named so; mend the pattern" in said


def test_hidden_names_are_left_out_of_patterns_that_do_not_name_them(tmp_path: Path) -> None:
    for name in (".a.jsonl", "b.jsonl"):
        jsonl(tmp_path / name, ROWS[:1])
    assert [source.name for source in find([tmp_path / "*.jsonl"], Selection())] == ["b.jsonl"]
    assert [source.name for source in find([tmp_path / ".*.jsonl"], Selection())] == [".a.jsonl"]


def test_patterns_see_through_compression(tmp_path: Path) -> None:
    for name in ("a.py.gz", "b.py", "c.gz", "d.md.xz"):
        (tmp_path / name).write_bytes(b"x")
    assert [source.name for source in find([tmp_path], Selection(("*.py",)))] == ["a.py.gz", "b.py"]
    assert [source.name for source in find([tmp_path], Selection(("*.gz",)))] == ["a.py.gz", "c.gz"]
    assert [source.name for source in find([tmp_path], Selection())] == ["d.md.xz"]


@pytest.mark.parametrize("given", ["memory://corpus", "memory://corpus/*", "memory://corpus/**"])
def test_stores(given: str, tokenizer: Path, wanted: dict[str, bytes], tmp_path: Path) -> None:
    split_up(tmp_path / "root")
    (tmp_path / "root" / "b" / "loop").unlink()
    store = fsspec.filesystem("memory")
    wild = "*" in given
    for path in sorted((tmp_path / "root").rglob("*")):
        name = path.relative_to(tmp_path / "root").as_posix().replace("b/", "" if wild else "b/").replace("c.j", "b.j")
        if path.is_file() and not (wild and path.suffix not in (".zst", ".jsonl", ".parquet")):
            store.pipe_file(f"/corpus/{name}", path.read_bytes())
    try:
        fine(given, "-o", tmp_path / "p", "--tokenizer", tokenizer)
        assert made(tmp_path / "p") == wanted
        assert "memory://corpus/e.rst: no such file" in refused(
            "memory://corpus/e.rst", "-o", tmp_path / "q", "--tokenizer", tokenizer
        )
    finally:
        store.rm("/corpus", recursive=True)


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, *about: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    served = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path))
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    thread.join()
    served.server_close()


def test_web_servers(server: str, tokenizer: Path, wanted: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl(tmp_path / "a", ROWS).read_bytes()))
    fine(f"{server}/a.jsonl.gz?download=true", "-o", tmp_path / "p", "--tokenizer", tokenizer)
    assert made(tmp_path / "p") == wanted
    assert "/none.jsonl: no such file" in refused(
        f"{server}/none.jsonl", "-o", tmp_path / "q", "--tokenizer", tokenizer
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as silent:
        gone = f"http://127.0.0.1:{silent.server_port}/a.jsonl"
    assert f"{gone} cannot be reached: " in refused(gone, "-o", tmp_path / "q", "--tokenizer", tokenizer)


def test_text_files_of_a_store_are_listed_by_url(tokenizer: Path, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.pipe_file("/texts/a.txt", b"some text")
    try:
        fine("memory://texts", "-o", tmp_path / "p", "--tokenizer", tokenizer)
        assert (tmp_path / "p.files.txt").read_text() == "memory:///texts/a.txt\n"
    finally:
        store.rm("/texts", recursive=True)


def test_datasets(tokenizer: Path, wanted: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is a dataset too: nothing is fetched."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "corpus"
    folder.mkdir()
    jsonl(folder / "train.jsonl", ROWS)
    jsonl(folder / "test.jsonl", ROWS[:7])
    fine("--dataset", folder, "-o", tmp_path / "p", "--tokenizer", tokenizer)
    assert made(tmp_path / "p") == wanted
    fine("--dataset", folder, "--split", "test", "-o", tmp_path / "q", "--tokenizer", tokenizer)
    assert json.loads((tmp_path / "q.json").read_text())["documents"] == 7
    said = refused("--dataset", folder, "--split", "no", "-o", tmp_path / "r", "--tokenizer", tokenizer)
    assert f"dataset {folder} (no)" in said
    said = refused("--dataset", folder, "--key", "body", "-o", tmp_path / "r", "--tokenizer", tokenizer)
    assert 'has no column "body"; name one with --key: text, n' in said


def test_the_configuration_of_a_dataset(tmp_path: Path) -> None:
    assert Dataset("wikimedia/wikipedia:20231101.de", "train").named() == ("wikimedia/wikipedia", "20231101.de")
    assert Dataset("allenai/c4", "train").named() == ("allenai/c4", None)
    (tmp_path / "a:b").mkdir()
    assert Dataset(str(tmp_path / "a:b"), "train").named() == (str(tmp_path / "a:b"), None)


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("zstandard", ("a.jsonl.zst",)), ("pyarrow", ("d.parquet",)), ("ftfy", ("a.jsonl.zst", "--ftfy"))],
)
def test_what_is_not_installed_is_named(
    module: str,
    arguments: tuple[str, ...],
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    split_up(tmp_path / "root")
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path / "root")
    before = set(Path().iterdir())
    found = run(*arguments, "-o", "p", "--tokenizer", tokenizer).exception
    assert isinstance(found, Exception)
    assert explain(found) == f"{module} is not installed; pip install 'neoxkit[data]'"
    assert set(Path().iterdir()) == before


def test_parquet_columns_are_named(tokenizer: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a"], "n": [1]}), tmp_path / "a.parquet")
    arguments = (tmp_path / "a.parquet", "-o", tmp_path / "p", "--tokenizer", tokenizer)
    assert 'has no column "text"; name one with --key: body, n' in refused(*arguments)
    assert 'column "n" is of type int64, not text' in refused(*arguments, "--key", "n")
    fine(*arguments, "--key", "body")


def test_rows_of_parquet_that_cannot_be_used(tokenizer: Path, tmp_path: Path) -> None:
    column = pa.array([b"good", None, b"\xff", b"", b"good too"], pa.binary())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    fine(tmp_path / "a.parquet", "-o", tmp_path / "p", "--tokenizer", tokenizer, "--rejects", tmp_path / "r.txt")
    assert (tmp_path / "r.txt").read_text().splitlines() == [
        f'{tmp_path / "a.parquet"}, row 2: "text" is not a string (NoneType)',
        f"{tmp_path / 'a.parquet'}, row 3: not UTF-8 (invalid start byte)",
        f"{tmp_path / 'a.parquet'}, row 4: empty",
    ]
