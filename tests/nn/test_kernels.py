"""The fused attention against the reference: causal, windows, segments, ALiBi, groups."""

import pytest
import torch

from neoxkit.config.model import ModelConfig
from neoxkit.config.optimizer import Init
from neoxkit.nn.attention import build_context
from neoxkit.nn.decoder import Decoder
from neoxkit.nn.init import initialise
from neoxkit.nn.kernels import attend, distance_bias, reference, visible
from neoxkit.nn.state import State


def qkv(heads: int, kv_heads: int) -> list[torch.Tensor]:
    torch.manual_seed(3)
    return [torch.randn(2, 11, h, 8) for h in (heads, kv_heads, kv_heads)]


@pytest.mark.parametrize("kv_heads", [6, 3, 1])
def test_causal(kv_heads: int) -> None:
    q, k, v = qkv(6, kv_heads)
    torch.testing.assert_close(attend(q, k, v, None), reference(q, k, v, None), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("segmented", [False, True])
def test_masks(window: int | None, segmented: bool) -> None:
    q, k, v = qkv(6, 2)
    positions = torch.arange(11)[None]
    segments = torch.tensor([[0] * 4 + [1] * 7, [0] * 9 + [1] * 2]) if segmented else None
    mask = visible(positions, positions, window, None if segments is None else (segments, segments))
    bias = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    torch.testing.assert_close(attend(q, k, v, mask), reference(q, k, v, bias), atol=1e-6, rtol=1e-5)
    seen = mask.expand(2, 1, 11, 11)[1, 0]
    for i in range(11):
        for j in range(11):
            near = j <= i and (window is None or i - j < window)
            together = segments is None or segments[1, i] == segments[1, j]
            assert seen[i, j] == (near and together)


def test_alibi_lowers_scores_by_distance() -> None:
    positions = torch.arange(4)[None]
    bias = distance_bias(positions, positions, torch.tensor([0.5, 0.25]))
    assert bias[0, :, 3].tolist() == [[-1.5, -1.0, -0.5, 0.0], [-0.75, -0.5, -0.25, 0.0]]


def alibi_model() -> Decoder:
    config = ModelConfig.model_validate(
        {"family": "gpt_neox", "depth": 2, "width": 32, "vocab": 50, "context": 32, "mixer": {"heads": 4}}
        | {"position": {"kind": "alibi"}}
    )
    model = Decoder(config)
    initialise(model, config, Init(std=0.2), seed=0)
    return model


def test_alibi_with_a_state() -> None:
    """The same with and without a state, whose masks are made from positions."""
    model = alibi_model()
    ids = torch.randint(0, 50, (1, 7), generator=torch.Generator().manual_seed(0))
    context = build_context(model.config, torch.arange(7)[None], None, torch.float32, False)
    assert context.mask is not None
    assert context.mask.dtype == torch.float32
    with torch.no_grad():
        free = model(ids)
    state = State(model.config, 1, 16)
    with torch.no_grad():
        stepped = model(ids, torch.arange(7)[None], state=state)
    torch.testing.assert_close(free, stepped, atol=1e-5, rtol=1e-5)


def test_segments_are_separate_texts() -> None:
    """Two texts packed into one row read as they do alone, when positions restart with the segment."""
    model = alibi_model()
    first, second = torch.randint(0, 50, (2, 5), generator=torch.Generator().manual_seed(1))
    packed = torch.cat([first, second])[None]
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4]])
    segments = torch.tensor([[0] * 5 + [1] * 5])
    with torch.no_grad():
        together = model(packed, positions, segments)
        alone = torch.cat([model(first[None]), model(second[None])], dim=1)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
