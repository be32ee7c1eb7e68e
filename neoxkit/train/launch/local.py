"""The processes of a job that run on this machine: started, watched, told of signals, and ended together."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, NoReturn

from neoxkit.errors import ConfigError
from neoxkit.log import note
from neoxkit.machine import cores
from neoxkit.train.launch.commands import NODE, NODES
from neoxkit.train.launch.environment import CHILD, PORT, Place
from neoxkit.train.launch.hosts import parse

if TYPE_CHECKING:
    from neoxkit.config.run import RunConfig

SAID = "NEOXKIT_SAID"
"""For a process that neoxkit started: the file for the line it ends with, when it ends with an error."""

ATTEMPT = "NEOXKIT_ATTEMPT"
"""For a process that neoxkit started: how often the job was started again."""

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

STOPPED = tuple(128 + number for number in FORWARDED)
"""Exit codes of a process that was told to stop, and stopped in order."""

USERS_ERROR = 2

GRACE = 2.0
"""Seconds in which the others may fail by themselves of what one failed of, before they are told to end."""

PATIENCE = 8.0
"""Seconds between telling a process to end and killing it: one that waits for a dead rank hears nothing."""

STRAGGLING = 45.0
"""Seconds that the rest of a job that was stopped in order may take when some have ended."""

LOOK = 0.05
"""Seconds between looks at the processes."""

KEPT_LINES, KEPT_CHARACTERS = 200, 2000
"""What is kept of the stderr of a rank that is not shown: its last lines, and so much of each."""


@dataclass(frozen=True, slots=True)
class Share:
    """The ranks of a job that this machine runs: `count` of `world`, from `first` on.

    `devices` are the GPUs they may use; None leaves that as it is. Without a port, which only a job of
    one machine may lack, a free one is taken.
    """

    count: int
    first: int = 0
    world: int | None = None
    address: str = "127.0.0.1"
    port: int | None = None
    devices: tuple[int, ...] | None = None

    @property
    def whole(self) -> bool:
        """Whether it is the whole job."""
        return self.world in (None, self.count)

    def environment(self, index: int, port: int) -> dict[str, str]:
        """What torchrun would set for the process `index` of this machine."""
        told = {
            "RANK": str(self.first + index),
            "WORLD_SIZE": str(self.world or self.count),
            "LOCAL_RANK": str(index),
            "LOCAL_WORLD_SIZE": str(self.count),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(port),
        }
        if self.devices is not None:
            told["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, self.devices))
        return told


def share_of(
    config: RunConfig, nproc: int | None, place: Place | None, environ: Mapping[str, str], watched: bool
) -> Share | None:
    """The ranks that this process starts on its machine; None when it is itself the rank to run.

    `nproc` is what the user asks for. A process that pdsh started is told what to start; one that
    another launcher started starts others when it is asked to, and is the only one of its machine.
    Without either it starts the whole job; `watched` is to start even a single rank, and watch it.

    Raises ConfigError when the mesh does not fit.
    """
    machine = this_machine(environ)
    if machine is not None:
        return machine
    if place is not None:
        if nproc is None or place.by == "neoxkit":
            return None
        config.on(place.world * nproc)
        return Share(nproc, place.rank * nproc, place.world * nproc, place.address, place.port)
    count = nproc or processes(config)
    config.on(count)
    return Share(count) if count > 1 or watched else None


def this_machine(environ: Mapping[str, str]) -> Share | None:
    """The ranks of this machine, where `--launcher pdsh` tells them; None elsewhere, and in the ranks themselves."""
    if NODES not in environ or CHILD in environ:
        return None
    hosts, number = parse(environ[NODES]), int(environ[NODE])
    counts = [len(host.devices) for host in hosts]
    return Share(
        counts[number],
        sum(counts[:number]),
        sum(counts),
        environ["MASTER_ADDR"],
        int(environ.get("MASTER_PORT", PORT)),
        hosts[number].devices,
    )


def processes(config: RunConfig) -> int:
    """Processes that a run is started as on this machine: one for each GPU, or as many as its mesh states.

    Raises ConfigError when the mesh states more than there are GPUs.
    """
    mesh = config.mesh
    stated = mesh.model * (mesh.dp or 1)
    gpus = visible_gpus() if config.device in ("auto", "cuda") else 0
    if gpus and stated > gpus:
        raise ConfigError(f"the mesh states {stated} processes, and this machine has {gpus} GPUs", "state fewer")
    return gpus if gpus and mesh.dp is None else stated


def visible_gpus() -> int:
    """GPUs that this process can see. Where the system has no such device at all, torch is not imported to say so."""
    if sys.platform.startswith("linux"):
        devices = Path("/dev")
        if not any([*devices.glob("nvidia[0-9]*"), *devices.glob("kfd"), *devices.glob("dxg")]):
            return 0
    import torch

    return torch.cuda.device_count()


class Rank:
    """A process of the job. Only rank 0 speaks; of the others' stderr the end is kept."""

    def __init__(self, command: Sequence[str], rank: int, environ: Mapping[str, str], said: Path) -> None:
        self.rank, self._said = rank, said
        # A session of its own: Ctrl-C at a terminal reaches this process alone, which tells each rank once.
        self.popen = subprocess.Popen(
            command,
            env={**environ, SAID: str(said)},
            stdin=subprocess.DEVNULL,
            stdout=None if rank == 0 else subprocess.DEVNULL,
            stderr=None if rank == 0 else subprocess.PIPE,
            start_new_session=True,
        )
        self.kept: deque[str] = deque(maxlen=KEPT_LINES)
        self.told_to_end = False
        self._reader: threading.Thread | None = None
        if self.popen.stderr is not None:
            self._reader = threading.Thread(target=self._read, args=(self.popen.stderr,), daemon=True)
            self._reader.start()

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for line in iter(lambda: stream.readline(KEPT_CHARACTERS), b""):
                self.kept.append(line.decode(errors="replace").rstrip("\n"))

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self.popen.poll()

    @property
    def said(self) -> str:
        """The line it ended with; "" when it left none."""
        return self._said.read_text(encoding="utf-8") if self._said.exists() else ""

    def send(self, number: int) -> None:
        """Give it a signal; nothing happens when it has ended."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)

    def end(self, number: int) -> None:
        """Make it end, with all that it has started."""
        if self.popen.poll() is None:
            self.told_to_end = True
            try:
                os.killpg(self.popen.pid, number)
            except ProcessLookupError:  # between the two lines
                return

    def close(self) -> None:
        """Read what is left of its stderr. A process of its own that outlives it may hold that open: no waiting."""
        if self._reader is not None:
            self._reader.join(1.0)

    def ending(self) -> str:
        """How it ended, for a person."""
        code = self.code
        if code is None or code >= 0:
            return f"rank {self.rank} ended with exit code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = " (by hand, or for want of memory)" if -code == signal.SIGKILL else ""
        return f"rank {self.rank} was ended by {name}{hint}"


class Crew:
    """All ranks of this machine, from their start until the last has ended."""

    def __init__(self, command: Sequence[str], share: Share, environ: Mapping[str, str], folder: Path) -> None:
        port = share.port or free_port()
        shared = {**environ, CHILD: str(os.getpid())}
        if share.count > 1:
            shared.setdefault("OMP_NUM_THREADS", str(max(1, cores() // share.count)))
        self.ranks: list[Rank] = []
        self.signals = 0
        for index in range(share.count):
            told = {**shared, **share.environment(index, port)}
            self.ranks.append(Rank(command, share.first + index, told, folder / str(index)))

    def forward(self, number: int, frame: FrameType | None = None) -> None:
        """Give every rank a signal that this process got."""
        self.signals += 1
        for rank in self.ranks:
            rank.send(number)

    def watch(self) -> Rank | None:
        """Wait for the end of all. When one ends otherwise than in order, the others are ended too: that one."""
        failed: Rank | None = None
        deadline, killing = float("inf"), False
        while True:
            codes = [rank.code for rank in self.ranks]
            if None not in codes:
                return failed or self._failed()
            failed = failed or self._failed()
            now = time.monotonic()
            if failed is not None:
                deadline = min(deadline, now + GRACE)
            elif self.signals > 1:
                deadline = min(deadline, now + PATIENCE)
            elif any(code in STOPPED for code in codes):
                deadline = min(deadline, now + STRAGGLING)
            if now >= deadline:
                for rank in self.ranks:
                    rank.end(signal.SIGKILL if killing else signal.SIGTERM)
                deadline, killing = now + PATIENCE, True
            time.sleep(LOOK)

    def _failed(self) -> Rank | None:
        """A rank that ended by itself, and not in order; one that was killed before one that gave up."""
        ended = [rank for rank in self.ranks if rank.code not in (None, 0, *STOPPED) and not rank.told_to_end]
        return min(ended, key=lambda rank: (rank.code or 0) >= 0, default=None)

    def close(self) -> None:
        """Leave no process behind, whatever has happened."""
        for rank in self.ranks:
            rank.end(signal.SIGKILL)
            rank.popen.wait()
            rank.close()

    def outcome(self, failed: Rank | None) -> int:
        """The job's exit code: that of the rank that failed, as shells spell it, or the first that is not 0."""
        codes = [failed.code] if failed is not None else [rank.code for rank in self.ranks]
        code = next((code for code in codes if code), 0)
        return code if code >= 0 else 128 - code

    def explain(self, failed: Rank) -> None:
        """Show the end of the stderr of the rank that failed, and of users' errors; what was said already is not.

        What other ranks say when one has died, that it does not answer, is left out.
        """
        first = self.ranks[0]
        told = {first.said} if first.rank == 0 and first.said else set()
        users = [rank for rank in self.ranks if rank.code == USERS_ERROR and not rank.told_to_end]
        for rank in dict.fromkeys([failed, *users]):
            if rank.rank != 0 and rank.said not in told:
                for line in rank.kept:
                    note(f"[rank {rank.rank}] {line}")
                told.add(rank.said or f"rank {rank.rank}")
        if failed.code == USERS_ERROR and first.rank == 0 and first.said:
            return  # an error that rank 0 has told
        others = "; the others were ended" if any(rank.told_to_end for rank in self.ranks) else ""
        note(f"error: {failed.ending()}{others}")


