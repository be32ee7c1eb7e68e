"""Qwen 3: Qwen 2 with a norm on each query and key head, and heads of any size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from neoxkit.config.model import ModelConfig
from neoxkit.families.huggingface import PASSIVE, kv_heads, token_fields
from neoxkit.families.llama import DENSE, IMPLIES, LLAMA, RMS_EPS
from neoxkit.families.llama import rules as llama
from neoxkit.families.qwen2 import UNWINDOWED, WINDOW_OFF, WINDOW_UNUSED
from neoxkit.families.schema import Field, Rule


def rules(c: ModelConfig) -> Iterator[Rule]:
    """Llama's, and the norms of the heads."""
    yield from llama(c)
    for part in ("q_norm", "k_norm"):
        yield Rule((f"layers.{{i}}.attn.{part}.weight",), (f"model.layers.{{i}}.self_attn.{part}.weight",))


QWEN3 = replace(
    LLAMA,
    name="qwen3",
    title="Qwen 3",
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    fields=(
        *DENSE,
        *token_fields(bos=None, eos=None),
        RMS_EPS,
        kv_heads(32),
        UNWINDOWED,
        Field("mixer.head_dim", ("head_dim",), default=128),
        Field("mixer.bias", ("attention_bias",), default=False),
        Field("mixer.out_bias", ("attention_bias",), default=False),
    ),
    rules=rules,
    implies={**IMPLIES, "mixer.qk_norm": True, "mixer.qk_norm_span": "head", "mixer.window": None, "mlp.bias": False},
    fixed=WINDOW_OFF,
    passive=PASSIVE | WINDOW_UNUSED,
)
