"""Model configurations drawn by hypothesis, each of which its family can spell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy, composite

from neoxkit.config.model import ModelConfig

SCALINGS: SearchStrategy[dict[str, Any] | None] = st.one_of(
    st.none(),
    st.builds(lambda factor: {"kind": "linear", "factor": factor}, st.floats(0.5, 64)),
    st.builds(
        lambda factor, low, ratio, context: {
            "kind": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": low * ratio,
            "original_context": context,
        },
        st.floats(1, 64),
        st.floats(0.25, 4),
        st.floats(1.5, 8),
        st.integers(1, 100000),
    ),
)


@dataclass(frozen=True)
class Options:
    """What the models of a family may differ in, besides sizes and tokens; Llama's own are the defaults."""

    norm: str = "rms"  # layer: with a bias; bare: layer norm without
    residual: tuple[str, ...] = ("sequential",)
    position: str = "rotary"
    partial: bool = False  # a part of each head may be rotated
    scaled: bool = True  # rotary positions may be scaled
    heads: tuple[int, ...] = (1, 2, 3, 4, 6)
    grouped: bool = True  # fewer key/value heads than query heads
    square: bool = False  # heads fill the width exactly
    bias: tuple[tuple[bool, bool], ...] = ((False, False),)  # of query, key and value; of the output
    window: bool = False
    qk_norm: bool = False
    span: str = "head"
    embed_norm: bool = False
    gated: bool = True
    fourfold: bool = False  # the MLP has 4 x width rows
    mlp_bias: tuple[bool, ...] | None = (False,)  # None: as query, key and value
    ends: bool = False  # a sequential residual goes with one key/value head, or as many as query heads
    activation: tuple[str, ...] = ("gelu", "gelu_tanh", "silu", "relu")


EITHER = ((False, False), (True, True))
OPTIONS = {
    "gpt_neox": Options(
        norm="layer",
        residual=("parallel", "sequential"),
        partial=True,
        grouped=False,
        square=True,
        bias=EITHER,
        gated=False,
        mlp_bias=(True,),
    ),
    "llama": Options(bias=EITHER, mlp_bias=(False, True)),
    "mistral": Options(window=True),
    "qwen2": Options(bias=((True, False),)),
    "qwen3": Options(bias=EITHER, qk_norm=True),
    "phi3": Options(partial=True, scaled=False, window=True),
    "stablelm": Options(
        norm="layer", residual=("sequential", "shared"), partial=True, square=True, bias=((False, False), (True, False))
    ),
    "olmo2": Options(residual=("post",), bias=EITHER, qk_norm=True, span="all"),
    "falcon": Options(
        norm="layer",
        residual=("shared", "parallel", "sequential"),
        square=True,
        bias=EITHER,
        gated=False,
        mlp_bias=None,
        ends=True,
    ),
    "mpt": Options(
        norm="bare",
        position="alibi",
        grouped=False,
        square=True,
        heads=(1, 2, 4, 8),
        gated=False,
        fourfold=True,
        activation=("gelu",),
    ),
    "bloom": Options(
        norm="layer",
        position="alibi",
        grouped=False,
        square=True,
        bias=((True, True),),
        gated=False,
        fourfold=True,
        mlp_bias=(True,),
        activation=("gelu_tanh",),
        embed_norm=True,
    ),
    "gpt2": Options(
        norm="layer",
        position="learned",
        grouped=False,
        square=True,
        bias=((True, True),),
        gated=False,
        mlp_bias=(True,),
    ),
}


@composite
def configs(draw: DrawFn, family: str) -> ModelConfig:
    """A small model of a family, with every option that the family has."""
    may = OPTIONS[family]
    heads = draw(st.sampled_from(may.heads))
    head_dim = 2 * draw(st.integers(1, 8))
    width = heads * (head_dim if may.square else draw(st.integers(1, 8)))
    bias, out_bias = draw(st.sampled_from(may.bias))
    residual = draw(st.sampled_from(may.residual))
    groups = [
        k for k in range(1, 7) if heads % k == 0 and (k in (1, heads) or not may.ends or residual != "sequential")
    ]
    vocab = draw(st.integers(3, 50))
    token = st.one_of(st.none(), st.integers(0, vocab - 1))
    position: dict[str, Any] = {"kind": may.position}
    if may.position == "rotary":
        rotated = 2 * draw(st.integers(1, head_dim // 2)) if may.partial else head_dim
        position |= {"base": draw(st.floats(1, 1e8)), "fraction": rotated / head_dim}
        position |= {"scaling": draw(SCALINGS) if may.scaled else None}
    return ModelConfig.model_validate(
        {
            "family": family,
            "depth": draw(st.integers(1, 3)),
            "width": width,
            "vocab": vocab,
            "context": draw(st.integers(1, 10**6)),
            "tied": draw(st.booleans()),
            "residual": residual,
            "norm": {
                "kind": "rms" if may.norm == "rms" else "layer",
                "eps": draw(st.floats(1e-12, 0.1)),
                "bias": may.norm == "layer",
            },
            "embed_norm": may.embed_norm,
            "position": position,
            "mixer": {
                "heads": heads,
                "kv_heads": draw(st.sampled_from(groups)) if may.grouped else heads,
                "head_dim": head_dim,
                "bias": bias,
                "out_bias": out_bias,
                "window": draw(st.one_of(st.none(), st.integers(1, 9999))) if may.window else None,
                "qk_norm": may.qk_norm,
                "qk_norm_span": may.span,
            },
            "mlp": {
                "hidden": 4 * width if may.fourfold else draw(st.integers(1, 64)),
                "gated": may.gated,
                "activation": draw(st.sampled_from(may.activation)),
                "bias": bias if may.mlp_bias is None else draw(st.sampled_from(may.mlp_bias)),
            },
            "tokens": {
                "bos": draw(token),
                "eos": draw(st.lists(st.integers(0, vocab - 1), max_size=3)),
                "pad": draw(token),
            },
        }
    )
