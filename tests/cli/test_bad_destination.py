"""Destinations that are taken, cannot be written or run full: one clear line, 2, nothing half-written, nothing lost."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from refusal import Case, check, check_line, check_untouched, cut, everything

COMMANDS = {"import": "import hf", "export": "export checkpoint", "reshard": "reshard checkpoint"}


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
        Case("below a file", "{} run.yaml/out", "run.yaml/ ... ; "),
        Case("below a file, with force", "{} run.yaml/out --force", "run.yaml/ ... ; "),
        Case("link to a folder", "{} link --force", "link exists and is no ... ; ",
             lambda: Path("link").symlink_to("text")),
    ],
    ids=str,
)  # fmt: skip
def test_a_taken_destination_stays(command: str, case: Case, here: Path) -> None:
    check(Case(case.name, case.command.format(command), case.says, case.damage), here)


@pytest.mark.parametrize(
    "case",
    [
        Case("import over a checkpoint's run", "import hf run --force", "run exists and is no"),
        Case("a link to nothing", "import hf link", "link exists; choose", lambda: Path("link").symlink_to("nowhere")),
        Case("import over itself", "import hf hf --force", "hf exists and is no"),
        Case("export over a checkpoint", "export run checkpoint --force", "checkpoint exists and is no"),
        Case("export over itself", "export checkpoint checkpoint --force", "checkpoint exists and is no"),
        Case("broken, over a checkpoint", "import hf checkpoint --force", "hf/model.safetensors",
             cut("hf/model.safetensors", -1)),
        Case("does not fit, over a model", "export checkpoint neox --to gpt_neox --force", "does not fit GPT-NeoX"),
        Case("does not divide, over a checkpoint", "reshard run checkpoint --tp 7 --force",
             "choose a tp that divides 2"),
    ],
    ids=str,
)  # fmt: skip
def test_force_replaces_only_what_it_can_make_anew(case: Case, here: Path) -> None:
    check(case, here)


WRITERS = {
    **{name: f"{command} small/out" for name, command in COMMANDS.items()},
    "tokenize": "data tokenize text -o small/out --tokenizer hf",
    "train a tokenizer": "data tokenize text -o small/out --train-tokenizer 258",
}
NOTED = ("tokenize: ", "train tokenizer: ", "export checkpoint: ")
MORE = "More text than there is room for. " * 9000


@pytest.mark.parametrize("command", WRITERS.values(), ids=WRITERS)
def test_a_file_that_may_not_grow(command: str, here: Path) -> None:
    """The system lets no file grow beyond a limit, as a quota does."""
    Path("small").mkdir()
    Path("text/more.txt").write_text(MORE)
    case = Case("", command, "ile too large ... ; ", lambda: resource.setrlimit(kind, (20_000, most)), noted=NOTED)
    kind, (usual, most) = resource.RLIMIT_FSIZE, resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        check(case, here)
    finally:
        resource.setrlimit(kind, (usual, most))


DISKS = {
    "full": ("size=64k", "small/ ... ; free some"),
    "nearly full": ("size=352k", "; free some"),
    "read-only": ("ro", "ead-only file system ... ; "),
}

ON_SMALL_DISKS = """
import json, os, subprocess, sys
from refusal import run
found = []
for options, command in json.load(sys.stdin):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", "small"], stderr=2).returncode:
        sys.exit(99)
    result = run(command)
    found.append([result.exit_code, result.stdout, result.stderr, os.listdir("small")])
    subprocess.run(["umount", "--lazy", "small"], check=True)
json.dump(found, sys.stdout)
"""


Outcome = tuple[int, str, str, list[str]]


@pytest.fixture(scope="module")
def outcomes(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Outcome]:
    """What comes of each command on each disk, a real one, mounted for a process that alone sees it."""
    here = tmp_path_factory.mktemp("disks") / "here"
    shutil.copytree(world, here)
    (here / "small").mkdir()
    (here / "text/more.txt").write_text(MORE)
    before = everything(here)
    asked = {(disk, name): (DISKS[disk][0], WRITERS[name]) for disk in DISKS for name in WRITERS}
    for own_mounts in ([], ["--map-root-user"]):
        done = subprocess.run(
            ["unshare", "--mount", *own_mounts, sys.executable, "-c", ON_SMALL_DISKS],
            cwd=here,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            input=json.dumps(list(asked.values())),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in (0, 1, 99), done.stderr  # 1: unshare itself is refused
        if done.returncode == 0:
            check_untouched(before, everything(here))
            return dict(zip(asked, json.loads(done.stdout), strict=True))
    pytest.skip(f"this machine lets nobody mount a small disk: {done.stderr}")


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare, which gives a process its own mounts")
@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("disk", DISKS)
def test_a_disk_that_is_full_or_read_only(disk: str, name: str, outcomes: dict[tuple[str, str], Outcome]) -> None:
    code, stdout, stderr, left = outcomes[disk, name]
    check_line(code, stdout, stderr, Case("", "", DISKS[disk][1], noted=NOTED))
    assert left == []
