"""The names that weight files have in foreign folders. No torch."""

from __future__ import annotations

import re

from neoxkit.checkpoint.store import Place

SINGLE = ("model.safetensors", "pytorch_model.bin")
"""Names of a Hugging Face model in one file, the preferred one first; an index adds `.index.json`."""

PARAMS = "params.json"
WHOLE = "consolidated.safetensors"
SHARD = re.compile(r"consolidated\.(\d+)\.pth")
"""Meta's and Mistral's."""


def is_meta(folder: Place) -> bool:
    """Whether a folder holds Meta's or Mistral's own files, and not a Hugging Face model beside them."""
    if not (folder / PARAMS).is_file() or not file_names(folder):
        return False
    theirs = [f"{name}{end}" for name in SINGLE for end in ("", ".index.json")]
    return not ((folder / "config.json").is_file() and any((folder / name).is_file() for name in theirs))


def file_names(folder: Place) -> list[str]:
    """The weight files of a folder, one for each shard, in their order."""
    found = {int(match[1]): path.name for path in folder.iterdir() if (match := SHARD.fullmatch(path.name))}
    single = [WHOLE] if any((folder / f"{WHOLE}{end}").is_file() for end in ("", ".index.json")) else []
    return [*single, *(found[rank] for rank in sorted(found))]
