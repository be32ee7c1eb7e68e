"""The default way of large files: xet, by the real client of it, whose storage is a folder here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hub_store
import pytest
from hub_store import TOKEN, Hub

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.convert.transfer import choose_family, export_model

REPO = "me/tiny"
Run = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """The stand-in, with xet."""
    (tmp_path / "cas").mkdir()
    with hub_store.serving(tmp_path / "cas") as found:
        found.small = 100_000  # only weights are large: what xet has the stand-in cannot look into
        yield found


@pytest.fixture
def run(hub: Hub, tmp_path: Path) -> Run:
    """Runs neoxkit in a process of its own, with a home of its own."""

    def call(command: str) -> subprocess.CompletedProcess[str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        clean |= {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1"}
        arguments = [sys.executable, "-m", "neoxkit", *command.split()]
        done = subprocess.run(
            arguments,
            env=clean | {"HF_TOKEN": TOKEN},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert TOKEN not in done.stdout + done.stderr
        return done

    return call


def stored(hub: Hub) -> dict[str, int]:
    """What is in xet's storage, and since when."""
    assert hub.xet is not None
    return {path.name: path.stat().st_mtime_ns for path in (hub.xet / "xet" / "xorbs" / "xorbs").iterdir()}


def test_there_and_back(hub: Hub, run: Run, save, tmp_path: Path) -> None:
    import hf_xet

    model = save("model")
    done = run("push model me/tiny --max-shard-size 10KB")
    assert done.returncode == 0, done.stderr
    assert not hub.broken
    assert hub.count(f"GET /api/models/{REPO}/xet-write-token/main") >= 1
    assert not hub.sent, "no byte of a weight goes by way of the Hub itself"
    weights = {name: file for name, file in hub.files(REPO).items() if name.endswith(".safetensors")}
    assert len(weights) > 2
    before = stored(hub)
    assert before

    # What the real Hub reads in what xet's client has stored: which of its hashes is which sha256.
    checkpoint = Checkpoint.open(model)
    export_model(checkpoint, tmp_path / "hf", choose_family(checkpoint, "auto"), most=10_000)
    for name, file in weights.items():
        assert file.sha256 is not None
        (about,) = hf_xet.hash_files([str(tmp_path / "hf" / name)])
        hub.hashes[file.sha256] = about.hash
    done = run(f"import {REPO} back")
    assert done.returncode == 0, done.stderr
    assert Checkpoint.open(tmp_path / "back").fingerprint == checkpoint.fingerprint
    assert hub.count(f"GET /api/models/{REPO}/xet-read-token/") >= 1

    done = run("push model me/tiny@again --max-shard-size 10KB")
    assert done.returncode == 0, done.stderr
    assert stored(hub) == before, "what xet has is not sent again"
