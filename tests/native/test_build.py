"""The library is compiled once, and what cannot be compiled is done without."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from neoxkit.native import build

TELL = "from neoxkit.native.build import library, reason; print(library() is not None, reason())"


def told(folder: Path, **variables: str) -> str:
    """What a process says of its library whose cache is this folder."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder), "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run([sys.executable, "-c", TELL], env=environment, capture_output=True, text=True).stdout.strip()


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_it_is_compiled_once(tmp_path: Path) -> None:
    assert build.library() is not None, build.reason()
    assert told(tmp_path) == "True"
    (made,) = (tmp_path / "neoxkit").iterdir()
    before = made.stat().st_mtime_ns
    assert told(tmp_path) == "True"
    assert made.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"NEOXKIT_NATIVE": "0"}, "NEOXKIT_NATIVE is 0"),
        ({"CXX": "no-such-compiler"}, "no-such-compiler: no such file or directory"),
        ({"CXX": "false"}, "false: failed"),
    ],
    ids=["off", "missing", "broken"],
)
def test_without(variables: dict[str, str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"XDG_CACHE_HOME": str(tmp_path), **variables}.items():
        monkeypatch.setenv(name, value)
    assert build._outcome.__wrapped__() == (None, why)
    assert not [each for each in tmp_path.rglob("*") if each.is_file()], "nothing half made is left"


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    library, reason = build._outcome.__wrapped__()
    assert library is None
    assert "it cannot be made or loaded" in reason
