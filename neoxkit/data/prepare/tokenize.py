"""Text into token files: inputs -> blocks -> tokens -> PREFIX.bin, PREFIX.idx, PREFIX.json.

This process reads and writes, in order; workers parse and encode. What is written depends on neither the
number of workers nor the blocks, nor on interruptions.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from neoxkit import log
from neoxkit.data.prepare.encode import Encoded, Recipe
from neoxkit.data.prepare.journal import TRAINED, Journal, refuse_present
from neoxkit.data.prepare.request import Part, Request
from neoxkit.data.prepare.results import Results, behind
from neoxkit.data.prepare.workers import Workers, number_of, ordered, started
from neoxkit.data.text.documents import Document, Parser, Reject, held_out, thinned
from neoxkit.data.text.pieces import Block, Position
from neoxkit.data.text.reading import Reader
from neoxkit.data.text.sources import Source, find
from neoxkit.data.tokenizer import FILE, Tokenizer
from neoxkit.data.tokenizer.kinds import open_tokenizer
from neoxkit.data.tokenizer.train import train_bpe
from neoxkit.data.tokens.stage import named, remove
from neoxkit.errors import DataError, NeoxkitError


@dataclass(frozen=True)
class Report:
    """What was written. `tokenizer` is the folder, or file, that was used.

    `seconds` is the encoding alone, `encoded` and `made` the bytes and the tokens of that time: fewer
    than those of the parts where this went on with what an interrupted command had begun.
    """

    parts: tuple[Part, ...]
    tokenizer: Path
    vocab: int
    skipped: dict[str, int]
    training_seconds: float
    seconds: float
    encoded: int
    made: int


def _known(tokenizer: Tokenizer) -> str:
    """What work that goes on must find again of a tokenizer."""
    return tokenizer.fingerprint + (" literal" if tokenizer.literal else "")


def tokenize(request: Request) -> Report:
    """Write the token files of a request, all or none, and return what was written.

    Without a holdout: PREFIX.{bin,idx,json,files.txt}. With one: PREFIX-train.* and PREFIX-heldout.*. Of
    several keys, each has its own: PREFIX-KEY.*. When a tokenizer is trained: PREFIX-tokenizer/ too, made
    from the training side alone. Interrupted or killed, the same request goes on where it was.

    Raises DataError when the inputs hold no text or are damaged, a destination exists and `force` is not
    given, the tokenizer is wrong, or one side of the split gets nothing; WorkerLostError and CheckpointError
    for a lost process and a store that fails, after which the same request goes on.
    """
    request.validate()
    _load_libraries(request)
    sources = find(request.inputs, request.selection, request.datasets)
    # Workers first: while they start, the tokenizer is looked at.
    with started(number_of(request.workers, sources)) as workers, named(request.prefix):
        given = None if request.tokenizer is None else open_tokenizer(request.tokenizer)
        if given is not None:
            _ends(given, request)
        identity = request.identity(sources, _known(given) if given else None)
        journal = Journal(
            request.prefix, identity, request.force, lambda state: behind(sources, Position(**state["at"]))
        )
        try:
            return _Work(request, sources, journal, given, workers).run()
        except KeyboardInterrupt:
            became = "give the same command again to go on" if journal.keeps else "nothing was written"
            raise KeyboardInterrupt(became) from None
        finally:
            journal.close()


def _load_libraries(request: Request) -> None:
    """Import what workers will: that it is missing is told before anything is done."""
    if request.ftfy:
        import ftfy  # noqa: F401
    if request.datasets:
        import datasets  # noqa: F401


def _ends(tokenizer: Tokenizer, request: Request) -> tuple[int | None, int | None, int]:
    """The ids before and after each document, None where there is none, and that which the sidecar names."""
    eod = tokenizer.eod(request.eod) if request.append_eod else None
    if request.prepend_bos and tokenizer.bos is None:
        raise DataError(f"{tokenizer.path}: no token that begins a document", "leave --prepend-bos out")
    named_eod = eod if eod is not None else tokenizer.eos
    return tokenizer.bos if request.prepend_bos else None, eod, -1 if named_eod is None else named_eod


class UnreadableError(DataError):
    """An input that cannot be read to its end, when there is work before it that is worth to be kept."""


class _Work:
    """One request at work, from where a journal says."""

    def __init__(
        self,
        request: Request,
        sources: Sequence[Source],
        journal: Journal,
        tokenizer: Tokenizer | None,
        workers: Workers,
    ) -> None:
        self._request, self._sources, self._journal, self._given = request, sources, journal, tokenizer
        self._workers = workers
        self._parser = Parser(request.selection.keys, request.max_document, request.ftfy)
        self._reader = Reader(sources, request.selection.keys, request.max_document)
        self._results = Results(request, journal, sources)

    def run(self) -> Report:
        """Do all that is left to do."""
        request, journal, results = self._request, self._journal, self._results
        if journal.moving:
            journal.move()
            tokenizer = self._given or Tokenizer(request.trained)
            return self._report(tokenizer, (0.0, 0.0), self._made())
        refuse_present(results.moves().values(), request.force)
        before = self._made()
        times = [time.monotonic()]
        try:
            tokenizer = self._given or self._trained()
            ends = _ends(tokenizer, request)
            times.append(time.monotonic())
            self._encode(tokenizer, ends)
            times.append(time.monotonic())
            results.write(tokenizer, ends[2])
        except UnreadableError:
            raise
        except DataError:
            if request.rejects:
                results.leave_rejects(request.rejects)
            journal.remove()
            raise
        except OSError:  # a full disk, say, which is not filled further by what nobody would miss
            if not results.rows:
                journal.remove()
            raise
        journal.finish(results.moves(), request.force, results.state(), results.empty())
        return self._report(tokenizer, (times[1] - times[0], times[2] - times[1]), before)

    def _made(self) -> tuple[int, int]:
        """Bytes of text and tokens so far."""
        parts = self._results.parts
        return sum(part.bytes for part in parts), sum(part.tokens for part in parts)

    def _report(self, tokenizer: Tokenizer, seconds: tuple[float, float], before: tuple[int, int]) -> Report:
        self._results.tell()
        size, tokens = self._made()
        where = self._request.tokenizer or self._request.trained
        return Report(
            parts=tuple(self._results.parts),
            tokenizer=where,
            vocab=tokenizer.vocab,
            skipped=self._results.skipped,
            training_seconds=seconds[0],
            seconds=seconds[1],
            encoded=size - before[0],
            made=tokens - before[1],
        )

    def _trained(self) -> Tokenizer:
        """The tokenizer that this command, or the interrupted one before it, trained."""
        assert self._request.vocab is not None
        folder = self._journal.path(TRAINED)
        if not folder.exists():
            aside = self._journal.path(TRAINED + ".new")
            remove(aside)
            self._train(aside)
            os.rename(aside, folder)
        found = Tokenizer(folder)
        if found.vocab < self._request.vocab:
            log.warn(f"the text has pairs for a vocabulary of {found.vocab} entries only, not {self._request.vocab}")
        return found

    def _train(self, folder: Path) -> None:
        """Train on the training side, or on evenly spread documents of it if that is more than train_bytes."""
        assert self._request.vocab is not None
        total = sum(source.bytes or 0 for source in self._sources)
        share = min(1.0, self._request.train_bytes / max(total, 1))
        heard = 0
        with log.progress("train tokenizer", total) as progress:

            def texts() -> Iterator[str]:
                nonlocal heard
                for document in thinned(self._training(progress.advance), share):
                    heard += document.bytes
                    yield from document.texts

            train_bpe(texts(), self._request.vocab, folder)
        if not heard:
            raise DataError(
                f"no text to train a tokenizer on in {log.counted(len(self._sources), 'file')}",
                "give text, or a smaller --holdout",
            )

    def _training(self, advance: Callable[[int], None]) -> Iterator[Document]:
        """The documents of the training side."""
        rows = 0
        for block in self._reader.blocks():
            advance(block.read)
            for item in self._parser.documents(block.pieces):
                if isinstance(item, Reject):
                    continue
                if rows == self._request.max_documents:
                    return
                rows += 1
                if not held_out(item.identity, self._request.holdout):
                    yield item

    def _encode(self, tokenizer: Tokenizer, ends: tuple[int | None, int | None, int]) -> None:
        """Turn what is left of the sources into tokens."""
        request, results = self._request, self._results
        results.open(tokenizer.vocab)
        recipe = Recipe(
            tokenizer=tokenizer.contents()[FILE],
            literal=tokenizer.literal,
            parser=self._parser,
            eod=ends[1],
            bos=ends[0],
            dtype=results.dtype.str,
            holdout=request.holdout,
        )
        total = sum(source.bytes or 0 for source in self._sources)
        self._workers.tell(recipe)
        with log.progress("tokenize", total) as progress:
            progress.advance(results.read)
            try:
                for block, done in self._encoded():
                    results.append(block, done)
                    progress.advance(block.read)
                    progress.describe(f"{results.rows:,} documents, {self._made()[1]:,} tokens")
                    if self._journal.due():
                        results.save()
            except DataError as error:
                if self._journal.saved and not request.strict:
                    raise UnreadableError(error.cause, f"{error.remedy}; the same command then goes on") from error
                raise
            except (KeyboardInterrupt, NeoxkitError):
                results.save()
                raise

    def _encoded(self) -> Iterator[tuple[Block, Encoded]]:
        """What is left of the sources, and what it gave, up to the last row that is wanted."""
        ask = self._workers.ask
        found = ordered(
            self._workers, self._reader.blocks(self._results.at), lambda block: ask(block.pieces, self._wanted())
        )
        while (most := self._wanted()) != 0 and (each := next(found, None)):
            block, done = each
            if most is not None and done.rows > most:  # it was begun when it was not known how many those before have
                done = ask(block.pieces, most).result()
            yield block, done

    def _wanted(self) -> int | None:
        """How many more rows are wanted; None for all."""
        most = self._request.max_documents
        return None if most is None else most - self._results.rows
