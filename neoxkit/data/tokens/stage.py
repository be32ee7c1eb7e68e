"""Files written aside and moved into place together, so that nobody sees half of them."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from neoxkit.checkpoint.folder import flush as flush_names
from neoxkit.errors import DataError


class Stage:
    """A set of files and folders in the making; leaving the `with` without `commit` removes them.

    The last target that `path` was asked for is the last to appear, so ask for the one that readers
    open first last.
    """

    def __init__(self, targets: Sequence[Path], force: bool = False) -> None:
        """Look at what is to be written. Raises DataError when it cannot be, or is there without `force`."""
        self._force = force
        for target in targets:
            if not target.parent.is_dir():
                raise DataError(f"{target.parent}: no such folder, to write {target.name} in", "make it first")
            self._refuse_present(target)
        self._attempt = secrets.token_hex(4)
        self._moves: list[tuple[Path, Path]] = []

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.abort()

    def path(self, target: Path) -> Path:
        """Where to write what will be `target`: beside it, on the same file system."""
        aside = target.with_name(f".{target.name}.{self._attempt}.partial")
        self._moves.append((aside, target))
        return aside

    def commit(self) -> None:
        """Flush everything to stable storage and move it into place.

        What is replaced is removed first, last target first: killed in between, a reader finds
        something missing, never a mixture of old and new.
        """
        for aside, _ in self._moves:
            flush(aside)
        for _, target in reversed(self._moves):
            self._refuse_present(target)
            remove(target)
        for aside, target in self._moves:
            os.rename(aside, target)
        for folder in {target.parent for _, target in self._moves}:
            flush_names(folder)
        self._moves.clear()

    def _refuse_present(self, target: Path) -> None:
        if target.exists() and not self._force:
            raise DataError(f"{target} exists", "give --force to replace it, or write elsewhere")

    def abort(self) -> None:
        """Remove what was written aside. After commit there is nothing left to remove."""
        for aside, _ in self._moves:
            remove(aside)
        self._moves.clear()


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let the system's error name a path: those of writing and closing a file, on a full disk say, name none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def remove(path: Path) -> None:
    """Remove a file or a folder; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file, or every file of a folder, to stable storage."""
    if path.is_dir():
        for inner in path.iterdir():
            flush(inner)
        flush_names(path)
        return
    with path.open("rb+") as file:
        os.fsync(file.fileno())
