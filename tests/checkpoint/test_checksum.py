"""CRC-64/NVME of parts, however cut, against a bit-by-bit reference and against the CRC of the whole."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neoxkit.checkpoint.checksum import (
    CHECK,
    closed,
    combine,
    contribution,
    crc64nvme,
    linear,
    row_dim,
    run_contribution,
    shift,
    zeros,
)
from neoxkit.spec import Axis, Box, Split, TensorSpec, boxes, volume, whole

REFLECTED = int(f"{0xAD93D23594C93659:064b}"[::-1], 2)


def bitwise(data: bytes) -> int:
    """The definition: one bit at a time, reflected, all ones in and out."""
    crc = 0xFFFFFFFFFFFFFFFF
    for octet in data:
        crc ^= octet
        for _ in range(8):
            crc = crc >> 1 ^ (REFLECTED if crc & 1 else 0)
    return crc ^ 0xFFFFFFFFFFFFFFFF


def test_the_check_value() -> None:
    assert CHECK == 0xAE8B14860A799888
    assert crc64nvme(b"123456789") == bitwise(b"123456789") == CHECK
    assert crc64nvme(b"") == bitwise(b"") == 0


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_against_the_definition(first: bytes, second: bytes) -> None:
    whole_crc = bitwise(first + second)
    assert crc64nvme(first + second) == whole_crc
    assert crc64nvme(second, crc64nvme(first)) == whole_crc
    assert combine(crc64nvme(first), crc64nvme(second), len(second)) == whole_crc
    assert closed(shift(linear(first), len(second)) ^ linear(second), len(first + second)) == whole_crc


@given(st.integers(0, 2000))
def test_zeros(length: int) -> None:
    assert zeros(length) == crc64nvme(bytes(length))


def test_a_gap_too_long_to_hold_is_crossed() -> None:
    """2**40 zero bytes, by doubling: O(log n), and equal to the long way round."""
    crc, length = crc64nvme(b"\0"), 1
    while length < 1 << 40:
        crc, length = combine(crc, crc, length), 2 * length
    assert zeros(1 << 40) == crc


@st.composite
def tensors(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Bytes [..., item] of a tensor of up to four dimensions, and its element's size."""
    item = draw(st.sampled_from([1, 2, 4, 8]))
    shape = tuple(draw(st.lists(st.integers(1, 9), max_size=4)))
    seed = np.random.default_rng(draw(st.integers(0, 2**32)))
    return seed.integers(0, 256, (*shape, item), np.uint8), item


def taken(data: np.ndarray, box: Box) -> np.ndarray:
    """The bytes of a box, flat."""
    return np.ascontiguousarray(data[tuple(slice(*span) for span in box)]).reshape(-1)


@st.composite
def divided(draw: st.DrawFn, shape: tuple[int, ...]) -> list[Box]:
    """Disjoint boxes that cover a shape: a random guillotine cut."""
    found = [whole(shape)]
    for _ in range(draw(st.integers(0, 6))):
        if not shape:
            break
        box = found.pop(draw(st.integers(0, len(found) - 1)))
        dim = draw(st.integers(0, len(shape) - 1))
        start, stop = box[dim]
        at = draw(st.integers(start, stop))
        found += [(*box[:dim], (start, at), *box[dim + 1 :]), (*box[:dim], (at, stop), *box[dim + 1 :])]
    return found


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_boxes_and_runs_in_any_cut_give_the_crc_of_the_whole(draw: st.DataObject) -> None:
    data, item = draw.draw(tensors())
    shape = data.shape[:-1]
    total = 0
    for box in draw.draw(divided(shape)):
        part = taken(data, box)
        count = volume(box)
        marks = sorted({0, count, *draw.draw(st.lists(st.integers(0, count), max_size=3))})
        if len(marks) == 2:
            assert run_contribution(part, shape, box, (0, count), item) == contribution(part, shape, box, item)
        for first, last in itertools.pairwise(marks):
            total ^= run_contribution(part[first * item : last * item], shape, box, (first, last), item)
    assert closed(total, data.size) == crc64nvme(data.reshape(-1))


@pytest.mark.parametrize("width", [24, 96, 4098, 6000], ids=lambda w: f"rows of {w}")
@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("parts", [2, 3])
def test_tensor_parallel_slices_and_their_zero_partitions(dim: int, parts: int, width: int) -> None:
    """Rows, columns and experts; each slice whole and in four runs. Short rows and long take different ways."""
    shape = (6, 12, width)
    data = np.random.default_rng(0).integers(0, 256, (*shape, 2), np.uint8)
    spec = TensorSpec("experts", shape, (Split(dim, Axis.TP),))
    slices = total = 0
    for box in boxes(spec, {Axis.TP: parts}):
        part = taken(data, box)
        slices ^= contribution(part, shape, box, 2)
        marks = [volume(box) * k // 4 + k % 3 for k in range(4)] + [volume(box)]
        for first, last in itertools.pairwise(marks):
            total ^= run_contribution(part[2 * first : 2 * last], shape, box, (first, last), 2)
    assert slices == total == linear(data.reshape(-1))


def test_a_part_in_another_place_contributes_something_else() -> None:
    data = np.arange(1, 13, dtype=np.uint8)
    places: list[Box] = [((0, 4), (0, 3)), ((0, 4), (1, 4)), ((1, 5), (0, 3)), ((0, 3), (0, 4))]
    assert len({contribution(data, (5, 4), place, 1) for place in places}) == 4


def test_row_dim() -> None:
    assert row_dim((4, 6, 8), ((0, 4), (0, 6), (2, 3))) == 2
    assert row_dim((4, 6, 8), ((0, 4), (1, 6), (0, 8))) == 1
    assert row_dim((4, 6, 8), ((1, 4), (0, 6), (0, 8))) == 0
    assert row_dim((4, 6, 8), ((1, 2), (2, 3), (3, 5))) == 0
    assert row_dim((), ()) == 0
