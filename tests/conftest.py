"""What the tests share: tiny models of every family as transformers saves them, and hypothesis's limits."""

from __future__ import annotations

import gc
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from tiny import TINY, Tiny, save

settings.register_profile("neoxkit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("neoxkit")


def pytest_configure() -> None:
    """Signals as at a terminal: `nohup` and background jobs begin with some ignored, which commands inherit."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_finish() -> None:
    """What is loaded stays: torch and the tests are a million objects, half a second for each collection of garbage."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session", params=TINY, ids=str)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    """Each tiny model in turn."""
    found: Tiny = request.param
    return found


@pytest.fixture(scope="session")
def tiny_folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where transformers has saved it, in several files. Not to be changed."""
    folder = tmp_path_factory.getbasetemp() / "tiny" / str(tiny)
    if not folder.exists():  # pytest makes such a fixture anew for each file of tests
        save(tiny.model(), folder, shards=True)
    return folder
