"""The real model that these tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import smollm2


@pytest.fixture(scope="session")
def original() -> Path:
    """SmolLM2-135M-Instruct as transformers saves it, in bf16. Not to be changed."""
    return smollm2.original()
