"""Each thing that can be wrong with a checkpoint is found, and named."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TINY, Tiny
from torch import Tensor

from neoxkit.checkpoint.format import parse
from neoxkit.convert.contents import Finding, Report
from neoxkit.convert.logits import logits_difference
from neoxkit.convert.open import open_any
from neoxkit.convert.transfer import import_model
from neoxkit.convert.verify import verify
from neoxkit.errors import CheckpointError, ConversionError
from neoxkit.mesh import Mesh

Q = "layers.1.attn.q.weight"
Save = Callable[..., Path]
Tensors = Mapping[str, Tensor]


def only(report: Report) -> Finding:
    """The one thing that was found."""
    assert len(report.findings) == 1, report.findings
    return report.findings[0]


def changed(tensors: Tensors, name: str, change: Callable[[Tensor], object]) -> dict[str, Tensor]:
    """The tensors, one of them changed in place, in a copy."""
    value = tensors[name].clone()
    change(value)
    return {**tensors, name: value}


def flip_bit(folder: Path, tensor: str, piece: int = 0) -> str:
    """Turn one bit of a piece's data round; returns the file's path in the checkpoint."""
    from safetensors import safe_open

    manifest = parse((folder / "manifest.json").read_bytes(), "manifest")
    entry = manifest.tensors[tensor].pieces[piece]
    path = manifest.files[entry.file].path
    with safe_open(folder / path, "pt") as file:
        value = file.get_tensor(entry.key)
    data = bytearray((folder / path).read_bytes())
    at = data.find(value.contiguous().view(torch.uint8).numpy().tobytes())
    assert at > 0
    data[at + 1] ^= 1
    (folder / path).write_bytes(data)
    return path


@pytest.mark.parametrize("mesh", [Mesh(), Mesh(tp=2), Mesh(tp=4, pp=3)], ids=str)
def test_a_sound_checkpoint_is_sound(save: Save, mesh: Mesh) -> None:
    report = verify(save(mesh=mesh))
    assert (report.findings, report.notes) == ([], [])
    manifest = open_any(report.path).manifest  # type: ignore[union-attr]
    assert (report.files, report.tensors) == (len(manifest.files), len(manifest.tensors))
    assert report.bytes == sum(file.bytes for file in manifest.files)
    assert report.model == manifest.fingerprint()


@pytest.mark.parametrize("component", ["model/", "optimizer/exp_avg/"])
@pytest.mark.parametrize("piece", [0, 1])
def test_a_flipped_bit_names_file_and_tensor(save: Save, component: str, piece: int) -> None:
    folder = save()
    path = flip_bit(folder, component + Q, piece)
    found = {finding.kind: finding for finding in verify(folder).findings}
    assert set(found) == {"file", "damage"}
    assert found["file"].where == path
    assert str(folder / path) in found["file"].what
    assert found["damage"].where == component + Q
    assert path in found["damage"].what
    assert component + Q in found["damage"].what


def test_all_damage_is_found_not_only_the_first(save: Save) -> None:
    folder = save()
    first, second = flip_bit(folder, "model/embed.weight"), flip_bit(folder, "optimizer/exp_avg_sq/head.weight", 1)
    (folder / "tokenizer" / "tokenizer.json").unlink()
    where = {finding.where for finding in verify(folder).findings}
    expected = {first, second, "model/embed.weight", "optimizer/exp_avg_sq/head.weight", "tokenizer/tokenizer.json"}
    assert where == expected


def test_a_missing_and_a_short_file(save: Save) -> None:
    folder = save()
    names = [file.path for file in parse((folder / "manifest.json").read_bytes(), "").files]
    weights = [name for name in names if name.startswith("model/")]
    (folder / weights[0]).unlink()
    (folder / weights[1]).write_bytes((folder / weights[1]).read_bytes()[:-1])
    report = verify(folder)
    assert [(finding.kind, finding.where) for finding in report.findings] == [("file", name) for name in weights[:2]]
    assert "the file is missing" in report.findings[0].what
    assert "tensors need it, model/" in report.findings[0].what
    assert "the manifest says" in report.findings[1].what
    assert report.tensors == sum(name.startswith("optimizer/") for name in open_names(folder))


def open_names(folder: Path) -> list[str]:
    return list(parse((folder / "manifest.json").read_bytes(), "").tensors)


def test_a_link_is_not_followed(save: Save, tmp_path: Path) -> None:
    folder = save()
    (folder / "config.json").rename(tmp_path / "elsewhere.json")
    (folder / "config.json").symlink_to(tmp_path / "elsewhere.json")
    assert "a link" in only(verify(folder)).what


def test_files_and_entries_that_nobody_lists(save: Save) -> None:
    folder = save()
    (folder / "model" / "extra.safetensors").write_bytes(b"x")
    finding = only(verify(folder))
    assert (finding.kind, finding.where) == ("file", "model/extra.safetensors")


def test_a_damaged_manifest_is_a_finding_and_an_unknown_one_is_not(save: Save) -> None:
    folder = save()
    manifest = folder / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text[:-40])
    assert only(verify(folder)).where == "manifest.json"
    tree = json.loads(text)
    tree["tensors"]["model/" + Q]["pieces"].pop()
    manifest.write_text(json.dumps(tree))
    assert "no piece holds" in only(verify(folder)).what
    manifest.write_text(text.replace('"version": 1', '"version": 2'))
    with pytest.raises(CheckpointError, match="version 2"):
        verify(folder)


@pytest.mark.parametrize("name", ["model/" + Q, "optimizer/exp_avg/embed.weight", "optimizer/exp_avg_sq/norm.bias"])
def test_numbers_that_are_not_finite_are_counted(save: Save, tensors: Tensors, name: str) -> None:
    def plant(value: Tensor) -> None:
        flat = value.view(-1)
        flat[3], flat[5], flat[7] = float("nan"), float("inf"), float("-inf")

    report = verify(save(values=changed(tensors, name, plant)))
    found = [finding for finding in report.findings if finding.kind == "not finite"]
    assert [finding.where for finding in found] == [name]
    assert found[0].what == f"{name}: 1 NaN and 2 infinite of {tensors[name].numel()} elements"


def test_stale_masters_are_counted_and_measured(save: Save, tensors: Tensors) -> None:
    def move(value: Tensor) -> None:
        value[2, 3] = 1.0
        value[15, 15] = 2.0

    finding = only(verify(save(values=changed(tensors, "model/" + Q, move))))
    distance = max(abs(float(tensors["model/" + Q][at]) - value) for at, value in (((2, 3), 1.0), ((15, 15), 2.0)))
    assert (finding.kind, finding.where) == ("master", "optimizer/master/" + Q)
    assert f"2 of 256 elements do not round to those of model/{Q}, by up to {distance:.3g}" in finding.what


def test_a_master_within_rounding_is_not_stale(save: Save, tensors: Tensors) -> None:
    name = "optimizer/master/" + Q
    exact = {**tensors, name: tensors["model/" + Q].float()}
    assert verify(save(values=exact)).sound


def test_names_and_shapes_against_the_configuration(save: Save, tensors: Tensors) -> None:
    values = {name: value for name, value in tensors.items() if name != "model/layers.2.mlp.up.bias"}
    values["model/layers.3.norm1.weight"] = torch.ones(16, dtype=torch.bfloat16)
    values["model/norm.weight"] = torch.ones(17, dtype=torch.bfloat16)
    del values["optimizer/exp_avg/embed.weight"]
    found = [(finding.kind, finding.where) for finding in verify(save(values=values)).findings]
    assert sorted(each for each in found if each[0] != "trainer") == [
        ("names", "model/layers.2.mlp.up.bias"),
        ("names", "model/layers.3.norm1.weight"),
        ("names", "optimizer/exp_avg/embed.weight"),
        ("shape", "model/norm.weight"),
    ]


def test_weights_that_are_no_numbers_of_a_model(save: Save, tensors: Tensors) -> None:
    values = {name: value for name, value in tensors.items() if name.startswith("model/")}
    values["model/" + Q] = values["model/" + Q].to(torch.int32)
    assert (only(verify(save(values=values, trainer=None))).kind) == "dtype"


def test_a_tokenizer_with_more_ids_than_rows(save: Save, tokenizer: Path) -> None:
    tree = json.loads((tokenizer / "tokenizer.json").read_text())
    tree["model"]["vocab"]["beyond"] = 270
    finding = only(verify(save(tokenizer={"tokenizer.json": json.dumps(tree).encode()})))
    assert finding.kind == "tokenizer"
    assert "ids up to 270, the model 270 rows" in finding.what
    finding = only(verify(save("other", tokenizer={"tokenizer.json": b"{}"})))
    assert finding.kind == "tokenizer"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step": 8}, "step is 8, the manifest says 7"),
        ({"tokens": None}, "tokens is None, the manifest says 448"),
        ({"optimizer": {"kind": "adamw"}}, "no groups of parameters"),
    ],
)
def test_trainer_state_that_contradicts_the_manifest(
    save: Save, trainer: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    finding = only(verify(save(trainer={**trainer, **change})))
    assert (finding.kind, finding.where) == ("trainer", "trainer/state.json")
    assert said in finding.what


def test_groups_of_parameters_that_are_not_the_models(save: Save, trainer: dict[str, Any]) -> None:
    names = trainer["optimizer"]["groups"][0]["names"]
    groups = [{"names": [name for name in names if name != Q]}, {"names": ["embed.weight", "gone.weight"]}]
    report = verify(save(trainer={**trainer, "optimizer": {"groups": groups}}))
    said = [finding.what.partition("state.json: ")[2] for finding in report.findings]
    assert said == [
        f"no group of parameters has {Q}",
        "a group of parameters has gone.weight, which the model has not",
        "2 groups of parameters have embed.weight",
    ]


def test_a_trainer_without_an_optimizer(save: Save, tensors: Tensors) -> None:
    weights = {name: value for name, value in tensors.items() if name.startswith("model/")}
    assert "no tensor of an optimizer" in only(verify(save(values=weights))).what
    assert verify(save("weights", values=weights, trainer=None)).sound


def test_the_newest_of_a_run_is_checked_and_leftovers_are_noted(save: Save, tmp_path: Path) -> None:
    old = save("step-00000001")
    folder = save()
    flip_bit(old, "model/embed.weight")
    dead = tmp_path / ".step-00000009.0a1b2c.partial"
    dead.mkdir()
    (tmp_path / "latest").write_text("step-00000009\n")
    report = verify(tmp_path)
    assert report.path == folder
    assert report.sound
    assert len(report.notes) == 3
    assert "the newest of 2 checkpoints" in report.notes[0]
    assert str(dead) in report.notes[1]
    assert "latest" in report.notes[2]
    assert verify(folder).notes == report.notes[1:]
    (tmp_path / "step-00000010").mkdir()
    finding = only(verify(tmp_path))
    assert finding.where == "step-00000010"
    assert verify(old).findings


def test_the_newest_of_a_run_is_checked_even_where_readers_pass_it_over(save: Save, tmp_path: Path) -> None:
    save("step-00000001")
    newest = save()
    (newest / "config.json").unlink()
    report = verify(tmp_path)
    assert report.path == newest
    assert only(report).where == "config.json"


@pytest.mark.parametrize("name", ["nowhere", "empty", "file"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError):
        verify(tmp_path / name)


def test_no_wrong_entry_in_a_file_goes_unseen(save: Save) -> None:
    """An entry beside the listed ones: the file's size and header hold, its checksum is the manifest's."""
    from safetensors.torch import load_file, save_file

    from neoxkit.checkpoint.checksum import crc64nvme

    folder = save()
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = next(each for each in manifest["files"] if each["path"].startswith("model/"))
    path = folder / entry["path"]
    save_file({**load_file(path), "stowaway": torch.zeros(3)}, path)
    entry.update(bytes=path.stat().st_size, crc=f"{crc64nvme(path.read_bytes()):016x}")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "no entry 'stowaway'" in only(verify(folder)).what


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder."""
    folder = tmp_path_factory.mktemp("llama") / "hf"
    Tiny("llama", "gqa", {"num_key_value_heads": 2}).model().save_pretrained(folder)
    return folder


