"""Attempts: folders that are written aside, and get their name once they are whole. No torch.

An attempt is the folder .NAME.ATTEMPT.partial beside NAME. It holds `neoxkit.lock`, a file which says
that it is ours and, while it is locked, alive; `files`, which becomes NAME by one rename; and, where
names cannot be swapped, for a moment `old`, which was NAME before. Deleting moves NAME into such a folder,
called .NAME.ATTEMPT.deleted. What an interrupted command leaves, the next that writes there removes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from neoxkit.checkpoint.folder import LEFT_OVER, flush, write_durably
from neoxkit.checkpoint.output import OutputFile, disk
from neoxkit.checkpoint.store import Place, StorePath
from neoxkit.errors import CheckpointError
from neoxkit.log import note

LOCK, FILES, OLD = "neoxkit.lock", "files", "old"
_PATIENCE = 10.0  # seconds that a lock is tried for: others hold it only while they look, or remove
_WAIT = 1800.0  # seconds that rank 0 waits for the other ranks' files
_TRIES = 10  # to remove what others are just leaving
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux's renameat2

Objection = Callable[[Place], "str | None"]
"""Why a folder may not be replaced ("is not a checkpoint"); None when it may."""


class Attempt:
    """A folder in the making. Its files go to `path`; `commit` names it, `abort` removes it.

    Even `force` replaces only an empty folder, and one that `objection` has nothing against. Of
    several ranks, which share a `name`, rank 0 makes, commits and removes.
    """

    def __init__(
        self, folder: Path, objection: Objection, force: bool = False, name: str | None = None, rank: int = 0
    ) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.name = name or secrets.token_hex(3)
        self._home = home_of(self.folder, self.name)
        self.path = self._home / FILES
        self._force, self._objection, self._rank = force, objection, rank
        self._lock: int | None = None

    def make(self, need: int) -> None:
        """Make the folder, for `need` bytes, after removing what interrupted attempts left.

        Raises CheckpointError when it may not be put there, the disk has not the room, or the system
        refuses.
        """
        parent = self.folder.parent
        if self._rank != 0:
            with disk(self.folder, need):
                self.path.mkdir(parents=True, exist_ok=True)
                (self._home / LOCK).touch()  # should rank 0 never come, this is known for an attempt, and dead
            return
        check_destination(self.folder, self._force, self._objection)
        with disk(self.folder, need):
            parent.mkdir(parents=True, exist_ok=True)
            for dead in remove_dead_attempts(parent, self._home):
                note(f"removed {dead}, which an interrupted save or deletion left")
            free = shutil.disk_usage(parent).free
            if need > free:
                raise CheckpointError(
                    f"{self.folder}: needs {need} bytes, and the disk has {free} free", "free some, or save elsewhere"
                )
            self._lock = _hold(self._home)
            self.path.mkdir(exist_ok=True)

    def output(
        self,
        name: str,
        tensors: Mapping[str, tuple[str, tuple[int, ...]]],
        items: Mapping[str, int],
        metadata: Mapping[str, str],
    ) -> OutputFile:
        """A new file of tensors. See OutputFile."""
        return OutputFile(self.path / name, tensors, items, metadata)

    def save(self, name: str, data: bytes) -> None:
        """Put a small file on stable storage."""
        file = self.path / name
        with disk(file, len(data)):
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())

    def share(self, rank: int, told: Mapping[str, Any]) -> None:
        """Say, in a sidecar, what a rank wrote: {"files": {path: [bytes, crc]}, ...}. All of it is durable then."""
        for folder in sorted({(self.path / path).parent for path in told["files"]}):
            flush(folder)
        with disk(self.path, 0):
            write_durably(self.path / _sidecar(rank), json.dumps(told).encode())

    def gather(self, world: int) -> list[dict[str, Any]]:
        """What each rank wrote. Waits for it.

        Raises CheckpointError when a rank does not come, or a file has not the size that it said.
        """
        found = [self._await(self.path / _sidecar(rank)) for rank in range(world)]
        for told in found:
            for path, (size, _) in told["files"].items():
                if (self.path / path).stat().st_size != size:
                    raise CheckpointError(
                        f"{self.path / path}: not {size} bytes, as its writer said",
                        "nothing was saved; please report this as a bug",
                    )
        with disk(self.folder, 0):
            for rank in range(world):
                (self.path / _sidecar(rank)).unlink()
        return found

    def _await(self, path: Path) -> Any:
        until = time.monotonic() + _WAIT
        while not path.exists():
            if time.monotonic() > until:
                raise CheckpointError(f"{path}: a rank did not finish in {_WAIT:.0f} s", "look at that rank's log")
            time.sleep(0.05)
        told = json.loads(path.read_bytes())
        if "failed" in told:
            raise CheckpointError(f"another rank could not write: {told['failed']}", "nothing was saved")
        return told

    def give_up(self, rank: int, reason: str) -> None:
        """Say, in the sidecar, that a rank could not write, so that rank 0 does not wait for it."""
        with suppress(OSError):  # then rank 0 waits in vain, and says so
            write_durably(self.path / _sidecar(rank), json.dumps({"failed": reason}).encode())

    def commit(self, last: str, data: bytes) -> None:
        """Write the last file, and give all of them their name. What was there, when `force`, is removed after that.

        Raises CheckpointError when something is there that may not be replaced.
        """
        with disk(self.folder, len(data)):
            write_durably(self.path / last, data)
            self._name_files()

    def _name_files(self) -> None:
        assert self._lock is not None, "rank 0 commits, once"
        check_destination(self.folder, self._force, self._objection)
        if not self.folder.exists():
            os.rename(self.path, self.folder)
        elif not _exchange(self.path, self.folder):
            os.rename(self.folder, self._home / OLD)  # killed after this: remove_dead_attempts puts it back
            os.rename(self.path, self.folder)
        flush(self.folder.parent)
        self.abort()

    def abort(self) -> None:
        """Remove what is left of the attempt; on ranks other than 0, and after a commit, nothing."""
        if self._lock is not None:
            _clear(self._home)
            os.close(self._lock)
            self._lock = None


def _sidecar(rank: int) -> str:
    return f".rank-{rank:05d}.json"


def home_of(folder: Path, name: str, kind: str = "partial") -> Path:
    """Where the attempt called `name` to write, or delete, `folder` keeps its files."""
    return folder.with_name(f".{folder.name}.{name}.{kind}")


def check_destination(folder: Place, force: bool, objection: Objection) -> None:
    """Raise CheckpointError unless something may be put at `folder`.

    Even `force` replaces only an empty folder, and one that `objection` has nothing against.
    """
    remote = isinstance(folder, StorePath)
    if not (folder.exists() if remote else os.path.lexists(folder)):
        return
    if not force:
        raise CheckpointError(f"{folder} exists", "choose another destination, or give --force to replace it")
    if folder.is_symlink():
        why: str | None = "is not a folder but a link"
    elif not folder.is_dir():
        why = "is not a folder"
    else:
        why = objection(folder) if any(folder.iterdir()) else None
    if why is not None:
        raise CheckpointError(f"{folder} exists and {why}", "choose another destination")


def delete(folder: Path) -> None:
    """Remove a checkpoint: gone by one rename, then unlinked."""
    home = home_of(folder, secrets.token_hex(3), "deleted")
    fd = _hold(home)
    try:
        os.rename(folder, home / FILES)
        flush(folder.parent)
        _clear(home)
    finally:
        os.close(fd)


def dead_attempts(parent: Place) -> list[Path]:
    """What interrupted commands left in a folder. An attempt that is still alive is not among them.

    Of a store none: what is left there cannot be seen.
    """
    if isinstance(parent, StorePath):
        return []
    found = []
    for home in _left_over(parent):
        fd = _lock(home, fcntl.LOCK_SH)
        if fd is not None:
            os.close(fd)
        if fd is not None or _names(home) == []:
            found.append(home)
    return found


def remove_dead_attempts(parent: Path, own: Path | None = None) -> list[Path]:
    """Remove what interrupted commands left, but for `own`, which other ranks write to; returns what was removed.

    A folder that was set aside, and never replaced, is put back.
    """
    removed = []
    for home in _left_over(parent):
        if home == own:
            continue
        fd = _lock(home, fcntl.LOCK_EX)
        if fd is not None:
            try:
                if _clear(home):
                    removed.append(home)
            finally:
                os.close(fd)
        elif _names(home) == []:  # killed before it could be locked
            with suppress(OSError):  # somebody has just begun to use it, or removed it
                home.rmdir()
                removed.append(home)
    return removed


def _left_over(parent: Path) -> list[Path]:
    """The attempts in a folder, alive or dead: named as one, and with our lock in it, or empty."""
    named = [path for path in sorted(parent.iterdir()) if LEFT_OVER.fullmatch(path.name)]
    folders = [path for path in named if path.is_dir() and not path.is_symlink()]
    return [
        path for path in folders if (names := _names(path)) == [] or {LOCK} <= set(names or ()) <= {LOCK, FILES, OLD}
    ]


def _names(home: Path) -> list[str] | None:
    """What is in an attempt; None when it is gone, or nobody's business."""
    try:
        return os.listdir(home)
    except (FileNotFoundError, PermissionError):
        return None


