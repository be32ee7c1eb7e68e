"""The weight files of a Hugging Face folder: which tensor lies in which file, and its rows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from neoxkit.checkpoint.dtypes import TORCH, empty
from neoxkit.checkpoint.raw_io import InputFile, open_input
from neoxkit.checkpoint.safetensors_file import Entry, read_header
from neoxkit.checkpoint.store import Place as AnyPlace
from neoxkit.checkpoint.store import StorePath
from neoxkit.convert.pickles.storage import Files, Stored
from neoxkit.convert.pickles.torch_file import read_objects
from neoxkit.convert.weight_names import SINGLE
from neoxkit.errors import CheckpointError

if TYPE_CHECKING:
    from neoxkit.checkpoint.store_input import StoreFile


@dataclass(frozen=True)
class Place:
    """Where a tensor lies and what it is."""

    file: AnyPlace
    dtype: str
    shape: tuple[int, ...]
    held: Entry | Stored  # in a safetensors file, or in one of torch.save

    @property
    def bytes(self) -> int:
        """Of its elements."""
        return self.held.last - self.held.first if isinstance(self.held, Entry) else self.held.bytes


class WeightFiles:
    """The tensors of a folder by key. Nothing but headers is read before `read`.

    `names` are those that the one file, or its index, may have. Raises CheckpointError, naming the
    file, for a missing, damaged or contradictory one.
    """

    def __init__(self, folder: AnyPlace, names: Sequence[str] = SINGLE) -> None:
        self.folder = folder
        self._names = names
        self._open: dict[AnyPlace, InputFile | StoreFile] = {}
        self._pickles = Files()
        self.places: dict[str, Place] = {}
        for file, keys in self._listed():
            found = dict(self._places(file))
            for key in found if keys is None else keys:
                if key not in found:
                    raise CheckpointError(
                        f"{file}: tensor {key!r}, which the index names, is not there", "fetch it again"
                    )
                if key in self.places:
                    raise CheckpointError(
                        f"{file}: tensor {key!r} is in {self.places[key].file.name} too",
                        "remove the files that do not belong",
                    )
                self.places[key] = found[key]

    def _listed(self) -> Iterator[tuple[AnyPlace, list[str] | None]]:
        """Each file, and the keys that an index gives it (None: all it holds)."""
        for name in self._names:
            index = self.folder / f"{name}.index.json"
            if index.is_file():
                by_file = self._indexed(index)
                if name not in by_file and (self.folder / name).is_file():
                    raise CheckpointError(
                        f"{self.folder}: both {name} and {index.name}, two models",
                        "remove the one that does not belong",
                    )
                yield from ((self.folder / file, keys) for file, keys in sorted(by_file.items()))
                return
            if (self.folder / name).is_file():
                yield self.folder / name, None
                return
        raise CheckpointError(
            f"{self.folder}: no model.safetensors, no pytorch_model.bin and no index of either",
            "choose a model's folder",
        )

    def _indexed(self, index: AnyPlace) -> dict[str, list[str]]:
        """The keys of each file that an index names."""
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            by_file: dict[str, list[str]] = {}
            for key, name in weight_map.items():
                by_file.setdefault(name, []).append(key)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{index}: not an index of weights ({error})", "fetch it again") from error
        for name in by_file:
            if not isinstance(name, str) or os.path.basename(name) != name or "\0" in name or name in ("", ".", ".."):
                raise CheckpointError(f"{index}: {name!r} names no file in the folder", "do not trust this model")
        return by_file

    def _places(self, file: AnyPlace) -> Iterator[tuple[str, Place]]:
        if file.suffix == ".safetensors":
            for key, entry in read_header(file).entries.items():
                if entry.dtype not in TORCH:
                    raise CheckpointError(f"{file}: tensor {key!r} is {entry.dtype}", "torch has no such dtype")
                yield key, Place(file, entry.dtype, entry.shape, entry)
        else:
            for key, value in _named_tensors(file).items():
                yield key, Place(file, value.dtype, value.shape, value)

    @property
    def paths(self) -> list[AnyPlace]:
        """The files that hold tensors."""
        return sorted({place.file for place in self.places.values()})

    @cached_property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(place.bytes for place in self.places.values())

    def read(self, key: str, rows: tuple[int, int] | None = None) -> Tensor:
        """A tensor, or `rows` of its dimension 0, in memory of its own.

        Raises CheckpointError when the file has become shorter than its header says.
        """
        place = self.places[key]
        if isinstance(place.held, Stored):
            return self._pickles.read(place.held, rows)
        shape, first = place.shape, place.held.first
        if rows is not None:
            row = (place.held.last - first) // shape[0]
            shape, first = (rows[1] - rows[0], *shape[1:]), first + rows[0] * row
        value, octets = empty(shape, place.dtype)
        try:
            if place.file not in self._open:
                self._open[place.file] = open_input(place.file, links=True)
            whole = self._open[place.file].read(octets, first)
        except OSError as error:
            raise CheckpointError(f"{place.file}: {error.strerror}", "check the disk") from error
        if not whole:
            raise CheckpointError(f"{place.file}: ends inside tensor {key!r}", "fetch the file again")
        return value

    def close(self) -> None:
        """Close the files."""
        for file in self._open.values():
            file.close()
        self._open.clear()
        self._pickles.close()


def _named_tensors(file: AnyPlace) -> dict[str, Stored]:
    """The tensors of a file of torch.save that holds nothing else. Raises CheckpointError for another."""
    if isinstance(file, StorePath):
        what = "a file of torch.save, which is read from a disk only"
        raise CheckpointError(f"{file}: {what}", "copy the folder to a disk first")
    found = read_objects(file)
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: not a mapping of names to tensors", "choose a model's weights")
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Stored):
            raise CheckpointError(
                f"{file}: not a mapping of names to tensors: {key!r} is none", "choose a model's weights"
            )
    return found
