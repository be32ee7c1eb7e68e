"""Rotary scalings and ALiBi slopes against transformers and gpt-neox's golden numbers."""

import pytest
import torch

from neoxkit.config.model import Llama3Scaling, Rotary
from neoxkit.nn.position import alibi_slopes, frequencies


def test_alibi_slopes_are_gpt_neox_golden_numbers() -> None:
    eight = [2.0**-power for power in range(1, 9)]
    assert alibi_slopes(8) == eight
    assert alibi_slopes(12) == pytest.approx([*eight, 0.70710678, 0.35355339, 0.1767767, 0.08838835])


def test_llama3_scaling_is_transformers_own() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    values = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    theirs = LlamaConfig(
        hidden_size=512,
        num_attention_heads=4,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "original_max_position_embeddings": 8192,
            **values,
        },
    )
    wanted, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs, torch.device("cpu"))
    scaling = Llama3Scaling(original_context=8192, **values)
    assert torch.equal(frequencies(Rotary(base=500000.0, scaling=scaling), 128), wanted)
