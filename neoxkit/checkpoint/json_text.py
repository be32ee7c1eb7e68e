"""JSON that a stranger wrote: an object, or an error in words. No torch."""

from __future__ import annotations

import json
from typing import Any

from neoxkit.errors import CheckpointError

LARGEST = 2**63 - 1
"""No size, place or count of a file is beyond it; Python would take any number, and then fail to print it."""


def parse_object(raw: str | bytes, where: str, remedy: str = "fetch it again", unique: bool = False) -> dict[str, Any]:
    """The JSON object in `raw`; with `unique`, one in which no key may be there twice.

    Raises CheckpointError, starting with `where`, for what is no JSON, no object, nested too deeply or
    holds half a character, which could not be written again.
    """
    try:
        text = raw if isinstance(raw, str) else raw.decode("utf-8-sig")
        tree = json.loads(text, object_pairs_hook=unique_keys if unique else None)
        if "\\u" in text:
            json.dumps(tree, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not valid JSON ({error})", remedy) from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{where}: not a JSON object", remedy)
    return tree


def unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object_pairs_hook for json: ValueError when a key is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice!r} is there twice")
    return found
