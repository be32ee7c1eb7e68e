"""Rows into token files with labels: rows -> examples, by one process or more -> files, in the order of the rows."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from neoxkit import log
from neoxkit.data.prepare.columns import Output
from neoxkit.data.prepare.examples import Made, Maker, Recipe
from neoxkit.data.prepare.skipped import Skipped
from neoxkit.data.text.documents import Reject
from neoxkit.data.text.pieces import Block
from neoxkit.data.text.reading import Reader
from neoxkit.data.text.rows import Row, rows
from neoxkit.data.text.sources import Dataset, Selection, Source, find
from neoxkit.data.tokens.stage import Stage, named
from neoxkit.errors import DataError

LONGEST = 1 << 30
"""Bytes that a row, or a file that is one array, may have."""

SELECTION = Selection(include=("*.jsonl", "*.ndjson", "*.json", "*.parquet"))
"""The files of a folder that are read."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to read, and where to write it."""

    inputs: tuple[str | Path, ...]
    prefix: Path
    strict: bool = False
    force: bool = False
    rejects: Path | None = None
    workers: int = 1
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

    Raises DataError when a destination exists without `force`, no row can be used, or one cannot and `strict` is set.
    """
    maker = Maker(recipe)
    listing = [request.rejects] if request.rejects else []
    with ExitStack() as stack:
        stack.enter_context(named(request.prefix))
        targets = [target for output in outputs for target in output.targets()]
        stage = stack.enter_context(Stage([*listing, *targets], request.force))
        started = time.monotonic()
        skipped = Skipped(request.strict, stage.path(request.rejects) if request.rejects else None)
        stack.callback(skipped.close)
        for output in outputs:
            output.open(stage, stack, maker.tokenizer.vocab)
        with log.progress("tokenize", sum(file.bytes or 0 for file in files)) as progress:
            for each in _made(request, files, recipe, maker, progress.advance):
                if isinstance(each, Reject):
                    skipped.add(each)
                    continue
                scores = each.scores or itertools.repeat(None, len(outputs))
                for output, example, score in zip(outputs, each.examples, scores, strict=True):
                    output.add(example, score)
        skipped.close()
        if not outputs[0].documents:
            first = "".join(f", the first: {reject}" for reject in itertools.islice(skipped.first.values(), 1))
            raise DataError(
                f"{request.prefix}: no row can be used (skipped: {sum(skipped.counts.values())}{first})",
                "give rows of one of the shapes in docs/chat-data.md",
            )
        for output in outputs:
            output.close(maker, skipped.counts)
        stage.commit()
    skipped.report()
    return Report(outputs, skipped.counts, time.monotonic() - started)


def all_rows(files: Sequence[Source]) -> Iterator[Row | Reject]:
    """The rows of all files in order. Raises as Reader does."""
    return (row for block in Reader(files, None, LONGEST).blocks() for row in rows(block, LONGEST))


def _made(
    request: Request, files: Sequence[Source], recipe: Recipe, maker: Maker, advance: Callable[[int], None]
) -> Iterator[Made | Reject]:
    """What the rows become, in order, whatever the number of processes."""
    blocks = Reader(files, None, LONGEST).blocks()
    if request.workers == 1:
        for block in blocks:
            batch = list(rows(block, LONGEST))
            yield from _interleaved(batch, maker.make([each for each in batch if isinstance(each, Row)]))
            advance(block.read)
        return
    context = multiprocessing.get_context("spawn")  # threads of the tokenizers library do not survive a fork
    with ProcessPoolExecutor(request.workers, context, _begin, (recipe,)) as pool:
        coming: deque[tuple[Block, Future[list[Made | Reject]]]] = deque()
        try:
            for block in blocks:
                coming.append((block, pool.submit(_make, block)))
                if len(coming) > 2 * request.workers:
                    done, future = coming.popleft()
                    yield from future.result()
                    advance(done.read)
            for done, future in coming:
                yield from future.result()
                advance(done.read)
        except BrokenProcessPool as error:
            raise DataError(
                "a worker ended before its work was done, for want of memory perhaps", "give fewer --workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _interleaved(batch: Sequence[Row | Reject], made: Sequence[Made | Reject]) -> Iterator[Made | Reject]:
    """What a batch became: rows that could not be read stay where they were."""
    rest = iter(made)
    for each in batch:
        yield each if isinstance(each, Reject) else next(rest)


_maker: Maker | None = None
"""Of a worker: made when it begins, and used for all that it is given."""


def _begin(recipe: Recipe) -> None:
    global _maker
    _maker = Maker(recipe)


def _make(block: Block) -> list[Made | Reject]:
    assert _maker is not None
    batch = list(rows(block, LONGEST))
    return list(_interleaved(batch, _maker.make([each for each in batch if isinstance(each, Row)])))
