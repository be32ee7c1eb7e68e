"""A process that works in forks, each of which may be killed at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Steps:
    """Calls that are counted, before the `last` of which the process tells its name and kills itself; 0: none is."""

    def __init__(self, last: int) -> None:
        self.count, self._last = 0, last

    def watch(self, owner: Any, *names: str) -> None:
        """Count the calls of functions of a module, or methods of a class."""
        for name in names:
            setattr(owner, name, self._watched(name, getattr(owner, name)))

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def act(*args: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self._last:
                print(name.strip("_"), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        return act


class Saver:
    """A process with everything loaded, which forks for each save, import, export, ... (see laws/crash_writer.py)."""

    def __init__(self, script: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])),
            },
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
