"""What the token files of a prefix hold, for people and programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from neoxkit.data.tokens.columns import column_path, open_column
from neoxkit.data.tokens.indexed import IndexedFile, pair
from neoxkit.data.tokens.sidecar import sidecar_of

PERCENTILES = (50, 90, 99)


def summary(prefix: str | Path) -> dict[str, Any]:
    """Ready for JSON.

    prefix, form       what was asked for, and "megatron" or "cached" for the form of the .idx
    documents, sequences, tokens       counts; a document is a sequence, unless the index says otherwise
    dtype              of the .bin: "uint16"
    longest, mean, p50, p90, p99       tokens of a document; pN: N in a hundred documents have at most so many
    empty              documents without a token
    size               bytes on the disk, with columns

    Where there is a PREFIX.json, what it says as well: tokenizer, vocab, eod, bytes (of text), part, holdout, sources,
    skipped, writer, columns.

    Raises DataError when the pair or a column is damaged, or the sidecar speaks of other tokens.
    """
    file = IndexedFile(prefix)
    lengths = file.document_sizes()
    found: dict[str, Any] = {
        "prefix": str(prefix),
        "form": file.form,
        "documents": file.document_count,
        "sequences": len(file),
        "tokens": file.tokens,
        "dtype": file.dtype.name,
        "longest": int(lengths.max(initial=0)),
        "mean": round(file.tokens / max(1, len(lengths)), 1),
        "empty": int((lengths == 0).sum()),
    }
    at = np.percentile(lengths, PERCENTILES, method="inverted_cdf") if len(lengths) else np.zeros(len(PERCENTILES))
    found.update({f"p{percent}": int(value) for percent, value in zip(PERCENTILES, at, strict=True)})
    pairs = [prefix]
    if sidecar := sidecar_of(file):
        found.update(asdict(sidecar))
        for name in sidecar.columns:
            open_column(prefix, name, file)
            pairs.append(column_path(prefix, name))
    found["size"] = sum(path.stat().st_size for each in pairs for path in pair(each))
    return found


def count(prefixes: Sequence[str | Path]) -> dict[str, Any]:
    """Ready for JSON.

    files                  [{"prefix", "documents", "tokens"}]
    documents, tokens      in all

    Nothing is read but the indexes. Raises DataError when a pair is damaged.
    """
    files: list[dict[str, Any]] = []
    for prefix in prefixes:
        file = IndexedFile(prefix)
        files.append({"prefix": str(prefix), "documents": file.document_count, "tokens": file.tokens})
    return {"files": files, **{key: sum(each[key] for each in files) for key in ("documents", "tokens")}}
