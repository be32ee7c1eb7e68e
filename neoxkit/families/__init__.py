"""The families neoxkit knows, by name, by architecture and by model type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neoxkit.errors import ConversionError
from neoxkit.families.bloom import BLOOM
from neoxkit.families.falcon import FALCON
from neoxkit.families.gpt2 import GPT2
from neoxkit.families.gpt_neox import GPT_NEOX
from neoxkit.families.llama import LLAMA
from neoxkit.families.mistral import MISTRAL
from neoxkit.families.mpt import MPT
from neoxkit.families.olmo2 import OLMO2
from neoxkit.families.phi3 import PHI3
from neoxkit.families.qwen2 import QWEN2
from neoxkit.families.qwen3 import QWEN3
from neoxkit.families.schema import Family
from neoxkit.families.stablelm import STABLELM

_KNOWN = (GPT_NEOX, LLAMA, MISTRAL, QWEN2, QWEN3, PHI3, STABLELM, GPT2, OLMO2, MPT, BLOOM, FALCON)

FAMILIES: dict[str, Family] = {family.name: family for family in _KNOWN}


def by_name(name: str) -> Family:
    """The family called so. Raises ConversionError for another."""
    if name not in FAMILIES:
        raise ConversionError(f"no family is called {name!r}", f"choose one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def recognise(theirs: Mapping[str, Any], where: str = "config.json") -> Family:
    """The family of a Hugging Face configuration: by `architectures`, or by `model_type` where it has none.

    Raises ConversionError for an architecture that neoxkit does not know.
    """
    architectures, model_type = theirs.get("architectures") or [], theirs.get("model_type")
    if not isinstance(architectures, list) or not all(isinstance(each, str) for each in architectures):
        raise ConversionError(f"{where}: architectures is {architectures!r}, not a list of names", "correct the file")
    classes = {each.lower() for each in architectures}  # remote code spells some otherwise: MPTForCausalLM
    for family in FAMILIES.values():
        if family.architecture.lower() in classes or (not architectures and family.model_type == model_type):
            return family
    named = ", ".join(architectures) or str(model_type or "nothing")
    known = ", ".join(family.architecture for family in FAMILIES.values())
    raise ConversionError(f"{where} describes {named}, which is no family neoxkit knows", f"it knows {known}")
