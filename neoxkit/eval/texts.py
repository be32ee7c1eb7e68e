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
            names += [Path(line) for line in listing.read_text(encoding="utf-8").splitlines() if line]
        except UnicodeDecodeError as error:
            raise DataError(f"{listing}: not a list of names ({error})", "give a text file") from error
    if not names:
        raise DataError("there is no text to measure", "name files with --perplexity or --files-from")
    return names


def read_texts(names: Sequence[Path], tokenizer: Tokenizer) -> list[tuple[list[int], int]]:
    """Each file's ids and bytes. Raises DataError for a file that is empty or is not UTF-8."""
    texts = []
    for name in names:
        raw = name.read_bytes()
        if not raw:
            raise DataError(f"{name}: the file is empty", "leave it out")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{name}: not UTF-8 ({error.reason} at byte {error.start})", "leave it out") from error
        texts.append((tokenizer.encode(text), len(raw)))
    return texts
