"""Runs a reader over thousands of damaged files, in a process that is measured, and says what went wrong.

A case may end in a NeoxkitError, or in a read that its check finds right. Everything else is a
finding: another exception, a signal, more seconds than a case may take, more memory than its files
are large, a file opened or changed outside its folder, a program or a connection started.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import mmap
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Protocol

from neoxkit.errors import NeoxkitError

MORE = float(os.environ.get("NEOXKIT_FUZZ", "1"))
"""Set it to 10 for ten times the cases."""

SECONDS = 5.0
"""Of processor time that a case may take; it takes some milliseconds."""

_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a file system that forgets quickly
_PATIENCE = 60.0  # seconds at one case, until it is taken to hang

ROOM = 24 << 20
"""Bytes of memory that a case may take beyond the size of its files."""

_ADDRESSES = 2 << 30  # of virtual memory that a batch may take: a wild allocation fails at once
_FORBIDDEN = re.compile(
    r"os\.(system|exec|posix_spawn|fork|remove|rename|rmdir|mkdir|link|symlink|truncate|chmod)|subprocess\.|shutil\."
    r"|socket\.|pty\.|ctypes\.dlopen|pickle\.find_class"
)
_LIBRARIES = tuple({os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, os.path.dirname(os.__file__))})
_SOURCES = str(Path(__file__).resolve().parents[1])


@dataclass
class Tally:
    """What came of a batch: how many cases were read and refused, and what is wrong."""

    read: int = 0
    refused: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def cases(self) -> int:
        """All of them."""
        return self.read + self.refused + len(self.findings)


class Target(Protocol):
    """What is damaged, and how it is read."""

    def make(self, dice: Random, folder: Path) -> str:
        """Put damaged files into a folder, where those of the case before lie; returns what was done.

        Beside the folder lies a file `secret`, which is nobody's business.
        """

    def read(self, folder: Path) -> None:
        """Read them, and check what was read. Raises NeoxkitError, or WrongReadError."""


class WrongReadError(Exception):
    """What was read is not what the files hold."""


def count(cases: int) -> int:
    """So many cases, or as many times more as were asked for."""
    return max(1, int(cases * MORE))


def fuzz(target: Target, cases: int, seed: int = 0, room: int = ROOM) -> Tally:
    """Run so many cases, each in the same folder with dice of its own, in a process of its own."""
    with tempfile.TemporaryDirectory(dir=_MEMORY) as here, mmap.mmap(-1, 64) as shared:
        report = Path(here, "report.json")
        child = os.fork()
        if child == 0:
            _in_child(target, cases, seed, room, Path(here), report, shared)
        status = _await(child, shared)
        at = f"case {int.from_bytes(shared[:8], 'little')} of seed {seed}"
        if status is None:
            return Tally(findings=[f"{at}: never ends"])
        if not report.exists():
            said = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {status}"
            return Tally(findings=[f"{at}: the process died of {said}"])
        found = json.loads(report.read_text())
        return Tally(found["read"], found["refused"], found["findings"])


def replay(target: Target, number: int, folder: Path, seed: int = 0) -> None:
    """Run one case here and now, to look at it with a debugger."""
    folder.mkdir(exist_ok=True, parents=True)
    print(target.make(_dice(seed, number), folder))
    target.read(folder)


def _dice(seed: int, number: int) -> Random:
    return Random(seed * 1_000_003 + number)


def _await(child: int, shared: mmap.mmap) -> int | None:
    """How a process ended; None when it stayed at one case for too long, and was killed."""
    last, since = b"", time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        if shared[:8] != last:
            last, since = shared[:8], time.monotonic()
        elif time.monotonic() - since > _PATIENCE:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.01)


def _in_child(target: Target, cases: int, seed: int, room: int, here: Path, report: Path, shared: mmap.mmap) -> None:
    """Run the cases, write the tally, and end without a word."""
    gc.freeze()  # what tests before left behind may wait, as it goes, for threads that are not in a fork
    try:
        tally = _run(target, cases, seed, room, here / "case" / "c", shared)
        report.write_text(json.dumps({"read": tally.read, "refused": tally.refused, "findings": tally.findings}))
        os._exit(0)
    except BaseException:  # noqa: BLE001  # the fork must not go on as a second pytest
        report.write_text(json.dumps({"read": 0, "refused": 0, "findings": [traceback.format_exc()]}))
        os._exit(1)


def _run(target: Target, cases: int, seed: int, room: int, folder: Path, shared: mmap.mmap) -> Tally:
    import torch

    torch.set_num_threads(1)
    faulthandler.disable()
    warnings.simplefilter("ignore")  # as users run it; pytest makes errors of them
    signal.signal(signal.SIGVTALRM, _too_long)
    said_to = os.open(os.devnull, os.O_WRONLY)
    os.dup2(said_to, 2)  # warnings of what is passed over
    folder.mkdir(parents=True)
    (folder.parent / "secret").write_text("not for readers")
    tally, guard = Tally(), Guard(folder)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + _ADDRESSES, most))
    for number in range(min(4, cases)):  # imports what the first cases import, before anything is measured
        target.make(_dice(seed, number), folder)
        with suppress(Exception):  # it will come again
            target.read(folder)
    sys.addaudithook(guard)
    for number in range(cases):
        shared[:8] = number.to_bytes(8, "little")
        how = target.make(_dice(seed, number), folder)
        guard.seen.clear()
        before = _reset_peak()
        try:
            read = _one(target, folder, guard)
            taken = _status("VmHWM") - before
            if guard.seen:
                raise WrongReadError(f"it did {sorted(guard.seen)[:3]}")
            if taken > room and taken > room + _size(folder):
                raise WrongReadError(f"it took {taken:,} bytes of memory")
        except Exception as error:  # noqa: BLE001  # whatever it is, it is a finding
            last = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {str(error)[:300]}"
            tally.findings.append(f"case {number} of seed {seed}: {how}: {what}")
            continue
        tally.read += read
        tally.refused += not read
    return tally


def _one(target: Target, folder: Path, guard: Guard) -> bool:
    """Whether a case was read; False when it was refused in words. Raises what is a finding."""
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    guard.on = True
    try:
        target.read(folder)
    except NeoxkitError as error:
        line = str(error)
        if "\n" in line or not error.cause or not error.remedy:
            raise WrongReadError(f"an error of several lines, or without a remedy: {line!r}") from error
        for cause in _causes(error):
            if isinstance(cause, MemoryError) or "allocat" in str(cause):
                raise WrongReadError(f"it asked for too much memory: {cause}") from error
        return False
    finally:
        guard.on = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return True


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause = error.__cause__ or error.__context__
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _too_long(number: int, frame: object) -> None:
    raise WrongReadError(f"it took more than {SECONDS} seconds")


class Guard:
    """An audit hook that notes what a reader has no business to do."""

    def __init__(self, folder: Path) -> None:
        self.folder = os.path.realpath(folder)
        self.on = False
        self.seen: set[str] = set()

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        """Note what is forbidden: all but reading files of the folder, and of the installation."""
        if not self.on:
            return
        if event == "open" and isinstance(args[0], str | bytes):
            self._opened(os.path.realpath(os.fsdecode(args[0])), args[1], args[2])
        elif _FORBIDDEN.match(event):
            self.seen.add(f"{event} {args!r:.100}")

    def _opened(self, path: str, mode: object, flags: object) -> None:
        ours = path == self.folder or path.startswith(self.folder + os.sep)
        read_only = (isinstance(mode, str) and not set(mode) & set("wax+")) or (
            mode is None and isinstance(flags, int) and not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        if not read_only:
            self.seen.add(f"write {path}")
        elif not ours and not path.startswith((*_LIBRARIES, _SOURCES, "/sys/", "/dev/null")):
            self.seen.add(f"open {path}")


def _reset_peak() -> int:
    """Begin to measure anew; returns the bytes in memory now."""
    gc.collect(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmHWM")


def _status(name: str) -> int:
    """A line of this process's status, in bytes."""
    text = Path("/proc/self/status").read_text()
    match = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    assert match is not None
    return int(match[1]) << 10


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*"))
