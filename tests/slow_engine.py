"""Engines that are interrupted; neoxkit in a process of its own, with one so slow that this can be done by hand."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from neoxkit.serve.engine import Engine
from neoxkit.serve.request import Event

SLOWLY = """
import shlex, sys, time
pause, command, terminal = float(sys.argv[1]), sys.argv[2], sys.argv[3:]
if terminal:
    import fcntl, termios
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from neoxkit.serve.engine import Engine
tick = Engine.tick

def slow_tick(self):
    time.sleep(pause)
    return tick(self)

Engine.tick = slow_tick
from neoxkit.cli import main
main(shlex.split(command))
"""
"""Each tick takes so many seconds longer. At a terminal, Ctrl-C there is for this process."""

WAIT = 60.0
"""Seconds after which something that must come is taken for missing."""


def slowly(command: str, pause: float = 0.05) -> list[str]:
    """The arguments of a process that does a command of neoxkit slowly."""
    return [sys.executable, "-c", SLOWLY, str(pause), command]


def press_ctrl_c(monkeypatch: pytest.MonkeyPatch, *ticks: int) -> None:
    """Send this process SIGINT in the middle of some of the ticks that its engines make from here on."""
    made = count(1)
    tick = Engine.tick

    def interrupted(engine: Engine) -> list[Event]:
        if next(made) in ticks:
            os.kill(os.getpid(), signal.SIGINT)
        return tick(engine)

    monkeypatch.setattr(Engine, "tick", interrupted)


class Terminal:
    """What a person at a terminal sees and types."""

    def __init__(self, command: str, pause: float = 0.05) -> None:
        self._ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1"}
        streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        self.process = subprocess.Popen(
            [*slowly(command, pause), "terminal"], **streams, env=environment, start_new_session=True
        )  # type: ignore[call-overload]
        os.close(theirs)
        self.seen = ""

    def type(self, keys: str) -> None:
        """Press keys: "\\r" is Enter, "\\x03" Ctrl-C, "\\x04" Ctrl-D."""
        os.write(self._ours, keys.encode())

    def interrupt_at_sign(self) -> None:
        """Press Ctrl-C once the program sleeps until a key is pressed.

        Between the sign and that sleep Python's readline only notes a signal, up to the next key.
        """
        until, asleep = time.monotonic() + WAIT, 0
        while asleep < 5:
            assert time.monotonic() < until, "the program does not come to rest"
            state = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2][0]
            asleep = asleep + 1 if state == "S" else 0
            time.sleep(0.05)
        self.type("\x03")

    def until(self, pattern: str) -> str:
        """What appears up to where a pattern is found, from where the last one ended."""
        until = time.monotonic() + WAIT
        while (found := re.search(pattern, self.seen)) is None:
            left = until - time.monotonic()
            assert left > 0, f"{pattern!r} does not appear: {self.seen!r}"
            ready = select.poll()  # select() takes no number above 1023, and many files are open here at times
            ready.register(self._ours, select.POLLIN)
            if ready.poll(left * 1000):
                self.seen += self._read()
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before

    def ended(self) -> int:
        """The exit code of a program that has ended, or does."""
        return self.process.wait(WAIT)

    def close(self) -> None:
        """Switch it off."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)

    def _read(self) -> str:
        try:
            return os.read(self._ours, 65536).decode("utf-8", errors="replace").replace("\r\n", "\n")
        except OSError:  # how Linux says that nobody writes there any more
            raise AssertionError(f"the program has ended: {self.seen!r}") from None


@contextmanager
def terminal(command: str, pause: float = 0.05) -> Iterator[Terminal]:
    """A terminal on which a command runs."""
    found = Terminal(command, pause)
    try:
        yield found
    finally:
        found.close()
