"""What kind of folder is this? The source that reads it. Opening a checkpoint imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from neoxkit.checkpoint.folder import describe, list_checkpoints
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
        cause, remedy = _instead(path)
        raise CheckpointError(f"{path}: {cause}", remedy)
    from neoxkit.convert.hf_source import HuggingFaceSource

    return HuggingFaceSource(path)


def _instead(path: Path) -> tuple[str, str]:
    """What a path without a config.json is, and what to do with it."""
    if path.is_file():
        return "a file, not a model's folder", "name the folder that it lies in"
    if path.is_dir() and list_checkpoints(path):
        return (
            "a run of neoxkit, whose checkpoints need no import",
            "use them as they are, or cut one anew: neoxkit reshard",
        )
    cause, remedy = describe(path)
    if cause.startswith("not a checkpoint"):
        return "no config.json: not a Hugging Face model", "choose a model's folder"
    return cause, remedy


def is_foreign(path: Path) -> bool:
    """Whether a folder holds a model that another program wrote."""
    return (path / "config.json").is_file() and not (path / "manifest.json").is_file()


def open_any(path: Path) -> Checkpoint | HuggingFaceSource:
    """A neoxkit checkpoint, a run's folder (its newest checkpoint), or a model that another program wrote."""
    if is_foreign(path):
        return open_foreign(path)
    return Checkpoint.open(path)
