"""Writer: a Sink that writes a checkpoint aside, and names it once it is whole and on stable storage."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timezone
from types import TracebackType
from typing import TYPE_CHECKING, Any

from neoxkit import __version__
from neoxkit.checkpoint import dtypes
from neoxkit.checkpoint.attempt import Attempt
from neoxkit.checkpoint.checksum import closed, contribution, crc64nvme, linear, row_dim, run_contribution
from neoxkit.checkpoint.folder import not_a_checkpoint
from neoxkit.checkpoint.format import (
    CONFIG,
    ITEM_BYTES,
    MANIFEST,
    NAME,
    RNG,
    RUN_YAML,
    STATE,
    TOKENIZER,
    VERSION,
    FileEntry,
    Manifest,
    PieceEntry,
    TensorEntry,
    dump,
    entry_key,
    parse,
    piece_json,
    spec_json,
)
from neoxkit.checkpoint.output import OutputFile
from neoxkit.checkpoint.plan import Part, cut
from neoxkit.checkpoint.safetensors_file import build_header
from neoxkit.checkpoint.store import Place, StorePath
from neoxkit.checkpoint.store_attempt import attempt_at
from neoxkit.errors import CheckpointError
from neoxkit.spec import Box, Run, extent, overlap, relative, volume, whole, within

if TYPE_CHECKING:
    import torch

    from neoxkit.checkpoint.checksum import Bytes
    from neoxkit.config.model import ModelConfig

__all__ = ["Part", "Writer", "cut"]

_THREADS = 3  # one hands bytes to the system, one flushes, one to spare


class Writer:
    """Writes one checkpoint. Every rank makes one with the same plan, writes its own pieces and commits.

    Nothing is visible at `folder` before the commit, and everything after it. Leaving a `with` block
    by an exception aborts.

    `tokenizer` are the contents of the tokenizer's files by name; `keep` is a manifest whose unknown fields are
    carried over. Raises CheckpointError when `folder` exists (with `force`: exists and is not a
    checkpoint), when the disk has not the room, and whenever the system refuses a write; the attempt
    is then removed.
    """

    def __init__(
        self,
        folder: Place,
        parts: Sequence[Part],
        *,
        config: ModelConfig,
        mesh: Mapping[str, int],
        step: int = 0,
        samples: int = 0,
        tokens: int = 0,
        lineage: Sequence[Mapping[str, Any]] = (),
        run_yaml: str | None = None,
        tokenizer: Mapping[str, bytes] | None = None,
        trainer: Mapping[str, Any] | None = None,
        rng: Mapping[str, Any] | None = None,
        rank: int = 0,
        world: int = 1,
        attempt: str | None = None,
        force: bool = False,
        keep: Manifest | None = None,
    ) -> None:
        assert attempt is not None or world == 1, "ranks must agree on the attempt's name"
        if world > 1 and isinstance(folder, StorePath):
            raise CheckpointError(f"{folder}: several processes cannot write to a store", "save to a disk, then copy")
        self._attempt = attempt_at(folder, not_a_checkpoint, force, attempt, rank)
        self.folder: Place = self._attempt.folder
        self._parts, self._rank, self._world = list(parts), rank, world
        self._about: dict[str, Any] = {"step": step, "samples": samples, "tokens": tokens}
        self._about |= {"mesh": dict(mesh), "lineage": tuple(lineage)}
        self._keep = keep
        self._keys = [entry_key(p.name, p.spec.shape, p.box, p.run) for p in self._parts]
        self._by_name: dict[str, list[int]] = {}
        self._by_file: dict[str, list[int]] = {}
        for index, part in enumerate(self._parts):
            self._by_name.setdefault(part.name, []).append(index)
            self._by_file.setdefault(part.file, []).append(index)
        self._open: dict[str, OutputFile] = {}
        self._sums: dict[str, int] = {}  # contributions to each tensor's CRC
        self._small: dict[str, tuple[int, int]] = {}  # bytes and CRC of each other file
        self._state = "open"
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="checkpoint")
        try:
            self._attempt.make(sum(part.bytes for part in self._parts))
            self._write_rng(rng)
            if rank == 0:
                self._write_small(config, run_yaml, tokenizer, trainer)
        except BaseException:
            self.abort()
            raise

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self.abort()

    def write(self, name: str, box: Box, value: torch.Tensor, run: Run | None = None) -> None:
        """Take the elements of a box, or of a run of it. See Sink.

        A box may be part of one planned piece or span several. Blocks of whole rows of the tensor
        are cheapest, whatever the cut: their checksum is taken in one go.
        """
        assert self._state == "open", f"write after {self._state}"
        indices = self._by_name.get(name, [])
        assert indices, f"{name} was not planned"
        part = self._parts[indices[0]]
        assert dtypes.name_of(value.dtype) == part.dtype, f"{name}: {value.dtype}, planned {part.dtype}"
        count = volume(box) if run is None else run[1] - run[0]
        assert value.numel() == count, f"{name}: {tuple(value.shape)} for {box} {run}"
        with self._giving_up():
            if run is not None:
                self._write_run(name, indices, box, run, dtypes.octets(value))
            else:
                self._write_box(name, indices, box, value.detach().reshape(extent(box)))

    def _write_box(self, name: str, indices: list[int], box: Box, value: torch.Tensor) -> None:
        spec, item = self._parts[indices[0]].spec, ITEM_BYTES[self._parts[indices[0]].dtype]
        data = dtypes.octets(value)
        known = linear(data) if row_dim(spec.shape, box) == 0 else None
        left = volume(box)
        empty = not left  # an empty box has no element in common with any, and yet empty pieces must be written
        for index in indices:
            part = self._parts[index]
            common = part.box if empty and not part.elements and within(part.box, box) else overlap(box, part.box)
            if common is None:
                continue
            assert part.run is None, f"{name}: planned as runs, written as a box"
            place = relative(common, part.box)
            if common == box:
                self._put(index, place, data, known)
            else:
                inside = tuple(slice(start, stop) for start, stop in relative(common, box))
                self._put(index, place, dtypes.octets(value[inside]), None)
            left -= volume(common)
        assert left == 0, f"{name}: {left} elements of {box} were not planned"
        self._sums[name] = self._sums.get(name, 0) ^ contribution(data, spec.shape, box, item, known)

    def _write_run(self, name: str, indices: list[int], box: Box, run: Run, data: Bytes) -> None:
        for index in indices:
            part = self._parts[index]
            if part.run is not None and part.box == box and part.run[0] <= run[0] <= run[1] <= part.run[1]:
                break
        else:
            raise AssertionError(f"{name}: the run {run} of {box} was not planned")
        self._put(index, ((run[0] - part.run[0], run[1] - part.run[0]),), data, None)
        gain = run_contribution(data, part.spec.shape, box, run, ITEM_BYTES[part.dtype])
        self._sums[name] = self._sums.get(name, 0) ^ gain

    def _put(self, index: int, place: Box, data: Bytes, known: int | None) -> None:
        file = self._file(self._parts[index].file)
        file.write(self._keys[index], place, data, self._threads, known)

    def _file(self, path: str) -> OutputFile:
        if path not in self._open:
            tensors, pieces = self._layout(path)
            about = json.dumps({"format": [NAME, VERSION], "attempt": self._attempt.name, "pieces": pieces})
            self._open[path] = self._attempt.output(path, tensors, ITEM_BYTES, {"neoxkit": about})
        return self._open[path]

    def _layout(self, path: str) -> tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, Any]]:
        """A file's tensors in their order, wide elements first, so that each is aligned; and what they are."""
        tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
        pieces: dict[str, Any] = {}
        for index in sorted(self._by_file[path], key=lambda i: -ITEM_BYTES[self._parts[i].dtype]):
            part, key = self._parts[index], self._keys[index]
            assert key not in tensors, f"{path}: {key} is planned twice"
            tensors[key] = part.dtype, extent(part.box) if part.run is None else (part.elements,)
            cut = piece_json(part.spec.shape, part.box, part.run)
            pieces[key] = {"tensor": part.name, **spec_json(part.spec), **cut}
        return tensors, pieces

    def commit(self, ready: Callable[[], None] = lambda: None) -> None:
        """Make the checkpoint visible, whole. On ranks other than 0: hand over what this rank wrote.

        Rank 0 waits for what the others hand over. `ready` is called on each rank once its part is on
        stable storage: ranks which can talk to each other wait there, and notice when one of them is
        gone. Raises CheckpointError, and removes the attempt, when a planned piece was not written, or
        a rank does not come; and what `ready` raises.
        """
        assert self._state == "open", f"commit after {self._state}"
        with self._giving_up():
            self._finish()
            ready()
            if self._rank == 0:
                self._publish()
        self._state = "committed"
        self._threads.shutdown()

    def abort(self, reason: str = "it was stopped") -> None:
        """Remove what was written; after a commit, nothing.

        On ranks other than 0 files are closed, and rank 0, which waits, is told the reason.
        """
        if self._state != "open":
            return
        self._state = "aborted"
        for file in self._open.values():
            file.close()
        if self._rank and isinstance(self._attempt, Attempt):
            self._attempt.give_up(self._rank, reason)
        self._attempt.abort()
        self._threads.shutdown()

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.abort(str(error) or type(error).__name__)
            raise

    def _write_small(
        self,
        config: ModelConfig,
        run_yaml: str | None,
        tokenizer: Mapping[str, bytes] | None,
        trainer: Mapping[str, Any] | None,
    ) -> None:
        self._save(CONFIG, config.model_dump_json(indent=1).encode() + b"\n")
        if run_yaml is not None:
            self._save(RUN_YAML, run_yaml.encode())
        if trainer is not None:
            self._save(STATE, json.dumps(trainer, indent=1).encode() + b"\n")
        for name, data in (tokenizer or {}).items():
            self._save(f"{TOKENIZER}/{name}", data)

    def _write_rng(self, rng: Mapping[str, Any] | None) -> None:
        if not rng:
            return
        states = {key: bytes(value) for key, value in rng.items()}
        head, _ = build_header({key: ("U8", (len(state),)) for key, state in states.items()})
        self._save(RNG.format(rank=self._rank), head + b"".join(states.values()))

    def _save(self, path: str, data: bytes) -> None:
        self._attempt.save(path, data)
        self._small[path] = len(data), crc64nvme(data)

    def _finish(self) -> None:
        """Make this rank's files durable, and say what they are."""
        files = dict(self._small)
        pieces: dict[int, int] = {}
        for path, file in self._open.items():
            if missing := file.incomplete():
                raise CheckpointError(f"{self.folder}: {missing[0]} of {path} was not written whole, once", _REPORT)
            file.finish(self._threads)
            crc, each = file.crcs()
            files[path] = file.size, crc
            pieces |= {index: each[self._keys[index]] for index in self._by_file[path]}
        self._attempt.share(self._rank, {"files": files, "pieces": pieces, "sums": self._sums})

    def _publish(self) -> None:
        """Join what the ranks say into the manifest, and name the checkpoint."""
        files: dict[str, FileEntry] = {}
        crcs: dict[int, int] = {}
        sums: dict[str, int] = {}
        for told in self._attempt.gather(self._world):
            for path, (size, crc) in told["files"].items():
                if path in files:
                    raise CheckpointError(f"{self.folder}: two ranks wrote {path}", _REPORT)
                files[path] = FileEntry(path, size, crc)
            crcs |= {int(index): crc for index, crc in told["pieces"].items()}
            for name, gain in told["sums"].items():
                sums[name] = sums.get(name, 0) ^ gain
        for index, part in enumerate(self._parts):
            if index not in crcs:
                raise CheckpointError(f"{self.folder}: {self._keys[index]} of {part.file} was not written", _REPORT)
        manifest = self._manifest([files[path] for path in sorted(files)], crcs, sums)
        text = dump(manifest)
        parse(text, f"{self.folder}: what was about to be written")
        self._attempt.commit(MANIFEST, text)

    def _manifest(self, files: list[FileEntry], crcs: Mapping[int, int], sums: Mapping[str, int]) -> Manifest:
        number = {file.path: index for index, file in enumerate(files)}
        kept = self._keep.tensors if self._keep else {}
        tensors = {}
        for name, indices in self._by_name.items():
            part = self._parts[indices[0]]
            pieces = tuple(
                PieceEntry(number[self._parts[i].file], self._keys[i], self._parts[i].box, self._parts[i].run, crcs[i])
                for i in indices
            )
            size = volume(whole(part.spec.shape)) * ITEM_BYTES[part.dtype]
            extra = kept[name].extra if name in kept else {}
            tensors[name] = TensorEntry(part.dtype, part.spec, closed(sums[name], size), pieces, extra)
        return Manifest(
            files=tuple(files),
            tensors=tensors,
            writer=f"neoxkit {__version__}",
            created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            attempt=self._attempt.name,
            extra=self._keep.extra if self._keep else {},
            format_extra=self._keep.format_extra if self._keep else {},
            **self._about,
        )


_REPORT = "nothing was saved; please report this as a bug"
