"""Llama and Mistral as Meta's and Mistral's own files spell them: params.json, and the names of tensors.

Read only. The names are those of the two reference models, which are alike:
github.com/meta-llama/llama-models and github.com/mistralai/mistral-inference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from neoxkit.config.model import ModelConfig
from neoxkit.families.huggingface import read_ids, read_number
from neoxkit.families.layout import Interleaved
from neoxkit.families.llama import IMPLIES
from neoxkit.families.schema import Family, Field, Rule


def rules(c: ModelConfig) -> Iterator[Rule]:
    """Names, and the pairs of rows that rotary positions turn."""
    yield Rule(("embed.weight",), ("tok_embeddings.weight",))
    layer, attn = "layers.{i}", "layers.{i}.attention"
    yield Rule((f"{layer}.norm1.weight",), (f"{layer}.attention_norm.weight",))
    yield Rule((f"{layer}.norm2.weight",), (f"{layer}.ffn_norm.weight",))
    yield Rule((f"{layer}.attn.q.weight",), (f"{attn}.wq.weight",), Interleaved(c.mixer.heads))
    yield Rule((f"{layer}.attn.k.weight",), (f"{attn}.wk.weight",), Interleaved(c.mixer.kv_heads))
    yield Rule((f"{layer}.attn.v.weight",), (f"{attn}.wv.weight",))
    yield Rule((f"{layer}.attn.o.weight",), (f"{attn}.wo.weight",))
    for ours, theirs in {"gate": "w1", "up": "w3", "down": "w2"}.items():
        yield Rule((f"{layer}.mlp.{ours}.weight",), (f"{layer}.feed_forward.{theirs}.weight",))
    yield Rule(("norm.weight",), ("norm.weight",))
    if not c.tied:
        yield Rule(("head.weight",), ("output.weight",))


def read_window(theirs: Any) -> int | None:
    """A sliding window; some files write the number as a text. Raises ValueError for anything else."""
    if isinstance(theirs, str) and theirs.isdigit():
        return int(theirs)
    if theirs is None or type(theirs) is int:
        return theirs
    raise ValueError("one window for all layers is wanted")


def _head_dim(theirs: Mapping[str, Any]) -> int | None:
    width, heads = theirs.get("dim"), theirs.get("n_heads")
    return width // heads if type(width) is int and type(heads) is int and heads > 0 else None


META_LLAMA = Family(
    name="llama",
    title="Llama",
    architecture="",
    model_type="",
    fields=(
        Field("depth", ("n_layers",)),
        Field("width", ("dim",)),
        Field("vocab", ("vocab_size",)),
        Field("context", ("max_seq_len",)),
        Field("tied", ("tied_embeddings",), default=False),
        Field("norm.eps", ("norm_eps",), default=1e-5, read=read_number),
        Field("position.base", ("rope_theta",), default=10000.0, read=read_number),
        Field("position.scaling", ("rope_scaling",), default=None),
        Field("mixer.heads", ("n_heads",)),
        Field("mixer.kv_heads", ("n_kv_heads",), default=lambda theirs: theirs.get("n_heads")),
        Field("mixer.head_dim", ("head_dim",), default=_head_dim),
        Field("mlp.hidden", ("hidden_dim",)),
        Field("tokens.bos", ("bos_id",), default=1),
        Field("tokens.eos", ("eos_ids",), default=(2,), read=read_ids),
    ),
    rules=rules,
    implies={
        **IMPLIES,
        "mixer.bias": False,
        "mixer.out_bias": False,
        "mixer.window": None,
        "mlp.bias": False,
        "mlp.activation": "silu",
    },
    passive=frozenset(
        {
            "causal",
            "ffn_dim_multiplier",
            "max_batch_size",
            "model_type",
            "multiple_of",
            "rope_high_freq_factor",
            "rope_scaling_factor",
            "use_scaled_rope",
        }
    ),
    buffers=(r"^rope\.freqs$",),
)
"""The keys below `rope_scaling` and the values that files leave out are put in before this table is read."""

META_MISTRAL = replace(
    META_LLAMA,
    name="mistral",
    title="Mistral",
    fields=(*META_LLAMA.fields, Field("mixer.window", ("sliding_window",), default=None, read=read_window)),
    implies={key: value for key, value in META_LLAMA.implies.items() if key != "mixer.window"},
)

OTHER_MATHEMATICS = (
    "_sliding_window",
    "llama_4_scaling",
    "lora",
    "moe",
    "q_lora_rank",
    "quantization",
    "quantization_args",
    "ragged_attention",
    "use_biases",
    "vision_chunk_size",
    "vision_encoder",
    "yarn",
)
"""Keys of params.json under which the models compute something that neoxkit does not."""
