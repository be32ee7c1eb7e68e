"""What a revision is to hold: a model of a family, exported file by file, or a checkpoint as it is."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path, PurePath
from typing import Any, Protocol

from torch import Tensor

from neoxkit.checkpoint import Source
from neoxkit.checkpoint.attempt import Attempt
from neoxkit.checkpoint.checksum import crc64nvme
from neoxkit.checkpoint.dtypes import octets
from neoxkit.checkpoint.folder import share
from neoxkit.checkpoint.format import BLOCK_BYTES, ITEM_BYTES, MANIFEST, FileEntry
from neoxkit.checkpoint.output import OutputFile, disk
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.safetensors_file import build_header
from neoxkit.checkpoint.store import Place, StorePath
from neoxkit.convert.copy import copy
from neoxkit.convert.hf_sink import ORIGIN, Joining, Slot, described, plan_shards
from neoxkit.convert.hub import Named
from neoxkit.convert.model_card import HUB_SOURCE, checkpoint_card, model_card
from neoxkit.convert.push.ahead import AT_A_TIME, Ahead
from neoxkit.convert.tokenizer import exported_files, generation_differences, pretty
from neoxkit.convert.transfer import fitted, origin_of
from neoxkit.data.tokenizer import FILE
from neoxkit.errors import CheckpointError
from neoxkit.families.schema import Family
from neoxkit.spec import Box

NATIVE = "neoxkit"
"""How a checkpoint is called that is published as it is."""


class Content(Protocol):
    """The files of a revision."""

    @property
    def origin(self) -> Mapping[str, Any]:
        """What its neoxkit.json says: which weights, in which form and files."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of each weight file."""

    @property
    def small(self) -> Mapping[str, bytes]:
        """All other files but the card; what names weight files (config.json, an index, the manifest) is among them."""

    @property
    def card(self) -> bytes:
        """The README.md."""

    def cautions(self) -> list[str]:
        """What whoever publishes it should know, in words."""

    def weights(self) -> Generator[tuple[str, Path], None, None]:
        """Make the weight files: the name of each, and where it lies until the next is asked for."""


class Exported:
    """A checkpoint as a model of a family."""

    def __init__(self, checkpoint: Checkpoint, family: Family, dtype: str | None, most: int, target: Named) -> None:
        self._checkpoint, self._family = checkpoint, family
        self._source = fitted(checkpoint, family, dtype)
        self._shards = plan_shards(family, self._source, most)
        self.sizes: Mapping[str, int] = {name: _head(shard)[1] for name, shard in self._shards.items()}
        self.origin: Mapping[str, Any] = _origin(checkpoint, family.name, self.sizes)
        files = exported_files(checkpoint.tokenizer, checkpoint.config, family)
        place = f'"{target.name}"' + (f', revision="{target.revision}"' if target.revision else "")
        self.card = model_card(_title(target), checkpoint, self._source, family, FILE in files, place)
        files |= {ORIGIN: pretty(self.origin), **described(family, self._source, self._shards)}
        self.small: Mapping[str, bytes] = files

    def cautions(self) -> list[str]:
        """What a reader of the model may run into, in words."""
        config, tokenizer = self._checkpoint.config, self._checkpoint.tokenizer
        return [*filter(None, [self._family.caution(config)]), *generation_differences(tokenizer, config)]

    def weights(self) -> Generator[tuple[str, Path], None, None]:
        """Make the weight files. See Content. Raises as Checkpoint.stream does, and for a full disk."""
        largest = sorted(self.sizes.values())[-AT_A_TIME:]
        with temporary(sum(largest)) as folder:

            def export(ahead: Ahead) -> None:
                sink = _Passing(self._family, self._source, self._shards, folder, ahead)
                try:
                    copy(self._source, sink, sink.names())
                    sink.commit()
                finally:
                    sink.abort()

            with closing(iter(Ahead(export))) as names:
                for name in names:
                    yield name, folder / name
                    (folder / name).unlink()


class _Passing(Joining):
    """Hands each weight file on as soon as it is whole."""

    def __init__(
        self,
        family: Family,
        source: Source,
        shards: Mapping[str, Mapping[str, Slot]],
        folder: Path,
        ahead: Ahead,
    ) -> None:
        super().__init__(family, source, shards)
        self._shards, self._folder, self._ahead = shards, folder, ahead
        self._missing = {name: sum(slot.bytes for slot in shard.values()) for name, shard in shards.items()}
        self._outputs: dict[str, OutputFile] = {}
        self._threads = ThreadPoolExecutor(3)

    def _put(self, key: str, box: Box, value: Tensor) -> None:
        name = self._file_of[key]
        self._ahead.check()
        if name not in self._outputs:
            self._ahead.begin()
            tensors = {each: (slot.dtype, slot.shape) for each, slot in self._shards[name].items()}
            self._outputs[name] = OutputFile(self._folder / name, tensors, ITEM_BYTES, {"format": "pt"})
        output = self._outputs[name]
        output.write(key, box, octets(value), self._threads)
        self._missing[name] -= value.nbytes
        if not self._missing[name]:
            assert not output.incomplete(), f"{name}: {output.incomplete()[0]} was not written whole"
            output.finish(self._threads)
            del self._outputs[name]
            self._ahead.hand_on(name)

    def commit(self) -> None:
        """Nothing: a file is handed on when it is whole."""
        assert not any(self._missing.values())

    def abort(self) -> None:
        """Give up what is not whole."""
        for output in self._outputs.values():
            output.close()
        self._threads.shutdown()


