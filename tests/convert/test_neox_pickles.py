"""The restricted reader of pickles: tensors and plain containers, nothing is run, damage is an error."""

from __future__ import annotations

import argparse
import os
import pickle
import random
import subprocess
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from neox_checkpoints import unpack
from torch import Tensor

from neoxkit.convert.pickles.storage import Files
from neoxkit.convert.pickles.torch_file import read_objects
from neoxkit.convert.pickles.unpickle import Inert
from neoxkit.errors import CheckpointError


def modern(value: Any, path: Path) -> None:
    """As torch saves now."""
    torch.save(value, path)


def legacy(value: Any, path: Path) -> None:
    """As torch saved before 1.6."""
    torch.save(value, path, _use_new_zipfile_serialization=False)


FORMATS = pytest.mark.parametrize("save", [modern, legacy])
Save = Callable[[Any, Path], None]


class Asks:
    """A pickle that calls something when it is loaded."""

    def __init__(self, called: Callable[..., Any], *given: Any) -> None:
        self.called, self.given = called, given

    def __reduce__(self) -> tuple[Any, ...]:
        return self.called, self.given


@FORMATS
def test_tensors(save: Save, tmp_path: Path) -> None:
    """Every kind, shared and with any strides, is what torch reads."""
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "whole": base,
        "shared": base[1],
        "turned": base.t(),
        "part": base[:, 1:4],
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 5),
        "expanded": torch.ones(1, 3).expand(4, 3),
        **{str(d): base.to(d) for d in (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8)},
        "parameter": torch.nn.Parameter(base.clone()),
    }
    save(OrderedDict(tensors), tmp_path / "x.pt")
    found, files = read_objects(tmp_path / "x.pt"), Files()
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(files.read(found[name]), tensor), name
    rows = np.empty(2 * 4 * 4, np.uint8)
    files.read_rows(found["turned"], (1, 3), rows)
    assert torch.equal(torch.from_numpy(rows).view(torch.float32).reshape(2, 4), base.t()[1:3])


@FORMATS
def test_plain_values(save: Save, tmp_path: Path) -> None:
    """Containers and numbers are themselves; states of generators and arguments become inert."""
    plain = {"none": None, "list": [1, 2.5, "x", b"y", True], "tuple": (1, (2,)), "set": {1, 2}, "big": 2**70}
    other = {"random": np.random.RandomState(1).get_state(), "arguments": argparse.Namespace(a=1)}
    save({**plain, **other, "size": torch.Size([2, 3])}, tmp_path / "x.pt")
    found = read_objects(tmp_path / "x.pt")
    assert {key: found[key] for key in plain} == plain
    assert found["size"] == (2, 3)
    assert isinstance(found["random"][1], Inert)
    assert isinstance(found["arguments"], Inert)


def test_a_file_of_gpt_neox(tmp_path: Path) -> None:
    """As it wrote it, with the states of random generators in it."""
    found = read_objects(unpack(tmp_path) / "zero1" / "mp_rank_00_model_states.pt")
    assert found["args"]["num_attention_heads"] == 4
    assert found["ds_version"] == "0.19.8"


@FORMATS
@pytest.mark.parametrize(
    ("asks", "named"),
    [
        (Asks(os.system, "touch harmed"), r"(posix|nt)\.system"),
        (Asks(eval, "1"), "eval"),
        (Asks(getattr, "x", "y"), "getattr"),
        (Asks(subprocess.Popen, "true"), "Popen"),
        (Asks(np.load, "x", None, True), r"numpy.*load"),
        (Asks(torch.load, "x"), r"torch.*load"),
    ],
)
def test_what_asks_for_more_is_refused_by_name(save: Save, asks: Asks, named: str, tmp_path: Path) -> None:
    """Nothing is run: the file names it, and is refused."""
    before = set(Path().iterdir())
    save({"x": torch.ones(2), "y": asks}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=f"x.pt: asks for .*{named}.*refused; do not trust"):
        read_objects(tmp_path / "x.pt")
    assert set(Path().iterdir()) == before


