"""A model and a server that tests of the API share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from served import Live, live, make_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder. Not to be changed."""
    return make_model(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def server(model_folder: Path) -> Iterator[Live]:
    """A server that is left as it is."""
    with live(model_folder) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Live) -> openai.OpenAI:
    """OpenAI's client of it."""
    return server.client()
