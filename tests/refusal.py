"""Wrong input and what must come of it: one line that says what and what to do, 2, and nothing touched."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from neoxkit.cli import main

Act = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A command line that must be refused, after `damage` was done, and what must be said.

    `says` are parts of the line in their order, divided by " ... ". `noted` begins whatever else may
    stand on stderr, before the error.
    """

    name: str
    command: str
    says: str
    damage: Act = lambda: None
    stdin: str | bytes | None = None
    noted: tuple[str, ...] = ("warning: ",)

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


def run(command: str, stdin: str | bytes | None = None) -> Result:
    """Call neoxkit in this process."""
    return CliRunner().invoke(main, shlex.split(command), input=stdin)


def check_line(code: int, stdout: str, stderr: str, case: Case) -> None:
    """What one sees: exit code 2, no result, one line that names what is wrong and what to do."""
    assert code == 2, stderr
    assert stdout == ""
    *before, line = stderr.splitlines()
    assert all(each.startswith(case.noted) for each in before), stderr
    assert line.startswith("error: ")
    assert "; " in line, f"no remedy: {line}"
    rest = line
    for part in case.says.split(" ... "):
        assert part in rest, f"{part!r} is not said, or not in this order: {line}"
        rest = rest.partition(part)[2]


def everything(folder: Path) -> dict[str, bytes | str | None]:
    """All that lies in a folder: a file's bytes, a link's target, None for a folder."""
    found: dict[str, bytes | str | None] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def check(case: Case, here: Path) -> None:
    """Check a case in a copy of the world, its current directory: the line, and that not one byte is otherwise."""
    case.damage()
    before = everything(here)
    result = run(case.command, case.stdin)
    if not isinstance(result.exception, SystemExit):
        raise AssertionError(f"exit code {result.exit_code}: {result.output}") from result.exception
    check_line(result.exit_code, result.stdout, result.stderr, case)
    check_untouched(before, everything(here))


def check_untouched(before: dict[str, bytes | str | None], after: dict[str, bytes | str | None]) -> None:
    """Nothing appeared, went or changed."""
    assert sorted(after.keys() - before.keys()) == [], "left behind"
    assert sorted(before.keys() - after.keys()) == [], "removed"
    assert [name for name in before if before[name] != after[name]] == [], "changed"


def also(*acts: Act) -> Act:
    """Several damages, one after the other."""
    return lambda: [act() for act in acts]


def write(path: str, content: str | bytes = "") -> Act:
    """Put a file there."""
    return lambda: Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())


def edit(path: str, old: str, new: str) -> Act:
    """Replace a piece of text, which must be there."""

    def act() -> None:
        text = Path(path).read_text()
        assert old in text, text
        Path(path).write_text(text.replace(old, new))

    return act


def set_json(path: str, **keys: Any) -> Act:
    """Set keys of a JSON object; a key set to `...` is removed."""

    def act() -> None:
        tree = {**json.loads(Path(path).read_text()), **keys}
        Path(path).write_text(json.dumps({key: value for key, value in tree.items() if value is not ...}))

    return act


def cut(path: str, size: int) -> Act:
    """Keep the first `size` bytes; without the last -size, when negative."""
    return lambda: os.truncate(path, size if size >= 0 else os.path.getsize(path) + size)


def flip(path: str, at: int = -1) -> Act:
    """Turn one bit round."""

    def act() -> None:
        data = bytearray(Path(path).read_bytes())
        data[at] ^= 4
        Path(path).write_bytes(data)

    return act


def rename(old: str, new: str) -> Act:
    """Move a file or a folder."""
    return lambda: Path(old).rename(new)


def remove(path: str) -> Act:
    """Remove a file."""
    return lambda: Path(path).unlink()


def header(path: str, change: Callable[[dict[str, Any]], object]) -> Act:
    """Change the header of a safetensors file; its data stays."""

    def act() -> None:
        data = Path(path).read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        tree = json.loads(data[8:start])
        change(tree)
        text = json.dumps(tree).encode()
        Path(path).write_bytes(len(text).to_bytes(8, "little") + text + data[start:])

    return act


def tensors(path: str, change: Callable[[dict[str, Any]], object]) -> Act:
    """Change the tensors of a safetensors file, by name."""

    def act() -> None:
        from safetensors.torch import load_file, save_file

        found = load_file(path)
        change(found)
        save_file(found, path, {"format": "pt"})

    return act
