"""What is damaged, missing, added or malicious stops the reader, with the file's and the tensor's name."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sound import damaged

from neoxkit.checkpoint.coverage import covers, fault
from neoxkit.checkpoint.format import parse
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.writer import Part
from neoxkit.errors import CheckpointError
from neoxkit.mesh import Mesh
from neoxkit.spec import TensorSpec, whole

Damage = Callable[[Path], None]


@pytest.fixture
def small(save) -> Path:
    """A checkpoint of two tensors, one in column pieces, one whole."""
    spec = TensorSpec("layers.0.attn.o.weight", (4, 6))
    values = {"model/layers.0.attn.o.weight": torch.randn(4, 6), "model/norm.weight": torch.randn(5)}
    parts = [
        Part("model/layers.0.attn.o.weight", spec, "F32", ((0, 4), (3 * i, 3 * i + 3)), f"model/{i}.safetensors")
        for i in (0, 1)
    ]
    parts.append(Part("model/norm.weight", TensorSpec("norm.weight", (5,)), "F32", ((0, 5),), "model/1.safetensors"))
    return save("small", values=values, parts=parts, trainer={"a": 1})


def read_everything(folder: Path) -> None:
    """What verify does."""
    with Checkpoint.open(folder) as checkpoint:
        assert checkpoint.config
        for name in checkpoint.names():
            checkpoint.read(name)
    for wrong in damaged(folder):
        raise CheckpointError(wrong)


def complaint(act: Callable[[Any], object], what: object) -> str:
    """The cause of the CheckpointError that an act ends in; nothing when it does not."""
    try:
        act(what)
    except CheckpointError as error:
        return error.cause
    return ""


def flipped(path: Path) -> Iterator[int]:
    """The file with one bit wrong, at each byte in turn."""
    good = path.read_bytes()
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        path.write_bytes(bad)
        yield at
    path.write_bytes(good)


def test_a_flipped_bit_anywhere_in_a_file_is_found_by_verify(small: Path) -> None:
    for path in sorted(each for each in small.rglob("*") if each.is_file() and each.name != "manifest.json"):
        for at in flipped(path):
            assert path.name in complaint(read_everything, small), f"byte {at} of {path.name}"
    read_everything(small)


def test_a_flipped_bit_of_a_tensor_is_found_by_reading_that_tensor(small: Path) -> None:
    for file in (small / "model/0.safetensors", small / "model/1.safetensors"):
        start = 8 + int.from_bytes(file.read_bytes()[:8], "little")
        for at in flipped(file):
            if at < start:
                continue
            with Checkpoint.open(small) as checkpoint:
                said = [
                    (name, complaint(way, name))
                    for name in checkpoint.names()
                    for way in (checkpoint.read, lambda name, c=checkpoint: list(c.stream(name, most_bytes=8)))
                ]
            found = [name for name, cause in said if name in cause and file.name in cause]
            assert len(found) == 2, f"byte {at}: {said}"
            assert found[0] == found[1]


def test_a_box_that_takes_in_whole_pieces_is_checked(small: Path) -> None:
    """A rank that reads its own pieces finds damage in them, and none in another's."""
    file = small / "model/1.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 0x10  # in layers.0.attn.o.weight or norm.weight: find out which
    start = 8 + int.from_bytes(data[:8], "little")
    key = max(json.loads(data[8:start]).items(), key=lambda each: each[1].get("data_offsets", [0, 0])[1])[0]
    file.write_bytes(data)
    checkpoint = Checkpoint.open(small)
    if key == "norm.weight":
        data[-1] ^= 0x10
        data[start] ^= 0x10
        file.write_bytes(data)
    name = "model/layers.0.attn.o.weight"
    checkpoint.read(name, ((0, 4), (0, 3)))
    for box in (((0, 4), (3, 6)), ((0, 4), (2, 6))):
        with pytest.raises(
            CheckpointError, match=r"1\.safetensors: model/layers\.0\.attn\.o\.weight\[0:4,3:6\] is damaged"
        ):
            checkpoint.read(name, box)
        with pytest.raises(CheckpointError, match="is damaged"):
            list(checkpoint.stream(name, box, most_bytes=12))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "model/0.safetensors").unlink(), r"0\.safetensors: the file is missing"),
        (lambda f: os.truncate(f / "model/0.safetensors", 100), r"0\.safetensors: cut short: 100 bytes"),
        (lambda f: os.truncate(f / "model/0.safetensors", 9999), r"0\.safetensors: too long"),
        (lambda f: (f / "config.json").unlink(), r"config\.json: the file is missing"),
        (lambda f: (f / "model/more.safetensors").write_bytes(b""), r"more\.safetensors: the manifest does not list"),
        (lambda f: (f / "manifest.json").write_text("{"), r"manifest\.json: not valid JSON"),
        (lambda f: os.truncate(f / "manifest.json", 700), r"manifest\.json: not valid JSON"),
    ],
)
def test_missing_short_long_and_foreign_files(small: Path, damage: Damage, says: str) -> None:
    damage(small)
    with pytest.raises(CheckpointError, match=says):
        read_everything(small)


