"""GPT-NeoX-20B, Pythia and their relatives, as transformers spells them."""

from __future__ import annotations

from collections.abc import Iterator

from neoxkit.config.model import ModelConfig
from neoxkit.families.huggingface import (
    PASSIVE,
    SCALING,
    SIZES,
    read_activation,
    read_flag,
    read_number,
    token_fields,
    write_activation,
)
from neoxkit.families.layout import PerHead
from neoxkit.families.schema import Family, Field, Rule


def rules(c: ModelConfig) -> Iterator[Rule]:
    """Names; query, key and value are one matrix, head by head."""
    layer = "gpt_neox.layers.{i}."
    kinds = ("weight", "bias")
    yield Rule(("embed.weight",), ("gpt_neox.embed_in.weight",))
    for kind in kinds:
        yield Rule((f"layers.{{i}}.norm1.{kind}",), (f"{layer}input_layernorm.{kind}",))
        yield Rule((f"layers.{{i}}.norm2.{kind}",), (f"{layer}post_attention_layernorm.{kind}",))
        if kind == "weight" or c.mixer.bias:
            qkv = tuple(f"layers.{{i}}.attn.{part}.{kind}" for part in "qkv")
            yield Rule(qkv, (f"{layer}attention.query_key_value.{kind}",), PerHead(c.mixer.heads))
            yield Rule((f"layers.{{i}}.attn.o.{kind}",), (f"{layer}attention.dense.{kind}",))
        yield Rule((f"layers.{{i}}.mlp.up.{kind}",), (f"{layer}mlp.dense_h_to_4h.{kind}",))
        yield Rule((f"layers.{{i}}.mlp.down.{kind}",), (f"{layer}mlp.dense_4h_to_h.{kind}",))
        yield Rule((f"norm.{kind}",), (f"gpt_neox.final_layer_norm.{kind}",))
    if not c.tied:
        yield Rule(("head.weight",), ("embed_out.weight",))


GPT_NEOX = Family(
    name="gpt_neox",
    title="GPT-NeoX",
    architecture="GPTNeoXForCausalLM",
    model_type="gpt_neox",
    fields=(
        *SIZES,
        *SCALING,
        *token_fields(bos=0, eos=2),
        Field("norm.eps", ("layer_norm_eps",), default=1e-5, read=read_number),
        Field(
            "residual",
            ("use_parallel_residual",),
            default="parallel",
            read=lambda parallel: "parallel" if read_flag(parallel) else "sequential",
            write=lambda residual: residual == "parallel",
        ),
        Field(
            "position.base",
            ("rotary_emb_base", "rope_parameters.rope_theta"),
            ("rope_theta",),
            default=10000.0,
            read=read_number,
        ),
        Field(
            "position.fraction",
            ("rotary_pct", "rope_parameters.partial_rotary_factor"),
            ("partial_rotary_factor",),
            default=0.25,
            read=read_number,
        ),
        Field("mixer.kv_heads", ("num_attention_heads",)),
        Field("mixer.bias", ("attention_bias",), default=True),
        Field("mixer.out_bias", ("attention_bias",), default=True),
        Field("mlp.activation", ("hidden_act",), default="gelu", read=read_activation, write=write_activation),
    ),
    rules=rules,
    implies={
        "residual": lambda c: c.residual if c.residual in ("parallel", "sequential") else "parallel",
        "embed_norm": False,
        "norm.kind": "layer",
        "norm.bias": True,
        "position.kind": "rotary",
        "mixer.kind": "attention",
        "mixer.window": None,
        "mixer.qk_norm": False,
        "mixer.head_dim": lambda c: c.width / c.mixer.heads,  # not //: the heads must fill the width exactly
        "mlp.gated": False,
        "mlp.bias": True,
    },
    passive=PASSIVE,
    buffers=(r"\.attention\.(masked_)?bias$", r"\.rotary_emb\.inv_freq$"),
)
