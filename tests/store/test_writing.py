"""Objects written in parts: the bytes of a disk, little memory, nothing visible early, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from buckets import Bucket
from hypothesis import given
from hypothesis import strategies as st
from refusal import run

from neoxkit.checkpoint import store_output
from neoxkit.checkpoint.attempt import Attempt
from neoxkit.checkpoint.folder import CLAIM, not_a_checkpoint
from neoxkit.checkpoint.format import MANIFEST
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.store import StorePath, place
from neoxkit.checkpoint.store_attempt import StoreAttempt
from neoxkit.checkpoint.store_output import IN_FLIGHT, MOST_PARTS, PART, StoreOutput, Uploads, part_size
from neoxkit.convert.verify import verify
from neoxkit.errors import CheckpointError

ITEMS = {"U8": 1}


def at(url: str) -> StorePath:
    """The place of a URL."""
    found = place(url)
    assert isinstance(found, StorePath)
    return found


@given(st.integers(1, 5 * 2**40))
def test_parts_are_few_and_large(size: int) -> None:
    part = part_size(size)
    assert -(-size // part) <= MOST_PARTS
    assert part >= PART >= 5 << 20


@given(st.data())
def test_the_bytes_are_those_of_a_disk(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Boxes in any order and of any size, in parts of 64 bytes."""
    rows, columns = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 40))
    tensors = {"a": ("U8", (rows, columns)), "b": ("U8", (7,))}
    values = {key: np.random.default_rng(1).integers(0, 256, shape, np.uint8) for key, (_, shape) in tensors.items()}
    cut, middle = data.draw(st.integers(0, rows)), data.draw(st.integers(0, columns))
    boxes: list[tuple[str, Any]] = [("a", ((0, cut), (0, columns))), ("b", ((0, 7),))]
    boxes += [("a", ((cut, rows), (0, middle))), ("a", ((cut, rows), (middle, columns)))]
    boxes = data.draw(st.permutations(boxes))
    folder = tmp_path_factory.mktemp("disk") / "x"
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(3) as threads:
        patch.setattr(store_output, "PART", 64)
        patch.setattr(store_output, "_MIB", 1)
        found = []
        for attempt in (Attempt(folder, not_a_checkpoint), StoreAttempt(at("memory://same/x"), not_a_checkpoint)):
            attempt.make(0)
            output = attempt.output("model/x.safetensors", tensors, ITEMS, {"about": "it"})
            for key, box in boxes:
                part = values[key][tuple(slice(*span) for span in box)]
                output.write(key, box, np.ascontiguousarray(part).reshape(-1), threads)
            assert not output.incomplete()
            output.finish(threads)
            attempt.commit("last", b"")
            found.append((attempt.folder / "model/x.safetensors", output.crcs()))
    again = at("memory://same/x/model/x.safetensors")
    assert again.read_bytes() == found[0][0].read_bytes()
    assert found[0][1] == found[1][1]
    again.tree.fs.rm("/same", recursive=True)


class Slow:
    """An object to which parts go slowly."""

    def __init__(self) -> None:
        self.parts: dict[int, int] = {}

    def put(self, number: int, data: bytes) -> None:
        threading.Event().wait(0.002)
        self.parts[number] = len(data)

    def complete(self) -> None: ...

    def abort(self) -> None: ...


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """512 MB in two files, written in turn as a column's cut is: a few parts of each are in memory, no more."""
    slow = Slow()
    monkeypatch.setattr(Uploads, "begin", lambda self, path: slow)
    uploads = Uploads()
    tensors = {"a": ("U8", (1 << 8, 1 << 20))}
    block = np.zeros((1 << 25), np.uint8)
    with ThreadPoolExecutor(3) as threads:
        files = [StoreOutput(uploads, at(f"memory://x/{name}"), tensors, ITEMS, {}) for name in "ab"]
        monkeypatch.setattr("neoxkit.checkpoint.output.contribution", lambda *about: 0)
        tracemalloc.start()
        waiting = 0
        for row in range(0, 1 << 8, 32):
            for file in files:
                file.write("a", ((row, row + 32), (0, 1 << 20)), block, threads)
            waiting = max(waiting, sum(file.waiting for file in files))
        for file in files:
            file.finish(threads)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    uploads.close()
    assert sum(slow.parts.values()) > 1 << 28
    assert waiting <= 2 * PART
    assert most <= (IN_FLIGHT + 2 * 2 + 1) * PART


