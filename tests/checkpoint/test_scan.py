"""One pass gives every checksum that reading file by file, and tensor by tensor, gives."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neoxkit.checkpoint import dtypes, scan
from neoxkit.checkpoint.checksum import crc64nvme
from neoxkit.checkpoint.format import ITEM_BYTES, Manifest
from neoxkit.checkpoint.pieces import PieceFiles
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.scan import Block, Scan, Sums
from neoxkit.checkpoint.writer import Part
from neoxkit.mesh import Mesh
from neoxkit.spec import TensorSpec, run_boxes, volume, whole

MESHES = [Mesh(), Mesh(tp=2), Mesh(tp=4, pp=2), Mesh(tp=2, dp=2, ep=2)]


class Collector:
    """Puts tensors together again from what it is shown."""

    def __init__(self, manifest: Manifest) -> None:
        self.tensors = manifest.tensors
        self.seen = {name: np.zeros(t.spec.shape, np.int64) for name, t in manifest.tensors.items()}
        self.sums = dict.fromkeys(manifest.tensors, 0)

    def look(self, block: Block) -> tuple[Any, ...]:
        item = ITEM_BYTES[block.tensor.dtype]
        return block.box, block.run, len(block.data), block.gain(block.data, block.tensor.spec.shape, item)

    def take(self, name: str, shown: tuple[Any, ...]) -> None:
        box, run, size, gain = shown
        parts = [box] if run is None else run_boxes(box, run)
        for part in parts:
            self.seen[name][tuple(slice(*span) for span in part)] += 1
        assert sum(map(volume, parts)) * ITEM_BYTES[self.tensors[name].dtype] == size
        self.sums[name] ^= gain


class Count:
    """Progress."""

    done = 0

    def advance(self, amount: int) -> None:
        self.done += amount


def scanned(folder: Path, **options: Any) -> tuple[Checkpoint, Sums, int]:
    checkpoint, count = Checkpoint.open(folder), Count()
    files = PieceFiles(folder, checkpoint.manifest)
    found = Scan(files, checkpoint.manifest, **options).run(count)
    files.close()
    return checkpoint, found, count.done


def check(folder: Path) -> None:
    """All sums are those of the bytes themselves, and every element was shown once."""
    collector = Collector(Checkpoint.open(folder).manifest)
    checkpoint, found, done = scanned(folder, watcher=collector)
    manifest = checkpoint.manifest
    assert found.failed == found.amiss == {}
    assert done == sum(file.bytes for file in manifest.files)
    assert found.files == {n: crc64nvme((folder / f.path).read_bytes()) for n, f in enumerate(manifest.files)}
    assert found.tensors == {name: crc64nvme(dtypes.octets(checkpoint.read(name))) for name in manifest.tensors}
    assert found.entries == {(p.file, p.key): p.crc for t in manifest.tensors.values() for p in t.pieces}
    for name, tensor in manifest.tensors.items():
        assert (collector.seen[name] == 1).all(), name
        assert scan.closed(collector.sums[name], tensor.bytes) == tensor.crc


@pytest.mark.parametrize("span", [1 << 20, 100, 2])
@pytest.mark.parametrize("mesh", MESHES, ids=lambda m: f"tp{m.tp}-pp{m.pp}-ep{m.ep}")
def test_any_mesh(save, mesh: Mesh, span: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "SPAN_BYTES", span)
    check(save(mesh=mesh))


def test_rows_that_are_too_long_are_not_put_together(save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_MOST_ROW", 1)
    monkeypatch.setattr(scan, "SPAN_BYTES", 64)
    check(save(mesh=Mesh(tp=4)))


def test_any_pieces(save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grids of boxes, some of them in runs as ZeRO cuts them, of tensors of any shape and dtype."""

    @settings(max_examples=100)
    @given(st.data())
    def law(data: st.DataObject) -> None:
        draw = data.draw
        shape = tuple(draw(st.lists(st.integers(1, 7), max_size=3)))
        dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8]))
        value = torch.randint(0, 200, shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        name, files = "model/a", [f"model/{n}.safetensors" for n in range(3)]
        spec = TensorSpec("a", shape)
        parts: list[Part] = []
        grid: list[tuple[tuple[int, int], ...]] = [()]
        for length in shape:
            cuts = sorted({0, length, *draw(st.lists(st.integers(0, length), max_size=2))})
            grid = [(*box, span) for box in grid for span in pairwise(cuts)]
        for box in grid:
            ends = sorted({0, volume(box), *draw(st.lists(st.integers(0, volume(box)), max_size=2))})
            runs = list(pairwise(ends)) if draw(st.booleans()) else [None]
            parts += (Part(name, spec, dtypes.name_of(dtype), box, draw(st.sampled_from(files)), run) for run in runs)
        monkeypatch.setattr(scan, "SPAN_BYTES", draw(st.sampled_from([8, 24, 1 << 20])))
        folder = f"c{len(list(tmp_path.iterdir()))}"
        check(save(folder, values={name: value}, parts=parts))

    law()


def test_an_empty_tensor(save) -> None:
    check(save(values={"model/empty": torch.zeros(0, 3), "model/one": torch.ones(())}))


def test_what_cannot_be_read_is_named_and_the_rest_is_read(save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "SPAN_BYTES", 64)
    folder = save(mesh=Mesh(tp=2))
    checkpoint = Checkpoint.open(folder)
    numbers = {file.path: n for n, file in enumerate(checkpoint.manifest.files)}
    short = numbers["model/pp00-tp01.safetensors"]
    files = PieceFiles(folder, checkpoint.manifest)
    files.header(short)
    with (folder / "model/pp00-tp01.safetensors").open("r+b") as file:
        file.truncate(checkpoint.manifest.files[short].bytes - 200)
    found = Scan(files, checkpoint.manifest).run(Count())
    assert set(found.failed) == {short}
    assert "pp00-tp01" in found.failed[short]
    other = numbers["model/pp00-tp00.safetensors"]
    assert found.files[other] == checkpoint.manifest.files[other].crc
    whole_elsewhere = {n for n, t in checkpoint.manifest.tensors.items() if {p.file for p in t.pieces} == {other}}
    assert whole_elsewhere
    assert set(found.tensors) == whole_elsewhere


def test_files_that_are_left_out(save) -> None:
    checkpoint, found, done = scanned(save(mesh=Mesh(pp=4)), without=[1])
    assert 1 not in found.files
    assert len(found.files) == len(checkpoint.manifest.files) - 1
    assert done == sum(file.bytes for n, file in enumerate(checkpoint.manifest.files) if n != 1)
    assert set(found.tensors) == {n for n, t in checkpoint.manifest.tensors.items() if t.pieces[0].file != 1}


def test_a_box_as_one_piece_is_not_put_together(save) -> None:
    """The plain case reads straight on: no span has two parts."""
    checkpoint = Checkpoint.open(save(mesh=Mesh()))
    spans = list(Scan(PieceFiles(checkpoint.path, checkpoint.manifest), checkpoint.manifest)._spans())
    assert all(len(span.parts) == 1 and not span.scattered for span in spans)
    assert {span.box for span in spans if span.name == "model/embed.weight"} == {whole((50, 16))}
