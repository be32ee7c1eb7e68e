"""Destinations that are taken, cannot be written or run full: one clear line, 2, nothing half-written, nothing lost."""

from __future__ import annotations

import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from refusal import Case, also, check, check_line, check_untouched, cut, everything, rename, write

COMMANDS = {"import": "import hf", "export": "export checkpoint", "reshard": "reshard checkpoint"}
SMALL = 100_000
"""Bytes: less than a model of the world takes."""


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize(
    "case",
    [
        Case("a checkpoint", "{} run/step-00000002", "run/step-00000002 exists; choose another ... --force"),
        Case("a model", "{} neox", "neox exists; choose another destination, or give --force"),
        Case("a file", "{} run.yaml", "run.yaml exists; choose"),
        Case("a folder of text", "{} text --force", "text exists and is no ... ; choose another destination"),
        Case("a run", "{} run --force", "run exists and is no ... ; choose another destination"),
        Case("a file, with force", "{} run.yaml --force", "run.yaml exists and is no ... ; choose another destination"),
        Case("below a file", "{} run.yaml/out", "run.yaml/out: not a directory; "),
        Case("below a file, with force", "{} run.yaml/out --force", "run.yaml/out: not a directory; "),
        Case("link to a folder", "{} link --force", "link exists and is no ... ; ", lambda: Path("link").symlink_to("text")),
        Case("link to nothing", "{} link", "link exists; choose", lambda: Path("link").symlink_to("nowhere")),
    ],
    ids=str,
)  # fmt: skip
def test_a_taken_destination_stays(command: str, case: Case, here: Path) -> None:
    check(Case(case.name, case.command.format(command), case.says, case.damage), here)


@pytest.mark.parametrize(
    "case",
    [
        Case("import over a checkpoint's run", "import hf run --force", "run exists and is no"),
        Case("import over itself", "import hf hf --force", "hf exists and is no"),
        Case("export over a checkpoint", "export run checkpoint --force", "checkpoint exists and is no"),
        Case("export over itself", "export checkpoint checkpoint --force", "checkpoint exists and is no"),
        Case("broken, over a checkpoint", "import hf checkpoint --force", "hf/model.safetensors", cut("hf/model.safetensors", -1)),
        Case("does not fit, over a model", "export checkpoint neox --to gpt_neox --force", "does not fit gpt_neox"),
        Case("does not divide, over a checkpoint", "reshard run checkpoint --tp 7 --force", "choose a tp that divides 2"),
    ],
    ids=str,
)  # fmt: skip
def test_force_replaces_only_what_it_can_make_anew(case: Case, here: Path) -> None:
    check(case, here)


WRITERS = {
    **{name: f"{command} full/out" for name, command in COMMANDS.items()},
    "tokenize": "data tokenize text -o full/out --tokenizer hf",
    "train a tokenizer": "data tokenize text -o full/out --train-tokenizer 600",
}


@pytest.fixture(scope="module")
def own_mounts() -> list[str]:
    """A command that runs another with mounts of its own."""
    for command in (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"]):
        if shutil.which("unshare") and not subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
            return command
    pytest.skip("this machine lets nobody mount a small disk: unshare --mount fails")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("size=64k", "no space left on ... ; free some"),
        ("ro", "read-only file system ... ; "),
    ],
    ids=["full", "read-only"],
)
@pytest.mark.parametrize("command", WRITERS.values(), ids=WRITERS)
def test_a_disk_that_is_full_or_read_only(
    options: str, says: str, command: str, here: Path, own_mounts: list[str]
) -> None:
    """A real one, small, mounted for the command alone. What is left on it, `ls` tells."""
    Path("full").mkdir()
    before = everything(here)
    if "text" in command:
        Path("text/more.txt").write_text("More text than there is room for.\n" * 3000)
        before = everything(here)
    script = (
        f"mount -t tmpfs -o {options} none full || exit 99; "
        f"{shlex.quote(sys.executable)} -m neoxkit {command}; code=$?; ls -A full | sed s/^/left:/; exit $code"
    )
    done = subprocess.run([*own_mounts, "sh", "-c", script], capture_output=True, text=True, check=False)
    if done.returncode == 99:
        pytest.skip(f"this machine lets nobody mount a small disk: {done.stderr}")
    check_line(done.returncode, done.stdout, done.stderr, Case("", command, says, noted=("tokenize:", "train tokenizer:")))
    check_untouched(before, everything(here))


@pytest.mark.parametrize("command", WRITERS.values(), ids=WRITERS)
def test_a_file_may_not_grow(command: str, here: Path) -> None:
    """The same where nobody may mount: the system refuses to let a file grow beyond a limit."""
    Path("full").mkdir()
    Path("text/more.txt").write_text("More text than there is room for.\n" * 9000)
    before = everything(here)
    done = subprocess.run(
        [sys.executable, "-m", "neoxkit", *shlex.split(command)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    check_line(done.returncode, done.stdout, done.stderr, Case("", command, "file too large ... ; ", noted=("tokenize:", "train tokenizer:")))
    check_untouched(before, everything(here))
