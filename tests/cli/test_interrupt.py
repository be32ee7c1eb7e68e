"""Ctrl-C in the middle of a command's work: one line that says what became of it, 130, and nothing left over."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from refusal import check_untouched, everything

AT = """
import importlib, shlex, sys, time
module, name, command = sys.argv[1:]
module = importlib.import_module(module)
work = getattr(module, name)

def slow(*args, **rest):
    result = work(*args, **rest)
    print("READY", file=sys.stderr, flush=True)
    time.sleep(60)
    return result

setattr(module, name, slow)
from neoxkit.cli import main
main(shlex.split(command))
"""
"""Runs a command which, each time that a function of it has done its work, says so and waits."""


def interrupted(module: str, name: str, command: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command that gets a SIGINT after a function's work."""
    arguments = [sys.executable, "-c", AT, f"neoxkit.{module}", name, command]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        before = ""
        for line in process.stderr:
            if line == "READY\n":
                break
            before += line
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    return process.returncode, stdout, before + stderr


@pytest.mark.parametrize(
    ("module", "name", "command"),
    [
        ("convert.transfer", "copy", "import hf out --tp 2"),
        ("convert.transfer", "copy", "import hf checkpoint --force"),
        ("convert.transfer", "copy", "export checkpoint out"),
        ("convert.transfer", "copy", "reshard checkpoint out"),
        ("convert.open", "open_foreign", "import hf out"),
    ],
)
def test_nothing_is_written(module: str, name: str, command: str, here: Path) -> None:
    before = everything(here)
    found = interrupted(module, name, command)
    assert found == (130, "", "error: interrupted; nothing was written\n")
    check_untouched(before, everything(here))


@pytest.mark.parametrize(
    ("command", "destination"),
    [("import hf out", "out"), ("import hf checkpoint --force", "checkpoint")],
)
def test_what_is_written_is_said(command: str, destination: str, here: Path) -> None:
    """Interrupted after the destination got its name."""
    code, stdout, stderr = interrupted("convert.transfer", "import_model", command)
    assert (code, stdout) == (130, "")
    assert stderr.splitlines()[-1] == f"error: interrupted; {destination} is written, and whole"
    assert (here / destination / "manifest.json").is_file()


def test_verify(here: Path) -> None:
    assert interrupted("checkpoint.scan", "_side_by_side", "verify checkpoint") == (130, "", "error: interrupted\n")
