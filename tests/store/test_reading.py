"""Objects read in ranges, ahead of what is asked for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neoxkit.checkpoint import store_input
from neoxkit.checkpoint.safetensors_file import build_header, read_header
from neoxkit.checkpoint.store import StorePath, place
from neoxkit.checkpoint.store_input import StoreFile, on_disk
from neoxkit.errors import CheckpointError

DATA = np.random.default_rng(0).integers(0, 256, 10_000, np.uint8)


@pytest.fixture(scope="module")
def small() -> Iterator[StorePath]:
    """An object, and a world in which 100 bytes are many."""
    fsspec.filesystem("memory").pipe_file("/reading/data", DATA.tobytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_input, "RANGE", 100)
        patch.setattr(store_input, "AHEAD", 1600)
        patch.setattr(store_input, "_ONE_AHEAD", 800)
        patch.setattr(store_input, "_LEAST", 10)
        yield place("memory://reading/data")  # type: ignore[misc]


def read(file: StoreFile, at: int, size: int) -> np.ndarray:
    """Bytes of a file, which must be there."""
    room = np.zeros(size, np.uint8)
    assert file.read(room, at)
    return room


SPANS = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 2000)), max_size=12)


@given(SPANS)
def test_any_place_in_any_order(small: StorePath, spans: list[tuple[int, int]]) -> None:
    file = StoreFile(small)
    for at, size in spans:
        room = np.zeros(size, np.uint8)
        assert file.read(room, at) == (at + size <= DATA.size)
        if at + size <= DATA.size:
            assert (room == DATA[at : at + size]).all()
    file.close()


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(0, 100))
def test_in_order(small: StorePath, sizes: list[int], gap: int) -> None:
    file, at = StoreFile(small), 0
    for size in sizes:
        if at + size > DATA.size:
            break
        assert (read(file, at, size) == DATA[at : at + size]).all()
        at += size + gap
    file.close()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The ranges that are asked for."""
    found: list[tuple[int, int]] = []
    fetch = StorePath.fetch

    def noted(self: StorePath, first: int, last: int) -> bytes:
        found.append((first, last))
        return fetch(self, first, last)

    monkeypatch.setattr(StorePath, "fetch", noted)
    return found


@pytest.mark.parametrize("size", [7, 64, 100, 500])
def test_nothing_is_fetched_twice(small: StorePath, asked: list[tuple[int, int]], size: int) -> None:
    file = StoreFile(small)
    for at in range(0, DATA.size, size):
        read(file, at, min(size, DATA.size - at))
    file.close()
    assert sorted(asked)[0][0] == 0
    assert all(a[1] == b[0] for a, b in zip(sorted(asked), sorted(asked)[1:], strict=False))
    assert max(asked)[1] == DATA.size
    assert len(asked) <= DATA.size // 100 * 2 + 2


def test_two_threads_that_share_the_work(small: StorePath, asked: list[tuple[int, int]]) -> None:
    """As verify reads: spans in order, but not quite."""
    file = StoreFile(small)
    pending: deque[tuple[int, Future[np.ndarray]]] = deque()
    with ThreadPoolExecutor(2) as threads:
        for at in range(0, 10_000, 25):
            pending.append((at, threads.submit(read, file, at, 25)))
            if len(pending) > 4:
                first, job = pending.popleft()
                assert (job.result() == DATA[first : first + 25]).all()
    file.close()
    assert sum(last - first for first, last in asked) < 1.2 * DATA.size


def test_what_is_ahead_is_bounded(small: StorePath, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many objects at once share what may be in memory."""
    files = [StoreFile(small) for _ in range(16)]
    most = 0
    for at in range(0, 9_000, 50):
        for file in files:
            read(file, at, 50)
        ahead = sum(last - max(first, at) for file in files for first, last, _ in file._coming if last > at)
        most = max(most, ahead)
    assert most <= 2 * 1600 + 16 * 100
    for file in files:
        file.close()


def test_the_next_ranges_are_on_their_way(small: StorePath, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, most, lock, fetch = 0, 0, threading.Lock(), StorePath.fetch

    def slow(self: StorePath, first: int, last: int) -> bytes:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        threading.Event().wait(0.01)
        with lock:
            at_once -= 1
        return fetch(self, first, last)

    monkeypatch.setattr(StorePath, "fetch", slow)
    file = StoreFile(small)
    for at in range(0, DATA.size, 100):
        read(file, at, 100)
    file.close()
    assert 4 <= most <= 9


def test_an_object_that_became_shorter(small: StorePath) -> None:
    file = StoreFile(small)
    fsspec.filesystem("memory").pipe_file("/reading/data", DATA[:5000].tobytes())
    try:
        assert not file.read(np.zeros(2000, np.uint8), 4500)
    finally:
        fsspec.filesystem("memory").pipe_file("/reading/data", DATA.tobytes())


@pytest.mark.parametrize("keys", [1, 5000])
def test_a_header(keys: int, tmp_path: Path) -> None:
    """Long headers take a second request."""
    tensors = {f"tensor-{key:040}": ("U8", (1,)) for key in range(keys)}
    raw, header = build_header(tensors)
    assert (len(raw) > 256 << 10) == (keys > 1)
    fsspec.filesystem("memory").pipe_file("/reading/x.safetensors", raw + bytes(keys))
    assert read_header(place("memory://reading/x.safetensors")) == header
    fsspec.filesystem("memory").pipe_file("/reading/short.safetensors", raw)
    with pytest.raises(CheckpointError, match=r"memory://reading/short\.safetensors: .* cut short"):
        read_header(place("memory://reading/short.safetensors"))


def test_a_copy_on_the_disk(small: StorePath, tmp_path: Path) -> None:
    with on_disk(tmp_path) as same:
        assert same == tmp_path
    with on_disk(small.parent) as copy:
        assert (copy / "data").read_bytes() == DATA.tobytes()
    assert not copy.exists()


def test_paths() -> None:
    path = place("s3://bucket/run/step-1")
    assert isinstance(path, StorePath)
    model = path / "model" / "a.safetensors"
    assert str(model) == "s3://bucket/run/step-1/model/a.safetensors"
    assert (model.name, model.suffix, model.parent) == ("a.safetensors", ".safetensors", path / "model")
    assert model.relative_to(path).as_posix() == "model/a.safetensors"
    assert path.parent == place("s3://bucket/run")
    assert (path.parent.name, path.parent.parent) == ("run", place("s3://bucket"))
    assert place("s3://bucket/run/") == place("s3://bucket/run")
    assert place("folder/x") == Path("folder/x")
    assert place("file:///folder/x") == Path("/folder/x")
    assert place("hf://org/name") == Path("hf://org/name")
    with pytest.raises(CheckpointError, match="only a folder of a disk"):
        Path(path)
