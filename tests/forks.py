"""Commands in processes of their own, which are forks of this one: torch is loaded, and need not be for 3 seconds."""

from __future__ import annotations

import gc
import os
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import NoReturn, TextIO

from neoxkit.cli import main


class Fork:
    """A command, begun after `prepare`, and what it writes. Its signals are those of a command at a terminal."""

    def __init__(self, command: str, prepare: Callable[[], object]) -> None:
        out, err = os.pipe(), os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads; none of them has a lock
            self.pid = os.fork()
        if self.pid == 0:
            _live(command, prepare, out[1], err[1])
        os.close(out[1])
        os.close(err[1])
        self.stdout: TextIO = os.fdopen(out[0])
        self.stderr: TextIO = os.fdopen(err[0])

    def wait(self) -> int:
        """Its exit code; of a signal, its number below zero."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def end(self) -> None:
        """Leave nothing open."""
        self.stdout.close()
        self.stderr.close()


def _live(command: str, prepare: Callable[[], object], out: int, err: int) -> NoReturn:
    """All that the fork does: it must not go on as a second pytest."""
    code: object = 1
    gc.freeze()  # what tests before left behind may wait, as it goes, for threads that are not in a fork
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        warnings.resetwarnings()
        prepare()
        main(shlex.split(command))
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # noqa: BLE001  # and is told of
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
