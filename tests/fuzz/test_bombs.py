"""Small files, made by hand, that ask for all memory or time, or overflow the stack: each is refused at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
import yaml
from fuzzing import fuzz
from mutations import repacked
from neox_checkpoints import STEP, unpack

from neoxkit.checkpoint.format import parse
from neoxkit.checkpoint.safetensors_file import read_header
from neoxkit.config.neox.network import USED
from neoxkit.convert.neox.settings import read_settings
from neoxkit.convert.open import open_foreign
from neoxkit.convert.pickles.storage import Files, Stored
from neoxkit.convert.pickles.torch_file import read_objects

MANY = 20_000
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE
NESTED = b")" + b"\x85" * 150_000
TUPLE, LIST = b"(" + b"N" * MANY + b"tq\x01", b"]q\x01(" + b"N" * MANY + b"e"
TEXT = b"X" + (200_000).to_bytes(4, "little") + b"a" * 200_000 + b"q\x01X\x06\x00\x00\x00latin1q\x02"
TOO_LARGE = b"\x8a\x09" + b"\xff" * 8 + b"\x00"

PICKLES: dict[str, bytes] = {
    "nested key of a dict": b"}" + NESTED + b"Ns.",
    "nested key of an OrderedDict": b"ccollections\nOrderedDict\n](" + NESTED + b"N\x86e\x85R.",
    "nested element of a set": b"\x80\x04\x8f(" + NESTED + b"\x90.",
    "nested element of a frozenset": b"\x80\x04(" + NESTED + b"\x91.",
    "nested element of a made set": b"cbuiltins\nset\n](" + NESTED + b"e\x85R.",
    "nested name of a storage": STORAGE.replace(b"X\x01\x00\x00\x000", b"]" + b"\x85" * 5000) + b".",
    "one list made a set again and again": b"(cbuiltins\nset\nq\x00" + LIST + b"h\x00h\x01\x85R" * MANY + b"l.",
    "one text made bytes again and again": b"(c_codecs\nencode\nq\x00" + TEXT + b"h\x00h\x01h\x02\x86R" * MANY + b"l.",
    "one tuple of arguments again and again": b"(cargparse\nNamespace\nq\x00" + TUPLE + b"h\x00h\x01R" * MANY + b"l.",
    "one tuple of arguments to new objects": b"(cargparse\nNamespace\nq\x00" + TUPLE + b"h\x00h\x01\x81" * MANY + b"l.",
    "one long key again and again": TUPLE + b"}" + b"h\x01Ns" * MANY + b".",
    "one element shown 2^62 times": TENSOR + b"K\x00J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86K\x00K\x00\x86\x89NtR.",
    "one element shown 2^30 times": TENSOR + b"K\x00J\x00\x00\x00\x40K\x01\x86K\x00K\x00\x86\x89NtR.",
    "empty, of 2^72 columns": TENSOR + b"K\x00K\x00" + TOO_LARGE + b"\x86K\x00K\x00\x86\x89NtR.",
    "of 5000 dimensions": TENSOR + b"K\x00(" + b"K\x01" * 5000 + b"t(" + b"K\x01" * 5000 + b"t\x89NtR.",
}  # fmt: skip


class Pickle:
    """A pickle in a zip archive of torch."""

    def __init__(self, stream: bytes) -> None:
        self.stream = stream

    def make(self, dice: Random, folder: Path) -> str:
        """Put it there."""
        torch.save({"x": torch.ones(4)}, folder / "x.pt")
        data = (folder / "x.pt").read_bytes()
        made = repacked(data, lambda name, held: self.stream if name.endswith("data.pkl") else held)
        (folder / "x.pt").write_bytes(made)
        return "a bomb"

    def read(self, folder: Path) -> None:
        """Read it, and the tensor in it."""
        found = read_objects(folder / "x.pt")
        if isinstance(found, Stored):
            Files().read(found)


@pytest.mark.parametrize("name", PICKLES)
def test_pickles(name: str) -> None:
    """Built in no more time and memory than the file is large."""
    tally = fuzz(Pickle(PICKLES[name]), 1)
    assert tally.findings == []
    assert tally.refused == 1


def test_honest_repetition() -> None:
    """One tensor under many names, and one value in many places, is no bomb."""
    stream = b"(" + TENSOR + b"K\x00K\x04\x85K\x01\x85\x89NtRq\x00" + b"h\x00" * MANY + b"l."
    tally = fuzz(Pickle(stream), 1)
    assert (tally.findings, tally.read) == ([], 1)


def aliases(kind: str = "list") -> str:
    """Ten lines that stand for 9^10 values."""
    lines = ["a0: &a0 [x]" if kind == "list" else "a0: &a0 {x: 1}"]
    for number in range(1, 10):
        before = [f"*a{number - 1}"] * 9
        listed = {
            "list": f"[{', '.join(before)}]",
            "dict": "{" + ", ".join(f"k{i}: {each}" for i, each in enumerate(before)) + "}",
            "merge": "{<<: [" + ", ".join(before) + "]}",
        }[kind]
        lines.append(f"a{number}: &a{number} {listed}")
    return "\n".join(lines) + "\n"


SETTINGS: dict[str, str] = {
    "aliases in attention_config": aliases() + "attention_config: *a9",
    "aliases for a number": aliases() + "num_layers: *a9",
    "aliases for a text": aliases() + "activation: *a9",
    "aliases of mappings": aliases("dict") + "soft_prompt_tuning: *a9",
    "merged mappings": aliases("merge"),
    "a list of itself": "attention_config: &a [*a]",
    "a number of 5000 hexadecimal digits": "num_layers: 0x" + "f" * 5000,
    "a number of 50,000 binary digits": "num_layers: 0b1" + "0" * 50_000,
    "a number to the base 60": "num_layers: 1" + ":59" * 5_000,
    "a fraction to the base 60": "rotary_pct: 1" + ":59" * 5_000 + ".5",
    "lists in lists": "norm: " + "[" * 800 + "]" * 800,
    "a program to run": "norm: !!python/object/apply:os.system ['touch harmed']",
}


class Settings:
    """A checkpoint of gpt-neox with such settings; or two files of them, which are compared."""

    def __init__(self, text: str, tmp: Path) -> None:
        self.text, self.tmp = text, tmp
        unpack(tmp)

    def make(self, dice: Random, folder: Path) -> str:
        """Link the tensors, write the settings."""
        if any(folder.iterdir()):
            return "again"
        oracle = self.tmp / "neox_tp2pp1" / STEP
        for path in oracle.glob("*.pt"):
            (folder / path.name).write_bytes(path.read_bytes())
        (folder / "configs").mkdir()
        (held,) = (oracle / "configs").iterdir()
        key = self.text.splitlines()[-1].partition(":")[0]
        given = {k: v for k, v in yaml.safe_load(held.read_text()).items() if k != key and k in USED}
        (folder / "configs" / "a.yml").write_text(yaml.safe_dump(given) + self.text)
        return "a bomb"

    def read(self, folder: Path) -> None:
        """Open it, and once more with the same settings twice."""
        open_foreign(folder).close()


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name: str, tmp_path: Path) -> None:
    """Refused in a short line."""
    tally = fuzz(Settings(SETTINGS[name], tmp_path), 1)
    assert tally.findings == []
    assert tally.refused == 1


def test_aliases_that_stand_for_little(tmp_path: Path) -> None:
    """As people write them."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "a.yml").write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\n")
    assert read_settings(tmp_path).values == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}] * 2}