class AsItIs:
    """A checkpoint, byte for byte, with everything in it: an optimizer too, where it has one."""

    def __init__(self, checkpoint: Checkpoint, target: Named) -> None:
        self._checkpoint = checkpoint
        files = checkpoint.manifest.files
        self._large = {each.path: each for each in files if each.path.endswith(".safetensors")}
        self.sizes: Mapping[str, int] = {path: each.bytes for path, each in self._large.items()}
        self.origin: Mapping[str, Any] = _origin(checkpoint, NATIVE, self.sizes)
        small = [MANIFEST, *(each.path for each in files if each.path not in self._large)]
        self.small: Mapping[str, bytes] = {
            ORIGIN: pretty(self.origin),
            **{path: (checkpoint.path / path).read_bytes() for path in small},
        }
        self.card = checkpoint_card(_title(target), checkpoint, str(target))

    def cautions(self) -> list[str]:
        """What whoever publishes it should know, in words."""
        if self._checkpoint.run_yaml is None:
            return []
        return ["the checkpoint is published as it is: run.yaml and manifest.json name the folders of this machine"]

    def weights(self) -> Generator[tuple[str, Path], None, None]:
        """The files where they lie; those of a store by way of a temporary one. See Content.

        Raises CheckpointError when a file is not what the manifest says.
        """
        path = self._checkpoint.path
        held = share(path)
        try:
            if not isinstance(path, StorePath):
                for name, entry in self._large.items():
                    _check(path / name, entry, None)
                    yield name, path / name
                return
            with temporary(max(self.sizes.values())) as folder:
                for name, entry in self._large.items():
                    with disk(folder, entry.bytes):
                        _check(path / name, entry, folder / "file")
                    yield name, folder / "file"
        finally:
            if held is not None:
                os.close(held)


def _check(file: Place, entry: FileEntry, copied: Path | None) -> None:
    """Compare a file with its checksum; on the way, make a copy of it if one is wanted."""
    crc = 0
    with open(copied or "/dev/null", "wb") as out:
        for block in _blocks(file, entry.bytes):
            crc = crc64nvme(block, crc)
            out.write(block)
    if crc != entry.crc:
        raise CheckpointError(
            f"{file}: damaged: its checksum is {crc:016x}, not {entry.crc:016x}",
            "fetch the checkpoint again, or choose another",
        )


def _blocks(file: Place, size: int) -> Iterator[bytes]:
    if isinstance(file, StorePath):
        for first in range(0, size, BLOCK_BYTES):
            yield file.fetch(first, min(first + BLOCK_BYTES, size))
        return
    with file.open("rb") as opened:
        while block := opened.read(BLOCK_BYTES):
            yield block


@contextmanager
def temporary(need: int) -> Iterator[Path]:
    """A folder for `need` bytes where temporary files go, removed at the end; if not, by the next that is made.

    Raises CheckpointError when the disk has not the room.
    """
    parent = Path(tempfile.gettempdir())
    if (free := shutil.disk_usage(parent).free) < need:
        raise CheckpointError(
            f"{parent}: a weight file needs {need} bytes for a while, and the disk has {free} free",
            "set TMPDIR to a folder with more room, or choose a smaller --max-shard-size",
        )
    attempt = Attempt(parent / "neoxkit-push", lambda folder: None, force=True)
    attempt.make(need)
    try:
        attempt.path.chmod(0o700)  # others use this place too
        yield attempt.path
    finally:
        attempt.abort()


def _head(shard: Mapping[str, Slot]) -> tuple[bytes, int]:
    """The header of a weight file, and the bytes of the whole."""
    head, header = build_header({key: (slot.dtype, slot.shape) for key, slot in shard.items()}, {"format": "pt"})
    return head, header.size


def _origin(checkpoint: Checkpoint, form: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    """What neoxkit.json says in public: a folder of this machine is named without what is above it."""
    found = origin_of(checkpoint)
    lineage = [dict(event) for event in found["lineage"]]
    for event in lineage:
        source = str(event.get("source", ""))
        if "/" in source and not HUB_SOURCE.fullmatch(source):
            event["source"] = PurePath(source).name
    return {**found, "lineage": lineage, "form": form, "files": dict(sizes)}


def _title(target: Named) -> str:
    name = target.name.partition("/")[2]
    return name if target.revision is None else f"{name}, {target.revision}"
