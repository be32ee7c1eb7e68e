"""An engine that has nothing to do while something else takes its time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from neoxkit.parallel.world import ContactError

if TYPE_CHECKING:
    from neoxkit.serve.engine import Engine

BEAT = 1.0
"""Seconds between its ticks."""


@contextmanager
def awake(engine: Engine) -> Iterator[None]:
    """Let an engine that has nothing to do tick now and then, or its other ranks would think that it is gone."""
    over = threading.Event()

    def tick() -> None:
        with suppress(ContactError):  # the next request will meet it again
            while not over.wait(BEAT):
                engine.tick()

    ticking = threading.Thread(target=tick, daemon=True)
    ticking.start()
    try:
        yield
    finally:
        over.set()
        ticking.join()
