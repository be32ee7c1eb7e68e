"""Which families can spell a model, and why another cannot, in people's words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from neoxkit.config.model import ModelConfig
from neoxkit.families.schema import Family
from neoxkit.families.tree import ABSENT, lookup

Words = Callable[[Any], str]


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _or_none(words: Words) -> Words:
    return lambda value: "none" if value is None else words(value)


def _has(value: Any) -> str:
    return "one" if value else "none"


def _one_of(**names: str) -> Words:
    return lambda value: names.get(value, str(value))


def _scaling(value: Any) -> str:
    return f"{value['kind']}, factor {value['factor']:g}"


WORDS: dict[str, tuple[str, Words]] = {
    "width": ("width", _number),
    "residual": (
        "residual",
        _one_of(shared="parallel with one norm for both sublayers", post="sequential with norms behind the sublayers"),
    ),
    "embed_norm": ("norm of the embedding", _has),
    "norm.kind": ("norm", _one_of(layer="layernorm", rms="rmsnorm")),
    "norm.bias": ("bias of the norms", _has),
    "position.kind": ("position", _one_of(alibi="ALiBi")),
    "position.fraction": ("rotated part of each head", _number),
    "position.scaling": ("rotary scaling", _or_none(_scaling)),
    "mixer.heads": ("heads", _number),
    "mixer.kv_heads": ("key/value heads", _number),
    "mixer.head_dim": ("elements of a head", _number),
    "mixer.bias": ("bias of query, key and value", _has),
    "mixer.out_bias": ("bias of the attention's output", _has),
    "mixer.window": ("window", _or_none(_number)),
    "mixer.qk_norm": ("norm of queries and keys", _has),
    "mixer.qk_norm_span": ("norm of queries and keys over", _one_of(head="each head", all="all heads together")),
    "mlp.hidden": ("rows of the MLP", _number),
    "mlp.gated": ("gate in the MLP", _has),
    "mlp.activation": ("activation", _one_of(gelu_tanh="gelu (tanh)", gelu="gelu (exact)")),
    "mlp.bias": ("bias of the MLP", _has),
}
"""What people call the paths of a configuration, and their values. Other paths are called as they are."""

DERIVED = {
    "width": "a multiple of its heads",
    "mixer.heads": "a power of two",
    "mixer.head_dim": "width / heads",
    "mlp.hidden": "4 x width",
}
"""What a family has where its value follows from others."""


def unfit(family: Family, config: ModelConfig) -> list[str]:
    """Why a model cannot be spelled as this family, one reason each; empty when it can."""
    ours = config.model_dump(mode="json")
    reasons = []
    for path, value in family.implies.items():
        wanted = value(config) if callable(value) else value
        given = lookup(ours, path)
        if given is ABSENT or given == wanted:
            continue
        has = DERIVED[path] if callable(value) and path in DERIVED else _said(path, wanted)
        reasons.append(f"{_named(path)}: {_said(path, given)}, {family.title} has {has}")
    written: dict[str, tuple[str, Any]] = {}
    for field in family.fields:
        given = lookup(ours, field.ours)
        for path in field.theirs:
            other, before = written.setdefault(path, (field.ours, given))
            if other != field.ours and before != given:
                both = f"{_named(other)}: {_said(other, before)}, {_named(field.ours)}: {_said(field.ours, given)}"
                reasons.append(f"{both}, {family.title} has one {path} for the two")
    return reasons


def fitting(families: Iterable[Family], config: ModelConfig) -> list[Family]:
    """Those families that can spell a model, its own first."""
    return sorted((each for each in families if not unfit(each, config)), key=lambda each: each.name != config.family)


def nearest(families: Iterable[Family], config: ModelConfig) -> Family:
    """The family with the fewest reasons not to spell a model; of those with as few, its own or else the first."""
    return min(families, key=lambda each: (len(unfit(each, config)), each.name != config.family))


def _named(path: str) -> str:
    return WORDS[path][0] if path in WORDS else path


def _said(path: str, value: Any) -> str:
    return WORDS[path][1](value) if path in WORDS else _number(value)
