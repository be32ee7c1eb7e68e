"""Checkpoints as folders of a run: finding, opening, naming what is none, publishing. No torch."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from pathlib import Path

from neoxkit.checkpoint.format import CONFIG, LATEST, MANIFEST, NAME, RUN_YAML, TOKENIZER, Manifest, parse
from neoxkit.errors import CheckpointError
from neoxkit.log import warn

LEFT_OVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{6}\.(partial|deleted)")
"""The names of attempts (see attempt.py), alive or dead."""
_OURS = re.compile(
    rf"{MANIFEST}|{CONFIG}|{RUN_YAML}|{TOKENIZER}/.+|(model|optimizer)/[^/]+\.safetensors"
    r"|trainer/(state\.json|rng-r\d+\.safetensors)"
)
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


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run by step, oldest first, valid or not."""
    found = [(int(match[1]), each) for each in run.iterdir() if (match := _STEP.fullmatch(each.name))]
    return [path for _, path in sorted(found)]


def newest(run: Path) -> Path | None:
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


def load_manifest(checkpoint: Path) -> Manifest:
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
    root = os.path.realpath(checkpoint)
    for entry in manifest.files:
        file = checkpoint / entry.path
        if os.path.realpath(file) != os.path.join(root, *entry.path.split("/")):
            raise CheckpointError(f"{file}: a link, which may lead out of the checkpoint", "put the file itself there")
        if not file.is_file():
            raise CheckpointError(f"{file}: the file is missing", "fetch the checkpoint again, or choose another")
        size = file.stat().st_size
        if size != entry.bytes:
            what = "cut short" if size < entry.bytes else "too long"
            raise CheckpointError(
                f"{file}: {what}: {size} bytes, but the manifest says {entry.bytes}",
                "fetch the checkpoint again, or choose another",
            )
    return manifest


def not_a_checkpoint(folder: Path) -> str | None:
    """Why a folder is other, or more, than a checkpoint, in words; None when it is one, be it damaged."""
    listed: set[str] = set()
    try:
        text = (folder / MANIFEST).read_bytes()
        tree = json.loads(text)
    except OSError:
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
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        known = name in listed or _OURS.fullmatch(name) is not None
        if not known and (path.is_symlink() or not path.is_dir()):
            return f"is not only a checkpoint: {name} is there"
    return None


def unfinished(folder: Path) -> str | None:
    """The name that a folder was to get, if it is an attempt to write one, or the files of an attempt."""
    path = Path(os.path.abspath(folder))
    match = LEFT_OVER.fullmatch(path.name) or LEFT_OVER.fullmatch(path.parent.name)
    return match["name"] if match else None


def describe(path: Path) -> tuple[str, str]:
    """What a path without a checkpoint is instead, and what to do with it."""
    if not path.exists():
        if len(path.parts) == 2 and not path.parent.exists():  # a name of the Hub is not a path
            fetch = f"neoxkit import {path} DESTINATION"
            return "no such file or folder", f"check the path, or fetch it: {fetch}"
        return "no such file or folder", "check the path"
    if not path.is_dir():
        return "a file, not a checkpoint's folder", "name the folder that holds manifest.json"
    if (name := unfinished(path)) is not None:
        return f"an unfinished attempt to write {name}", "choose a finished checkpoint; the next save removes it"
    names = {each.name for each in path.iterdir()}
    if any(name.endswith((".safetensors", ".safetensors.index.json", ".bin")) for name in names) and CONFIG in names:
        return "a Hugging Face folder, not a neoxkit checkpoint", f"run: neoxkit import {path} DESTINATION"
    if any(re.fullmatch(r"global_step\d+|mp_rank_\d+.*\.pt|layer_\d+-model_.*\.pt", name) for name in names):
        return "a gpt-neox checkpoint, not a neoxkit one", f"run: neoxkit import {path} DESTINATION"
    if list_checkpoints(path):
        return "a run without a single valid checkpoint", "see the warnings above; train again, or restore a copy"
    if any(LEFT_OVER.fullmatch(name) for name in names):
        return "a run in which no save was finished", "train on until the first save"
    return "not a checkpoint: it has no manifest.json", "choose a folder that neoxkit train, import or reshard wrote"


def publish(run: Path, checkpoint: Path) -> None:
    """Make `latest` of a run name this checkpoint, in one step."""
    write_durably(run / LATEST, f"{checkpoint.name}\n".encode())
