"""Runs in a folder of their own, of tokens that are made for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_runs as runs

from neoxkit.train import loop


@pytest.fixture(autouse=True)
def no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these runs do."""
    monkeypatch.setattr(loop, "draw", lambda folder: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with training and held-out tokens."""
    runs.write_tokens(tmp_path)
    return tmp_path
