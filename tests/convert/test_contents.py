"""Numbers that are not finite are counted, in every dtype; masters are checked without reading weights twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock

import numpy as np
import pytest
import torch
from torch import Tensor

from neoxkit.checkpoint import scan
from neoxkit.checkpoint.dtypes import TORCH, octets
from neoxkit.checkpoint.pieces import PieceFiles
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.convert.contents import not_finite
from neoxkit.convert.verify import verify
from neoxkit.mesh import Mesh

Save = Callable[..., Path]


def counted(value: Tensor) -> tuple[int, int]:
    """What torch counts."""
    if value.is_complex():
        value = torch.view_as_real(value)
    if not value.is_floating_point():
        return 0, 0
    value = value.double()
    return int(value.isnan().sum()), int(value.isinf().sum())


@pytest.mark.parametrize("dtype", TORCH)
def test_every_bit_pattern_is_as_torch_reads_it(dtype: str) -> None:
    kind = TORCH[dtype]
    bits = np.arange(1 << 16, dtype=np.uint16)
    if kind.itemsize == 1:
        data = np.arange(256, dtype=np.uint8) if kind is not torch.bool else np.array([0, 1], np.uint8)
    elif kind.itemsize == 2:
        data = bits.view(np.uint8)
    else:  # the high bits say what is finite; the low ones are all zero, then all one
        wide = bits.astype(np.uint64) << (8 * min(kind.itemsize, 4 if dtype == "C64" else 8) - 16)
        data = np.concatenate([wide, wide | 1]).astype({4: np.uint32, 8: np.uint64}[kind.itemsize]).view(np.uint8)
    value = torch.from_numpy(data.copy()).view(kind)
    assert not_finite(data, dtype) == counted(value)
    for first in range(0, value.numel(), 4097):  # blocks with some, with none, with negative ones alone
        part = value[first : first + 257]
        assert not_finite(octets(part), dtype) == counted(part), first


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
def test_one_among_many(dtype: str) -> None:
    value = torch.randn(1000).to(TORCH[dtype])
    assert not_finite(octets(value), dtype) == (0, 0)
    for bad in (float("nan"), float("inf"), -float("inf"), -float("nan")):
        altered = value.clone()
        altered[371] = bad
        assert not_finite(octets(altered), dtype) == counted(altered)
        assert sum(not_finite(octets(altered), dtype)) == 1
    assert not_finite(octets(value[:0]), dtype) == (0, 0)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Bytes that are read of each file."""
    count: dict[str, int] = {}
    one = Lock()  # files are read by several threads
    read = PieceFiles.read_into

    def counting(self: PieceFiles, piece, at: int, data) -> None:
        name = self.path(piece).name
        with one:
            count[name] = count.get(name, 0) + len(data)
        read(self, piece, at, data)

    monkeypatch.setattr(PieceFiles, "read_into", counting)
    monkeypatch.setattr(Checkpoint, "stream", None)
    return count


@pytest.mark.parametrize("mesh", [Mesh(), Mesh(tp=4, pp=3)], ids=str)
def test_every_byte_is_read_once(save: Save, mesh: Mesh, fetched: dict[str, int], monkeypatch) -> None:
    monkeypatch.setattr(scan, "SPAN_BYTES", 256)
    folder = save(mesh=mesh)
    assert verify(folder).sound
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert fetched == {path.name: path.stat().st_size for path in files}


@pytest.mark.parametrize("mesh", [Mesh(), Mesh(tp=4, pp=3)], ids=str)
@pytest.mark.parametrize("name", ["layers.1.attn.q.weight", "layers.2.mlp.down.weight", "norm.bias"])
def test_a_stale_master_is_found_in_any_cut(
    save: Save, tensors: Mapping[str, Tensor], mesh: Mesh, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "SPAN_BYTES", 200)
    weight = tensors["model/" + name].clone()
    flat = weight.reshape(-1)
    flat[-1] += 1
    flat[0] = -flat[0]
    (finding,) = verify(save(mesh=mesh, values={**tensors, "model/" + name: weight})).findings
    assert (finding.kind, finding.where) == ("master", "optimizer/master/" + name)
    assert f"2 of {weight.numel()} elements do not round" in finding.what


def test_a_zero_of_the_other_sign_is_no_stale_master(save: Save, tensors: Mapping[str, Tensor]) -> None:
    name = "layers.1.attn.q.weight"
    weight, master = tensors["model/" + name].clone(), tensors["optimizer/master/" + name].clone()
    weight[0, 0], master[0, 0] = 0.0, -0.0
    values = {**tensors, "model/" + name: weight, "optimizer/master/" + name: master}
    assert verify(save(values=values)).sound


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_masters_of_other_dtypes(save: Save, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    masters = {n: v for n, v in tensors.items() if not n.startswith("model/")}
    weights = {n.replace("optimizer/master/", "model/"): v.to(dtype) for n, v in masters.items() if "/master/" in n}
    assert verify(save(values={**weights, **masters})).sound
