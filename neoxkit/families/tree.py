"""Values at dotted paths of a tree of mappings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Absent:
    """What a path that is not there holds."""


ABSENT = Absent()


def lookup(tree: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, or ABSENT."""
    here: Any = tree
    for key in path.split("."):
        if not isinstance(here, Mapping) or key not in here:
            return ABSENT
        here = here[key]
    return here


def place(tree: dict[str, Any], path: str, value: Any) -> None:
    """Put a value at a dotted path; a mapping is merged into a mapping that is there."""
    *parents, last = path.split(".")
    for key in parents:
        tree = tree.setdefault(key, {})
    if isinstance(value, dict) and isinstance(tree.get(last), dict):
        tree[last].update(value)
    else:
        tree[last] = dict(value) if isinstance(value, dict) else value
