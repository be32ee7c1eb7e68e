"""Fields that the families of transformers spell alike."""

from __future__ import annotations

from typing import Any

from neoxkit.families.schema import Field

PASSIVE = frozenset(
    {
        "architectures",
        "attention_dropout",
        "classifier_dropout",
        "dtype",
        "hidden_dropout",
        "initializer_range",
        "is_decoder",
        "model_type",
        "pretraining_tp",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
"""Keys that say nothing about what the network computes."""

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
"""Theirs to ours; several of theirs are one function. The first that maps to ours is the one written."""


def read_activation(theirs: str) -> str:
    """Our name of an activation. Raises ValueError for one that neoxkit does not have."""
    if theirs not in ACTIVATIONS:
        raise ValueError(f"neoxkit has {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[theirs]


def write_activation(ours: str) -> str:
    """Their oldest name of an activation."""
    return next(theirs for theirs, name in ACTIVATIONS.items() if name == ours)


def read_scaling(theirs: dict[str, Any] | None) -> dict[str, Any] | None:
    """Our Scaling node from `rope_scaling` (transformers 4) or `rope_parameters` (5)."""
    if theirs is None:
        return None
    kind = theirs.get("rope_type", theirs.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return {"kind": "linear", "factor": float(theirs["factor"])}
    if kind == "llama3":
        return {
            "kind": "llama3",
            "factor": float(theirs["factor"]),
            "low_freq_factor": float(theirs["low_freq_factor"]),
            "high_freq_factor": float(theirs["high_freq_factor"]),
            "original_context": int(theirs["original_max_position_embeddings"]),
        }
    raise ValueError(f"rotary scaling {kind!r} is none of default, linear, llama3")


def _scaling_values(ours: dict[str, Any]) -> dict[str, Any]:
    if ours["kind"] == "linear":
        return {"factor": ours["factor"]}
    return {
        "factor": ours["factor"],
        "low_freq_factor": ours["low_freq_factor"],
        "high_freq_factor": ours["high_freq_factor"],
        "original_max_position_embeddings": ours["original_context"],
    }


def write_rope_scaling(ours: dict[str, Any] | None) -> dict[str, Any] | None:
    """The `rope_scaling` of transformers 4. Releases before 4.43 know `type` only, and only linear."""
    if ours is None:
        return None
    return {"type" if ours["kind"] == "linear" else "rope_type": ours["kind"], **_scaling_values(ours)}


def write_rope_parameters(ours: dict[str, Any] | None) -> dict[str, Any]:
    """The part of transformers 5's `rope_parameters` that says how frequencies are scaled."""
    if ours is None:
        return {"rope_type": "default"}
    return {"rope_type": ours["kind"], **_scaling_values(ours)}


def read_ids(theirs: int | list[int] | None) -> list[int]:
    """Token ids from one id, a list or null."""
    if theirs is None:
        return []
    return [theirs] if isinstance(theirs, int) else [int(token) for token in theirs]


def write_ids(ours: list[int]) -> int | list[int] | None:
    """One id alone where there is one, as every release reads it."""
    return None if not ours else ours[0] if len(ours) == 1 else list(ours)


def read_pad(theirs: int | None) -> int | None:
    """Early Llama files say -1 where they have no padding token."""
    return None if theirs is None or theirs < 0 else theirs


def token_fields(bos: int, eos: int) -> tuple[Field, ...]:
    """Special tokens, with the ids that the family's configuration class assumes when they are absent."""
    return (
        Field("tokens.bos", ("bos_token_id",), default=bos, nullable=True),
        Field("tokens.eos", ("eos_token_id",), default=[eos], read=read_ids, write=write_ids, nullable=True),
        Field("tokens.pad", ("pad_token_id",), default=None, read=read_pad, nullable=True),
    )


SIZES = (
    Field("depth", ("num_hidden_layers",)),
    Field("width", ("hidden_size",)),
    Field("vocab", ("vocab_size",)),
    Field("context", ("max_position_embeddings",)),
    Field("mixer.heads", ("num_attention_heads",)),
    Field("mlp.hidden", ("intermediate_size",)),
    Field("tied", ("tie_word_embeddings",), default=False),
)

SCALING = (
    Field(
        "position.scaling", ("rope_scaling",), default=None, read=read_scaling, write=write_rope_scaling, nullable=True
    ),
    Field("position.scaling", ("rope_parameters",), default=None, read=read_scaling, write=write_rope_parameters),
)
