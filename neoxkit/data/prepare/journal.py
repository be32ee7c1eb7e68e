"""Work in progress that outlives a kill: a folder `.NAME.partial` beside what is being made.

It holds the files so far, `request.json` (what was asked), and `state.json` (how much of each file counts, and
where reading goes on). Files are flushed before the state that counts on them is put in place by a rename,
so whenever a process is killed, the state speaks of bytes that are there; what lies after them is cut off.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from neoxkit.checkpoint.folder import flush as flush_names
from neoxkit.data.tokens.stage import flush, remove
from neoxkit.errors import DataError

EVERY = 5.0  # seconds between states: what a kill costs at most, and a second's work of flushing at worst

TRAINED = "tokenizer"
"""The folder that holds the tokenizer which was trained: whole, once it is there."""
_REQUEST, _STATE, _LOCK = "request.json", "state.json", "lock"


class Journal:
    """The work on one prefix, of one process at a time.

    `state` is what an interrupted process left, None when there was none. Raises DataError when another
    process is at work, or the work there is of another request and `force` is not given.
    """

    def __init__(
        self, prefix: Path, request: Mapping[str, Any], force: bool, behind: Callable[[Mapping[str, Any]], str]
    ) -> None:
        """`behind` gives a hash of the inputs that a state is behind with, as they are now: others may have changed."""
        self.folder = prefix.with_name(f".{prefix.name}.partial")
        self.folder.mkdir(exist_ok=True)
        self._lock = (self.folder / _LOCK).open("ab")
        self._files: dict[str, BinaryIO] = {}
        try:
            self._take(prefix)
            self.state = self._left(prefix, request, force, behind)
        except BaseException:
            self._lock.close()
            raise
        self._saved = time.monotonic()

    def _take(self, prefix: Path) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise DataError(f"another process is writing {prefix}", "wait for it, or give another prefix") from None

    def _left(
        self, prefix: Path, request: Mapping[str, Any], force: bool, behind: Callable[[Mapping[str, Any]], str]
    ) -> dict[str, Any] | None:
        """What is left of the same request; of another one, nothing."""
        asked = json.loads(json.dumps(request))
        state = _read(self.folder / _STATE)
        before = _read(self.folder / _REQUEST)
        if state is not None and before == asked:
            return state
        ahead = "behind" in (state or {}) and before is not None and {**before, "inputs": asked["inputs"]} == asked
        if state is not None and ahead and state["behind"] == behind(state):
            _write(self.folder / _REQUEST, asked)
            return state
        if self.keeps and before is not None and before != asked and not force:
            changed = ", ".join(sorted(key for key in {*asked, *before} if asked.get(key) != before.get(key)))
            raise DataError(
                f"{self.folder} holds the work of an interrupted command that differs in: {changed}",
                f"repeat that command to go on with it, or give --force to begin {prefix} anew",
            )
        same = before == asked
        for path in self.folder.iterdir():
            if path.name not in (_LOCK, *([TRAINED] if same else [])):
                remove(path)
        _write(self.folder / _REQUEST, asked)
        return None

    @property
    def keeps(self) -> bool:
        """Whether there is work that the same request would go on with."""
        return (self.folder / _STATE).exists() or (self.folder / TRAINED).exists()

    @property
    def saved(self) -> bool:
        """Whether there is a state to go on from."""
        return (self.folder / _STATE).exists()

    @property
    def moving(self) -> bool:
        """Whether all that is left to do is `move`."""
        return self.state is not None and "moves" in self.state

    def path(self, name: str) -> Path:
        """A file of the work."""
        return self.folder / name

    def append(self, name: str) -> BinaryIO:
        """A file to be appended to, cut to what the state counts."""
        file = (self.folder / name).open("ab")
        self._files[name] = file
        length = (self.state or {}).get("lengths", {}).get(name, 0)
        if os.fstat(file.fileno()).st_size < length:
            raise DataError(f"{self.folder / name} is shorter than it was", "give --force to begin anew")
        file.truncate(length)
        file.seek(length)
        return file

    def due(self) -> bool:
        """Whether it is time for a new state."""
        return time.monotonic() - self._saved >= EVERY

    def save(self, state: Mapping[str, Any]) -> None:
        """Put the files so far, and then a state that counts on them, on stable storage."""
        lengths = {}
        for name, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            lengths[name] = file.tell()
        flush_names(self.folder)
        _write(self.folder / _STATE, {**state, "lengths": lengths})
        self._saved = time.monotonic()

    def close(self) -> None:
        """Let go of the files and of the lock; what was done since the last state is done again.

        Without a state the work is removed.
        """
        if self.folder.exists() and not self.keeps:
            self.remove()
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._lock.close()

    def remove(self) -> None:
        """Remove the work, its state last: killed in between, the next call does what is left."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        for path in sorted(self.folder.iterdir(), key=lambda path: (path.name == _LOCK, path.name == _STATE)):
            remove(path)
        self.folder.rmdir()
        self._lock.close()

    def finish(
        self, moves: Mapping[str, Path], force: bool, state: Mapping[str, Any], left_out: Collection[str] = ()
    ) -> None:
        """Let files of the work appear as their targets, in this order: killed in between, the next call goes on.

        What is replaced is removed first, last target first, so that nobody sees a mixture of old and new; the
        targets of `left_out` are removed alone.
        """
        for file in self._files.values():
            file.close()
        self._files.clear()
        refuse_present(moves.values(), force)
        wanted = {name: str(target) for name, target in moves.items() if name not in left_out}
        for name in wanted:
            flush(self.folder / name)
        self.state = {**state, "moves": wanted, "gone": [str(moves[name]) for name in left_out], "force": force}
        _write(self.folder / _STATE, self.state)
        self.move()

    def move(self) -> None:
        """Do what `finish` had begun."""
        assert self.state is not None
        moves = {self.folder / name: Path(target) for name, target in self.state["moves"].items()}
        left = {source: target for source, target in moves.items() if source.exists()}
        refuse_present(left.values(), self.state["force"])
        if len(left) == len(moves):
            for target in (*map(Path, self.state.get("gone", ())), *reversed(moves.values())):
                remove(target)
        for source, target in left.items():
            _rename(source, target)
        for folder in {target.parent for target in moves.values()}:
            flush_names(folder)
        self.remove()


def refuse_present(targets: Iterable[Path], force: bool) -> None:
    """Raise DataError when a target is there and is not to be replaced."""
    for target in targets:
        if target.exists() and not force:
            raise DataError(f"{target} exists", "give --force to replace it, or write elsewhere")


def _rename(source: Path, target: Path) -> None:
    """Rename; a file that is wanted on another file system is copied beside its target first."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        aside = target.with_name(f".{target.name}.partial")
        shutil.copyfile(source, aside)
        flush(aside)
        os.rename(aside, target)
        source.unlink()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found


def _write(path: Path, content: Mapping[str, Any]) -> None:
    aside = path.with_suffix(".new")
    with aside.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(aside, path)
    flush_names(path.parent)
