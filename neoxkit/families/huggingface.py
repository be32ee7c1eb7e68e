"""Fields that the families of transformers spell alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf, isfinite
from typing import Any

from neoxkit.families.schema import Field

PASSIVE = frozenset(
    {
        "architectures",
        "attention_dropout",
        "attention_probs_dropout_prob",
        "auto_map",
        "classifier_dropout",
        "dtype",
        "hidden_dropout",
        "hidden_dropout_prob",
        "initializer_range",
        "is_decoder",
        "model_type",
        "pretraining_tp",
        "torch_dtype",
        "transformers_version",
        "unk_token_id",
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


def four_times(*keys: str) -> Callable[[Mapping[str, Any]], int | None]:
    """A default for rows of the MLP: four times the width, which one of `keys` has; None where that is no size."""

    def rows(theirs: Mapping[str, Any]) -> int | None:
        width = next((theirs[key] for key in keys if theirs.get(key)), None)
        return 4 * width if type(width) is int else None

    return rows


def read_number(theirs: Any) -> float:
    """A finite number. Raises ValueError for anything else: a text, true, NaN."""
    if isinstance(theirs, bool) or not isinstance(theirs, int | float):
        raise ValueError("a number is wanted")
    try:
        number = float(theirs)
    except OverflowError:  # a whole number beyond 1e308
        number = inf
    if not isfinite(number):
        raise ValueError("a number is wanted")
    return number


def read_flag(theirs: Any) -> bool:
    """True or false. Raises ValueError for anything else: the text "false" would count as true."""
    if not isinstance(theirs, bool):
        raise ValueError("true or false is wanted")
    return theirs


def width_over_heads(theirs: Mapping[str, Any]) -> int | None:
    """The head_dim of a configuration that does not state it; None where width or heads are no sizes."""
    width, heads = theirs.get("hidden_size"), theirs.get("num_attention_heads")
    return width // heads if type(width) is int and type(heads) is int and heads > 0 else None


def kv_heads(default: int | None) -> Field:
    """The field of key/value heads: null is as many as query heads, an absent key is `default` (None: the same)."""

    def assumed(theirs: Mapping[str, Any]) -> Any:
        return default if default and "num_key_value_heads" not in theirs else theirs.get("num_attention_heads")

    return Field("mixer.kv_heads", ("num_key_value_heads",), default=assumed)


def read_full_attention(theirs: Any) -> None:
    """No window, from `layer_types`. Raises ValueError where a layer is of another type."""
    if not isinstance(theirs, list) or any(kind != "full_attention" for kind in theirs):
        raise ValueError("neoxkit has full attention in every layer of this family")


def read_activation(theirs: Any) -> str:
    """Our name of an activation. Raises ValueError for one that neoxkit does not have."""
    if not isinstance(theirs, str) or theirs not in ACTIVATIONS:
        raise ValueError(f"neoxkit has {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[theirs]


def write_activation(ours: str) -> str:
    """Their oldest name of an activation."""
    return next(theirs for theirs, name in ACTIVATIONS.items() if name == ours)


ROPE_KEYS = frozenset(
    {
        "rope_type",
        "type",
        "rope_theta",
        "partial_rotary_factor",
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    }
)
"""What `rope_scaling` and `rope_parameters` may hold; another key is another way of scaling."""


def read_scaling(theirs: Any) -> dict[str, Any] | None:
    """Our Scaling node from `rope_scaling` (transformers 4) or `rope_parameters` (5).

    Raises ValueError for a kind that neoxkit does not have, KeyError for a value that the kind lacks.
    """
    if theirs is None:
        return None
    if not isinstance(theirs, Mapping):
        raise ValueError("an object is wanted")
    stated = [theirs[key] for key in ("rope_type", "type") if theirs.get(key) is not None]
    kind = stated[0] if stated else "default"
    if stated[1:] not in ([], [kind]):
        raise ValueError(f"rope_type and type disagree: {kind!r} and {stated[1]!r}")
    if kind not in ("default", "linear", "llama3"):
        raise ValueError(f"rotary scaling {kind!r} is none of default, linear, llama3")
    if unknown := sorted(key for key, value in theirs.items() if key not in ROPE_KEYS and value is not None):
        raise ValueError(f"neoxkit does not know {', '.join(unknown)}")
    if kind == "default":
        return None
    if kind == "linear":
        return {"kind": "linear", "factor": read_number(theirs["factor"])}
    return {
        "kind": "llama3",
        "factor": read_number(theirs["factor"]),
        "low_freq_factor": read_number(theirs["low_freq_factor"]),
        "high_freq_factor": read_number(theirs["high_freq_factor"]),
        "original_context": theirs["original_max_position_embeddings"],
    }


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


def read_ids(theirs: Any) -> tuple[int, ...]:
    """Token ids from one id, a list or null. Raises ValueError for anything else."""
    ids = [] if theirs is None else theirs if isinstance(theirs, list) else [theirs]
    if not all(type(token) is int and token >= 0 for token in ids):
        raise ValueError("a token id, or a list of them, is wanted")
    return tuple(ids)


def write_ids(ours: list[int]) -> int | list[int] | None:
    """One id alone where there is one, as every release reads it."""
    return None if not ours else ours[0] if len(ours) == 1 else list(ours)


def read_pad(theirs: Any) -> Any:
    """Early Llama files say -1 where they have no padding token."""
    return None if theirs == -1 else theirs


def token_fields(bos: int | None, eos: int | None, pad: int | None = None) -> tuple[Field, ...]:
    """Special tokens, with the ids that the family's configuration class assumes when they are absent."""
    return (
        Field("tokens.bos", ("bos_token_id",), default=bos, nullable=True),
        Field("tokens.eos", ("eos_token_id",), default=read_ids(eos), read=read_ids, write=write_ids, nullable=True),
        Field("tokens.pad", ("pad_token_id",), default=pad, read=read_pad, nullable=True),
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

ROPE_BASE = Field("position.base", ("rope_theta", "rope_parameters.rope_theta"), default=10000.0, read=read_number)

ROTATED = (*SCALING, ROPE_BASE)
"""Rotary positions; the part of each head that is rotated is the family's to say."""

WHOLE_HEAD = Field(
    "position.fraction",
    (),
    ("partial_rotary_factor", "rope_parameters.partial_rotary_factor"),
    default=1.0,
    read=read_number,
)
"""For families that rotate whole heads: read, so that another fraction is refused, and never written."""


def part_of_head(default: float) -> Field:
    """The field of families that rotate a part of each head."""
    return Field(
        "position.fraction",
        ("partial_rotary_factor", "rope_parameters.partial_rotary_factor"),
        default=default,
        read=read_number,
    )
