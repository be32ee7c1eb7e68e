"""Text into token files: inputs -> documents -> ids -> PREFIX.bin, PREFIX.idx, PREFIX.json."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from neoxkit import __version__, log
from neoxkit.data.text.sources import Document, Reject, Selection, TextFile, documents, find, held_out, thinned
from neoxkit.data.tokenizer import Tokenizer
from neoxkit.data.tokenizer.train import SMALLEST, train_bpe
from neoxkit.data.tokens.indexed import IndexedWriter, pair
from neoxkit.data.tokens.sidecar import Sidecar, path_of, write_sidecar
from neoxkit.data.tokens.stage import Stage, named
from neoxkit.errors import DataError

BATCH = 4 << 20  # bytes of text given to the tokenizer at a time: enough to keep the cores busy, some 300 MB at work


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to tokenize, and how.

    Either `tokenizer` is a tokenizer's file or folder, or `vocab` the entries of one to train, on
    about `train_bytes` of the training text. `holdout` is the share of groups to hold out. `eod`
    names the token that ends a document (None: the tokenizer's eos).
    """

    inputs: tuple[Path, ...]
    prefix: Path
    tokenizer: Path | None = None
    vocab: int | None = None
    train_bytes: int
    holdout: float = 0.0
    selection: Selection
    eod: str | None = None
    strict: bool = False
    force: bool = False
    rejects: Path | None = None


@dataclass
class Part:
    """One side of the split while it is written, and its counts."""

    name: str
    prefix: Path
    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    files: list[Path] = field(default_factory=list)
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    @property
    def list(self) -> Path:
        """The list of the files that lie wholly on this side."""
        return self.prefix.with_name(self.prefix.name + ".files.txt")

    def targets(self) -> tuple[Path, ...]:
        """What is written, the file that readers open first last."""
        return (*pair(self.prefix), self.list, path_of(self.prefix))


@dataclass(frozen=True)
class Report:
    """What was written. `seconds` is the encoding alone; `tokenizer` the folder, or file, that was used."""

    parts: tuple[Part, ...]
    tokenizer: Path
    vocab: int
    skipped: dict[str, int]
    training_seconds: float
    seconds: float


class Skipped:
    """Counts the documents that cannot be used, remembers the first of each kind, and may list them all."""

    def __init__(self, strict: bool, listing: Path | None) -> None:
        self._strict = strict
        self._file = listing.open("x", encoding="utf-8") if listing else None
        self.counts: dict[str, int] = {}
        self.first: dict[str, Reject] = {}

    def add(self, reject: Reject) -> None:
        """Count one. Raises DataError when strict."""
        if self._strict:
            raise DataError(str(reject), "mend it, or leave --strict out to skip it")
        self.counts[reject.kind] = self.counts.get(reject.kind, 0) + 1
        self.first.setdefault(reject.kind, reject)
        if self._file:
            self._file.write(f"{reject}\n")

    def close(self) -> None:
        """Finish the list."""
        if self._file:
            self._file.close()

    def report(self) -> None:
        """Warn, one line for each kind of fault."""
        for kind, reject in self.first.items():
            count = self.counts[kind]
            log.warn(f"skipped {count} document{'s' if count > 1 else ''} ({kind}), the first at {reject.where}")


def tokenize(request: Request) -> Report:
    """Write the token files of a request, all or none, and return what was written.

    Without a holdout: PREFIX.{bin,idx,json,files.txt}. With one: PREFIX-train.* and PREFIX-heldout.*.
    When a tokenizer is trained: PREFIX-tokenizer/ too, made from the training side alone.

    Raises DataError when the inputs hold no text, a destination exists and `force` is not given, the
    tokenizer is wrong, or one side of the split gets nothing.
    """
    _validate(request)
    files = find(request.inputs, request.selection)
    parts = _parts(request)
    folder = _beside(request.prefix, "-tokenizer")
    targets = [target for part in parts for target in part.targets()]
    extra = [folder] if request.vocab else []
    listing = [request.rejects] if request.rejects else []
    given = None if request.tokenizer is None else Tokenizer(request.tokenizer)
    with ExitStack() as stack:
        stack.enter_context(named(request.prefix))
        stage = stack.enter_context(Stage([*extra, *listing, *targets], request.force))
        started = time.monotonic()
        if given is None:
            assert request.vocab is not None
            aside = stage.path(folder)
            _train(request, files, aside)
            given = Tokenizer(aside)
            if given.vocab < request.vocab:
                log.warn(f"the text has pairs for a vocabulary of {given.vocab} entries only, not {request.vocab}")
        trained = time.monotonic()
        skipped = Skipped(request.strict, stage.path(request.rejects) if request.rejects else None)
        stack.callback(skipped.close)
        eod = given.eod(request.eod)
        writers = [stack.enter_context(IndexedWriter(part.prefix, given.vocab, stage=stage)) for part in parts]
        _encode(request, files, given, eod, parts, writers, skipped)
        ended = time.monotonic()
        skipped.close()
        for part, writer in zip(parts, writers, strict=True):
            _finish(part, writer, stage, request, given, eod, skipped.counts)
        stage.commit()
    skipped.report()
    where = folder if request.tokenizer is None else request.tokenizer
    return Report(tuple(parts), where, given.vocab, skipped.counts, trained - started, ended - trained)


