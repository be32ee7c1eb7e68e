"""Compiles decode.cpp for the processor at hand when it is first needed, and keeps what came of it.

Nothing needs it: without a compiler torch computes the same, slower.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch  # noqa: F401 (its OpenMP is what the library finds its threads in)

from neoxkit.native.codes import definitions

SOURCE = Path(__file__).with_name("decode.cpp")

COMPILE = (
    *["-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-c"],
    *definitions(),
)

SWITCH = "NEOXKIT_NATIVE"
"""The environment variable that, as 0, says to do without."""


class BuildError(Exception):
    """There is no library; why, in a line."""


def library() -> ctypes.CDLL | None:
    """The library, or None where there is none: `reason` tells why."""
    return _outcome()[0]


def reason() -> str:
    """Why there is no library; empty where there is one."""
    return _outcome()[1]


@cache
def _outcome() -> tuple[ctypes.CDLL | None, str]:
    """Tried once: a compiler may fail slowly."""
    try:
        return _load(), ""
    except BuildError as error:
        return None, str(error)


def _load() -> ctypes.CDLL:
    """The library, compiled where that was not done yet. Raises BuildError."""
    if os.environ.get(SWITCH) == "0":
        raise BuildError(f"{SWITCH} is 0")
    compiler = shlex.split(os.environ.get("CXX") or "g++")
    version = _run([*compiler, "--version"])
    try:
        texts = [each.read_text() for each in (SOURCE, *sorted(SOURCE.parent.glob("*.h")))]
        key = hashlib.sha256("\n".join((*texts, *COMPILE, version, _processor())).encode()).hexdigest()[:20]
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "neoxkit"
        path = folder / f"decode-{key}.so"
        if not path.is_file():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _compile(compiler, path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError) as error:  # RuntimeError: nobody knows where the home folder is
        raise BuildError(f"it cannot be made or loaded: {error}") from None


def _compile(compiler: list[str], path: Path) -> None:
    """Other processes see a whole library or none.

    What it needs of OpenMP is left open when it is linked: it finds that of torch, and so the same threads. A
    library of its own would be a second set of them.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as folder:
        parts, whole = f"{folder}/decode.o", f"{folder}/decode.so"
        _run([*compiler, *COMPILE, str(SOURCE), "-o", parts])
        _run([*compiler, "-shared", parts, "-o", whole])
        os.replace(whole, path)


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    except OSError as error:
        raise BuildError(f"{command[0]}: {(error.strerror or str(error)).lower()}") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr or "").strip().splitlines()
        raise BuildError(f"{command[0]}: {said[0] if said else 'failed'}") from None
    except subprocess.TimeoutExpired:
        raise BuildError(f"{command[0]} took too long") from None


def _processor() -> str:
    """What `-march=native` depends on: a home folder may be on machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name", "CPU "))}))
