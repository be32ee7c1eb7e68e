"""Phi-3: Llama with query, key and value in one matrix, gate and up in another, and perhaps a window."""

from __future__ import annotations

from collections.abc import Iterator

from neoxkit.config.model import ModelConfig, Rotary
from neoxkit.families.huggingface import (
    PASSIVE,
    ROPE_BASE,
    SIZES,
    kv_heads,
    part_of_head,
    read_activation,
    read_number,
    read_scaling,
    token_fields,
    width_over_heads,
    write_activation,
)
from neoxkit.families.layout import Stacked
from neoxkit.families.schema import Family, Field, Rule


def rules(c: ModelConfig) -> Iterator[Rule]:
    """Names; the fused matrices hold their parts one below the other."""
    theirs, q, kv = "model.layers.{i}.", c.mixer.heads * c.mixer.head_dim, c.mixer.kv_heads * c.mixer.head_dim
    yield Rule(("embed.weight",), ("model.embed_tokens.weight",))
    yield Rule(("layers.{i}.norm1.weight",), (f"{theirs}input_layernorm.weight",))
    qkv = tuple(f"layers.{{i}}.attn.{part}.weight" for part in "qkv")
    yield Rule(qkv, (f"{theirs}self_attn.qkv_proj.weight",), Stacked((q, kv, kv)))
    yield Rule(("layers.{i}.attn.o.weight",), (f"{theirs}self_attn.o_proj.weight",))
    yield Rule(("layers.{i}.norm2.weight",), (f"{theirs}post_attention_layernorm.weight",))
    gate_up = ("layers.{i}.mlp.gate.weight", "layers.{i}.mlp.up.weight")
    yield Rule(gate_up, (f"{theirs}mlp.gate_up_proj.weight",), Stacked((c.mlp.hidden, c.mlp.hidden)))
    yield Rule(("layers.{i}.mlp.down.weight",), (f"{theirs}mlp.down_proj.weight",))
    yield Rule(("norm.weight",), ("model.norm.weight",))
    if not c.tied:
        yield Rule(("head.weight",), ("lm_head.weight",))


def caution(c: ModelConfig) -> str | None:
    """What releases before 4.46 and 4.50 do otherwise, without a word."""
    found = []
    if c.mixer.window is not None:
        found.append("transformers before 4.46 computes the window of Phi-3 models otherwise")
    if isinstance(c.position, Rotary) and c.position.fraction != 1:
        found.append("transformers before 4.50 rotates whole heads of Phi-3 models")
    return "; ".join(found) or None


PHI3 = Family(
    name="phi3",
    title="Phi-3",
    architecture="Phi3ForCausalLM",
    model_type="phi3",
    fields=(
        *SIZES,
        # Read to be refused: the family's own scaling changes with the length of the text (longrope).
        Field("position.scaling", (), ("rope_scaling", "rope_parameters"), default=None, read=read_scaling),
        ROPE_BASE,
        part_of_head(1.0),
        *token_fields(bos=1, eos=32000, pad=32000),
        Field("norm.eps", ("rms_norm_eps",), default=1e-5, read=read_number),
        Field("mixer.head_dim", ("head_dim",), default=width_over_heads),
        kv_heads(None),
        Field("mixer.window", ("sliding_window",), default=None, nullable=True),
        Field("mlp.activation", ("hidden_act",), default="silu", read=read_activation, write=write_activation),
    ),
    rules=rules,
    implies={
        "residual": "sequential",
        "embed_norm": False,
        "norm.kind": "rms",
        "norm.bias": False,
        "position.kind": "rotary",
        "position.scaling": None,
        "mixer.kind": "attention",
        "mixer.bias": False,
        "mixer.out_bias": False,
        "mixer.qk_norm": False,
        "mlp.gated": True,
        "mlp.bias": False,
    },
    fixed={"attention_bias": False, "mlp_bias": False},
    passive=PASSIVE | {"embd_pdrop", "resid_pdrop", "original_max_position_embeddings"},
    buffers=(r"\.rotary_emb\.inv_freq$",),
    caution=caution,
)
