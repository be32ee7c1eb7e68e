"""OLMo 2: Llama that norms what a sublayer adds instead of what it reads, and all of a token's queries and keys.

In half precision their norm rounds after its weight and ours before; in fp32 they are one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from neoxkit.config.model import ModelConfig
from neoxkit.families.huggingface import kv_heads, read_number, token_fields
from neoxkit.families.llama import DENSE, HEAD_DIM, IMPLIES, LLAMA
from neoxkit.families.llama import rules as llama
from neoxkit.families.schema import Field, Rule

NORMS = {
    "norm1": "post_attention_layernorm",
    "norm2": "post_feedforward_layernorm",
    "attn.q_norm": "self_attn.q_norm",
    "attn.k_norm": "self_attn.k_norm",
}


def rules(c: ModelConfig) -> Iterator[Rule]:
    """Llama's, with other norms."""
    yield from (rule for rule in llama(c) if not rule.ours[0].startswith("layers.{i}.norm"))
    for ours, theirs in NORMS.items():
        yield Rule((f"layers.{{i}}.{ours}.weight",), (f"model.layers.{{i}}.{theirs}.weight",))


OLMO2 = replace(
    LLAMA,
    name="olmo2",
    title="OLMo 2",
    architecture="Olmo2ForCausalLM",
    model_type="olmo2",
    fields=(
        *DENSE,
        *token_fields(bos=None, eos=50279, pad=1),
        Field("norm.eps", ("rms_norm_eps",), default=1e-5, read=read_number),
        HEAD_DIM,
        kv_heads(None),
        Field("mixer.bias", ("attention_bias",), default=False),
        Field("mixer.out_bias", ("attention_bias",), default=False),
    ),
    rules=rules,
    implies={
        **IMPLIES,
        "residual": "post",
        "mixer.qk_norm": True,
        "mixer.qk_norm_span": "all",
        "mixer.window": None,
        "mlp.bias": False,
    },
)
