"""The processes of a job: which of them this one is, and what they agree on."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from neoxkit.errors import ConfigError, NeoxkitError

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others. A slow save, or a kernel that is compiled, may take minutes."""

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher sets in the environment of each process, as torchrun does; LOCAL_RANK too, for GPUs."""


@dataclass(frozen=True, slots=True)
class World:
    """This process among those of a job. What concerns all is decided by the first and told to the others.

    Every process must call the same methods in the same order.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks for all."""
        return self.rank == 0

    def agree(self, decide: Callable[[], T]) -> T:
        """What the first process decides, on every process. A NeoxkitError that it raises is raised by all."""
        if self.size == 1:
            return decide()
        told: list[Any] = [None, None]
        if self.first:
            try:
                told[0] = decide()
            except NeoxkitError as error:
                told[1] = error
        dist.broadcast_object_list(told, src=0)
        if told[1] is not None:
            raise told[1]
        found: T = told[0]
        return found

    def gather(self, value: T) -> list[T]:
        """What every process gives, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def highest(self, value: int) -> int:
        """The largest of the numbers that the processes give."""
        if self.size == 1:
            return value
        found = torch.tensor(value, device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found.item())

    def meet(self) -> None:
        """Wait for the others."""
        if self.size > 1:
            dist.barrier()


class ContactError(NeoxkitError):
    """Another process of the job has ended, or does not answer. Nobody's mistake: to start again may do."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


ALONE = World()
"""The only process of its job."""


def join(device: str = "cpu", environment: Mapping[str, str] = os.environ, timeout: timedelta = TIMEOUT) -> World:
    """Join the job that the environment tells of; ALONE when it tells of none, or of a single process.

    On a GPU the process takes the device of its local rank. Raises ConfigError for an environment
    that is incomplete, or when the others cannot be reached in time.
    """
    if int(environment.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    if missing := [name for name in VARIABLES if name not in environment]:
        raise ConfigError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']}, and {', '.join(missing)} is not set",
            "start the processes with `neoxkit train`, torchrun, srun or mpirun",
        )
    world = World(int(environment["RANK"]), int(environment["WORLD_SIZE"]), int(environment.get("LOCAL_RANK", "0")))
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda:
        if world.local_rank >= torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise ConfigError(
                f"rank {world.rank} is process {world.local_rank} of its node, which has {found} GPUs",
                "start one process for each GPU",
            )
        torch.cuda.set_device(world.local_rank)
    if not dist.is_initialized():
        # Objects are told over gloo, whatever the device: NCCL carries tensors of a GPU only.
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                rank=world.rank,
                world_size=world.size,
                timeout=timeout,
                device_id=torch.device("cuda", world.local_rank) if cuda else None,
            )
        except (dist.DistError, RuntimeError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise ConfigError(
                f"rank {world.rank} does not reach the others at {environment['MASTER_ADDR']}:"
                f"{environment['MASTER_PORT']} ({first})",
                "check that the first node's address and port can be reached",
            ) from None
    return world


@contextmanager
def in_contact(world: World) -> Iterator[None]:
    """Turn what torch raises when another process is gone, or does not answer in time, into a NeoxkitError."""
    try:
        yield
    except RuntimeError as error:  # gloo has no kind of its own
        if world.size == 1 or not any(sign in str(error) for sign in _LOST):
            raise
        # "[/path/of/gloo/pair.cc:537] Read error [127.0.0.1]:1065: Connection reset by peer. This is typically ..."
        said = re.sub(r"^\[[^]]*\]\s*", "", str(error).splitlines()[0]).split(". ")[0]
        raise ContactError(
            f"rank {world.rank} lost contact with the others ({said})",
            "look at what the rank that ended first has said; the same command goes on from the newest checkpoint",
        ) from error


_LOST = ("gloo", "NCCL", "Connection", "timed out", "Timed out", "Timeout")
