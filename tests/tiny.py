"""Tiny random models of every family, made by transformers: what the laws are run over."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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

        kind = {"gpt_neox": "GPTNeoXConfig", "llama": "LlamaConfig", "mistral": "MistralConfig"}[self.family]
        return getattr(transformers, kind)(**{**SIZES, **self.options})

    def model(self) -> Any:
        """A random transformers model in fp32, with biases and norms that are not their defaults."""
        import torch
        import transformers

        torch.manual_seed(7)
        model = transformers.AutoModelForCausalLM.from_config(self.config(), attn_implementation="sdpa")
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
]
