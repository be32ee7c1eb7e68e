"""Model configurations drawn by hypothesis, each of which its family can spell."""

from __future__ import annotations

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


@composite
def configs(draw: DrawFn, family: str) -> ModelConfig:
    """A small model of a family, with every option that the family has."""
    neox = family == "gpt_neox"
    heads = draw(st.sampled_from([1, 2, 3, 4, 6]))
    head_dim = 2 * draw(st.integers(1, 8))
    rotated = 2 * draw(st.integers(1, head_dim // 2)) if neox else head_dim
    bias = draw(st.booleans()) if family != "mistral" else False
    vocab = draw(st.integers(3, 50))
    token = st.one_of(st.none(), st.integers(0, vocab - 1))
    return ModelConfig.model_validate(
        {
            "family": family,
            "depth": draw(st.integers(1, 3)),
            "width": heads * (head_dim if neox else draw(st.integers(1, 8))),
            "vocab": vocab,
            "context": draw(st.integers(1, 10**6)),
            "tied": draw(st.booleans()),
            "residual": draw(st.sampled_from(["parallel", "sequential"])) if neox else "sequential",
            "norm": {"kind": "layer" if neox else "rms", "eps": draw(st.floats(1e-12, 0.1)), "bias": neox},
            "position": {
                "kind": "rotary",
                "base": draw(st.floats(1, 1e8)),
                "fraction": rotated / head_dim,
                "scaling": draw(SCALINGS),
            },
            "mixer": {
                "heads": heads,
                "kv_heads": heads if neox else draw(st.sampled_from([k for k in range(1, 7) if heads % k == 0])),
                "head_dim": head_dim,
                "bias": bias,
                "out_bias": bias,
                "window": draw(st.one_of(st.none(), st.integers(1, 9999))) if family == "mistral" else None,
            },
            "mlp": {
                "hidden": draw(st.integers(1, 64)),
                "gated": not neox,
                "activation": draw(st.sampled_from(["gelu", "gelu_tanh", "silu", "relu"])),
                "bias": neox or (family == "llama" and draw(st.booleans())),
            },
            "tokens": {
                "bos": draw(token),
                "eos": draw(st.lists(st.integers(0, vocab - 1), max_size=3)),
                "pad": draw(token),
            },
        }
    )
