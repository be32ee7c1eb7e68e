"""Falcon with rotary positions: few key/value heads and, mostly, a parallel residual.

Those with ALiBi divide it by the square root of a head's size, with the scores, which neoxkit does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from neoxkit.config.model import ModelConfig
from neoxkit.families.huggingface import (
    PASSIVE,
    ROTATED,
    WHOLE_HEAD,
    four_times,
    read_activation,
    read_number,
    token_fields,
    write_activation,
)
from neoxkit.families.layout import PerHead, Same
from neoxkit.families.schema import Family, Field, Rule

NORMS = {
    "shared": {"norm1": "input_layernorm"},
    "parallel": {"norm1": "ln_attn", "norm2": "ln_mlp"},
    "sequential": {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"},
}
PARTS = {"attn.o": "self_attention.dense", "mlp.up": "mlp.dense_h_to_4h", "mlp.down": "mlp.dense_4h_to_h"}


def rules(c: ModelConfig) -> Iterator[Rule]:
    """Names; query, key and value are one matrix, key/value head by key/value head."""
    theirs, qkv = "transformer.h.{i}.", PerHead(c.mixer.kv_heads, (c.mixer.heads // c.mixer.kv_heads, 1, 1))
    yield Rule(("embed.weight",), ("transformer.word_embeddings.weight",))
    for kind in ("weight", "bias"):
        for ours, name in NORMS[c.residual].items():
            yield Rule((f"layers.{{i}}.{ours}.{kind}",), (f"{theirs}{name}.{kind}",))
        if kind == "weight" or c.mixer.bias:
            parts = tuple(f"layers.{{i}}.attn.{part}.{kind}" for part in "qkv")
            yield Rule(parts, (f"{theirs}self_attention.query_key_value.{kind}",), qkv)
            for ours, name in PARTS.items():
                yield Rule((f"layers.{{i}}.{ours}.{kind}",), (f"{theirs}{name}.{kind}",), Same())
        yield Rule((f"norm.{kind}",), (f"transformer.ln_f.{kind}",))
    if not c.tied:
        yield Rule(("head.weight",), ("lm_head.weight",))


def residual(theirs: Mapping[str, Any]) -> str:
    """How sublayers join. The newer architecture has a norm for each of them unless it says otherwise."""
    if theirs.get("new_decoder_architecture"):
        return "shared" if theirs.get("num_ln_in_parallel_attn") == 1 else "parallel"
    return "sequential" if theirs.get("parallel_attn") is False else "shared"


def kv_heads(theirs: Mapping[str, Any]) -> Any:
    """Key/value heads: the older architecture has one, or as many as query heads."""
    heads = theirs.get("num_attention_heads")
    if theirs.get("new_decoder_architecture"):
        return heads if theirs.get("num_kv_heads") is None else theirs["num_kv_heads"]
    return heads if theirs.get("multi_query") is False else 1


def is_new(c: ModelConfig) -> bool:
    """Whether only the newer architecture has such a model."""
    return c.residual == "parallel" or not _one_or_all(c)


def _one_or_all(c: ModelConfig) -> bool:
    return c.mixer.kv_heads in (1, c.mixer.heads)


FALCON = Family(
    name="falcon",
    title="Falcon",
    architecture="FalconForCausalLM",
    model_type="falcon",
    fields=(
        Field("depth", ("num_hidden_layers",)),
        Field("width", ("hidden_size",)),
        Field("vocab", ("vocab_size",)),
        Field("context", ("max_position_embeddings",), default=2048),
        Field("tied", ("tie_word_embeddings",), default=True),
        *ROTATED,
        WHOLE_HEAD,
        *token_fields(bos=11, eos=11),
        Field("norm.eps", ("layer_norm_epsilon",), default=1e-5, read=read_number),
        Field("residual", (), default=residual),
        Field("mixer.heads", ("num_attention_heads",)),
        Field("mixer.kv_heads", (), default=kv_heads),
        Field("mixer.bias", ("bias",), default=False),
        Field("mixer.out_bias", ("bias",), default=False),
        Field("mlp.bias", ("bias",), default=False),
        Field("mlp.hidden", ("ffn_hidden_size",), default=four_times("hidden_size")),
        Field("mlp.activation", ("activation",), default="gelu", read=read_activation, write=write_activation),
    ),
    rules=rules,
    implies={
        "residual": lambda c: c.residual if c.residual in NORMS else "parallel",
        "embed_norm": False,
        "norm.kind": "layer",
        "norm.bias": True,
        "position.kind": "rotary",
        "position.fraction": 1.0,
        "mixer.kind": "attention",
        "mixer.kv_heads": lambda c: c.mixer.kv_heads if c.residual != "sequential" or _one_or_all(c) else 1,
        "mixer.head_dim": lambda c: c.width / c.mixer.heads,
        "mixer.window": None,
        "mixer.qk_norm": False,
        "mlp.gated": False,
    },
    fixed={"alibi": False, "apply_residual_connection_post_layernorm": False},
    passive=PASSIVE
    | {"multi_query", "new_decoder_architecture", "num_kv_heads", "num_ln_in_parallel_attn", "parallel_attn"},
    beside={
        "alibi": False,
        "multi_query": lambda c: not is_new(c) and c.mixer.kv_heads == 1,
        "new_decoder_architecture": is_new,
        "num_kv_heads": lambda c: c.mixer.kv_heads,
        "num_ln_in_parallel_attn": lambda c: 1 + (c.residual == "parallel") if is_new(c) else None,
        "parallel_attn": lambda c: c.residual != "sequential",
    },
    buffers=(r"\.rotary_emb\.inv_freq$",),
)
