"""The weight files of a Hugging Face folder: which tensor lies in which file, and its rows."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neoxkit.checkpoint.dtypes import TORCH, empty, name_of
from neoxkit.checkpoint.raw_io import InputFile
from neoxkit.checkpoint.safetensors_file import Entry, read_header
from neoxkit.convert.weight_names import SINGLE
from neoxkit.errors import CheckpointError


@dataclass(frozen=True)
class Place:
    """Where a tensor lies and what it is."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    entry: Entry | None = None  # None: in a pickle


class WeightFiles:
    """The tensors of a folder by key. Nothing but headers is read before `read`.

    `names` are those that the one file, or its index, may have. Raises CheckpointError, naming the
    file, for a missing, damaged or contradictory one.
    """

    def __init__(self, folder: Path, names: Sequence[str] = SINGLE) -> None:
        self.folder = folder
        self._names = names
        self._pickles: dict[Path, Mapping[str, Tensor]] = {}
        self._open: dict[Path, InputFile] = {}
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

    def _listed(self) -> Iterator[tuple[Path, list[str] | None]]:
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

    def _indexed(self, index: Path) -> dict[str, list[str]]:
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

    def _places(self, file: Path) -> Iterator[tuple[str, Place]]:
        if file.suffix == ".safetensors":
            for key, entry in read_header(file).entries.items():
                if entry.dtype not in TORCH:
                    raise CheckpointError(f"{file}: tensor {key!r} is {entry.dtype}", "torch has no such dtype")
                yield key, Place(file, entry.dtype, entry.shape, entry)
        else:
            for key, value in self._pickle(file).items():
                yield key, Place(file, name_of(value.dtype), tuple(value.shape))

    def _pickle(self, file: Path) -> Mapping[str, Tensor]:
        """The tensors of a `.bin`, mapped and not read; a pickle that asks for code is refused."""
        if file not in self._pickles:
            loaded = _load_pickle(file)
            if not isinstance(loaded, dict) or not all(map(_is_named_tensor, loaded.items())):
                raise CheckpointError(f"{file}: not a mapping of names to tensors", "choose a model's weights")
            self._pickles[file] = loaded
        return self._pickles[file]

    @property
    def paths(self) -> list[Path]:
        """The files that hold tensors."""
        return sorted({place.file for place in self.places.values()})

    @cached_property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(
            p.entry.last - p.entry.first if p.entry else self._pickle(p.file)[k].nbytes for k, p in self.places.items()
        )

    def read(self, key: str, rows: tuple[int, int] | None = None) -> Tensor:
        """A tensor, or `rows` of its dimension 0, in memory of its own.

        Raises CheckpointError when the file has become shorter than its header says.
        """
        place = self.places[key]
        if place.entry is None:
            value = self._pickle(place.file)[key]
            part = value.detach() if rows is None else value.detach()[rows[0] : rows[1]]
            return part.clone(memory_format=torch.contiguous_format)
        shape, first = place.shape, place.entry.first
        if rows is not None:
            row = (place.entry.last - first) // shape[0]
            shape, first = (rows[1] - rows[0], *shape[1:]), first + rows[0] * row
        value, octets = empty(shape, place.dtype)
        try:
            if place.file not in self._open:
                self._open[place.file] = InputFile(place.file, links=True)
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
        self._pickles.clear()


def _is_named_tensor(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _load_pickle(file: Path) -> Any:
    """What a `.bin` holds, by torch's reader which builds tensors and plain containers and runs nothing else.

    Raises CheckpointError, naming what the file asks for, when it asks for more.
    """
    damaged = "not a file of torch tensors, or damaged"
    try:
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(file, map_location="cpu", weights_only=True)  # before torch 1.6: no zip, no mmap
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror}", "fetch it again") from error
    except pickle.UnpicklingError as error:
        if asked := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(f"{file}: asks to run {asked[1]}: refused", "do not trust this file") from error
        raise CheckpointError(f"{file}: {damaged}", "fetch it again") from error
    except _DAMAGE as error:
        raise CheckpointError(f"{file}: {damaged}", "fetch it again") from error


_DAMAGE = (RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, AssertionError, struct.error)
"""What torch's reader has been seen to raise for bytes that are no pickle of tensors."""
