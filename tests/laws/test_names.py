"""Law 2: a family's rules cover exactly the decoder's tensors on one side, the file's on the other; shapes agree."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from drawn import configs
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tiny import Tiny

from neoxkit.config.model import ModelConfig
from neoxkit.convert.open import open_foreign
from neoxkit.families import FAMILIES, by_name
from neoxkit.families.schema import Family, expand
from neoxkit.nn.decoder import specs


def names(family: Family, config: ModelConfig) -> Counter[str]:
    return Counter(name for rule in expand(family, config) for name in rule.ours)


def theirs(family: Family, config: ModelConfig) -> dict[str, list[int]]:
    """Every tensor of theirs that the rules speak of, and the shape that they give it."""
    ours, found = specs(config), {}
    for rule in expand(family, config):
        parts = [torch.empty(ours[name].shape, device="meta") for name in rule.ours]
        for key, tensor in zip(rule.theirs, rule.layout.join(parts), strict=True):
            assert key not in found
            found[key] = list(tensor.shape)
    return found


def on_disk(folder: Path) -> dict[str, list[int]]:
    """Names and shapes, as the safetensors package reads them."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    return found


def test_files_of_transformers(tiny: Tiny, tiny_folder: Path) -> None:
    source = open_foreign(tiny_folder)
    assert names(source.family, source.config) == Counter(dict.fromkeys(specs(source.config), 1))
    assert theirs(source.family, source.config) == on_disk(tiny_folder)
    assert len(list(tiny_folder.glob("*.safetensors"))) > 1
    source.close()


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=40)
def test_any_model_of_a_family(family: str, data: st.DataObject) -> None:
    config = data.draw(configs(family))
    assert names(by_name(family), config) == Counter(dict.fromkeys(specs(config), 1))
    assert all(shape for shape in theirs(by_name(family), config).values())
