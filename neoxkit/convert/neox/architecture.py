"""Settings and tensors to our configuration: sizes are those of the tensors, the settings must agree."""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError

from neoxkit.config.model import ModelConfig
from neoxkit.config.neox.network import (
    GATED,
    PLAIN,
    UNCOMPUTED,
    activation,
    activation_name,
    norm,
    position,
    refuse_network,
    window,
)
from neoxkit.config.neox.settings import REMEDY, Settings
from neoxkit.convert.neox.tensors import ROTARY, Tensors
from neoxkit.convert.pickles.storage import Files, Stored
from neoxkit.errors import ConversionError
from neoxkit.families import by_name
from neoxkit.families.fit import unfit

SPELLINGS = ("gpt_neox", "llama", "mistral")
"""Families that a model of gpt-neox may be exported as, the preferred one first."""


def build_config(tensors: Tensors, settings: Settings, files: Files) -> ModelConfig:
    """Our configuration of a model. Raises ConversionError for a network that neoxkit does not compute.

    And when the settings contradict the tensors; both are then shown.
    """
    _refuse(settings)
    rows, width = _matrix(tensors, tensors.embed, "word_embeddings.weight")
    _agree(settings, tensors, "num_layers", len(tensors.blocks))
    _agree(settings, tensors, "hidden_size", width)
    tied = not settings.flag("no_weight_tying", False)
    if tied != (tensors.head is None):
        there = "no final_linear.weight is" if tensors.head is None else "final_linear.weight is"
        raise _contradiction(settings, "no_weight_tying", not tied, f"{there} among the tensors")
    places = _position(tensors, settings)
    given: dict[str, Any] = {
        "family": SPELLINGS[0],
        "depth": len(tensors.blocks),
        "width": width,
        "vocab": rows * tensors.tp,
        "context": _context(tensors, settings),
        "tied": tied,
        "residual": "parallel" if settings.flag("gpt_j_residual", False) else "sequential",
        "norm": _norm(tensors, settings),
        "position": places,
        "mixer": _mixer(tensors, settings, width),
        "mlp": _mlp(tensors, settings),
    }
    if given["residual"] == "parallel" and not given["mlp"]["bias"]:
        raise ConversionError(
            f"{tensors.folder}: gpt_j_residual without biases in the MLP: gpt-neox drops the attention of such a model",
            UNCOMPUTED,
        )
    try:
        config = ModelConfig.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise ConversionError(f"{tensors.folder}: {path or 'model'}: {first['msg']}", REMEDY) from None
    if places["kind"] == "rotary":
        _check_rotary(tensors, config, files)
    fits = (name for name in SPELLINGS if not unfit(by_name(name), config))
    return config.model_copy(update={"family": next(fits, SPELLINGS[0])})


def _refuse(settings: Settings) -> None:
    """Raise for settings of a network that neoxkit does not compute, or that has weights it does not use."""
    refuse_network(settings)
    if settings.flag("gpt_j_tied", False):
        raise ConversionError(f"{settings.said('gpt_j_tied')}: one norm for attention and MLP", UNCOMPUTED)


def _matrix(tensors: Tensors, layer: int, name: str) -> tuple[int, int]:
    """Rows and columns of a rank's part of a matrix."""
    parts = tensors.places.get((layer, name))
    if parts is None or len(parts[0].shape) != 2 or 0 in parts[0].shape:
        found = "missing" if parts is None else str(list(parts[0].shape))
        raise ConversionError(f"{tensors.folder}: {name!r} of layer {layer} is {found}, not a matrix", "fetch it again")
    return parts[0].shape[0], parts[0].shape[1]


def _contradiction(settings: Settings, key: str, default: Any, tensors: str) -> ConversionError:
    said = settings.said(key) if key in settings.values else f"{settings.folder}: {key} is {default!r} unless given"
    return ConversionError(f"{said}, but {tensors}", REMEDY)


def _agree(settings: Settings, tensors: Tensors, key: str, found: int) -> None:
    """Raise ConversionError when the settings, or the arguments saved with the weights, state another number."""
    stated = settings.whole(key)
    if stated is not None and stated != found:
        raise ConversionError(f"{settings.said(key)}, but the tensors have {found}", REMEDY)
    saved = _saved(tensors, key)
    if saved is not None and saved != found:
        raise ConversionError(
            f"{tensors.folder}: {key} is {saved} in mp_rank_00_model_states.pt, but the tensors have {found}",
            "choose files of one checkpoint",
        )


