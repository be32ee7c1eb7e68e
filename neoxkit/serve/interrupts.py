"""Ctrl-C between two ticks of an engine, never within one: its ranks must not be left waiting for each other."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE = 3
"""So many Ctrl-C end the program at once: it does not listen."""


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C be noted instead of ending what is done; yields whether it was pressed.

    Outside of the main thread, which signals do not reach, it never is.
    """
    pressed: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def press(number: int, frame: object) -> None:
        pressed.append(number)
        if len(pressed) == PATIENCE:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
