"""What is written is read: any cut, any box, any dtype, and the same checksums whatever the cut."""

from __future__ import annotations

import json
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sound import damaged

from neoxkit.checkpoint import dtypes
from neoxkit.checkpoint.checksum import crc64nvme
from neoxkit.checkpoint.format import ITEM_BYTES, bare, parse
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.writer import Part, Writer, cut
from neoxkit.errors import CheckpointError
from neoxkit.mesh import Mesh, layer_of
from neoxkit.spec import Box, TensorSpec, boxes, rows, volume, whole

MESHES = [Mesh(), Mesh(tp=2), Mesh(tp=4), Mesh(pp=3), Mesh(tp=2, pp=4), Mesh(tp=2, dp=2, ep=2)]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the last bit; NaNs too."""
    return a.dtype == b.dtype and a.shape == b.shape and bool((dtypes.octets(a) == dtypes.octets(b)).all())


def part_of(value: torch.Tensor, box: Box) -> torch.Tensor:
    """A box of a tensor."""
    return value[tuple(slice(*span) for span in box)]


@pytest.mark.parametrize("mesh", MESHES, ids=lambda m: f"tp{m.tp}-pp{m.pp}-ep{m.ep}")
def test_any_mesh(save, tensors, specs, config, mesh) -> None:
    checkpoint = Checkpoint.open(save(mesh=mesh))
    assert sorted(checkpoint.names()) == sorted(tensors)
    assert checkpoint.config == config
    for name, value in tensors.items():
        assert checkpoint.spec(name) == specs[name]
        assert checkpoint.dtype(name) == "BF16"
        assert same(checkpoint.read(name), value)
        assert checkpoint.manifest.tensors[name].crc == crc64nvme(dtypes.octets(value))
        blocks = list(checkpoint.stream(name, most_bytes=100))
        assert same(torch.cat([block for _, block in blocks]), value)
        assert [box for box, _ in blocks] == list(rows(whole(value.shape), 50))
    assert damaged(checkpoint.path) == []


def test_the_fingerprint_does_not_depend_on_the_cut(save, tensors) -> None:
    prints = {Checkpoint.open(save(f"m{i}", mesh)).fingerprint for i, mesh in enumerate(MESHES)}
    assert len(prints) == 1
    name = "model/layers.2.attn.o.weight"
    changed = tensors[name].clone()
    changed[3, 5] += 1
    assert Checkpoint.open(save("changed", values={**tensors, name: changed})).fingerprint not in prints


def test_any_box_of_any_cut(save, tensors) -> None:
    cuts = [Checkpoint.open(save(str(mesh.tp), mesh)) for mesh in (Mesh(tp=4, pp=2), Mesh())]

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def law(draw: st.DataObject) -> None:
        checkpoint = draw.draw(st.sampled_from(cuts))
        name = draw.draw(st.sampled_from(sorted(tensors)))
        ends = [sorted(draw.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in tensors[name].shape]
        box = tuple((start, stop) for start, stop in ends)
        assert same(checkpoint.read(name, box), part_of(tensors[name], box))
        blocks = [block for _, block in checkpoint.stream(name, box, most_bytes=64)]
        assert sum(block.numel() for block in blocks) == volume(box)
        assert not volume(box) or same(torch.cat(blocks), part_of(tensors[name], box))

    law()


@pytest.mark.parametrize("dtype", sorted(dtypes.TORCH))
def test_every_dtype(save, dtype) -> None:
    bits = torch.arange(48 * ITEM_BYTES[dtype], dtype=torch.uint8) % (2 if dtype == "BOOL" else 251)
    value = bits.view(dtypes.TORCH[dtype]).reshape(6, 8)
    values = {"model/x.weight": value, "model/scalar": value[0, 0].clone(), "model/none": value[:0].clone()}
    checkpoint = Checkpoint.open(save(values=values))
    for name, each in values.items():
        assert checkpoint.dtype(name) == dtype
        assert same(checkpoint.read(name), each)
    assert same(checkpoint.read("model/x.weight", ((1, 5), (2, 7))), value[1:5, 2:7])


def test_a_scalar_keeps_its_value_and_an_empty_tensor_its_shape(save) -> None:
    values = {"model/a": torch.tensor(3.25), "model/b": torch.empty(4, 0, 7), "model/c": torch.tensor(7)}
    checkpoint = Checkpoint.open(save(values=values))
    assert checkpoint.read("model/a").item() == 3.25
    assert checkpoint.read("model/b").shape == (4, 0, 7)
    assert checkpoint.read("model/c").dtype == torch.int64
    assert [box for box, _ in checkpoint.stream("model/a")] == [()]
    assert damaged(checkpoint.path) == []


def test_wide_and_narrow_elements_share_a_file_and_stay_aligned(save) -> None:
    values = {"model/a": torch.ones(7, dtype=torch.uint8), "model/b": torch.ones(3), "model/c": torch.ones(3).half()}
    folder = save(values=values)
    loaded = safetensors.torch.load_file(folder / "model/whole-00000.safetensors")
    assert {f"model/{key}" for key in loaded} == set(values)
    assert all(same(loaded[name[6:]], value) for name, value in values.items())


def zero_parts(specs: dict[str, TensorSpec], tp: int, dp: int) -> list[Part]:
    """The optimizer's master weights as ZeRO leaves them: each tp slice in `dp` runs, some of them empty."""
    parts = []
    for _name, spec in specs.items():
        for rank, box in enumerate(boxes(spec, {"tp": tp})):
            count = volume(box)
            marks = [0, *(min(count, count * k // dp + 3) for k in range(1, dp)), count]
            for index, (first, last) in enumerate(pairwise(marks)):
                file = f"optimizer/r{rank * dp + index:05d}.safetensors"
                parts.append(Part(f"optimizer/master/{spec.name}", spec, "F32", box, file, (first, last)))
    return parts


def test_zero_runs_are_read_as_boxes(save, tensors, specs) -> None:
    values = {f"optimizer/master/{bare(name)}": value.float() for name, value in tensors.items()}
    checkpoint = Checkpoint.open(save(values=values, parts=zero_parts(specs, tp=2, dp=3)))
    for name, value in values.items():
        assert same(checkpoint.read(name), value)
        assert checkpoint.manifest.tensors[name].crc == crc64nvme(dtypes.octets(value))
        assert same(torch.cat([block for _, block in checkpoint.stream(name, most_bytes=90)]), value)
        if value.dim() > 1:
            box = ((1, 3), *((2, n - 1) for n in value.shape[1:]))
            assert same(checkpoint.read(name, box), part_of(value, box))


@pytest.mark.parametrize("most", [1, 7, 40, 10_000])
def test_blocks_of_any_size_in_any_order(tmp_path: Path, config, tensors, specs, most) -> None:
    """Blocks of whole rows that span the pieces of all tensor parallel ranks, last block first."""
    parts = cut(specs, dict.fromkeys(specs, "BF16"), Mesh(tp=4, pp=2))
    writer = Writer(tmp_path / "c", parts, config=config, mesh={})
    for name, value in tensors.items():
        for box in reversed(list(rows(whole(value.shape), most))):
            writer.write(name, box, part_of(value, box))
    writer.commit()
    checkpoint = Checkpoint.open(tmp_path / "c")
    assert damaged(checkpoint.path) == []
    for name, value in tensors.items():
        assert same(checkpoint.read(name), value)
        piece = checkpoint.manifest.tensors[name].pieces[0]
        assert piece.crc == crc64nvme(dtypes.octets(part_of(value, piece.box)))


def test_columns_into_rows(tmp_path: Path, config) -> None:
    """A block that crosses the rows of its piece is put row by row."""
    spec = TensorSpec("x", (6, 10, 4))
    value = torch.randn(6, 10, 4)
    parts = [Part("model/x", spec, "F32", whole(spec.shape), "model/a.safetensors")]
    with Writer(tmp_path / "c", parts, config=config, mesh={}) as writer:
        for start in range(0, 10, 5):
            box = ((0, 6), (start, start + 5), (0, 4))
            writer.write("model/x", box, part_of(value, box))
        writer.commit()
    assert same(Checkpoint.open(tmp_path / "c").read("model/x"), value)


def test_several_ranks_write_one_checkpoint(tmp_path: Path, config, tensors, specs) -> None:
    parts = cut(specs, dict.fromkeys(specs, "BF16"), Mesh(tp=2, pp=2))
    files = sorted({part.file for part in parts})
    ranks = [
        Writer(
            tmp_path / "c",
            parts,
            config=config,
            mesh={"tp": 2},
            rank=rank,
            world=4,
            attempt="abc123",
            rng={"torch": bytes([rank])},
        )
        for rank in range(4)
    ]
    for part in parts:
        rank = files.index(part.file)
        ranks[rank].write(part.name, part.box, part_of(tensors[part.name], part.box))
    for writer in reversed(ranks):
        assert not (tmp_path / "c").exists()
        writer.commit()
    checkpoint = Checkpoint.open(tmp_path / "c")
    assert all(same(checkpoint.read(name), value) for name, value in tensors.items())
    assert [checkpoint.rng(rank)["torch"] for rank in range(4)] == [bytes([rank]) for rank in range(4)]
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"manifest.json", "config.json", "model", "trainer"}


def test_everything_beside_the_tensors(save) -> None:
    tokenizer = {"tokenizer.json": b"{}\r\n", "more/chat.jinja": "é".encode()}
    lineage = [{"event": "import", "source": "somewhere"}]
    checkpoint = Checkpoint.open(
        save(
            step=7,
            samples=70,
            tokens=700,
            lineage=lineage,
            run_yaml="a: 1\n",
            tokenizer=tokenizer,
            trainer={"loss_scale": 2.0},
            rng={"python": b"", "torch": bytes(range(256))},
        )
    )
    manifest = checkpoint.manifest
    assert (manifest.step, manifest.samples, manifest.tokens) == (7, 70, 700)
    assert list(manifest.lineage) == lineage
    assert checkpoint.run_yaml == "a: 1\n"
    assert checkpoint.trainer_state() == {"loss_scale": 2.0}
    assert checkpoint.rng() == {"python": b"", "torch": bytes(range(256))}
    assert checkpoint.rng(5) == {}
    assert checkpoint.tokenizer is not None
    assert (checkpoint.tokenizer / "tokenizer.json").read_bytes() == b"{}\r\n"
    assert (checkpoint.tokenizer / "more/chat.jinja").read_text(encoding="utf-8") == "é"
    bare_one = Checkpoint.open(save("bare"))
    assert bare_one.tokenizer is bare_one.run_yaml is bare_one.trainer_state() is None


def test_a_lost_manifest_can_be_rebuilt_from_the_files(save, tensors) -> None:
    """Each file's metadata repeats its own pieces."""
    folder = save(mesh=Mesh(tp=2, pp=2))
    manifest = Checkpoint.open(folder).manifest
    found: dict[str, list[tuple[str, str, object]]] = {}
    for path in sorted((folder / "model").iterdir()):
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["neoxkit"])
            assert about["format"] == ["neoxkit-checkpoint", 1]
            assert about["attempt"] == manifest.attempt
            assert set(about["pieces"]) == set(file.keys())
        for key, piece in about["pieces"].items():
            box = tuple(map(tuple, piece.get("box", [[0, n] for n in piece["shape"]])))
            found.setdefault(piece["tensor"], []).append((path.name, key, box))
    for name, entry in manifest.tensors.items():
        said = [(Path(manifest.files[p.file].path).name, p.key, p.box) for p in entry.pieces]
        assert sorted(found[name]) == sorted(said)


def test_unknown_fields_are_kept(save, config, tensors) -> None:
    folder = save()
    path = folder / "manifest.json"
    data = json.loads(path.read_bytes())
    data["later"] = {"a": [1]}
    data["format"]["hint"] = "x"
    data["tensors"]["model/embed.weight"]["norm"] = 2.5
    data["tensors"]["model/embed.weight"]["pieces"][0]["tier"] = "hot"
    data["files"][0]["etag"] = "e"
    path.write_text(json.dumps(data))
    checkpoint = Checkpoint.open(folder)
    from neoxkit.checkpoint.format import dump

    assert json.loads(dump(checkpoint.manifest)) == data
    assert parse(dump(checkpoint.manifest), "m") == checkpoint.manifest
    again = Checkpoint.open(save("again", keep=checkpoint.manifest)).manifest
    assert again.extra == {"later": {"a": [1]}}
    assert again.format_extra == {"hint": "x"}
    assert again.tensors["model/embed.weight"].extra == {"norm": 2.5}


def test_the_cut_shares_replicas_evenly_and_follows_the_stages(specs) -> None:
    mesh = Mesh(tp=4, pp=2)
    parts = cut(specs, dict.fromkeys(specs, "BF16"), mesh)
    for name in specs:
        found = [part.box for part in parts if part.name == name]
        assert sum(map(volume, found)) == volume(whole(specs[name].shape))
        stage = mesh.stage_of(layer_of(bare(name)), 4)
        assert all(part.file.startswith(f"model/pp{stage:02d}-") for part in parts if part.name == name)
    norms = [part.file for part in parts if part.name.endswith("norm1.weight")]
    assert len(norms) == 4  # replicas are written once
    keys = [part for part in parts if ".attn.k." in part.name]
    assert {len([p for p in keys if p.name == name]) for name in specs if ".attn.k." in name} == {2}  # 2 heads, 4 ranks
    load = [sum(p.bytes for p in parts if p.file == file) for file in sorted({p.file for p in parts})]
    assert len(load) == 8
    assert max(load[:4]) - min(load[:4]) <= 2 * 4 * 16 * 2 * 2


def test_the_whole_layout_holds_whole_tensors_in_files_of_at_most_five_gigabytes() -> None:
    specs = {f"model/layers.{i}.mlp.up.weight": TensorSpec(f"layers.{i}.mlp.up.weight", (1000, 1000)) for i in range(3)}
    specs["model/embed.weight"] = TensorSpec("embed.weight", (60000, 60000))
    specs["model/layers.0.mlp.down.weight"] = TensorSpec("layers.0.mlp.down.weight", (40000, 40000))
    parts = cut(specs, dict.fromkeys(specs, "BF16"), Mesh())
    assert [part.box for part in parts] == [whole(spec.shape) for spec in specs.values()]
    sizes: dict[str, list[int]] = {}
    for part in parts:
        sizes.setdefault(part.file, []).append(part.bytes)
    assert sorted(sizes) == [f"model/whole-{n:05d}.safetensors" for n in range(3)]
    assert all(sum(each) <= 5_000_000_000 or len(each) == 1 for each in sizes.values())


def test_streaming_holds_blocks_not_tensors(save, tmp_path: Path) -> None:
    """numpy's allocations are traced: 64 MiB go through in blocks of 4."""
    value = torch.arange(16 << 20, dtype=torch.int32).reshape(4096, 4096)
    specs = {"model/x": TensorSpec("x", (4096, 4096))}
    halves = [((0, 4096), (0, 2048)), ((0, 4096), (2048, 4096))]
    parts = [Part("model/x", specs["model/x"], "I32", box, f"model/{i}.safetensors") for i, box in enumerate(halves)]
    checkpoint = Checkpoint.open(save(values={"model/x": value}, parts=parts))
    tracemalloc.start()
    total = 0
    for box, block in checkpoint.stream("model/x", most_bytes=4 << 20):
        total += int((block == part_of(value, box)).all()) * block.numel()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 16 << 20
    assert peak < 24 << 20


def test_an_unplanned_or_incomplete_write_is_our_own_mistake(tmp_path: Path, config, specs, tensors) -> None:
    parts = cut(specs, dict.fromkeys(specs, "BF16"), Mesh())
    name = "model/embed.weight"
    for act, says in (
        (lambda w: w.write("model/other", ((0, 1),), torch.ones(1)), "was not planned"),
        (lambda w: w.write(name, ((0, 50), (0, 16)), torch.ones(50, 16)), "planned BF16"),
        (lambda w: w.write(name, ((0, 50), (0, 16)), torch.ones(49, 16).bfloat16()), "for"),
    ):
        writer = Writer(tmp_path / "c", parts, config=config, mesh={})
        with pytest.raises(AssertionError, match=says):
            act(writer)
        writer.abort()
    for twice in (False, True):
        writer = Writer(tmp_path / "c", parts, config=config, mesh={})
        for each in specs:
            writer.write(each, whole(specs[each].shape), tensors[each])
            if each == name and twice:
                writer.write(each, ((0, 1), (0, 16)), tensors[each][:1])
        if not twice:
            writer._open["model/whole-00000.safetensors"].slots["embed.weight"].boxes.clear()
        with pytest.raises(
            CheckpointError, match=r"embed\.weight of model/whole-00000\.safetensors was not written whole"
        ):
            writer.commit()
        assert list(tmp_path.iterdir()) == []
