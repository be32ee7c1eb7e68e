"""Damaged checkpoints: headers of safetensors files, manifests, and small files whose checksums are sound."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

import pytest
import torch
from fuzzing import Target, WrongReadError, count, fuzz
from mutations import as_json, changed_json, changed_tree, damaged
from safetensors import safe_open
from safetensors.torch import save_file

from neoxkit.checkpoint import dtypes
from neoxkit.checkpoint.checksum import crc64nvme
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.safetensors_file import read_header
from neoxkit.checkpoint.writer import Part, Writer, cut
from neoxkit.config.model import ModelConfig
from neoxkit.convert.describe import describe, lines
from neoxkit.convert.transfer import reshard
from neoxkit.convert.verify import verify
from neoxkit.errors import NeoxkitError
from neoxkit.mesh import Mesh
from neoxkit.nn.decoder import specs
from neoxkit.spec import TensorSpec, whole

CONFIG = ModelConfig.model_validate(
    {"family": "llama", "depth": 1, "width": 8, "vocab": 20, "context": 8, "mixer": {"heads": 2}, "mlp": {"hidden": 8}}
)
TRAINER = {"step": 3, "samples": 6, "tokens": 48, "optimizer": {"groups": [{"names": ["norm.weight"], "lr": 0.1}]}}
TOKENIZER = {
    "model": {"type": "BPE", "vocab": {chr(97 + i): i for i in range(12)}, "merges": []},
    "added_tokens": [{"id": 12, "content": "<end>", "special": True}],
}
NAMED = {"eos_token": "<end>", "bos_token": {"content": "<end>"}}


def make_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """A whole checkpoint in pieces of every kind: rows, columns, runs, whole; returns its tensors."""
    generator = torch.Generator().manual_seed(1)
    some = ("embed.weight", "layers.0.attn.q.weight", "layers.0.attn.o.weight", "norm.weight")
    known = {f"model/{name}": spec for name, spec in specs(CONFIG).items() if name in some}
    values = {name: torch.randn(spec.shape, generator=generator).bfloat16() for name, spec in known.items()}
    parts = cut(known, dict.fromkeys(known, "BF16"), Mesh(tp=2))
    for component in ("optimizer/master/", "optimizer/exp_avg/"):
        spec = known["model/norm.weight"]
        name = component + "norm.weight"
        values[name] = torch.randn(spec.shape, generator=generator)
        file = "optimizer/r00000.safetensors"
        parts += [Part(name, spec, "F32", whole(spec.shape), file, run) for run in ((0, 3), (3, 8))]
    odd = TensorSpec("odd", (3, 0, 2))
    values["optimizer/master/odd"], values["optimizer/master/zero"] = torch.empty(3, 0, 2), torch.tensor(2.5)
    parts.append(Part("optimizer/master/odd", odd, "F32", whole(odd.shape), "optimizer/r00000.safetensors"))
    parts.append(Part("optimizer/master/zero", TensorSpec("zero", ()), "F32", (), "optimizer/r00000.safetensors"))
    tokenizer = {"tokenizer.json": json.dumps(TOKENIZER).encode(), "tokenizer_config.json": json.dumps(NAMED).encode()}
    about = {"step": 3, "samples": 6, "tokens": 48, "run_yaml": "steps: 3\n", "trainer": TRAINER, "rng": {"cpu": b"ab"}}
    lineage = [{"event": "import", "source": "a"}]
    with Writer(
        folder, parts, config=CONFIG, mesh={"tp": 2, "pp": 1}, tokenizer=tokenizer, lineage=lineage, **about
    ) as writer:
        for part in parts:
            value = values[part.name][tuple(slice(*span) for span in part.box)]
            writer.write(part.name, part.box, value if part.run is None else value[slice(*part.run)], part.run)
        writer.commit()
    return values


class Damaged:
    """A checkpoint, copied into the folder once; of each case one file is damaged, and mended before the next."""

    renames = False  # whether the damage may call a tensor by the name of another, in all that says so

    def __init__(self, tmp: Path) -> None:
        self.values = make_checkpoint(tmp / "sound")
        self.sound = tmp / "sound"
        self.sums = {self._sum(value) for value in self.values.values()}
        self.files = {str(p.relative_to(self.sound)): p.read_bytes() for p in self.sound.rglob("*") if p.is_file()}
        self.manifest = json.loads(self.files["manifest.json"])
        self.number = 0
        self.touched: set[str] = set()

    @staticmethod
    def _sum(value: torch.Tensor) -> int:
        return crc64nvme(dtypes.octets(value).tobytes())

    def make(self, dice: Random, folder: Path) -> str:
        """Mend all, then damage."""
        if not (folder / "manifest.json").is_file():
            shutil.copytree(self.sound, folder, dirs_exist_ok=True)
            (folder / "link").symlink_to(folder.parent)
        for name in self.touched:
            (folder / name).write_bytes(self.files[name])
        self.touched = {"manifest.json"}
        self.number += 1
        return self.damage(dice, folder)

    def damage(self, dice: Random, folder: Path) -> str:
        """Do what this kind does."""
        raise NotImplementedError

    def read(self, folder: Path) -> None:
        """All that readers of a checkpoint read; what is read must be what was written."""
        with Checkpoint.open(folder) as checkpoint:
            said = [checkpoint.config, checkpoint.tokenizer, checkpoint.run_yaml, checkpoint.fingerprint]
            said += [checkpoint.trainer_state(), checkpoint.rng()]
            for name in checkpoint.names():
                spec, value = checkpoint.spec(name), checkpoint.read(name)
                if tuple(value.shape) != spec.shape or dtypes.name_of(value.dtype) != checkpoint.dtype(name):
                    raise WrongReadError(f"{name}: {value.dtype} {list(value.shape)}")
                right = {self._sum(self.values[name])} if name in self.values and not self.renames else self.sums
                if self._sum(value) not in right:
                    raise WrongReadError(f"{name} is read as other bytes")
                half = tuple((0, (size + 1) // 2) for size in spec.shape)
                if not torch.equal(_bits(checkpoint.read(name, half)), _bits(value[tuple(slice(*s) for s in half)])):
                    raise WrongReadError(f"a box of {name} is read as other bytes")
        self.beside(folder)

    def beside(self, folder: Path) -> None:
        """Commands that show what is there: all cases in four."""
        if self.number % 4 == 0:
            list(lines(describe(folder), tensors=True))
        if self.number % 40 == 1:
            verify(folder)


def _bits(value: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(dtypes.octets(value).copy())


class Manifests(Damaged):
    """The manifest."""

    renames = True

    def damage(self, dice: Random, folder: Path) -> str:
        """By structure, and by bytes."""
        data, said = changed_json(self.files["manifest.json"], dice)
        (folder / "manifest.json").write_bytes(data)
        return said


class Cuts(Damaged):
    """Of the manifest, what says where the tensors lie: boxes, runs, shapes, keys, files."""

    def damage(self, dice: Random, folder: Path) -> str:
        """One to three numbers."""
        tree = json.loads(self.files["manifest.json"])
        name = dice.choice(list(tree["tensors"]))
        tree["tensors"][name], said = changed_tree(tree["tensors"][name], dice)
        (folder / "manifest.json").write_bytes(as_json(tree))
        return f"{name}: {said}"


class DataHeaders(Damaged):
    """The header of a data file, with the size that the manifest says, so that it is come to."""

    def damage(self, dice: Random, folder: Path) -> str:
        """By structure, and by bytes."""
        name = dice.choice([name for name in self.files if name.endswith(".safetensors")])
        data = self.files[name]
        start = 8 + int.from_bytes(data[:8], "little")
        if dice.random() < 0.5:
            new, said = changed_json(data[8:start], dice)
            new = len(new).to_bytes(8, "little") + new + data[start:]
        else:
            new, said = damaged(data, dice)
        self._agree(folder, {name: new})
        return f"{name}: {said}"

    def _agree(self, folder: Path, files: dict[str, bytes]) -> None:
        """Write files, and let the manifest agree: no accident."""
        tree = json.loads(self.files["manifest.json"])
        for name, data in files.items():
            (folder / name).write_bytes(data)
            self.touched.add(name)
            for entry in tree["files"]:
                if entry["path"] == name:
                    entry.update(bytes=len(data), crc=f"{crc64nvme(data):016x}")
        (folder / "manifest.json").write_text(json.dumps(tree))


class SmallFiles(DataHeaders):
    """The other files: configuration, trainer's state, run, tokenizer, random states."""

    def damage(self, dice: Random, folder: Path) -> str:
        """By structure, and by bytes; the manifest has their checksums."""
        name = dice.choice([name for name in self.files if "model/" not in name and name != "manifest.json"])
        data = self.files[name]
        new, said = changed_json(data, dice) if name.endswith(".json") else damaged(data, dice)
        self._agree(folder, {name: new})
        return f"{name}: {said}"

    def beside(self, folder: Path) -> None:
        """Each case."""
        list(lines(describe(folder), tensors=True))
        if self.number % 10 == 0:
            verify(folder)


