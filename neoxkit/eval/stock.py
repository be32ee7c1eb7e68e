"""The model class that lm-evaluation-harness's own command line makes: `--model neoxkit`.

python -m neoxkit.lm_eval --model neoxkit --model_args checkpoint=DIR,tp=2 --tasks ...
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from neoxkit.checkpoint.dtypes import TORCH
from neoxkit.checkpoint.store import place
from neoxkit.convert.open import open_any
from neoxkit.errors import ConfigError
from neoxkit.eval.harness import MOST_NEW, NeoxkitLM
from neoxkit.eval.replicas import open_model
from neoxkit.eval.subject import about, limits_of
from neoxkit.serve.start import open_engine

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "fp32": "F32", "bf16": "BF16", "fp16": "F16"}
"""How the harness's users spell precisions, and how neoxkit does."""


class StockLM(NeoxkitLM):
    """A checkpoint, or anything that `neoxkit import` recognises, by the harness's arguments."""

    def __init__(
        self,
        checkpoint: str,
        tp: int = 1,
        dp: int = 1,
        dtype: str | None = None,
        tokenizer: str | None = None,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = MOST_NEW,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
    ) -> None:
        """`batch_size` is how many texts are worked on at once, "auto" as many as are of use.

        Raises ConfigError for a value that means nothing, and what `serve.start.open_engine` raises.
        """
        source = place(checkpoint)
        where = device or "auto"
        limits = limits_of(_count(batch_size, max_batch_size), where, max_length)
        opening = partial(
            open_engine, source, None if tokenizer is None else Path(tokenizer), _dtype(dtype), where, int(tp), limits
        )
        described = about(source, open_any(source))
        model = open_model(opening, int(dp))
        super().__init__(model, add_bos_token, prefix_token_id, int(max_gen_toks), described)


def _count(batch_size: int | str | None, most: int | None) -> int | None:
    """How many texts at once; None for as many as are of use. "auto:4" is HFLM's, for which there is nothing to do."""
    given = str(batch_size or "auto")
    if given == "auto" or given.startswith("auto:"):
        return most
    if not given.isdigit() or not int(given):
        raise ConfigError(f"batch_size={batch_size} is no number", "give a number, or auto")
    return int(given)


def _dtype(given: Any) -> str | None:
    """A precision as safetensors spells it; "auto" is that of the weights."""
    if given in (None, "auto"):
        return None
    name = str(given).removeprefix("torch.")
    found = DTYPES.get(name, name.upper())
    if found not in TORCH:
        raise ConfigError(f"dtype={given}: no such precision", f"one of {', '.join(DTYPES)}")
    return found
