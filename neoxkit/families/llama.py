"""Llama 1 to 3 and the many models built alike, as transformers spells them."""

from __future__ import annotations

from collections.abc import Iterator

from neoxkit.config.model import ModelConfig
from neoxkit.families.huggingface import (
    PASSIVE,
    ROTATED,
    SIZES,
    WHOLE_HEAD,
    kv_heads,
    read_activation,
    read_number,
    token_fields,
    width_over_heads,
    write_activation,
)
from neoxkit.families.schema import Family, Field, Rule


def rules(c: ModelConfig) -> Iterator[Rule]:
    """Names; every one of theirs is one of ours."""
    yield Rule(("embed.weight",), ("model.embed_tokens.weight",))
    yield Rule(("layers.{i}.norm1.weight",), ("model.layers.{i}.input_layernorm.weight",))
    yield Rule(("layers.{i}.norm2.weight",), ("model.layers.{i}.post_attention_layernorm.weight",))
    biased = {"q": c.mixer.bias, "k": c.mixer.bias, "v": c.mixer.bias, "o": c.mixer.out_bias}
    for part, bias in biased.items():
        for kind in ("weight", "bias")[: 1 + bias]:
            yield Rule((f"layers.{{i}}.attn.{part}.{kind}",), (f"model.layers.{{i}}.self_attn.{part}_proj.{kind}",))
    for part in ("gate", "up", "down"):
        for kind in ("weight", "bias")[: 1 + c.mlp.bias]:
            yield Rule((f"layers.{{i}}.mlp.{part}.{kind}",), (f"model.layers.{{i}}.mlp.{part}_proj.{kind}",))
    yield Rule(("norm.weight",), ("model.norm.weight",))
    if not c.tied:
        yield Rule(("head.weight",), ("lm_head.weight",))


DENSE = (
    *SIZES,
    *ROTATED,
    WHOLE_HEAD,
    Field("mlp.activation", ("hidden_act",), default="silu", read=read_activation, write=write_activation),
)
"""The fields that families built alike share."""

RMS_EPS = Field("norm.eps", ("rms_norm_eps",), default=1e-6, read=read_number)
HEAD_DIM = Field("mixer.head_dim", ("head_dim",), default=width_over_heads)

IMPLIES = {
    "residual": "sequential",
    "embed_norm": False,
    "norm.kind": "rms",
    "norm.bias": False,
    "position.kind": "rotary",
    "position.fraction": 1.0,
    "mixer.kind": "attention",
    "mixer.qk_norm": False,
    "mlp.gated": True,
}

LLAMA = Family(
    name="llama",
    title="Llama",
    architecture="LlamaForCausalLM",
    model_type="llama",
    fields=(
        *DENSE,
        *token_fields(bos=1, eos=2),
        RMS_EPS,
        HEAD_DIM,
        kv_heads(None),
        Field("mixer.bias", ("attention_bias",), default=False),
        Field("mixer.out_bias", ("attention_bias",), default=False),
        Field("mlp.bias", ("mlp_bias",), default=False),
    ),
    rules=rules,
    implies={
        **IMPLIES,
        "mixer.window": None,
        # transformers 5 refuses a Llama whose heads do not divide its width, even where head_dim is stated.
        "width": lambda c: c.width - c.width % c.mixer.heads,
    },
    passive=PASSIVE,
    buffers=(r"\.rotary_emb\.inv_freq$",),
)
