"""Worker processes that blocks are given to, and the order in which their work comes back.

They are plain children, each with a pipe: when the command that started them is killed, the pipe breaks
and they end, which those of multiprocessing and concurrent.futures do not; and a script that calls
`tokenize` is not imported again.
"""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import IO, Any, Protocol, TypeVar

from neoxkit.data.text.pieces import Block
from neoxkit.data.text.sources import Source
from neoxkit.errors import NeoxkitError
from neoxkit.machine import cores

Answer = TypeVar("Answer")
Answer_co = TypeVar("Answer_co", covariant=True)

_LENGTH = struct.Struct("<Q")
_WAITING = 8 << 20  # bytes of text for each worker that may be read ahead of what is written
_WORTH = 2 << 20  # bytes of input for which a worker process is worth its start
_UNPACKED = 4  # what a byte of a compressed file is taken to be
_MAIN = "import sys; sys.path[:] = sys.argv[1:]; from neoxkit.data.prepare.worker import main; main()"


class WorkerLostError(NeoxkitError):
    """A worker process ended before its work was done."""


class Job(Protocol[Answer_co]):
    """What workers are for: a copy is sent to each."""

    def begin(self) -> Callable[..., Answer_co]:
        """What answers questions. It is called by one thread."""


class Workers(Protocol):
    """Those who answer questions, once they are told their job. `number` of them are processes."""

    number: int

    def tell(self, job: Job[Any]) -> None:
        """What they are for: said once, before the first question."""

    def ask(self, *question: Any) -> Future[Any]:
        """Begin to answer a question: the arguments of what the job began with."""


def number_of(asked: int | None, sources: Sequence[Source]) -> int:
    """How many worker processes: those asked for, or the cores, but no more than the inputs are worth.

    0 when one is not worth its start: this process does its work then.
    """
    if asked is not None and asked > 1:
        return asked
    most, size = asked or cores(), 0
    for source in sources:
        if source.bytes is None:
            return most
        size += source.bytes * (_UNPACKED if source.compression else 1)
    return min(most, size // _WORTH)


def ordered(
    workers: Workers, blocks: Iterator[Block], ask: Callable[[Block], Future[Answer]]
) -> Iterator[tuple[Block, Answer]]:
    """Blocks with what became of them, in order; so many are asked for ahead as keep the workers at work."""
    waiting: deque[tuple[Block, Future[Answer]]] = deque()
    ahead = 0
    for block in blocks:
        waiting.append((block, ask(block)))
        ahead += block.bytes
        while waiting and (len(waiting) > 2 * workers.number or ahead > workers.number * _WAITING):
            block, coming = waiting.popleft()
            ahead -= block.bytes
            yield block, coming.result()
    for block, coming in waiting:
        yield block, coming.result()


@contextmanager
def started(number: int) -> Iterator[Workers]:
    """So many processes at work; with 0, this one."""
    if number == 0:
        yield _Here()
        return
    pool = _Pool(number)
    try:
        yield pool
    finally:
        pool.close()


@contextmanager
def _one_core() -> Iterator[None]:
    """Keep the tokenizer from using the others: they were not asked for."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


class _Here:
    """This process."""

    number = 0

    def tell(self, job: Job[Any]) -> None:
        self._answer = job.begin()

    def ask(self, *question: Any) -> Future[Any]:
        done: Future[Any] = Future()
        with _one_core():
            done.set_result(self._answer(*question))
        return done


class _Pool:
    """Child processes, and for each a thread of this one that waits for it."""

    def __init__(self, number: int) -> None:
        self.number = number
        # A second thread, though idle, such as one that numpy's linear algebra keeps, makes each allocation slower,
        # and the tokenizer does little else: it took 6 % longer.
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OPENBLAS_NUM_THREADS": "1"}
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._children: list[subprocess.Popen[bytes]] = []
        self._told: set[int] = set()
        self._lock = threading.Lock()
        for _ in range(number):
            child = subprocess.Popen(
                [sys.executable, "-c", _MAIN, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the command, which ends them
            )
            self._children.append(child)
            self._idle.put(child)
        self._threads = ThreadPoolExecutor(number)

    def tell(self, job: Job[Any]) -> None:
        self._job = pickle.dumps(job, pickle.HIGHEST_PROTOCOL)

    def ask(self, *question: Any) -> Future[Any]:
        return self._threads.submit(self._ask, question)

    def _ask(self, question: tuple[Any, ...]) -> Any:
        child = self._idle.get()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            with self._lock:
                new = child.pid not in self._told
                self._told.add(child.pid)
            if new:
                send(child.stdin, self._job)
            send(child.stdin, pickle.dumps(question, pickle.HIGHEST_PROTOCOL))
            answer = receive(child.stdout)
        except (OSError, EOFError, ValueError):
            answer = None
        if answer is None:
            self._idle.put(child)
            raise WorkerLostError(
                f"a worker process ended, with exit code {child.poll()}",
                "if memory ran out, use fewer --workers, and give the command again",
            )
        self._idle.put(child)
        found: Any = pickle.loads(answer)
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> None:
        """End them all, whatever they are at."""
        for child in self._children:
            child.kill()
        self._threads.shutdown(cancel_futures=True)
        for child in self._children:
            child.wait()
            for pipe in (child.stdin, child.stdout):
                assert pipe is not None
                with suppress(BrokenPipeError):
                    pipe.close()


def send(pipe: IO[bytes], message: bytes) -> None:
    """Write a message and its length."""
    pipe.write(_LENGTH.pack(len(message)))
    pipe.write(message)
    pipe.flush()


def receive(pipe: IO[bytes]) -> bytes | None:
    """The next message; None when the other side is gone."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    message = pipe.read(length)
    return message if len(message) == length else None
