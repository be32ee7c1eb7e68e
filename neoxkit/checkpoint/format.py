"""manifest.json: what a checkpoint is made of. Parsing, validation, writing. No torch.

docs/checkpoint-format.md is the specification; this file is its only implementation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import PurePosixPath
from typing import Any, TypeVar

from neoxkit.checkpoint.checksum import fingerprint_of
from neoxkit.checkpoint.coverage import fault, spelled
from neoxkit.checkpoint.json_text import LARGEST, parse_object
from neoxkit.checkpoint.safetensors_file import DTYPE_BITS, reasonable
from neoxkit.errors import CheckpointError
from neoxkit.spec import Axis, Box, Role, Run, Split, TensorSpec, extent, volume, whole

NAME = "neoxkit-checkpoint"
VERSION = 1
REQUIRES: frozenset[str] = frozenset()
"""The `requires` flags that this reader knows."""
CHECKSUM = "crc64nvme"

MANIFEST = "manifest.json"
CONFIG = "config.json"
RUN_YAML = "run.yaml"
TOKENIZER = "tokenizer"
STATE = "trainer/state.json"
RNG = "trainer/rng-r{rank:05d}.safetensors"
LATEST = "latest"
MODEL = "model/"
"""The component that weights belong to; others are optimizer/master/, optimizer/exp_avg/, ..."""
MOST_FILE = 5_000_000_000
"""Bytes of a file in the layout of whole tensors."""
BLOCK_BYTES = 16 << 20
"""Bytes that are read, or copied, at a time."""

ITEM_BYTES: Mapping[str, int] = {name: bits // 8 for name, bits in DTYPE_BITS.items() if bits % 8 == 0}
"""Bytes of an element. A dtype of less than a byte can not be cut into boxes, so none is here."""

_MOST_DIMENSIONS = 8
_REMEDY = "fetch the checkpoint again, or choose another"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the checkpoint, other than the manifest; `path` is relative, with slashes."""

    path: str
    bytes: int
    crc: int
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PieceEntry:
    """Entry `key` of file number `file` holds `run` of `box`; `crc` is of the piece's own bytes."""

    file: int
    key: str
    box: Box
    run: Run | None = None
    crc: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the entry in its file."""
        return (self.run[1] - self.run[0],) if self.run else extent(self.box)


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A logical tensor: what it is, its checksum, and its pieces."""

    dtype: str
    spec: TensorSpec
    crc: int
    pieces: tuple[PieceEntry, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes of the whole tensor."""
        return volume(whole(self.spec.shape)) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The index of a checkpoint. `extra` holds fields that this version does not know; they are kept."""

    files: tuple[FileEntry, ...]
    tensors: Mapping[str, TensorEntry]
    writer: str = ""
    created: str = ""
    attempt: str = ""
    step: int = 0
    samples: int = 0
    tokens: int = 0
    mesh: Mapping[str, int] = field(default_factory=dict)
    lineage: tuple[Mapping[str, Any], ...] = ()
    requires: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    format_extra: Mapping[str, Any] = field(default_factory=dict)

    def fingerprint(self, component: str = MODEL) -> str:
        """16 hexadecimal digits that say which weights these are, however they are cut."""
        return fingerprint_of(
            (name.removeprefix(component), entry.dtype, entry.spec.shape, entry.crc)
            for name, entry in self.tensors.items()
            if name.startswith(component)
        )


def bare(name: str) -> str:
    """A tensor's name without its component: "layers.0.norm1.weight" of "model/layers.0.norm1.weight"."""
    return name.rpartition("/")[2]


def entry_key(name: str, shape: tuple[int, ...], box: Box, run: Run | None = None) -> str:
    """The key of a piece in its file: the name, without its first component unless it is all there is, and the cut.

    A whole tensor has no cut in its key, so that other readers of safetensors find plain names.
    """
    key = name.partition("/")[2] or name
    return key if box == whole(shape) and run is None else key + spelled(box, run)


def parse(text: str | bytes, where: str) -> Manifest:
    """The manifest in `text`, validated as far as it can be without looking at the files.

    Raises CheckpointError, starting with `where`, for a version or `requires` flag that this reader
    does not know, and for anything missing, mistyped, out of bounds, covered twice or not at all.
    """
    rest = _Fields(parse_object(text, where, _REMEDY, unique=True), where)
    head = _Fields(rest.take("format", dict), f"{where}: format")
    requires = _check_version(head, where)
    checksum = rest.take("checksum", str)
    if checksum != CHECKSUM:
        raise CheckpointError(f"{where}: the checksum {checksum!r} is not known", "upgrade neoxkit")
    files = tuple(_file(each, f"{where}: files[{i}]") for i, each in enumerate(rest.take("files", list)))
    paths = [file.path for file in files]
    if len(set(paths)) < len(paths):
        raise CheckpointError(f"{where}: a file is listed twice", _REMEDY)
    tensors = {
        name: _tensor(name, each, files, f"{where}: tensor {name}") for name, each in rest.take("tensors", dict).items()
    }
    _check_keys(tensors.values(), files, where)
    return Manifest(
        files=files,
        tensors=tensors,
        writer=rest.take("writer", str, ""),
        created=rest.take("created", str, ""),
        attempt=rest.take("attempt", str, ""),
        step=rest.natural("step", 0),
        samples=rest.natural("samples", 0),
        tokens=rest.natural("tokens", 0),
        mesh=rest.take("mesh", dict, {}),
        lineage=tuple(rest.read("lineage", [], _objects)),
        requires=requires,
        extra=rest.left,
        format_extra=head.left,
    )


def dump(manifest: Manifest) -> bytes:
    """The text of manifest.json: JSON with one file or tensor a line, for people and for `diff`."""
    head: dict[str, Any] = {
        "format": {"name": NAME, "version": VERSION, "requires": list(manifest.requires), **manifest.format_extra},
        "writer": manifest.writer,
        "created": manifest.created,
        "attempt": manifest.attempt,
        "step": manifest.step,
        "samples": manifest.samples,
        "tokens": manifest.tokens,
        "checksum": CHECKSUM,
        "mesh": dict(manifest.mesh),
        "lineage": list(manifest.lineage),
        **manifest.extra,
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    files = [
        json.dumps({"path": f.path, "bytes": f.bytes, "crc": f"{f.crc:016x}", **f.extra}, ensure_ascii=False)
        for f in manifest.files
    ]
    tensors = [
        f"{json.dumps(name)}: {json.dumps(_tensor_json(entry), ensure_ascii=False)}"
        for name, entry in manifest.tensors.items()
    ]
    lines.append('"files": [\n  ' + ",\n  ".join(files) + "]")
    lines.append('"tensors": {\n  ' + ",\n  ".join(tensors) + "}")
    return ("{" + ",\n ".join(lines) + "}\n").encode()


def piece_json(shape: tuple[int, ...], box: Box, run: Run | None) -> dict[str, Any]:
    """A piece's `box` and `run` as the manifest spells them; a whole tensor needs neither."""
    found: dict[str, Any] = {} if box == whole(shape) else {"box": [list(span) for span in box]}
    return found if run is None else {**found, "run": list(run)}


def spec_json(spec: TensorSpec) -> dict[str, Any]:
    """Shape, splits and role as the manifest spells them."""
    found: dict[str, Any] = {"shape": list(spec.shape)}
    if spec.splits:
        found["splits"] = [[s.dim, s.axis.value, s.unit, *(["ragged"] if s.ragged else [])] for s in spec.splits]
    if spec.role is not Role.MATRIX:
        found["role"] = spec.role.value
    return found


def _tensor_json(entry: TensorEntry) -> dict[str, Any]:
    pieces = [
        {
            "file": piece.file,
            "key": piece.key,
            **piece_json(entry.spec.shape, piece.box, piece.run),
            **({} if piece.crc is None else {"crc": f"{piece.crc:016x}"}),
            **piece.extra,
        }
        for piece in entry.pieces
    ]
    return {
        "dtype": entry.dtype,
        **spec_json(entry.spec),
        "crc": f"{entry.crc:016x}",
        **entry.extra,
        "pieces": pieces,
    }


class _Fields:
    """A JSON object from which known fields are taken; what is left is unknown, and kept."""

    def __init__(self, given: object, where: str) -> None:
        if not isinstance(given, dict):
            raise CheckpointError(f"{where} is not a JSON object", _REMEDY)
        self.left: dict[str, Any] = dict(given)
        self.where = where

    def take(self, key: str, kind: type[_T], default: _T | None = None) -> _T:
        if key not in self.left:
            if default is None:
                raise CheckpointError(f"{self.where} has no {key!r}", _REMEDY)
            return default
        value = self.left.pop(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise CheckpointError(f"{self.where}: {key!r} is {value!r:.80}, not {_KINDS[kind]}", _REMEDY)
        return value

    def natural(self, key: str, default: int | None = None) -> int:
        value = self.take(key, int, default)
        if not 0 <= value <= LARGEST:
            raise CheckpointError(f"{self.where}: {key!r} is {value!r:.80}", _REMEDY)
        return value

    def crc(self, key: str) -> int:
        text = self.take(key, str)
        if len(text) != 16 or set(text) - set("0123456789abcdef"):
            raise CheckpointError(f"{self.where}: {key!r} is {text!r:.80}, not 16 hexadecimal digits", _REMEDY)
        return int(text, 16)

    def read(self, key: str, default: _T, read: Callable[[Any], _T]) -> _T:
        if key not in self.left:
            return default
        value = self.left.pop(key)
        try:
            return read(value)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{self.where}: {key!r} is {value!r:.80}", _REMEDY) from error


_KINDS: Mapping[type, str] = {dict: "an object", list: "a list", str: "text", int: "a number"}


def _check_version(head: _Fields, where: str) -> tuple[str, ...]:
    if (name := head.take("name", str)) != NAME:
        raise CheckpointError(f"{where}: the format is {name!r}, not {NAME!r}", "choose a neoxkit checkpoint")
    if (version := head.take("version", int)) != VERSION:
        raise CheckpointError(
            f"{where}: format version {version}, but this neoxkit knows version {VERSION}", "upgrade neoxkit"
        )
    requires = head.take("requires", list, [])
    for flag in requires:
        if not isinstance(flag, str) or flag not in REQUIRES:
            said = f"{where}: reading it requires {flag!r:.80}, which is not known here"
            raise CheckpointError(said, "upgrade neoxkit")
    return tuple(requires)


def safe_path(path: str) -> bool:
    """Whether a relative path with slashes stays below the directory that it is relative to."""
    pure = PurePosixPath(path)
    plain = str(pure) == path and path != "." and "\\" not in path and "\0" not in path
    return plain and not pure.is_absolute() and ".." not in pure.parts


def _file(given: object, where: str) -> FileEntry:
    rest = _Fields(given, where)
    path = rest.take("path", str)
    if not safe_path(path):
        raise CheckpointError(f"{where}: the path {path!r} leads out of the checkpoint", "do not trust this checkpoint")
    return FileEntry(path, rest.natural("bytes"), rest.crc("crc"), rest.left)


def _natural_list(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or any(type(each) is not int or not 0 <= each <= LARGEST for each in value):
        raise ValueError
    return tuple(value)


def _objects(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ValueError
    return value


def _spans(value: Any) -> Box:
    pairs = tuple(_natural_list(each) for each in value)
    return tuple((start, stop) for start, stop in pairs)


def _pair(value: Any) -> Run:
    first, last = _natural_list(value)
    return first, last


def _splits(value: Any) -> tuple[Split, ...]:
    found = []
    for dim, axis, unit, *ragged in value:
        if type(dim) is not int or type(unit) is not int or unit < 1 or ragged not in ([], ["ragged"]):
            raise ValueError
        found.append(Split(dim, Axis(axis), unit, bool(ragged)))
    return tuple(found)


def _tensor(name: str, given: object, files: tuple[FileEntry, ...], where: str) -> TensorEntry:
    rest = _Fields(given, where)
    dtype = rest.take("dtype", str)
    if dtype not in ITEM_BYTES:
        raise CheckpointError(f"{where}: the dtype {dtype!r} is not known", "upgrade neoxkit")
    rest.left.setdefault("shape", None)
    shape: tuple[int, ...] = rest.read("shape", (), _natural_list)
    if len(shape) > _MOST_DIMENSIONS:
        raise CheckpointError(f"{where}: {len(shape)} dimensions, at most {_MOST_DIMENSIONS} are read", _REMEDY)
    if not reasonable(shape):
        raise CheckpointError(f"{where}: the shape {list(shape)} is beyond all reason", _REMEDY)
    splits: tuple[Split, ...] = rest.read("splits", (), _splits)
    if any(not 0 <= split.dim < len(shape) for split in splits):
        raise CheckpointError(f"{where}: a split of a dimension that it does not have", _REMEDY)
    spec = TensorSpec(bare(name), shape, splits, rest.read("role", Role.MATRIX, Role))
    crc = rest.crc("crc")
    pieces = tuple(
        _piece(each, shape, files, f"{where}: pieces[{i}]") for i, each in enumerate(rest.take("pieces", list))
    )
    if wrong := fault(shape, [(piece.box, piece.run) for piece in pieces]):
        raise CheckpointError(f"{where}: {wrong}", _REMEDY)
    return TensorEntry(dtype, spec, crc, pieces, rest.left)


def _piece(given: object, shape: tuple[int, ...], files: tuple[FileEntry, ...], where: str) -> PieceEntry:
    rest = _Fields(given, where)
    file = rest.natural("file")
    if file >= len(files):
        raise CheckpointError(f"{where}: file {file} of {len(files)}", _REMEDY)
    box: Box = rest.read("box", whole(shape), _spans)
    inside = len(box) == len(shape) and all(
        start <= stop <= length for (start, stop), length in zip(box, shape, strict=False)
    )
    run: Run | None = rest.read("run", None, _pair)
    if not inside or (run is not None and not run[0] <= run[1] <= volume(box)):
        raise CheckpointError(f"{where}: {spelled(box, run)} lies outside a tensor of shape {list(shape)}", _REMEDY)
    crc = rest.crc("crc") if "crc" in rest.left else None
    return PieceEntry(file, rest.take("key", str), box, run, crc, rest.left)


def _check_keys(tensors: Iterable[TensorEntry], files: Sequence[FileEntry], where: str) -> None:
    """Raise when two pieces are said to lie in one entry of a file, or pieces are larger than their files."""
    seen: set[tuple[int, str]] = set()
    left = [file.bytes for file in files]
    for entry in tensors:
        for piece in entry.pieces:
            left[piece.file] -= prod(piece.shape) * ITEM_BYTES[entry.dtype]
            if left[piece.file] < 0:
                raise CheckpointError(f"{where}: {files[piece.file].path} is too small for its pieces", _REMEDY)
            if (piece.file, piece.key) in seen:
                raise CheckpointError(f"{where}: two pieces lie in the entry {piece.key!r} of one file", _REMEDY)
            seen.add((piece.file, piece.key))
