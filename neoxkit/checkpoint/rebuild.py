"""A manifest made anew of what each file says of itself. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from neoxkit import __version__
from neoxkit.checkpoint.checksum import crc64nvme
from neoxkit.checkpoint.folder import is_ours, unfinished
from neoxkit.checkpoint.format import (
    CHECKSUM,
    CONFIG,
    MANIFEST,
    NAME,
    RUN_YAML,
    STATE,
    VERSION,
    Manifest,
    TensorEntry,
    parse,
)
from neoxkit.checkpoint.json_text import LARGEST, parse_object
from neoxkit.checkpoint.safetensors_file import Header, read_header
from neoxkit.checkpoint.scan import Sums
from neoxkit.errors import CheckpointError

_WITHIN = re.compile(r"step-(\d+)")
_PLACE = re.compile(r"model/pp(\d+)-tp(\d+)(?:-ep(\d+))?(?:-dp\d+)?(?:-cp\d+)?\.safetensors")
_LINE = re.compile(r'^\s*("(?:[^"\\]|\\.)+"): (\{"dtype".*)')
_CRC = re.compile(r'"crc": "([0-9a-f]{16})"')
_REMEDY = "restore the file from a copy"


@dataclass(frozen=True)
class Draft:
    """A manifest without checksums of tensors, and what else was found.

    `carried` says for each field of the manifest where it is from; `strays` are files that no
    checkpoint has, and which are not listed; `known` are checksums of tensors in the damaged manifest.
    """

    manifest: Manifest
    carried: Mapping[str, str]
    strays: tuple[str, ...]
    known: Mapping[str, int]


def draft(folder: Path) -> Draft:
    """The manifest of a folder, as far as headers and small files say.

    Raises CheckpointError, naming the file or the tensor, when a file does not say what it holds,
    files are of several checkpoints, or pieces do not cover their tensors.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder", "name a checkpoint's folder")
    if (name := unfinished(folder)) is not None:
        raise CheckpointError(
            f"{folder}: an unfinished attempt to write {name}: what it holds may never have been written",
            "choose another checkpoint",
        )
    headers: dict[str, Header] = {}
    small: dict[str, bytes] = {}
    strays: list[str] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise CheckpointError(f"{path}: a link, which may lead out of the checkpoint", "put the file itself there")
        if path.is_dir() or name == MANIFEST:
            continue
        if name.endswith(".safetensors") and not name.startswith("trainer/"):
            headers[name] = read_header(path)
        elif is_ours(name):
            small[name] = path.read_bytes()
        else:
            strays.append(name)
    if CONFIG not in small or not headers:
        what = CONFIG if headers else "file of tensors"
        raise CheckpointError(f"{folder}: it has no {what}", _REMEDY if headers else "name a checkpoint's folder")
    old = _remains(folder / MANIFEST)
    tree = _tree(folder, headers, small)
    head, carried = _head(folder, headers, small, old)
    manifest = _parsed(folder, {**head, **tree})
    _check_shapes(folder, manifest, headers)
    return Draft(manifest, carried, tuple(strays), _known(old))


def finished(manifest: Manifest, sums: Sums, event: Mapping[str, Any]) -> Manifest:
    """The manifest with the checksums of everything, and one more event in its lineage."""
    files = tuple(replace(file, crc=sums.files[number]) for number, file in enumerate(manifest.files))
    tensors: dict[str, TensorEntry] = {}
    for name, tensor in manifest.tensors.items():
        pieces = tuple(replace(piece, crc=sums.entries[piece.file, piece.key]) for piece in tensor.pieces)
        tensors[name] = replace(tensor, crc=sums.tensors[name], pieces=pieces)
    found = replace(manifest, files=files, tensors=tensors)
    return replace(found, lineage=(*found.lineage, {**event, "model": found.fingerprint()}))


def _tree(folder: Path, headers: Mapping[str, Header], small: Mapping[str, bytes]) -> dict[str, Any]:
    """`files` and `tensors` of a manifest, from the __metadata__ of each file."""
    tensors: dict[str, dict[str, Any]] = {}
    files: list[dict[str, Any]] = []
    attempts: dict[str, str] = {}
    for number, name in enumerate(sorted([*headers, *small])):
        if name in small:
            files.append({"path": name, "bytes": len(small[name]), "crc": f"{crc64nvme(small[name]):016x}"})
            continue
        header, where = headers[name], str(folder / name)
        files.append({"path": name, "bytes": header.size, "crc": "0" * 16})
        if "neoxkit" not in header.metadata:
            raise CheckpointError(f"{where}: it does not say what it holds: neoxkit did not write it", "take it away")
        about = parse_object(header.metadata["neoxkit"], f"{where}: __metadata__: neoxkit", _REMEDY)
        pieces = about.get("pieces")
        if about.get("format") != [NAME, VERSION] or not isinstance(pieces, dict) or set(pieces) != set(header.entries):
            raise CheckpointError(f"{where}: what its __metadata__ says is not what it holds", _REMEDY)
        attempts.setdefault(str(about.get("attempt")), where)
        for key, piece in pieces.items():
            if not isinstance(piece, dict) or not isinstance(piece.get("tensor"), str):
                raise CheckpointError(f"{where}: {key!r}: its __metadata__ names no tensor", _REMEDY)
            spec = {"dtype": header.entries[key].dtype, **_taken(piece, "shape", "splits", "role")}
            found = tensors.setdefault(piece["tensor"], {**spec, "crc": "0" * 16, "pieces": []})
            if {**spec, "crc": found["crc"], "pieces": found["pieces"]} != found:
                raise CheckpointError(f"{where}: {piece['tensor']} is another tensor here than elsewhere", _REMEDY)
            found["pieces"].append({"file": number, "key": key, **_taken(piece, "box", "run")})
    if len(attempts) > 1:
        first, second = list(attempts.values())[:2]
        raise CheckpointError(f"{second}: it is of another checkpoint than {first}", _REMEDY)
    return {"files": files, "tensors": tensors, "attempt": next(iter(attempts))}


