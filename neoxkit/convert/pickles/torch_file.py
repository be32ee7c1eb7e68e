"""A file of torch.save: its objects, with each tensor as the place that it lies at. Nothing else is read."""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

from neoxkit.checkpoint.format import ITEM_BYTES
from neoxkit.convert.pickles.storage import Storage
from neoxkit.convert.pickles.unpickle import DAMAGE, ForbiddenError, Kind, UnsupportedError, load
from neoxkit.errors import CheckpointError

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of files before torch 1.6, which are no zip
_LOCAL_HEADER = 30  # bytes before a zip member's name, the lengths of which stand at byte 26

_DAMAGED = "not a file of torch tensors, or damaged"
_AGAIN = "fetch it again"
_PLAINLY = "write it anew with torch.save, as plain tensors of fp32, fp16 or bf16"


def read_objects(file: Path) -> Any:
    """What a file of torch.save holds: plain containers, Stored for each tensor, Inert for the rest.

    Zip archives (torch 1.6 and later) and the pickles before them. Raises CheckpointError for a file
    that is neither, is damaged, or asks for anything that is not a tensor or a plain container: it is
    named.
    """
    try:
        with open(file, "rb") as opened:
            if opened.read(4) == b"PK\x03\x04":
                return _read_zip(file, opened)
            return _read_legacy(file, opened)
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror or error}", _AGAIN) from error
    except ForbiddenError as error:
        raise CheckpointError(f"{file}: asks for {error}: refused", "do not trust this file") from error
    except UnsupportedError as error:
        raise CheckpointError(f"{file}: holds {error}, which is not read here", _PLAINLY) from error
    except (*DAMAGE, zipfile.BadZipFile, struct.error, NotImplementedError, MemoryError) as error:
        raise CheckpointError(f"{file}: {_DAMAGED} ({error})", _AGAIN) from error


def _read_zip(file: Path, opened: IO[bytes]) -> Any:
    with zipfile.ZipFile(opened) as archive:
        members = {each.filename: each for each in archive.infolist()}
        end = opened.seek(0, io.SEEK_END)

    def place(name: str) -> tuple[int, int]:
        """The first byte of a member, and its bytes."""
        member = members[name]
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise UnsupportedError(f"{name} compressed")
        opened.seek(member.header_offset)
        header = opened.read(_LOCAL_HEADER)
        named, more = struct.unpack("<HH", header[26:])
        first = member.header_offset + _LOCAL_HEADER + named + more
        if header[:4] != b"PK\x03\x04" or first + member.file_size > end:
            raise ValueError(f"{name} reaches beyond the file")
        # A length that is wrong here would move the tensor by some bytes, in silence.
        if opened.read(named) != name.encode() or not _fields_fill(opened.read(more)):
            raise ValueError(f"{name} has two headers that disagree")
        return first, member.file_size

    def member(name: str) -> bytes:
        first, size = place(name)
        opened.seek(first)
        return opened.read(size)

    roots = [name.removesuffix("data.pkl") for name in members if name.split("/")[1:] == ["data.pkl"]]
    if len(roots) != 1:
        raise ValueError("no data.pkl")
    root = roots[0]
    if f"{root}byteorder" in members and member(f"{root}byteorder") != b"little":
        raise ValueError("not little-endian")

    def storage(kind: Kind, key: object, elements: object) -> Storage:
        first, size = place(f"{root}data/{key}")
        if not isinstance(elements, int) or not 0 <= elements * ITEM_BYTES[kind.dtype] <= size:
            raise ValueError(f"storage {key} is shorter than the pickle says")
        return Storage(file, kind.dtype, first, elements)

    return load(io.BytesIO(member(f"{root}data.pkl")), storage)


def _fields_fill(extra: bytes) -> bool:
    """Whether the fields of a member's header, each a kind, a length and so many bytes, end where it ends."""
    at = 0
    while at + 4 <= len(extra):
        at += 4 + int.from_bytes(extra[at + 2 : at + 4], "little")
    return at == len(extra)


def _read_legacy(file: Path, opened: IO[bytes]) -> Any:
    """Five pickles (magic, protocol, system, objects, keys), then each storage: its length and its bytes."""
    with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        stream: Any = mapped  # read() of a mapping never takes memory for more than the file holds

        def none(kind: Kind, key: object, elements: object) -> Storage:
            raise ValueError("a tensor in the header")

        if load(stream, none) != _MAGIC or load(stream, none) != _PROTOCOL:
            raise ValueError("no magic number")
        if load(stream, none).get("little_endian") is not True:
            raise ValueError("not little-endian")
        start = mapped.tell()
        wanted: dict[object, tuple[str, int]] = {}

        def noted(kind: Kind, key: object, elements: object) -> Storage:
            if not isinstance(elements, int) or not 0 <= elements * ITEM_BYTES[kind.dtype] <= len(mapped):
                raise ValueError(f"storage {key} is longer than the file")
            wanted[key] = (kind.dtype, elements)
            return Storage(file, kind.dtype, 0, elements)

        load(stream, noted)  # the places of storages follow from their order, which stands behind the objects
        keys = load(stream, none)
        places: dict[object, int] = {}
        at = mapped.tell()
        for key in keys:
            dtype, elements = wanted[key]
            if int.from_bytes(mapped[at : at + 8], "little") != elements:
                raise ValueError(f"storage {key} is of another length than the pickle says")
            places[key] = at + 8
            at += 8 + elements * ITEM_BYTES[dtype]
        if at > len(mapped):
            raise ValueError("ends inside a tensor")

        def found(kind: Kind, key: object, elements: object) -> Storage:
            dtype, length = wanted[key]
            return Storage(file, dtype, places[key], length)

        mapped.seek(start)
        return load(stream, found)
