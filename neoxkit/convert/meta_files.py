"""The weight files of Meta and Mistral: each tensor over all the model-parallel shards, as one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from neoxkit.checkpoint.dtypes import empty
from neoxkit.checkpoint.format import BLOCK_BYTES, ITEM_BYTES
from neoxkit.checkpoint.store import Place
from neoxkit.convert.weight_files import WeightFiles
from neoxkit.convert.weight_names import SHARD, WHOLE, file_names
from neoxkit.errors import CheckpointError, ConversionError
from neoxkit.spec import rows, whole

_DIVIDED = (
    (re.compile(r"layers\.\d+\.(attention\.w[qkv]|feed_forward\.w[13])\.weight|output\.weight"), 0),
    (re.compile(r"layers\.\d+\.(attention\.wo|feed_forward\.w2)\.weight"), 1),
)
"""The dimension that model-parallel shards divide. The embedding's is known by its shape; others are replicas."""


class MetaFiles:
    """The tensors of a folder by key, whole. Nothing but headers is read before `read`.

    Raises CheckpointError or ConversionError, naming the file, for shards that are missing or not of
    one model.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = file_names(folder)
        if WHOLE in self.names and len(self.names) > 1:
            raise CheckpointError(
                f"{folder}: both {WHOLE} and {self.names[1]}, two models", "remove the one that does not belong"
            )
        if WHOLE not in self.names:
            there = {int(SHARD.fullmatch(name)[1]) for name in self.names}  # type: ignore[index]
            if missing := sorted(set(range(max(there, default=0) + 1)) - there):
                raise CheckpointError(
                    f"{folder}: consolidated.{missing[0]:02}.pth is missing, and a later shard is there", "fetch it"
                )
        self.ranks = [WeightFiles(folder, (name,)) for name in self.names]
        self.dims = {key: self._divided(key) for key in self.ranks[0].places}
        self._check_alike()

    def _divided(self, key: str) -> int | None:
        """The dimension of a tensor that the shards divide; None when each holds all of it."""
        if len(self.ranks) == 1:
            return None
        if key == "tok_embeddings.weight":  # Llama 1 and 2 divide its columns, Llama 3 its rows
            norm, part = self.ranks[0].places.get("norm.weight"), self.ranks[0].places[key].shape
            return 0 if norm is not None and norm.shape == part[1:] else 1
        return next((dim for pattern, dim in _DIVIDED if pattern.fullmatch(key)), None)

    def _check_alike(self) -> None:
        """All shards hold the same tensors, in the same shapes and dtypes."""
        first = self.ranks[0].places
        for name, rank in zip(self.names[1:], self.ranks[1:], strict=True):
            if odd := sorted(first.keys() ^ rank.places.keys()):
                raise ConversionError(
                    f"{self.folder}: only one of {self.names[0]} and {name} has {odd[0]!r}", "are they of one model?"
                )
            for key, place in rank.places.items():
                if (place.shape, place.dtype) != (first[key].shape, first[key].dtype):
                    raise ConversionError(
                        f"{self.folder}: {key!r} is {list(first[key].shape)} {first[key].dtype} in {self.names[0]}, "
                        f"{list(place.shape)} {place.dtype} in {name}",
                        "are they of one model?",
                    )
        for key, dim in self.dims.items():
            if dim is not None and len(first[key].shape) != 2:
                raise ConversionError(
                    f"{self.folder}: {key!r} is {list(first[key].shape)}, no matrix", "fetch it again"
                )

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of the whole tensor. Raises ConversionError when there is none."""
        if key not in self.dims:
            raise ConversionError(
                f"{self.folder}: tensor {key!r} is missing", "is this a whole Llama or Mistral model?"
            )
        shape = list(self.ranks[0].places[key].shape)
        dim = self.dims[key]
        if dim is not None:
            shape[dim] *= len(self.ranks)
        return tuple(shape)

    def dtype(self, key: str) -> str:
        """The dtype of a tensor that is there."""
        return self.ranks[0].places[key].dtype

    @property
    def paths(self) -> list[Place]:
        """The files that hold tensors."""
        return sorted({place.file for rank in self.ranks for place in rank.places.values()})

    @property
    def bytes(self) -> int:
        """Bytes of all tensors of all shards."""
        return sum(rank.bytes for rank in self.ranks)

    def read(self, key: str, span: tuple[int, int]) -> Tensor:
        """Rows of the whole tensor, in memory of their own: no more of any shard is read."""
        dim = self.dims[key]
        if dim is None:
            return self.ranks[0].read(key, span)
        shape, size = self.shape(key), self.ranks[0].places[key].shape[dim]
        value, _ = empty((span[1] - span[0], *shape[1:]), self.dtype(key))
        for number, rank in enumerate(self.ranks):
            at = number * size
            if dim == 1:
                value[:, at : at + size] = rank.read(key, span)
                continue
            first, last = max(span[0], at), min(span[1], at + size)
            if first < last:
                value[first - span[0] : last - span[0]] = rank.read(key, (first - at, last - at))
        return value

    def same(self, one: str, other: str) -> bool:
        """Whether two tensors are equal to the last bit. Read as far as they are, block by block."""
        if self.shape(one) != self.shape(other) or self.dtype(one) != self.dtype(other):
            return False
        blocks = rows(whole(self.shape(one)), BLOCK_BYTES // ITEM_BYTES[self.dtype(one)])
        return all(torch.equal(self.read(one, box[0]), self.read(other, box[0])) for box in blocks)

    def differing_replicas(self) -> Iterator[tuple[str, float]]:
        """Tensors that every shard holds and that are not the same in all, and the greatest difference."""
        for key, dim in self.dims.items():
            if dim is not None:
                continue
            first = self.ranks[0].read(key)
            others = [rank.read(key) for rank in self.ranks[1:]]
            if any(not torch.equal(first, other) for other in others):
                yield key, max((first.double() - other.double()).abs().max().item() for other in others)

    def close(self) -> None:
        """Close the files."""
        for rank in self.ranks:
            rank.close()
