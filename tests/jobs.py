"""Ranks for tests: so many processes over gloo, started once and given many things to do.

They are forked from a server that has loaded torch, neoxkit and DeepSpeed once for all tests of a session.
"""

from __future__ import annotations

import multiprocessing as standard_multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.multiprocessing as multiprocessing

from neoxkit.parallel.world import join

Act = Callable[..., Any]

HANG = 90.0
"""Seconds after which a rank gives up waiting for another."""


def run(size: int, act: Act, cases: Sequence[tuple[Any, ...]], folder: Path, seconds: float = 280.0) -> list[list[Any]]:
    """What `act(*case)` gives on each of `size` processes, by rank, for each case in turn.

    A case that fails ends the job, and its traceback, with the case, is the failure of the test. So is a rank that
    hangs or dies. What ranks say after all is done is not asked: gloo may abort at the interpreter's exit.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = folder / f"results-{port}"
    results.mkdir(parents=True)
    ended = ""
    with _ranks(size, (size, port, act, list(cases), results, dict(os.environ))) as context:
        deadline = time.monotonic() + seconds
        try:
            while not context.join(timeout=1.0):
                if time.monotonic() > deadline:
                    ended = f"not done after {seconds:.0f} s"
                    break
        except multiprocessing.ProcessException as error:
            ended = str(error)
    told = [path.read_text(encoding="utf-8") for path in sorted(results.glob("*.failure"))]
    silent = [rank for rank in range(size) if not (results / f"{rank}.pt").is_file()]
    if told or silent:
        raise AssertionError("\n".join(told) or f"ranks {silent} ended without a word: {ended}")
    return [torch.load(results / f"{rank}.pt", weights_only=False) for rank in range(size)]


@contextmanager
def _ranks(size: int, given: tuple[Any, ...]) -> Iterator[Any]:
    """The processes, which are gone afterwards."""
    standard_multiprocessing.set_forkserver_preload(["loaded"])
    # The server is not given this process's path (CPython 3.11), and is silent about what it cannot import.
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])):
        forkserver.ensure_running()
    context = multiprocessing.start_processes(_rank, given, nprocs=size, join=False, start_method="forkserver")
    try:
        yield context
    finally:
        for process in context.processes:
            process.kill()
            process.join()


def _rank(rank: int, size: int, port: int, act: Act, cases: list[Any], results: Path, environ: dict[str, str]) -> None:
    """One process: do all, write down what came of it, and leave without the interpreter's teardown."""
    torch.set_num_threads(1)
    os.environ.update(environ)  # that of the server is of when it was started
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    code, doing, found = 1, "at the start", []
    try:
        assert "loaded" in sys.modules, "the server has not loaded what it should"
        world = join("cpu", timeout=timedelta(seconds=HANG))
        for number, case in enumerate(cases):
            doing = f"case {number}, {str(case)[:1000]}"
            found.append(act(*case))
        aside = results / f"{rank}.partial"
        torch.save(found, aside)
        aside.rename(results / f"{rank}.pt")
        code, doing = 0, "at the end"
        world.meet()
    except BaseException:
        if code:
            (results / f"{rank}.failure").write_text(f"rank {rank}, {doing}:\n{traceback.format_exc()}", "utf-8")
        raise
    finally:
        os._exit(code)
