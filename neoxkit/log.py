"""What a person reads while work goes on: progress and notes, on stderr, through rich.

Results never go through here: they are printed to stdout by the command.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console


class Progress(Protocol):
    """Told of work as it is done."""

    def advance(self, amount: int) -> None:
        """So much more is done, in the unit that the total was given in."""

    def describe(self, state: str) -> None:
        """What to show beside the bar, such as other counts."""


class Silent:
    """Progress that nobody watches."""

    def advance(self, amount: int) -> None:
        """Do nothing."""

    def describe(self, state: str) -> None:
        """Do nothing."""


INTERVAL = 30.0
"""Seconds between the lines of a log file that tell of work which goes on."""


class Lines:
    """Progress in a log file: a line now and then, of work that is described."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._begun = self._told = time.monotonic()
        self._done = self._before = 0

    def advance(self, amount: int) -> None:
        """Count."""
        self._done += amount

    def describe(self, state: str) -> None:
        """A line, if the last one is long ago."""
        now = time.monotonic()
        if now - self._told < INTERVAL:
            return
        speed = (self._done - self._before) / (now - self._told)
        rate = f"{sized(speed)}/s" if self._unit == "bytes" else f"{speed:,.0f} {self._unit}/s"
        share = f"{100 * self._done / self._total:.1f} %, " if self._total else ""
        note(f"{self._what}: {share}{state}, {rate}")
        self._told, self._before = now, self._done


def console() -> Console:
    """The console on stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


_silent = False


def silence() -> None:
    """Say nothing from here on: of the processes of a job one speaks, or each line would come many times."""
    global _silent
    _silent = True


def note(message: str) -> None:
    """One line to whoever watches."""
    if not _silent:
        print(message, file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """One line of warning to whoever watches."""
    note(f"warning: {message}")


def counted(number: int, noun: str) -> str:
    """A count with its noun: "1 step", "1,200 steps", "2 batches"."""
    ending = "" if number == 1 else "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}{ending}"


SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))
"""Units of bytes, the largest first."""


def unit_of(size: float) -> tuple[float, str]:
    """The largest unit of which there is at least one in so many bytes, and its name: (1e6, "MB")."""
    return next((unit for unit in SIZES if size >= unit[0]), SIZES[-1])


def sized(size: float) -> str:
    """So many bytes, in the unit that fits: "1.6 GB"."""
    unit, name = unit_of(size)
    return f"{size / unit:,.{1 if unit > 1 else 0}f} {name}"


@contextmanager
def progress(what: str, total: int, unit: str = "bytes") -> Iterator[Progress]:
    """A live bar on stderr, of bytes or of a count of `unit`.

    Where stderr is no terminal, a line at the end, and of work that describes its state one each INTERVAL:
    in a log file a bar is noise. A total of 0 is one that is not known.
    """
    if _silent:
        yield Silent()
        return
    screen = console()
    if not screen.is_terminal:
        begun = time.monotonic()
        yield Lines(what, total, unit)
        size = f"{total / 1e6:.1f} MB" if unit == "bytes" else f"{total:,} {unit}"
        note(f"{what}: {size} in {time.monotonic() - begun:.1f} s")
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    amounts = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(), TextColumn(unit))
    columns = (TextColumn("{task.description}"), BarColumn(), *amounts, TimeRemainingColumn())
    with Bar(*columns, TextColumn("{task.fields[state]}"), console=screen) as bar:
        task = bar.add_task(what, total=total or None, state="")

        class Live:
            def advance(self, amount: int) -> None:
                bar.advance(task, amount)

            def describe(self, state: str) -> None:
                bar.update(task, state=state)

        yield Live()
