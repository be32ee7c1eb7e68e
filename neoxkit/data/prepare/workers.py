"""Worker processes that turn blocks into tokens, and the order in which their work comes back.

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
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import IO, Any, Protocol

from neoxkit.data.prepare.encode import Encoded, Encoder, Recipe
from neoxkit.data.text.pieces import Block
from neoxkit.errors import NeoxkitError

_LENGTH = struct.Struct("<Q")
_WAITING = 8 << 20  # bytes of text for each worker that may be read ahead of what is written
_MAIN = "import sys; sys.path[:] = sys.argv[1:]; from neoxkit.data.prepare.worker import main; main()"


class WorkerLostError(NeoxkitError):
    """A worker process ended before its work was done."""


class Workers(Protocol):
    """Those who encode blocks."""

    def encode(self, block: Block, limit: int | None) -> Future[Encoded]:
        """Begin a block, of which `limit` rows at most are wanted."""


def ordered(
    workers: Workers, blocks: Iterator[Block], number: int, limit: Callable[[], int | None]
) -> Iterator[tuple[Block, Encoded]]:
    """Blocks with what became of them, in order. `limit` tells how many more rows are wanted, None for all."""
    waiting: deque[tuple[Block, Future[Encoded]]] = deque()
    ahead = 0
    for block in blocks:
        if limit() == 0:
            break
        waiting.append((block, workers.encode(block, limit())))
        ahead += block.bytes
        while waiting and (len(waiting) > 2 * number or ahead > number * _WAITING or number == 1):
            block, coming = waiting.popleft()
            ahead -= block.bytes
            yield block, _within(workers, block, coming, limit())
    while waiting:
        block, coming = waiting.popleft()
        if limit() == 0:
            coming.cancel()
            continue
        yield block, _within(workers, block, coming, limit())


def _within(workers: Workers, block: Block, coming: Future[Encoded], limit: int | None) -> Encoded:
    """What became of a block, and of no more of its rows than are still wanted."""
    found = coming.result()
    return found if limit is None or found.rows <= limit else workers.encode(block, limit).result()


@contextmanager
def started(recipe: Recipe, number: int) -> Iterator[Workers]:
    """So many processes at work; of one, this."""
    if number == 1:
        with _one_core():
            yield _Here(recipe)
        return
    pool = _Pool(recipe, number)
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

    def __init__(self, recipe: Recipe) -> None:
        self._encoder = Encoder(recipe)

    def encode(self, block: Block, limit: int | None) -> Future[Encoded]:
        done: Future[Encoded] = Future()
        done.set_result(self._encoder.encode(block.pieces, limit))
        return done


class _Pool:
    """Child processes, and for each a thread of this one that waits for it."""

    def __init__(self, recipe: Recipe, number: int) -> None:
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._children: list[subprocess.Popen[bytes]] = []
        self._recipe = pickle.dumps(recipe, pickle.HIGHEST_PROTOCOL)
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

    def encode(self, block: Block, limit: int | None) -> Future[Encoded]:
        return self._threads.submit(self._ask, block, limit)

    def _ask(self, block: Block, limit: int | None) -> Encoded:
        child = self._idle.get()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            with self._lock:
                new = child.pid not in self._told
                self._told.add(child.pid)
            if new:
                send(child.stdin, self._recipe)
            send(child.stdin, pickle.dumps((block.pieces, limit), pickle.HIGHEST_PROTOCOL))
            answer = receive(child.stdout)
        except (OSError, EOFError, ValueError):
            answer = None
        if answer is None:
            self._idle.put(child)
            raise WorkerLostError(
                f"a worker process ended, with exit code {child.poll()}",
                "if memory ran out, use fewer --workers; the same command goes on where this one was",
            )
        self._idle.put(child)
        found: Any = pickle.loads(answer)
        if isinstance(found, Exception):
            raise found
        assert isinstance(found, Encoded)
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
