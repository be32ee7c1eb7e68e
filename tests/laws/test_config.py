"""Law 1: read(write(c)) == c, in every spelling; what cannot be spelled or read is refused, with its reason."""

from __future__ import annotations

import json
from copy import deepcopy
from math import prod
from pathlib import Path
from typing import Any

import pytest
import tiny as tinies
from drawn import configs
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY, Tiny

from neoxkit.config.model import LinearScaling, Llama3Scaling, ModelConfig, Rotary
from neoxkit.errors import ConversionError
from neoxkit.families import FAMILIES, by_name, recognise
from neoxkit.families.fit import unfit
from neoxkit.families.spelling import read_config, unknown_keys, write_config
from neoxkit.families.tree import ABSENT, lookup
from neoxkit.nn.decoder import specs

PUBLISHED = json.loads((Path(__file__).parents[1] / "fixtures" / "published.json").read_text())
"""config.json of well-known models, with the parameters that their authors count."""


CLASSIC = ("rope_theta", "rope_scaling", "rotary_pct", "rotary_emb_base", "partial_rotary_factor")
"""Keys of transformers 4, all of which transformers 5 has in rope_parameters."""


def saved(tiny: Tiny) -> dict[str, Any]:
    """The configuration as transformers 5 writes it."""
    config = tiny.config()
    config.architectures = [by_name(tiny.family).architecture]
    found: dict[str, Any] = json.loads(config.to_json_string())
    return found


def classic(theirs: dict[str, Any]) -> dict[str, Any]:
    """The same as transformers 4 wrote it."""
    theirs = deepcopy(theirs)
    theirs["torch_dtype"] = theirs.pop("dtype", None)
    if "rope_parameters" not in theirs:
        return theirs
    rope = theirs.pop("rope_parameters")
    neox = theirs["model_type"] == "gpt_neox"
    theirs["rotary_emb_base" if neox else "rope_theta"] = rope.pop("rope_theta")
    fraction = rope.pop("partial_rotary_factor", None)
    if fraction is not None:
        theirs["rotary_pct" if neox else "partial_rotary_factor"] = fraction
    kind = rope.pop("rope_type")
    theirs["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    return theirs


def read(theirs: dict[str, Any]) -> ModelConfig:
    return read_config(recognise(theirs), theirs)


@pytest.mark.parametrize("tiny", TINY, ids=str)
def test_both_spellings_of_transformers_mean_the_same(tiny: Tiny) -> None:
    theirs = saved(tiny)
    ours = read(theirs)
    assert ours.family == tiny.family
    assert read(classic(theirs)) == ours
    assert read({**theirs, **classic(theirs)}) == ours
    assert unknown_keys(by_name(tiny.family), classic(theirs)) == []


@pytest.mark.parametrize("tiny", TINY, ids=str)
def test_what_is_written_is_read_alike_by_both(tiny: Tiny) -> None:
    import transformers

    ours = read(saved(tiny))
    written = json.loads(json.dumps(write_config(by_name(tiny.family), ours)))
    assert read(written) == ours
    kind = transformers.CONFIG_MAPPING[written["model_type"]]
    theirs = kind.from_dict(written)
    theirs.architectures = written["architectures"]
    assert read(json.loads(theirs.to_json_string(use_diff=False))) == ours
    if ours.position.kind == "rotary":
        theirs.rope_parameters.pop("type", None)  # the name that transformers before 4.43 had for rope_type
        assert theirs.rope_parameters == tiny.config().rope_parameters


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=100)
def test_any_configuration_survives(family: str, data: st.DataObject) -> None:
    ours = data.draw(configs(family))
    theirs = json.loads(json.dumps(write_config(by_name(family), ours)))
    assert unfit(by_name(family), ours) == []
    assert recognise(theirs).name == family
    assert read(theirs) == ours
    # Each spelling says it all.
    assert read({k: v for k, v in theirs.items() if k not in CLASSIC}) == ours
    assert read({k: v for k, v in theirs.items() if k != "rope_parameters"}) == ours


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(name: str) -> None:
    """From the configuration alone, the parameters that the model is known to have."""
    theirs, parameters = PUBLISHED[name]["config"], PUBLISHED[name]["parameters"]
    ours = read(theirs)
    assert sum(prod(spec.shape) for spec in specs(ours).values()) == parameters
    assert read(json.loads(json.dumps(write_config(recognise(theirs), ours)))) == ours
    assert unknown_keys(recognise(theirs), theirs) == PUBLISHED[name].get("unknown", [])


