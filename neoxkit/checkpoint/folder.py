"""Checkpoints as folders of a run: finding, opening, naming what is none, publishing. No torch."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from neoxkit.checkpoint.format import CONFIG, LATEST, MANIFEST, NAME, RUN_YAML, TOKENIZER, Manifest, parse
from neoxkit.checkpoint.store import Place, StorePath
from neoxkit.errors import CheckpointError
from neoxkit.log import warn

AnyPlace = TypeVar("AnyPlace", Path, StorePath, Place)

LEFT_OVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{6}\.(partial|deleted)")
"""The names of attempts (see attempt.py), alive or dead."""
_OURS = re.compile(
    rf"{MANIFEST}|\.neoxkit-claim|{CONFIG}|{RUN_YAML}|{TOKENIZER}/.+|(model|optimizer)/[^/]+\.safetensors"
    r"|trainer/(state\.json|rng-r\d+\.safetensors)"
)
CLAIM = ".neoxkit-claim"
"""The object that a command which commits in a store has there as long (see store_attempt.py)."""
_STEP = re.compile(r"step-(\d+)")


def flush(folder: Path) -> None:
    """Put a folder's list of names on stable storage."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, data: bytes) -> None:
    """A small file, put on stable storage, then named: it is there whole or not at all."""
    aside = path.with_name(path.name + ".new")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    flush(path.parent)


def lock(folder: Path) -> int | None:
    """A file descriptor that marks a folder as in use until it is closed; None when another holds it."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise
    return fd


def share(checkpoint: Place) -> int | None:
    """A file descriptor that keeps `neoxkit gc` from a checkpoint until it is closed; None where that cannot be.

    Raises CheckpointError when another process is about to remove the checkpoint.
    """
    if isinstance(checkpoint, StorePath):
        return None
    try:
        fd = os.open(checkpoint / MANIFEST, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return fd
    except OSError as error:
        os.close(fd)
        if error.errno == errno.EWOULDBLOCK:
            raise CheckpointError(f"{checkpoint}: another process is removing it", "choose another") from error
        return None  # a file system without locks


def step_of(checkpoint: Path) -> int:
    """The step that a run's checkpoint is named after."""
    match = _STEP.fullmatch(checkpoint.name)
    assert match is not None, checkpoint
    return int(match[1])


def list_checkpoints(run: AnyPlace) -> list[AnyPlace]:
    """The checkpoints of a run by step, oldest first, valid or not."""
    found = [(int(match[1]), each) for each in run.iterdir() if (match := _STEP.fullmatch(each.name))]
    return [path for _, path in sorted(found)]


def newest(run: AnyPlace) -> AnyPlace | None:
    """The newest checkpoint of a run whose manifest is valid and whose files have their sizes.

    Warns of each newer one that is not. `latest` is not asked: it is a hint for people.
    """
    for path in reversed(list_checkpoints(run)):
        try:
            load_manifest(path)
        except CheckpointError as error:
            warn(f"{path} is passed over: {error.cause}")
        else:
            return path
    return None


def load_manifest(checkpoint: Place) -> Manifest:
    """The manifest of a checkpoint, its files seen to be there with their sizes.

    Raises CheckpointError, naming the file, for one that is missing, shorter or longer than the
    manifest says, or not a plain file inside the checkpoint.
    """
    path = checkpoint / MANIFEST
    try:
        text = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}", "choose a neoxkit checkpoint") from error
    manifest = parse(text, str(path))
    outside = leads_out(checkpoint)
    for entry in manifest.files:
        file = checkpoint / entry.path
        if outside(entry.path):
            raise CheckpointError(f"{file}: a link, which may lead out of the checkpoint", "put the file itself there")
        if (size := plain_size(file)) is None:
            raise CheckpointError(f"{file}: the file is missing", "fetch the checkpoint again, or choose another")
        if size != entry.bytes:
            what = "cut short" if size < entry.bytes else "too long"
            raise CheckpointError(
                f"{file}: {what}: {size} bytes, but the manifest says {entry.bytes}",
                "fetch the checkpoint again, or choose another",
            )
    return manifest