class Headers:
    """A file of safetensors alone, beside what its own package says of it."""

    def __init__(self, tmp: Path) -> None:
        tensors = {
            "a.weight": torch.arange(12.0).reshape(3, 4),
            "b": torch.arange(6, dtype=torch.int16),
            "c": torch.tensor(1.5).bfloat16(),
            "d": torch.zeros(0, 4),
            "e": torch.ones(2, 3, 1, dtype=torch.bool),
        }
        save_file(tensors, tmp / "x.safetensors", {"format": "pt"})
        self.data = (tmp / "x.safetensors").read_bytes()

    def make(self, dice: Random, folder: Path) -> str:
        """By structure, and by bytes; the length of the header is right, or not."""
        start = 8 + int.from_bytes(self.data[:8], "little")
        if dice.random() < 0.7:
            new, said = changed_json(self.data[8:start], dice)
            tail = self.data[start:] if dice.random() < 0.9 else damaged(self.data[start:], dice)[0]
            data = len(new).to_bytes(8, "little") + new + tail
        else:
            data, said = damaged(self.data, dice)
        (folder / "x.safetensors").write_bytes(data)
        return said

    def read(self, folder: Path) -> None:
        """What we read, the package reads alike; what it refuses, we refuse."""
        header = read_header(folder / "x.safetensors")
        try:
            with safe_open(folder / "x.safetensors", "pt") as theirs:
                found = {key: theirs.get_slice(key) for key in theirs.keys()}  # noqa: SIM118
                about = {key: (each.get_dtype(), tuple(each.get_shape())) for key, each in found.items()}
        except Exception as error:  # noqa: BLE001  # its own kind of error is not public
            if "recursion limit" in str(error):
                return  # in a field that it does not know, and we pass over
            raise WrongReadError(f"the package refuses it: {error}") from None
        if about != {key: (entry.dtype, entry.shape) for key, entry in header.entries.items()}:
            raise WrongReadError(f"the package reads {about}")
        if any(not header.start <= each.first <= each.last <= header.size for each in header.entries.values()):
            raise WrongReadError("outside the file")


