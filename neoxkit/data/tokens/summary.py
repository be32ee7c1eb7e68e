"""What the token files of a prefix hold, for people and programs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from neoxkit.data.tokens.indexed import IndexedFile
from neoxkit.data.tokens.sidecar import path_of, read_sidecar
from neoxkit.errors import DataError


def summary(prefix: str | Path) -> dict[str, Any]:
    """Counts of the pair, and what its sidecar says, if it has one.

    Raises DataError when the pair is damaged, or the sidecar speaks of other tokens.
    """
    file = IndexedFile(prefix)
    found: dict[str, Any] = {
        "documents": len(file),
        "tokens": file.tokens,
        "dtype": file.dtype.name,
        "longest": int(file.sizes.max(initial=0)),
        "empty": int((file.sizes == 0).sum()),
    }
    if sidecar := read_sidecar(prefix):
        if (sidecar.documents, sidecar.tokens) != (found["documents"], found["tokens"]):
            raise DataError(
                f"{path_of(prefix)} speaks of {sidecar.documents} documents and {sidecar.tokens} tokens, and "
                f"{file.idx.name} holds {found['documents']} and {found['tokens']}",
                "they do not belong together; tokenize the text again",
            )
        found.update(asdict(sidecar))
    return found
