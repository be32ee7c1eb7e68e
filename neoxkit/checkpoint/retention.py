"""Which checkpoints of a run are kept, and how the others go. No torch."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neoxkit.checkpoint.attempt import dead_attempts, delete, remove_dead_attempts
from neoxkit.checkpoint.folder import list_checkpoints, load_manifest, not_a_checkpoint, step_of
from neoxkit.checkpoint.format import LATEST, MANIFEST
from neoxkit.errors import CheckpointError

_IN_USE = "another process reads it"


@dataclass
class Removal:
    """What becomes of each folder of a run: why it is kept or left, or how many bytes go with it."""

    run: Path
    kept: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    invalid: dict[str, str] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    dry_run: bool = True

    @property
    def bytes(self) -> int:
        """Bytes that go."""
        return sum(self.removed.values()) + sum(self.attempts.values())

    def json(self) -> dict[str, Any]:
        """Ready for JSON.

        run        the folder
        kept       {checkpoint: why}
        left       {checkpoint: why it was not removed, although nothing keeps it}
        invalid    {checkpoint: what is wrong with it}: left, and not counted
        removed    {checkpoint: bytes}
        attempts   {folder that an interrupted command left: bytes}, removed
        bytes      all that was freed
        dry_run    whether nothing was removed, and this is what would be
        """
        found = {key: dict(getattr(self, key)) for key in ("kept", "left", "invalid", "removed", "attempts")}
        return {"run": str(self.run), **found, "bytes": self.bytes, "dry_run": self.dry_run}


def keep(
    steps: Mapping[str, int],
    last: int | None = None,
    every: int | None = None,
    latest: str | None = None,
    stays: Callable[[int], bool] = lambda step: False,
) -> dict[str, str]:
    """Which of a run's valid checkpoints are kept, and why; all, when neither `last` nor `every` is given.

    `steps` are their steps by name, oldest first. Those of which `stays` is true are kept. Of the
    others the newest `last` are, each whose step is a multiple of `every`, and the one that the file
    `latest` names; and always the newest of all.
    """
    if last is None and every is None:
        return dict.fromkeys(steps, "all are")
    names = list(steps)
    rest = [name for name, step in steps.items() if not stays(step)]
    found: dict[str, str] = {}
    for name, step in steps.items():
        reasons = {
            "the newest": name == names[-1],
            f"step {step} was asked for": name not in rest,
            f"one of the newest {last}": last is not None and name in rest[-last:],
            f"step {step} is a multiple of {every}": every is not None and step % every == 0,
            f"{LATEST} names it": name == latest,
        }
        if why := [reason for reason, holds in reasons.items() if holds]:
            found[name] = ", ".join(why)
    return found


def plan(
    run: Path,
    among: Sequence[Path],
    last: int | None = None,
    every: int | None = None,
    invalid: bool = False,
    stays: Callable[[int], bool] = lambda step: False,
) -> Removal:
    """What of `among`, checkpoints of a run by step, is kept and what goes. Nothing is removed.

    Arguments as for `keep`. Those that are not valid count for nothing; with `invalid` they go too,
    unless no valid one is there.
    """
    found = Removal(run)
    steps: dict[str, int] = {}
    broken: dict[str, str] = {}
    for path in among:
        try:
            load_manifest(path)
        except CheckpointError as error:
            broken[path.name] = error.cause.removeprefix(f"{path}/")
        else:
            steps[path.name] = step_of(path)
    latest = run / LATEST
    named = latest.read_text(errors="replace").strip() if latest.is_file() else None
    found.kept = keep(steps, last, every, named, stays)
    for path in among:
        if path.name in found.kept:
            continue
        if path.name in broken and not (invalid and steps):
            found.invalid[path.name] = broken[path.name]
        elif path.is_symlink():
            found.left[path.name] = "it is a link"
        elif (why := not_a_checkpoint(path)) is not None and (path.name in steps or not _empty(path)):
            found.left[path.name] = f"it {why}"
        elif _in_use(path):
            found.left[path.name] = _IN_USE
        else:
            found.removed[path.name] = size_of(path)
    return found


def carry_out(planned: Removal) -> Removal:
    """Remove what goes, oldest first, each by one rename before it is unlinked. What came into use since is left."""
    planned.dry_run = False
    for name in list(planned.removed):
        path = planned.run / name
        with _alone(path) as free:
            if free:
                try:
                    delete(path)
                    continue
                except FileNotFoundError:  # another was faster
                    del planned.removed[name]
                    continue
        del planned.removed[name]
        planned.left[name] = _IN_USE
    return planned


def collect(
    run: Path,
    last: int | None = None,
    every: int | None = None,
    invalid: bool = False,
    dry_run: bool = False,
) -> Removal:
    """Remove what a run no longer needs: dead attempts, and the checkpoints that `keep` does not keep.

    Raises CheckpointError when there is no such folder, it is a checkpoint itself, or it has none.
    """
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such folder", "name the folder of a run")
    if (run / MANIFEST).is_file():
        raise CheckpointError(f"{run}: a checkpoint, not the folder of a run", f"name the one above: {run.parent}")
    attempts = {home.name: size_of(home) for home in dead_attempts(run)}
    if not dry_run:
        gone = {home.name for home in remove_dead_attempts(run)}
        attempts = {name: size for name, size in attempts.items() if name in gone}
    among = list_checkpoints(run)
    if not among and not (last is None and every is None and not invalid):
        raise CheckpointError(f"{run}: it has no checkpoints", "name the folder of a run, which holds step-00000100")
    found = plan(run, among, last, every, invalid)
    found.attempts = attempts
    return found if dry_run else carry_out(found)


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def _empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _in_use(checkpoint: Path) -> bool:
    with _alone(checkpoint) as free:
        return not free


@contextmanager
def _alone(checkpoint: Path) -> Iterator[bool]:
    """Keep others from beginning to read a checkpoint; False when one reads it already. See folder.share."""
    fd = _open(checkpoint / MANIFEST)
    if fd is None:  # nobody can read it
        yield True
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EBADF):
            raise
        free = False
    try:
        yield free
    finally:
        os.close(fd)


def _open(path: Path) -> int | None:
    """A file, open to be locked; None when there is none. NFS asks for one that may be written."""
    for mode in (os.O_RDWR, os.O_RDONLY):
        try:
            return os.open(path, mode | os.O_NOFOLLOW)
        except OSError as error:
            if mode == os.O_RDONLY and error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
    return None
