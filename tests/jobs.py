"""Jobs of several processes for the tests of training: started once, and given many things to do."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from neoxkit.parallel.world import join

Act = Callable[..., Any]


def run(size: int, act: Act, cases: Sequence[tuple[Any, ...]], folder: Path) -> list[list[Any]]:
    """What `act(*case)` gives on each of `size` processes, by rank, for each case in turn.

    A case that fails ends the job, and its traceback, with the case, is the failure of the test.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = folder / f"results-{port}"
    results.mkdir(parents=True)
    failures = multiprocessing.get_context("spawn").SimpleQueue()
    context = multiprocessing.spawn(_rank, (size, port, act, list(cases), results, failures), nprocs=size, join=False)
    try:
        while not context.join():
            pass
    except multiprocessing.ProcessException:
        told = failures.get() if not failures.empty() else None
        if told is None and all((results / f"{rank}.pt").is_file() for rank in range(size)):
            pass  # gloo may abort at the interpreter's exit, after all work is done
        else:
            raise AssertionError(told or "a process died without a word") from None
    return [torch.load(results / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _rank(rank: int, size: int, port: int, act: Act, cases: list[Any], results: Path, failures: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    world = join("cpu")
    found = []
    for case in cases:
        try:
            found.append(act(*case))
        except BaseException:
            failures.put(f"rank {rank}, case {case}:\n{traceback.format_exc()}")
            raise
    aside = results / f"{rank}.partial"
    torch.save(found, aside)
    aside.rename(results / f"{rank}.pt")
    world.meet()
    dist.destroy_process_group()
