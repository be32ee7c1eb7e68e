"""Mistral 7B: Llama without biases and with a sliding attention window."""

from __future__ import annotations

from dataclasses import replace

from neoxkit.families.llama import DENSE, IMPLIES, LLAMA
from neoxkit.families.schema import Field

MISTRAL = replace(
    LLAMA,
    name="mistral",
    architecture="MistralForCausalLM",
    model_type="mistral",
    fields=(
        *DENSE,
        Field("mixer.kv_heads", ("num_key_value_heads",), default=8),
        Field("mixer.window", ("sliding_window",), default=4096, nullable=True),
    ),
    implies={**IMPLIES, "mixer.bias": False, "mixer.out_bias": False, "mlp.bias": False},
)
