"""Reading all of a checkpoint and collecting what is wrong with its bytes and numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from neoxkit.checkpoint.checksum import closed
from neoxkit.checkpoint.format import ITEM_BYTES, MODEL, Manifest
from neoxkit.checkpoint.pieces import Bytes, PieceFiles
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.scan import Block, Scan, Sums
from neoxkit.checkpoint.store import Place
from neoxkit.errors import NeoxkitError
from neoxkit.log import Progress, progress

if TYPE_CHECKING:
    from torch import Tensor

    from neoxkit.checkpoint import Source

MASTER = "optimizer/master/"

_SERIAL = 1 << 15  # elements that torch converts in one thread

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

    path: Place
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
        model        the fingerprint of the weights; null for a foreign model, and when it cannot be known
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
    """Read every file that can be read, once, and find what is wrong with it and with the tensors in it."""
    manifest = checkpoint.manifest
    readable = [file for number, file in enumerate(manifest.files) if number not in unreadable]
    report.files, report.bytes = len(readable), sum(file.bytes for file in readable)
    files = PieceFiles(checkpoint.path, manifest)
    watcher = _Watcher(manifest)
    try:
        with progress("verify", report.bytes) as bar:
            sums = Scan(files, manifest, watcher, unreadable).run(bar)
    finally:
        files.close()
    report.tensors = len(sums.tensors) + len(sums.amiss)
    report.findings += _check_files(checkpoint, sums)
    damaged = set(manifest.tensors) - set(sums.tensors)
    for name, crc in sums.tensors.items():
        if said := _damage(checkpoint, name, crc, sums):
            report.findings.append(Finding("damage", name, said))
            damaged.add(name)
    report.findings += (Finding("damage", name, said) for name, said in sums.amiss.items())
    for name in sums.tensors:
        if name not in damaged:
            report.findings += watcher.numbers[name].findings(name, prod(manifest.tensors[name].spec.shape))
            report.findings += _check_master(checkpoint, name, watcher, damaged)


def _check_files(checkpoint: Checkpoint, sums: Sums) -> Iterator[Finding]:
    for number, entry in enumerate(checkpoint.manifest.files):
        if number in sums.failed:
            yield Finding("file", entry.path, sums.failed[number])
        elif number in sums.files and (crc := sums.files[number]) != entry.crc:
            said = f"{checkpoint.path / entry.path}: damaged: its checksum is {crc:016x}, not {entry.crc:016x}"
            yield Finding("file", entry.path, said)


def _damage(checkpoint: Checkpoint, name: str, crc: int, sums: Sums) -> str | None:
    """What is wrong with a tensor's bytes, and in which files; None when nothing is."""
    tensor, files = checkpoint.manifest.tensors[name], checkpoint.manifest.files
    bad = [p for p in tensor.pieces if p.crc is not None and p.crc != sums.entries[p.file, p.key]]
    if crc == tensor.crc and not bad:
        return None
    where = dict.fromkeys(str(checkpoint.path / files[piece.file].path) for piece in bad or tensor.pieces)
    if crc == tensor.crc:
        return f"{', '.join(where)}: {name}: the manifest has another checksum of {bad[0].key!r}"
    return f"{', '.join(where)}: {name} is damaged: its checksum is {crc:016x}, not {tensor.crc:016x}"


@dataclass(frozen=True, slots=True)
class _Kind:
    """An IEEE dtype as whole numbers: finite ones, without their sign, are below the bits of infinity."""

    words: str  # of numpy, as numbers without a sign
    infinity: int


_KINDS = {
    "F16": _Kind("u2", 0x7C00),
    "BF16": _Kind("u2", 0x7F80),
    "F32": _Kind("u4", 0x7F800000),
    "F64": _Kind("u8", 0x7FF0000000000000),
    "C64": _Kind("u4", 0x7F800000),  # pairs of F32
}