def test_pieces_that_were_swapped_between_files(small: Path) -> None:
    """Same sizes, wrong content: the header of a file is not what the manifest says."""
    first, second = small / "model/0.safetensors", small / "model/1.safetensors"
    data = first.read_bytes()
    first.write_bytes(data.replace(b"[0:4,0:3]", b"[0:4,3:6]"))
    with pytest.raises(CheckpointError, match=r"0\.safetensors: model/layers.*is not in the file"):
        read_everything(small)
    first.write_bytes(data.replace(b'"shape":[4,3]', b'"shape":[3,4]'))
    with pytest.raises(CheckpointError, match=r"is F32 \[3, 4\], but the manifest says F32 \[4, 3\]"):
        read_everything(small)
    first.write_bytes(data)
    assert second.exists()


def test_a_link_out_of_the_checkpoint_is_not_followed(small: Path, tmp_path: Path) -> None:
    target = tmp_path / "secret"
    shutil.move(small / "model/0.safetensors", target)
    (small / "model/0.safetensors").symlink_to(target)
    with pytest.raises(CheckpointError, match=r"0\.safetensors: a link"):
        Checkpoint.open(small)
    (small / "model/0.safetensors").unlink()
    shutil.move(target, small / "model/0.safetensors")
    shutil.move(small / "model", tmp_path / "elsewhere")
    (small / "model").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="a link"):
        Checkpoint.open(small)


def changed(data: dict[str, Any], *path: Any, to: Any) -> None:
    """Set what lies at a path; drop it when `to` is ...."""
    for key in path[:-1]:
        data = data[key]
    if to is ...:
        del data[path[-1]]
    else:
        data[path[-1]] = to


TENSOR = ("tensors", "model/layers.0.attn.o.weight")
PIECE = (*TENSOR, "pieces", 0)


@pytest.mark.parametrize(
    ("path", "to", "says"),
    [
        (("format",), ..., "has no 'format'"),
        (("format", "name"), "torch", "the format is 'torch'"),
        (("format", "version"), 2, "format version 2, but this neoxkit knows version 1"),
        (("format", "requires"), ["zstd"], "requires 'zstd', which is not known"),
        (("checksum",), "md5", "the checksum 'md5' is not known"),
        (("step",), -1, "'step' is -1"),
        (("step",), "1", "'step' is '1', not a number"),
        (("tensors",), [], "'tensors' is [], not an object"),
        (("files", 0, "path"), "../config.json", "leads out of the checkpoint"),
        (("files", 0, "path"), "/etc/passwd", "leads out of the checkpoint"),
        (("files", 0, "path"), "a//b", "leads out of the checkpoint"),
        (("files", 0, "path"), "model/../../x", "leads out of the checkpoint"),
        (("files", 0, "path"), "model/0.safetensors", "a file is listed twice"),
        (("files", 0, "crc"), "xyz", "not 16 hexadecimal digits"),
        (("files", 0, "bytes"), -5, "'bytes' is -5"),
        ((*TENSOR, "dtype"), "F3", "dtype 'F3' is not known"),
        ((*TENSOR, "shape"), [4, -6], "'shape' is [4, -6]"),
        ((*TENSOR, "shape"), ..., "'shape' is None"),
        ((*TENSOR, "shape"), [4, 7], "no piece holds [0:4,6:7] (4 elements are missing)"),
        ((*TENSOR, "shape"), [4, 5], "lies outside a tensor of shape [4, 5]"),
        ((*TENSOR, "shape"), [1] * 9, "9 dimensions"),
        ((*TENSOR, "splits"), [[2, "tp", 1]], "a split of a dimension that it does not have"),
        ((*TENSOR, "splits"), [[0, "xx", 1]], "'splits' is"),
        ((*TENSOR, "role"), "boss", "'role' is 'boss'"),
        ((*TENSOR, "crc"), ..., "has no 'crc'"),
        ((*TENSOR, "pieces"), [], "no piece of it is stored"),
        ((*PIECE, "file"), 9, "file 9 of 4"),
        ((*PIECE, "box"), [[0, 4], [0, 4]], "two pieces hold [0:4,3:4]"),
        ((*PIECE, "box"), [[0, 4], [0, 2]], "no piece holds [0:4,2:3]"),
        ((*PIECE, "box"), [[0, 4]], "lies outside"),
        ((*PIECE, "box"), [[3, 1], [0, 3]], "lies outside"),
        ((*PIECE, "box"), "all", "'box' is 'all'"),
        ((*PIECE, "run"), [0, 13], "lies outside"),
        ((*PIECE, "run"), [0, 11], "no piece holds [3:4,2:3] (1 elements are missing)"),
        ((*PIECE, "run"), [1], "'run' is [1]"),
        ((*PIECE, "key"), 5, "'key' is 5, not text"),
    ],
    ids=lambda value: "/".join(map(str, value)) if isinstance(value, tuple) else None,
)  # fmt: skip
def test_a_manifest_that_is_wrong(small: Path, path: tuple[Any, ...], to: Any, says: str) -> None:
    file = small / "manifest.json"
    data = json.loads(file.read_bytes())
    changed(data, *path, to=to)
    file.write_text(json.dumps(data))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(small)
    assert says in caught.value.cause
    assert "manifest.json" in caught.value.cause
    if path[:1] == ("tensors",) and len(path) > 1:
        assert "model/layers.0.attn.o.weight" in caught.value.cause


