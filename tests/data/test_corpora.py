"""`neoxkit data get`, from a server on this machine that breaks off, lies and takes up."""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from refusal import run

from neoxkit.data.text import corpora, fetch
from neoxkit.data.text.corpora import CORPORA, GONE, Corpus, corpus
from neoxkit.errors import DataError

TEXT = b"".join(b"%d little lines\n" % number for number in range(5000))


def packed(content: bytes, name: str = "enwik8") -> bytes:
    """A zip archive of one file, not made smaller."""
    into = io.BytesIO()
    with zipfile.ZipFile(into, "w") as archive:
        archive.writestr(name, content)
    return into.getvalue()


@dataclass
class Server:
    """What is served, after how many bytes an answer breaks off, whether ranges are known, and what was asked for."""

    content: bytes = field(default_factory=lambda: packed(TEXT))
    breaks: list[int] = field(default_factory=list)
    ranges: bool = True
    status: int = 200
    asked: list[str | None] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.asked.append(asked)
            if state.status != 200:
                self.send_error(state.status)
                return
            begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and state.ranges else 0  # type: ignore[index]
            if begin and begin >= len(state.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(state.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = state.content[begin:]
            self.send_response(206 if begin else 200)
            if begin:
                self.send_header("Content-Range", f"bytes {begin}-{len(state.content) - 1}/{len(state.content)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.breaks.pop(0)] if state.breaks else body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the library's own word)
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        state.url = f"http://127.0.0.1:{http.server_port}/enwik8.zip"
        yield state
        http.shutdown()


@pytest.fixture
def enwik8(server: Server, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """enwik8 of that server, and small."""
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    md5 = hashlib.md5(TEXT).hexdigest()
    small = replace(corpus("enwik8"), archive=server.url, unpacked=len(TEXT), md5=md5)
    monkeypatch.setattr(corpora, "CORPORA", (small, *CORPORA[1:]))
    return small


def test_a_corpus_is_fetched_unpacked_and_checked(enwik8: Corpus, server: Server, tmp_path: Path) -> None:
    done = run(f"data get enwik8 -o {tmp_path / 'e'}")
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "e/enwik8").read_bytes() == TEXT
    assert [path.name for path in (tmp_path / "e").iterdir()] == ["enwik8"]
    line = f"neoxkit data tokenize {tmp_path}/e/enwik8 -o enwik8-tokens --tokenizer TOKENIZER"
    assert done.stdout.splitlines()[1] == f"to tokenize: {line}"
    again = run(f"data get enwik8 -o {tmp_path / 'e'} --json")
    assert json.loads(again.stdout) == {
        "name": "enwik8", "files": [f"{tmp_path}/e/enwik8"], "bytes": 0, "tokenize": line
    }  # fmt: skip
    assert len(server.asked) == 1


def test_a_transfer_that_breaks_is_taken_up_where_it_broke(enwik8: Corpus, server: Server, tmp_path: Path) -> None:
    server.breaks = [1000, 0, 20000]
    assert fetch.fetch(enwik8, tmp_path).bytes <= len(server.content)
    assert (tmp_path / "enwik8").read_bytes() == TEXT
    assert server.asked == [None, "bytes=1000-", "bytes=1000-", "bytes=21000-"]


def test_what_an_ended_command_left_is_taken_up(enwik8: Corpus, server: Server, tmp_path: Path) -> None:
    (tmp_path / "enwik8.zip.partial").write_bytes(server.content[:777])
    fetch.fetch(enwik8, tmp_path)
    assert server.asked == ["bytes=777-"]
    assert (tmp_path / "enwik8").read_bytes() == TEXT


@pytest.mark.parametrize("kept", ["all", "more"])
def test_a_partial_file_that_has_all_or_too_much(enwik8: Corpus, server: Server, tmp_path: Path, kept: str) -> None:
    (tmp_path / "enwik8.zip.partial").write_bytes(server.content + (b"x" if kept == "more" else b""))
    fetch.fetch(enwik8, tmp_path)
    assert (tmp_path / "enwik8").read_bytes() == TEXT
    assert len(server.asked) == (1 if kept == "all" else 2)


def test_a_server_without_ranges_gives_the_whole_again(enwik8: Corpus, server: Server, tmp_path: Path) -> None:
    server.ranges, server.breaks = False, [1000]
    fetch.fetch(enwik8, tmp_path)
    assert (tmp_path / "enwik8").read_bytes() == TEXT


def test_a_transfer_that_always_breaks_is_told_and_kept(enwik8: Corpus, server: Server, tmp_path: Path) -> None:
    server.breaks = [10] * 99
    done = run(f"data get enwik8 -o {tmp_path}")
    assert (done.exit_code, done.stdout) == (2, "")
    assert re.fullmatch(
        r"error: http://\S+ broke off: .*; try again .*; what is here is kept", done.stderr.splitlines()[-1]
    )
    assert (tmp_path / "enwik8.zip.partial").read_bytes() == server.content[:50]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (packed(TEXT[:-1] + b"!"), "its checksum is not the one that its maker publishes"),
        (packed(TEXT + b"x"), "enwik8 has not"),
        (packed(TEXT, "another"), "no item named 'enwik8'"),
        (b"<html>sorry</html>", "not a zip file"),
    ],
    ids=["checksum", "size", "name", "page"],
)
def test_what_is_not_the_corpus_is_refused(
    enwik8: Corpus, server: Server, tmp_path: Path, content: bytes, says: str
) -> None:
    server.content = content
    with pytest.raises(DataError, match=re.escape(says)):
        fetch.fetch(enwik8, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_something_else_is_not_touched(enwik8: Corpus, server: Server, tmp_path: Path) -> None:
    (tmp_path / "enwik8").write_bytes(b"mine")
    with pytest.raises(DataError, match="exists and is not enwik8"):
        fetch.fetch(enwik8, tmp_path)
    assert (tmp_path / "enwik8").read_bytes() == b"mine"
    assert server.asked == []


def test_a_server_that_refuses_is_told(enwik8: Corpus, server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(DataError, match="the server answers 404 Not Found"):
        fetch.fetch(enwik8, tmp_path)
    assert len(server.asked) == 1


def test_no_network_is_one_line(enwik8: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as http:
        free = http.server_port
    monkeypatch.setattr(corpora, "CORPORA", (replace(enwik8, archive=f"http://127.0.0.1:{free}/enwik8.zip"),))
    done = run(f"data get enwik8 -o {tmp_path / 'new'}")
    assert (done.exit_code, done.stdout) == (2, "")
    assert re.search(r"error: http://\S+ cannot be reached: .*; try again with a network", done.stderr)
    assert not (tmp_path / "new").exists()


@contextmanager
def hub(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> Iterator[list[str]]:
    """huggingface_hub as it answers, without the network; what it was asked to fetch."""
    library = pytest.importorskip("huggingface_hub")
    fetched: list[str] = []

    def about(self: object, name: str, files_metadata: bool, timeout: float) -> SimpleNamespace:
        siblings = [SimpleNamespace(rfilename=each, size=len(content)) for each, content in files.items()]
        return SimpleNamespace(siblings=siblings, sha="0" * 40)

    def download(name: str, file: str, *, repo_type: str, revision: str, local_dir: Path) -> str:
        assert (repo_type, revision) == ("dataset", "0" * 40)
        path = local_dir / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[file])
        fetched.append(file)
        return str(path)

    monkeypatch.setattr(library.HfApi, "dataset_info", about)
    monkeypatch.setattr(library, "hf_hub_download", download)
    yield fetched


FILES = {f"en/c4-train.{number:05}.json.gz": b"x" * 100 for number in range(5)} | {
    "README.md": b"",
    "en/c4-v.json.gz": b"",
}


def test_of_a_dataset_the_named_files_are_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with hub(monkeypatch, FILES) as fetched:
        done = run(f"data get c4 -o {tmp_path / 'c4'}")
        assert done.exit_code == 0, done.stderr
        assert fetched == sorted(name for name in FILES if "train" in name)
        assert f"tokenize {tmp_path}/c4 --include 'c4-train.*.json.gz' -o c4-tokens" in done.stdout
        assert "c4: 5 files, 500 B, ODC-BY 1.0; https://huggingface.co/datasets/allenai/c4" in done.stderr
        fetched.clear()
        run(f"data get c4 -o {tmp_path / 'some'} --max-bytes 299")
        assert fetched == ["en/c4-train.00000.json.gz", "en/c4-train.00001.json.gz"]
        fetched.clear()
        run(f"data get c4 -o {tmp_path / 'one'} --max-bytes 1")
        assert len(fetched) == 1


def test_a_dataset_that_has_changed_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with hub(monkeypatch, {"README.md": b""}), pytest.raises(DataError, match=r"has no files en/c4-train\.\*\.json"):
        fetch.fetch(corpus("c4"), tmp_path)


def test_a_hub_that_is_not_reached_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = pytest.importorskip("huggingface_hub")

    def about(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(library.HfApi, "dataset_info", about)
    done = run(f"data get tinystories -o {tmp_path}")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "tinystories: the Hub cannot be reached, or broke off: Name or service not known; try" in done.stderr


def test_the_table_is_sound() -> None:
    names = [each.name for each in CORPORA]
    assert len(set(names)) == len(names)
    assert not set(names) & set(GONE)
    for each in CORPORA:
        assert (each.hub is None) != (each.archive is None), each.name
        assert bool(each.files) == (each.hub is not None), each.name
        assert each.licence, each.name
    for _, remedy in GONE.values():
        assert remedy == "take another" or any(name in remedy for name in names)


def test_names_that_are_gone_or_were_never_there_are_refused() -> None:
    for name in ("books3", "freelaw"):
        done = run(f"data get {name}")
        assert (done.exit_code, done.stdout) == (2, "")
        assert f"error: {name}: {GONE[name][0]}; {GONE[name][1]}" in done.stderr
    assert "no corpus is named enwik7; see `neoxkit data get --list`" in run("data get enwik7").stderr
    assert run("data get").exit_code == 2


def test_the_list_names_all() -> None:
    lines = run("data get --list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [each.name for each in CORPORA]
    assert "0.04 GB  CC BY-SA 3.0" in lines[0]
    assert [each["name"] for each in json.loads(run("data get --list --json").stdout)] == [
        each.name for each in CORPORA
    ]
