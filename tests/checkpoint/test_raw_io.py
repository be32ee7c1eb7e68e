"""Long transfers in chunks, and what they leave in the system's memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from neoxkit.checkpoint import raw_io
from neoxkit.checkpoint.raw_io import CHUNK, InputFile, write_at


@pytest.fixture
def data() -> np.ndarray:
    """Several chunks and a rest."""
    return np.random.default_rng(0).integers(0, 256, 3 * CHUNK + 17, np.uint8)


def test_what_is_written_is_read(tmp_path: Path, data: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_io, "_STRIDE", CHUNK)
    path = tmp_path / "file"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    write_at(fd, data, 5)
    write_at(fd, b"hello", 0)
    os.fsync(fd)
    raw_io.forget(fd)
    os.close(fd)
    assert path.read_bytes() == b"hello" + data.tobytes()
    for kept in (False, True):
        file = InputFile(path)
        monkeypatch.setattr(file, "_kept", kept)
        for first, stop in ((0, len(data)), (CHUNK - 3, 2 * CHUNK + 1), (7, 7), (0, 1)):
            room = np.empty(stop - first, np.uint8)
            assert file.read(room, first + 5)
            assert (room == data[first:stop]).all()
        assert not file.read(np.empty(9, np.uint8), len(data))
        file.close()


def test_short_transfers_go_on(tmp_path: Path, data: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may take, or give, less than it was asked to."""
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, part, at: pwrite(fd, part[:1000], at))
    monkeypatch.setattr(os, "preadv", lambda fd, parts, at, *flags: preadv(fd, [parts[0][:1001]], at, *flags))
    fd = os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY)
    write_at(fd, data, 0)
    os.close(fd)
    room = np.empty_like(data)
    assert InputFile(tmp_path / "file").read(room, 0)
    assert (room == data).all()


def test_a_link_is_followed_only_when_it_may_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"hello")
    (tmp_path / "link").symlink_to("file")
    room = np.empty(5, np.uint8)
    assert InputFile(tmp_path / "link", links=True).read(room, 0)
    assert room.tobytes() == b"hello"
    with pytest.raises(OSError, match="symbolic links"):
        InputFile(tmp_path / "link")


def test_a_file_that_nobody_has_is_closed(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    before = os.listdir("/dev/fd")
    dropped, closed = InputFile(tmp_path / "x"), InputFile(tmp_path / "x")
    assert len(os.listdir("/dev/fd")) == len(before) + 2
    closed.close()
    closed.close()
    del dropped
    assert os.listdir("/dev/fd") == before


def test_a_file_that_was_in_memory_stays_there(tmp_path: Path, data: np.ndarray) -> None:
    """Others may need it. (Whether one that was not stays is the system's business, and speed.)"""
    path = tmp_path / "file"
    path.write_bytes(data.tobytes())
    if not hasattr(os, "RWF_NOWAIT"):
        pytest.skip("this system does not tell what is in memory")
    for _ in range(2):
        fd = os.open(path, os.O_RDONLY)
        assert raw_io._in_memory(fd)
        os.close(fd)
        file = InputFile(path)
        file.read(np.empty_like(data), 0)
        file.close()
