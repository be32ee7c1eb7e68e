"""Several token files as one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neoxkit import __version__, log
from neoxkit.data.tokens.columns import column_path, open_column
from neoxkit.data.tokens.copying import copy, runs
from neoxkit.data.tokens.index import CODES, pieces, write_index
from neoxkit.data.tokens.indexed import IndexedFile, pair
from neoxkit.data.tokens.sidecar import Sidecar, path_of, sidecar_of, write_sidecar
from neoxkit.data.tokens.stage import Stage, named, remove
from neoxkit.errors import DataError


@dataclass(frozen=True)
class Merged:
    """What was written."""

    documents: int
    tokens: int
    dtype: np.dtype[Any]


def merge(prefixes: Sequence[Path], output: Path, *, force: bool = False, any_tokenizer: bool = False) -> Merged:
    """Write the token files of `prefixes`, one after the other, as those of `output`: columns and sidecars too.

    The borders of documents are kept. Where dtypes differ, the one that holds all is written.

    Raises DataError when a pair is damaged, `output` exists and `force` is not given, tokens are not of one
    tokenizer and `any_tokenizer` is not given, or not all have the same columns.
    """
    files = [IndexedFile(prefix) for prefix in prefixes]
    known = [sidecar_of(file) for file in files]
    sidecar = joined(prefixes, known, any_tokenizer)
    columns = _columns(prefixes, known)
    if columns and sidecar is None:
        raise DataError(
            f"{prefixes[0]} has columns, and tokens of several tokenizers get no PREFIX.json, which would name them",
            "merge what is of one tokenizer",
        )
    pairs = {output: files}
    for name in columns:
        pairs[column_path(output, name)] = [
            open_column(prefix, name, file) for prefix, file in zip(prefixes, files, strict=True)
        ]
    targets = [path for prefix in pairs for path in pair(prefix)]
    total = sum(file.tokens * file.dtype.itemsize for each in pairs.values() for file in each)
    with ExitStack() as stack:
        stack.enter_context(named(output))
        stage = stack.enter_context(Stage([*targets, path_of(output)], force))
        progress = stack.enter_context(log.progress("merge", total))
        for prefix, each in reversed(pairs.items()):  # the tokens last: their index is what readers open first
            _write(prefix, each, stage, progress)
        if sidecar:
            write_sidecar(stage.path(path_of(output)), sidecar)
        else:
            remove(path_of(output))  # that of what is replaced, which the stage saw to
        stage.commit()
    return Merged(sum(file.document_count for file in files), sum(file.tokens for file in files), common_dtype(files))


def common_dtype(files: Sequence[IndexedFile]) -> np.dtype[Any]:
    """The smallest dtype that holds what all of the files hold. Raises DataError for integers and floats together."""
    for file in files[1:]:
        if (file.dtype.kind == "f") != (files[0].dtype.kind == "f"):
            raise DataError(
                f"{files[0].bin} holds {files[0].dtype.name}, {file.bin} {file.dtype.name}",
                "merge files of one kind",
            )
    return np.result_type(*(file.dtype for file in files)).newbyteorder("<")


def _write(prefix: Path, files: Sequence[IndexedFile], stage: Stage, progress: log.Progress) -> None:
    dtype = common_dtype(files)
    assert dtype in CODES, dtype
    bin_path, idx_path = pair(prefix)
    with stage.path(bin_path).open("xb") as out:
        for file in files:
            copy(file, runs(len(file)), out, dtype, progress.advance)

    def sizes() -> Iterator[npt.NDArray[Any]]:
        for file in files:
            yield from pieces(file.sizes)()

    def documents() -> Iterator[npt.NDArray[Any]]:
        yield np.zeros(1, np.int64)
        before = 0
        for file in files:
            for part in pieces(file.documents[1:])():
                yield part + before
            before += len(file)

    with stage.path(idx_path).open("xb") as out:
        write_index(out, dtype, sizes, None if all(file.alone for file in files) else documents)


def joined(prefixes: Sequence[Path], known: Sequence[Sidecar | None], any_tokenizer: bool) -> Sidecar | None:
    """The sidecar of all together; None where there are none, or `any_tokenizer` allows that they do not agree.

    What is the same of all is kept, counts are summed, `bytes` stays unknown where it is of one.
    """
    sidecars = [each for each in known if each is not None]
    if not sidecars:
        return None
    for prefix, each in zip(prefixes, known, strict=True):
        if each is None and not any_tokenizer:
            raise DataError(f"{prefix} has no {path_of(prefix).name}, so its tokenizer is not known", _ANY)
        if each is not None and _tokenizer(each) != _tokenizer(sidecars[0]) and not any_tokenizer:
            other = prefixes[known.index(sidecars[0])]
            raise DataError(f"{prefix} and {other} are tokens of different tokenizers", _ANY)
        if each is None or _tokenizer(each) != _tokenizer(sidecars[0]):
            return None
    same: dict[str, Any] = {}
    for field in fields(Sidecar):
        values = [getattr(each, field.name) for each in sidecars]
        if all(value == values[0] for value in values):
            same[field.name] = values[0]
        elif field.default is not MISSING or field.default_factory is not MISSING:
            same[field.name] = field.default if field.default_factory is MISSING else field.default_factory()
    same["documents"] = sum(each.documents for each in sidecars)
    same["tokens"] = sum(each.tokens for each in sidecars)
    same["bytes"] = sum(each.bytes for each in sidecars) if all(each.bytes for each in sidecars) else 0
    learned = [each.learned for each in sidecars]
    same["learned"] = None if None in learned else sum(filter(None, learned))
    same["sources"] = ""
    if all(each.sources for each in sidecars):
        text = "\n".join(each.sources for each in sidecars)
        same["sources"] = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    kinds = {kind for each in sidecars for kind in each.skipped}
    same["skipped"] = {kind: sum(each.skipped.get(kind, 0) for each in sidecars) for kind in sorted(kinds)}
    same["writer"] = f"neoxkit {__version__}"
    return Sidecar(**same)


def _tokenizer(sidecar: Sidecar) -> tuple[str, int, int]:
    return sidecar.tokenizer, sidecar.vocab, sidecar.eod


def _columns(prefixes: Sequence[Path], known: Sequence[Sidecar | None]) -> tuple[str, ...]:
    """The columns, which all must have. Raises DataError."""
    each = [() if sidecar is None else sidecar.columns for sidecar in known]
    for prefix, names in zip(prefixes, each, strict=True):
        if set(names) != set(each[0]):
            raise DataError(
                f"columns: {prefixes[0]} has {', '.join(each[0]) or 'none'}, and {prefix} {', '.join(names) or 'none'}",
                "prepare all in the same way",
            )
    return each[0]


_ANY = "tokenize with the same one, or merge them all the same with --any-tokenizer"
