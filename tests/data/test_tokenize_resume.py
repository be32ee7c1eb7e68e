"""Interrupted, killed or given to several workers, `neoxkit data tokenize` writes the same bytes."""

from __future__ import annotations

import gzip
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from killing import Saver
from tokenizing import bpe, fine, jsonl, made, refused, rows, run

from neoxkit.cli import main
from neoxkit.data.prepare import journal, workers
from neoxkit.data.prepare.encode import Encoder, Recipe
from neoxkit.data.prepare.request import Chain
from neoxkit.data.prepare.results import Results
from neoxkit.data.prepare.workers import WorkerLostError, number_of, receive, send, started
from neoxkit.data.text import reading
from neoxkit.data.text.documents import Parser
from neoxkit.data.text.pieces import Block, Lines, Position
from neoxkit.data.text.sources import Source
from neoxkit.errors import DataError

SCRIPT = Path(__file__).with_name("tokenize_killed.py")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind of file, with rejects; and a tokenizer."""
    folder = tmp_path_factory.mktemp("corpus")
    bpe(folder / "tokenizer")
    mixed = [*rows(60, 2), b"{broken", {"text": 5}, *rows(30, 3)]
    jsonl(folder / "a.jsonl", mixed)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(folder / "b", rows(60, 4)).read_bytes()))
    (folder / "c.txt").write_text("one text")
    table = pa.table({"text": [row["text"] for row in rows(80, 5)]})
    pq.write_table(table, folder / "d.parquet", row_group_size=30)
    return folder


@pytest.fixture(scope="module")
def saver() -> Iterator[Saver]:
    saver = Saver(SCRIPT)
    yield saver
    saver.close()


def attempt(saver: Saver, folder: Path, act: str, kill_at: int) -> tuple[int, str]:
    """The signal that ended it, and before which step it killed itself; or 0 and how many steps it took."""
    saver.begin(folder, 0, kill_at, act)
    code, said = saver.end()
    if said == f"{folder / 'r.txt'} exists; give --force to replace it, or write elsewhere":
        return 0, said  # the one before was killed after its last step but for the removal of an empty folder
    return code, said


@pytest.mark.parametrize("act", ["one", "two", "train"])
def test_killed_at_random_moments(corpus: Path, saver: Saver, act: str) -> None:
    random = Random(act)
    whole = corpus / f"{act}-whole"
    whole.mkdir()
    code, steps = attempt(saver, whole, act, 0)
    assert code == 0
    wanted = made(whole / "p") | {"r": (whole / "r.txt").read_bytes()}
    kills: list[str] = []
    rounds = 2 if act == "two" else 4
    for number in range(rounds):
        folder = corpus / f"{act}-{number}"
        folder.mkdir()
        while True:
            code, where = attempt(saver, folder, act, random.randint(1, int(steps) // 2))
            if not code:
                break
            assert code == signal.SIGKILL, (code, where)
            kills.append(where)
            assert not (folder / "p.json").exists() or not (folder / ".p.partial" / "0.bin").exists()
        found = made(folder / "p") | {"r": (folder / "r.txt").read_bytes()}
        assert found == wanted
        assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}, "nothing is left"
    assert len(kills) >= rounds, kills


def test_killed_at_each_step_of_the_end(corpus: Path, saver: Saver) -> None:
    """The files appear one after another: from wherever that stops, it goes on."""
    whole = corpus / "end-whole"
    whole.mkdir()
    steps = int(attempt(saver, whole, "one", 0)[1])
    seen = set()
    for back in range(0, 36, 2):
        folder = corpus / f"end-{back}"
        folder.mkdir()
        code, where = attempt(saver, folder, "one", steps - back)
        assert code == signal.SIGKILL
        seen.add((where, (folder / "p.bin").exists(), (folder / "p.json").exists()))
        assert attempt(saver, folder, "one", 0)[0] == 0, where
        assert made(folder / "p") == made(whole / "p")
        assert not (folder / ".p.partial").exists()
    assert any(begun and not ended for _, begun, ended in seen), seen


def tokenized(corpus: Path, prefix: Path, *more: object) -> dict[str, bytes]:
    inputs = (corpus / name for name in ("a.jsonl", "b.jsonl.gz", "c.txt", "d.parquet"))
    fine(*inputs, "-o", prefix, "--tokenizer", corpus / "tokenizer", *more)
    return made(prefix)


@pytest.mark.parametrize("size", [100, 5000])
def test_workers_and_blocks_make_no_difference(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    wanted = tokenized(corpus, tmp_path / "p", "--holdout", 0.2)
    monkeypatch.setattr("neoxkit.data.text.reading.BLOCK", size)
    assert tokenized(corpus, tmp_path / "q", "--holdout", 0.2, "--workers", 3) == wanted
    assert tokenized(corpus, tmp_path / "r", "--holdout", 0.2, "--workers", 1) == wanted


@pytest.mark.parametrize("number", [1, 2])
def test_so_many_documents(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr("neoxkit.data.text.reading.BLOCK", 2000)
    whole = tokenized(corpus, tmp_path / "p")
    found = tokenized(corpus, tmp_path / "q", "--max-documents", 75, "--workers", number)
    sidecar = json.loads(found[".json"])
    assert sidecar["documents"] == 75
    assert sidecar["skipped"] == {"broken JSON": 1, '"text" is not a string': 1}
    assert whole[".bin"].startswith(found[".bin"])
    first = tokenized(corpus, tmp_path / "r", "--max-documents", 60, "--workers", number)
    assert json.loads(first[".json"])["skipped"] == {}, "what comes after the last document was not looked at"


@pytest.fixture
def interrupted(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> tuple[object, ...]:
    """The command line of a command that Ctrl-C stopped at its fourth block."""
    monkeypatch.setattr("neoxkit.data.text.reading.BLOCK", 2000)
    original, calls = Results.append, []

    def append(self: Results, *given: object) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        original(self, *given)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Results, "append", append)
        command = (corpus / "a.jsonl", "-o", tmp_path / "p", "--tokenizer", corpus / "tokenizer")
        with pytest.raises(SystemExit) as ended:
            main(["data", "tokenize", *map(str, command)])
        assert ended.value.code == 130
        assert "error: interrupted; give the same command again to go on" in capfd.readouterr().err
    return command


def test_what_ctrl_c_stopped_goes_on(corpus: Path, tmp_path: Path, interrupted: tuple[object, ...]) -> None:
    assert not list(tmp_path.glob("p*"))
    state = json.loads((tmp_path / ".p.partial" / "state.json").read_text())
    assert 0 < state["rows"] < 90
    result = fine(*interrupted)
    assert f"has {state['rows']} documents of an interrupted command: going on" in result.stderr
    assert result.stdout.startswith(f"{tmp_path / 'p'}: 90 documents")
    fine(corpus / "a.jsonl", "-o", tmp_path / "q", "--tokenizer", corpus / "tokenizer")
    assert made(tmp_path / "p") == made(tmp_path / "q")


def test_other_work_is_not_gone_on_with(tmp_path: Path, interrupted: tuple[object, ...]) -> None:
    said = refused(*interrupted, "--prepend-bos", "--max-documents", 3)
    assert "an interrupted command that differs in: --max-documents, --prepend-bos; repeat that command" in said
    assert (tmp_path / ".p.partial" / "state.json").exists()
    result = fine(*interrupted, "--max-documents", 3, "--force")
    assert "going on" not in result.stderr
    assert json.loads((tmp_path / "p.json").read_text())["documents"] == 3


def test_a_changed_input_is_not_gone_on_with(corpus: Path, tmp_path: Path, interrupted: tuple[object, ...]) -> None:
    before = (corpus / "a.jsonl").stat()
    os.utime(corpus / "a.jsonl", ns=(1, 1))
    assert "differs in: inputs" in refused(*interrupted)
    os.utime(corpus / "a.jsonl", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "going on" in fine(*interrupted).stderr


def test_a_damaged_input_costs_no_work_before_it(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mended file is another, but it was not read yet; one that was read must be the same."""
    monkeypatch.setattr(journal, "EVERY", 0.0)
    monkeypatch.setattr(reading, "BLOCK", 500)
    good, bad = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    good.write_bytes(b"".join(b'{"text": "text number %d"}\n' % number for number in range(200)))
    bad.write_bytes(b"this is no archive")
    arguments = (good, bad, "-o", tmp_path / "p", "--tokenizer", corpus / "tokenizer", "--workers", 1)
    said = refused(*arguments)
    assert "b.jsonl.gz" in said
    assert said.endswith("the same command then goes on")
    bad.write_bytes(gzip.compress(b'{"text": "and the last"}\n'))
    before = good.stat()
    os.utime(good, ns=(1, 1))
    assert "differs in: inputs" in refused(*arguments)
    os.utime(good, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "going on" in fine(*arguments).stderr
    fine(good, bad, "-o", tmp_path / "q", "--tokenizer", corpus / "tokenizer")
    for ending in (".bin", ".idx", ".json"):
        ours, theirs = ((tmp_path / f"{name}{ending}").read_bytes() for name in "pq")
        assert ours == theirs
    assert not (tmp_path / ".p.partial").exists()


def test_rejects_are_listed_though_nothing_can_be_used(corpus: Path, tmp_path: Path) -> None:
    file, rejects = tmp_path / "a.jsonl", tmp_path / "rejects.txt"
    file.write_text('{"other": 1}\n[]\n')
    refused(file, "-o", tmp_path / "p", "--tokenizer", corpus / "tokenizer", "--rejects", rejects)
    assert len(rejects.read_text().splitlines()) == 2


def test_work_without_a_state_is_begun_anew(tmp_path: Path, interrupted: tuple[object, ...]) -> None:
    (tmp_path / ".p.partial" / "state.json").unlink()
    assert "going on" not in fine(*interrupted, "--max-documents", 3).stderr


def test_work_that_lost_bytes_is_refused(tmp_path: Path, interrupted: tuple[object, ...]) -> None:
    (tmp_path / ".p.partial" / "0.bin").write_bytes(b"")
    assert "0.bin is shorter than it was; give --force to begin anew" in refused(*interrupted)


def test_one_process_at_a_time(corpus: Path, tmp_path: Path) -> None:
    held = journal.Journal(tmp_path / "p", {}, False, str)
    arguments = (corpus / "a.jsonl", "-o", tmp_path / "p", "--tokenizer", corpus / "tokenizer")
    assert f"another process is writing {tmp_path / 'p'}" in refused(*arguments)
    held.close()
    fine(*arguments)


def recipe(corpus: Path, longest: int = 1 << 20) -> Recipe:
    content = (corpus / "tokenizer" / "tokenizer.json").read_bytes()
    return Recipe(tokenizer=content, parser=Parser(("text",), longest), eod=0, bos=None, dtype="<u2", holdout=0.0)


BLOCK = Block((Lines("x", 1, b'{"text": "self"}\n'),), Position(1), 17, 17)


def test_a_lost_worker_is_told_of(corpus: Path) -> None:
    with started(2) as pool:
        pool.tell(recipe(corpus))
        assert pool.ask(BLOCK.pieces, None).result() == Encoder(recipe(corpus)).encode(BLOCK.pieces)
        for child in pool._children:  # type: ignore[attr-defined]
            os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(WorkerLostError, match=r"a worker process ended, with exit code .*fewer --workers"):
            pool.ask(BLOCK.pieces, None).result()


def test_what_was_done_before_a_worker_was_lost_is_kept(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neoxkit.data.text.reading.BLOCK", 1000)
    original, calls = workers._Pool._ask, []

    def ask(self: workers._Pool, *given: object) -> object:
        calls.append(1)
        if len(calls) > 4:
            raise WorkerLostError("lost")
        return original(self, *given)  # type: ignore[arg-type]

    command = (corpus / "a.jsonl", "-o", tmp_path / "p", "--tokenizer", corpus / "tokenizer", "--workers", 2)
    with monkeypatch.context() as patched:
        patched.setattr(workers._Pool, "_ask", ask)
        assert refused(*command) == "lost"
    assert "going on" in fine(*command).stderr
    fine(*command[:2], tmp_path / "q", *command[3:])
    assert made(tmp_path / "p") == made(tmp_path / "q")


def test_workers_end_with_the_process_that_started_them(corpus: Path) -> None:
    with started(2) as pool:
        pool.tell(recipe(corpus))
        children = pool._children  # type: ignore[attr-defined]
        for child in children:
            child.stdin.close()  # as when it is killed
        assert [child.wait(30) for child in children] == [0, 0]


def test_an_error_in_a_worker_is_raised_here(corpus: Path) -> None:
    with started(2) as pool:
        pool.tell(recipe(corpus))
        wrong = Block((None,), Position(1), 1, 1)  # type: ignore[arg-type]
        with pytest.raises(AttributeError, match="rows"):
            pool.ask(wrong.pieces, None).result()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the threads of a process are told by Linux alone")
def test_a_worker_has_one_thread_so_that_its_allocations_take_no_locks(corpus: Path) -> None:
    with started(1) as pool:
        pool.tell(recipe(corpus))
        pool.ask(BLOCK.pieces, None).result()
        (child,) = pool._children  # type: ignore[attr-defined]
        assert "\nThreads:\t1\n" in Path(f"/proc/{child.pid}/status").read_text()


@pytest.mark.parametrize(
    ("asked", "sizes", "number"),
    [
        (None, [1000], 0),
        (None, [5 << 20], 2),
        (None, [3 << 20, 1 << 30], 4),
        (None, [1000, None], 4),
        (1, [1000], 0),
        (1, [1 << 30], 1),
        (1, [None], 1),
        (7, [1000], 7),
    ],
)
def test_no_more_processes_than_the_text_is_worth(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, sizes: list[int | None], number: int
) -> None:
    monkeypatch.setattr("neoxkit.data.prepare.workers.cores", lambda: 4)
    sources = [Source(Path("a.txt"), "a.txt", "a", size) for size in sizes]
    assert number_of(asked, sources) == number


def test_messages_that_break_off(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        send(file, b"first")
        send(file, b"second")
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:-1])
    with (tmp_path / "x").open("rb") as file:
        assert [receive(file), receive(file), receive(file)] == [b"first", None, None]


def test_the_chain_does_not_depend_on_where_it_is_cut() -> None:
    digests = [bytes([k % 256]) * 32 for k in range(300)]
    whole = Chain()
    whole.add(digests)
    random = Random(0)
    for _ in range(20):
        cut, chain = random.randint(0, 300), Chain()
        chain.add(digests[:cut])
        chain = Chain(chain.state())
        chain.add(digests[cut:])
        assert chain.hexdigest() == whole.hexdigest()
        swapped = Chain()
        swapped.add([*digests[cut:], *digests[:cut]])
        assert (swapped.hexdigest() == whole.hexdigest()) == (cut in (0, 300))


def test_strict_leaves_nothing(corpus: Path, tmp_path: Path) -> None:
    result = run(corpus / "a.jsonl", "-o", tmp_path / "p", "--tokenizer", corpus / "tokenizer", "--strict")
    assert isinstance(result.exception, DataError)
    assert f"{corpus / 'a.jsonl'}:61: broken JSON" in str(result.exception)
    assert list(tmp_path.iterdir()) == []
