"""Law 7: decoding step by step equals the full forward pass, alone and in a batch of unequal lengths."""

import pytest
import torch

from neoxkit.config.model import ModelConfig
from neoxkit.config.optimizer import Init
from neoxkit.nn.decoder import Decoder
from neoxkit.nn.init import initialise
from neoxkit.nn.state import State

BASE = {"family": "llama", "depth": 2, "width": 32, "vocab": 61, "context": 32}
MODELS = {
    "rotary": {"mixer": {"heads": 4}, "position": {"kind": "rotary", "fraction": 0.5}, "residual": "parallel"},
    "gqa": {"mixer": {"heads": 4, "kv_heads": 2}, "norm": {"kind": "rms"}, "mlp": {"gated": True}},
    "window": {"mixer": {"heads": 4, "kv_heads": 1, "window": 3}},
    "alibi": {"mixer": {"heads": 6, "head_dim": 8}, "position": {"kind": "alibi"}},
    "learned": {"mixer": {"heads": 4}, "position": {"kind": "learned"}, "tied": True},
    "none": {"mixer": {"heads": 4, "qk_norm": True}, "position": {"kind": "none"}},
    "alibi-window": {"mixer": {"heads": 4, "window": 4}, "position": {"kind": "alibi"}},
}


def build(name: str) -> Decoder:
    config = ModelConfig.model_validate({**BASE, **MODELS[name]})
    model = Decoder(config)
    initialise(model, config, Init(std=0.15), seed=5)
    return model


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_alone(name: str) -> None:
    model = build(name)
    ids = torch.randint(0, 61, (1, 12), generator=torch.Generator().manual_seed(0))
    whole = model(ids)
    state = State(model.config, 1, 16)
    first = model(ids[:, :5], torch.arange(5)[None], state=state)
    steps = [model(ids[:, t : t + 1], torch.tensor([[t]]), state=state) for t in range(5, 12)]
    torch.testing.assert_close(torch.cat([first, *steps], dim=1), whole, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_in_a_batch_of_unequal_lengths(name: str) -> None:
    """Rows of 3 and 6 tokens, the shorter one padded behind; then each goes on from its own position."""
    model = build(name)
    ids = torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(1))
    lengths = [3, 6]
    alone = [model(ids[row : row + 1])[0] for row in range(2)]
    state = State(model.config, 2, 16)
    padded = ids[:, :6].clone()
    padded[0, 3:] = 0
    prompt = model(padded, torch.arange(6)[None], state=state)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(prompt[row, :length], alone[row][:length], atol=2e-6, rtol=1e-5)
    for step in range(5):
        at = torch.tensor([[length + step] for length in lengths])
        logits = model(ids.gather(1, at), at, state=state)
        for row in range(2):
            torch.testing.assert_close(logits[row, 0], alone[row][at[row, 0]], atol=2e-6, rtol=1e-5)
