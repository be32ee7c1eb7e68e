"""The rows of one source of tokens, as a run's options say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from neoxkit.checkpoint.store import Place
from neoxkit.config.data import Source
from neoxkit.config.run import RunConfig
from neoxkit.data.rows.arrange import Arrangement
from neoxkit.data.rows.blend import apportion
from neoxkit.data.rows.cache import LARGE, Cache
from neoxkit.data.rows.fill_in_middle import FillInMiddle
from neoxkit.data.rows.row import Row
from neoxkit.data.rows.rows import Reading, Rows
from neoxkit.data.tokenizer.kinds import open_tokenizer
from neoxkit.data.tokens.columns import find_labels, open_labels
from neoxkit.data.tokens.indexed import IndexedFile
from neoxkit.data.tokens.sidecar import Sidecar, sidecar_of
from neoxkit.errors import ConfigError


def open_rows(
    config: RunConfig,
    source: Source,
    file: IndexedFile,
    stretch: tuple[int, int],
    epochs: int,
    turn: FillInMiddle | None,
) -> Rows:
    """The rows of a stretch of a source's documents, a pass of so many epochs; `turn` from `fill_in_middle`."""
    data, known = config.data, sidecar_of(file)
    arranged = Arrangement(
        kind=data.packing,
        context=config.sequence,
        seed=config.seed,
        first=stretch[0],
        last=stretch[1],
        epochs=epochs,
        within_documents=data.isolated,
        turned=data.fill_in_middle is not None,
    )
    folder = data.cache or (f"{source.tokens}.index" if stretch[1] - stretch[0] >= LARGE else None)
    reading = Reading(
        context=config.sequence,
        vocab=config.model.vocab,
        within_documents=data.isolated,
        end=_end(config, source.tokens, known) if data.mask_after_end or data.fill_in_middle else None,
        mask_after_end=data.mask_after_end,
        fill_in_middle=turn,
        seed=config.seed,
    )
    return Rows(file, arranged.order(file, Cache(Path(folder) if folder else None)), reading, labels_of(source, file))


def labels_of(source: Source, file: IndexedFile) -> IndexedFile | None:
    """The labels of a source: those that it names, or those beside its tokens, if there are some."""
    return open_labels(source.labels, file) if source.labels else find_labels(source.tokens, file)


class HeldOut:
    """The samples of an evaluation: every row of each source, or `limit` of them by weight, none twice.

    A source that has fewer than its weight asks for gives all it has.
    """

    def __init__(self, rows: Sequence[Rows], weights: Sequence[float], limit: int | None) -> None:
        self._rows = rows
        counts = [each.count for each in rows]
        if limit is not None and limit < sum(counts):
            wanted = apportion(np.asarray(weights, np.float64), limit)
            counts = [min(count, int(most)) for count, most in zip(counts, wanted, strict=True)]
        self._ends = np.cumsum(counts).tolist()
        self.count: int = self._ends[-1]

    @property
    def labelled(self) -> bool:
        """Whether labels say what is judged of a source."""
        return any(each.labels for each in self._rows)

    def row(self, number: int) -> Row:
        """Sample `number`, below `count`."""
        source = int(np.searchsorted(self._ends, number, side="right"))
        return self._rows[source].row(number - (self._ends[source - 1] if source else 0))


def _end(config: RunConfig, prefix: str, known: Sidecar | None) -> int | None:
    """The token that ends documents. Raises ConfigError where it is needed and nobody says."""
    eos = config.model.tokens.eos
    end = known.eod if known else eos[0] if eos else None
    if end is None and config.data.mask_after_end:
        raise ConfigError(
            f"data.mask_after_end: which token ends a document of {prefix} is not known",
            "set model.tokens.eos to its id",
        )
    return end


def fill_in_middle(config: RunConfig, tokenizer: Place | None) -> FillInMiddle | None:
    """The transformation with the ids of its tokens."""
    given = config.data.fill_in_middle
    if given is None:
        return None
    if tokenizer is None:
        raise ConfigError("data.fill_in_middle names tokens, and no tokenizer is known", "give data.tokenizer")
    known = open_tokenizer(tokenizer)
    ids = (known.id(token) for token in (given.prefix, given.middle, given.suffix))
    return FillInMiddle(given.rate, given.spm_rate, *ids)
