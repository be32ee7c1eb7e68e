"""A run that is told to stop (SIGINT, SIGTERM, SIGHUP, SIGUSR1) ends its step, saves, and then stops."""

from __future__ import annotations

import os
import select
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from neoxkit.log import note


class Interrupt:
    """Remembers the signal that asked for a stop. A second SIGINT stops at once, as Ctrl-C always does.

    SIGHUP, which a closed terminal sends, is left alone where it is ignored: so `nohup` asks for it.
    SIGUSR1 is what schedulers are asked to send before a job's time is over.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._terminals: list[int] = []

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # Python delivers signals nowhere else
            self._terminals = [fd for fd in (1, 2) if os.isatty(fd)]
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._asked)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        try:
            note(f"{self.signal.name}: the run saves after this step, and stops")
        except OSError:
            self._leave_readers()

    def _leave_readers(self) -> None:
        """Write to nowhere what would go to a terminal, or through a pipe, that is gone: it must not stop the save."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for fd in (1, 2):
            if fd in self._terminals or broken(fd):
                os.dup2(nowhere, fd)
        os.close(nowhere)


def broken(fd: int) -> bool:
    """Whether nobody reads any more what is written there, as when an ssh connection has ended."""
    states = select.poll()
    states.register(fd, 0)
    return any(state & (select.POLLERR | select.POLLHUP) for _, state in states.poll(0))
