"""Where each tensor of ours lies in the parts that the tensor-parallel ranks hold.

Query, key and value lie fused in one matrix of each rank, by heads or by kind; a gated MLP has up above
gate; matrices that write to the residual stream are cut by columns; what is not cut is on every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from neoxkit.checkpoint.dtypes import empty
from neoxkit.config.model import ModelConfig
from neoxkit.config.neox.settings import REMEDY
from neoxkit.convert.neox.flat import Part, read_rows
from neoxkit.convert.neox.tensors import Key, Tensors
from neoxkit.convert.pickles.storage import Files
from neoxkit.errors import ConversionError

Warn = Callable[[float], None]
Parts = tuple[Part, ...]


class Place(Protocol):
    """How a tensor of ours is put together."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor."""

    @property
    def dtype(self) -> str:
        """As safetensors spells it."""

    def read(self, files: Files, start: int, stop: int, differs: Warn) -> Tensor:
        """Rows of it. `differs` is told by how much ranks differ that should hold the same."""


@dataclass(frozen=True)
class Run:
    """Rows of one rank's part."""

    part: Part
    start: int
    stop: int


@dataclass(frozen=True)
class Rows:
    """Runs of rows, one below the other."""

    runs: tuple[Run, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The sum of the rows."""
        return sum(run.stop - run.start for run in self.runs), *self.runs[0].part.shape[1:]

    @property
    def dtype(self) -> str:
        """Of each."""
        return self.runs[0].part.dtype

    def read(self, files: Files, start: int, stop: int, differs: Warn) -> Tensor:
        """Each run is read to where it belongs."""
        value, octets = empty((stop - start, *self.shape[1:]), self.runs[0].part.dtype)
        row = value[:1].nbytes
        at = 0  # the first row of the run
        for run in self.runs:
            first, last = max(at, start), min(at + run.stop - run.start, stop)
            if first < last:
                rows = run.start + first - at, run.start + last - at
                read_rows(files, run.part, rows, octets[(first - start) * row : (last - start) * row])
            at += run.stop - run.start
        return value


@dataclass(frozen=True)
class Columns:
    """Parts side by side."""

    parts: Parts

    @property
    def shape(self) -> tuple[int, ...]:
        """The sum of the columns."""
        rows, columns = self.parts[0].shape
        return rows, columns * len(self.parts)

    @property
    def dtype(self) -> str:
        """Of each."""
        return self.parts[0].dtype

    def read(self, files: Files, start: int, stop: int, differs: Warn) -> Tensor:
        """One part after the other."""
        value, _ = empty((stop - start, self.shape[1]), self.parts[0].dtype)
        for part, into in zip(self.parts, value.chunk(len(self.parts), dim=1), strict=True):
            into.copy_(_rows(files, part, start, stop))
        return value


@dataclass(frozen=True)
class _Alike:
    """A part of the whole shape for each rank."""

    parts: Parts

    @property
    def shape(self) -> tuple[int, ...]:
        """Of each."""
        return self.parts[0].shape

    @property
    def dtype(self) -> str:
        """Of each."""
        return self.parts[0].dtype


class Replicas(_Alike):
    """The same on every rank. Where they have drifted apart, the mean, as gpt-neox's own converter takes it."""

    def read(self, files: Files, start: int, stop: int, differs: Warn) -> Tensor:
        """Compares them."""
        values = [_rows(files, part, start, stop) for part in self.parts]
        if all(torch.equal(values[0], other) for other in values[1:]):
            return values[0]
        wide = torch.stack(values).double()
        differs(float((wide - wide[0]).abs().max()))
        return wide.mean(0).to(values[0].dtype)


class Sum(_Alike):
    """Each rank adds its own before ranks are added up: together they are one bias."""

    def read(self, files: Files, start: int, stop: int, differs: Warn) -> Tensor:
        """The sum, rounded once."""
        values = [_rows(files, part, start, stop) for part in self.parts]
        return values[0] if len(values) == 1 else torch.stack(values).double().sum(0).to(values[0].dtype)


def _rows(files: Files, part: Part, start: int, stop: int) -> Tensor:
    value, octets = empty((stop - start, *part.shape[1:]), part.dtype)
    read_rows(files, part, (start, stop), octets)
    return value


def places(
    config: ModelConfig, tensors: Tensors, parts: Mapping[Key, Parts], grouped: bool, add_biases: bool
) -> Iterator[tuple[str, Key, Place]]:
    """Our names, the key of theirs, and how it lies there, for each of their tensors that is known.

    `parts` are the tensors' own, or others of the same shapes, such as masters. `grouped`: a rank's
    query_key_value with fewer key/value heads is [Q | K | V], and not cut by query heads.
    `add_biases`: the biases of matrices cut by columns are parts of a sum.
    """
    kinds = ("weight", "bias")
    yield from _named(parts, "embed.weight", (tensors.embed, "word_embeddings.weight"), _stacked)
    yield from _named(parts, "position.weight", (tensors.embed, "position_embeddings.weight"), Replicas)
    for index, layer in enumerate(tensors.blocks):
        ours = f"layers.{index}."
        for name, theirs in (("norm1", "input_layernorm"), ("norm2", "post_attention_layernorm")):
            for kind in (*kinds, "scale"):
                yield from _named(parts, f"{ours}{name}.{_kind(kind)}", (layer, f"{theirs}.{kind}"), Replicas)
        for kind in kinds:
            key = layer, f"attention.query_key_value.{kind}"
            for number, letter in enumerate("qkv"):
                yield from _named(parts, f"{ours}attn.{letter}.{kind}", key, _head_rows(config, number, grouped))
            for name, theirs in (("attn.o", "attention.dense"), ("mlp.down", "mlp.linear2"), ("mlp.down", "mlp.w2")):
                whole = Columns if kind == "weight" else Sum if add_biases else Replicas
                yield from _named(parts, f"{ours}{name}.{kind}", (layer, f"{theirs}.{kind}"), whole)
            key = layer, f"mlp.linear1.{kind}"
            if config.mlp.gated:
                yield from _named(parts, f"{ours}mlp.gate.{kind}", key, _lower_half)
                yield from _named(parts, f"{ours}mlp.up.{kind}", key, _upper_half)
            else:
                yield from _named(parts, f"{ours}mlp.up.{kind}", key, _stacked)
            yield from _named(parts, f"{ours}mlp.gate.{kind}", (layer, f"mlp.w1.{kind}"), _stacked)
            yield from _named(parts, f"{ours}mlp.up.{kind}", (layer, f"mlp.w3.{kind}"), _stacked)
    for kind in (*kinds, "scale"):
        yield from _named(parts, f"norm.{_kind(kind)}", (tensors.norm, f"norm.{kind}"), Replicas)
    if tensors.head is not None:
        yield from _named(parts, "head.weight", (tensors.head, "final_linear.weight"), _stacked)


def _kind(theirs: str) -> str:
    return "weight" if theirs == "scale" else theirs


def _named(
    parts: Mapping[Key, Parts], ours: str, key: Key, build: Callable[[Parts], Place]
) -> Iterator[tuple[str, Key, Place]]:
    if key in parts:
        yield ours, key, build(parts[key])


def _stacked(parts: Parts) -> Rows:
    return Rows(tuple(Run(part, 0, part.shape[0]) for part in parts))


def _upper_half(parts: Parts) -> Rows:
    return Rows(tuple(Run(part, 0, part.shape[0] // 2) for part in parts))


def _lower_half(parts: Parts) -> Rows:
    return Rows(tuple(Run(part, part.shape[0] // 2, part.shape[0]) for part in parts))


def _head_rows(config: ModelConfig, number: int, grouped: bool) -> Callable[[Parts], Rows]:
    """Where the queries (0), keys (1) or values (2) lie.

    As many key/value heads as heads: [q, k, v] for each head. Fewer: [Q | K | V] of all the rank's heads
    when `grouped`, else, for each query head, its query and an equal share of the rank's K and V rows.
    """
    mixer = config.mixer
    size = mixer.head_dim
    share = size * mixer.kv_heads // mixer.heads  # rows of K for each query head

    def rows(parts: Parts) -> Rows:
        heads = mixer.heads // len(parts)
        widths = (size, share, share) if not grouped else (size * heads, share * heads, share * heads)
        before, step = sum(widths[:number]), sum(widths)
        count = 1 if grouped else heads
        if any(part.shape[:1] != (step * count,) for part in parts):
            raise ConversionError(
                f"{parts[0].storage.file}: query_key_value is {list(parts[0].shape)}, the settings ask for "
                f"{step * count} rows",
                REMEDY,
            )
        return Rows(
            tuple(
                Run(part, each * step + before, each * step + before + widths[number])
                for part in parts
                for each in range(count)
            )
        )

    return rows
