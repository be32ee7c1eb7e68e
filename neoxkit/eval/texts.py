"""The texts that a model is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from neoxkit.data.tokenizer import Tokenizer
from neoxkit.errors import DataError


def named_files(files: Sequence[Path], listing: Path | None) -> list[Path]:
    """The files given and those that a listing names, one on each line. Raises DataError when there are none."""
    names = list(files)
    if listing is not None:
        try:
            names += [Path(line) for line in _read(listing).decode("utf-8").splitlines() if line]
        except UnicodeDecodeError as error:
            raise DataError(f"{listing}: not a list of names ({error})", "give a text file") from error
    if not names:
        raise DataError("there is no text to measure", "name files with --perplexity or --files-from")
    return names


def read_texts(names: Sequence[Path], tokenizer: Tokenizer) -> list[tuple[list[int], int]]:
    """Each file's ids and bytes. Raises DataError for a file that cannot be read, is empty or is not UTF-8."""
    texts = []
    for name in names:
        raw = _read(name)
        if not raw:
            raise DataError(f"{name}: the file is empty", "leave it out")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{name}: not UTF-8 ({error.reason} at byte {error.start})", "leave it out") from error
        ids = tokenizer.encode(text)
        if not ids:
            raise DataError(f"{name}: the tokenizer makes no tokens of it", "leave it out")
        texts.append((ids, len(raw)))
    return texts


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or str(error)).lower()}", "name a file that can be read") from error