def _taken(given: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: given[key] for key in keys if key in given}


def _parsed(folder: Path, tree: Mapping[str, Any]) -> Manifest:
    """The manifest, or an error that says how many tensors are not covered."""
    where = str(folder)
    try:
        return parse(json.dumps(tree), where)
    except CheckpointError as first:
        wrong = []
        for name, tensor in tree["tensors"].items():
            try:
                parse(json.dumps({**tree, "tensors": {name: tensor}}), where)
            except CheckpointError:
                wrong.append(name)
        more = f" (and {len(wrong) - 1} more tensors are not whole)" if len(wrong) > 1 else ""
        raise CheckpointError(f"{first.cause}{more}", "restore the file that is missing from a copy") from first


def _check_shapes(folder: Path, manifest: Manifest, headers: Mapping[str, Header]) -> None:
    for name, tensor in manifest.tensors.items():
        for piece in tensor.pieces:
            path = manifest.files[piece.file].path
            if headers[path].entries[piece.key].shape != piece.shape:
                raise CheckpointError(f"{folder / path}: {name}: {piece.key!r} is not what the file says", _REMEDY)


def _head(
    folder: Path, headers: Mapping[str, Header], small: Mapping[str, bytes], old: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The manifest's other fields, and where each is from: the trainer's state, the damaged manifest, or names."""
    carried: dict[str, str] = {}
    head: dict[str, Any] = {
        "format": {"name": NAME, "version": VERSION, "requires": []},
        "checksum": CHECKSUM,
        "writer": f"neoxkit {__version__}",
    }
    state = parse_object(small[STATE], str(folder / STATE), _REMEDY) if STATE in small else {}
    step = _WITHIN.fullmatch(folder.resolve().name)
    by_name: dict[str, Any] = {"mesh": _mesh(headers)}
    by_name |= {"step": int(step[1])} if step else {}
    for key in ("step", "samples", "tokens", "mesh", "lineage", "created"):
        for where, given in ((STATE, state), (f"the damaged {MANIFEST}", old), ("names", by_name)):
            if key in given and _fits(key, given[key]):
                head[key], carried[key] = given[key], where
                break
    if "created" not in head:
        newest = max((folder / name).stat().st_mtime for name in headers)
        head["created"] = datetime.fromtimestamp(newest, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        carried["created"] = "the files' times"
    if "lineage" not in head and (STATE in small or RUN_YAML in small):
        head["lineage"] = [{"event": "train", "to_step": head.get("step", 0)}]
        carried["lineage"] = STATE if STATE in small else RUN_YAML
    return head, carried


def _mesh(headers: Mapping[str, Header]) -> dict[str, int]:
    """The cut that files are named after; one device, where they are not."""
    places = [tuple(int(n or 0) for n in match.groups()) for name in headers if (match := _PLACE.fullmatch(name))]
    return dict(zip(("pp", "tp", "ep"), (max(each) + 1 for each in zip(*places, strict=True)), strict=False)) or {
        "pp": 1,
        "tp": 1,
        "ep": 1,
    }


def _fits(key: str, value: Any) -> bool:
    """Whether a field of a damaged manifest is of its kind."""
    if key == "mesh":
        return isinstance(value, dict) and all(_count(each) for each in value.values())
    if key == "lineage":
        return isinstance(value, list) and all(isinstance(each, dict) for each in value)
    if key == "created":
        return isinstance(value, str)
    return _count(value)


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _remains(path: Path) -> dict[str, Any]:
    """What can still be read of a damaged manifest: all of it, or the lines that are whole. See format.dump."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    try:
        return parse_object(text, str(path))
    except CheckpointError:
        pass
    found: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        try:
            if match is None:
                found |= parse_object("{" + line.strip().lstrip("{").rstrip(",") + "}", str(path))
            elif crc := _CRC.search(match[2]):
                tensors |= parse_object(f'{{{match[1]}: {{"crc": "{crc[1]}"}}}}', str(path))
        except CheckpointError:
            continue
    return {**found, "tensors": tensors}


def _known(old: Mapping[str, Any]) -> dict[str, int]:
    """The checksums of tensors that a damaged manifest still says."""
    found: dict[str, int] = {}
    tensors = old.get("tensors")
    for name, tensor in tensors.items() if isinstance(tensors, dict) else ():
        crc = tensor.get("crc") if isinstance(tensor, dict) else None
        if isinstance(crc, str) and re.fullmatch("[0-9a-f]{16}", crc):
            found[name] = int(crc, 16)
    return found
