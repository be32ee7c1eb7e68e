"""The shipped models have the published number of parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from neoxkit.config.model import ModelConfig
from neoxkit.nn.decoder import specs
from neoxkit.spec import volume, whole

PUBLISHED = {
    # gpt-neox's own, at the tensor-parallel sizes of the published runs (which pad the vocabulary)
    "pythia-14m": 14_067_712,
    "pythia-31m": 30_494_720,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "gpt-neox-20b": 20_554_567_680,
    # the totals of the published files
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-33b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-8b": 8_030_261_248,
    "llama3.2-1b": 1_235_814_400,
    "codellama-7b": 6_738_546_688,
    "codellama-13b": 13_016_028_160,
    "codellama-34b": 33_743_970_304,
    "llemma-7b": 6_738_546_688,
    "llemma-34b": 33_743_970_304,
    "smollm2-135m": 134_515_008,
    "mistral-7b": 7_241_732_096,
    "falcon-7b": 6_921_720_704,
    "falcon-40b": 41_303_293_952,
}
ROUNDED = {"palm-8b": 8.63e9, "small-1m": 1.055e6, "small-8m": 8.00e6}
"""What the paper says, and what a name promises."""

FOLDER = Path(__file__).parents[2] / "configs" / "models"


def test_each_is_known() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*PUBLISHED, *ROUNDED}


def count(name: str) -> int:
    """The parameters of a shipped model."""
    config = ModelConfig.model_validate(yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["model"])
    return sum(volume(whole(spec.shape)) for spec in specs(config).values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters(name: str) -> None:
    assert count(name) == PUBLISHED[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_parameters_about(name: str) -> None:
    assert count(name) == pytest.approx(ROUNDED[name], rel=1e-3)
