"""gpt-neox checkpoints that cannot be read, or not without guessing: each is refused, and says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from neox_checkpoints import STEP, Layers, read_layers, sequential, settings, unpack, write

from neoxkit.convert.neox.source import NeoxSource
from neoxkit.errors import NeoxkitError


@pytest.fixture(scope="module")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the checkpoints that gpt-neox wrote."""
    return unpack(tmp_path_factory.mktemp("oracles"))


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"num_layers": 4}, "num_layers is 4, but the tensors have 3"),
    ({"hidden_size": 128}, "hidden_size is 128, but the tensors have 64"),
    ({"num_attention_heads": 3}, "3 heads, but query_key_value.weight has 192 rows in 2 parts and the width is 64"),
    ({"num_attention_heads": ...}, "num_attention_heads is not given"),
    ({"num_kv_heads": 2}, "num_kv_heads is 2, but query_key_value.weight has the rows of 4"),
    ({"norm": "rmsnorm"}, "norm is 'rmsnorm', but the tensors have no 'input_layernorm.scale'"),
    ({"norm": "scalenorm"}, "norm is 'scalenorm'.*neoxkit computes layernorm and rmsnorm"),
    ({"activation": "swiglu"}, "activation is 'swiglu', but the MLP of the tensors is not gated"),
    ({"activation": "mish"}, "activation is 'mish'.*neoxkit computes gelu"),
    ({"no_weight_tying": False}, "no_weight_tying is False, but final_linear.weight is among the tensors"),
    ({"no_weight_tying": ...}, "no_weight_tying is False unless given, but final_linear.weight is"),
    ({"no_weight_tying": "yes"}, "no_weight_tying is 'yes', not true or false"),
    ({"pos_emb": "learned"}, "pos_emb is 'learned', but the tensors have no position_embeddings.weight"),
    ({"pos_emb": "sinusoidal"}, "pos_emb is 'sinusoidal'"),
    ({"pos_emb": "rpe"}, "pos_emb is 'rpe'"),
    ({"rotary_pct": 0.1}, "position.fraction 0.1"),
    ({"rotary_pct": float("nan")}, "rotary_pct is nan, not a number"),
    ({"use_bias_in_attn_linear": False}, "use_bias_in_attn_linear is False, but attention.query_key_value has a bias"),
    ({"use_bias_in_mlp": False}, "use_bias_in_mlp is False, but mlp.linear1 has a bias"),
    ({"gpt_j_tied": True}, "gpt_j_tied is True: one norm for attention and MLP"),
    ({"use_mup": True}, "use_mup is True: muP's scales"),
    ({"moe_num_experts": 8}, "moe_num_experts is 8: a mixture of experts"),
    ({"soft_prompt_tuning": {"enabled": True}}, "soft prompts"),
    ({"attention_config": [[["mamba"], 3]]}, "'mamba' layers"),
    ({"attention_config": [[["flash"], 1], [["local"], 2]]}, "'local' layers"),
    ({"max_position_embeddings": ..., "seq_length": ...}, "max_position_embeddings is not given"),
]


@pytest.mark.parametrize(("changes", "said"), SETTINGS, ids=[str(each) for each, _ in SETTINGS])
def test_settings_against_tensors(changes: dict[str, Any], said: str, oracles: Path, tmp_path: Path) -> None:
    """A contradiction shows both sides; a network that is not computed is named."""
    oracle = oracles / "neox_tp2pp1"
    made = write(tmp_path / "x", read_layers(oracle), settings(oracle, **changes))
    with pytest.raises(NeoxkitError, match=said):
        NeoxSource(made)


def test_saved_arguments_against_settings(oracles: Path, tmp_path: Path) -> None:
    """The number of heads is in no tensor, but in what is saved beside them."""
    (tmp_path / "given.yml").write_text("num-attention-heads: 8")
    with pytest.raises(NeoxkitError, match=r"num_attention_heads is 8, but mp_rank_00_model_states.pt has 4"):
        NeoxSource(oracles / "neox_tp2pp1", [tmp_path / "given.yml"])


def test_frequencies_against_settings(oracles: Path, tmp_path: Path) -> None:
    """The rotary frequencies that old checkpoints hold tell of the base and the rotated part."""
    oracle = oracles / "neox_tp2pp1"
    layers = read_layers(oracle)
    for part, base, said in ((8, 10000, "rotate 4 dimensions .* is of 8"), (4, 500000, "rotary_emb_base is 10000")):
        layers[2, 0]["attention.rotary_emb.inv_freq"] = (base ** -(torch.arange(0, part, 2) / part)).half()
        layers[2, 1]["attention.rotary_emb.inv_freq"] = layers[2, 0]["attention.rotary_emb.inv_freq"]
        with pytest.raises(NeoxkitError, match=said):
            NeoxSource(write(tmp_path / "x", layers, settings(oracle)))


NAMES = [
    ("mixer.in_proj.weight", "Mamba layers"),
    ("att.time_maa_x", "RWKV layers"),
    ("mlp.experts.mlp.w1", "a mixture of experts"),
    ("mlp.router.layer.weight", "a mixture of experts"),
    ("sgu.proj.weight", "gMLP layers"),
    ("attention.qkv.weight", "TransformerEngine layers"),
    ("mlp.fc1_weight", "TransformerEngine layers"),
    ("attention.rpe.weight", "relative position embeddings"),
    ("attention.qk_layernorm.weight", "a norm over the queries and keys of all heads"),
    ("input_layernorm.g", "ScaleNorm"),
    ("rm_linear.weight", "the head of a reward model"),
    ("soft_embedding.weight", "soft prompts"),
    ("position_embeddings.inv_freq", "sinusoidal positions"),
    ("attention.something.weight", "belong to nothing"),
]


