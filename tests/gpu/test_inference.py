"""Inference on a GPU: the logits and the tokens of a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_runs as runs
import torch
from engines import continued

from neoxkit.nn.decoder import Decoder
from neoxkit.nn.init import initialise

pytestmark = pytest.mark.gpu


def decoders(family: str) -> tuple[Decoder, Decoder]:
    """The same model on a CPU and on a GPU, in fp32."""
    config = runs.config(family, Path("/nowhere"))
    ours, theirs = Decoder(config.model), Decoder(config.model, "cuda")
    initialise(ours, config.model, config.init, 7)
    theirs.load_state_dict(ours.state_dict())
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize("family", runs.MODELS)
@torch.no_grad()
def test_logits_are_those_of_a_cpu(family: str) -> None:
    cpu, gpu = decoders(family)
    ids = runs.batch(3, 1).ids
    torch.testing.assert_close(gpu(ids.cuda()).cpu(), cpu(ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", runs.MODELS)
def test_the_likeliest_tokens_are_those_of_a_cpu(family: str) -> None:
    """Token by token, over pages, past the window of attention."""
    cpu, gpu = decoders(family)
    prompt = runs.batch(1, 2, length=4).ids[0].tolist()
    found = [continued(each, prompt, 7) for each in (cpu, gpu)]
    assert found[0] == found[1]
    assert len(found[0]) == 7
