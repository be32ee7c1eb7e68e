"""The wheel holds the package and starts; what is needed is pinned; the environment's script does nothing twice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from neoxkit import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]


def project() -> dict[str, Any]:
    with open(ROOT / "pyproject.toml", "rb") as file:
        found: dict[str, Any] = tomllib.load(file)["project"]
    return found


def canonical(requirement: str) -> str:
    name = re.match(r"[\w.-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name.group()).lower()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    info = f"neoxkit-{__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"neoxkit", info}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "neoxkit").rglob("*.py")}
    assert sources | {"neoxkit/py.typed"} <= set(names)
    assert f"{info}/licenses/LICENSE" in names
    entry = zipfile.ZipFile(wheel).read(f"{info}/entry_points.txt").decode()
    assert "neoxkit=neoxkit.cli:main" in entry.replace(" ", "")


def test_the_installed_wheel_starts(wheel: Path, tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    probe = "import neoxkit, sys; print(neoxkit.__file__); from neoxkit.cli import main; main(['--version'])"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    where, version = done.stdout.splitlines()
    assert Path(where).is_relative_to(tmp_path)
    assert version == f"neoxkit {__version__}"


def test_what_the_tests_run_with_is_pinned() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonical(line) for line in pins if line and not line.startswith("#")}
    extras = project()["optional-dependencies"]
    wanted = [*project()["dependencies"], *extras["test"], *extras["hf"], *extras["plot"]]
    assert {canonical(item) for item in wanted} - {"neoxkit"} <= pinned


def test_all_has_every_extra_but_the_one_that_needs_a_compiler() -> None:
    extras = project()["optional-dependencies"]
    (everything,) = extras["all"]
    assert set(everything.removeprefix("neoxkit[").removesuffix("]").split(",")) == set(extras) - {
        "all",
        "flash",
        "test",
    }


@pytest.mark.parametrize("version", ["3.9.18", None])
def test_a_python_that_is_too_old_is_refused(tmp_path: Path, version: str | None) -> None:
    """On a machine whose only python3 is too old, or which has none, `make` says so in one line."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "cat", "dirname", "cksum", "head", "rm"):
        (tools / name).symlink_to(next(p for p in (Path("/bin") / name, Path("/usr/bin") / name) if p.exists()))
    if version is not None:
        python = tools / "python3"
        python.write_text(f'#!/bin/sh\n[ "$1" = -V ] || exit 1\necho Python {version}\n')
        python.chmod(0o755)
    done = subprocess.run(
        [str(ROOT / "scripts" / "install.sh"), str(tmp_path / "venv")],
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        check=False,
    )
    found = f"Python {version}" if version else "missing"
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"neoxkit: Python 3.10 or newer is needed, and python3 is {found}\n"
    assert not (tmp_path / "venv").exists()
