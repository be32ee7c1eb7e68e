"""A Hub that takes uploads, and commands in this process that know no other."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hub_store
import pytest
from click.testing import CliRunner, Result
from hub_store import TOKEN, Hub

from neoxkit.cli import main
from neoxkit.convert.push import asking

Neoxkit = Callable[..., Result]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, which huggingface_hub in this process takes for the Hub. It has no xet."""
    from huggingface_hub import constants

    for name in ("HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with hub_store.serving() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", found.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        yield found


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of each wait; none is waited for."""
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    assert asking.time.sleep == found.append
    return found


@pytest.fixture
def neoxkit() -> Neoxkit:
    """Calls a command in this process. No output may ever tell the token."""

    def call(*arguments: object) -> Result:
        done = CliRunner().invoke(main, [str(each) for each in arguments])
        assert "secret" not in done.output + done.stderr
        assert "sealed" not in done.output + done.stderr, "the key of an upload was told"
        return done

    return call
