"""Law 10 for training on several processes: whatever is killed, and whenever, nothing that was saved is lost.

Each job trains on tp 2 x dp 2 and saves every step, until it is killed; then it goes on. Every checkpoint that is
seen is whole, the newest is never older than before, and the weights at the end are those of a run that nobody
killed. NEOXKIT_KILLS is how many times something is killed (6 unless set).
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny_runs as runs
import torch

from neoxkit.checkpoint.folder import list_checkpoints, step_of
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.convert.verify import verify
from neoxkit.errors import CheckpointError
from neoxkit.parallel.world import ContactError

KILLS = int(os.environ.get("NEOXKIT_KILLS", "6"))
STEPS = 10
OPTIONS = (
    "model.mixer.heads=4",
    "model.mixer.head_dim=8",
    "mesh.tp=2",
    "mesh.dp=2",
    f"steps={STEPS}",
    "save.every=1",
    "save.keep_last=3",
    "batch.micro=2",
)


class Job:
    """The ranks of one job, which run in forks of a process that has everything loaded."""

    def __init__(self, server: subprocess.Popen[str], folder: Path, *overrides: str, **more: Any) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.server = server
        asked = {"folder": str(folder), "size": 4, "port": str(port), "overrides": [*OPTIONS, *overrides]}
        print(json.dumps({**asked, "file_limit": None, **more}), file=server.stdin, flush=True)
        self.ranks = [int(pid) for pid in self._line().split()]

    def _line(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline()

    def end(self) -> list[int]:
        """Wait for all ranks; their exit codes, of a signal its number below zero."""
        print(file=self.server.stdin, flush=True)
        return [int(code) for code in self._line().split()]


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    found = subprocess.Popen(
        [sys.executable, "-W", "ignore", Path(__file__).with_name("crash_train.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert found.stdout is not None
    assert found.stdout.readline() == "ready\n"
    yield found
    with found:  # closes its pipes, and waits
        pass


def told(folder: Path) -> str:
    """What the ranks said."""
    return "".join(log.read_text() for log in sorted(folder.glob("rank-*.log")))


@pytest.fixture(scope="module")
def unharmed(server: subprocess.Popen[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The last checkpoint of a run that nobody killed, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("unharmed")
    runs.write_tokens(folder)
    begun = time.monotonic()
    codes = Job(server, folder).end()
    assert codes == [0] * 4, told(folder)
    return folder / "run" / f"step-{STEPS:08d}", time.monotonic() - begun


def saved(folder: Path) -> int:
    """The newest step of a run; each of its checkpoints is whole."""
    newest = 0
    for path in list_checkpoints(folder / "run") if (folder / "run").is_dir() else ():
        assert not verify(path).findings, path
        newest = max(newest, step_of(path))
    return newest


def assert_as_unharmed(folder: Path, unharmed: Path) -> None:
    with Checkpoint.open(folder / "run" / unharmed.name) as ours, Checkpoint.open(unharmed) as theirs:
        for name in theirs.names():
            assert torch.equal(ours.read(name), theirs.read(name)), name
        assert ours.trainer_state() == theirs.trainer_state()
    left = [path.name for path in (folder / "run").iterdir() if path.name.startswith(".")]
    assert not left, left


def go_on_to_the_end(server: subprocess.Popen[str], folder: Path, unharmed: Path, *overrides: str) -> None:
    before = saved(folder)
    codes = Job(server, folder, *overrides).end()
    assert codes == [0] * 4, told(folder)
    assert f"step-{before:08d}" in told(folder) or before == 0
    assert_as_unharmed(folder, unharmed)


def test_ranks_that_are_killed(server: subprocess.Popen[str], unharmed: tuple[Path, float], tmp_path: Path) -> None:
    last, seconds = unharmed
    chance = random.Random(0)
    killed, number = 0, 0
    while killed < KILLS:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        runs.write_tokens(folder)
        newest = 0
        while killed < KILLS:
            job = Job(server, folder)
            time.sleep(chance.uniform(0.2, 1.0) * seconds)
            victims = job.ranks if chance.random() < 0.4 else [chance.choice(job.ranks)]
            for pid in victims:
                os.kill(pid, signal.SIGKILL)  # unless it has ended, and then waits to be asked about
            codes = job.end()
            assert set(codes) <= {0, -signal.SIGKILL, ContactError.exit_code}, told(folder)
            killed += 1
            before, newest = newest, saved(folder)
            assert newest >= before
            if newest == STEPS:
                break
        go_on_to_the_end(server, folder, last)


def writers_of(rank: int) -> list[psutil.Process]:
    """The process that writes for a rank, if it runs."""
    try:
        return [child for child in psutil.Process(rank).children() if "spawn_main" in " ".join(child.cmdline())]
    except psutil.Error:  # it has just ended
        return []


def test_writers_that_are_killed(server: subprocess.Popen[str], unharmed: tuple[Path, float], tmp_path: Path) -> None:
    chance = random.Random(1)
    runs.write_tokens(tmp_path)
    job = Job(server, tmp_path, "save.background=always", "logging.every=1")
    killed, until = 0, time.monotonic() + 60
    while killed < 3 and time.monotonic() < until:
        writers = [writer for pid in job.ranks for writer in writers_of(pid)]
        if len(writers) == 4 and "saved" in told(tmp_path):
            chance.choice(writers).kill()
            killed += 1
        time.sleep(0.2)
    assert job.end() == [0] * 4, told(tmp_path)
    assert killed
    assert "training goes on: the process that wrote it ended with -9" in told(tmp_path)
    assert saved(tmp_path) == STEPS
    assert_as_unharmed(tmp_path, unharmed[0])


def test_a_disk_that_is_full(server: subprocess.Popen[str], unharmed: tuple[Path, float], tmp_path: Path) -> None:
    runs.write_tokens(tmp_path)
    job = Job(server, tmp_path, "save.steps=[2]", file_limit=[3, 4096])
    assert set(job.end()) <= {CheckpointError.exit_code, -signal.SIGKILL}, told(tmp_path)
    assert "was not saved" in told(tmp_path)
    assert saved(tmp_path) == 0
    go_on_to_the_end(server, tmp_path, unharmed[0])
