"""The shipped models have the published number of parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from neoxkit.config.model import ModelConfig
from neoxkit.nn.decoder import specs
from neoxkit.spec import volume, whole

PUBLISHED = {
    "pythia-14m": 14_067_712,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "smollm2-135m": 134_515_008,
    "mistral-7b": 7_241_732_096,
}
FOLDER = Path(__file__).parents[2] / "configs" / "models"


def test_each_is_known() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters(name: str) -> None:
    config = ModelConfig.model_validate(yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["model"])
    assert sum(volume(whole(spec.shape)) for spec in specs(config).values()) == PUBLISHED[name]
