"""Whether the bytes of a checkpoint are those that were written."""

from __future__ import annotations

from pathlib import Path

from neoxkit.convert.verify import verify


def damaged(folder: Path) -> list[str]:
    """What verify finds wrong with files and bytes. Tensors that are no model's, as some tests save, are none of it."""
    return [finding.what for finding in verify(folder).findings if finding.kind in ("file", "damage")]