def run(command: Sequence[str], share: Share, environ: Mapping[str, str] = os.environ, restarts: int = 0) -> int:
    """Run a command as the ranks of this machine; the exit code of the job.

    SIGINT, SIGTERM, SIGHUP and SIGUSR1 are given to every rank. When a rank fails, the others are ended
    within seconds, and a line says which failed and how. The job is then started again, up to
    `restarts` times; not after exit code 2, a user's error, nor after it was told to stop.
    """
    for attempt in range(restarts + 1):
        with tempfile.TemporaryDirectory(prefix="neoxkit-") as folder:
            code, failed, stopped = _attempt(command, share, {**environ, ATTEMPT: str(attempt)}, Path(folder))
        if not failed or stopped or code == USERS_ERROR or attempt == restarts:
            break
        note(f"restart {attempt + 1} of {restarts}: the run goes on from its newest checkpoint")
    return code


def _attempt(command: Sequence[str], share: Share, environ: Mapping[str, str], folder: Path) -> tuple[int, bool, bool]:
    """Exit code of one start of the job, whether a rank failed, whether the job had been told to stop."""
    crew = Crew(command, share, environ, folder)
    try:
        with _forwarding(crew):
            failed = crew.watch()
        code = crew.outcome(failed)
    finally:
        crew.close()
    if failed is not None:
        crew.explain(failed)
    return code, failed is not None, crew.signals > 0


@contextmanager
def _forwarding(crew: Crew) -> Iterator[None]:
    """Hand signals on. One that is ignored, as SIGHUP is under nohup, stays so here and in the ranks."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in FORWARDED:
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, crew.forward)
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def end_with(parent: int | None) -> None:
    """Let this process get a SIGTERM when the one that started it dies, as by SIGKILL; on Linux only.

    `parent` is that one's process id, where it is known: it may have died already.
    """
    if not sys.platform.startswith("linux"):
        return
    set_signal_at_parents_death = 1  # PR_SET_PDEATHSIG of linux/prctl.h
    ctypes.CDLL(None, use_errno=True).prctl(set_signal_at_parents_death, signal.SIGTERM, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def say(line: str) -> None:
    """Leave, for the process that started this one, the line that it ends with."""
    if path := os.environ.get(SAID):
        Path(path).write_text(line, encoding="utf-8")


def leave(code: int) -> NoReturn:
    """End this process at once, without the interpreter's teardown.

    With DeepSpeed over gloo that aborts now and then, after all work is done, and the job would seem to
    have failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
