"""Attempts in an object store, where no folder can be renamed: objects that become visible at the commit. No torch.

A store has no act that names several objects at once. So the commit is the last object, the manifest
(of a Hugging Face folder: config.json), without which the others are nothing that anyone reads. It is
put there only if there is none. Before that, CLAIM is put there in the same way: of several processes
that want to write to one place, one succeeds, and no two ever mix their objects.
"""

from __future__ import annotations

import inspect
import json
import secrets
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Any

from neoxkit.checkpoint.attempt import Attempt, Objection, check_destination
from neoxkit.checkpoint.folder import CLAIM
from neoxkit.checkpoint.output import OutputFile
from neoxkit.checkpoint.store import Place, StorePath, reaching
from neoxkit.checkpoint.store_output import StoreOutput, Uploads
from neoxkit.errors import CheckpointError
from neoxkit.log import note

_TAKEN = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
"""How S3 says that an object is there already, or that somebody else is just putting it there."""


class StoreAttempt:
    """A folder of a store in the making: the twin of Attempt."""

    def __init__(self, folder: StorePath, objection: Objection, force: bool = False, name: str | None = None) -> None:
        self.folder = self.path = folder
        self.name = name or secrets.token_hex(3)
        self._objection, self._force = objection, force
        self._small: dict[str, bytes] = {}
        self._names: set[str] = set()
        self._told: dict[str, Any] | None = None
        self._uploads = Uploads()
        self._stop = threading.Event()
        self._dead: bytes | None = None  # the claim of an attempt that was killed, if one is there
        self._state = "open"

    def make(self, need: int) -> None:
        """Look whether something may be put there. Raises CheckpointError when not, or the store cannot be reached."""
        self._check(self.folder)
        if (self.folder / CLAIM).is_file():
            self._dead = (self.folder / CLAIM).read_bytes()
            note(f"{self.folder}: what an interrupted command left there will be replaced")

    def _check(self, folder: StorePath) -> None:
        check_destination(folder, self._force, self._objection)

    def output(
        self,
        name: str,
        tensors: Mapping[str, tuple[str, tuple[int, ...]]],
        items: Mapping[str, int],
        metadata: Mapping[str, str],
    ) -> OutputFile:
        """A new file of tensors."""
        self._names.add(name)
        return StoreOutput(self._uploads, self.folder / name, tensors, items, metadata)

    def save(self, name: str, data: bytes) -> None:
        """Keep a small file for the commit."""
        self._names.add(name)
        self._small[name] = data

    def share(self, rank: int, told: Mapping[str, Any]) -> None:
        """Keep what the one rank wrote."""
        self._told = dict(told)

    def gather(self, world: int) -> list[dict[str, Any]]:
        """What each rank wrote: there is one."""
        assert world == 1
        assert self._told is not None
        return [self._told]

    def commit(self, last: str, data: bytes) -> None:
        """Make all of it visible, `last` at the end. Raises CheckpointError when somebody else was first.

        It is done in another thread: an interrupt must not come between the question to put an object
        there, and the answer.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="commit") as thread:
            job = thread.submit(self._commit, last, data)
            try:
                job.result()
            except BaseException:
                self._stop.set()
                wait([job])
                raise
        self.abort()

    def _commit(self, last: str, data: bytes) -> None:
        before = self.folder.again()
        if self._force or not before.tree.sizes.keys() <= self._names:  # a store may show what is not committed
            self._check(before)
        self._claim(before)
        old = set(before.tree.sizes) - {CLAIM}
        made: set[str] = set()
        try:
            if last in old:
                self._remove([last])
            made = self._names  # from here on, nothing there is anything else's
            self._uploads.complete()
            self._go_on()
            self._uploads.run([partial(self._put, name, content) for name, content in self._small.items()])
            self._go_on()
            self._remove(sorted(old - self._names - {last}))
            self._go_on()
            self._put_last(last, data)
        except BaseException:
            if self._is_ours(self.folder / last, data):  # the store took it, and could not say so
                self._remove([last])
            self._remove(sorted(made | {CLAIM}))
            raise
        self._remove([CLAIM])
        self.folder.tree.forget()

    def _put_last(self, name: str, data: bytes) -> None:
        self._create(name, data)
        self._state = "committed"

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise CheckpointError(f"{self.folder}: interrupted", "try again")

    def _claim(self, before: StorePath) -> None:
        """Be the only one to write there."""
        claim = before / CLAIM
        if claim.is_file():
            if claim.read_bytes() != self._dead:
                raise self._lost()
            self._remove([CLAIM])
        self._create(CLAIM, json.dumps({"attempt": self.name}).encode())

    def _lost(self) -> CheckpointError:
        return CheckpointError(
            f"{self.folder}: another process has just written there, or is doing so", "choose another destination"
        )

    def _put(self, name: str, data: bytes) -> None:
        path = self.folder / name
        with reaching(str(path)):
            try:
                path.tree.fs.pipe_file(path.key, data)
            except FileNotFoundError:  # a store with real folders
                path.tree.fs.makedirs(path.parent.key, exist_ok=True)
                path.tree.fs.pipe_file(path.key, data)

    def _create(self, name: str, data: bytes) -> None:
        """Put a small object there, if there is none of the name. Raises CheckpointError when there is one."""
        path = self.folder / name
        try:
            with reaching(str(path)):
                self._create_in(path)(data)
        except (FileExistsError, CheckpointError) as error:
            if isinstance(error, CheckpointError) and _code(error) not in _TAKEN:
                raise
            if self._is_ours(path, data):  # the answer to a first request was lost, and the library asked again
                return
            raise self._lost() from error

    def _create_in(self, path: StorePath) -> Callable[[bytes], object]:
        """How the store puts an object where there is none. Not every store can, in one act."""
        fs, key = path.tree.fs, path.key
        if "mode" in inspect.signature(getattr(fs, "_pipe_file", fs.pipe_file)).parameters:
            return partial(fs.pipe_file, key, mode="create")
        if fs.exists(key):
            raise FileExistsError(key)
        return partial(fs.pipe_file, key)

    def _is_ours(self, path: StorePath, data: bytes) -> bool:
        try:
            return path.fetch() == data
        except FileNotFoundError:
            return False

    def _remove(self, names: list[str]) -> None:
        self._uploads.run([partial(self._remove_one, self.folder / name) for name in names])

    def _remove_one(self, path: StorePath) -> None:
        try:
            with reaching(str(path)):
                path.tree.fs.rm_file(path.key)
        except FileNotFoundError:
            pass

    def abort(self) -> None:
        """Forget what was sent. After a commit, nothing."""
        if self._state == "closed":
            return
        self._state = "closed"
        self._uploads.abort()
        self._uploads.close()


def attempt_at(
    folder: Place, objection: Objection, force: bool = False, name: str | None = None, rank: int = 0
) -> Attempt | StoreAttempt:
    """An attempt to write a folder of a disk, or of a store."""
    if not isinstance(folder, StorePath):
        return Attempt(folder, objection, force, name, rank)
    assert rank == 0, "one process alone writes to a store"
    return StoreAttempt(folder, objection, force, name)


def _code(error: BaseException) -> str | None:
    """The code of S3's answer that an error comes from."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code"))
        cause = cause.__cause__
    return None
