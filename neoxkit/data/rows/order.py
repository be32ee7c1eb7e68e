"""Which tokens make each row of a token file: passes over it, one after the other, without an end.

Shapes: N sequences, R rows of a pass.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple, Protocol


class Span(NamedTuple):
    """Tokens start:stop of a sequence of a file."""

    sequence: int
    start: int
    stop: int


class Pass(Protocol):
    """The rows of one pass."""

    @property
    def count(self) -> int:
        """R, at least 1."""

    def spans(self, number: int) -> list[Span]:
        """What row `number`, 0 <= number < R, consists of, in order."""


class Order:
    """The rows of pass after pass: row k is a pure function of what `make` was made of and k.

    `make` gives a pass by its number. With `alike` all have as many rows as the first; otherwise what lies before
    a row is counted, once. The last two passes are kept.
    """

    def __init__(self, make: Callable[[int], Pass], alike: bool) -> None:
        self._make, self._alike = make, alike
        self._begins = [0]  # the first row of each pass, as far as they were counted
        self._kept: dict[int, Pass] = {}
        self.first = self._pass(0)

    def rows_of(self, passes: int) -> int:
        """The rows of the first passes."""
        if self._alike:
            return passes * self.first.count
        while len(self._begins) <= passes:
            self._count()
        return self._begins[passes]

    def _count(self) -> None:
        """Count one more pass."""
        self._begins.append(self._begins[-1] + self._pass(len(self._begins) - 1).count)

    def spans(self, number: int) -> list[Span]:
        """What row `number` of all passes consists of."""
        if number < 0:
            raise IndexError(f"row {number}")
        if self._alike:
            at, rest = divmod(number, self.first.count)
            return self._pass(at).spans(rest)
        while number >= self._begins[-1]:
            self._count()
        at = last_not_above(self._begins, number)
        return self._pass(at).spans(number - self._begins[at])

    def _pass(self, number: int) -> Pass:
        found = self._kept.get(number)
        if found is None:
            if len(self._kept) == 2:
                del self._kept[min(self._kept)]
            found = self._kept[number] = self._make(number)
        return found


def last_not_above(begins: list[int], number: int) -> int:
    """The last of ascending numbers that is not above `number`: where it stands."""
    return bisect_right(begins, number) - 1


def seed_of(seed: int, *path: int) -> int:
    """A seed of 32 bits for each path of numbers below a seed, as good as unrelated to those of other paths.

    For numpy's RandomState, whose numbers are the same in every release; those of its Generator may change.
    """
    text = "/".join(map(str, (seed, *path)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