def leads_out(checkpoint: Place) -> Callable[[str], bool]:
    """Whether a name in a checkpoint is not that of the file itself: a link, or below one. A store has none."""
    if isinstance(checkpoint, StorePath):
        return lambda name: False
    root = os.path.realpath(checkpoint)
    return lambda name: os.path.realpath(checkpoint / name) != os.path.join(root, *name.split("/"))


def plain_size(file: Place) -> int | None:
    """Bytes of a file; None when there is no such file, or its name is one that no file can have."""
    if isinstance(file, StorePath):
        return file.size()
    try:
        about = os.stat(file, follow_symlinks=False)
    except (OSError, ValueError):
        return None
    return about.st_size if stat.S_ISREG(about.st_mode) else None


def is_ours(name: str) -> bool:
    """Whether a checkpoint may have a file of this name, without a manifest that lists it."""
    return _OURS.fullmatch(name) is not None


def files_below(folder: Place) -> list[str]:
    """The names, counted from a folder, of all that lies in it and below but folders; links are among them."""
    if isinstance(folder, StorePath):
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def not_a_checkpoint(folder: Place) -> str | None:
    """Why a folder is other, or more, than a checkpoint, in words; None when it is one, be it damaged."""
    listed: set[str] = set()
    try:
        text = (folder / MANIFEST).read_bytes()
        tree = json.loads(text)
    except OSError:
        if not isinstance(folder, StorePath) or not (folder / CLAIM).is_file():
            return "is not a checkpoint"
    except (ValueError, RecursionError):
        pass  # damaged: then only what no checkpoint is without may be there
    else:
        try:
            if tree["format"]["name"] != NAME:
                return "is not a checkpoint"
            listed.update(entry["path"] for entry in tree["files"])
        except (KeyError, TypeError):
            return "is not a checkpoint"
    for name in files_below(folder):
        if name not in listed and _OURS.fullmatch(name) is None:
            return f"is not only a checkpoint: {name} is there"
    return None


def unfinished(folder: Place) -> str | None:
    """The name that a folder was to get, if it is an attempt to write one, or the files of an attempt."""
    if isinstance(folder, StorePath):
        return None
    path = Path(os.path.abspath(folder))
    match = LEFT_OVER.fullmatch(path.name) or LEFT_OVER.fullmatch(path.parent.name)
    return match["name"] if match else None


def describe(path: Place) -> tuple[str, str]:
    """What a path without a checkpoint is instead, and what to do with it."""
    if not path.exists():
        if (
            isinstance(path, Path) and len(path.parts) == 2 and not path.parent.exists()
        ):  # a name of the Hub is not a path
            fetch = f"neoxkit import {path} DESTINATION"
            return "no such file or folder", f"check the path, or fetch it: {fetch}"
        return "no such file or folder", "check the path"
    if not path.is_dir():
        return "a file, not a checkpoint's folder", "name the folder that holds manifest.json"
    if (name := unfinished(path)) is not None:
        return f"an unfinished attempt to write {name}", "choose a finished checkpoint; the next save removes it"
    names = {each.name for each in path.iterdir()}
    if CLAIM in names:
        return "a folder that a command is about to fill, or was interrupted at", "wait, or write it anew with --force"
    if any(name.endswith((".safetensors", ".safetensors.index.json", ".bin")) for name in names) and CONFIG in names:
        return "a Hugging Face folder, not a neoxkit checkpoint", f"run: neoxkit import {path} DESTINATION"
    if any(re.fullmatch(r"global_step\d+|mp_rank_\d+.*\.pt|layer_\d+-model_.*\.pt", name) for name in names):
        return "a gpt-neox checkpoint, not a neoxkit one", f"run: neoxkit import {path} DESTINATION"
    if "params.json" in names and any(name.startswith("consolidated.") for name in names):
        return "Meta's or Mistral's own files, not a neoxkit checkpoint", f"run: neoxkit import {path} DESTINATION"
    if list_checkpoints(path):
        return "a run without a single valid checkpoint", "see the warnings above; train again, or restore a copy"
    if any(LEFT_OVER.fullmatch(name) for name in names):
        return "a run in which no save was finished", "train on until the first save"
    return "not a checkpoint: it has no manifest.json", "choose a folder that neoxkit train, import or reshard wrote"


def publish(run: Path, checkpoint: Path) -> None:
    """Make `latest` of a run name this checkpoint, in one step."""
    write_durably(run / LATEST, f"{checkpoint.name}\n".encode())