@pytest.mark.parametrize(("name", "what"), NAMES)
def test_unsupported_tensors(name: str, what: str, oracles: Path, tmp_path: Path) -> None:
    """Tensors of other networks are refused by the name of what they are of."""
    oracle = oracles / "neox_tp1pp0"
    held = torch.load(oracle / STEP / "mp_rank_00_model_states.pt", weights_only=False)
    for layer in (2, 3, 4):
        held["module"][f"sequential.{layer}.{name}"] = torch.zeros(2, 2)
    with pytest.raises(NeoxkitError, match=f"{name}.*{what}"):
        NeoxSource(write(tmp_path / "x", {}, settings(oracle), [held]))


def without(*at: tuple[int, int]) -> Callable[[Layers], None]:
    """Take files away."""
    return lambda layers: [layers.pop(each) for each in at][:0] and None


def shorter(layers: Layers) -> None:
    """A rank's part of another shape."""
    layers[3, 1]["mlp.linear1.weight"] = layers[3, 1]["mlp.linear1.weight"][:-1].clone()


def lacking(layers: Layers) -> None:
    """A rank without a tensor."""
    del layers[3, 1]["mlp.linear1.bias"]


def uneven(layers: Layers) -> None:
    """A block that is not like the first."""
    for rank in range(2):
        layers[3, rank]["mlp.linear1.weight"] = layers[3, rank]["mlp.linear1.weight"][:64].clone()


def whole_numbers(layers: Layers) -> None:
    """Weights that are none."""
    for rank in range(2):
        layers[6, rank]["norm.weight"] = layers[6, rank]["norm.weight"].int()


FILES: list[tuple[str, Callable[[Layers], None], str]] = [
    ("rank", without((3, 1)), "layer_03-model_01-model_states.pt is missing"),
    ("block", without((3, 0), (3, 1)), "layer 3 is missing"),
    ("first block", without((2, 0), (2, 1)), "layer 2 is missing"),
    ("last block", without((4, 0), (4, 1)), "layers .0, 2, 3, 6. are not those of one model"),
    ("embedding", without((0, 0), (0, 1)), "no word_embeddings.weight"),
    ("final norm", without((6, 0), (6, 1)), "no final norm"),
    ("shape", shorter, "'mlp.linear1.weight' is .127, 64. F32, on rank 0 .128, 64."),
    ("tensor", lacking, "rank 1 has no 'mlp.linear1.bias' of layer 3"),
    ("uneven", uneven, "'mlp.linear1.weight' is .64, 64. in layer 3 and .128, 64. in layer 2"),
    ("dtype", whole_numbers, "'norm.weight' is I32"),
]


@pytest.mark.parametrize(("name", "damage", "said"), FILES, ids=[each[0] for each in FILES])
def test_missing_and_wrong_files(
    name: str, damage: Callable[[Layers], None], said: str, oracles: Path, tmp_path: Path
) -> None:
    """What is not there, or not as on the other ranks."""
    oracle = oracles / "neox_tp2pp1"
    layers = read_layers(oracle)
    damage(layers)
    with pytest.raises(NeoxkitError, match=said):
        NeoxSource(write(tmp_path / "x", layers, settings(oracle)))


def test_missing_rank_without_pipeline(oracles: Path, tmp_path: Path) -> None:
    """The last file of a rank being away would leave half a model."""
    oracle = oracles / "neox_tp2pp1"
    layers = read_layers(oracle)
    made = write(tmp_path / "x", {}, settings(oracle), [sequential(layers, rank) for rank in range(2)])
    (made / "mp_rank_01_model_states.pt").unlink()
    with pytest.raises(NeoxkitError, match=r"1 files of ranks, but mp_rank_00_model_states.pt says 2"):
        NeoxSource(made)


def test_zero_stage_3(tmp_path: Path) -> None:
    """Its cut is another one."""
    (tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt").write_bytes(b"")
    with pytest.raises(NeoxkitError, match=r"ZeRO stage 3.*zero_to_fp32"):
        NeoxSource(tmp_path)


def test_settings_that_disagree(oracles: Path, tmp_path: Path) -> None:
    """Two files inside that state different values, unless others are given."""
    oracle = oracles / "neox_tp2pp1"
    made = write(tmp_path / "x", read_layers(oracle), settings(oracle))
    (made / "configs" / "other.yml").write_text("{'rotary-pct': 1.0}")
    with pytest.raises(NeoxkitError, match=r"other.yml: rotary_pct is 1.0, but config.yml has 0.25"):
        NeoxSource(made)
    for content, said in (("a: [", "not valid YAML"), ("- 1", "not a mapping"), ("\x00", "not valid YAML")):
        (made / "configs" / "other.yml").write_text(content)
        with pytest.raises(NeoxkitError, match=said):
            NeoxSource(made)
    for path in (made / "configs").iterdir():
        path.unlink()
    with pytest.raises(NeoxkitError, match=r"no settings in .*--config FILE"):
        NeoxSource(made)
