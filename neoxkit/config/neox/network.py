"""What gpt-neox's options say of the network, and which networks neoxkit computes.

Written once, for checkpoints (`neoxkit.convert.neox`, where the tensors have the last word) and for
runs (`neoxkit.config.neox.model`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from neoxkit.config.neox.settings import REMEDY, Settings
from neoxkit.errors import ConfigError
from neoxkit.log import warn

PLAIN = {"gelu": "gelu", "relu": "relu", "silu": "silu", "swish": "silu"}
GATED = {"geglu": "gelu", "reglu": "relu", "swiglu": "silu"}
NORMS = {"layernorm": ("layer", "layernorm_epsilon", 1e-5), "rmsnorm": ("rms", "rms_norm_epsilon", 1e-8)}
POSITIONS = ("rotary", "learned", "alibi", "none")
ATTENTION = ("global", "flash")
UNCOMPUTED = "neoxkit does not compute these"

FLAGS = {
    "use_mup": "muP's scales",
    "use_qk_layernorm": "a norm over the queries and keys of all heads",
    "te_mha": "TransformerEngine layers",
    "te_layernorm_mlp": "TransformerEngine layers",
    "te_columnparallel": "TransformerEngine layers",
    "te_rowparallel": "TransformerEngine layers",
    "apply_residual_connection_post_layernorm": "residuals taken after the norm",
}
"""Settings of networks that neoxkit does not compute."""

USED = frozenset(
    {"num_layers", "hidden_size", "num_attention_heads", "num_kv_heads", "max_position_embeddings", "seq_length"}
    | {"activation", "bias_gelu_fusion", "geglu", "mlp_type", "norm", "layernorm_epsilon", "rms_norm_epsilon"}
    | {"pos_emb", "rotary_pct", "rotary_emb_base", "opt_pos_emb_offset", "no_weight_tying", "gpt_j_residual"}
    | {"attention_config", "sliding_window_width", "use_bias_in_attn_linear", "use_bias_in_mlp", "gpt_j_tied"}
    | {"moe_num_experts", "num_experts", "soft_prompt_tuning", *FLAGS}
)
"""Settings that the configuration of a network is made of."""


def refuse_network(settings: Settings) -> None:
    """Raise ConfigError for settings of a network that neoxkit does not compute."""
    for key, what in FLAGS.items():
        if settings.flag(key, False):
            raise ConfigError(f"{settings.said(key)}: {what}", UNCOMPUTED)
    for key in ("moe_num_experts", "num_experts"):
        if (settings.whole(key) or 1) > 1:
            raise ConfigError(f"{settings.said(key)}: a mixture of experts", UNCOMPUTED)
    prompts = settings.get("soft_prompt_tuning")
    if prompts and not (isinstance(prompts, dict) and prompts.get("enabled") is False):
        raise ConfigError(f"{settings.said('soft_prompt_tuning')}: soft prompts", UNCOMPUTED)
    for kind in attention_kinds(settings.get("attention_config")):
        if kind not in ATTENTION:
            raise ConfigError(
                f"{settings.said('attention_config')}: {kind!r} layers", f"neoxkit computes {' and '.join(ATTENTION)}"
            )


def attention_kinds(given: Any) -> Iterator[str]:
    """The kinds of layers that attention_config names, at any depth of its lists."""
    if isinstance(given, str) and given != "all":
        yield given.lower()
    elif isinstance(given, list | tuple):
        for each in given:
            yield from attention_kinds(each)


def norm(settings: Settings) -> dict[str, Any]:
    """Kind and epsilon of the norms. Raises ConfigError for a norm that neoxkit does not compute."""
    kind = settings.word("norm", "layernorm")
    if kind not in NORMS:
        raise ConfigError(settings.said("norm"), f"neoxkit computes {' and '.join(NORMS)}")
    ours, eps, default = NORMS[kind]
    return {"kind": ours, "eps": settings.number(eps, default)}


def position(settings: Settings) -> dict[str, Any]:
    """How positions enter. Raises ConfigError for a way that neoxkit does not compute."""
    kind = settings.word("pos_emb", "learned")
    if kind not in POSITIONS:
        raise ConfigError(settings.said("pos_emb"), f"neoxkit computes {', '.join(POSITIONS)}")
    if kind == "learned" and settings.get("opt_pos_emb_offset"):
        raise ConfigError(settings.said("opt_pos_emb_offset"), "neoxkit counts positions from 0")
    if kind != "rotary":
        return {"kind": kind}
    base, fraction = settings.number("rotary_emb_base", 10000), settings.number("rotary_pct", 1.0)
    return {"kind": kind, "base": base, "fraction": fraction}


def window(settings: Settings, pipelined: bool, tell: Callable[[str], object] = warn) -> int | None:
    """Tokens that each attends to, itself included; None for all before it, and then that is told.

    gpt-neox's window does not count the token itself; its global attention without pipeline drops it.
    """
    width = settings.whole("sliding_window_width")
    if width is None:
        return None
    kinds = set(attention_kinds(settings.get("attention_config"))) or {"global"}
    if len(kinds) > 1 and not pipelined:
        raise ConfigError(
            f"{settings.said('sliding_window_width')}: gpt-neox applies it to the flash layers alone", UNCOMPUTED
        )
    if kinds == {"global"} and not pipelined:
        tell(f"{settings.said('sliding_window_width')}: passed over, as gpt-neox does without pipeline stages")
        return None
    return width + 1


def activation_name(settings: Settings) -> str:
    """gpt-neox's name of the activation; `geglu: true` of old releases is one."""
    return "geglu" if settings.flag("geglu", False) else settings.word("activation", "gelu")