def test_what_published_configurations_say() -> None:
    neox = read(PUBLISHED["gpt-neox-20b"]["config"])
    assert (neox.residual, neox.mlp.activation, neox.rotated, neox.norm.eps) == ("parallel", "gelu_tanh", 24, 1e-5)
    pythia = read(PUBLISHED["pythia-160m"]["config"])
    assert (pythia.mlp.activation, pythia.position) == ("gelu", Rotary(base=10000, fraction=0.25))
    llama = read(PUBLISHED["llama-3.1-8b"]["config"])
    scaling = Llama3Scaling(factor=8, low_freq_factor=1, high_freq_factor=4, original_context=8192)
    assert llama.position == Rotary(base=500000, scaling=scaling)
    assert (llama.mixer.kv_heads, llama.mixer.head_dim, llama.tokens.eos) == (8, 128, (128001,))
    assert read(PUBLISHED["mistral-7b-v0.1"]["config"]).mixer.window == 4096
    smol = read(PUBLISHED["smollm2-135m"]["config"])
    assert (smol.tied, smol.mixer.heads, smol.mixer.kv_heads, smol.position) == (True, 9, 3, Rotary(base=100000))


def test_absent_keys_mean_what_the_classes_of_transformers_assume() -> None:
    import transformers

    # 32 heads, which the key/value heads that some classes assume, 8 or 32, divide.
    sizes = {"num_hidden_layers": 1, "hidden_size": 256, "vocab_size": 60000, "num_attention_heads": 32}
    sizes |= {"intermediate_size": 1024, "max_position_embeddings": 32}
    for family in FAMILIES.values():
        needed = tinies.sizes(family.name, sizes)
        full = transformers.CONFIG_MAPPING[family.model_type](**needed, architectures=[family.architecture])
        spelled = json.loads(full.to_json_string(use_diff=False))
        assert read({"architectures": [family.architecture], **needed}) == read(spelled), family.name
        assert unknown_keys(family, json.loads(full.to_json_string())) == []
        for path, wanted in family.fixed.items():  # not written on export, since every release assumes it
            assert lookup(spelled, path) in (wanted, ABSENT), path


def wrong(base: str, change: dict[str, Any], drop: tuple[str, ...] = ()) -> dict[str, Any]:
    theirs = {**PUBLISHED[base]["config"], **change}
    return {key: value for key, value in theirs.items() if key not in drop}