def test_a_hugging_face_folder(llama: Path, tmp_path: Path) -> None:
    report = verify(llama)
    assert report.sound
    assert "no checksums" in report.notes[0]
    model = Tiny("llama", "gqa", {"num_key_value_heads": 2}).model()
    model.lm_head.weight.data[3, 4] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    finding = only(verify(tmp_path / "nan"))
    assert (finding.kind, finding.where) == ("not finite", "model/head.weight")


@pytest.mark.parametrize("tiny_model", [TINY[0], TINY[7], TINY[-1]], ids=str)
def test_logits_are_those_of_transformers(tiny_model: Tiny, tmp_path: Path) -> None:
    tiny_model.model().save_pretrained(tmp_path / "hf")
    source = open_any(tmp_path / "hf")
    import_model(source, tmp_path / "ours", Mesh(tp=2))  # type: ignore[arg-type]
    for other in ("hf", "ours"):
        found = logits_difference(open_any(tmp_path / "ours"), tmp_path / other)
        assert found.max <= 2e-6
        assert 0 <= found.mean <= found.max
        assert found.scale > 0.5
        assert found.within(1e-4)


def test_logits_of_altered_weights_differ(llama: Path, tmp_path: Path) -> None:
    model = Tiny("llama", "gqa", {"num_key_value_heads": 2}).model()
    model.model.layers[1].mlp.up_proj.weight.data += 0.01
    model.save_pretrained(tmp_path / "other")
    assert not logits_difference(open_any(llama), tmp_path / "other").within(1e-4)
    model.lm_head.weight.data[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    assert not logits_difference(open_any(llama), tmp_path / "nan").within(1e30)


def test_logits_that_cannot_be_compared(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Tiny("llama", "small", {"vocab_size": 90}).model().save_pretrained(tmp_path / "small")
    for ours, theirs in ((llama, tmp_path / "small"), (tmp_path / "small", llama)):
        with pytest.raises(ConversionError, match="its vocabulary has"):
            logits_difference(open_any(ours), theirs)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((llama / "config.json").read_text())
    with pytest.raises(ConversionError, match="transformers cannot load it"):
        logits_difference(open_any(llama), broken)
    from safetensors.torch import load_file, save_file

    weights = load_file(llama / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConversionError, match=r"finds no 'model.layers.1.mlp.up_proj.weight'"):
        logits_difference(open_any(llama), broken)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError):
        logits_difference(open_any(llama), llama)
