"""Tensors in a file of torch.save, where they lie: read in rows, when they are wanted."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from neoxkit.checkpoint.dtypes import TORCH, empty
from neoxkit.checkpoint.format import ITEM_BYTES
from neoxkit.checkpoint.raw_io import InputFile
from neoxkit.errors import CheckpointError


class Sealed:
    """What a pickle cannot change once it has it."""

    def __setstate__(self, state: object) -> None:
        raise ValueError("a pickle that changes a tensor")


@dataclass(frozen=True)
class Storage(Sealed):
    """The elements of one or more tensors: `elements` of a dtype from byte `first` of a file on."""

    file: Path
    dtype: str
    first: int
    elements: int


@dataclass(frozen=True)
class Stored(Sealed):
    """A tensor in a storage: element (i, j) is number offset + i * strides[0] + j * strides[1]."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        if prod(self.shape) and self._last >= self.storage.elements:
            raise ValueError("a tensor that reaches beyond its storage")

    @property
    def dtype(self) -> str:
        """As safetensors spells it."""
        return self.storage.dtype

    @property
    def bytes(self) -> int:
        """Of its elements."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def _last(self) -> int:
        return self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True))

    @property
    def _plain(self) -> bool:
        """Whether its elements follow one another, row by row."""
        row = 1
        for size, step in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size > 1 and step != row:
                return False
            row *= size
        return True


class Files:
    """Open files, to read tensors from."""

    def __init__(self) -> None:
        self._open: dict[Path, InputFile] = {}

    def read_rows(self, tensor: Stored, rows: tuple[int, int], into: npt.NDArray[np.uint8]) -> None:
        """Fill the bytes `into` with rows of a tensor. Raises CheckpointError when the file is too short."""
        start, stop = rows
        if start == stop or not into.size:
            return
        if tensor._plain:
            row = prod(tensor.shape[1:])
            self._read(tensor.storage, tensor.offset + start * row, into)
            return
        part = Stored(
            tensor.storage,
            tensor.offset + start * tensor.strides[0],
            (stop - start, *tensor.shape[1:]),
            tensor.strides,
        )
        flat, octets = empty((part._last - part.offset + 1,), part.dtype)
        self._read(part.storage, part.offset, octets)
        dense = flat.as_strided(part.shape, part.strides).contiguous()
        into[:] = dense.reshape(-1).view(torch.uint8).numpy()

    def read(self, tensor: Stored, rows: tuple[int, int] | None = None) -> Tensor:
        """All of a tensor, or `rows` of its dimension 0. Raises CheckpointError as `read_rows` does."""
        whole = tensor if tensor.shape else Stored(tensor.storage, tensor.offset, (1,), (1,))
        start, stop = rows or (0, whole.shape[0])
        value, octets = empty((stop - start, *whole.shape[1:]), tensor.dtype)
        self.read_rows(whole, (start, stop), octets)
        return value if tensor.shape else value.reshape(())

    def close(self) -> None:
        """Close them."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    def _read(self, storage: Storage, element: int, into: npt.NDArray[np.uint8]) -> None:
        item = TORCH[storage.dtype].itemsize
        try:
            if storage.file not in self._open:
                self._open[storage.file] = InputFile(storage.file, links=True)
            whole = self._open[storage.file].read(into, storage.first + element * item)
        except OSError as error:
            raise CheckpointError(f"{storage.file}: {error.strerror}", "check the disk") from error
        if not whole:
            raise CheckpointError(f"{storage.file}: ends inside a tensor", "fetch the file again")
