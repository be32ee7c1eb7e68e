"""Packages that only some tests need, installed aside once and kept in the user's cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "neoxkit-tests"

WEB = ("requests", "urllib3", "idna", "certifi", "charset-normalizer")  # transformers 5 asks the hub by other means
TRANSFORMERS = {
    "4.40.2": ("transformers==4.40.2", "tokenizers==0.19.1", "huggingface_hub==0.23.4", *WEB),
    "4.46.3": ("transformers==4.46.3", "tokenizers==0.20.3", "huggingface_hub==0.26.5", *WEB),
    "4.57.6": ("transformers==4.57.6", "tokenizers==0.22.2", "huggingface_hub==0.36.0", *WEB),
}
"""Old releases of transformers, by their version, and what each needs that the environment of the tests has not."""


def cached(name: str) -> Path:
    """A folder in the cache for this version of Python; it may not be there yet."""
    return CACHE / f"{name}-py{sys.version_info.major}.{sys.version_info.minor}"


def installed(name: str, requirements: Sequence[str]) -> Path:
    """A folder for PYTHONPATH with these packages and nothing that they depend on.

    Skips the test, saying why, when pip cannot install them.
    """
    folder = cached(name)
    if folder.is_dir():
        return folder
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",
        "--no-deps",
        "--target",
        str(aside),
        *requirements,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["pip said nothing"]
            pytest.skip(f"pip cannot install {', '.join(requirements)}: {lines[-1]}")
        put(aside, folder)
    except subprocess.TimeoutExpired:
        pytest.skip(f"pip took too long to install {', '.join(requirements)}")
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def put(aside: Path, folder: Path) -> None:
    """Name a finished folder; another process may have been quicker with the same."""
    try:
        aside.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
