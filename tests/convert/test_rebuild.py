"""A lost manifest is made anew, as it was, or refused when something else is lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from refusal import everything
from torch import Tensor

from neoxkit.checkpoint.format import Manifest, dump, parse
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.convert.rebuild import rebuild_manifest
from neoxkit.convert.verify import verify
from neoxkit.errors import CheckpointError, NeoxkitError
from neoxkit.mesh import Mesh

Save = Callable[..., Path]
Q = "model/layers.1.attn.q.weight"


def manifest(folder: Path) -> Manifest:
    return parse((folder / "manifest.json").read_bytes(), "manifest")


def pieces(found: Manifest) -> dict[str, Any]:
    """Everything that a manifest says of tensors and files, whatever their order."""
    paths = [file.path for file in found.files]
    tensors = {
        name: (t.dtype, t.spec, t.crc, {(paths[p.file], p.key, p.box, p.run, p.crc) for p in t.pieces})
        for name, t in found.tensors.items()
    }
    return {"tensors": tensors, "files": {(file.path, file.bytes, file.crc) for file in found.files}}


@pytest.mark.parametrize("mesh", [Mesh(), Mesh(tp=2), Mesh(tp=4, pp=3)], ids=str)
def test_a_lost_manifest(save: Save, mesh: Mesh) -> None:
    folder = save(mesh=mesh)
    before = manifest(folder)
    (folder / "manifest.json").unlink()
    found = rebuild_manifest(folder)
    after = manifest(folder)
    assert pieces(after) == pieces(before)
    assert verify(folder).sound
    assert (after.step, after.samples, after.tokens, after.attempt) == (7, 28, 448, before.attempt)
    assert after.mesh == {"pp": mesh.pp, "tp": mesh.tp, "ep": 1}
    assert [event["event"] for event in after.lineage] == ["train", "rebuild"]
    assert after.lineage[-1]["model"] == before.fingerprint() == after.fingerprint()
    assert found.carried["step"] == found.carried["lineage"] == "trainer/state.json"
    assert found.agreeing == 0
    assert found.strays == ()


def test_runs_of_boxes(tmp_path: Path, save: Save, tensors: Mapping[str, Tensor], config: Any) -> None:
    """ZeRO's cut: each rank's part of each tensor."""
    from neoxkit.checkpoint.dtypes import name_of
    from neoxkit.checkpoint.writer import Part, Writer
    from neoxkit.nn.decoder import specs
    from neoxkit.spec import whole

    weights = {name: value for name, value in tensors.items() if name.startswith("model/")}
    parts = []
    for name, value in weights.items():
        spec, half = specs(config)[name[6:]], value.numel() // 2
        for rank, run in enumerate([(0, half), (half, value.numel())]):
            parts.append(Part(name, spec, name_of(value.dtype), whole(spec.shape), f"model/r{rank}.safetensors", run))
    with Writer(tmp_path / "runs", parts, config=config, mesh={}) as writer:
        for part in parts:
            assert part.run is not None
            writer.write(part.name, part.box, weights[part.name].reshape(-1)[slice(*part.run)], part.run)
        writer.commit()
    before = manifest(tmp_path / "runs")
    (tmp_path / "runs" / "manifest.json").unlink()
    rebuild_manifest(tmp_path / "runs")
    assert pieces(manifest(tmp_path / "runs")) == pieces(before)


def test_a_damaged_manifest_still_says_most(save: Save) -> None:
    lineage = [{"event": "import", "source": "elsewhere"}, {"event": "train", "from_step": 0, "to_step": 7}]
    folder = save(lineage=lineage)
    before = manifest(folder)
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[: -len(text) // 10])
    found = rebuild_manifest(folder)
    after = manifest(folder)
    assert pieces(after) == pieces(before)
    assert list(after.lineage[:2]) == lineage
    assert after.created == before.created
    assert after.mesh == before.mesh
    assert 0.7 * len(after.tensors) < found.agreeing < len(after.tensors)
    assert found.carried["created"] == found.carried["lineage"] == "the damaged manifest.json"
    assert found.carried["step"] == "trainer/state.json"


def test_what_the_damaged_manifest_still_says_finds_damage(save: Save) -> None:
    folder = save(mesh=Mesh())
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[:-9])
    path = folder / "model" / "whole-00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    before = everything(folder)
    with pytest.raises(CheckpointError, match=r"1 tensors, model/\S+ among them, have another checksum"):
        rebuild_manifest(folder)
    assert everything(folder) == before
    found = rebuild_manifest(folder, force=True)
    assert len(found.differing) == 1
    assert all(finding.kind == "master" for finding in verify(folder).findings)


def test_without_trainer_state_the_folder_and_the_files_say_the_rest(save: Save, tensors: Mapping[str, Tensor]) -> None:
    weights = {name: value for name, value in tensors.items() if name.startswith("model/")}
    run_yaml = yaml.safe_dump({"given": {}, "resolved": {"load": "somewhere"}})
    folder = save("step-00000123", values=weights, trainer=None, run_yaml=run_yaml)
    (folder / "manifest.json").unlink()
    found = rebuild_manifest(folder)
    after = manifest(folder)
    assert (after.step, after.samples) == (123, 0)
    assert found.carried["step"] == "names"
    assert after.lineage[0] == {"event": "train", "to_step": 123}
    assert after.created.startswith("20")
    assert verify(folder).sound


def test_a_valid_manifest_is_kept(save: Save) -> None:
    folder = save()
    before = everything(folder)
    with pytest.raises(CheckpointError, match="is valid"):
        rebuild_manifest(folder)
    assert everything(folder) == before
    rebuild_manifest(folder, force=True)
    assert verify(folder).sound
    assert rebuild_manifest(folder, force=True).agreeing == len(manifest(folder).tensors)


def test_a_valid_manifest_of_other_files_is_kept_too(save: Save) -> None:
    folder = save()
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    with pytest.raises(CheckpointError, match=r"is valid, and a file is not what it says: .*config\.json"):
        rebuild_manifest(folder)
    rebuild_manifest(folder, force=True)
    assert verify(folder).sound


def test_a_manifest_of_a_later_version_is_kept(save: Save) -> None:
    folder = save()
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(CheckpointError, match="version 2"):
        rebuild_manifest(folder)


def drop(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def cut_short(folder: Path) -> None:
    path = folder / "model" / "pp00-tp00.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def from_elsewhere(folder: Path) -> None:
    name = "model/pp00-tp00.safetensors"
    (folder / name).write_bytes((folder.parent / "other" / name).read_bytes())


def foreign(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model" / "pp00-tp00.safetensors"
    save_file(load_file(path), path)


def renamed_entry(folder: Path) -> None:
    path = folder / "model" / "pp00-tp00.safetensors"
    path.write_bytes(path.read_bytes().replace(b'norm1.weight\\": {\\"tensor', b'norm9.weight\\": {\\"tensor', 1))


def link(folder: Path) -> None:
    (folder / "config.json").rename(folder.parent / "config.json")
    (folder / "config.json").symlink_to(folder.parent / "config.json")


def smaller(folder: Path) -> None:
    tree = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**tree, "depth": 4}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (drop("model/pp00-tp01.safetensors"), r"no piece holds \[.*more tensors are not whole"),
        (drop("model/pp01-tp00.safetensors"), r"no piece holds|is missing"),
        (drop("optimizer/r00001.safetensors"), r"optimizer/\S+: no piece holds"),
        (drop("config.json"), "it has no config.json"),
        (cut_short, "pp00-tp00.safetensors.*cut short"),
        (from_elsewhere, "is of another checkpoint than"),
        (foreign, "does not say what it holds"),
        (renamed_entry, "is not what it holds"),
        (link, "a link"),
        (smaller, r"layers\.3\..*the configuration asks for it, and it is missing \(and \d+ more"),
    ],
)
def test_what_cannot_be_made_whole_is_refused(save: Save, damage: Callable[[Path], object], said: str) -> None:
    save("other", mesh=Mesh(tp=2, pp=2))
    folder = save(mesh=Mesh(tp=2, pp=2))
    (folder / "manifest.json").unlink()
    damage(folder)
    before = everything(folder)
    for dry_run in (True, False):
        with pytest.raises(CheckpointError, match=said):
            rebuild_manifest(folder, dry_run=dry_run)
    assert everything(folder) == before


def test_an_optimizer_that_is_lost_whole(save: Save) -> None:
    folder = save(mesh=Mesh())
    (folder / "manifest.json").unlink()
    for path in (folder / "optimizer").iterdir():
        path.unlink()
    with pytest.raises(CheckpointError, match="no tensor of an optimizer"):
        rebuild_manifest(folder)
    (folder / "trainer" / "state.json").unlink()
    rebuild_manifest(folder)
    assert verify(folder).sound


def test_an_unfinished_attempt_is_refused(save: Save, tmp_path: Path) -> None:
    folder = save()
    (folder / "manifest.json").unlink()
    home = tmp_path / ".step-00000008.0a1b2c.partial"
    home.mkdir()
    folder.rename(home / "files")
    with pytest.raises(CheckpointError, match="may never have been written"):
        rebuild_manifest(home / "files")


def test_a_dry_run_reads_headers_and_writes_nothing(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    from neoxkit.checkpoint.scan import Scan

    folder = save()
    (folder / "manifest.json").unlink()
    (folder / "notes.txt").write_text("x")
    before = everything(folder)
    monkeypatch.setattr(Scan, "run", None)
    found = rebuild_manifest(folder, dry_run=True)
    assert everything(folder) == before
    assert found.strays == ("notes.txt",)
    assert "not listed, for no checkpoint has it: notes.txt" in found.lines()


def test_training_goes_on_from_it(save: Save) -> None:
    """A lineage that ends with the event is one that a run can add to."""
    from neoxkit.train.resume import Past, Position

    folder = save()
    (folder / "manifest.json").unlink()
    rebuild_manifest(folder)
    checkpoint = Checkpoint.open(folder)
    past = Past(checkpoint, Position(7, 28, 448), checkpoint.trainer_state() or {}, {})
    events, begun = past.lineage
    assert [event["event"] for event in events] == ["train", "rebuild"]
    assert begun == 7
    assert parse(dump(checkpoint.manifest), "again") == checkpoint.manifest


@pytest.mark.parametrize("name", ["manifest.json", "model/pp00-tp00.safetensors", "trainer/state.json", "config.json"])
def test_whatever_the_damage_it_is_told_or_mended(save: Save, name: str) -> None:
    """Bytes of a header, a manifest or a state are changed, put in or taken out at random."""
    folder = save(mesh=Mesh(tp=2))
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text()[:-2])
    data = (folder / name).read_bytes()
    head = 8 + int.from_bytes(data[:8], "little") if name.endswith(".safetensors") else len(data)
    refused: list[str] = []
    for seed in range(40):
        chance = Random(seed)
        altered = bytearray(data)
        for _ in range(chance.choice([1, 1, 3])):
            at = chance.randrange(head)
            piece = bytes(chance.choices(b'0123456789"{}[],:\\a\xff-.', k=chance.choice([0, 1, 2, 20])))
            altered[at : at + chance.choice([0, 1, len(piece)])] = piece
        (folder / name).write_bytes(altered)
        try:
            rebuild_manifest(folder, force=True, dry_run=True)
        except NeoxkitError as error:
            refused.append(error.cause)
    assert all(str(folder) in cause for cause in refused)
    assert refused if name != "manifest.json" else not refused
