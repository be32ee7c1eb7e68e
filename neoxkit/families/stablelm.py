"""StableLM: Llama with layer norms, a part of each head rotated, and perhaps a parallel residual."""

from __future__ import annotations

from collections.abc import Iterator

from neoxkit.config.model import ModelConfig
from neoxkit.families.huggingface import (
    PASSIVE,
    ROTATED,
    SIZES,
    kv_heads,
    part_of_head,
    read_activation,
    read_flag,
    read_number,
    token_fields,
    write_activation,
)
from neoxkit.families.llama import rules as llama
from neoxkit.families.schema import Family, Field, Rule


def rules(c: ModelConfig) -> Iterator[Rule]:
    """Llama's, the biases of the norms, and no second norm where both sublayers read the first."""
    for rule in llama(c):
        if c.residual == "shared" and "norm2" in rule.ours[0]:
            continue
        yield rule
        if "norm" in rule.ours[0]:
            ours, theirs = (name.replace(".weight", ".bias") for name in (*rule.ours, *rule.theirs))
            yield Rule((ours,), (theirs,))


STABLELM = Family(
    name="stablelm",
    title="StableLM",
    architecture="StableLmForCausalLM",
    model_type="stablelm",
    fields=(
        *SIZES,
        *ROTATED,
        part_of_head(0.25),
        *token_fields(bos=0, eos=0),
        Field(
            "residual",
            ("use_parallel_residual",),
            default="sequential",
            read=lambda parallel: "shared" if read_flag(parallel) else "sequential",
            write=lambda residual: residual == "shared",
        ),
        Field("norm.eps", ("layer_norm_eps",), default=1e-5, read=read_number),
        kv_heads(32),
        Field("mixer.bias", ("use_qkv_bias",), default=False),
        Field("mlp.activation", ("hidden_act",), default="silu", read=read_activation, write=write_activation),
    ),
    rules=rules,
    implies={
        "residual": lambda c: c.residual if c.residual in ("sequential", "shared") else "sequential",
        "embed_norm": False,
        "norm.kind": "layer",
        "norm.bias": True,
        "position.kind": "rotary",
        "mixer.kind": "attention",
        "mixer.out_bias": False,
        "mixer.window": None,
        "mixer.qk_norm": False,
        "mixer.head_dim": lambda c: c.width / c.mixer.heads,
        "mlp.gated": True,
        "mlp.bias": False,
    },
    fixed={"qk_layernorm": False},
    passive=PASSIVE,
    buffers=(r"\.rotary_emb\.inv_freq$",),
)
