"""What `export` makes of a checkpoint beside its tensors: the family, the card, the reasons of a refusal."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny as tinies
import yaml
from click.testing import CliRunner

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.cli.export import command
from neoxkit.config.model import ModelConfig
from neoxkit.convert.open import open_foreign
from neoxkit.convert.tokenizer import generation_differences
from neoxkit.convert.transfer import choose_family, export_model, import_model, reshard
from neoxkit.data.tokenizer.train import train_bpe
from neoxkit.errors import ConversionError
from neoxkit.families import FAMILIES, by_name
from neoxkit.families.fit import fitting, nearest, unfit
from neoxkit.mesh import Mesh

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-NeoX model as it would come from the Hub, and a Llama from a folder."""
    here = tmp_path_factory.mktemp("export")
    for name, origin in (("gpt_neox-parallel", f"org/pythia@{COMMIT}"), ("llama-gqa", None)):
        tinies.save(tinies.tiny(name).model(), here / "private" / name)
        import_model(open_foreign(here / "private" / name), here / name, Mesh(), origin=origin)
    return here


def model(**changes: Any) -> ModelConfig:
    tree = {"family": "gpt_neox", "depth": 2, "width": 48, "vocab": 64, "context": 32, "mixer": {"heads": 6}, **changes}
    return ModelConfig.model_validate(tree)


class Only(Checkpoint):
    """A checkpoint of which the configuration alone is asked for."""

    def __init__(self, config: ModelConfig) -> None:
        self.path = Path("here")
        self.given = config

    @property
    def config(self) -> ModelConfig:
        return self.given


LLAMA_LIKE = {"norm": {"kind": "rms"}, "mlp": {"gated": True, "bias": False, "activation": "silu"}}
BARE = {"heads": 6, "bias": False, "out_bias": False}


def test_auto_is_the_models_own_family_if_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert choose_family(Only(model()), "auto") is by_name("gpt_neox")
    assert choose_family(Only(model(family="mistral", **LLAMA_LIKE, mixer=BARE)), "auto") is by_name("mistral")
    assert capsys.readouterr().err == ""


def test_auto_is_another_family_that_fits_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    ours = model(family="llama", **LLAMA_LIKE, mixer={**BARE, "window": 8})
    assert choose_family(Only(ours), "auto") is by_name("mistral")
    said = "here: exported as mistral, since it does not fit Llama: window: 8, Llama has none\n"
    assert capsys.readouterr().err == said


def test_a_model_that_fits_no_family_is_told_the_nearest() -> None:
    odd = model(family="llama", **LLAMA_LIKE, mixer={**BARE, "window": 8}, position={"kind": "none"})
    with pytest.raises(ConversionError) as raised:
        choose_family(Only(odd), "auto")
    assert str(raised.value) == (
        "here: the model fits no family; the nearest is Mistral: position: none, Mistral has rotary"
    )


def test_every_family_is_refused_and_named_as_it_should_be() -> None:
    """fitting, nearest and unfit agree: a family fits when it has no reason not to."""
    configs = [model(), model(**LLAMA_LIKE, mixer=BARE), model(position={"kind": "alibi"}, embed_norm=True)]
    for config in configs:
        fits = fitting(FAMILIES.values(), config)
        assert fits == [each for each in FAMILIES.values() if not unfit(each, config)]
        assert not fits or nearest(FAMILIES.values(), config) in fits


def test_a_refusal_names_those_that_fit(checkpoints: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError) as raised:
        export_model(Checkpoint.open(checkpoints / "gpt_neox-parallel"), tmp_path / "x", by_name("llama"))
    assert raised.value.remedy == "choose --to gpt_neox; the model fits"
    assert "norm: layernorm, Llama has rmsnorm" in raised.value.cause
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_family() -> None:
    said = CliRunner().invoke(command, ["--help"]).output
    assert [name for name in FAMILIES if not re.search(rf"\b{name}\b", said)] == []


