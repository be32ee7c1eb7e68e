"""BLOOM: ALiBi, biases everywhere, and a norm on the embedding."""

from __future__ import annotations

from collections.abc import Iterator

from neoxkit.config.model import ModelConfig
from neoxkit.families.huggingface import PASSIVE, four_times, read_number, token_fields
from neoxkit.families.layout import PerHead
from neoxkit.families.schema import Family, Field, Rule

PARTS = {
    "norm1": "input_layernorm",
    "attn.o": "self_attention.dense",
    "norm2": "post_attention_layernorm",
    "mlp.up": "mlp.dense_h_to_4h",
    "mlp.down": "mlp.dense_4h_to_h",
}


def rules(c: ModelConfig) -> Iterator[Rule]:
    """Names; query, key and value are one matrix, head by head."""
    theirs = "transformer.h.{i}."
    yield Rule(("embed.weight",), ("transformer.word_embeddings.weight",))
    for kind in ("weight", "bias"):
        yield Rule((f"embed.norm.{kind}",), (f"transformer.word_embeddings_layernorm.{kind}",))
        qkv = tuple(f"layers.{{i}}.attn.{part}.{kind}" for part in "qkv")
        yield Rule(qkv, (f"{theirs}self_attention.query_key_value.{kind}",), PerHead(c.mixer.heads))
        for ours, name in PARTS.items():
            yield Rule((f"layers.{{i}}.{ours}.{kind}",), (f"{theirs}{name}.{kind}",))
        yield Rule((f"norm.{kind}",), (f"transformer.ln_f.{kind}",))
    if not c.tied:
        yield Rule(("head.weight",), ("lm_head.weight",))


BLOOM = Family(
    name="bloom",
    title="BLOOM",
    architecture="BloomForCausalLM",
    model_type="bloom",
    fields=(
        Field("depth", ("n_layer",), ("num_hidden_layers",)),
        Field("width", ("hidden_size",), ("n_embed",)),
        Field("vocab", ("vocab_size",)),
        # ALiBi has no longest sequence: the key is of the models' authors, and 2048 what they trained with.
        Field("context", ("seq_length",), default=2048),
        Field("tied", ("tie_word_embeddings",), default=True),
        *token_fields(bos=1, eos=2),
        Field("norm.eps", ("layer_norm_epsilon",), default=1e-5, read=read_number),
        Field("mixer.heads", ("n_head",), ("num_attention_heads",)),
        Field("mixer.kv_heads", ("n_head",), ("num_attention_heads",)),
        Field("mlp.hidden", (), default=four_times("hidden_size", "n_embed")),
    ),
    rules=rules,
    implies={
        "residual": "sequential",
        "embed_norm": True,
        "norm.kind": "layer",
        "norm.bias": True,
        "position.kind": "alibi",
        "mixer.kind": "attention",
        "mixer.head_dim": lambda c: c.width / c.mixer.heads,
        "mixer.bias": True,
        "mixer.out_bias": True,
        "mixer.window": None,
        "mixer.qk_norm": False,
        "mlp.hidden": lambda c: 4 * c.width,
        "mlp.gated": False,
        "mlp.activation": "gelu_tanh",
        "mlp.bias": True,
    },
    fixed={"apply_residual_connection_post_layernorm": False},
    passive=PASSIVE
    | {
        "attention_softmax_in_fp32",
        "bias_dropout_fusion",
        "masked_softmax_fusion",
        "n_inner",  # looked at by no release of transformers
        "offset_alibi",
        "skip_bias_add",
        "skip_bias_add_qkv",
        "slow_but_exact",
    },
)
