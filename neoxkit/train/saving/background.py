"""A process beside the training one, which writes checkpoints from a copy while training goes on.

The copy lies in memory that both processes map, and is used again for every checkpoint: a save stops
training for as long as it takes to fill it.
"""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import NamedTuple

import torch
from torch import Tensor

from neoxkit.errors import NeoxkitError
from neoxkit.log import silence
from neoxkit.spec import Box, Run
from neoxkit.train.saving.order import Order, Value

ALIGNMENT = 64
"""Bytes of a cache line: no tensor begins inside one."""

_PR_SET_PDEATHSIG = 1


class Place(NamedTuple):
    """Where in the shared memory a value lies."""

    name: str
    box: Box
    run: Run | None
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int


class Background:
    """Carries out orders one by one. The process is started with the first, and again when it died."""

    def __init__(self) -> None:
        self._child: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        self._memory: mmap.mmap | None = None
        self._descriptor = -1
        self.pinned = False
        self._busy = False

    @property
    def busy(self) -> bool:
        """Whether an order is under way, as far as was heard."""
        return self._busy and not (self._pipe is not None and self._pipe.poll())

    def submit(self, order: Order, values: Sequence[Value]) -> None:
        """Copy the values, and let the other process write them. `wait` comes before the next."""
        assert not self._busy, "one checkpoint at a time"
        places, size = _arrange(values)
        anew = self._memory is None or len(self._memory) < size
        if anew:
            self._allocate(size)
        assert self._memory is not None
        from_gpu = any(value.numbers.is_cuda for value in values)
        if from_gpu and not self.pinned:
            self.pinned = _pin(self._memory)
        for place, value in zip(places, values, strict=True):
            _view(self._memory, place).copy_(value.numbers.reshape(place.shape), non_blocking=True)
        if from_gpu:
            torch.cuda.synchronize()
        if self._child is None or not self._child.is_alive():
            self._start()
            anew = True
        assert self._pipe is not None
        assert self._child is not None
        self._busy = True
        with suppress(ConnectionError):  # it has just died, and `wait` will say so
            self._pipe.send((order, places, size if anew else None))
            if anew:
                assert self._child.pid is not None
                send_handle(self._pipe, self._descriptor, self._child.pid)

    def wait(self) -> str | None:
        """Wait until the order is carried out; why it failed, or None when it did not, or there was none."""
        if not self._busy:
            return None
        assert self._pipe is not None
        assert self._child is not None
        self._busy = False
        try:
            told: str | None = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._child.join()
            told = f"the process that wrote it ended with {self._child.exitcode}"
            self.stop()
        return told

    def stop(self) -> None:
        """End the process, whatever it does. What it was writing has no name, and the next save removes it."""
        if self._child is not None:
            self._child.kill()
            self._child.join()
        if self._pipe is not None:
            self._pipe.close()
        self._child, self._pipe, self._busy = None, None, False

    def close(self) -> None:
        """Wait, then end the process and give the memory back."""
        self.wait()
        self.stop()
        self._release()

    def _release(self) -> None:
        """Give the memory back."""
        if self._memory is None:
            return
        if self.pinned:
            torch.cuda.cudart().cudaHostUnregister(_address(self._memory))
        self._memory.close()
        os.close(self._descriptor)
        self._memory, self.pinned = None, False

    def _allocate(self, size: int) -> None:
        self._release()
        self._descriptor = _anonymous_file()
        os.ftruncate(self._descriptor, size)
        self._memory = mmap.mmap(self._descriptor, size)

    def _start(self) -> None:
        self.stop()
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._child = context.Process(target=_serve, args=(theirs, os.getpid()), name="checkpoints", daemon=True)
        self._child.start()
        theirs.close()


def _arrange(values: Sequence[Value]) -> tuple[list[Place], int]:
    """A place for each value, and the bytes of all."""
    places, size = [], 0
    for name, box, run, numbers in values:
        places.append(Place(name, box, run, numbers.dtype, tuple(numbers.shape), size))
        size += -(-numbers.nbytes // ALIGNMENT) * ALIGNMENT
    return places, max(size, 1)


def _view(memory: mmap.mmap, place: Place) -> Tensor:
    """A value in the shared memory."""
    count = torch.Size(place.shape).numel()
    if not count:
        return torch.empty(place.shape, dtype=place.dtype)
    return torch.frombuffer(memory, dtype=place.dtype, count=count, offset=place.offset).reshape(place.shape)


def _pin(memory: mmap.mmap) -> bool:
    """Let a GPU copy into the memory by itself, at the full speed of its bus; False where the system does not let it.

    It stays memory that both processes map: torch's own pinned memory could not be shared.
    """
    return int(torch.cuda.cudart().cudaHostRegister(_address(memory), len(memory), 0)) == 0


def _address(memory: mmap.mmap) -> int:
    return torch.frombuffer(memory, dtype=torch.uint8).data_ptr()


def _anonymous_file() -> int:
    """A descriptor of memory without a name: on Linux of memory indeed, which no mount limits as it does /dev/shm."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("neoxkit-checkpoint")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _serve(pipe: Connection, parent: int) -> None:
    """Carry out orders until the training process closes the pipe, or ends in whatever way."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # sent to the whole group: the training process decides
    _die_with(parent)
    silence()
    torch.set_num_threads(1)
    memory: mmap.mmap | None = None
    while True:
        try:
            order, places, size = pipe.recv()
        except EOFError:
            return
        if size is not None:
            descriptor = recv_handle(pipe)
            memory = mmap.mmap(descriptor, size)
            os.close(descriptor)
        assert memory is not None
        pipe.send(_fulfil(order, places, memory))


def _fulfil(order: Order, places: Sequence[Place], memory: mmap.mmap) -> str | None:
    """Why an order failed; None when it did not."""
    try:
        order.fulfil(Value(place.name, place.box, place.run, _view(memory, place)) for place in places)
    except NeoxkitError as error:
        return str(error)
    except OSError as error:
        return f"{error.strerror}: {error.filename}"
    return None


def _die_with(parent: int) -> None:
    """Let the system kill this process when its parent ends. (Where it is not Linux the pipe tells, a little later.)"""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