def test_several_parts_of_s3(bucket: Bucket) -> None:
    """20 MB in parts of 8 MiB, over the wire."""
    attempt = StoreAttempt(at(f"{bucket}/x"), not_a_checkpoint)
    attempt.make(0)
    value = np.random.default_rng(2).integers(0, 256, 20_000_000, np.uint8)
    with ThreadPoolExecutor(3) as threads:
        output = attempt.output("a.safetensors", {"a": ("U8", (20_000_000,))}, ITEMS, {})
        for first in reversed(range(0, 20_000_000, 4_000_000)):
            output.write("a", ((first, first + 4_000_000),), value[first : first + 4_000_000], threads)
        output.finish(threads)
    assert bucket.objects() == {}
    assert bucket.uploads() == ["x/a.safetensors"]
    attempt.commit("last", b"")
    found = bucket.objects("x")
    assert found["a.safetensors"][-20_000_000:] == value.tobytes()
    assert sorted(found) == ["a.safetensors", "last"]
    about = bucket.client.head_object(Bucket=bucket.name, Key="x/a.safetensors")
    assert about["ETag"].endswith('-3"')  # of three parts
    assert not bucket.uploads()


def failing(monkeypatch: pytest.MonkeyPatch, refused: str, times: int = 10**9, key: str = "") -> list[str]:
    """Let a call of S3's fail; returns the calls."""
    from s3fs import S3FileSystem

    calls: list[str] = []
    call = S3FileSystem._call_s3
    left = [times]

    async def fails(self: Any, method: str, *args: Any, **rest: Any) -> Any:
        calls.append(method)
        if method == refused and key in rest.get("Key", "") and left[0]:
            left[0] -= 1
            raise OSError(5, "the disk array is on fire")
        return await call(self, method, *args, **rest)

    def fails_too(self: Any, method: str, *args: Any, **rest: Any) -> Any:
        from fsspec.asyn import sync

        return sync(self.loop, fails, self, method, *args, **rest)

    monkeypatch.setattr(S3FileSystem, "_call_s3", fails)
    monkeypatch.setattr(S3FileSystem, "call_s3", fails_too)
    return calls


@pytest.mark.parametrize(
    ("call", "key"),
    [
        ("create_multipart_upload", ""),
        ("upload_part", "tp01"),
        ("complete_multipart_upload", "tp01"),
        ("put_object", "config.json"),
        ("put_object", MANIFEST),
        ("put_object", CLAIM),
    ],
)
def test_a_store_that_fails(
    bucket: Bucket, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, call: str, key: str
) -> None:
    failing(monkeypatch, call, key=key)
    result = run(f"reshard {checkpoint} {bucket}/x --tp 2")
    assert result.exit_code == 2, result.exception
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {bucket}/x")
    assert "the disk array is on fire; check the address, the credentials" in line
    monkeypatch.undo()
    assert bucket.objects() == {}
    assert bucket.uploads() == []


