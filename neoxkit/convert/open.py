"""What kind of folder is this? The source that reads it. Opening a checkpoint imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from neoxkit.checkpoint.folder import describe
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.errors import CheckpointError

if TYPE_CHECKING:
    from neoxkit.convert.hf_source import HuggingFaceSource


def open_foreign(path: Path) -> HuggingFaceSource:
    """A model that another program wrote. Raises CheckpointError, saying what is there instead."""
    if (path / "manifest.json").is_file():
        raise CheckpointError(
            f"{path}: a neoxkit checkpoint already", "use it as it is, or cut it anew: neoxkit reshard"
        )
    if not (path / "config.json").is_file():
        cause, remedy = describe(path)
        if cause.startswith("not a checkpoint"):
            cause, remedy = "no config.json: not a Hugging Face model", "choose a model's folder"
        raise CheckpointError(f"{path}: {cause}", remedy)
    from neoxkit.convert.hf_source import HuggingFaceSource

    return HuggingFaceSource(path)


def is_foreign(path: Path) -> bool:
    """Whether a folder holds a model that another program wrote."""
    return (path / "config.json").is_file() and not (path / "manifest.json").is_file()


def open_any(path: Path) -> Checkpoint | HuggingFaceSource:
    """A neoxkit checkpoint, a run's folder (its newest checkpoint), or a model that another program wrote."""
    if is_foreign(path):
        return open_foreign(path)
    return Checkpoint.open(path)