def _validate(request: Request) -> None:
    if (request.tokenizer is None) == (request.vocab is None):
        raise DataError("one tokenizer is needed, to use or to train", "give --tokenizer or --train-tokenizer")
    if request.vocab is not None and request.vocab < SMALLEST:
        raise DataError(f"a vocabulary of {request.vocab} entries is too small", f"give at least {SMALLEST}")
    if not 0 <= request.holdout < 1:
        raise DataError(f"holdout {request.holdout} is not a share of at least 0 and below 1", "give 0.03, say")
    if request.train_bytes < 1:
        raise DataError(f"train-bytes is {request.train_bytes}", "give at least 1")
    if request.prefix.name in ("", "..") or request.prefix.suffix in (".bin", ".idx") or request.prefix.is_dir():
        raise DataError(f'"{request.prefix}" is no prefix of file names', "give one such as data/python")


def _beside(prefix: Path, ending: str) -> Path:
    return prefix.with_name(prefix.name + ending)


def _parts(request: Request) -> list[Part]:
    if not request.holdout:
        return [Part("all", request.prefix)]
    return [Part(name, _beside(request.prefix, f"-{name}")) for name in ("train", "heldout")]


def _train(request: Request, files: Sequence[TextFile], folder: Path) -> None:
    """Train a tokenizer on the training side, or evenly spread documents of it if that is more than train_bytes."""
    assert request.vocab is not None
    total = sum(file.bytes for file in files)
    share = min(1.0, request.train_bytes / max(total, 1))
    heard = 0
    with log.progress("train tokenizer", total) as progress:

        def texts() -> Iterator[str]:
            nonlocal heard
            for document in thinned(_wanted(request, files, progress.advance), share):
                heard += document.bytes
                yield document.text

        train_bpe(texts(), request.vocab, folder)
    if not heard:
        raise DataError(f"no text to train a tokenizer on in {len(files)} files", "give text, or a smaller --holdout")


def _wanted(request: Request, files: Sequence[TextFile], advance: Callable[[int], None]) -> Iterator[Document]:
    """The documents of the training side."""
    for file in files:
        for item in documents(file, request.selection.key):
            advance(item.read)
            if isinstance(item, Document) and not held_out(item.identity, request.holdout):
                yield item


def _encode(
    request: Request,
    files: Sequence[TextFile],
    tokenizer: Tokenizer,
    eod: int,
    parts: Sequence[Part],
    writers: Sequence[IndexedWriter],
    skipped: Skipped,
) -> None:
    """Read, encode and write every document. One batch is encoded while others are read and written."""
    with log.progress("tokenize", sum(file.bytes for file in files)) as progress, ThreadPoolExecutor(1) as worker:

        def usable() -> Iterator[tuple[int, Document]]:
            for file in files:
                for item in documents(file, request.selection.key):
                    if isinstance(item, Reject):
                        skipped.add(item)
                        progress.advance(item.read)
                        continue
                    side = int(held_out(item.identity, request.holdout))
                    _count(parts[side], file, item)
                    yield side, item

        def write(batch: Sequence[tuple[int, Document]], encoded: Future[list[list[int]]]) -> None:
            for (side, _), ids in zip(batch, encoded.result(), strict=True):
                ids.append(eod)
                writers[side].add(np.asarray(ids, np.int64))
            progress.advance(sum(document.read for _, document in batch))

        waiting: tuple[Sequence[tuple[int, Document]], Future[list[list[int]]]] | None = None
        for batch in _batches(usable()):
            coming = worker.submit(tokenizer.encode_batch, [document.text for _, document in batch])
            if waiting:
                write(*waiting)
            waiting = batch, coming
        if waiting:
            write(*waiting)


def _batches(found: Iterator[tuple[int, Document]]) -> Iterator[list[tuple[int, Document]]]:
    """Runs of documents of at most BATCH bytes together; a document longer than that is alone."""
    batch: list[tuple[int, Document]] = []
    weight = 0
    for side, document in found:
        if batch and weight + document.bytes > BATCH:
            yield batch
            batch, weight = [], 0
        batch.append((side, document))
        weight += document.bytes
    if batch:
        yield batch


def _count(part: Part, file: TextFile, document: Document) -> None:
    part.documents += 1
    part.bytes += document.bytes
    content = document.text.encode("utf-8")
    part.digest.update(f"{file.name}\0{len(content)}\0".encode(errors="surrogateescape") + content)
    if not file.lines:
        part.files.append(file.path)


def _finish(
    part: Part,
    writer: IndexedWriter,
    stage: Stage,
    request: Request,
    tokenizer: Tokenizer,
    eod: int,
    skipped: dict[str, int],
) -> None:
    """Write the index, the list of files and the sidecar of one side, aside."""
    if not part.documents:
        what = {"all": "no document can be used", "train": "every group is held out", "heldout": "no group is held out"}
        raise DataError(
            f"{request.prefix}: {what[part.name]} (skipped: {sum(skipped.values())})",
            "give text that is UTF-8 and not empty" if part.name == "all" else "give another --holdout, or more groups",
        )
    writer.close()
    part.tokens = writer.tokens
    names = (os.path.abspath(path) + "\n" for path in part.files)
    stage.path(part.list).write_bytes(b"".join(os.fsencode(name) for name in names))
    sidecar = Sidecar(
        tokenizer=tokenizer.fingerprint,
        vocab=tokenizer.vocab,
        eod=eod,
        documents=part.documents,
        tokens=part.tokens,
        bytes=part.bytes,
        part=part.name,
        holdout=request.holdout,
        sources=f"sha256:{part.digest.hexdigest()}",
        skipped=skipped,
        writer=f"neoxkit {__version__}",
    )
    write_sidecar(stage.path(path_of(part.prefix)), sidecar)