def _hold(home: Path) -> int:
    """Make an attempt's folder and lock it; returns the descriptor that holds the lock.

    Another process that looks whether it is alive, or takes it for dead and removes it, is waited for.
    """
    until = time.monotonic() + _PATIENCE
    while True:
        home.mkdir(exist_ok=True)
        fd = _lock(home, fcntl.LOCK_EX, os.O_CREAT)
        if fd is not None:
            return fd
        if time.monotonic() > until:
            raise CheckpointError(f"{home}: another process holds {LOCK}", "try again")
        time.sleep(0.01)


def _lock(home: Path, kind: int, create: int = 0) -> int | None:
    """A descriptor that holds an attempt's lock until it is closed; None when it cannot be had now, or is gone."""
    mode = os.O_RDONLY if kind == fcntl.LOCK_SH else os.O_RDWR  # NFS asks for it
    try:
        fd = os.open(home / LOCK, mode | os.O_NOFOLLOW | create, 0o666)
    except FileNotFoundError:
        return None
    except PermissionError:
        if create:
            raise
        return None
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.stat(home / LOCK)):
            return fd
    except FileNotFoundError:
        pass  # removed by another, who held it until then
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(fd)
            raise
    os.close(fd)
    return None


def _clear(home: Path) -> bool:
    """Remove an attempt that is locked, its lock last; False when it held what was set aside, which is put back."""
    match = LEFT_OVER.fullmatch(home.name)
    assert match is not None
    place = home.with_name(match["name"])
    put_back = (home / OLD).exists() and not os.path.lexists(place)
    if put_back:
        os.rename(home / OLD, place)
        flush(home.parent)
    for path in home.iterdir():
        if path.name != LOCK:
            _remove(path)
    (home / LOCK).unlink()
    with suppress(FileNotFoundError):  # once it is empty, others may take it for dead
        home.rmdir()
    return not put_back


def _remove(folder: Path) -> None:
    """Remove a folder in which other ranks may still put a last file, or remove one."""
    for attempt in range(_TRIES):
        try:
            shutil.rmtree(folder)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY) or attempt == _TRIES - 1:
                raise
        if not folder.exists():
            return


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
