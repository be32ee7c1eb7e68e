"""Llama 1 to 3 and the many models built alike, as transformers spells them."""

from __future__ import annotations

from collections.abc import Iterator

from neoxkit.config.model import ModelConfig
from neoxkit.families.huggingface import (
    PASSIVE,
    SCALING,
    SIZES,
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
    *SCALING,
    *token_fields(bos=1, eos=2),
    Field("norm.eps", ("rms_norm_eps",), default=1e-6, read=read_number),
    Field("position.base", ("rope_theta", "rope_parameters.rope_theta"), default=10000.0, read=read_number),
    Field(
        "position.fraction",
        (),
        ("partial_rotary_factor", "rope_parameters.partial_rotary_factor"),
        default=1.0,
        read=read_number,
    ),
    Field("mixer.head_dim", ("head_dim",), default=width_over_heads),
    Field("mlp.activation", ("hidden_act",), default="silu", read=read_activation, write=write_activation),
)
"""The fields that Mistral shares."""

IMPLIES = {
    "residual": "sequential",
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
    architecture="LlamaForCausalLM",
    model_type="llama",
    fields=(
        *DENSE,
        Field("mixer.kv_heads", ("num_key_value_heads",), default=lambda theirs: theirs.get("num_attention_heads")),
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