def rewritten(path: Path, stream: bytes) -> None:
    """Put another pickle into a zip file of torch, all else as it was."""
    with zipfile.ZipFile(path) as archive:
        held = {each.filename: archive.read(each) for each in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in held.items():
            archive.writestr(name, stream if name.endswith("data.pkl") else content)


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE

STREAMS = {
    "beyond its storage": (TENSOR + b"K\x02K\x04\x85K\x01\x85\x89NtR.", "beyond its storage"),
    "negative offset": (TENSOR + b"J\xff\xff\xff\xffK\x04\x85K\x01\x85\x89NtR.", "not a tensor"),
    "negative size": (TENSOR + b"K\x00J\xff\xff\xff\xff\x85K\x01\x85\x89NtR.", "not the sizes"),
    "changes a tensor": (TENSOR + b"K\x00K\x04\x85K\x01\x85\x89NtR}X\x06\x00\x00\x00offsetK\x63sb.", "changes a"),
    "changes a function": (b"ctorch._utils\n_rebuild_tensor_v2\n}X\x05\x00\x00\x00buildK\x00sb.", "changes a"),
    "storage too long": (TENSOR.replace(b"K\x04tQ", b"M\xff\xfftQ") + b"K\x00K\x04\x85K\x01\x85\x89NtR.", "shorter"),
    "memo beyond the file": (b"}r\xff\xff\xff\x7f.", "memo"),
    "extension": (b"\x82\x01.", "asks for the pickle operation EXT1: refused"),
    "bytes longer than the file": (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "not a file of torch tensors"),
    "no end": (b"}", "not a file of torch tensors"),
    "old class": (b"(ios\nsystem\n.", "asks for the pickle operation INST"),
    "by another name": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", r"asks for os\.system"),
}


@pytest.mark.parametrize("name", STREAMS)
def test_pickles_made_by_hand(name: str, tmp_path: Path) -> None:
    """Numbers that lie, and operations that no file of tensors needs."""
    stream, said = STREAMS[name]
    modern({"x": torch.ones(4)}, tmp_path / "x.pt")
    rewritten(tmp_path / "x.pt", stream)
    with pytest.raises(CheckpointError, match=said):
        read_objects(tmp_path / "x.pt")


@FORMATS
@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        (torch.ones(2, dtype=torch.complex64), r"torch\.ComplexFloatStorage"),
        (torch.ones(2).to(torch.float8_e4m3fn), r"torch\._utils\._rebuild_tensor_v3|torch\.storage\.UntypedStorage"),
        (torch.ones(2, 2).to_sparse(), r"torch\._utils\._rebuild_sparse_tensor"),
    ],
    ids=["complex", "fp8", "sparse"],
)
def test_other_kinds_of_tensors_are_refused_by_name(save: Save, tensor: Tensor, named: str, tmp_path: Path) -> None:
    """No harm is meant by them, and torch would read them."""
    save({"x": tensor}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=f"x.pt: holds a tensor by ({named}), which is not read here; write it"):
        read_objects(tmp_path / "x.pt")


@FORMATS
def test_a_parameter_with_attributes(save: Save, tmp_path: Path) -> None:
    """Megatron marks its parameters; the marks are dropped."""
    marked = torch.nn.Parameter(torch.ones(3))
    marked.tensor_model_parallel = True
    save({"x": marked}, tmp_path / "x.pt")
    assert torch.equal(Files().read(read_objects(tmp_path / "x.pt")["x"]), torch.ones(3))


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    """They could not be read in place, and might be of any size."""
    modern({"x": torch.zeros(4000)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        held = {each.filename: archive.read(each) for each in archive.infolist()}
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in held.items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match=r"x/byteorder compressed, which is not read here; write it anew"):
        read_objects(tmp_path / "x.pt")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}.", pickle.dumps({"a": 1}), b"\x00" * 99])
def test_other_files(content: bytes, tmp_path: Path) -> None:
    """Neither a zip of torch nor its pickles."""
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a file of torch tensors"):
        read_objects(tmp_path / "x.pt")


@FORMATS
def test_altered_bytes(save: Save, tmp_path: Path) -> None:
    """A file with altered bytes is read or refused; its tensors stay inside it."""
    value = OrderedDict(a=torch.arange(6.0).reshape(2, 3), b=[1, "x", (2, 3)], c=np.random.RandomState(0).get_state())
    save(value, tmp_path / "x.pt")
    sound = (tmp_path / "x.pt").read_bytes()
    chance = random.Random(11)
    read = 0
    for _ in range(600):
        data = bytearray(sound)
        for _ in range(chance.choice((1, 1, 2, 8))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        if chance.random() < 0.1:
            del data[chance.randrange(len(data)) :]
        (tmp_path / "y.pt").write_bytes(data)
        try:
            found = read_objects(tmp_path / "y.pt")
            tensor = found.get("a") if isinstance(found, dict) else None
            if hasattr(tensor, "storage"):
                assert isinstance(Files().read(tensor), Tensor)
                read += 1
        except CheckpointError:
            continue
    assert read > 10


def test_nothing_is_read_before_it_is_wanted(tmp_path: Path) -> None:
    """Opening a file takes memory for its pickle alone."""
    modern({"x": torch.zeros(5_000_000)}, tmp_path / "x.pt")
    tracemalloc.start()
    try:
        found, files = read_objects(tmp_path / "x.pt"), Files()
        files.read_rows(found["x"], (7, 9), np.empty(8, np.uint8))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
