"""Checkpoints as folders of a run: finding, publishing, replacing and deleting them. No torch.

Nothing is overwritten in place. A folder appears by one rename, and goes by one rename before its
files are unlinked. What an interrupted save leaves behind is named .NAME.ATTEMPT.partial (or .old,
.deleted), and the next save removes it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
from pathlib import Path

from neoxkit.checkpoint.format import CONFIG, LATEST, MANIFEST, RUN_YAML, TOKENIZER, Manifest, parse
from neoxkit.errors import CheckpointError
from neoxkit.log import warn

_LEFT_OVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{6}\.(?P<kind>partial|old|deleted)")
_OURS = {MANIFEST, CONFIG, RUN_YAML, TOKENIZER, "model", "optimizer", "trainer"}
_SIDECAR = re.compile(r"\.rank-\d{5}\.json(\.new)?|manifest\.json\.new")
_STEP = re.compile(r"step-(\d+)")
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux's renameat2


def new_attempt() -> str:
    """Six hexadecimal digits that tell one attempt at a save from another."""
    return secrets.token_hex(3)


def attempt_path(folder: Path, attempt: str, kind: str = "partial") -> Path:
    """Where an attempt to write `folder` keeps its files."""
    return folder.with_name(f".{folder.name}.{attempt}.{kind}")


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
    """A file descriptor that marks an attempt as alive until it is closed; None when another holds it."""
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


def describe(path: Path) -> tuple[str, str]:
    """What a path without a checkpoint is instead, and what to do with it."""
    if not path.exists():
        return "no such file or folder", "check the path"
    if not path.is_dir():
        return "a file, not a checkpoint's folder", "name the folder that holds manifest.json"
    if (match := _LEFT_OVER.fullmatch(path.name)) is not None:
        return (
            f"an unfinished attempt to write {match['name']}",
            "choose a finished checkpoint; the next save removes it",
        )
    names = {each.name for each in path.iterdir()}
    if any(name.endswith((".safetensors", ".safetensors.index.json", ".bin")) for name in names) and CONFIG in names:
        return "a Hugging Face folder, not a neoxkit checkpoint", f"run: neoxkit import {path} DESTINATION"
    if any(re.fullmatch(r"global_step\d+|mp_rank_\d+.*\.pt|layer_\d+-model_.*\.pt", name) for name in names):
        return "a gpt-neox (DeepSpeed) folder, not a neoxkit checkpoint", "convert it to a Hugging Face folder first"
    if list_checkpoints(path):
        return "a run without a single valid checkpoint", "see the warnings above; train again, or restore a copy"
    if any(_LEFT_OVER.fullmatch(name) for name in names):
        return "a run in which no save was finished", "train on until the first save"
    return "not a checkpoint: it has no manifest.json", "choose a folder that neoxkit train, import or reshard wrote"


def publish(run: Path, checkpoint: Path) -> None:
    """Make `latest` of a run name this checkpoint, in one step."""
    write_durably(run / LATEST, f"{checkpoint.name}\n".encode())


def put_in_place(attempt: Path, folder: Path, force: bool) -> None:
    """Give a finished attempt its name. What was there, when `force`, is removed after that.

    Raises CheckpointError when something is there, and `force` is not given.
    """
    if not force and folder.exists():
        raise exists(folder)
    if not folder.exists():
        os.rename(attempt, folder)
        flush(folder.parent)
        return
    if _exchange(attempt, folder):
        flush(folder.parent)
        remove(attempt)
        return
    aside = attempt.with_suffix(".old")  # killed between the two renames: remove_dead_attempts puts it back
    os.rename(folder, aside)
    os.rename(attempt, folder)
    flush(folder.parent)
    remove(aside)


def check_destination(folder: Path, force: bool) -> None:
    """Raise CheckpointError unless a checkpoint may be put at `folder`.

    Even `force` replaces only a checkpoint or an empty folder.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if not force:
        raise exists(folder)
    if folder.is_symlink() or not folder.is_dir() or not ((folder / MANIFEST).is_file() or not any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not a checkpoint", "choose another destination")


def exists(folder: Path) -> CheckpointError:
    """The error for a destination that is taken."""
    return CheckpointError(f"{folder} exists", "choose another destination, or give --force to replace it")


def delete(checkpoint: Path) -> None:
    """Remove a checkpoint: gone by one rename, then unlinked."""
    aside = attempt_path(checkpoint, new_attempt(), "deleted")
    os.rename(checkpoint, aside)
    flush(checkpoint.parent)
    remove(aside)


def remove(folder: Path) -> None:
    """Unlink a folder that no name leads to any more."""
    shutil.rmtree(folder)


def dead_attempts(run: Path) -> list[Path]:
    """What interrupted saves and deletions left in a folder. An attempt that is still alive is not among them."""
    found = []
    for path in sorted(run.iterdir()):
        if _LEFT_OVER.fullmatch(path.name) is None or path.is_symlink() or not path.is_dir():
            continue
        if any(each.name not in _OURS and not _SIDECAR.fullmatch(each.name) for each in path.iterdir()):
            continue  # someone else's
        if (fd := lock(path)) is not None:
            os.close(fd)
            found.append(path)
    return found


def remove_dead_attempts(run: Path) -> list[Path]:
    """Remove what interrupted saves and deletions left; returns what was removed.

    A checkpoint that was set aside, and never replaced, is put back.
    """
    removed = []
    for path in dead_attempts(run):
        match = _LEFT_OVER.fullmatch(path.name)
        assert match is not None
        place = path.with_name(match["name"])
        if match["kind"] == "old" and not place.exists():
            os.rename(path, place)
            flush(run)
            continue
        remove(path)
        removed.append(path)
    return removed


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; False where the system cannot."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    here = -100  # AT_FDCWD
    if call(here, os.fsencode(first), here, os.fsencode(second), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(second))
