"""GPT-2: learned positions, matrices [in, out], query, key and value in one."""

from __future__ import annotations

from collections.abc import Iterator

from neoxkit.config.model import ModelConfig
from neoxkit.families.huggingface import (
    PASSIVE,
    four_times,
    read_activation,
    read_number,
    token_fields,
    write_activation,
)
from neoxkit.families.layout import Same, Stacked, Transposed
from neoxkit.families.schema import Family, Field, Rule

PARTS = {"attn.o": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}


def rules(c: ModelConfig) -> Iterator[Rule]:
    """Names; weights of linear layers are transposed, their biases are not."""
    theirs, thirds = "transformer.h.{i}.", Stacked((c.width,) * 3)
    yield Rule(("embed.weight",), ("transformer.wte.weight",))
    yield Rule(("position.weight",), ("transformer.wpe.weight",))
    for kind in ("weight", "bias"):
        yield Rule((f"layers.{{i}}.norm1.{kind}",), (f"{theirs}ln_1.{kind}",))
        yield Rule((f"layers.{{i}}.norm2.{kind}",), (f"{theirs}ln_2.{kind}",))
        qkv = tuple(f"layers.{{i}}.attn.{part}.{kind}" for part in "qkv")
        yield Rule(qkv, (f"{theirs}attn.c_attn.{kind}",), Transposed(thirds) if kind == "weight" else thirds)
        for ours, name in PARTS.items():
            layout = Transposed() if kind == "weight" else Same()
            yield Rule((f"layers.{{i}}.{ours}.{kind}",), (f"{theirs}{name}.{kind}",), layout)
        yield Rule((f"norm.{kind}",), (f"transformer.ln_f.{kind}",))
    if not c.tied:
        yield Rule(("head.weight",), ("lm_head.weight",))


GPT2 = Family(
    name="gpt2",
    title="GPT-2",
    architecture="GPT2LMHeadModel",
    model_type="gpt2",
    fields=(
        Field("depth", ("n_layer",), ("num_hidden_layers",)),
        Field("width", ("n_embd",)),
        Field("vocab", ("vocab_size",)),
        Field("context", ("n_positions",), ("max_position_embeddings",)),
        Field("tied", ("tie_word_embeddings",), default=True),
        *token_fields(bos=50256, eos=50256),
        Field("norm.eps", ("layer_norm_epsilon",), default=1e-5, read=read_number),
        Field("mixer.heads", ("n_head",)),
        Field("mixer.kv_heads", ("n_head",)),
        Field("mlp.hidden", ("n_inner",), default=four_times("n_embd")),
        Field(
            "mlp.activation",
            ("activation_function",),
            default="gelu_tanh",
            read=read_activation,
            write=write_activation,
        ),
    ),
    rules=rules,
    implies={
        "residual": "sequential",
        "embed_norm": False,
        "norm.kind": "layer",
        "norm.bias": True,
        "position.kind": "learned",
        "mixer.kind": "attention",
        "mixer.bias": True,
        "mixer.out_bias": True,
        "mixer.window": None,
        "mixer.qk_norm": False,
        "mixer.head_dim": lambda c: c.width / c.mixer.heads,
        "mlp.gated": False,
        "mlp.bias": True,
    },
    fixed={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    passive=PASSIVE
    | {
        "attn_pdrop",
        "embd_pdrop",
        "n_ctx",
        "reorder_and_upcast_attn",
        "resid_pdrop",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "task_specific_params",
    },
    buffers=(r"\.attn\.(masked_)?bias$",),
    beside={"n_ctx": lambda c: c.context},  # llama.cpp asks for it
)
