"""A process that works in forks, each of which may be killed at any moment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


class Saver:
    """A process with everything loaded, which forks for each save, import, export, ... (see laws/crash_writer.py)."""

    def __init__(self, script: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def begin(self, folder: Path, seed: int, kill_at: int = 0, act: str = "save") -> int:
        """Begin an act; returns the process to kill."""
        assert self.process.stdin is not None
        print(act, folder, seed, kill_at, file=self.process.stdin, flush=True)
        return int(self.line())

    def end(self) -> tuple[int, str]:
        """Wait for the end of a save: the signal that killed it (0 when none did), and what it said before."""
        said = ""
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        while not (line := self.line()).startswith("ended"):
            said = line
        return int(line.split()[1]), said

    def close(self) -> None:
        """Let it end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
