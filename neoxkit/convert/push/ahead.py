"""Files that are made in a thread, while others of them are being sent: two at a time are there. No torch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from queue import SimpleQueue

AT_A_TIME = 2
"""Files that are there at once: one that is being sent, and one that is being made."""


class Stopped(Exception):  # noqa: N818 (nobody's mistake)
    """What is being made is not wanted any more."""


class Ahead:
    """The names of files that `work` makes, each when it is whole. What `work` raises comes in place of the end.

    `work` is called in a thread with this object. It calls `begin` before each file, `check` now and
    then, and `hand_on` when a file is whole. A file may be removed when the next name is asked for.
    """

    def __init__(self, work: Callable[[Ahead], None]) -> None:
        self._work = work
        self._ready: SimpleQueue[str | BaseException | None] = SimpleQueue()
        self._room = threading.Semaphore(AT_A_TIME)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="export")

    def _run(self) -> None:
        try:
            self._work(self)
        except BaseException as error:  # noqa: BLE001 (it is raised where the names are taken)
            self._ready.put(error)
        else:
            self._ready.put(None)

    def begin(self) -> None:
        """Wait until there is room for another file. Raises Stopped when none is wanted."""
        self._room.acquire()
        self.check()

    def check(self) -> None:
        """Raise Stopped when nothing more is wanted."""
        if self._stopped.is_set():
            raise Stopped

    def hand_on(self, name: str) -> None:
        """A file is whole."""
        self._ready.put(name)

    def __iter__(self) -> Generator[str, None, None]:
        self._thread.start()
        try:
            while (found := self._ready.get()) is not None:
                if isinstance(found, BaseException):
                    raise found
                yield found
                self._room.release()
        finally:
            self._stopped.set()
            self._room.release()
            self._thread.join()
