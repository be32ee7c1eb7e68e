"""An unpickler whose time and memory grow with the file, and not with what the file says.

A pickle may hash a tuple of a million tuples in one another, which overflows the stack of C, or copy one
list a million times, in some bytes each. Honest files of tensors do neither.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sized
from typing import IO, Any, ClassVar

_LONGEST_KEY = 16
_COPIES, _START = 4, 1000  # elements that may be copied: for each byte of the pickle, and for a short one


class BoundedUnpickler(pickle._Unpickler):
    """Python's own unpickler, which the fast one of C is a copy of, with checks before what may cost much.

    `size` is the pickle's, in bytes. Raises UnpicklingError for one that would cost more.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    stack: list[object]

    def __init__(self, file: IO[bytes], size: int) -> None:
        super().__init__(file)
        self._room = _COPIES * size + _START

    def _call(self) -> None:
        """Before a call: its arguments are on top of the stack."""
        for given in self.stack[-2:]:
            self._account(given)

    def _account(self, given: object) -> None:
        """Take what a call may copy from the room that is left: arguments, and the elements of each."""
        if not isinstance(given, tuple | list | dict):
            return
        for each in (given, *(given.values() if isinstance(given, dict) else given)):
            self._room -= len(each) if isinstance(each, Sized) else 1
        if self._room < 0:
            raise pickle.UnpicklingError("it builds more than it holds")

    def _pair(self) -> None:
        check_keys(self.stack[-2:-1])

    def _pairs(self) -> None:
        check_keys(self.stack[::2])  # since the mark

    def _elements(self) -> None:
        check_keys(self.stack)


def check_keys(keys: Iterable[object]) -> None:
    """Raise UnpicklingError for a key, or an element of a set, that takes long to hash: a nested or long tuple."""
    for key in keys:
        if isinstance(key, tuple) and (len(key) > _LONGEST_KEY or any(isinstance(each, tuple) for each in key)):
            raise pickle.UnpicklingError("a key that is nested, or too long")


def _checked(code: bytes, check: Callable[[Any], None]) -> None:
    step = BoundedUnpickler.dispatch[code[0]]

    def act(reader: BoundedUnpickler) -> None:
        check(reader)
        step(reader)

    BoundedUnpickler.dispatch[code[0]] = act


_checked(pickle.SETITEM, BoundedUnpickler._pair)
_checked(pickle.SETITEMS, BoundedUnpickler._pairs)
_checked(pickle.DICT, BoundedUnpickler._pairs)
_checked(pickle.ADDITEMS, BoundedUnpickler._elements)
_checked(pickle.FROZENSET, BoundedUnpickler._elements)
_checked(pickle.REDUCE, BoundedUnpickler._call)
_checked(pickle.NEWOBJ, BoundedUnpickler._call)
_checked(pickle.NEWOBJ_EX, BoundedUnpickler._call)
