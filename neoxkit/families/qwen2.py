"""Qwen 1.5, 2 and 2.5: Llama with biases on query, key and value alone."""

from __future__ import annotations

from dataclasses import replace

from neoxkit.families.huggingface import PASSIVE, kv_heads, read_full_attention, token_fields
from neoxkit.families.llama import DENSE, HEAD_DIM, IMPLIES, LLAMA, RMS_EPS
from neoxkit.families.schema import Field

UNWINDOWED = Field("mixer.window", (), ("layer_types",), default=None, read=read_full_attention)
"""Their windows are of some layers and not of others, and releases disagree which: they are refused."""

WINDOW_OFF = {"use_sliding_window": False}
WINDOW_UNUSED = frozenset({"max_window_layers", "sliding_window"})
"""Keys that mean something beside use_sliding_window alone."""

QWEN2 = replace(
    LLAMA,
    name="qwen2",
    title="Qwen 2",
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    fields=(*DENSE, *token_fields(bos=None, eos=None), RMS_EPS, HEAD_DIM, kv_heads(32), UNWINDOWED),
    implies={
        **IMPLIES,
        "mixer.bias": True,
        "mixer.out_bias": False,
        "mixer.window": None,
        "mlp.bias": False,
    },
    fixed={**WINDOW_OFF, "use_mrope": False},
    passive=PASSIVE | WINDOW_UNUSED,
)
