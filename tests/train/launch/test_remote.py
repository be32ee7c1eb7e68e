"""The command of a launcher: pdsh under this process's eyes, others in its place; and a run whose readers are gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STARTER = """
import sys
from neoxkit.train.launch.commands import Start
from neoxkit.train.launch.remote import run_away
sys.exit(run_away(sys.argv[1], Start(tuple(sys.argv[2:]), {"WHAT": "told"})))
"""

PDSH = """
import os, signal, sys, time
def end(number, frame):
    open(sys.argv[1] + "/ended", "w").write(os.environ["WHAT"])
    sys.exit(1)
signal.signal(signal.SIGINT, end)
open(sys.argv[1] + "/ready", "w").close()
time.sleep(600)
"""


def start(launcher: str, *command: str) -> subprocess.Popen[str]:
    """A process that runs the command of a launcher."""
    words = [sys.executable, "-c", STARTER, launcher, *command]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_pdsh_in_the_way_that_closes_its_connections(tmp_path: Path, number: signal.Signals) -> None:
    """pdsh -b takes one SIGINT for that; at a SIGTERM it would leave them, and the run, alone."""
    process = start("pdsh", sys.executable, "-c", PDSH, str(tmp_path))
    deadline = time.monotonic() + 30
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert (tmp_path / "ended").read_text() == "told"
    assert stderr == f"{number.name}: the machines are told; the run saves after this step, and stops\n"


@pytest.mark.parametrize(("body", "code"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_the_code_of_pdsh_is_the_runs(body: str, code: int) -> None:
    process = start("pdsh", sys.executable, "-c", body)
    process.communicate(timeout=30)
    assert process.returncode == code


def test_other_launchers_take_the_place_of_this_process() -> None:
    process = start("slurm", sys.executable, "-c", "import os; print(os.getpid(), os.environ['WHAT'])")
    assert process.communicate(timeout=30) == (f"{process.pid} told\n", "")


def test_a_run_whose_readers_are_gone_goes_on_to_its_save(tmp_path: Path) -> None:
    """As when an ssh connection ends, of which the kernel tells it with a SIGTERM."""
    body = """
import os, signal, sys
from neoxkit.log import note
from neoxkit.train.interrupt import Interrupt, broken
with Interrupt() as interrupt:
    assert broken(2) and not broken(1)
    os.kill(os.getpid(), signal.SIGTERM)
    note("a line of the log")
    assert interrupt.signal == signal.SIGTERM
print("saved")
"""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", body], stdout=subprocess.PIPE, stderr=write, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stdout) == (0, "saved\n")
