"""Recorded passes, with a stand-in for CUDA graphs, and one for flash attention that computes from its arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from engines import answers
from torch import Tensor

from neoxkit.config.model import ModelConfig
from neoxkit.config.optimizer import Init
from neoxkit.errors import ConfigError
from neoxkit.nn.decoder import Decoder
from neoxkit.nn.init import initialise
from neoxkit.nn.kernels import paged
from neoxkit.nn.kernels.flash import FLASH
from neoxkit.nn.kernels.reference import reference
from neoxkit.serve.engine import Engine
from neoxkit.serve.graphs import Forward, Recorder, check_recording
from neoxkit.serve.pages import Pages
from neoxkit.serve.request import Limits, Request
from neoxkit.serve.runner import Runner

SIZE = 8


def varlen(
    q: Tensor, k: Tensor, v: Tensor, begins: Tensor, ends: Tensor, most: int, longest: int,
    *, window_size: tuple[int, int], enable_gqa: bool, seqused_k: Tensor, block_table: Tensor,
) -> Tensor:  # fmt: skip
    """What torch.nn.attention.varlen.varlen_attn computes of pages."""
    found = []
    assert window_size[1] == 0
    assert ends.tolist() == [0, *seqused_k.cumsum(0).tolist()]
    for text in range(len(seqused_k)):
        rows = slice(int(begins[text]), int(begins[text + 1]))
        length = int(seqused_k[text])
        assert rows.stop - rows.start <= most
        assert length <= longest
        pages = block_table[text, : -(-length // k.shape[1])].long()
        keys, values = (x[pages].flatten(0, 1)[None, :length] for x in (k, v))
        own = torch.arange(length - (rows.stop - rows.start), length)[:, None] - torch.arange(length)
        unseen = (own < 0) | ((own > window_size[0]) if window_size[0] >= 0 else False)
        bias = torch.zeros(own.shape).masked_fill(unseen, float("-inf"))
        found.append(reference(q[None, rows], keys, values, bias[None, None])[0])
    return torch.cat(found)


def rerun(forward: Forward) -> tuple[Callable[[], None], Tensor]:
    """As CUDA graphs: everything is computed from, and written into, the tensors of the first time."""
    logits = forward()
    return (lambda: logits.copy_(forward())), logits


@pytest.fixture(params=[None, 5], ids=["whole", "window"])
def model(request: pytest.FixtureRequest) -> Decoder:
    mixer = {"heads": 4, "kv_heads": 2, "window": request.param}
    sizes = {"family": "llama", "depth": 2, "width": 32, "vocab": 61, "context": 64}
    config = ModelConfig.model_validate({**sizes, "mixer": mixer})
    built = Decoder(config)
    initialise(built, config, Init(std=0.3), seed=5)
    return built.eval()


def test_recorded_passes_are_those_that_were_not(model: Decoder) -> None:
    asked = [Request(tuple(range(3, 6 + 4 * n)), max_tokens=5 + 3 * n, logprobs=1) for n in range(7)]

    def engine(run: Any, pages: int) -> Engine:
        return Engine(run, 61, 64, Limits(batch=6, step_tokens=16), Pages(pages, SIZE))

    known = answers(engine(Runner(model, 64, SIZE).run, 64), asked)
    with patch("torch.nn.attention.varlen.varlen_attn", varlen):
        recorder = Recorder(Runner(model, 65, SIZE), batch=4, record=rerun)
        assert recorder.pages == 64
        given = answers(engine(recorder.run, 64), asked)
    assert recorder.recorded == [1, 2, 4]
    for here, there in zip(given, known, strict=True):
        assert here.tokens == there.tokens
        for a, b in zip(here.scores, there.scores, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-5)


def test_where_nothing_can_be_recorded(model: Decoder) -> None:
    with pytest.raises(ConfigError, match="runs on a CPU; leave --compile out"):
        check_recording(Runner(model, 4, SIZE), 1)


def test_passes_with_pages_for_flash_attention(model: Decoder) -> None:
    """Chunks and single tokens in one row, as a GPU in half precision computes them."""
    asked = [Request(tuple(range(3, 6 + 4 * n)), max_tokens=4, logprobs=0, scored_from=1) for n in range(7)]
    limits = Limits(batch=6, step_tokens=16)
    known = answers(Engine(Runner(model, 64, SIZE).run, 61, 64, limits, Pages(64, SIZE)), asked)
    able = FLASH._replace(lacks=lambda _: None)
    with (
        patch("torch.nn.attention.varlen.varlen_attn", varlen),
        patch.object(paged, "FLASH", able),
        patch.object(paged, "reads_pages", lambda: True),
    ):
        runner = Runner(model, 4, paged.FLASH_PAGE)
        given = answers(Engine(runner.run, 61, 64, limits, Pages(4, paged.FLASH_PAGE)), asked)
    for here, there in zip(given, known, strict=True):
        assert here.tokens == there.tokens
        for a, b in zip([*here.prompt, *here.scores], [*there.prompt, *there.scores], strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-5)