def card(folder: Path) -> tuple[dict[str, Any], str]:
    """The front matter of a model card, and its text."""
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_card_of_a_model_from_the_hub(checkpoints: Path, tmp_path: Path) -> None:
    reshard(Checkpoint.open(checkpoints / "gpt_neox-parallel"), tmp_path / "cut", Mesh(tp=2))
    checkpoint = Checkpoint.open(tmp_path / "cut")
    export_model(checkpoint, tmp_path / "my-model", by_name("gpt_neox"), "BF16")
    front, text = card(tmp_path / "my-model")
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["neoxkit", "gpt_neox"],
        "base_model": "org/pythia",
    }
    assert text.startswith("\n# my-model\n")
    for said in (
        "| family | GPT-NeoX (`GPTNeoXForCausalLM`) |",
        "| parameters | 66,288; 56,976 without embeddings and head |",
        "| context | 64 tokens |",
        "| weights | bfloat16 |",
        f"1. Imported from [org/pythia](https://huggingface.co/org/pythia) at commit `{COMMIT}`",
        "2. Cut anew for other devices.",
        f"its weights converted to another precision, from weights of the fingerprint `{checkpoint.fingerprint}`",
        'AutoModelForCausalLM.from_pretrained("path/to/this/folder")',
    ):
        assert said in text, said
    assert "AutoTokenizer" not in text
    assert json.loads((tmp_path / "my-model/neoxkit.json").read_text())["model"] == checkpoint.fingerprint


def test_the_card_keeps_private_folders_to_itself(checkpoints: Path, tmp_path: Path) -> None:
    export_model(Checkpoint.open(checkpoints / "llama-gqa"), tmp_path / "hf", by_name("llama"))
    front, text = card(tmp_path / "hf")
    assert "base_model" not in front
    assert "1. Imported from `llama-gqa` (Hugging Face LlamaForCausalLM).\n2. Exported by neoxkit" in text
    assert "private" not in text


def test_the_card_tells_of_training_and_the_tokenizer(checkpoints: Path, tmp_path: Path) -> None:
    """And of an event that only a later neoxkit knows; what is not markup does not become it."""
    folder = tmp_path / "a"
    train_bpe(["a b c"], 258, tmp_path / "hf")
    tiny = tinies.Tiny(
        "mistral", "large", {"vocab_size": 258, "num_key_value_heads": 6, **tinies.rope("linear", factor=3.0)}
    )
    tinies.save(tiny.model(), tmp_path / "hf")
    import_model(open_foreign(tmp_path / "hf"), folder, Mesh())
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest |= {"step": 1500, "samples": 12000, "tokens": 24576000}
    manifest["lineage"] += [
        {"event": "load", "source": "/private/run/step-7", "model": "ab12"},
        {"event": "train", "from_step": 0, "to_step": 1500},
        {"event": "blend", "with": "`[x](y)` <b>|"},
    ]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    checkpoint = Checkpoint.open(folder)
    export_model(checkpoint, tmp_path / "out", by_name("mistral"))
    _, text = card(tmp_path / "out")
    for said in (
        "2. Weights taken from `step-7`, of the fingerprint `ab12`.\n",
        "3. Trained from step 0 to step 1,500: 24,576,000 tokens in 12,000 samples in all.\n",
        "4. Blend: with x (y) b.\n",
        'AutoTokenizer.from_pretrained("path/to/this/folder")\n',
        "Beware: transformers before 4.48 ignores rotary scaling of Mistral models.\n",
    ):
        assert said in text, said


GENERATION = {
    "agrees": ({"bos_token_id": 1, "eos_token_id": [2, 7], "temperature": 0.5}, []),
    "says less": ({"max_length": 20}, []),
    "other stop": ({"eos_token_id": 7}, ["eos_token_id is 7, the model's own is 2, 3; both are kept"]),
    "other start": ({"bos_token_id": 4}, ["bos_token_id is 4, the model's own is 1; both are kept"]),
    "no token": ({"pad_token_id": 300}, ["pad_token_id 300 is no token of the model"]),
    "no id": ({"eos_token_id": "</s>"}, ["a token id, or a list of them, is wanted"]),
}


@pytest.mark.parametrize("name", GENERATION)
def test_generation_settings_that_disagree(name: str, tmp_path: Path) -> None:
    """They are carried over as they came; what they say otherwise is said."""
    theirs, said = GENERATION[name]
    (tmp_path / "generation_config.json").write_text(json.dumps(theirs))
    ours = model(tokens={"bos": 1, "eos": (2, 3)})
    found = generation_differences(tmp_path, ours)
    assert [each.partition("generation_config.json: ")[2] for each in found] == said


def test_generation_settings_travel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tinies.save(tinies.tiny("llama-gqa").model(), tmp_path / "hf")
    text = '{"eos_token_id": 7,  "temperature": 0.5}'
    (tmp_path / "hf/generation_config.json").write_text(text)
    import_model(open_foreign(tmp_path / "hf"), tmp_path / "a", Mesh())
    export_model(Checkpoint.open(tmp_path / "a"), tmp_path / "out", by_name("llama"))
    assert (tmp_path / "out/generation_config.json").read_text() == text
    assert "eos_token_id is 7, the model's own is 2" in capsys.readouterr().err
