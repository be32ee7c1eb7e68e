"""A token file divided into several, by documents."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neoxkit import __version__, log
from neoxkit.data.tokens.columns import COLUMNS, IGNORED, LABELS, column_path, open_column
from neoxkit.data.tokens.copying import chosen, copy
from neoxkit.data.tokens.index import pieces, write_index
from neoxkit.data.tokens.indexed import IndexedFile, pair
from neoxkit.data.tokens.shares import borders
from neoxkit.data.tokens.sidecar import Sidecar, path_of, sidecar_of, write_sidecar
from neoxkit.data.tokens.stage import Stage, named, remove
from neoxkit.errors import DataError


@dataclass(frozen=True)
class Part:
    """One of the files: which documents of the whole, i64, ascending, and their sequences."""

    name: str
    prefix: Path
    documents: npt.NDArray[np.int64]
    sequences: npt.NDArray[np.int64]
    borders: npt.NDArray[np.int64] | None
    """The document index; None: each sequence is a document."""
    tokens: int


def split(
    prefix: Path, output: Path, shares: Sequence[tuple[str, float]], *, seed: int | None = None, force: bool = False
) -> list[Part]:
    """Write OUTPUT-NAME.* for each (name, weight): whole documents, in the order that they have, with their columns.

    Stretches of documents, as training's data.split takes them; with a seed documents dealt out at random instead.

    Raises DataError when the pair is damaged, a target exists and `force` is not given, names repeat, or a part
    would get no document.
    """
    names = [name for name, _ in shares]
    if len(set(names)) != len(names) or not all(name and "/" not in name for name in names):
        raise DataError(f"the names {','.join(names)} are not all different, or no ends of file names", "give others")
    file = IndexedFile(prefix)
    sidecar = sidecar_of(file)
    pairs = {"": file}
    for column in sidecar.columns if sidecar else ():
        pairs[column] = open_column(prefix, column, file)
    parts = _divide(file, output, shares, seed)
    targets = [path for part in parts for column in pairs for path in (*pair(_of(part, column)), path_of(part.prefix))]
    total = sum(each.tokens * each.dtype.itemsize for each in pairs.values())
    with ExitStack() as stack:
        stack.enter_context(named(output))
        stage = stack.enter_context(Stage(list(dict.fromkeys(targets)), force))
        progress = stack.enter_context(log.progress("split", total))
        for part in parts:
            for column, whole in reversed(pairs.items()):
                _write(part, column, whole, stage, progress)
            if sidecar:
                learned = _learned(pairs[LABELS], part.sequences) if LABELS in pairs else None
                about = replace(_sidecar(sidecar, part, shares, seed), learned=learned)
                write_sidecar(stage.path(path_of(part.prefix)), about)
            else:
                remove(path_of(part.prefix))  # that of what is replaced, which the stage saw to
        stage.commit()
    return parts


def _of(part: Part, column: str) -> Path:
    return column_path(part.prefix, column) if column else part.prefix


def _divide(file: IndexedFile, output: Path, shares: Sequence[tuple[str, float]], seed: int | None) -> list[Part]:
    count = file.document_count
    order = None if seed is None else np.random.RandomState(seed).permutation(count)
    parts = []
    for (name, weight), (first, stop) in zip(
        shares, pairwise(borders([weight for _, weight in shares], count)), strict=True
    ):
        if first >= stop:
            raise DataError(
                f"{file.bin}: {name}, of weight {weight:g}, gets none of its {log.counted(count, 'document')}",
                "give other weights, or fewer parts",
            )
        documents = np.arange(first, stop) if order is None else np.sort(order[first:stop])
        sequences, inner = documents, None
        if not file.alone:
            starts = file.documents[documents]
            lengths = file.documents[documents + 1] - starts
            inner = np.concatenate([[0], np.cumsum(lengths)])
            sequences = np.repeat(starts - inner[:-1], lengths) + np.arange(inner[-1])
        prefix = column_path(output, name)
        tokens = int(file.sizes[sequences].sum(dtype=np.int64))
        parts.append(Part(name, prefix, documents, sequences, inner, tokens))
    return parts


def _write(part: Part, column: str, whole: IndexedFile, stage: Stage, progress: log.Progress) -> None:
    each = column and COLUMNS[column].each == "document"
    numbers = part.documents if each else part.sequences
    bin_path, idx_path = pair(_of(part, column))
    with stage.path(bin_path).open("xb") as out:
        copy(whole, chosen(numbers), out, whole.dtype, progress.advance)
    inner = None if each or part.borders is None else pieces(part.borders)
    with stage.path(idx_path).open("xb") as out:
        write_index(out, whole.dtype, lambda: (whole.sizes[some] for some in pieces(numbers)()), inner)


def _learned(labels: IndexedFile, sequences: npt.NDArray[np.int64]) -> int:
    """How many tokens of some sequences are learned."""
    return sum(int((labels[number] != IGNORED).sum()) for number in sequences.tolist())


def _sidecar(whole: Sidecar, part: Part, shares: Sequence[tuple[str, float]], seed: int | None) -> Sidecar:
    """The bytes of text of some documents are not known. `sources` follows from what the part was made of, and how."""
    sources = ""
    if whole.sources:
        about: list[Any] = [whole.sources, part.name, [[name, float(weight)] for name, weight in shares], seed]
        sources = f"sha256:{hashlib.sha256(repr(about).encode()).hexdigest()}"
    return replace(
        whole,
        documents=len(part.documents),
        tokens=part.tokens,
        bytes=0,
        part=part.name,
        sources=sources,
        writer=f"neoxkit {__version__}",
    )
