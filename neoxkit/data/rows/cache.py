"""Index arrays kept on disk: made once, by whoever comes first, and mapped by all others.

What is kept is found by a hash of all that it depends on, so what depends on something else is never taken for it. A
folder of arrays appears whole, by a rename. Many processes and nodes may begin at once, with a shared file system or
without: a lock lets those of a node wait for the first; where locks do not work, each makes the same and one is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neoxkit.checkpoint.folder import flush as flush_names

Arrays = Mapping[str, npt.NDArray[Any]]

KEY = "key.txt"
"""The file of a folder that has the key, and in a second line the names of the arrays."""

LARGE = 1 << 20
"""From so many documents on an index is kept where nobody said where: to make a smaller one takes no time."""


class Cache:
    """A folder of index arrays; with no folder, nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def arrays(self, key: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
        """The arrays of a key, mapped from disk where they can be kept; `make` is called where they were not yet.

        A folder that cannot be written is no error: the arrays are then in memory alone.
        """
        if self.folder is None:
            return make()
        text = json.dumps(key, sort_keys=True)
        place = self.folder / hashlib.sha256(text.encode()).hexdigest()[:32]
        if (found := _read(place, text)) is not None:
            return found
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(place.with_suffix(".lock")):
                if (found := _read(place, text)) is not None:
                    return found
                made = make()
                _write(place, text, made)
                return _read(place, text) or made
        except OSError:
            return make()


def _read(place: Path, text: str) -> Arrays | None:
    """The arrays, or None where they are not there, or not all of them, as after damage."""
    try:
        about, names = (place / KEY).read_text(encoding="utf-8").split("\n")
        if about != text:
            return None
        return {name: np.load(place / f"{name}.npy", mmap_mode="r") for name in names.split()}
    except (OSError, ValueError, EOFError):
        return None


def _write(place: Path, text: str, arrays: Arrays) -> None:
    aside = place.with_name(f".{place.name}.{secrets.token_hex(4)}.partial")
    aside.mkdir()
    try:
        for name, array in arrays.items():
            with (aside / f"{name}.npy").open("xb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())
        (aside / KEY).write_text(f"{text}\n{' '.join(arrays)}", encoding="utf-8")
        if _read(place, text) is not None:  # made by another node meanwhile, which has it mapped
            shutil.rmtree(aside, ignore_errors=True)
            return
        shutil.rmtree(place, ignore_errors=True)  # damaged
        os.rename(aside, place)
        flush_names(place.parent)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        if not place.is_dir():
            raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among the processes of this machine, where the file system has locks."""
    import fcntl

    with path.open("w") as file:
        with suppress(OSError):  # no locks there: several make the same
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
