"""Benchmarks of a run's checkpoints, by `neoxkit eval --watch` in a process beside the first rank.

It reads checkpoints, as anyone could: so it works for every mesh and engine, and training waits for nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from neoxkit.config.run import RunConfig
from neoxkit.log import note
from neoxkit.parallel.world import ALONE, World

LOG = "evaluation.log"
"""In the run's folder: what the process says."""

_JOB = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables of this job, which the process has no part in."""


def command_of(config: RunConfig, folder: Path) -> list[str] | None:
    """The command line; None where the configuration asks for no benchmarks."""
    wanted = config.evaluation.benchmarks
    if wanted is None:
        return None
    found = [sys.executable, "-m", "neoxkit", "eval", str(folder), "--watch", "--tasks", ",".join(wanted.tasks)]
    found += [word for each in wanted.include_path for word in ("--include-path", each)]
    found += [] if wanted.num_fewshot is None else ["--num-fewshot", str(wanted.num_fewshot)]
    found += [] if wanted.limit is None else ["--limit", str(wanted.limit)]
    return [*found, "--device", wanted.device, "--tp", str(wanted.tp)]


class Benchmarks:
    """The process, while a run goes on. It ends by itself when it has evaluated the run's last checkpoint.

    `complete` says whether the run came to its end.
    """

    def __init__(self, config: RunConfig, folder: Path, world: World = ALONE) -> None:
        """Only the first rank starts one."""
        self._command = command_of(config, folder) if world.first else None
        self._folder, self._alone = folder, world.size == 1
        self.complete = False
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Benchmarks:
        if self._command is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            environment = {name: value for name, value in os.environ.items() if name not in _JOB}
            with open(self._folder / LOG, "ab") as log:
                self._process = subprocess.Popen(
                    self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
                )
        return self

    def poll(self) -> Iterator[str]:
        """A warning, once, when the process has failed."""
        if self._process is not None and (code := self._process.poll()) is not None:
            self._process = None
            if code:
                yield f"warning: the benchmarks have ended: {self._last_line()} (see {self._folder / LOG})"

    def _last_line(self) -> str:
        lines = (self._folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].removeprefix("error: ") if lines else "they said nothing"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let a run that came to its end have its last scores; end the process of one that did not.

        A job of several ranks does not wait: the others would keep their devices.
        """
        if self._process is None:
            return
        if error is not None or not self.complete:
            self._process.terminate()
        elif self._alone:
            note(f"waiting for the benchmarks of the last checkpoint ({self._folder / LOG})")
        else:
            note(f"the benchmarks of the last checkpoint go on in process {self._process.pid} ({self._folder / LOG})")
            return
        self._process.wait()
        for line in self.poll():
            note(line)