def test_a_failed_replacement_leaves_no_ruin(bucket: Bucket, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the commit begins, the old checkpoint is whole."""
    assert run(f"reshard {checkpoint} {bucket}/x").exit_code == 0
    before = bucket.objects("x")
    failing(monkeypatch, "upload_part")
    assert run(f"reshard {checkpoint} {bucket}/x --tp 2 --force").exit_code == 2
    assert bucket.objects("x") == before
    failing(monkeypatch, "put_object", key=CLAIM)
    assert run(f"reshard {checkpoint} {bucket}/x --tp 2 --force").exit_code == 2
    monkeypatch.undo()
    assert bucket.objects("x") == before


def test_a_lost_answer(bucket: Bucket, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest is put there, the answer is lost, and the library asks again: it is ours that is there."""
    from s3fs import S3FileSystem

    call = S3FileSystem._call_s3
    put: list[str] = []

    async def twice(self: Any, method: str, *args: Any, **rest: Any) -> Any:
        if method == "put_object" and rest["Key"].endswith((MANIFEST, CLAIM)):
            put.append(rest["Key"])
            await call(self, method, *args, **rest)
        return await call(self, method, *args, **rest)

    monkeypatch.setattr(S3FileSystem, "_call_s3", twice)
    result = run(f"reshard {checkpoint} {bucket}/x")
    assert result.exit_code == 0, result.output
    assert put == [f"x/{CLAIM}", f"x/{MANIFEST}"]


@pytest.mark.parametrize("store", ["s3", "memory"], indirect=True)
@pytest.mark.parametrize("force", [False, True])
def test_of_two_writers_one_succeeds(
    store: str, model: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    """Both have sent everything before either commits."""
    from neoxkit.convert.open import open_foreign
    from neoxkit.convert.transfer import import_model
    from neoxkit.mesh import Mesh

    if force:
        assert run(f"reshard {checkpoint} {store}/x").exit_code == 0
    both = threading.Barrier(2)
    commit = StoreAttempt.commit

    def together(self: StoreAttempt, last: str, data: bytes) -> None:
        both.wait()
        commit(self, last, data)

    monkeypatch.setattr(StoreAttempt, "commit", together)
    wins: list[Mesh] = []
    errors: list[str] = []

    def write(mesh: Mesh) -> None:
        try:
            import_model(open_foreign(model), at(f"{store}/x"), mesh, force=force)
            wins.append(mesh)
        except CheckpointError as error:
            errors.append(error.cause)

    threads = [threading.Thread(target=write, args=(Mesh(tp=tp),)) for tp in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) >= 1
    if len(wins) == 2:  # with force one may follow the other, and replace it
        assert force
    else:
        assert "another process has just written there" in errors[0] or "exists" in errors[0]
        assert Checkpoint.open(f"{store}/x").manifest.mesh["tp"] == wins[0].tp
    assert verify(at(f"{store}/x")).sound


FORKS = """
import importlib, json, os, shlex, signal, sys, time
import neoxkit.convert.open, neoxkit.convert.transfer, neoxkit.checkpoint.store_attempt
from neoxkit.cli import main

for line in sys.stdin:
    name, command, said = json.loads(line)
    if process := os.fork():
        print(process, flush=True)
        _, status = os.waitpid(process, 0)
        print("ENDED", os.waitstatus_to_exitcode(status), flush=True)
        continue
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    module, _, rest = name.partition(":")
    *within, function = rest.split(".")
    place = importlib.import_module(f"neoxkit.{module}")
    for each in within:
        place = getattr(place, each)
    work = getattr(place, function)

    def slow(*args, **given):
        result = work(*args, **given)
        print("READY", flush=True)
        time.sleep(60)
        return result

    setattr(place, function, slow)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(shlex.split(command))
"""
"""Runs each command in a fork of its own, which says so and waits when a function of it has done its work."""

End = Callable[[signal.Signals, str, str], "tuple[int, str]"]


@pytest.fixture(scope="module")
def end(s3: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[End]:
    """Exit code and stderr of a command that gets a signal after a function's work."""
    said = tmp_path_factory.mktemp("said") / "stderr"
    with subprocess.Popen(
        [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout

        def ended(how: signal.Signals, name: str, command: str) -> tuple[int, str]:
            assert process.stdin
            assert process.stdout
            said.unlink(missing_ok=True)
            print(json.dumps([name, command, str(said)]), file=process.stdin, flush=True)
            fork = int(process.stdout.readline())
            assert process.stdout.readline() == "READY\n", said.read_text()
            os.kill(fork, how)
            return int(process.stdout.readline().removeprefix("ENDED ")), said.read_text()

        yield ended
        process.stdin.close()


@pytest.mark.parametrize("command", ["reshard {0} {1}/x", "export {0} {1}/x"])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_ended(bucket: Bucket, checkpoint: Path, end: End, how: signal.Signals, command: str) -> None:
    code, said = end(how, "convert.transfer:copy", command.format(checkpoint, bucket))
    assert code == 128 + how
    assert said == "error: interrupted; nothing was written\n"
    assert bucket.objects() == {}
    assert bucket.uploads() == []


def test_a_command_that_is_killed(bucket: Bucket, checkpoint: Path, end: End) -> None:
    """Parts of it stay, which nobody sees; the next writes as if nothing had been."""
    code, _ = end(signal.SIGKILL, "checkpoint.writer:Writer._finish", f"reshard {checkpoint} {bucket}/x")
    assert code == -signal.SIGKILL
    assert bucket.objects() == {}
    assert bucket.uploads() != []
    assert run(f"reshard {checkpoint} {bucket}/x").exit_code == 0
    assert verify(at(f"{bucket}/x")).sound


@pytest.mark.parametrize(
    ("command", "module", "name"),
    [
        ("reshard {0} {1}/x --tp 2 {2}", "store_output", "Uploads.complete"),
        ("export {0} {1}/x {2}", "store_attempt", "StoreAttempt._claim"),
    ],
)
def test_killed_while_it_commits(
    bucket: Bucket, checkpoint: Path, end: End, command: str, module: str, name: str
) -> None:
    end(signal.SIGKILL, f"checkpoint.{module}:{name}", command.format(checkpoint, bucket, ""))
    assert CLAIM in bucket.objects("x")
    assert not {MANIFEST, "config.json"} & set(bucket.objects("x"))
    result = run(f"inspect {bucket}/x")
    assert result.exit_code == 2
    assert "a folder that a command is about to fill, or was interrupted at" in result.stderr
    assert "exists" in run(command.format(checkpoint, bucket, "")).stderr
    result = run(command.format(checkpoint, bucket, "--force"))
    assert result.exit_code == 0, result.output
    assert verify(at(f"{bucket}/x")).sound
    assert CLAIM not in bucket.objects("x")


def test_killed_when_all_was_done(bucket: Bucket, checkpoint: Path, end: End) -> None:
    """The claim outlives the commit: the checkpoint is whole, and sound."""
    end(signal.SIGKILL, "checkpoint.store_attempt:StoreAttempt._put_last", f"reshard {checkpoint} {bucket}/x")
    assert CLAIM in bucket.objects("x")
    assert verify(at(f"{bucket}/x")).sound


def test_interrupted_when_all_was_done(bucket: Bucket, checkpoint: Path, end: End) -> None:
    code, said = end(signal.SIGINT, "convert.transfer:reshard", f"reshard {checkpoint} {bucket}/x")
    assert code == 130
    assert said.endswith(f"error: interrupted; {bucket}/x is written, and whole\n")
    assert verify(at(f"{bucket}/x")).sound


def test_a_store_without_conditions(bucket: Bucket, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, it is looked first whether something is there."""

    class Old:
        def __init__(self, fs: Any) -> None:
            self.fs = fs

        def pipe_file(self, path: str, value: bytes) -> None:
            self.fs.pipe_file(path, value)

        def __getattr__(self, name: str) -> Any:
            if name == "_pipe_file":
                raise AttributeError(name)
            return getattr(self.fs, name)

    attempt = StoreAttempt(at("memory://old/x"), not_a_checkpoint)
    attempt.folder.tree.__dict__["fs"] = Old(attempt.folder.tree.fs)
    attempt._create("name", b"1")
    attempt._create("name", b"1")
    with pytest.raises(CheckpointError, match="another process has just written there"):
        attempt._create("name", b"2")
    attempt.abort()


def test_several_ranks_do_not_write_to_a_store(config_of: Callable[[], Mapping[str, Any]]) -> None:
    from neoxkit.checkpoint.writer import Writer

    with pytest.raises(CheckpointError, match="several processes cannot write to a store"):
        Writer(at("memory://x/y"), [], **config_of(), world=2, attempt="abcdef")


@pytest.fixture
def config_of(checkpoint: Path) -> Callable[[], Mapping[str, Any]]:
    """What a Writer is told."""
    return lambda: {"config": Checkpoint.open(checkpoint).config, "mesh": {}}


def test_a_run_is_not_saved_to_a_store() -> None:
    from neoxkit.errors import ConfigError
    from neoxkit.train.saving.saver import run_folder

    assert run_folder("runs/a") == Path("runs/a")
    with pytest.raises(ConfigError, match="a run is saved to a disk only"):
        run_folder("s3://bucket/run")
