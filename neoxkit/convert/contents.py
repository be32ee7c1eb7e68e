"""Reading all of a checkpoint and collecting what is wrong with its bytes and numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from neoxkit.checkpoint.checksum import crc64nvme
from neoxkit.checkpoint.format import MODEL
from neoxkit.checkpoint.raw_io import CHUNK
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.errors import CheckpointError, NeoxkitError
from neoxkit.log import Progress, progress

if TYPE_CHECKING:
    from torch import Tensor

    from neoxkit.checkpoint import Source

MASTER = "optimizer/master/"

Kind = Literal["file", "damage", "names", "shape", "dtype", "not finite", "master", "config", "tokenizer", "trainer"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: of which kind, in which file or tensor, and one line that says what."""

    kind: Kind
    where: str
    what: str


@dataclass
class Report:
    """What was checked and what was found. `notes` are for people and do not make a checkpoint bad."""

    path: Path
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    model: str | None = None
    files: int = 0
    bytes: int = 0
    tensors: int = 0

    @property
    def sound(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def json(self) -> dict[str, Any]:
        """Ready for JSON.

        path         the folder that was checked
        sound        whether nothing was found
        model        the fingerprint of the weights; null for a Hugging Face folder, and when it cannot be known
        findings     [{"kind", "where", "what"}]; kind is "file", "damage", "names", "shape", "dtype",
                     "not finite", "master", "config", "tokenizer" or "trainer"; where is a file or a tensor
        notes        [line] about what is not wrong, but worth knowing
        files, bytes, tensors      how much was read
        """
        return {
            "path": str(self.path),
            "sound": self.sound,
            "model": self.model,
            "findings": [asdict(finding) for finding in self.findings],
            "notes": self.notes,
            "files": self.files,
            "bytes": self.bytes,
            "tensors": self.tensors,
        }

    def lines(self) -> Iterator[str]:
        """For people: a line for each finding and note, then the verdict."""
        yield from (f"bad: {finding.what}" for finding in self.findings)
        yield from (f"note: {note}" for note in self.notes)
        read = f"{self.files} files, {self.bytes:,} bytes and {self.tensors} tensors checked"
        weights = f", weights {self.model}" if self.model else ""
        count = len(self.findings)
        verdict = "sound" if self.sound else f"bad: {count} finding{'s' if count > 1 else ''}"
        yield f"{self.path}: {verdict} ({read}{weights})"


def cause(error: Exception) -> str:
    """What an error says is wrong, and where."""
    if isinstance(error, NeoxkitError):
        return error.cause
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return str(error)


def read_contents(checkpoint: Checkpoint, report: Report, unreadable: set[int]) -> None:
    """Read every file and every tensor. A tensor is read soon after its last file, which memory may still hold."""
    manifest = checkpoint.manifest
    due: dict[int, list[str]] = {}
    for name, tensor in manifest.tensors.items():
        files = {piece.file for piece in tensor.pieces}
        if not files & unreadable:
            due.setdefault(max(files), []).append(name)
    names = [name for each in due.values() for name in each]
    readable = [file for number, file in enumerate(manifest.files) if number not in unreadable]
    report.files, report.tensors, report.bytes = len(readable), len(names), sum(file.bytes for file in readable)
    total = report.bytes + sum(manifest.tensors[name].bytes for name in names)
    damaged = set(manifest.tensors) - set(names)
    with progress("verify", total) as bar:
        for number, entry in enumerate(manifest.files):
            if number in unreadable:
                continue
            report.findings += _check_file(checkpoint.path / entry.path, entry.path, entry.crc, bar)
            for name in due.get(number, []):
                found = list(_check_tensor(checkpoint, name, damaged, bar))
                report.findings += found
                if any(finding.kind == "damage" for finding in found):
                    damaged.add(name)


def _check_file(path: Path, name: str, expected: int, bar: Progress) -> Iterator[Finding]:
    room = bytearray(CHUNK)
    crc = 0
    try:
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(room):
                crc = crc64nvme(memoryview(room)[:size], crc)
                bar.advance(size)
    except OSError as error:
        yield Finding("file", name, cause(error))
        return
    if crc != expected:
        yield Finding("file", name, f"{path}: damaged: its checksum is {crc:016x}, not {expected:016x}")


@dataclass
class _Numbers:
    """What is counted of a tensor, block by block."""

    nans: int = 0
    infinities: int = 0

    def add(self, value: Tensor) -> None:
        """Count a block's. Its extremes are taken first: they are finite in nearly all, and ten times cheaper."""
        import torch

        if not value.is_floating_point() or not value.numel():
            return
        if value.dtype.itemsize == 1:
            value = value.float()  # torch has no arithmetic on 8-bit floating point
        low, high = torch.aminmax(value)
        if not (low.isfinite() and high.isfinite()):
            self.nans += int(value.isnan().sum())
            self.infinities += int(value.isinf().sum())

    def findings(self, name: str, elements: int) -> Iterator[Finding]:
        """What is wrong with them."""
        if self.nans or self.infinities:
            said = f"{name}: {self.nans} NaN and {self.infinities} infinite of {elements} elements"
            yield Finding("not finite", name, said)


def _check_tensor(checkpoint: Checkpoint, name: str, damaged: set[str], bar: Progress) -> Iterator[Finding]:
    """Read a tensor: its checksum, numbers that are not finite, and, of a master, whether it is its weight's."""
    tensors = checkpoint.manifest.tensors
    weight = MODEL + name.removeprefix(MASTER)
    compared = name.startswith(MASTER) and weight in tensors and weight not in damaged
    compared = compared and tensors[weight].spec.shape == tensors[name].spec.shape
    numbers = _Numbers()
    stale, apart = 0, 0.0
    try:
        for box, value in checkpoint.stream(name):
            numbers.add(value)
            if compared:
                count, most = _stale(value, checkpoint.read(weight, box))
                stale, apart = stale + count, max(apart, most)
            bar.advance(value.nbytes)
    except (CheckpointError, OSError) as error:
        yield Finding("damage", name, cause(error))
        return
    elements = prod(tensors[name].spec.shape)
    yield from numbers.findings(name, elements)
    if stale:
        said = f"{stale} of {elements} elements do not round to those of {weight}, by up to {apart:.3g}"
        yield Finding("master", name, f"{name}: {said}")


def _stale(master: Tensor, weight: Tensor) -> tuple[int, float]:
    """How many weights are not their master rounded, and the greatest distance."""
    import torch

    rounded = master.to(weight.dtype)
    if torch.equal(rounded, weight):
        return 0, 0.0
    wrong = (rounded != weight) & ~(rounded.isnan() & weight.isnan())
    distance = (rounded.float() - weight.float()).abs()[wrong]
    return int(wrong.sum()), float(distance.nan_to_num(nan=float("inf")).max()) if distance.numel() else 0.0


def read_numbers(source: Source, name: str, bar: Progress) -> Iterator[Finding]:
    """Read a tensor of any source for numbers that are not finite."""
    numbers = _Numbers()
    for _, value in source.stream(name):
        numbers.add(value)
        bar.advance(value.nbytes)
    yield from numbers.findings(name, prod(source.spec(name).shape))