def _saved(tensors: Tensors, key: str) -> int | None:
    """One of the arguments that gpt-neox saves with the weights."""
    saved = tensors.about.get("args")
    value = saved.get(key) if isinstance(saved, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _stated(tensors: Tensors, settings: Settings, key: str) -> int | None:
    """A number that the tensors do not tell, from the settings or the arguments saved; both must be the same."""
    stated, saved = settings.whole(key), _saved(tensors, key)
    if stated is not None and saved is not None and stated != saved:
        raise ConversionError(f"{settings.said(key)}, but mp_rank_00_model_states.pt has {saved}", REMEDY)
    return saved if stated is None else stated


def _context(tensors: Tensors, settings: Settings) -> int:
    learned = tensors.places.get((tensors.embed, "position_embeddings.weight"))
    stated = _stated(tensors, settings, "max_position_embeddings")
    if learned is not None and len(learned[0].shape) == 2:
        rows = learned[0].shape[0]
        if stated is not None and stated != rows:
            raise _contradiction(settings, "max_position_embeddings", stated, f"position_embeddings has {rows} rows")
        return rows
    found = stated or settings.whole("seq_length")
    if found is None:
        raise ConversionError(f"{settings.folder}: max_position_embeddings is not given", REMEDY)
    return found


def _norm(tensors: Tensors, settings: Settings) -> dict[str, Any]:
    given = norm(settings)
    ours = given["kind"]
    scaled, biased = bool(tensors.block("input_layernorm.scale")), bool(tensors.block("input_layernorm.bias"))
    if (ours == "rms") != scaled or (scaled and biased):
        there = "'input_layernorm.scale' of an RMSNorm" if scaled else "no 'input_layernorm.scale'"
        raise _contradiction(settings, "norm", settings.word("norm", "layernorm"), f"the tensors have {there}")
    return given if ours == "rms" else {**given, "bias": biased}


def _position(tensors: Tensors, settings: Settings) -> dict[str, Any]:
    given = position(settings)
    learned = (tensors.embed, "position_embeddings.weight") in tensors.places
    if learned != (given["kind"] == "learned"):
        there = "position_embeddings.weight" if learned else "no position_embeddings.weight"
        raise _contradiction(settings, "pos_emb", given["kind"], f"the tensors have {there}")
    return given


def _mixer(tensors: Tensors, settings: Settings, width: int) -> dict[str, Any]:
    """Attention. The number of heads is not in the tensors; that of key/value heads follows from it."""
    heads = _stated(tensors, settings, "num_attention_heads")
    if heads is None:
        raise ConversionError(f"{settings.folder}: num_attention_heads is not given", REMEDY)
    fused = _matrix(tensors, tensors.blocks[0], "attention.query_key_value.weight")[0] * tensors.tp
    head_dim = width // heads
    kv_heads, rest = divmod(fused - width, 2 * max(head_dim, 1))
    if width % heads or rest or kv_heads < 1 or heads % kv_heads or heads % tensors.tp or kv_heads % tensors.tp:
        raise ConversionError(
            f"{settings.folder}: {heads} heads, but query_key_value.weight has {fused} rows in {tensors.tp} parts "
            f"and the width is {width}",
            REMEDY,
        )
    stated = settings.whole("num_kv_heads") or heads
    if stated != kv_heads:
        raise _contradiction(settings, "num_kv_heads", heads, f"query_key_value.weight has the rows of {kv_heads}")
    bias, out_bias = (bool(tensors.block(f"attention.{name}.bias")) for name in ("query_key_value", "dense"))
    if "use_bias_in_attn_linear" in settings.values and settings.flag("use_bias_in_attn_linear", True) != bias:
        there = "has a bias" if bias else "has no bias"
        raise _contradiction(settings, "use_bias_in_attn_linear", True, f"attention.query_key_value {there}")
    return {
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "bias": bias,
        "out_bias": out_bias,
        "window": window(settings, tensors.pipelined),
    }


def _mlp(tensors: Tensors, settings: Settings) -> dict[str, Any]:
    """The FFN's width is that of the matrix that writes to the residual stream."""
    block, tp = tensors.blocks[0], tensors.tp
    llama = tensors.generation == 2
    rows = _matrix(tensors, block, "mlp.w1.weight" if llama else "mlp.linear1.weight")[0] * tp
    hidden = _matrix(tensors, block, "mlp.w2.weight" if llama else "mlp.linear2.weight")[1] * tp
    gated = llama or rows == 2 * hidden
    if rows != hidden * (2 if gated and not llama else 1):
        raise ConversionError(
            f"{tensors.folder}: mlp.linear1 has {rows} rows and mlp.linear2 {hidden} columns: neither a plain MLP "
            f"nor a gated one",
            "fetch it again",
        )
    kind = activation_name(settings)
    if (kind in PLAIN and gated and not llama) or (kind in GATED and not gated):
        shape = "gated (two rows of mlp.linear1 for each column of mlp.linear2)" if gated else "not gated"
        raise _contradiction(settings, "activation", kind, f"the MLP of the tensors is {shape}")
    ours = activation(settings, kind, gated)
    bias = bool(tensors.block("mlp.linear1.bias"))
    if "use_bias_in_mlp" in settings.values and settings.flag("use_bias_in_mlp", True) != bias:
        there = "has a bias" if bias else "has no bias"
        raise _contradiction(settings, "use_bias_in_mlp", True, f"mlp.linear1 {there}")
    return {
        "hidden": hidden,
        "gated": gated,
        "activation": ours,
        "bias": bias,
    }


def _check_rotary(tensors: Tensors, config: ModelConfig, files: Files) -> None:
    """Frequencies that were saved must be those of the settings: base^(-2j / rotated), rounded to the dtype."""
    saved: Stored | None = next((v for (_, name), v in tensors.buffers.items() if name == ROTARY), None)
    if saved is None or not re.fullmatch("F16|BF16|F32|F64", saved.dtype) or len(saved.shape) != 1:
        return
    values = files.read(saved).double()
    if 2 * len(values) != config.rotated:
        raise ConversionError(
            f"{tensors.folder}: rotary_pct and num_attention_heads rotate {config.rotated} dimensions of each head, "
            f"but {ROTARY} is of {2 * len(values)}",
            REMEDY,
        )
    base = getattr(config.position, "base", 0.0)
    wanted = float(base) ** (-2.0 / config.rotated)
    found = float(values[1] / values[0]) if len(values) > 1 else wanted
    if abs(found - wanted) > 0.01 * wanted:
        raise ConversionError(
            f"{tensors.folder}: rotary_emb_base is {base:g}, but {ROTARY} falls by {found:g} and not {wanted:g}",
            REMEDY,
        )
