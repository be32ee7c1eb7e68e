"""The registry, and the values that families of transformers spell alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from drawn import SCALINGS
from hypothesis import given

from neoxkit.errors import ConversionError
from neoxkit.families import FAMILIES, by_name, recognise
from neoxkit.families.huggingface import (
    ACTIVATIONS,
    read_activation,
    read_ids,
    read_scaling,
    write_activation,
    write_ids,
    write_rope_parameters,
    write_rope_scaling,
)
from neoxkit.nn.mlp import ACTIVATIONS as OURS


def test_each_family_is_found_by_its_names() -> None:
    for name, family in FAMILIES.items():
        assert by_name(name) is family
        assert recognise({"architectures": [family.architecture], "model_type": "other"}) is family
        assert recognise({"model_type": family.model_type}) is family
        assert recognise({"architectures": None, "model_type": family.model_type}) is family


def test_the_architecture_says_more_than_the_type() -> None:
    """A classifier is of type llama too, and no language model."""
    with pytest.raises(ConversionError, match="describes LlamaForSequenceClassification"):
        recognise({"architectures": ["LlamaForSequenceClassification"], "model_type": "llama"})


@pytest.mark.parametrize("theirs", ACTIVATIONS)
def test_activations_compute_what_transformers_computes(theirs: str) -> None:
    from transformers.activations import ACT2FN

    x = torch.linspace(-6, 6, 1001)
    torch.testing.assert_close(OURS[read_activation(theirs)](x), ACT2FN[theirs](x), atol=1e-6, rtol=1e-6)
    assert read_activation(write_activation(read_activation(theirs))) == read_activation(theirs)


@given(SCALINGS)
def test_scalings_survive_in_both_spellings(ours: dict[str, Any] | None) -> None:
    assert read_scaling(write_rope_scaling(ours)) == ours
    assert read_scaling(write_rope_parameters(ours)) == ours


@pytest.mark.parametrize("theirs", [None, 3, [3, 5]])
def test_ids(theirs: int | list[int] | None) -> None:
    assert write_ids(list(read_ids(theirs))) == theirs


def test_fields_of_a_family_say_each_thing_once() -> None:
    """A path of ours twice in a table is a second source for one value: only a scaling has two."""
    for family in FAMILIES.values():
        ours = [field.ours for field in family.fields]
        assert {name for name in ours if ours.count(name) > 1} <= {"position.scaling"}
        assert not {name for name, value in family.implies.items() if not callable(value)} & {
            field.ours for field in family.fields if field.theirs
        }
