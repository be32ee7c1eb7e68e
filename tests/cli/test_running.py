"""Commands that run a model: the precision they choose, and what they say of it and of the context."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from refusal import run

from neoxkit.data.text.sources import Selection
from neoxkit.parallel import device

TEXT = "text/test_group.txt"


@pytest.fixture
def half(here: Path) -> Path:
    """The model of the world, kept in bf16."""
    assert run("import hf half --dtype bf16").exit_code == 0
    return here / "half"


def test_weights_are_measured_as_they_are_kept(half: Path) -> None:
    left_out, asked, other = (
        json.loads(run(f"eval half --perplexity {TEXT} --tokenizer hf --json --device cpu {more}").stdout)
        for more in ("", "--dtype bf16", "--dtype fp16")
    )
    assert left_out["dtype"] == "bf16"
    assert left_out == asked
    assert other["dtype"] == "fp16"
    assert other["bits_per_byte"] != asked["bits_per_byte"]
    assert "; in bf16)" in run(f"eval half --perplexity {TEXT} --tokenizer hf --device cpu").stdout


def test_a_model_that_is_not_its_configurations_is_not_measured(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sizes may be anything."""
    from neoxkit.convert import load
    from neoxkit.errors import ConversionError

    def refuse(source: object) -> None:
        raise ConversionError("another model")

    monkeypatch.setattr(device, "product", lambda *shape: pytest.fail("measured"))
    monkeypatch.setattr(load, "check_model", refuse)
    assert run("generate half --prompt a --device cpu").stderr == "error: another model\n"


@pytest.mark.parametrize(("most", "said"), [(1000, True), (5, False)])
def test_a_full_context_is_said(here: Path, most: int, said: bool) -> None:
    Path("hf/generation_config.json").write_text(json.dumps({"eos_token_id": []}))
    config = json.loads(Path("hf/config.json").read_text())
    Path("hf/config.json").write_text(json.dumps({**config, "eos_token_id": None}))
    result = run(f"generate hf --prompt a --max-tokens {most} --device cpu")
    assert result.exit_code == 0
    assert result.stdout.startswith("a")
    line = "stopped after 63 new tokens: the model's context of 64 is full\n"
    assert result.stderr == (line if said else "")


def test_an_end_of_text_is_no_full_context(here: Path) -> None:
    Path("hf/generation_config.json").write_text(json.dumps({"eos_token_id": list(range(300))}))
    assert run("generate hf --prompt a --max-tokens 1000").stderr == ""


def test_the_globs_of_folders_are_told() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    said = " ".join(run("data tokenize --help").stdout.split())
    assert "of a folder *.txt, *.md, *.jsonl, *.ndjson and *.parquet at any depth" in said
    for glob in Selection().include:
        assert glob in said
        assert f"`{glob}`" in readme