def not_finite(data: Bytes, dtype: str) -> tuple[int, int]:
    """How many numbers are NaN, and how many infinite.

    Of whole numbers with a sign the greatest is a positive one, of those without it a negative one: two
    maxima say whether all are finite, three times faster than torch's.
    """
    if dtype in _KINDS:
        kind = _KINDS[dtype]
        words = data.view(kind.words)
        sign = 1 << 8 * words.itemsize - 1
        if not words.size or (
            words.max() < sign | kind.infinity and words.view(kind.words.replace("u", "i")).max() < kind.infinity
        ):
            return 0, 0
        bits = words & words.dtype.type(sign - 1)
        return int((bits > kind.infinity).sum()), int((bits == kind.infinity).sum())
    if dtype.startswith("F8"):
        import torch

        from neoxkit.checkpoint.dtypes import TORCH

        values = torch.from_numpy(data).view(TORCH[dtype]).float()
        return int(values.isnan().sum()), int(values.isinf().sum())
    return 0, 0


@dataclass
class _Numbers:
    """What is counted of a tensor, block by block."""

    nans: int = 0
    infinities: int = 0

    def add(self, found: tuple[int, int]) -> None:
        """Add what `not_finite` found in a block."""
        self.nans += found[0]
        self.infinities += found[1]

    def findings(self, name: str, elements: int) -> Iterator[Finding]:
        """What is wrong with them."""
        if self.nans or self.infinities:
            said = f"{name}: {self.nans} NaN and {self.infinities} infinite of {elements} elements"
            yield Finding("not finite", name, said)


class _Watcher:
    """Counts the numbers that are not finite, and rounds masters: what becomes of them has their weights' checksum."""

    def __init__(self, manifest: Manifest) -> None:
        self.numbers = {name: _Numbers() for name in manifest.tensors}
        self.rounded = {name: 0 for name in manifest.tensors if weight_of(manifest, name)}
        self._manifest = manifest

    def look(self, block: Block) -> tuple[tuple[int, int], int]:
        """The numbers that are not finite, and what the block, if a master's, contributes to its weight's CRC."""
        gain = 0
        if block.name in self.rounded:
            weight = self._manifest.tensors[MODEL + block.name.removeprefix(MASTER)]
            data = _rounded(block.data, block.tensor.dtype, weight.dtype)
            gain = block.gain(data, weight.spec.shape, ITEM_BYTES[weight.dtype])
        return not_finite(block.data, block.tensor.dtype), gain

    def take(self, name: str, shown: tuple[tuple[int, int], int]) -> None:
        """Add up what a block showed."""
        self.numbers[name].add(shown[0])
        if name in self.rounded:
            self.rounded[name] ^= shown[1]


def weight_of(manifest: Manifest, name: str) -> str | None:
    """The weight that a master is rounded to; None for what is no master, or has no weight of its shape."""
    weight = MODEL + name.removeprefix(MASTER)
    known = name.startswith(MASTER) and weight in manifest.tensors
    same = known and manifest.tensors[weight].spec.shape == manifest.tensors[name].spec.shape
    return weight if same else None


def _rounded(data: Bytes, dtype: str, to: str) -> Bytes:
    """Numbers in another dtype. Given more at a time torch would use all cores, beside our own threads."""
    if dtype == to:
        return data
    import torch

    from neoxkit.checkpoint.dtypes import TORCH, empty

    values = torch.from_numpy(data).view(TORCH[dtype])
    found, octets = empty((values.numel(),), to)
    for first in range(0, values.numel(), _SERIAL):
        found[first : first + _SERIAL].copy_(values[first : first + _SERIAL])
    return octets


def _check_master(checkpoint: Checkpoint, name: str, watcher: _Watcher, damaged: set[str]) -> Iterator[Finding]:
    """Whether a master rounds to its weight. Where checksums say otherwise, both are read to say by how much."""
    tensors = checkpoint.manifest.tensors
    weight = weight_of(checkpoint.manifest, name)
    if weight is None or weight in damaged:
        return
    if closed(watcher.rounded[name], tensors[weight].bytes) == tensors[weight].crc:
        return
    stale, apart = 0, 0.0
    for box, value in checkpoint.stream(name):
        count, most = _stale(value, checkpoint.read(weight, box))
        stale, apart = stale + count, max(apart, most)
    if stale:
        elements = prod(tensors[name].spec.shape)
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
    from neoxkit.checkpoint.dtypes import octets

    numbers = _Numbers()
    for _, value in source.stream(name):
        numbers.add(not_finite(octets(value), source.dtype(name)))
        bar.advance(value.nbytes)
    yield from numbers.findings(name, prod(source.spec(name).shape))
