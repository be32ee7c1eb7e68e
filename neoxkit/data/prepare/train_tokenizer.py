"""A tokenizer made for some text: inputs -> documents -> a folder with tokenizer.json."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from neoxkit import log
from neoxkit.data.prepare.request import LONGEST
from neoxkit.data.prepare.skipped import Skipped, remedy
from neoxkit.data.text.documents import Document, Parser, held_out, thinned
from neoxkit.data.text.reading import Reader
from neoxkit.data.text.sources import Selection, Source, find
from neoxkit.data.tokenizer import Tokenizer
from neoxkit.data.tokenizer.train import Recipe, train
from neoxkit.data.tokens.stage import Stage, named
from neoxkit.errors import DataError

HELD_OUT = 0.02
"""The share of the documents that the tokenizer is measured on, and not trained."""

MEASURED = 4 << 20
"""Bytes of text that are enough to measure it."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to train on about `train_bytes` of the inputs' text, in documents spread evenly, and where to put it."""

    inputs: tuple[str | Path, ...]
    folder: Path
    recipe: Recipe
    selection: Selection
    train_bytes: int
    force: bool = False


@dataclass(frozen=True)
class Report:
    """What was made. `bytes_per_token` is of `measured_bytes` of text that was held out, or, where there was too
    little to hold any out (`held_out` is False), of what it was trained on."""

    folder: str
    entries: int
    documents: int
    bytes: int
    bytes_per_token: float
    measured_bytes: int
    held_out: bool
    seconds: float
    fingerprint: str


def train_tokenizer(request: Request) -> Report:
    """Train a tokenizer and write it, whole or not at all.

    Raises DataError when the inputs hold no text, the recipe is wrong, or the folder exists and `force` is not given.
    """
    request.recipe.check()
    if request.train_bytes < 1:
        raise DataError(f"train-bytes is {request.train_bytes}", "give at least 1")
    sources = find(request.inputs, request.selection)
    started = time.monotonic()
    heard = _Heard()
    with named(request.folder), Stage([request.folder], request.force) as stage:
        aside = stage.path(request.folder)
        total = sum(source.bytes or 0 for source in sources)
        with log.progress("train tokenizer", total) as progress:
            whole = _documents(request, sources, heard, progress)
            train(_texts(whole, min(1.0, request.train_bytes / max(total, 1)), heard), request.recipe, aside)
        if not heard.bytes:
            raise DataError(
                f"no text to train a tokenizer on in {log.counted(len(sources), 'file')}"
                + "".join(f"; {reject}" for reject in list(heard.skipped.first.values())[:3]),
                remedy(heard.skipped.counts),
            )
        made = Tokenizer(aside)
        stage.commit()
    if made.vocab < request.recipe.vocab:
        log.warn(f"the text has enough for a vocabulary of {made.vocab} entries only, not {request.recipe.vocab}")
    texts = heard.aside or heard.first
    size, tokens = sum(len(text.encode()) for text in texts), sum(map(len, made.encode_batch(texts)))
    return Report(
        folder=str(request.folder),
        entries=made.vocab,
        documents=heard.documents,
        bytes=heard.bytes,
        bytes_per_token=size / max(tokens, 1),
        measured_bytes=size,
        held_out=bool(heard.aside),
        seconds=time.monotonic() - started,
        fingerprint=made.fingerprint,
    )


class _Heard:
    """What was read: counts of what is trained on, some of it, and what is kept aside."""

    def __init__(self) -> None:
        self.documents = self.bytes = self._aside = 0
        self.skipped = Skipped()
        self.first: list[str] = []
        self.aside: list[str] = []

    def keep_aside(self, document: Document) -> bool:
        """Keep a text to measure with, unless there is enough."""
        if self._aside >= MEASURED:
            return False
        self._aside += document.bytes
        self.aside.extend(document.texts)
        return True

    def count(self, document: Document) -> None:
        """Count a text that is trained on, and remember the first ones."""
        if self.bytes < MEASURED:
            self.first.extend(document.texts)
        self.documents += 1
        self.bytes += document.bytes


def _documents(
    request: Request, sources: Sequence[Source], heard: _Heard, progress: log.Progress
) -> Iterator[Document]:
    """The documents to train on; what cannot be used is counted, and told."""
    parser = Parser(request.selection.keys, LONGEST)
    for block in Reader(sources, request.selection.keys, LONGEST).blocks():
        progress.advance(block.read)
        for item in parser.documents(block.pieces):
            if not isinstance(item, Document):
                heard.skipped.add(item)
            elif not (held_out(item.identity, HELD_OUT) and heard.keep_aside(item)):
                yield item
    heard.skipped.report("document")


def _texts(found: Iterator[Document], share: float, heard: _Heard) -> Iterator[str]:
    """The texts of about a share of the documents, counted."""
    for document in thinned(found, share):
        heard.count(document)
        yield from document.texts
