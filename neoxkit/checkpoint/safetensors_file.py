"""The header of a safetensors file: which tensor lies where. Knows nothing of checkpoints; no torch.

The safetensors package shows neither a tensor's place in the file nor a way to write one in blocks;
a reader and a writer that stream need both. The package is what the tests compare with.

A file is: 8 bytes, the header's length, little-endian; the header, JSON, padded with spaces; the
tensors' bytes. (https://huggingface.co/docs/safetensors, "Format".)
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import BinaryIO

from neoxkit.checkpoint.json_text import LARGEST, parse_object
from neoxkit.checkpoint.store import Place, StorePath
from neoxkit.errors import CheckpointError

DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "U16": 16,
    "I16": 16,
    "U32": 32,
    "I32": 32,
    "U64": 64,
    "I64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E4M3": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "F16": 16,
    "BF16": 16,
    "F32": 32,
    "F64": 64,
    "C64": 64,
}
"""Bits of an element of each dtype that safetensors has."""

MOST_HEADER = 100_000_000
"""Bytes; the safetensors package refuses longer headers too."""

_GUESS = 256 << 10  # bytes that hold the header of most files

_ALIGNMENT = 8
_MOST_DIMENSIONS = 64


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor in a file: bytes `first` to `last`, counted from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a file holds. `start` is where tensors begin; `size` is the whole file's bytes."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    start: int
    size: int


def tensor_bytes(dtype: str, shape: Iterable[int]) -> int:
    """Bytes of a tensor; a dtype of less than 8 bits fills whole bytes. KeyError for an unknown dtype."""
    return -(-prod(shape) * DTYPE_BITS[dtype] // 8)


def read_header(path: Place) -> Header:
    """The validated header of a file. Nothing it claims is believed, or allocated for, before it is checked.

    Raises CheckpointError, naming the file (and the tensor), when the file is missing or is no
    safetensors file, and when entries overlap, leave a hole, lie outside the file or claim another
    size than dtype and shape have.
    """
    remedy = "fetch or write the file again"
    try:
        with _opened(path) as (file, size):
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise CheckpointError(f"{path}: too short to be a whole safetensors file ({size} bytes)", remedy)
            if length > MOST_HEADER:
                raise CheckpointError(f"{path}: claims a header of {length} bytes", "is it a safetensors file?")
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}", "check the path") from error
    parsed = parse_object(raw, f"{path}: its header", remedy, unique=True)
    metadata = parsed.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: its __metadata__ does not map text to text", remedy)
    entries = {key: _entry(path, key, value, 8 + length, size) for key, value in parsed.items()}
    _check_cover(path, entries, 8 + length, size)
    return Header(entries, metadata, 8 + length, size)


@contextmanager
def _opened(path: Place) -> Iterator[tuple[BinaryIO, int]]:
    """A file to read a header from, and its size. Of an object one request brings nearly all headers."""
    if isinstance(path, StorePath):
        size = path.stat().st_size
        begin = path.fetch(0, min(size, _GUESS)) if size else b""
        length = int.from_bytes(begin[:8], "little")
        if len(begin) < 8 + length <= min(size, 8 + MOST_HEADER):
            begin += path.fetch(len(begin), 8 + length)
        yield io.BytesIO(begin), size
        return
    with path.open("rb") as file:
        yield file, os.fstat(file.fileno()).st_size


def build_header(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, Header]:
    """The first bytes of a file of these tensors (key: dtype and shape), and what they say.

    Tensors lie in the order given. Tensor data begins at a multiple of 8 bytes.
    """
    claims: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for key, (dtype, shape) in tensors.items():
        size = tensor_bytes(dtype, shape)
        claims[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(claims, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    start = 8 + len(text)
    entries: dict[str, Entry] = {}
    first = start
    for key, (dtype, shape) in tensors.items():
        entries[key] = Entry(dtype, tuple(shape), first, first + tensor_bytes(dtype, shape))
        first = entries[key].last
    return len(text).to_bytes(8, "little") + text, Header(entries, dict(metadata or {}), start, start + at)


def _entry(path: Place, key: str, claim: object, start: int, size: int) -> Entry:
    """One entry, with offsets counted from the start of the file."""
    where, remedy = f"{path}: tensor {key!r}", "fetch or write the file again"
    if not isinstance(claim, dict) or not {"dtype", "shape", "data_offsets"} <= claim.keys():
        raise CheckpointError(f"{where} has no dtype, shape and data_offsets", remedy)
    dtype, shape, offsets = claim["dtype"], claim["shape"], claim["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CheckpointError(f"{where} has the unknown dtype {dtype!r}", "upgrade neoxkit, or convert the tensor")
    if not _naturals(shape) or not reasonable(shape):
        raise CheckpointError(f"{where} has the shape {shape!r:.80}", remedy)
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where} has the offsets {offsets!r:.80}", remedy)
    first, last = offsets
    if start + last > size:
        raise CheckpointError(f"{where} ends at byte {start + last} of a file of {size}: the file is cut short", remedy)
    if last - first != tensor_bytes(dtype, shape):
        claimed = f"{dtype} {shape} is {tensor_bytes(dtype, shape)} bytes"
        raise CheckpointError(f"{where} fills {last - first} bytes, but {claimed}", remedy)
    return Entry(dtype, tuple(shape), start + first, start + last)


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each <= LARGEST for each in value)


def reasonable(shape: Sequence[int]) -> bool:
    """Whether a tensor of this shape could be made, if it holds no more bytes than its file.

    The strides of an empty one are numbers too, and no file is too small for it.
    """
    empty = 0 in shape
    return len(shape) <= _MOST_DIMENSIONS and not (empty and prod(size or 1 for size in shape) > LARGEST // 64)


def _check_cover(path: Place, entries: Mapping[str, Entry], start: int, size: int) -> None:
    """Raise unless the entries fill the file after its header, each byte once."""
    at, before = start, "the header"
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].first, item[1].last)):
        if entry.first < at:
            raise CheckpointError(f"{path}: tensors {before} and {key!r} overlap", "fetch or write the file again")
        if entry.first > at:
            raise CheckpointError(f"{path}: bytes {at} to {entry.first} belong to no tensor", "write the file again")
        at, before = entry.last, repr(key)
    if at != size:
        raise CheckpointError(f"{path}: bytes {at} to {size} belong to no tensor", "fetch or write the file again")
