"""Checkpoint: a Source over a folder. Opening one imports no torch; reading does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from neoxkit.checkpoint.checksum import closed, combine, crc64nvme
from neoxkit.checkpoint.coverage import spelled
from neoxkit.checkpoint.folder import describe, list_checkpoints, load_manifest, newest, unfinished
from neoxkit.checkpoint.format import (
    BLOCK_BYTES,
    CONFIG,
    ITEM_BYTES,
    MANIFEST,
    RNG,
    RUN_YAML,
    STATE,
    TOKENIZER,
    Manifest,
    TensorEntry,
)
from neoxkit.checkpoint.json_text import parse_object
from neoxkit.checkpoint.safetensors_file import read_header, tensor_bytes
from neoxkit.checkpoint.store import Place, place
from neoxkit.errors import CheckpointError
from neoxkit.spec import Box, TensorSpec, rows, whole

if TYPE_CHECKING:
    from torch import Tensor

    from neoxkit.checkpoint.pieces import Checks, PieceFiles
    from neoxkit.config.model import ModelConfig

_REMEDY = "fetch the checkpoint again, or choose another"


class Checkpoint:
    """A checkpoint that can be read. `path` is its folder; `manifest` its index.

    A whole tensor is checked against its CRC as it is read. A box is checked where it takes in whole
    pieces, as a rank's own box does on the mesh that wrote it; of other boxes, the parts of pieces
    are not checked.
    """

    def __init__(self, path: Place, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._opened: PieceFiles | None = None
        self._config: ModelConfig | None = None

    @classmethod
    def open(cls, path: str | Place) -> Checkpoint:
        """The checkpoint in a folder, or at a URL, or the newest valid one of a run's folder.

        Raises CheckpointError, saying what is there instead, or what of the checkpoint is missing,
        damaged, unknown or unsafe. Sizes and coverage are checked; tensors are as they are read.
        """
        folder = place(path)
        if folder.is_dir() and unfinished(folder) is not None:
            raise CheckpointError(f"{folder}: {describe(folder)[0]}", describe(folder)[1])
        if (folder / MANIFEST).is_file():
            return cls(folder, load_manifest(folder))
        if folder.is_dir() and list_checkpoints(folder) and (found := newest(folder)) is not None:
            return cls(found, load_manifest(found))
        cause, remedy = describe(folder)
        raise CheckpointError(f"{folder}: {cause}", remedy)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        if self._opened is not None:
            self._opened.close()

    @property
    def _files(self) -> PieceFiles:
        if self._opened is None:
            from neoxkit.checkpoint.pieces import PieceFiles

            self._opened = PieceFiles(self.path, self.manifest)
        return self._opened

    @property
    def config(self) -> ModelConfig:
        """What the network computes. Raises CheckpointError when config.json is damaged or unknown."""
        if self._config is None:
            from pydantic import ValidationError

            from neoxkit.config.model import ModelConfig

            try:
                self._config = ModelConfig.model_validate_json(self._small(CONFIG))
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                key = ".".join(str(each) for each in first["loc"]) or "the whole"
                raise CheckpointError(f"{self.path / CONFIG}: {key}: {first['msg']}", "upgrade neoxkit") from error
        return self._config

    @property
    def tokenizer(self) -> Place | None:
        """The folder of the tokenizer's files; None when the checkpoint has none."""
        has = any(file.path.startswith(f"{TOKENIZER}/") for file in self.manifest.files)
        return self.path / TOKENIZER if has else None

    @property
    def run_yaml(self) -> str | None:
        """The run that wrote the checkpoint; None when it was not a run."""
        if not self._has(RUN_YAML):
            return None
        try:
            return self._small(RUN_YAML).decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path / RUN_YAML}: not UTF-8 ({error.reason})", _REMEDY) from error

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that say which weights these are, however they are cut."""
        return self.manifest.fingerprint()

    def names(self) -> Sequence[str]:
        """The logical tensors, with their component, in the order that they were written."""
        return list(self.manifest.tensors)

    def spec(self, name: str) -> TensorSpec:
        """Whole shape, splits and role."""
        return self._tensor(name).spec

    def dtype(self, name: str) -> str:
        """The dtype as safetensors spells it."""
        return self._tensor(name).dtype

    def trainer_state(self) -> dict[str, Any] | None:
        """What trainer/state.json holds; None when the checkpoint is weights only."""
        if not self._has(STATE):
            return None
        return parse_object(self._small(STATE), str(self.path / STATE), _REMEDY)

    def rng(self, rank: int = 0) -> dict[str, bytes]:
        """The random-number states of a rank, by name; empty when there are none."""
        path = RNG.format(rank=rank)
        if not self._has(path):
            return {}
        data = self._small(path)
        return {key: data[each.first : each.last] for key, each in read_header(self.path / path).entries.items()}

    def read(self, name: str, want: Box | None = None) -> Tensor:
        """A box of a tensor (all of it, when None), of the box's shape, contiguous, on the CPU.

        Raises CheckpointError, naming the file and the tensor, when it is damaged.
        """
        from neoxkit.checkpoint.dtypes import empty

        entry = self._tensor(name)
        box = whole(entry.spec.shape) if want is None else want
        value, data = empty(tuple(stop - start for start, stop in box), entry.dtype)
        complete = box == whole(entry.spec.shape)
        checks: Checks | None = None if complete else {}
        crc = self._files.fill(name, entry, box, data, checks)
        if complete:
            self._check_whole(name, entry, crc64nvme(data) if crc is None else crc)
        elif checks is not None:
            self._check_pieces(name, entry, checks)
        return value

    def stream(self, name: str, want: Box | None = None, most_bytes: int = BLOCK_BYTES) -> Iterator[tuple[Box, Tensor]]:
        """The blocks of a box (of a whole tensor, when None) in order: rows of it, at most `most_bytes` or one row.

        Checked as `read` is, once all blocks are taken: CheckpointError then comes in place of the
        end, so nothing made of the blocks may be committed before that.
        """
        from neoxkit.checkpoint.dtypes import empty

        entry = self._tensor(name)
        box = whole(entry.spec.shape) if want is None else want
        complete = box == whole(entry.spec.shape)
        checks: Checks | None = None if complete else {}
        total = 0
        for block in rows(box, max(1, most_bytes // ITEM_BYTES[entry.dtype])):
            value, data = empty(tuple(stop - start for start, stop in block), entry.dtype)
            crc = self._files.fill(name, entry, block, data, checks)
            if complete:
                total = combine(total, crc64nvme(data) if crc is None else crc, data.size)
            yield block, value
        if complete:
            self._check_whole(name, entry, total)
        elif checks is not None:
            self._check_pieces(name, entry, checks)

    def _check_whole(self, name: str, entry: TensorEntry, crc: int) -> None:
        if crc != entry.crc:
            where = self._files.blame(name, entry)
            raise CheckpointError(
                f"{where}: {name} is damaged: its checksum is {crc:016x}, not {entry.crc:016x}", _REMEDY
            )

    def _check_pieces(self, name: str, entry: TensorEntry, checks: Checks) -> None:
        for piece in entry.pieces:
            check = checks.get((piece.file, piece.key))
            if check is None or check.left or piece.crc is None:
                continue
            if closed(check.crc, tensor_bytes(entry.dtype, piece.shape)) != piece.crc:
                where = f"{self._files.path(piece)}: {name}{spelled(piece.box, piece.run)}"
                raise CheckpointError(f"{where} is damaged: its checksum is not {piece.crc:016x}", _REMEDY)

    def _tensor(self, name: str) -> TensorEntry:
        if name not in self.manifest.tensors:
            raise CheckpointError(f"{self.path}: it has no tensor {name}", "look with: neoxkit inspect")
        return self.manifest.tensors[name]

    def _has(self, path: str) -> bool:
        return any(file.path == path for file in self.manifest.files)

    def _small(self, path: str) -> bytes:
        """The bytes of a small file, checked against its CRC."""
        for file in self.manifest.files:
            if file.path == path:
                data = (self.path / path).read_bytes()
                if crc64nvme(data) != file.crc:
                    raise CheckpointError(f"{self.path / path}: damaged: its checksum is not {file.crc:016x}", _REMEDY)
                return data
        raise CheckpointError(f"{self.path}: it has no {path}", _REMEDY)
