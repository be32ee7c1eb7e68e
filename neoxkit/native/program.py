"""Instructions of decode.cpp: one is done at once; what a tape writes down is done later, in one call.

A tape hears what torch is asked for as well, and writes that down as far as it knows it.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from neoxkit.native.build import library
from neoxkit.native.codes import SLOTS, Operation

ALIGNMENT = 64
"""Bytes: where results begin."""

VIEWS = {
    "alias", "chunk", "contiguous", "expand", "flatten", "reshape", "select", "slice", "split", "split_with_sizes",
    "squeeze", "transpose", "unflatten", "unsqueeze", "view",
}  # fmt: skip
"""Operations of torch that compute nothing, unless they copy."""

Argument = Tensor | float | int | None


class UnknownOperationError(Exception):
    """torch was asked for what a tape cannot write down."""


class Instruction(NamedTuple):
    """What is to be done, and with what; how many tokens it is done for is said when it is done."""

    operation: Operation
    arguments: tuple[Argument, ...]


class Tape:
    """Writes down what is called while it listens (`with tape:`), and does none of it."""

    def __init__(self, known: Mapping[str, Callable[..., Tensor]]) -> None:
        """`known` are functions that do what torch's operations of these names do."""
        self.instructions: list[Instruction] = []
        self._made: dict[int, Tensor] = {}
        self._tokens: set[int] = set()
        self._ear = _Ear(known)

    def __enter__(self) -> Tape:
        assert _here.tape is None, "one tape at a time"
        self._ear.__enter__()
        _here.tape = self
        return self

    def __exit__(self, *error: Any) -> None:
        _here.tape = None
        self._ear.__exit__(*error)

    def write(self, instruction: Instruction, tokens: int) -> None:
        """Write down an instruction that is for so many tokens."""
        self.instructions.append(instruction)
        self._tokens.add(tokens)

    def new(self, shape: tuple[int, ...]) -> Tensor:
        """Room for a result. It is kept as long as the tape, so that nothing else comes to lie there."""
        made = torch.empty(shape)
        self._made[_storage(made)] = made
        return made

    def program(self, result: Tensor, tokens: int, most: int) -> Program:
        """What was written down for so many `tokens`, for up to `most`. `result` [1, T, width] is what it gives."""
        assert self._tokens == {tokens}, "something was done for another number of tokens"
        lives = self._lives(_storage(result))
        sizes = {at: self._made[at].numel() // tokens * most * 4 for at in lives}
        offsets, total = place(lives, sizes)
        return Program(self.instructions, offsets, total, result, most)

    def _lives(self, kept: int) -> dict[int, tuple[int, int]]:
        """The first and the last instruction that has each result; one is kept after the last."""
        lives: dict[int, tuple[int, int]] = {}
        for index, instruction in enumerate(self.instructions):
            for each in instruction.arguments:
                if isinstance(each, Tensor) and (at := _storage(each)) in self._made:
                    lives[at] = (lives.get(at, (index,))[0], len(self.instructions) if at == kept else index)
        return lives


class _Ear(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would load its compiler, for seconds, to tell it that nothing here is to be compiled."""
        return False

    def __init__(self, known: Mapping[str, Callable[..., Tensor]]) -> None:
        super().__init__()
        self._known = known

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name == "empty":
            return func(*args, **(kwargs or {}))
        if name in VIEWS:
            found = func(*args, **(kwargs or {}))
            each = found if isinstance(found, Tensor) else found[0]
            if _storage(each) == _storage(args[0]):
                return found
        if name not in self._known or kwargs:
            raise UnknownOperationError(str(func))
        return self._known[name](*args)


def place(lives: Mapping[int, tuple[int, int]], sizes: Mapping[int, int]) -> tuple[dict[int, int], int]:
    """Where results lie, in bytes, and how many bytes that takes: none overlaps another of the same time.

    Example: of a, b, c with lives 0-1, 1-2, 2-3, c lies where a was.
    """
    offsets: dict[int, int] = {}
    total = 0
    for each in sorted(lives, key=lives.__getitem__):
        size = -(-sizes[each] // ALIGNMENT) * ALIGNMENT
        there = sorted((offsets[other], sizes[other]) for other in offsets if lives[other][1] >= lives[each][0])
        at = 0
        for begin, wide in there:
            if begin - at >= size:
                break
            at = max(at, -(-(begin + wide) // ALIGNMENT) * ALIGNMENT)
        offsets[each] = at
        total = max(total, at + size)
    return offsets, total


class Program:
    """Instructions with addresses, and the memory that they compute in."""

    def __init__(
        self, instructions: Sequence[Instruction], offsets: Mapping[int, int], size: int, result: Tensor, most: int
    ) -> None:
        self._arena = torch.empty(size // 4)
        self._held = [each for instruction in instructions for each in instruction.arguments]  # what addresses mean
        rows = np.zeros((len(instructions), SLOTS), dtype=np.int64)
        for row, instruction in zip(rows, instructions, strict=True):
            moved = [self._moved(each, offsets) for each in instruction.arguments]
            row[: len(moved) + 1] = [instruction.operation, *map(_slot, moved)]
        self._rows, self._most = rows, most
        first = offsets[_storage(result)] // 4
        self._result = self._arena[first : first + most * result.shape[-1]].view(1, most, -1)

    def _moved(self, argument: Argument, offsets: Mapping[int, int]) -> Argument:
        """An address in the arena for a result, or part of one; everything else as it is."""
        if not isinstance(argument, Tensor) or (storage := _storage(argument)) not in offsets:
            return argument
        return self._arena.data_ptr() + offsets[storage] + argument.data_ptr() - storage

    def run(self, tokens: int) -> Tensor:
        """Do it for so many tokens. The result [1, T, width] is there until the next time."""
        assert tokens <= self._most, "more than there is room for"
        _function()(self._rows.ctypes.data, len(self._rows), tokens, torch.get_num_threads())
        return self._result[:, :tokens]


class _Here(threading.local):
    """The tape that listens to this thread: another one may serve a model meanwhile."""

    tape: Tape | None = None


_here = _Here()


def new(*shape: int) -> Tensor:
    """Room for a result."""
    return torch.empty(shape) if _here.tape is None else _here.tape.new(shape)


def call(operation: Operation, tokens: int, *arguments: Argument) -> None:
    """Do something for so many tokens, or have it written down."""
    if _here.tape is not None:
        _here.tape.write(Instruction(operation, arguments), tokens)
        return
    row = (ctypes.c_int64 * SLOTS)(operation, *map(_slot, arguments))
    _function()(row, 1, tokens, torch.get_num_threads())


def panel() -> int:
    """Weights of how many outputs lie together."""
    found = library()
    assert found is not None, "there is no library"
    return int(found.neoxkit_panel())


@cache
def _function() -> Callable[..., None]:
    found = library()
    assert found is not None, "there is no library"
    run: Any = found.neoxkit_run
    run.restype, run.argtypes = None, [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int]
    return run


def _storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _slot(argument: Argument) -> int:
    """An argument as an integer: an address, the bits of a float, 0 for nothing."""
    if argument is None:
        return 0
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    if isinstance(argument, float):
        return int(struct.unpack("<I", struct.pack("<f", argument))[0])
    return argument
