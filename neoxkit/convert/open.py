"""What kind of folder is this? The source that reads it. Opening a checkpoint imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from neoxkit.checkpoint import Source
from neoxkit.checkpoint.folder import describe, list_checkpoints
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.store import Place, StorePath
from neoxkit.convert.neox.folder import find
from neoxkit.convert.weight_names import is_meta
from neoxkit.errors import CheckpointError, ConfigError, ConversionError

if TYPE_CHECKING:
    from neoxkit.convert.neox.training import Training


class Files(Protocol):
    """The weight files of a foreign model."""

    @property
    def paths(self) -> Sequence[Place]:
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
    def folder(self) -> Place:
        """Where it lies."""

    @property
    def files(self) -> Files:
        """Its weight files."""

    @property
    def lineage(self) -> Mapping[str, str]:
        """Where it came from, for the manifest."""

    @property
    def tokenizer(self) -> Place | None:
        """The folder that the tokenizer's files are in, if there are any."""

    @property
    def resumable(self) -> bool:
        """Whether it comes with the state of an optimizer, be it whole or not."""

    @property
    def training(self) -> Training | None:
        """What training goes on from, beside the tensors; None unless it was asked for and is there."""

    def close(self) -> None:
        """Close the files."""


def open_foreign(
    path: Place, assume: Mapping[str, str] | None = None, settings: Sequence[Path] = (), state: bool = False
) -> Foreign:
    """A model that another program wrote. Raises CheckpointError, saying what is there instead.

    `assume` says what the files of some formats leave open, by key; one that means nothing for the
    format is an error. `settings` are YAML files of gpt-neox, for a checkpoint of it. With `state`, the
    optimizer's tensors are read too, where there are any.
    """
    if (path / "manifest.json").is_file():
        raise CheckpointError(
            f"{path}: a neoxkit checkpoint already", "use it as it is, or cut it anew: neoxkit reshard"
        )
    if is_neox(path):
        from neoxkit.convert.neox.source import NeoxSource

        return NeoxSource(_on_a_disk(path, "a gpt-neox checkpoint, which is"), settings, assume, state)
    if settings:
        raise ConversionError(f"{path}: no gpt-neox checkpoint, which alone has settings", "leave --config out")
    if is_meta(path):
        from neoxkit.convert.meta_source import MetaSource

        return MetaSource(_on_a_disk(path, "Meta's or Mistral's files, which are"), assume)
    if not (path / "config.json").is_file():
        cause, remedy = _instead(path)
        raise CheckpointError(f"{path}: {cause}", remedy)
    if assume:
        raise ConversionError(f"{path}: a Hugging Face folder leaves nothing to assume", "leave --assume out")
    from neoxkit.convert.hf_source import HuggingFaceSource

    return HuggingFaceSource(path)


def _on_a_disk(path: Place, what: str) -> Path:
    """The path. Raises CheckpointError for what only a disk may hold."""
    if isinstance(path, StorePath):
        raise CheckpointError(f"{path}: {what} read from a disk only", "copy the folder to a disk first")
    return path


def _instead(path: Place) -> tuple[str, str]:
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


def is_foreign(path: Place) -> bool:
    """Whether a folder holds a model that another program wrote."""
    named = (path / "config.json").is_file() or is_meta(path) or is_neox(path)
    return named and not (path / "manifest.json").is_file()


def is_hugging_face(path: Place) -> bool:
    """Whether a folder holds a model in the format of transformers."""
    return is_foreign(path) and not is_meta(path) and not is_neox(path)


def is_neox(path: Place) -> bool:
    """Whether a folder holds a checkpoint of gpt-neox. Raises CheckpointError when it holds several."""
    return not (path / "config.json").is_file() and find(path) is not None


def open_any(
    path: Place, assume: Mapping[str, str] | None = None, settings: Sequence[Path] = ()
) -> Checkpoint | Foreign:
    """A neoxkit checkpoint, a run's folder (its newest checkpoint), or a model that another program wrote.

    `assume` and `settings` as `open_foreign` takes them; a checkpoint takes neither.
    """
    if is_foreign(path):
        return open_foreign(path, assume, settings)
    checkpoint = Checkpoint.open(path)
    if assume or settings:
        raise ConversionError(f"{path}: a neoxkit checkpoint leaves nothing open", "leave --assume and --config out")
    return checkpoint


def divide(
    paths: Sequence[Place], assume: Mapping[str, str], settings: Sequence[Path]
) -> list[tuple[Mapping[str, str], Sequence[Path]]]:
    """What of `assume` and `settings` is for each of several paths: what its kind takes.

    Raises ConfigError for what none takes.
    """
    found: list[tuple[Mapping[str, str], Sequence[Path]]] = []
    for path in paths:
        known: Collection[str] = ()
        if is_neox(path):
            from neoxkit.convert.neox import source

            known = source.ASSUMPTIONS
        elif is_meta(path):
            from neoxkit.convert import meta_params

            known = meta_params.ASSUMPTIONS
        taken = {key: value for key, value in assume.items() if key in known}
        found.append((taken, settings if is_neox(path) else ()))
    names = " and ".join(str(path) for path in paths)
    for key in assume:
        if not any(key in taken for taken, _ in found):
            raise ConfigError(f"--assume {key}: {names} leave no such thing open", "leave it out")
    if settings and not any(given for _, given in found):
        raise ConfigError(f"--config {settings[0]}: {names} are no gpt-neox checkpoints", "leave it out")
    return found
