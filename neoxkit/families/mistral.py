"""Mistral 7B: Llama without biases and with a sliding attention window."""

from __future__ import annotations

from dataclasses import replace

from neoxkit.config.model import ModelConfig, Rotary
from neoxkit.families.huggingface import kv_heads, token_fields
from neoxkit.families.llama import DENSE, HEAD_DIM, IMPLIES, LLAMA, RMS_EPS
from neoxkit.families.schema import Field


def caution(c: ModelConfig) -> str | None:
    """transformers 4.48 was the first whose Mistral looks at rope_scaling; the others pass over it in silence."""
    if isinstance(c.position, Rotary) and c.position.scaling is not None:
        return "transformers before 4.48 ignores rotary scaling of Mistral models"
    return None


MISTRAL = replace(
    LLAMA,
    name="mistral",
    title="Mistral",
    architecture="MistralForCausalLM",
    model_type="mistral",
    fields=(
        *DENSE,
        *token_fields(bos=1, eos=2),
        RMS_EPS,
        HEAD_DIM,
        kv_heads(8),
        Field("mixer.window", ("sliding_window",), default=4096, nullable=True),
    ),
    implies={**IMPLIES, "mixer.bias": False, "mixer.out_bias": False, "mlp.bias": False},
    caution=caution,
)