def activation(settings: Settings, name: str, gated: bool) -> str:
    """Our name of an activation; with `bias_gelu_fusion` a gelu is the one by tanh.

    Raises ConfigError for one that neoxkit does not compute, and where releases of gpt-neox differ.
    """
    known = {**PLAIN, **GATED}
    if name not in known:
        raise ConfigError(settings.said("activation"), f"neoxkit computes {', '.join(known)}")
    ours, fused = known[name], settings.flag("bias_gelu_fusion", False)
    if ours == "gelu" and fused and gated:
        raise ConfigError(
            f"{settings.said('bias_gelu_fusion')} with a gated MLP: releases of gpt-neox differ in its gelu",
            "say which by bias_gelu_fusion: false in --config FILE, if it is the exact one"
            if settings.remedy == REMEDY
            else "set bias_gelu_fusion: false, for the exact one",
        )
    return "gelu_tanh" if ours == "gelu" and fused else ours


def is_gated(settings: Settings) -> bool:
    """Whether the MLP has a gate: by its activation, or by `mlp_type: llama` of 2023-05 to 2024-09."""
    return activation_name(settings) in GATED or settings.word("mlp_type", "regular") == "llama"


def mlp_width(settings: Settings, width: int) -> int:
    """Columns of the matrix that writes to the residual stream, as gpt-neox makes them of its options.

    A gated MLP gets 2/3 of what is asked for, halved, and rounded up to `mlp_multiple_of`: 32768 with
    256 gives 11008. `mlp_type: llama` took `intermediate_size` as it was. Raises ConfigError when
    gpt-neox's own two matrices would not fit each other.
    """
    llama = settings.word("mlp_type", "regular") == "llama"
    asked, factor = settings.whole("intermediate_size"), settings.get("expansion_factor")
    if asked is not None and factor is not None:
        raise ConfigError(f"{settings.said('expansion_factor')}, and intermediate_size is given too", "keep one")
    if llama:
        return asked or _round_up(2 * 4 * width // 3, 256)
    multiple = settings.whole("mlp_multiple_of") or 1
    size = asked or (4 * width if factor is None else int(settings.number("expansion_factor", 4.0) * width))
    if not is_gated(settings):
        rows, columns = _round_up(size, 2 * multiple), _round_up(size, multiple)
        fits = rows == columns
    else:
        rows, columns = _round_up(2 * size // 3, 2 * multiple), _round_up(2 * size // 3 // 2, multiple)
        fits = rows == 2 * columns
    if not fits or columns < 1:
        key = "intermediate_size" if asked else "hidden_size"
        raise ConfigError(
            f"{settings.said(key)}: gpt-neox makes a matrix of {rows} rows of it and one of {columns} columns, "
            f"which do not fit",
            f"for a gated MLP of {size}, write intermediate_size: {3 * size}"
            if is_gated(settings)
            else "choose an even number",
        )
    return columns


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
