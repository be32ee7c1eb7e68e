"""A launcher's command, run in this process's place or under its eyes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from types import FrameType

from neoxkit.errors import ConfigError
from neoxkit.log import note
from neoxkit.train.launch.commands import Start
from neoxkit.train.launch.local import FORWARDED


def run_away(launcher: str, start: Start) -> int:
    """Run the command of a launcher; its exit code.

    mpirun, srun, jsrun and flux know what to do with signals and take this process's place: then
    nothing is returned. pdsh leaves its ssh connections, and the run, alone when it is told to end.

    Raises ConfigError when the launcher is not installed.
    """
    if shutil.which(start.command[0]) is None:
        raise ConfigError(f"--launcher {launcher}: there is no program {start.command[0]} here", "install it")
    environ = {**os.environ, **start.environment}
    if launcher != "pdsh":
        sys.stdout.flush()
        os.execvpe(start.command[0], start.command, environ)
    return follow(start, environ)


def follow(start: Start, environ: dict[str, str]) -> int:
    """Run pdsh. A signal ends its connections, by which every machine's processes learn of it: they save and stop.

    A SIGINT alone makes it close them (its option -b); its ssh processes are in sessions of their own.
    """
    told: list[int] = []
    popen = subprocess.Popen(start.command, env=environ, stdin=subprocess.DEVNULL, start_new_session=True)

    def end(number: int, frame: FrameType | None) -> None:
        if not told:
            note(f"{signal.Signals(number).name}: the machines are told; the run saves after this step, and stops")
        told.append(number)
        if popen.poll() is None:
            popen.send_signal(signal.SIGINT)

    before = {number: signal.signal(number, end) for number in FORWARDED if signal.getsignal(number) != signal.SIG_IGN}
    try:
        code = popen.wait()
    finally:
        for number, action in before.items():
            signal.signal(number, action)
    if told:
        return 128 + told[0]
    return code if code >= 0 else 128 - code