BAD = {
    "missing": (wrong("llama-2-7b", {}, ("hidden_size",)), "the key 'hidden_size' is missing"),
    "null": (wrong("pythia-160m", {"num_attention_heads": None}), "the key 'num_attention_heads' is missing"),
    "text for a size": (wrong("llama-2-7b", {"hidden_size": "4096"}), "width (from hidden_size)"),
    "true for a size": (wrong("llama-2-7b", {"num_hidden_layers": True}), "depth (from num_hidden_layers)"),
    "fraction of a size": (wrong("llama-2-7b", {"vocab_size": 32000.5}), "vocab (from vocab_size)"),
    "no heads": (wrong("llama-2-7b", {"num_attention_heads": 0}), "num_attention_heads"),
    "text for heads": (wrong("smollm2-135m", {"num_attention_heads": "9"}), "num_attention_heads"),
    "negative": (wrong("llama-2-7b", {"num_hidden_layers": -1}), "greater than 0"),
    "text for a flag": (wrong("pythia-160m", {"use_parallel_residual": "false"}), "true or false is wanted"),
    "text for tied": (wrong("pythia-160m", {"tie_word_embeddings": "false"}), "tied (from tie_word_embeddings)"),
    "text for a base": (wrong("llama-2-7b", {"rope_theta": "10000"}), "rope_theta = '10000': a number is wanted"),
    "nan": (wrong("llama-2-7b", {"rms_norm_eps": float("nan")}), "a number is wanted"),
    "negative base": (wrong("llama-2-7b", {"rope_theta": -1}), "position.base (from rope_theta"),
    "odd rotation": (wrong("pythia-160m", {"rotary_pct": 0.21}), "is 13 dimensions"),
    "activation": (wrong("llama-2-7b", {"hidden_act": "quick_gelu"}), "hidden_act = 'quick_gelu': neoxkit has gelu"),
    "list of activations": (wrong("llama-2-7b", {"hidden_act": ["silu"]}), "hidden_act = ['silu']: neoxkit has gelu"),
    "kv heads": (wrong("llama-2-7b", {"num_key_value_heads": 5}), "kv_heads 5 does not divide heads 32"),
    "bos beyond": (wrong("llama-2-7b", {"bos_token_id": 32000}), "tokens.bos 32000 is not below vocab 32000"),
    "eos text": (wrong("llama-2-7b", {"eos_token_id": ["</s>"]}), "a token id, or a list of them, is wanted"),
    "yarn": (wrong("llama-2-7b", {"rope_scaling": {"type": "yarn", "factor": 2}}), "'yarn' is none of default"),
    "dynamic": (
        wrong("llama-2-7b", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
        "'dynamic' is none of default, linear, llama3",
    ),
    "no factor": (wrong("llama-2-7b", {"rope_scaling": {"type": "linear"}}), "lacks 'factor'"),
    "text for scaling": (
        wrong("llama-2-7b", {"rope_scaling": "linear"}),
        "rope_scaling = 'linear': an object is wanted",
    ),
    "two kinds": (
        wrong("llama-2-7b", {"rope_scaling": {"type": "linear", "rope_type": "llama3", "factor": 2}}),
        "rope_type and type disagree",
    ),
    "unknown scaling key": (
        wrong("llama-2-7b", {"rope_scaling": {"type": "linear", "factor": 2, "beta_fast": 32}}),
        "neoxkit does not know beta_fast",
    ),
    "scaling by layer": (
        wrong("llama-2-7b", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
        "neoxkit does not know full_attention",
    ),
    "ramp upside down": (
        wrong(
            "llama-3.1-8b",
            {"rope_scaling": {**PUBLISHED["llama-3.1-8b"]["config"]["rope_scaling"], "high_freq_factor": 0.5}},
        ),
        "high_freq_factor must be above low_freq_factor",
    ),
    "spellings of the base": (
        wrong("llama-2-7b", {"rope_theta": 10000.0, "rope_parameters": {"rope_theta": 500000.0}}),
        "two spellings disagree: rope_theta says 10000.0, rope_parameters.rope_theta says 500000.0",
    ),
    "spellings of the fraction": (
        wrong("pythia-160m", {"partial_rotary_factor": 1.0}),
        "two spellings disagree: rotary_pct says 0.25, partial_rotary_factor says 1.0",
    ),
    "spellings of the scaling": (
        wrong("llama-3.1-8b", {"rope_parameters": {"rope_type": "linear", "factor": 8.0}}),
        "two spellings disagree: rope_scaling says",
    ),
    "partial rotation of a llama": (wrong("llama-2-7b", {"partial_rotary_factor": 0.5}), "position.fraction is 0.5"),
    "architecture": (wrong("llama-2-7b", {"architectures": ["GPTJForCausalLM"]}), "describes GPTJForCausalLM"),
    "another head": (
        wrong("llama-2-7b", {"architectures": ["LlamaForSequenceClassification"]}),
        "describes LlamaForSequenceClassification, which is no family neoxkit knows",
    ),
    "no architecture": ({"hidden_size": 3}, "describes nothing, which is no family neoxkit knows"),
    "architecture as text": (wrong("llama-2-7b", {"architectures": "LlamaForCausalLM"}), "not a list of names"),
    "architecture as number": (wrong("llama-2-7b", {"architectures": [3]}), "not a list of names"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_refused(case: str) -> None:
    theirs, reason = BAD[case]
    with pytest.raises(ConversionError) as raised:
        read(theirs)
    line = str(raised.value)
    assert reason in line
    assert "\n" not in line
    assert raised.value.remedy


def test_spellings_that_agree_may_stand_together() -> None:
    theirs = wrong("pythia-160m", {"rope_theta": 10000, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}})
    assert read(theirs) == read(PUBLISHED["pythia-160m"]["config"])


def test_linear_scaling() -> None:
    for spelled in ({"type": "linear", "factor": 2}, {"rope_type": "linear", "factor": 2.0}):
        position = read(wrong("llama-2-7b", {"rope_scaling": spelled})).position
        assert position == Rotary(scaling=LinearScaling(factor=2))


def model(**changes: Any) -> ModelConfig:
    tree = {"family": "gpt_neox", "depth": 2, "width": 48, "vocab": 64, "context": 32, "mixer": {"heads": 6}, **changes}
    return ModelConfig.model_validate(tree)


def test_an_unfit_model_is_told_every_reason() -> None:
    ours = model(
        norm={"kind": "rms"}, mlp={"gated": True, "bias": False}, mixer={"heads": 6, "kv_heads": 2, "window": 4}
    )
    assert unfit(by_name("gpt_neox"), ours) == [
        "norm: rmsnorm, GPT-NeoX has layernorm",
        "bias of the norms: none, GPT-NeoX has one",
        "window: 4, GPT-NeoX has none",
        "gate in the MLP: one, GPT-NeoX has none",
        "bias of the MLP: none, GPT-NeoX has one",
        "heads: 6, key/value heads: 2, GPT-NeoX has one num_attention_heads for the two",
    ]
    with pytest.raises(ConversionError, match=r"norm: rmsnorm.*key/value heads: 2"):
        write_config(by_name("gpt_neox"), ours)


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("gpt_neox", {"position": {"kind": "alibi"}}, "position: ALiBi, GPT-NeoX has rotary"),
        ("gpt_neox", {"mixer": {"heads": 6, "head_dim": 4}}, "elements of a head: 4, GPT-NeoX has width / heads"),
        (
            "gpt_neox",
            {"width": 50, "mixer": {"heads": 6, "head_dim": 8}},
            "elements of a head: 8, GPT-NeoX has width",
        ),
        ("gpt_neox", {"mixer": {"heads": 6, "qk_norm": True}}, "norm of queries and keys: one, GPT-NeoX has none"),
        (
            "gpt_neox",
            {"mixer": {"heads": 6, "out_bias": False}},
            "bias of query, key and value: one, bias of the attention's output: none, GPT",
        ),
        ("llama", {"residual": "parallel"}, "residual: parallel, Llama has sequential"),
        ("llama", {"position": {"kind": "rotary", "fraction": 0.5}}, "rotated part of each head: 0.5, Llama has 1"),
        ("llama", {"width": 50, "mixer": {"heads": 6, "head_dim": 8}}, "width: 50, Llama has a multiple of its heads"),
        ("mistral", {"mixer": {"heads": 6, "bias": True}}, "bias of query, key and value: one, Mistral has none"),
        ("mistral", {"norm": {"kind": "layer"}}, "norm: layernorm, Mistral has rmsnorm"),
    ],
)
def test_unfit(family: str, changes: dict[str, Any], reason: str) -> None:
    assert any(found.startswith(reason) for found in unfit(by_name(family), model(**changes)))


def test_no_family_of_that_name() -> None:
    with pytest.raises(ConversionError, match="no family is called 'gptj'; choose one of gpt_neox, llama, mistral"):
        by_name("gptj")
