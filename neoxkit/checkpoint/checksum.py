"""CRC-64/NVME of a logical tensor, from parts of it that may be cut in any way. No torch.

A CRC is linear over GF(2). The CRC of a whole is the XOR of what each of its parts contributes and
the CRC of as many zero bytes. A part's contribution is its own CRC without that constant, shifted to
its place by a multiplication with x^(8 n), where n bytes follow the part. Example: the CRC of
"abcdef" is contribution("abc") * x^24 ^ contribution("def") ^ CRC(six zero bytes).

This finds accidents. It is no defence against someone who alters a file on purpose.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING

import anycrc  # type: ignore[import-untyped]

from neoxkit.spec import Box, Run, run_boxes, volume

if TYPE_CHECKING:  # numpy takes 0.1 s to import, and looking at a manifest needs none of it
    import numpy as np
    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]
    _Words = npt.NDArray[np.uint64]

CHECK = 0xAE8B14860A799888
"""The CRC of b"123456789", by which catalogues know this CRC."""

_ONES = 0xFFFFFFFFFFFFFFFF
_MODEL = anycrc.Model("CRC64-NVME")
_PADDED_ROW = 4096  # a row this short is cheaper to pad with zeros (0.1 ns a byte) than to call for (0.7 us)
_PADDED_BLOCK = 1 << 20


def crc64nvme(data: bytes | bytearray | memoryview | Bytes, previous: int = 0) -> int:
    """The CRC of contiguous bytes; `previous` is the CRC of the bytes before them."""
    value: int = _MODEL.calc(data, previous)
    return value


def combine(first: int, second: int, length: int) -> int:
    """The CRC of A + B, from the CRC of A, that of B, and the bytes in B."""
    value: int = _MODEL.combine(first, second, length)
    return value


def shift(value: int, length: int) -> int:
    """A contribution moved forward past `length` bytes."""
    return combine(value, 0, length)


@lru_cache(maxsize=65536)
def zeros(length: int) -> int:
    """The CRC of `length` zero bytes."""
    return shift(_ONES, length) ^ _ONES


def linear(data: bytes | bytearray | memoryview | Bytes) -> int:
    """What contiguous bytes contribute to the CRC of something that ends with them."""
    return crc64nvme(data) ^ zeros(len(data))


def contribution(data: Bytes, shape: Sequence[int], box: Box, item: int, known: int | None = None) -> int:
    """What a box contributes to the CRC of a whole tensor.

    `data` is the box's elements, `item` bytes each, contiguous, in row-major order; `shape` is the
    whole tensor's. XOR the contributions of all boxes, then `closed` gives the CRC. `known` saves
    computing `linear(data)` again where a box is contiguous in the whole.
    """
    if not data.size:
        return 0
    strides = [item * prod(shape[dim + 1 :]) for dim in range(len(shape))]
    inner = row_dim(shape, box)
    outer = [stop - start for start, stop in box[:inner]]
    after = item * prod(shape) - item - sum((stop - 1) * step for (_, stop), step in zip(box, strides, strict=True))
    if inner == 0:
        return shift(linear(data) if known is None else known, after)
    import numpy as np

    row = data.size // prod(outer)
    if strides[inner - 1] <= _PADDED_ROW:
        parts = _padded(data.reshape(-1, outer.pop(), row), strides[inner - 1])
    else:
        lines = data.reshape(-1, row)
        parts = np.fromiter(map(_MODEL.calc, lines), np.uint64, len(lines)) ^ np.uint64(zeros(row))
    parts = parts.reshape(outer)
    for dim in reversed(range(len(outer))):
        parts = _folded(parts, strides[dim])
    return shift(int(parts.reshape(-1)[0]), after)


def row_dim(shape: Sequence[int], box: Box) -> int:
    """The dimension from which on a box of a tensor is contiguous in it; 0 when all of it is.

    Example: 2 for ((0, 4), (0, 6), (2, 3)) of [4, 6, 8], which is 24 rows of one element.
    """
    inner = max(len(shape) - 1, 0)
    while inner > 0 and box[inner] == (0, shape[inner]):
        inner -= 1
    return 0 if all(stop - start == 1 for start, stop in box[:inner]) else inner


def run_contribution(data: Bytes, shape: Sequence[int], box: Box, run: Run, item: int) -> int:
    """What a run of a box's elements contributes to the CRC of a whole tensor; as `contribution`."""
    value, at = 0, 0
    for part in run_boxes(box, run):
        size = volume(part) * item
        value ^= contribution(data[at : at + size], shape, part, item)
        at += size
    return value


def closed(contributions: int, length: int) -> int:
    """The CRC of `length` bytes, from the XOR of the contributions of all of them."""
    return contributions ^ zeros(length)


def _padded(planes: Bytes, stride: int) -> _Words:
    """Contributions of planes [plane, row, byte] whose rows lie `stride` bytes apart, to what ends with each."""
    import numpy as np

    count, height, row = planes.shape
    step = max(1, _PADDED_BLOCK // stride)
    room = np.zeros((min(step, height), stride), np.uint8)
    found = np.empty(count, np.uint64)
    for index, plane in enumerate(planes):
        crc = 0
        for first in range(0, height, step):
            part = plane[first : first + step]
            room[: len(part), stride - row :] = part
            crc = crc64nvme(room[: len(part)].reshape(-1), crc)
        found[index] = crc ^ zeros(height * stride)
    return found


def _folded(parts: _Words, stride: int) -> _Words:
    """Contributions [..., n] of n equal parts `stride` bytes apart, as one: [...].

    Neighbours are joined in pairs, then pairs of pairs: log2(n) multiplications of arrays.
    """
    import numpy as np

    while parts.shape[-1] > 1:
        if parts.shape[-1] % 2:  # nothing, put before the first part, changes nothing
            parts = np.concatenate([np.zeros_like(parts[..., :1]), parts], axis=-1)
        parts = _multiplied(parts[..., 0::2], stride) ^ parts[..., 1::2]
        stride *= 2
    return parts[..., 0]


def _multiplied(values: _Words, length: int) -> _Words:
    """Each contribution moved forward past `length` bytes."""
    import numpy as np

    table = _table(length)
    octets: Bytes = np.ascontiguousarray(values, dtype="<u8").view(np.uint8).reshape(*values.shape, 8)
    result: _Words = table[0][octets[..., 0]]
    for place in range(1, 8):
        result ^= table[place][octets[..., place]]
    return result


@lru_cache(maxsize=512)
def _table(length: int) -> _Words:
    """[8, 256]: the product of each byte at each of the eight places with x^(8 length)."""
    import numpy as np

    bits = np.array([shift(1 << bit, length) for bit in range(64)], np.uint64).reshape(8, 8)
    table = np.zeros((8, 256), np.uint64)
    for bit in range(8):
        table[:, 1 << bit : 2 << bit] = table[:, : 1 << bit] ^ bits[:, bit : bit + 1]
    return table


def fingerprint_of(tensors: Iterable[tuple[str, str, Sequence[int], int]]) -> str:
    """The fingerprint of tensors, each by its name without a component, dtype, shape and checksum.

    The CRC of the sorted lines "NAME DTYPE [SHAPE] CRC\\n".
    """
    rows = "".join(f"{name} {dtype} {list(shape)} {crc:016x}\n" for name, dtype, shape, crc in sorted(tensors))
    return f"{crc64nvme(rows.encode()):016x}"
