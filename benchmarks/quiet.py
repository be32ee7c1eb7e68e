"""Whether a machine has anything else to do while something is measured. For the scripts here. (Linux)

Engines whose threads wait for each other lose ten times the time that others take from one of them. So a measurement
waits until nobody else is busy, and is repeated when somebody was.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

TICK = os.sysconf("SC_CLK_TCK")
LOOK = 0.5
"""Seconds over which is seen whether others are busy."""
IDLE = 0.06
"""CPUs that may be busy then."""
TRIES = 4
"""Of a measurement that others disturb."""


def busy() -> float:
    """CPU seconds that the whole machine has spent since it started, those that its host took away among them."""
    user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + sum(rest)) / TICK


def wait(patience: float) -> bool:
    """Wait until nobody uses the CPUs, for so many seconds at most; whether that was reached."""
    until = time.monotonic() + patience
    while True:
        before = busy()
        time.sleep(LOOK)
        if busy() - before <= IDLE * LOOK + 1 / TICK:
            return True
        if time.monotonic() > until:
            return False


class Watch:
    """What others spend while something runs: CPU seconds to each second of wall time, less what is one's own."""

    def __init__(self) -> None:
        self._busy, self._begun = busy(), time.perf_counter()

    def others(self, own: float) -> float:
        """CPUs that others have used since this was made, `own` CPU seconds being those of what was measured."""
        return max(0.0, busy() - self._busy - own) / (time.perf_counter() - self._begun)


def undisturbed(act: Callable[[], T], own: Callable[[T], float], most: float, patience: float) -> tuple[T, float]:
    """Do something until others used at most so many CPUs meanwhile, up to TRIES times; the quietest result, and how
    many CPUs others used. `own` tells the CPU seconds of a result."""
    found: list[tuple[float, T]] = []
    for _ in range(TRIES):
        wait(patience)
        watch = Watch()
        result = act()
        found.append((watch.others(own(result)), result))
        if found[-1][0] <= most:
            break
    others, result = min(found, key=lambda each: each[0])
    return result, others
