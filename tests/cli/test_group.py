"""The group: what it imports, how it names a mistake, and what it exits with."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from neoxkit import __version__
from neoxkit.cli import COMMANDS, main
from neoxkit.errors import ConfigError, NeoxkitError


def run(*args: str) -> Result:
    return CliRunner().invoke(main, args)


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """`neoxkit diff` raises what is put in the list."""
    errors: list[BaseException] = []

    @click.command()
    def command() -> None:
        raise errors[0]

    module = type(sys)("neoxkit.cli.failing")
    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "neoxkit.cli.failing", module)
    monkeypatch.setitem(COMMANDS, "diff", ("neoxkit.cli.failing", ""))
    return errors


def test_help_lists_every_command_and_imports_none() -> None:
    probe = (
        "import sys; from neoxkit.cli import main\n"
        "try: main(['--help'])\n"
        "finally:\n"
        "    slow = {'torch', 'numpy', 'pydantic'}\n"
        "    print([m for m in sys.modules if m.startswith('neoxkit.cli.') or m in slow], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    for name, (_, line) in COMMANDS.items():
        assert f"\n  {name}" in done.stdout
        assert line in done.stdout


def test_version() -> None:
    assert run("--version").output == f"neoxkit {__version__}\n"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["tain"], "error: no such command 'tain'. Did you mean 'train'?; see `neoxkit --help`"),
        (["xyzzy"], "error: no such command 'xyzzy'; see `neoxkit --help`"),
        (["--verson"], "error: no such option '--verson'. Did you mean '--version'?; see `neoxkit --help`"),
        (["config", "shw"], "error: no such command 'shw'. Did you mean 'show'?; see `neoxkit config --help`"),
        (["config", "check"], "error: missing argument 'FILES...'; see `neoxkit config check --help`"),
        (["config", "check", "a", "--sett", "b"], None),
    ],
)
def test_wrong_usage_is_one_line(args: list[str], line: str | None) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
    if line is not None:
        assert result.stderr == line + "\n"


def test_no_arguments_show_the_help() -> None:
    result = run()
    assert result.exit_code == 2
    assert "Commands:" in result.stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (NeoxkitError("a is\n wrong", "mend it"), "error: a is wrong; mend it"),
        (ConfigError("a is wrong"), "error: a is wrong"),
        (click.FileError("f", "gone"), "error: could not open file 'f': gone"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/y"),
            "error: no space left on device: /x/y; free some space, or write elsewhere",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            "error: permission denied: /x; check the permissions",
        ),
        (
            ModuleNotFoundError("No module named 'transformers'", name="transformers.models"),
            "error: transformers.models is not installed; pip install 'neoxkit[hf]'",
        ),
    ],
)
def test_a_mistake_of_the_user_is_one_line_and_2(fails: list[BaseException], error: Exception, line: str) -> None:
    fails.append(error)
    result = run("diff")
    assert (result.exit_code, result.stderr, result.stdout) == (2, line + "\n", "")


@pytest.mark.parametrize("args", [["--debug", "diff"], ["diff", "--debug"]])
def test_debug_raises(fails: list[BaseException], args: list[str]) -> None:
    fails.append(ConfigError("a is wrong"))
    assert run(*args).exception is fails[0]


def test_a_mistake_of_ours_keeps_its_traceback(fails: list[BaseException]) -> None:
    fails.append(KeyError("ours"))
    assert run("diff").exception is fails[0]


@pytest.mark.parametrize(
    ("said", "line"),
    [([], "error: interrupted"), (["nothing was written"], "error: interrupted; nothing was written")],
)
def test_interrupt_is_one_line_and_130(fails: list[BaseException], said: list[str], line: str) -> None:
    fails.append(KeyboardInterrupt(*said))
    result = run("diff")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", line + "\n")


def test_the_end_of_a_file_is_no_interrupt(fails: list[BaseException]) -> None:
    fails.append(EOFError("ours"))
    assert run("diff").exception is fails[0]


@pytest.mark.parametrize("code", [0, 1])
def test_a_command_chooses_its_exit_code(fails: list[BaseException], code: int) -> None:
    fails.append(click.exceptions.Exit(code))
    assert run("diff").exit_code == code


def neoxkit(*args: str) -> list[str]:
    return [sys.executable, "-m", "neoxkit", *args]


def test_a_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(neoxkit("config", "explain", "model"), stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, a file on a full disk")
@pytest.mark.parametrize("args", [["--help"], ["config", "explain", "model"]])
def test_a_full_disk_under_stdout_is_one_line(args: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(neoxkit(*args), stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: no space left on device; free some space, or write elsewhere\n"


def test_ctrl_c_leaves_one_short_line(tmp_path: Path) -> None:
    """A command that waits for its input, interrupted: no traceback."""
    fifo = tmp_path / "run.yaml"
    os.mkfifo(fifo)
    waiting = subprocess.Popen(neoxkit("config", "check", str(fifo)), stderr=subprocess.PIPE, text=True)
    with open(fifo, "w"):  # opens once the command reads
        time.sleep(0.2)
        waiting.send_signal(signal.SIGINT)
        _, said = waiting.communicate(timeout=30)
    assert waiting.returncode == 130
    assert said == "error: interrupted\n"
