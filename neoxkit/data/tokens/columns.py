"""Columns: what is known of each token or document, in a pair beside the tokens.

The column NAME of PREFIX is the pair PREFIX-NAME, and PREFIX.json lists it. `labels` has of each token the token
itself where it is learned from, and IGNORED where it is not; `scores` one number of each document.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neoxkit.data.tokens.indexed import IndexedFile, IndexedWriter, pair
from neoxkit.data.tokens.sidecar import read_sidecar
from neoxkit.data.tokens.stage import Stage
from neoxkit.errors import DataError

LABELS, SCORES = "labels", "scores"

IGNORED = -100
"""The label of a token that is not learned from, gpt-neox's and torch's number."""


@dataclass(frozen=True)
class Column:
    """What a column holds: the dtype that it is written in, and whether it has a number for each token or document."""

    dtype: str
    each: str
    kinds: str
    """The kinds of dtype that it is read in."""


COLUMNS = {
    LABELS: Column("<i4", "token", "iu"),
    SCORES: Column("<f4", "document", "fiu"),  # gpt-neox rounds rewards to integers
}


def column_path(prefix: str | Path, name: str) -> Path:
    """The prefix of a column: PREFIX-NAME, with PREFIX told as `pair` takes it."""
    path = pair(prefix)[0].with_suffix("")
    return path.with_name(f"{path.name}-{name}")


def write_column(prefix: str | Path, name: str, *, force: bool = False, stage: Stage | None = None) -> IndexedWriter:
    """A writer of the column: `add` takes the labels of a document, or [score]."""
    return IndexedWriter(column_path(prefix, name), dtype=COLUMNS[name].dtype, force=force, stage=stage)


def open_column(prefix: str | Path, name: str, tokens: IndexedFile | None = None) -> IndexedFile:
    """The column of a prefix, whose pair may be given, if it is open already.

    Raises DataError when the column is not known, missing, of another dtype, or does not lie beside the tokens.
    """
    if name not in COLUMNS:
        raise DataError(
            f'{prefix} has a column "{name}", which is not known',
            f"known are {', '.join(COLUMNS)}; or take a newer neoxkit",
        )
    return _beside(IndexedFile(column_path(prefix, name)), IndexedFile(prefix) if tokens is None else tokens, name)


def _beside(column: IndexedFile, tokens: IndexedFile, name: str) -> IndexedFile:
    """A column that has a number for each token, or document, of `tokens`."""
    about = COLUMNS[name]
    if column.dtype.kind not in about.kinds:
        raise DataError(f"{column.idx} holds {column.dtype.name}, which {name} are not", _APART)
    if about.each == "document":
        fits = len(column) == tokens.document_count and bool((column.sizes == 1).all())
    else:
        fits = np.array_equal(column.sizes, tokens.sizes)
    if not fits:
        raise DataError(f"{column.bin} does not have a number for each {about.each} of {tokens.bin}", _APART)
    return column


def find_labels(prefix: str | Path, tokens: IndexedFile) -> IndexedFile | None:
    """The labels beside the tokens, if their sidecar lists some. Raises DataError as open_column does."""
    known = read_sidecar(prefix)
    return open_column(prefix, LABELS, tokens) if known and LABELS in known.columns else None


def open_labels(prefix: str | Path, tokens: IndexedFile) -> IndexedFile:
    """Labels that lie elsewhere, for tokens. Raises DataError when they are no labels, or not beside the tokens."""
    return _beside(IndexedFile(prefix), tokens, LABELS)


_APART = "they do not belong together; prepare the data again"
