"""Headers of safetensors files: what the package writes we read, what we write it reads, and lies are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from neoxkit.checkpoint import dtypes
from neoxkit.checkpoint.safetensors_file import DTYPE_BITS, build_header, read_header, tensor_bytes
from neoxkit.errors import CheckpointError


def example(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Random bits as a tensor."""
    size = torch.empty(shape, dtype=dtype).numel() * dtype.itemsize
    bits = torch.randint(0, 2 if dtype is torch.bool else 256, (size,), dtype=torch.uint8)
    return bits.view(dtype).reshape(shape)


ALL = {name: example(dtype, shape) for name, dtype in dtypes.TORCH.items() for shape in [(3, 5)]} | {
    "scalar": torch.tensor(1.5),
    "empty": torch.zeros(0, 4),
    "odd": torch.ones(7, dtype=torch.uint8),
}


def test_reads_what_the_package_writes(tmp_path: Path) -> None:
    path = tmp_path / "theirs.safetensors"
    safetensors.torch.save_file(ALL, path, metadata={"format": "pt"})
    header, data = read_header(path), path.read_bytes()
    assert header.metadata == {"format": "pt"}
    assert header.size == len(data)
    assert header.entries.keys() == ALL.keys()
    for name, value in ALL.items():
        entry = header.entries[name]
        assert entry.shape == tuple(value.shape)
        assert dtypes.TORCH[entry.dtype] == value.dtype
        assert data[entry.first : entry.last] == dtypes.octets(value).tobytes()


def test_the_package_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "ours.safetensors"
    head, header = build_header(
        {name: (dtypes.name_of(value.dtype), tuple(value.shape)) for name, value in ALL.items()}, {"a": "é"}
    )
    path.write_bytes(head + b"".join(dtypes.octets(value).tobytes() for value in ALL.values()))
    assert header.start % 8 == 0
    assert read_header(path) == header
    with safe_open(path, "pt") as theirs:
        assert set(theirs.keys()) == set(ALL)
        assert theirs.metadata() == {"a": "é"}
        for name, value in ALL.items():
            if name == "C64":  # the package's safe_open does not make complex tensors in every version
                continue
            found = theirs.get_tensor(name)
            assert found.dtype == value.dtype
            assert found.shape == value.shape
            assert dtypes.octets(found).tobytes() == dtypes.octets(value).tobytes()


def test_the_dtypes_are_those_of_the_package() -> None:
    """Each of our names is known to the package's parser, with our size."""
    for name, bits in DTYPE_BITS.items():
        head, header = build_header({"x": (name, (8,))})
        assert header.size - header.start == bits == tensor_bytes(name, (8,))
        safetensors.deserialize(head + bytes(bits))
    assert {name for name, bits in DTYPE_BITS.items() if bits >= 8} == set(dtypes.TORCH)


def file_of(path: Path, header: object, data: bytes = bytes(16), length: int | None = None) -> Path:
    """A file with this header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def one(**claim: object) -> dict[str, object]:
    """A header of one F32 tensor of 16 bytes, changed as `claim` says."""
    return {"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | claim}


def two(first: list[int], second: list[int]) -> dict[str, object]:
    """A header of two U8 tensors at these offsets."""
    return {
        name: {"dtype": "U8", "shape": [at[1] - at[0]], "data_offsets": at}
        for name, at in (("a", first), ("b", second))
    }


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b'{"x": 1, "x": 2}', "'x' is there twice"),
        ({"__metadata__": {"a": 1}}, "__metadata__"),
        ({"x": 3}, "no dtype, shape and data_offsets"),
        (one(dtype="F3"), "unknown dtype 'F3'"),
        (one(dtype=["F32"]), "unknown dtype"),
        (one(shape=[-4]), "the shape"),
        (one(shape=[True, 4]), "the shape"),
        (one(shape="4"), "the shape"),
        (one(data_offsets=[0]), "the offsets"),
        (one(data_offsets=[16, 0]), "the offsets"),
        (one(data_offsets=[0, 1 << 60]), "cut short"),
        (one(shape=[1 << 40, 1 << 40]), "fills 16 bytes, but"),
        (one(shape=[3]), "fills 16 bytes, but F32 [3] is 12 bytes"),
        (two([0, 9], [8, 16]), "'a' and 'b' overlap"),
        (two([0, 6], [8, 16]), "bytes 135 to 137 belong to no tensor"),
        (two([0, 6], [6, 12]), "belong to no tensor"),
        ({}, "belong to no tensor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_lies_are_refused(tmp_path: Path, header: object, says: str) -> None:
    path = file_of(tmp_path / "x.safetensors", header)
    with pytest.raises(CheckpointError, match=r"x\.safetensors") as caught:
        read_header(path)
    assert says in caught.value.cause


def test_a_header_longer_than_the_file_is_not_allocated_for(tmp_path: Path) -> None:
    for length in (1 << 62, 10_000):
        with pytest.raises(CheckpointError, match="too short"):
            read_header(file_of(tmp_path / "x.safetensors", {}, length=length))
    (tmp_path / "tiny").write_bytes(b"abc")
    with pytest.raises(CheckpointError, match="too short"):
        read_header(tmp_path / "tiny")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.safetensors: No such file"):
        read_header(tmp_path / "gone.safetensors")
