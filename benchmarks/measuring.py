"""A command in a process of its own, from a cold cache to stable storage: what it takes. For the scripts here."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

LAUNCHER = """
import json, os, subprocess, sys, time
begun = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
wall = time.perf_counter() - begun
print(json.dumps([os.waitstatus_to_exitcode(status), wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
"""
"""Runs and measures a command. A small process has to: a child's peak memory begins at what its parent holds."""


@dataclass(frozen=True)
class Taken:
    """What one process took: seconds of wall and CPU time, MB of memory at its peak."""

    wall: float
    cpu: float
    memory: float


def files(folder: Path) -> list[Path]:
    """Every file below a folder."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def flush(folder: Path) -> None:
    """Put every file of a folder, and the names in it, on stable storage."""
    for path in [*files(folder), *(each for each in folder.rglob("*") if each.is_dir()), folder, folder.parent]:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def forget(folder: Path) -> None:
    """Drop a folder's files from the system's cache."""
    for path in files(folder):
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def measure(command: Sequence[str], source: Path, result: Path, flushed: bool) -> Taken:
    """Run a process from a cold cache; `flushed` says whether what it writes is on stable storage when it ends."""
    shutil.rmtree(result, ignore_errors=True)
    os.sync()
    forget(source)
    done = subprocess.run([sys.executable, "-S", "-c", LAUNCHER, *command], capture_output=True, text=True, check=True)
    code, wall, cpu, memory = json.loads(done.stdout)
    if code:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    begun = time.perf_counter()
    if not flushed:
        flush(result)
    return Taken(wall + time.perf_counter() - begun, cpu, memory / 1e3)


def machine() -> dict[str, str]:
    """What this ran on, and with."""
    cpu = platform.processor() or platform.machine()
    about = Path("/proc/cpuinfo")
    if about.is_file():
        cpu = next((line.partition(": ")[2] for line in about.read_text().splitlines() if "model name" in line), cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    found = {"machine": f"{cpu}, {os.cpu_count()} CPUs, {memory:.0f} GB, {platform.system()} {platform.release()}"}
    found["python"] = platform.python_version()
    return found | {name: version(name) for name in ("neoxkit", "torch", "transformers", "safetensors")}
