"""The processes that a model is divided over: the first decides what is computed, and tells the others.

All that it sends is a row of integers for each pass, over gloo; whatever else goes between ranks is the model's own.
A rank that dies takes all others with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from socket import socket
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from neoxkit.parallel.world import ContactError, World, in_contact
from neoxkit.serve.runner import Integers, Pass

FIRST = 1024
"""Integers of the first message: its size, and what fits. Only a longer pass needs a second one."""

BEAT, END = 0, -1
"""Sizes that mean something else: nothing to do, and nothing more to come."""

GRACE = 5.0
"""Seconds that a rank has to notice that another is gone, before it is ended."""


class Runs(Protocol):
    """What runs passes: a Runner, or one that records them."""

    def run(self, what: Pass) -> Tensor:
        """Logits [R, V] after the tokens that are wanted."""


class Leader:
    """Rank 0: what it runs, all run."""

    def __init__(self, runner: Runs, world: World) -> None:
        self._runner, self._world = runner, world

    def run(self, what: Pass) -> Tensor:
        """Logits of a pass, computed by all ranks. Raises ContactError when one of them is gone."""
        if self._world.size == 1:
            return self._runner.run(what)
        with in_contact(self._world):
            row = what.pack()
            _send(len(row), row)
            return self._runner.run(what)

    def beat(self) -> None:
        """Let the others know that there is nothing to do, so that nobody waits too long. Raises as `run` does."""
        if self._world.size > 1:
            with in_contact(self._world):
                _send(BEAT)

    def end(self) -> None:
        """Let the others go."""
        if self._world.size > 1:
            _send(END)


def follow(runner: Runs, world: World) -> None:
    """What any other rank does: run what it is told until the end. Raises ContactError when the first one is gone."""
    with in_contact(world):
        while (row := _receive()) is not None:
            if len(row):
                runner.run(Pass.unpack(row))


def _send(size: int, row: Integers | None = None) -> None:
    message = torch.zeros(FIRST, dtype=torch.int64)
    message[0] = size
    numbers = torch.from_numpy(np.zeros(0, dtype=np.int64) if row is None else row)
    here = min(len(numbers), FIRST - 1)
    message[1 : 1 + here] = numbers[:here]
    dist.broadcast(message, src=0)
    if len(numbers) > here:
        dist.broadcast(numbers[here:].contiguous(), src=0)


def _receive() -> Integers | None:
    """The row that was sent; empty for a beat, None at the end."""
    message = torch.zeros(FIRST, dtype=torch.int64)
    dist.broadcast(message, src=0)
    size = int(message[0])
    if size == END:
        return None
    here = message[1 : 1 + size]
    if len(here) == size:
        return np.asarray(here.numpy())
    rest = torch.zeros(size - len(here), dtype=torch.int64)
    dist.broadcast(rest, src=0)
    return np.asarray(torch.cat([here, rest]).numpy())


class Followers:
    """The other ranks of a model that is divided on this machine, as processes of this one."""

    def __init__(self, size: int, arguments: Sequence[str]) -> None:
        """Start ranks 1 to `size` - 1: each runs `python -m neoxkit.serve.start` with these arguments."""
        with socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.environment = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self._ending = False
        self.processes = [self._start(rank, arguments) for rank in range(1, size)]
        threading.Thread(target=self._watch, daemon=True).start()

    def _start(self, rank: int, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        variables = {**os.environ, **self.environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-m", "neoxkit.serve.start", *arguments]
        # Its standard input ends when this process does, however that ends.
        return subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)

    def _watch(self) -> None:
        """End this process when a rank is gone and nobody has noticed: a GPU's collective would wait for ever."""
        while not self._ending:
            gone = [rank for rank, process in enumerate(self.processes, 1) if process.poll() is not None]
            if gone and not self._ending:
                time.sleep(GRACE)
                if not self._ending:
                    print(f"error: rank {gone[0]} has ended, and with it what it had of the model", file=sys.stderr)
                    os._exit(ContactError.exit_code)
            time.sleep(0.2)

    def close(self) -> None:
        """Wait for them; end those that do not."""
        self._ending = True
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def end_with(parent: Callable[[], bytes]) -> None:
    """End this process when its parent does: when `parent`, which reads from it, comes to an end."""

    def wait() -> None:
        parent()
        time.sleep(GRACE)
        os._exit(ContactError.exit_code)

    threading.Thread(target=wait, daemon=True).start()


def variables(of: Mapping[str, str]) -> bool:
    """Whether an environment tells of a job of several processes."""
    return int(of.get("WORLD_SIZE", "1")) > 1