def test_two_pieces_in_one_entry(small: Path) -> None:
    data = json.loads((small / "manifest.json").read_bytes())
    data["tensors"]["model/norm.weight"]["pieces"][0] |= {"file": 2, "key": "layers.0.attn.o.weight[0:4,3:6]"}
    with pytest.raises(CheckpointError, match="two pieces lie in the entry"):
        parse(json.dumps(data), "m")
    with pytest.raises(CheckpointError, match="'a' is there twice"):
        parse('{"a": 1, "a": 2}', "m")
    for text in ("[]", "[" * 10_000, "\xff"):
        with pytest.raises(CheckpointError, match=r"^m: not"):
            parse(text, "m")


def test_ten_thousand_pieces_are_checked_at_once() -> None:
    grid = [(((16 * i, 16 * i + 16), (16 * j, 16 * j + 16)), None) for i in range(100) for j in range(100)]
    begin = time.process_time()
    assert fault((1600, 1600), grid) is None
    assert fault((1600, 1600), grid[1:]) is not None
    assert fault((1600, 1600), [*grid[1:], grid[5]]) is not None
    assert time.process_time() - begin < 3


def test_covers() -> None:
    assert covers((), [()])
    assert not covers((), [(), ()])
    assert not covers((), [])
    assert covers((4,), [((0, 2),), ((2, 4),), ((3, 3),)])
    assert not covers((4,), [((0, 3),), ((2, 3),)])  # as many elements as the whole
    assert not covers((2, 2), [((0, 1), (0, 2)), ((0, 1), (0, 2))])
    assert fault((3,), [(whole((3,)), None)]) is None


def test_reading_what_is_not_there(small: Path) -> None:
    with pytest.raises(CheckpointError, match="it has no tensor model/lost"):
        Checkpoint.open(small).read("model/lost")


def test_a_configuration_of_another_kind(small: Path) -> None:
    """A config.json whose checksum is right, and whose content is not ours."""
    from neoxkit.checkpoint.checksum import crc64nvme

    text = b'{"family": "llama"}'
    (small / "config.json").write_bytes(text)
    data = json.loads((small / "manifest.json").read_bytes())
    data["files"][0] = {"path": "config.json", "bytes": len(text), "crc": f"{crc64nvme(text):016x}"}
    (small / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"config\.json: depth: Field required"):
        _ = Checkpoint.open(small).config


def test_opening_imports_no_torch(small: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from neoxkit.checkpoint.reader import Checkpoint; c = Checkpoint.open(sys.argv[1]);"
        "c.fingerprint, [c.spec(n) for n in c.names()]; "
        "bad = {'torch', 'numpy'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code, str(small)], check=True)


def test_a_mesh_that_does_not_divide_is_refused(save) -> None:
    from neoxkit.errors import ConfigError

    with pytest.raises(ConfigError, match="do not divide over tp 3"):
        save(mesh=Mesh(tp=3))