class Rewritten(Manifests):
    """Fields that a reader does not know are kept when a checkpoint is written anew."""

    def damage(self, dice: Random, folder: Path) -> str:
        """Fields are added anywhere."""
        tree = json.loads(self.files["manifest.json"])
        at = dice.choice([tree, tree["format"], *tree["tensors"].values(), *tree["lineage"]])
        at["future"], said = changed_tree(TRAINER, dice)
        (folder / "manifest.json").write_bytes(as_json(tree))
        return said


def test_unknown_fields_are_kept(tmp_path: Path) -> None:
    """Whatever a later release adds to a manifest, however deep, a reshard keeps it, or refuses in words."""
    target, kept = Rewritten(tmp_path), 0
    for number in range(40):
        target.make(Random(number), tmp_path / "c")
        try:
            with Checkpoint.open(tmp_path / "c") as checkpoint:
                reshard(checkpoint, tmp_path / "out", Mesh(), force=True)
        except NeoxkitError:
            continue
        kept += 1
        after, before = Checkpoint.open(tmp_path / "out").manifest, checkpoint.manifest
        assert (after.extra, after.format_extra) == (before.extra, before.format_extra)
        assert after.lineage[: len(before.lineage)] == before.lineage
        for name, entry in before.tensors.items():
            assert (after.tensors[name].crc, after.tensors[name].extra) == (entry.crc, entry.extra)
    assert kept > 10


KINDS = {"manifests": (Manifests, 3500), "cuts": (Cuts, 3000), "headers": (Headers, 7000)}
KINDS |= {"data": (DataHeaders, 700), "small": (SmallFiles, 300)}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged(kind: str, tmp_path: Path) -> None:
    """An error in words or the right tensors; both happen."""
    made, cases = KINDS[kind]
    target: Target = made(tmp_path)
    tally = fuzz(target, count(cases))
    assert tally.findings == []
    assert tally.read > cases // 100
    assert tally.refused > cases // 4
