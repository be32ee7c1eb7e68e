"""The serving engine on a GPU: flash attention over pages, and recorded passes, against a CPU in fp32."""

from __future__ import annotations

import pytest
import torch
from engines import Answer, answers

from neoxkit.config.model import ModelConfig
from neoxkit.config.optimizer import Init
from neoxkit.nn.decoder import Decoder
from neoxkit.nn.init import initialise
from neoxkit.nn.kernels.paged import FLASH_PAGE
from neoxkit.serve.engine import Engine
from neoxkit.serve.graphs import Recorder, check_recording
from neoxkit.serve.pages import Pages
from neoxkit.serve.request import Limits, Request
from neoxkit.serve.runner import Runner

pytestmark = pytest.mark.gpu

LIMITS = Limits(batch=8, step_tokens=256)
PROMPTS = [[(7 * n + 3 * t) % 97 for t in range(length)] for n, length in enumerate((1, 5, 130, 255, 256, 257, 600))]


def decoder(device: str, dtype: torch.dtype, window: int | None) -> Decoder:
    """The same model everywhere: its weights are those that bf16 holds."""
    mixer = {"heads": 4, "kv_heads": 2, "head_dim": 64, "window": window}
    sizes = {"family": "llama", "depth": 2, "width": 128, "vocab": 97, "context": 1024}
    config = ModelConfig.model_validate({**sizes, "mixer": mixer})
    source = Decoder(config)
    initialise(source, config, Init(std=0.1), seed=5)
    model = Decoder(config, device, dtype)
    model.load_state_dict({name: value.to(torch.bfloat16) for name, value in source.state_dict().items()})
    return model.eval()


def scores(engine: Engine, most: int = 0) -> list[Answer]:
    """Log-probabilities of the prompts, read in chunks and shared."""
    return answers(engine, [Request(tuple(each), max_tokens=most, logprobs=0, scored_from=1) for each in PROMPTS])


@pytest.mark.parametrize("window", [None, 100], ids=["whole", "window"])
def test_scores_are_those_of_a_cpu(window: int | None) -> None:
    pages = 40
    known = scores(Engine(Runner(decoder("cpu", torch.float32, window), 512, 16).run, 97, 1024, LIMITS, Pages(512, 16)))
    gpu = Runner(decoder("cuda", torch.bfloat16, window), pages, FLASH_PAGE)
    given = scores(Engine(gpu.run, 97, 1024, LIMITS, Pages(pages, FLASH_PAGE)))
    for here, there in zip(given, known, strict=True):
        apart = [abs(a.logprob - b.logprob) for a, b in zip(here.prompt, there.prompt, strict=True)]
        assert max(apart, default=0.0) < 0.2
        assert sum(apart) <= 0.03 * max(len(apart), 1)


@pytest.mark.parametrize("window", [None, 100], ids=["whole", "window"])
def test_recorded_passes_are_those_that_were_not(window: int | None) -> None:
    model, pages = decoder("cuda", torch.bfloat16, window), 40
    plain = Engine(Runner(model, pages, FLASH_PAGE).run, 97, 1024, LIMITS, Pages(pages, FLASH_PAGE))
    runner = Runner(model, pages + 1, FLASH_PAGE)
    check_recording(runner, 1)
    recorder = Recorder(runner, 8)
    engine = Engine(recorder.run, 97, 1024, LIMITS, Pages(pages, FLASH_PAGE))
    known, given = scores(plain, 24), scores(engine, 24)
    assert 8 in recorder.recorded
    same = sum(a.tokens == b.tokens for a, b in zip(given, known, strict=True))
    assert same >= len(PROMPTS) - 1, "a graph is filled up to its size, so sums may round otherwise, once in a while"
