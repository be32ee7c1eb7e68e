"""MPT as transformers computes it: ALiBi, layer norms without bias, no biases at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from neoxkit.config.model import ModelConfig
from neoxkit.families.huggingface import PASSIVE, four_times, read_number, token_fields
from neoxkit.families.layout import Stacked
from neoxkit.families.schema import Family, Field, Rule

PARTS = {
    "norm1": "norm_1",
    "attn.o": "attn.out_proj",
    "norm2": "norm_2",
    "mlp.up": "ffn.up_proj",
    "mlp.down": "ffn.down_proj",
}


def rules(c: ModelConfig) -> Iterator[Rule]:
    """Names; query, key and value lie one below the other."""
    theirs = "transformer.blocks.{i}."
    yield Rule(("embed.weight",), ("transformer.wte.weight",))
    qkv = tuple(f"layers.{{i}}.attn.{part}.weight" for part in "qkv")
    yield Rule(qkv, (f"{theirs}attn.Wqkv.weight",), Stacked((c.width,) * 3))
    for ours, name in PARTS.items():
        yield Rule((f"layers.{{i}}.{ours}.weight",), (f"{theirs}{name}.weight",))
    yield Rule(("norm.weight",), ("transformer.norm_f.weight",))
    if not c.tied:
        yield Rule(("head.weight",), ("lm_head.weight",))


def read_heads(theirs: Any) -> int:
    """A power of two, where their slopes of ALiBi are everyone's. Raises ValueError for another number."""
    if type(theirs) is not int or theirs < 1 or theirs & (theirs - 1):
        raise ValueError("heads that are no power of two have other ALiBi slopes here than elsewhere")
    return theirs


ATTENTION = {
    "alibi": True,
    "alibi_bias_max": 8,
    "attn_type": "multihead_attention",
    "attn_uses_sequence_id": False,
    "clip_qkv": None,
    "prefix_lm": False,
    "qk_ln": False,
    "softmax_scale": None,
}
"""What their attention can do, and neoxkit does one way."""

MPT = Family(
    name="mpt",
    title="MPT",
    architecture="MptForCausalLM",
    model_type="mpt",
    fields=(
        Field("depth", ("n_layers",)),
        Field("width", ("d_model",)),
        Field("vocab", ("vocab_size",)),
        Field("context", ("max_seq_len",)),
        Field("tied", ("tie_word_embeddings",), default=True),
        *token_fields(bos=None, eos=None),
        Field("norm.eps", ("layer_norm_epsilon",), default=1e-5, read=read_number),
        Field("mixer.heads", ("n_heads",), read=read_heads),
        Field("mixer.kv_heads", ("n_heads",)),
        Field("mlp.hidden", (), default=four_times("d_model")),
    ),
    rules=rules,
    implies={
        "residual": "sequential",
        "embed_norm": False,
        "norm.kind": "layer",
        "norm.bias": False,
        "position.kind": "alibi",
        "mixer.kind": "attention",
        "mixer.heads": lambda c: 2 ** (c.mixer.heads.bit_length() - 1),
        "mixer.head_dim": lambda c: c.width / c.mixer.heads,
        "mixer.bias": False,
        "mixer.out_bias": False,
        "mixer.window": None,
        "mixer.qk_norm": False,
        "mlp.hidden": lambda c: 4 * c.width,
        "mlp.gated": False,
        "mlp.activation": "gelu",
        "mlp.bias": False,
    },
    fixed={
        **{f"attn_config.{key}": value for key, value in ATTENTION.items()},
        "expansion_ratio": 4,
        "logit_scale": None,
        "no_bias": True,
        "norm_type": "low_precision_layernorm",
    },
    passive=PASSIVE
    | {
        "emb_pdrop",
        "embedding_fraction",
        "init_config",
        "init_device",
        "learned_pos_emb",  # looked at by no release of transformers
        "resid_pdrop",
        "tokenizer_name",
        "verbose",
    },
    # llama.cpp knows the class by the name that the models' authors gave it, and asks for its attention.
    beside={"architectures": ["MPTForCausalLM"], "attn_config": ATTENTION},
)
