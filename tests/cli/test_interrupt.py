"""Ctrl-C in the middle of a command's work: one line that says what became of it, 130, and nothing left over."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from forks import Fork
from refusal import check_untouched, everything


def interrupted(module: str, name: str, command: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command that gets a SIGINT after a function's work."""

    def prepare() -> None:
        """Each time that the function has done its work, it says so and waits."""
        place = importlib.import_module(f"neoxkit.{module}")
        work = getattr(place, name)

        def slow(*args: Any, **rest: Any) -> Any:
            result = work(*args, **rest)
            print("READY", file=sys.stderr, flush=True)
            time.sleep(60)
            return result

        setattr(place, name, slow)

    process = Fork(command, prepare)
    try:
        before = ""
        for line in process.stderr:
            if line == "READY\n":
                break
            before += line
        os.kill(process.pid, signal.SIGINT)
        stdout, stderr = process.stdout.read(), process.stderr.read()
        return process.wait(), stdout, before + stderr
    finally:
        process.end()


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
