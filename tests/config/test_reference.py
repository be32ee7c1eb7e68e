"""The option reference covers the whole tree, and nothing is undescribed."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from neoxkit.cli.config import command
from neoxkit.config.reference import children, markdown, options
from neoxkit.config.run import RunConfig


def test_every_option_is_described() -> None:
    for option in options():
        assert option.description or option.key.endswith(".kind"), option.key
        assert "typing." not in option.kind, option
        assert "class" not in option.kind, option


def test_every_top_level_option_is_listed() -> None:
    assert children("") == sorted(RunConfig.model_fields)
    page = markdown()
    for option in options():
        assert f"`{option.key}`" in page


def test_children_of_an_option_are_none() -> None:
    assert children("optimizer.lr") == []
    assert "low_freq_factor" in children("model.position.scaling")


def test_config_commands(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "model: {family: llama, depth: 1, width: 8, vocab: 9, context: 4, mixer: {heads: 2}}\n"
        "data: {train: t}\nbatch: {size: 1}\noptimizer: {lr: 1}\nsteps: 1\nsave: {folder: s}\n"
    )
    runner = CliRunner()
    assert runner.invoke(command, ["check", str(path)]).output == "ok\n"
    shown = runner.invoke(command, ["show", str(path), "--set", "steps=3"]).output
    assert "steps: 3" in shown
    assert "head_dim: 4" in shown
    explained = runner.invoke(command, ["explain", "optimizer.lr"]).output
    assert "The highest learning rate" in explained
    assert "must be given" in explained
    assert explained.count("optimizer.lr") == 1, "all kinds have it alike"
    assert runner.invoke(command, ["explain", "optimizer.lrx"]).exception is not None


def test_a_section_is_explained_kind_by_kind() -> None:
    def explained(key: str) -> list[str]:
        return CliRunner().invoke(command, ["explain", key]).output.splitlines()

    assert explained("model.position")[:5] == [
        "model.position, with kind: rotary",
        "    Rotary positions (arXiv 2104.09864) over the first part of each head; pairs are (j, j + half).",
        "model.position.base",
        "    Frequencies are base^(-2j / rotated dimensions).",
        "    number, above 0; default: 10000.0",
    ]
    assert explained("optimizer.kind")[2].startswith("    adamw8bit: AdamW whose moments take a byte")
    assert "optimizer.betas, with kind: adamw or adamw8bit" in explained("optimizer.betas")
    assert explained("save.background")[-1] == "    auto, always, never; default: auto"
