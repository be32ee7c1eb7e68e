"""A run that is told to stop (SIGINT, SIGTERM) ends its step, saves, and then stops."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from neoxkit.log import note


class Interrupt:
    """Remembers the signal that asked for a stop. A second SIGINT stops at once, as Ctrl-C always does."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # Python delivers signals nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._asked)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        note(f"{self.signal.name}: the run saves after this step, and stops")

    @property
    def code(self) -> int:
        """The exit code that shells expect after the signal; 0 when there was none."""
        return 128 + self.signal if self.signal is not None else 0
