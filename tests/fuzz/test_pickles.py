"""Damaged files of torch.save: zip archives, the pickles in them, and the pickles of before torch 1.6."""

from __future__ import annotations

import io
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import WrongReadError, count, fuzz
from mutations import changed_pickle, changed_zip, damaged, repacked

from neoxkit.convert.pickles.storage import Files, Stored
from neoxkit.convert.pickles.torch_file import read_objects


def example() -> dict[str, Any]:
    """What a checkpoint of gpt-neox holds, in small: shared and strided tensors, containers, a generator's state."""
    base = torch.arange(24.0).reshape(4, 6)
    return OrderedDict(
        module={
            "a": base,
            "b": base[1],
            "c": base.t(),
            "d": torch.arange(5, dtype=torch.int16),
            "e": torch.tensor(2.5),
        },
        half=[torch.ones(3, 2).bfloat16(), (torch.zeros(0, 4), "text", b"bytes", 2**70, None, True, 0.5)],
        shape=torch.Size([2, 3]),
        args={"layers": 2, "names": {"x", "y"}},
        random=np.random.RandomState(0).get_state()[:1],
    )


def tensors_of(value: Any, at: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every tensor in plain containers, and where it is."""
    if isinstance(value, Stored | torch.Tensor):
        yield at, value
    elif depth < 20 and isinstance(value, dict):
        for key, each in value.items():
            yield from tensors_of(each, f"{at}/{key!r:.40}", depth + 1)
    elif depth < 20 and isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from tensors_of(each, f"{at}/{index}", depth + 1)


class Pickles:
    """A file of torch.save."""

    legacy = False

    def __init__(self, tmp: Path) -> None:
        torch.save(example(), tmp / "x.pt", _use_new_zipfile_serialization=not self.legacy)
        self.data = (tmp / "x.pt").read_bytes()
        self.sound = dict(tensors_of(example()))

    def make(self, dice: Random, folder: Path) -> str:
        """Damage by bytes."""
        data, said = self.damage(dice)
        (folder / "x.pt").write_bytes(data)
        return said

    def damage(self, dice: Random) -> tuple[bytes, str]:
        """Anywhere."""
        return damaged(self.data, dice)

    def read(self, folder: Path) -> None:
        """Read every tensor; where torch's own careful reader reads the file too, the tensors are equal."""
        found, files = dict(tensors_of(read_objects(folder / "x.pt"))), Files()
        try:
            ours = {at: files.read(tensor) for at, tensor in list(found.items())[:50]}
        finally:
            files.close()
        try:
            theirs = torch.load(folder / "x.pt", weights_only=True)
        except Exception:  # noqa: BLE001  # it knows less: states of generators, classes of DeepSpeed
            return
        for at, tensor in tensors_of(theirs):
            # Where only the archive's directory is damaged, torch reads other bytes and says nothing.
            if (
                at in ours
                and not _same(ours[at], tensor)
                and not (at in self.sound and _same(ours[at], self.sound[at]))
            ):
                raise WrongReadError(f"{at} is not what torch reads")


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    flat = [each.contiguous().reshape(-1).view(torch.uint8) if each.numel() else each.reshape(-1) for each in (a, b)]
    return torch.equal(*flat)


class Legacy(Pickles):
    """Before torch 1.6."""

    legacy = True


class Operations(Pickles):
    """The pickle in a zip archive, by its operations."""

    def __init__(self, tmp: Path) -> None:
        super().__init__(tmp)
        with zipfile.ZipFile(io.BytesIO(self.data)) as archive:
            self.name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            self.stream = archive.read(self.name)

    def damage(self, dice: Random) -> tuple[bytes, str]:
        """Other operations, other arguments."""
        stream, said = changed_pickle(self.stream, dice) if dice.random() < 0.8 else damaged(self.stream, dice)
        return repacked(self.data, lambda name, data: stream if name == self.name else data), said


class Directory(Pickles):
    """The directory of a zip archive and the headers of its members."""

    def damage(self, dice: Random) -> tuple[bytes, str]:
        """Other numbers."""
        return changed_zip(self.data, dice)


KINDS = {
    "zips": (Pickles, 800),
    "legacy": (Legacy, 1500),
    "operations": (Operations, 2500),
    "directory": (Directory, 800),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged(kind: str, tmp_path: Path) -> None:
    """An error in words or the right tensors; both happen, and nothing is run."""
    made, cases = KINDS[kind]
    tally = fuzz(made(tmp_path), count(cases))
    assert tally.findings == []
    assert tally.read > cases // 100
    assert tally.refused > cases // 4
