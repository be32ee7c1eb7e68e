"""What is evaluated: which weights they are, and the limits that they are run with."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from neoxkit import __version__
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.store import Place
from neoxkit.convert.compare import fingerprint
from neoxkit.convert.describe import sizes
from neoxkit.convert.open import Foreign
from neoxkit.serve.request import Limits

BATCH = {"cpu": 32, "cuda": 256}
"""Texts that are worked on at once, where nobody states it: more gain nothing."""

TOKENS = {"cpu": 512, "cuda": 8192}
"""Tokens of a pass."""


def limits_of(batch: int | None, device: str, context: int | None = None, cache_tokens: int | None = None) -> Limits:
    """The limits of an engine that nobody talks to: as many texts at once as are of use, and as many that wait."""
    import torch

    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    kind = "cuda" if cuda else "cpu"
    texts = batch or BATCH[kind]
    return Limits(
        batch=texts, waiting=2 * texts, step_tokens=max(TOKENS[kind], texts), context=context, cache_tokens=cache_tokens
    )


def about(source: Place, opened: Checkpoint | Foreign) -> dict[str, Any]:
    """What results say of the weights: `model_sha`, their fingerprint, and more under "neoxkit".

    The fingerprint of what another program wrote is that of the checkpoint that `neoxkit import` would make of it.
    """
    step = opened.manifest.step or None if isinstance(opened, Checkpoint) else None
    tokens = opened.manifest.tokens or None if isinstance(opened, Checkpoint) else None
    count = sizes(opened)["parameters"]["total"]
    more = {
        "source": os.path.abspath(source) if isinstance(source, Path) else str(source),
        "version": __version__,
        "step": step,
        "tokens": tokens,
        "parameters": count,
    }
    return {"model_sha": fingerprint(opened), "model_num_parameters": count, "neoxkit": more}


def journal_path(output: Path, fingerprint: str, settings: str) -> Path:
    """Where the answers of a model are kept, in a folder of results; `settings` is what answers depend on beside it."""
    name = hashlib.blake2b(f"{fingerprint} {settings}".encode(), digest_size=8).hexdigest()
    return output / ".answers" / f"{name}.jsonl"
