"""Law 11: the shape of the code. Layers, sizes, start without torch, options, pages, configurations."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neoxkit.cli import COMMANDS, main

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "neoxkit").rglob("*.py"))
STRICT = ("errors.py", "log.py", "spec.py", "mesh.py", "config", "families", "checkpoint")
MOST_LINES, MOST_IN_FUNCTION = 400, 60
SLOW = ("torch", "transformers", "deepspeed", "lm_eval", "starlette", "uvicorn", "matplotlib")


def exceptions() -> dict[str, str]:
    """The files and functions that may be longer, with the reason."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        found: dict[str, Any] = tomllib.load(file)["tool"]["neoxkit"]["exceptions"]
    return found


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Each function and class, with its dotted name."""
    waiting: list[tuple[str, ast.AST]] = [("", tree)]
    while waiting:
        prefix, node = waiting.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield prefix + child.name, child
                waiting.append((f"{prefix}{child.name}.", child))
            else:
                waiting.append((prefix, child))


def test_files_and_functions_are_short() -> None:
    allowed = exceptions()
    long: dict[str, str] = {}
    for path in SOURCES:
        name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        if (lines := text.count("\n")) >= MOST_LINES:
            long[name] = f"{lines} lines"
        for function, node in functions(ast.parse(text)):
            length = (node.end_lineno or 0) - node.lineno + 1
            if not isinstance(node, ast.ClassDef) and length >= MOST_IN_FUNCTION:
                long[f"{name}:{function}"] = f"{length} lines"
    assert not {name: size for name, size in long.items() if name not in allowed}, "split it, or give a reason"
    assert not set(allowed) - set(long), "no longer long: take it out of [tool.neoxkit.exceptions]"
    assert all(isinstance(reason, str) and len(reason) > 10 for reason in allowed.values())


def test_what_is_public_in_the_core_has_a_docstring() -> None:
    bare = []
    for path in SOURCES:
        parts = path.relative_to(ROOT / "neoxkit").parts
        if parts[0] not in STRICT:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if ast.get_docstring(tree) is None:
            bare.append("/".join(parts))
        for name, node in functions(tree):
            inner = any(other != name and name.startswith(other + ".") for other in _function_names(tree))
            if not inner and not any(part.startswith("_") for part in name.split(".")) and not ast.get_docstring(node):
                bare.append(f"{'/'.join(parts)}:{name}")
    assert not bare


def _function_names(tree: ast.Module) -> set[str]:
    """Names of functions, in which what is defined is nobody else's business."""
    return {name for name, node in functions(tree) if not isinstance(node, ast.ClassDef)}


def test_import_contracts_hold() -> None:
    command = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_help_of_every_command_is_quick_to_have() -> None:
    """Every `--help`, in one process that must not have imported anything slow at its end."""
    probe = """
import json, sys
sys.path.insert(0, "docs")
from click.testing import CliRunner
from neoxkit.cli import main
import generate
said = {}
for ctx in generate.walk():
    path = ctx.command_path.split()[1:]
    result = CliRunner().invoke(main, [*path, "--help"])
    said[" ".join(path)] = [result.exit_code, result.output]
print(json.dumps([said, list(sys.modules)]))
"""
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    said, modules = json.loads(done.stdout)
    assert set(COMMANDS) < set(said)
    for command, (code, output) in said.items():
        assert code == 0, command
        assert output.startswith(f"Usage: neoxkit {command}".rstrip()), command
    assert not set(SLOW) & set(modules)


def test_the_group_and_the_command_say_the_same() -> None:
    """The group repeats a line of each command, since it must not import them; the first words must agree."""
    import click

    ctx = click.Context(main)
    for name, (_, line) in COMMANDS.items():
        command = main.get_command(ctx, name)
        assert command is not None
        text = " ".join((command.help or "").split("\n\n")[0].split())
        assert text == line, f"neoxkit {name}: its help begins with another line than the group shows"


def test_generated_pages_are_fresh() -> None:
    command = [sys.executable, "docs/generate.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_run_loads(path: Path) -> None:
    """Those of configs/models hold no whole run; tests/config loads them."""
    from neoxkit.config.load import load_run

    assert load_run([str(path)], []).steps > 0


def test_no_shipped_run_is_missing() -> None:
    assert (ROOT / "configs" / "quickstart.yaml").is_file()


def test_the_package_imports_only_what_it_declares() -> None:
    """Each outside module that the package imports belongs to a dependency, or to an extra."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    wanted = list(project["dependencies"])
    wanted += (item for extra in project["optional-dependencies"].values() for item in extra)
    named = {item.split("[")[0].split(">")[0].split("<")[0].strip().lower().replace("-", "_") for item in wanted}
    named = {{"pyyaml": "yaml"}.get(name, name) for name in named} | {"neoxkit"}
    imported: dict[str, str] = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module or ""]
            else:
                continue
            imported.update((module.split(".")[0], path.name) for module in modules)
    outside = {name: where for name, where in imported.items() if name not in sys.stdlib_module_names}
    assert not {name: where for name, where in outside.items() if name not in named}
