"""Tiny random models of every family, made by transformers: what the laws are run over."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neoxkit.families import by_name

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


GPT2 = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
}
MPT = {
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "",
    "max_position_embeddings": "max_seq_len",
}
BLOOM = {
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "",
    "max_position_embeddings": "seq_length",
}
FALCON = {"intermediate_size": "ffn_hidden_size"}
SPELLED: dict[str, dict[str, str]] = {"gpt2": GPT2, "mpt": MPT, "bloom": BLOOM, "falcon": FALCON}
"""Families that spell sizes otherwise."""


def sizes(family: str, values: dict[str, int] = SIZES) -> dict[str, int]:
    """Sizes as a family spells them."""
    spelled = SPELLED.get(family, {})
    return {spelled.get(name, name): value for name, value in values.items() if spelled.get(name) != ""}


@dataclass(frozen=True)
class Tiny:
    """A model of one family: what makes it special, as its own configuration class spells it."""

    family: str
    variant: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.family}-{self.variant}"

    def config(self) -> Any:
        """Its transformers configuration."""
        import transformers

        kind = transformers.CONFIG_MAPPING[by_name(self.family).model_type]
        return kind(**{**sizes(self.family), **self.options})

    @property
    def attention(self) -> str:
        """The implementation that transformers is to use."""
        return "eager" if self.family in ("mpt", "bloom") else "sdpa"  # it has no other for those two

    def model(self) -> Any:
        """A random transformers model in fp32, with biases and norms that are not their defaults."""
        import torch
        import transformers

        torch.manual_seed(7)
        model = transformers.AutoModelForCausalLM.from_config(self.config(), attn_implementation=self.attention)
        for parameter in model.parameters():
            with torch.no_grad():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        return model.eval()


def save(model: Any, folder: Path, shards: bool = False) -> None:
    """Let transformers write a model; with `shards` in several files."""
    model.save_pretrained(folder, max_shard_size="60KB" if shards else "5GB")


def tiny(name: str) -> Tiny:
    """The tiny model called so: "llama-gqa"."""
    return next(each for each in TINY if str(each) == name)


def rope(kind: str = "default", **values: Any) -> dict[str, Any]:
    """The `rope_parameters` of transformers 5."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

UNDROPPED = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

TINY = [
    Tiny("gpt_neox", "parallel"),
    Tiny("gpt_neox", "sequential", {"use_parallel_residual": False, "hidden_act": "gelu_new"}),
    Tiny("gpt_neox", "rotary", rope(rope_theta=50000.0, partial_rotary_factor=1.0)),
    Tiny("gpt_neox", "linear", rope("linear", factor=4.0, partial_rotary_factor=0.5)),
    Tiny("gpt_neox", "llama3", rope("llama3", **LLAMA3, partial_rotary_factor=0.25)),
    Tiny("gpt_neox", "unbiased", {"attention_bias": False, "layer_norm_eps": 1e-3, "hidden_act": "relu"}),
    Tiny("gpt_neox", "tied", {"tie_word_embeddings": True}),
    Tiny("llama", "mha"),
    Tiny("llama", "gqa", {"num_key_value_heads": 2, **rope(rope_theta=500000.0)}),
    Tiny("llama", "mqa", {"num_key_value_heads": 1, "head_dim": 12}),
    Tiny("llama", "tied", {"tie_word_embeddings": True, "rms_norm_eps": 1e-4}),
    Tiny("llama", "biased", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
    Tiny("llama", "llama3", {"num_key_value_heads": 2, **rope("llama3", **LLAMA3)}),
    Tiny("llama", "linear", rope("linear", factor=2.0)),
    Tiny("mistral", "window", {"num_key_value_heads": 2, "sliding_window": 5}),
    Tiny("mistral", "linear", {"num_key_value_heads": 3, "head_dim": 10, **rope("linear", factor=3.0, rope_theta=1e6)}),
    Tiny("mistral", "whole", {"num_key_value_heads": 6, "sliding_window": None}),
    Tiny("qwen2", "gqa", {"num_key_value_heads": 2, **rope(rope_theta=1e6)}),
    Tiny("qwen2", "tied", {"num_key_value_heads": 6, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    Tiny("qwen2", "linear", {"num_key_value_heads": 3, **rope("linear", factor=2.0)}),
    Tiny("qwen3", "gqa", {"num_key_value_heads": 2, "head_dim": 12, **rope(rope_theta=1e6)}),
    Tiny("qwen3", "tied", {"num_key_value_heads": 3, "head_dim": 8, "tie_word_embeddings": True}),
    Tiny("qwen3", "biased", {"num_key_value_heads": 6, "head_dim": 6, "attention_bias": True}),
    Tiny("phi3", "mha", {"pad_token_id": None, **rope(rope_theta=50000.0)}),
    Tiny("phi3", "window", {"pad_token_id": None, "num_key_value_heads": 2, "sliding_window": 7}),
    Tiny("phi3", "tied", {"pad_token_id": None, "tie_word_embeddings": True, **rope(partial_rotary_factor=0.5)}),
    Tiny("stablelm", "mha", {"num_key_value_heads": 6}),
    Tiny("stablelm", "parallel", {"num_key_value_heads": 2, "use_parallel_residual": True, "use_qkv_bias": True}),
    Tiny("stablelm", "linear", {"num_key_value_heads": 3, **rope("linear", factor=2.0, partial_rotary_factor=0.5)}),
    Tiny("gpt2", "tied", UNDROPPED),
    Tiny("gpt2", "untied", {**UNDROPPED, "tie_word_embeddings": False, "activation_function": "relu"}),
    Tiny("gpt2", "fourfold", {**UNDROPPED, "n_inner": None, "layer_norm_epsilon": 1e-3}),
    Tiny("olmo2", "mha", {"pad_token_id": None, **rope(rope_theta=500000.0)}),
    Tiny(
        "olmo2",
        "gqa",
        {"pad_token_id": None, "num_key_value_heads": 2, "attention_bias": True, "tie_word_embeddings": True},
    ),
    Tiny("olmo2", "linear", {"pad_token_id": None, "num_key_value_heads": 3, **rope("linear", factor=2.0)}),
    Tiny("mpt", "tied", {"n_heads": 4}),
    Tiny("mpt", "untied", {"n_heads": 4, "tie_word_embeddings": False, "layer_norm_epsilon": 1e-3}),
    Tiny("falcon", "mqa"),
    Tiny("falcon", "grouped", {"new_decoder_architecture": True, "num_kv_heads": 2, "tie_word_embeddings": False}),
    Tiny("falcon", "one-norm", {"new_decoder_architecture": True, "num_kv_heads": 3, "num_ln_in_parallel_attn": 1}),
    Tiny("falcon", "sequential", {"parallel_attn": False, "multi_query": False, "bias": True, **rope(rope_theta=5e5)}),
    Tiny("bloom", "tied"),
    Tiny("bloom", "untied", {"n_head": 4, "tie_word_embeddings": False, "layer_norm_epsilon": 1e-3}),
]
