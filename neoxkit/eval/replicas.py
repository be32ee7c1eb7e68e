"""A model that is asked, in this process or in several that each hold a copy of it (data parallel).

Asks are dealt to whoever has room, so how many there are changes no answer, only the time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Protocol, TypeAlias

import torch

from neoxkit.data.tokenizer import Tokenizer
from neoxkit.data.tokenizer.kinds import open_tokenizer
from neoxkit.errors import NeoxkitError
from neoxkit.eval.desk import Answer, Ask, Desk, answered
from neoxkit.log import silence
from neoxkit.machine import cores
from neoxkit.serve.interrupts import interrupts
from neoxkit.serve.start import Serving

Opening: TypeAlias = Callable[[], Serving]
"""Opens a model; it is sent to other processes."""

DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Facts:
    """What an asker has to know of a model: `context` in tokens, the dtype that weights are kept in, as safetensors
    spells it, the tokenizer's folder, and the ids that end an answer."""

    name: str
    context: int
    vocab: int
    dtype: str
    tokenizer: str
    stop_ids: frozenset[int]

    @staticmethod
    def of(serving: Serving) -> Facts:
        """Those of a model that is open."""
        engine = serving.engine
        return Facts(serving.name, engine.context, engine.vocab, serving.kept, str(serving.folder), serving.stop_ids)


class Model(Protocol):
    """What can be asked."""

    facts: Facts
    tokenizer: Tokenizer

    def answered(self, asks: Iterable[tuple[int, Ask]]) -> Iterator[tuple[int, Answer]]:
        """The answers to asks with numbers, each as it is done."""

    def __enter__(self) -> Model: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_model(opening: Opening, copies: int = 1) -> Model:
    """A model, as so many copies. Raises what opening it raises."""
    return Local(opening()) if copies == 1 else Replicas(opening, copies)


class Local:
    """A model in this process."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self.facts, self.tokenizer = Facts.of(serving), serving.tokenizer

    def answered(self, asks: Iterable[tuple[int, Ask]]) -> Iterator[tuple[int, Answer]]:
        """As Model."""
        with interrupts() as interrupted:
            yield from answered(Desk(self._serving.engine, self.tokenizer), asks, interrupted)

    def __enter__(self) -> Local:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._serving.close()


class Lost(NeoxkitError):  # noqa: N818 (what became of a copy)
    """A process that held a copy of the model has ended."""


class Replicas:
    """Copies of a model, each in a process of its own."""

    def __init__(self, opening: Opening, copies: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._ends: list[Connection] = []
        for number in range(copies):
            mine, its = context.Pipe()
            process = context.Process(target=replica, args=(its, opening, number, copies), daemon=False)
            process.start()
            its.close()
            self._processes.append(process)
            self._ends.append(mine)
        try:
            found = [self._received(end) for end in self._ends]
            self.facts = next(each for each in found if isinstance(each, Facts))
        except BaseException:
            self._close()
            raise
        self.tokenizer = open_tokenizer(self.facts.tokenizer)

    def answered(self, asks: Iterable[tuple[int, Ask]]) -> Iterator[tuple[int, Answer]]:
        """As Model. Raises Lost when a process has ended, and what it could not answer."""
        waiting = iter(asks)
        following = next(waiting, None)
        open_ = dict.fromkeys(self._ends, 0)
        rooms: dict[Connection, int] = {end: int(self._exchanged(end)) for end in self._ends}
        while following is not None or any(open_.values()):
            for end in self._ends:
                batch: list[tuple[int, Ask]] = []
                while following is not None and open_[end] + len(batch) < rooms[end]:
                    batch.append(following)
                    following = next(waiting, None)
                if batch:
                    self._send(end, batch)
                    open_[end] += len(batch)
            for ready in wait([end for end in self._ends if open_[end]]):
                assert isinstance(ready, Connection)
                done = self._received(ready)
                assert isinstance(done, list)
                open_[ready] -= len(done)
                yield from done

    def _exchanged(self, end: Connection) -> int:
        """How many asks a copy takes at once."""
        self._send(end, [])
        room = self._received(end)
        assert isinstance(room, int)
        return room

    def _send(self, end: Connection, batch: list[tuple[int, Ask]]) -> None:
        try:
            end.send(batch)
        except OSError:
            raise self._lost(end) from None

    def _received(self, end: Connection) -> object:
        try:
            found = end.recv()
        except (EOFError, OSError):
            raise self._lost(end) from None
        if isinstance(found, BaseException):
            raise found
        return found

    def _lost(self, end: Connection) -> Lost:
        number = self._ends.index(end)
        self._processes[number].join(5)
        code = self._processes[number].exitcode
        return Lost(f"copy {number} of the model has ended (exit status {code})", "is there enough memory for all?")

    def __enter__(self) -> Replicas:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join(10)
            if process.exitcode is None:
                process.kill()
                process.join()


def replica(end: Connection, opening: Opening, number: int, copies: int) -> None:
    """A copy's process: opens the model, and answers what comes until the other end is closed.

    An empty batch asks how many asks it takes at once.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides when it is over
    share(number, copies)
    if number:
        silence()
    with suppress(EOFError, OSError):
        try:
            with opening() as serving:
                end.send(Facts.of(serving))
                _answer(end, Desk(serving.engine, serving.tokenizer))
        except NeoxkitError as error:
            end.send(error)


def _answer(end: Connection, desk: Desk) -> None:
    """Take asks and send answers, until the other end is closed, which raises EOFError."""
    while True:
        while not desk.open or end.poll():
            batch = end.recv()
            if not batch:
                end.send(max(desk.room, 1))
            for number, ask in batch:
                desk.take(number, ask)
        if done := desk.tick():
            end.send(done)


def share(number: int, copies: int) -> None:
    """Take this copy's part of the machine: of its processors, or of its GPUs."""
    if "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, cores() // copies)
        torch.set_num_threads(threads)
    given = os.environ.get(DEVICES)
    devices = given.split(",") if given else [str(each) for each in range(torch.cuda.device_count())]
    if devices and (each := len(devices) // copies):
        os.environ[DEVICES] = ",".join(devices[number * each : (number + 1) * each])
