"""What kind of folder is this? The source that reads it. Opening a checkpoint imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from neoxkit.checkpoint import Source
from neoxkit.checkpoint.folder import describe, list_checkpoints
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.convert.neox.folder import find
from neoxkit.convert.weight_names import is_meta
from neoxkit.errors import CheckpointError, ConversionError


class Files(Protocol):
    """The weight files of a foreign model."""

    @property
    def paths(self) -> list[Path]:
        """The files that hold tensors."""

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""


class Foreign(Source, Protocol):
    """A model that another program wrote."""

    @property
    def kind(self) -> str:
        """What `inspect` calls it: "huggingface"."""

    @property
    def folder(self) -> Path:
        """Where it lies."""

    @property
    def files(self) -> Files:
        """Its weight files."""

    @property
    def lineage(self) -> Mapping[str, str]:
        """Where it came from, for the manifest."""

    @property
    def tokenizer(self) -> Path | None:
        """The folder that the tokenizer's files are in, if there are any."""

    def close(self) -> None:
        """Close the files."""


def open_foreign(path: Path, assume: Mapping[str, str] | None = None, settings: Sequence[Path] = ()) -> Foreign:
    """A model that another program wrote. Raises CheckpointError, saying what is there instead.

    `assume` says what the files of some formats leave open, by key; one that means nothing for the
    format is an error. `settings` are YAML files of gpt-neox, for a checkpoint of it.
    """
    if (path / "manifest.json").is_file():
        raise CheckpointError(
            f"{path}: a neoxkit checkpoint already", "use it as it is, or cut it anew: neoxkit reshard"
        )
    if is_neox(path):
        from neoxkit.convert.neox.source import NeoxSource

        return NeoxSource(path, settings, assume)
    if settings:
        raise ConversionError(f"{path}: no gpt-neox checkpoint, which alone has settings", "leave --config out")
    if is_meta(path):
        from neoxkit.convert.meta_source import MetaSource

        return MetaSource(path, assume)
    if not (path / "config.json").is_file():
        cause, remedy = _instead(path)
        raise CheckpointError(f"{path}: {cause}", remedy)
    if assume:
        raise ConversionError(f"{path}: a Hugging Face folder leaves nothing to assume", "leave --assume out")
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
    named = (path / "config.json").is_file() or is_meta(path) or is_neox(path)
    return named and not (path / "manifest.json").is_file()


def is_hugging_face(path: Path) -> bool:
    """Whether a folder holds a model in the format of transformers."""
    return is_foreign(path) and not is_meta(path) and not is_neox(path)


def is_neox(path: Path) -> bool:
    """Whether a folder holds a checkpoint of gpt-neox. Raises CheckpointError when it holds several."""
    return not (path / "config.json").is_file() and find(path) is not None


def open_any(path: Path) -> Checkpoint | Foreign:
    """A neoxkit checkpoint, a run's folder (its newest checkpoint), or a model that another program wrote."""
    if is_foreign(path):
        return open_foreign(path)
    return Checkpoint.open(path)
