"""Bits per byte against transformers' own cross entropy on the same windows."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from engines import engine_of
from tiny import TINY

from neoxkit.convert.hf_source import HuggingFaceSource
from neoxkit.convert.load import load_decoder
from neoxkit.eval.desk import Answer, Ask, Desk, answered
from neoxkit.eval.perplexity import perplexity, windows
from neoxkit.serve.engine import Engine
from neoxkit.serve.request import Limits


def test_windows_foretell_each_token_once() -> None:
    assert list(windows([5, 6, 7, 8], 9, 3)) == [[9, 5, 6, 7], [7, 8]]
    assert list(windows([5, 6, 7], 9, 3)) == [[9, 5, 6, 7]]
    assert list(windows([5], 9, 3)) == [[9, 5]]
    assert list(windows([], 9, 3)) == []


class Asked:
    """A model without text."""

    def __init__(self, engine: Engine) -> None:
        self.desk = Desk(engine, None)
        self.facts = SimpleNamespace(context=engine.context)

    def answered(self, asks: Iterable[tuple[int, Ask]]) -> Iterator[tuple[int, Answer]]:
        return answered(self.desk, asks)


@pytest.mark.parametrize("limits", [Limits(1, 2, 16), Limits(3, 6, 100), Limits(32, 64, 512)], ids=str)
def test_equals_transformers(tmp_path: Path, limits: Limits) -> None:
    theirs = TINY[0].model()
    theirs.save_pretrained(tmp_path / "hf")
    model = Asked(engine_of(load_decoder(HuggingFaceSource(tmp_path / "hf")), limits))
    generator = torch.Generator().manual_seed(0)
    texts = [
        (torch.randint(0, 97, (length,), generator=generator).tolist(), 3 * length) for length in (1, 64, 65, 150, 7)
    ]
    nats = 0.0
    for ids, _ in texts:
        inputs = [2, *ids]
        for first in range(0, len(ids), 64):
            window = torch.tensor([inputs[first : min(first + 64, len(ids)) + 1]])
            logits = theirs(window[:, :-1]).logits
            nats += torch.nn.functional.cross_entropy(logits[0], window[0, 1:], reduction="sum").item()
    result = perplexity(model, texts, before=2)
    assert (result.tokens, result.bytes) == (287, 861)
    assert result.nats == pytest.approx(nats, rel=1e-6)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / 861)
    assert result.per_token == pytest.approx(math.exp(nats / 287), rel=1e-5)
