"""Rows into token files with labels: rows -> examples, by one process or more -> files, in the order of the rows."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neoxkit import log
from neoxkit.data.prepare.columns import Output
from neoxkit.data.prepare.examples import Made, Maker, Recipe
from neoxkit.data.prepare.request import LONGEST
from neoxkit.data.prepare.skipped import Skipped
from neoxkit.data.prepare.workers import number_of, ordered, started
from neoxkit.data.text.documents import NOTHING_LEARNED, TOO_LONG, Reject
from neoxkit.data.text.pieces import Piece
from neoxkit.data.text.reading import Reader
from neoxkit.data.text.rows import Row, rows
from neoxkit.data.text.sources import Dataset, Selection, Source, find
from neoxkit.data.tokens.stage import Stage, named
from neoxkit.errors import DataError

SELECTION = Selection(include=("*.jsonl", "*.ndjson", "*.json", "*.parquet"), option=None)
"""The files of a folder that are read."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to read, and where to write it."""

    inputs: tuple[str | Path, ...]
    prefix: Path
    strict: bool = False
    force: bool = False
    rejects: Path | None = None
    workers: int | None = None
    datasets: tuple[Dataset, ...] = ()


@dataclass(frozen=True)
class Report:
    """What was written, how many rows were skipped by kind of fault, and how long it took."""

    outputs: Sequence[Output]
    skipped: dict[str, int]
    seconds: float


def sources(request: Request) -> list[Source]:
    """The files to read. Raises DataError when there are none, or the prefix is none."""
    if request.prefix.name in ("", "..") or request.prefix.suffix in (".bin", ".idx") or request.prefix.is_dir():
        raise DataError(f'"{request.prefix}" is no prefix of file names', "give one such as data/chats")
    if not request.inputs and not request.datasets:
        raise DataError("nothing to read", "name files, folders or URLs, or a --dataset")
    return find(request.inputs, SELECTION, request.datasets)


def write(request: Request, files: Sequence[Source], recipe: Recipe, outputs: Sequence[Output]) -> Report:
    """Write the outputs, all or none.

    Raises DataError when a destination exists without `force`, no row can be used, or one cannot and `strict` is set;
    WorkerLostError for a lost process.
    """
    listing = [request.rejects] if request.rejects else []
    with ExitStack() as stack:
        workers = stack.enter_context(started(number_of(request.workers, files)))
        maker = Maker(recipe)
        workers.tell(_Job(recipe, maker))
        stack.enter_context(named(request.prefix))
        targets = [target for output in outputs for target in output.targets()]
        stage = stack.enter_context(Stage([*listing, *targets], request.force))
        begun = time.monotonic()
        skipped = Skipped(request.strict, stage.path(request.rejects) if request.rejects else None)
        stack.callback(skipped.close)
        for output in outputs:
            output.open(stage, stack, maker.tokenizer.vocab)
        with log.progress("tokenize", sum(file.bytes or 0 for file in files)) as progress:
            blocks = Reader(files, None, LONGEST).blocks()
            for block, made in ordered(workers, blocks, lambda block: workers.ask(block.pieces)):
                for each in made:
                    _add(each, outputs, skipped)
                progress.advance(block.read)
        skipped.close()
        if not outputs[0].documents:
            first = "".join(f", the first: {reject}" for reject in itertools.islice(skipped.first.values(), 1))
            raise DataError(
                f"{request.prefix}: no row can be used (skipped: {sum(skipped.counts.values())}{first})",
                _remedy(skipped.counts),
            )
        for output in outputs:
            output.close(maker, skipped.counts)
        stage.commit()
    skipped.report()
    return Report(outputs, skipped.counts, time.monotonic() - begun)


def _remedy(counts: Mapping[str, int]) -> str:
    """What to do about the commonest fault, where no row can be used."""
    kind = max(counts, key=counts.__getitem__, default="")
    if kind == NOTHING_LEARNED:
        return "raise --max-tokens if it is low, or let other messages be learned"
    if kind == TOO_LONG:
        return "raise --max-tokens, or give --overlong cut"
    return "give rows of one of the shapes in docs/chat-data.md"


def _add(made: Made | Reject, outputs: Sequence[Output], skipped: Skipped) -> None:
    if isinstance(made, Reject):
        skipped.add(made)
        return
    scores = made.scores or itertools.repeat(None, len(outputs))
    for output, example, score in zip(outputs, made.examples, scores, strict=True):
        output.add(example, score)


def all_rows(files: Sequence[Source]) -> Iterator[Row | Reject]:
    """The rows of all files in order. Raises as Reader does."""
    return (row for block in Reader(files, None, LONGEST).blocks() for row in rows(block.pieces, LONGEST))


class _Job:
    """How blocks become examples. Of the maker that is here, a copy in another process makes its own."""

    def __init__(self, recipe: Recipe, maker: Maker | None = None) -> None:
        self._recipe, self._maker = recipe, maker

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._recipe,)

    def begin(self) -> Callable[[Sequence[Piece]], list[Made | Reject]]:
        """What makes examples of a block's pieces, in order; rows that could not be read stay where they were."""
        maker = self._maker or Maker(self._recipe)

        def make(pieces: Sequence[Piece]) -> list[Made | Reject]:
            batch = list(rows(pieces, LONGEST))
            made = iter(maker.make([each for each in batch if isinstance(each, Row)]))
            return [each if isinstance(each, Reject) else next(made) for each in batch]

        return make