def boxes(dims: int, count: int) -> list[dict[str, object]]:
    """Pieces of boxes by chance, which overlap and leave gaps in every direction."""
    dice = Random(0)
    spans = [[sorted(dice.sample(range(101), 2)) for _ in range(dims)] for _ in range(count)]
    return [{"file": 0, "key": f"k{number}", "box": box} for number, box in enumerate(spans)]


def manifest(**tensor: object) -> str:
    """Of one tensor."""
    whole = {"dtype": "F32", "shape": [4], "crc": "0" * 16, "pieces": [{"file": 0, "key": "a"}], **tensor}
    files = [{"path": "a.safetensors", "bytes": 10**18, "crc": "0" * 16}]
    head = {"name": "neoxkit-checkpoint", "version": 1, "requires": []}
    return json.dumps({"format": head, "checksum": "crc64nvme", "files": files, "tensors": {"a": whole}})


KEYS = ",".join(f'"k{i}": 1' for i in range(200_000))
MANIFESTS: dict[str, str] = {
    "200 boxes in 4 dimensions": manifest(shape=[100] * 4, pieces=boxes(4, 200)),
    "1999 boxes in 4 dimensions": manifest(shape=[100] * 4, pieces=boxes(4, 1999)),
    "300 boxes in 8 dimensions": manifest(shape=[100] * 8, pieces=boxes(8, 300)),
    "2000 times the whole": manifest(pieces=[{"file": 0, "key": str(i)} for i in range(2000)]),
    "a million dimensions": manifest(shape=[2**62] * 1_000_000),
    "numbers of 4000 digits": manifest(shape=[10**4000] * 3),
    "an empty tensor of 2^124 columns": manifest(shape=[0, 2**62, 2**62]),
    "lists in lists": manifest().replace("[4]", "[" * 100_000 + "]" * 100_000),
    "keys that are there twice": manifest().replace('"crc"', KEYS + ', "k199999": 1, "crc"', 1),
    "larger than its file": manifest(shape=[10**17 * 4]),
}  # fmt: skip


class Text:
    """A manifest, or the header of a file."""

    def __init__(self, text: str, act: Callable[[Path, str], object]) -> None:
        self.text, self.act = text, act

    def make(self, dice: Random, folder: Path) -> str:
        """Write it: a memory of it that the reader takes is no more than that of the file."""
        data = self.text.encode()
        (folder / "x").write_bytes(len(data).to_bytes(8, "little") + data + bytes(4))
        return "a bomb"

    def read(self, folder: Path) -> None:
        """Parse it."""
        self.act(folder / "x", self.text)


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests(name: str) -> None:
    """Refused before anything is made of it."""
    tally = fuzz(Text(MANIFESTS[name], lambda path, text: parse(text, "m")), 1, room=200 << 20)
    assert tally.findings == []
    assert tally.refused == 1


HEADERS: dict[str, str] = {
    "a million dimensions": '{"a": {"dtype": "U8", "data_offsets": [0, 4], "shape": [' + "9, " * 1_000_000 + "4]}}",
    "numbers of 4000 digits": json.dumps({"a": {"dtype": "U8", "data_offsets": [0, 4], "shape": [10**4000] * 2}}),
    "a million keys, one twice": "{" + KEYS + ', "k199999": 1}',
    "lists in lists": '{"a": ' + "[" * 1_000_000 + "]" * 1_000_000 + "}",
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(name: str) -> None:
    """Refused before anything is made of it."""
    tally = fuzz(Text(HEADERS[name], lambda path, text: read_header(path)), 1, room=200 << 20)
    assert tally.findings == []
    assert tally.refused == 1
