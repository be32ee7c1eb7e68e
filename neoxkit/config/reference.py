"""Every option of a run, read from the pydantic tree: for the reference page and for did-you-mean."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from neoxkit.config.run import RunConfig

EACH = "[]"
"""Ends the key of nodes of which there is a list."""

_WORDS = {"int": "whole number", "float": "number", "str": "text", "bool": "true or false", "NoneType": "null"}


@dataclass(frozen=True)
class Option:
    """One option: its dotted key, what it may be, its default as YAML ("" when it must be given).

    `where` says which kind of node has it: "kind: rotary", or "".
    """

    key: str
    kind: str
    default: str
    description: str
    where: str = ""


@dataclass(frozen=True)
class Section:
    """A node of the tree: its dotted key, what it is, and its own options."""

    key: str
    description: str
    options: tuple[Option, ...]


def sections(node: type[BaseModel] = RunConfig, key: str = "", where: str = "") -> Iterator[Section]:
    """The tree, depth first. A node that may be of several kinds gives a section for each."""
    own, below = [], []
    for name, field in node.model_fields.items():
        path = f"{key}.{name}" if key else name
        nodes = nodes_of(field.annotation)
        if not nodes:
            own.append(Option(path, _spelled(field.annotation, field), _default(field), field.description or "", where))
        for child in nodes:
            below.append((child, path, f"kind: {_kind(child)}" if len(nodes) > 1 else where))
        below += [(child, f"{path}{EACH}", where) for child in _listed(field.annotation)]
    yield Section(key, " ".join((node.__doc__ or "").split("\n\n")[0].split()), tuple(own))
    for child, path, kind in below:
        yield from sections(child, path, kind)


def options() -> list[Option]:
    """Every option of a run, in the order of the tree."""
    return [option for section in sections() for option in section.options]


def children(key: str) -> list[str]:
    """The names that may stand directly below a dotted key ("" for the top); none below an option."""
    depth = len(key.split(".")) if key else 0
    prefix = key + "." if key else ""
    keys = [o.key for o in options()] + [s.key for s in sections() if s.key]
    return sorted({k.split(".")[depth].removesuffix(EACH) for k in keys if k.startswith(prefix)})


def explain(key: str) -> Iterator[str]:
    """What an option is, or what a section is and has below it, in lines for a person; none where there is no such."""
    everything = list(sections())
    below = [section for section in everything if section.options and f"{section.key}.".startswith(f"{key}.")]
    for number, section in enumerate(below):
        where = section.options[0].where
        yield from [""] if number else []
        yield section.key + (f", with {where}" if where else "")
        yield f"    {section.description}"
        for option in section.options:
            if option.key != f"{section.key}.kind":
                yield from _lines(option, [])
    found = [(option, section) for section in everything for option in section.options if option.key == key]
    if key.endswith(".kind") and found:
        yield key
        yield from (f"    {option.kind.replace('`', '')}: {section.description}" for option, section in found)
        return
    alike: dict[Option, list[str]] = {}
    for option, _ in found:
        alike.setdefault(replace(option, where=""), []).append(option.where.removeprefix("kind: "))
    for option, kinds in alike.items():
        yield from _lines(option, kinds if len(alike) > 1 else [])


def _lines(option: Option, kinds: Sequence[str]) -> Iterator[str]:
    """An option; `kinds` are the kinds of node that have it so."""
    yield option.key + (f", with kind: {' or '.join(kinds)}" if kinds else "")
    yield f"    {option.description}"
    yield f"    {option.kind.replace('`', '')}; " + (
        f"default: {option.default}" if option.default else "must be given"
    )


def markdown() -> str:
    """The reference of every option as a Markdown page."""
    lines = [
        "# Options of a run",
        "",
        "Generated from `neoxkit/config`. Later files win over earlier ones, and `--set key=value` wins over files.",
        "A mapping that names another `kind` than an earlier file replaces the earlier mapping.",
    ]
    for section in sections():
        if not section.options:
            continue
        where = section.options[0].where
        title = f"`{section.key}`" + (f" with `{where}`" if where else "") if section.key else "Top level"
        lines += ["", f"## {title}", "", section.description, "", "| option | is | default | |", "|---|---|---|---|"]
        for option in section.options:
            default = f"`{option.default}`" if option.default else "**required**"
            cells = (f"`{option.key}`", option.kind, default, option.description)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def nodes_of(annotation: Any) -> list[type[BaseModel]]:
    """The nodes that an annotation may hold; none for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is Annotated:
        return nodes_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [node for part in get_args(annotation) for node in nodes_of(part)]
    return []


def _listed(annotation: Any) -> list[type[BaseModel]]:
    """The nodes that an annotation may hold a list of."""
    if get_origin(annotation) is tuple:
        return nodes_of(get_args(annotation)[0])
    if get_origin(annotation) is Annotated:
        return _listed(get_args(annotation)[0])
    return [node for part in get_args(annotation) for node in _listed(part)]


def _kind(node: type[BaseModel]) -> str:
    """The value of `kind` that chooses a node."""
    return str(node.model_fields["kind"].default)


def _spelled(annotation: Any, field: FieldInfo | None = None) -> str:
    """What a value may be, in words: "number, above 0"."""
    if get_origin(annotation) is Annotated:
        return _spelled(get_args(annotation)[0], field)
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        said = ", ".join(f"`{part}`" for part in parts)
    elif origin in (Union, types.UnionType):
        said = " or ".join(_spelled(part) for part in parts)
    elif origin is tuple:
        node = nodes_of(parts[0])  # in whose place its first option may stand
        said = f"{_spelled(node[0].model_fields['tokens'].annotation)} or " if node else ""
        said += "list of " + _spelled(parts[0]) + ("s" if len(parts) > 1 else "")
    else:
        mapping = isinstance(annotation, type) and issubclass(annotation, BaseModel)
        said = "mapping" if mapping else _WORDS.get(getattr(annotation, "__name__", ""), str(annotation))
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    for limit in field.metadata if field else ():
        for name, word in words.items():
            if hasattr(limit, name):
                said += f", {word} {getattr(limit, name)}"
    return said


def _default(field: FieldInfo) -> str:
    """The default as YAML spells it; "" when the option must be given."""
    if field.is_required():
        return "derived" if "when left out" in (field.description or "") else ""
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    return str(value)
