"""Reads and writes a foreign configuration by a family's table of fields."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from neoxkit.config.model import ModelConfig
from neoxkit.errors import ConversionError
from neoxkit.families.fit import unfit
from neoxkit.families.schema import REQUIRED, Family, Field, Required
from neoxkit.families.tree import ABSENT, lookup, place


def read_config(family: Family, theirs: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """Our configuration from theirs.

    Raises ConversionError when a key is missing, when two spellings disagree, or when the values ask
    for something that the family's architecture, as neoxkit knows it, does not do.
    """
    ours: dict[str, Any] = {"family": family.name}
    _check_fixed(family, theirs, where)
    for path in dict.fromkeys(field.ours for field in family.fields):
        place(ours, path, _read_field([f for f in family.fields if f.ours == path], theirs, where))
    for path, value in family.implies.items():
        if callable(value):
            continue
        given = lookup(ours, path)
        if given not in (ABSENT, value):
            raise ConversionError(
                f"{where}: {path} is {given!r}, but neoxkit computes {family.name} with {value!r} only",
                "this model is not supported",
            )
        place(ours, path, value)
    try:
        return ModelConfig.model_validate(ours, strict=True)  # strict: "48" and true are no sizes
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = _path(ours, first["loc"])
        keys = [key for field in family.fields if path.startswith(field.ours) for key in field.theirs]
        named = f" (from {', '.join(dict.fromkeys(keys))})" if keys else ""
        why = first["msg"].removeprefix("Value error, ")
        raise ConversionError(f"{where}: {path or 'model'}{named}: {why}", "correct the file") from None


def _check_fixed(family: Family, theirs: Mapping[str, Any], where: str) -> None:
    """Raise ConversionError for a key that asks for what neoxkit does not do."""
    for path, wanted in family.fixed.items():
        given = lookup(theirs, path)
        if (
            given is ABSENT
            or given is None
            or (given == wanted and isinstance(given, bool) == isinstance(wanted, bool))
        ):
            continue
        raise ConversionError(
            f"{where}: {path} is {_spelled(given)}, but neoxkit computes {family.name} with {_spelled(wanted)} only",
            "this model is not supported",
        )


def _path(tree: Any, loc: tuple[str | int, ...]) -> str:
    """pydantic's place of an error as a dotted path, without the kind that it adds below a node which has kinds."""
    kept = []
    for part in loc:
        if isinstance(tree, Mapping) and tree.get("kind") == part:
            continue
        kept.append(str(part))
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return ".".join(kept)


def _read_field(fields: list[Field], theirs: Mapping[str, Any], where: str) -> Any:
    """Our value, from all the spellings that are there; those which hold null give way to others."""
    found: dict[str, Any] = {}
    for field in fields:
        for path in (*field.theirs, *field.also):
            value = lookup(theirs, path)
            if value is ABSENT or (value is None and not field.nullable):
                continue
            try:
                found[path] = field.read(value)
            except (KeyError, TypeError, ValueError) as error:
                reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
                raise ConversionError(f"{where}: {path} = {value!r}: {reason}", "this value is not supported") from None
    stated = {path: value for path, value in found.items() if value is not None}
    if len({repr(value) for value in stated.values()}) > 1:
        listed = ", ".join(f"{path} says {value!r}" for path, value in stated.items())
        raise ConversionError(f"{where}: two spellings disagree: {listed}", "remove the wrong one")
    if stated or found:
        return next(iter(stated.values()), None)
    default = next((field.default for field in fields if not isinstance(field.default, Required)), REQUIRED)
    if isinstance(default, Required):
        raise ConversionError(f"{where}: the key {fields[0].theirs[0]!r} is missing", "add it")
    return default(theirs) if callable(default) else default


def write_config(family: Family, config: ModelConfig) -> dict[str, Any]:
    """Their configuration from ours, in every spelling that a supported release reads.

    Raises ConversionError with each reason when the model does not fit.
    """
    if reasons := unfit(family, config):
        raise ConversionError(
            f"the model does not fit {family.title}: {'; '.join(reasons)}", "export as another family"
        )
    ours = config.model_dump(mode="json")
    theirs: dict[str, Any] = {"architectures": [family.architecture], "model_type": family.model_type}
    for field in family.fields:
        value = lookup(ours, field.ours)
        for path in field.theirs:
            place(theirs, path, field.write(None if value is ABSENT else value))
    for path, value in family.beside.items():
        place(theirs, path, value(config) if callable(value) else value)
    return theirs


def unknown_keys(family: Family, theirs: Mapping[str, Any]) -> list[str]:
    """Their keys that the table does not know, which may mean something that neoxkit does not do."""
    paths = [*family.fixed, *(path for field in family.fields for path in (*field.theirs, *field.also))]
    known = {path.split(".")[0] for path in paths}
    return sorted(key for key in theirs if key not in known | family.passive and not key.startswith("_"))


def _spelled(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
