"""What a family is: the fields of its configuration and the names of its tensors, written once.

Import reads the tables from right to left, export from left to right. A family file is data: it
holds no code that knows the direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from neoxkit.config.model import ModelConfig
from neoxkit.families.layout import Layout, Same

SAME = Same()


class Required:
    """The default of a field that must be there."""


REQUIRED = Required()


def same(value: Any) -> Any:
    """The identity: a field that both sides write alike."""
    return value


def no_caution(config: ModelConfig) -> None:
    """Every supported release computes the family's models right."""


@dataclass(frozen=True)
class Field:
    """One value of our configuration and where theirs keeps it.

    `theirs` are dotted paths which are all written, since different releases of a library read
    different ones; reading takes them from whichever is there, and two that disagree are an error.
    `also` are spellings that are read and never written. `default` is what an absent key means, a
    value of ours; it may be a function of their whole configuration. A null is an absent key, unless
    the field is `nullable`. `read` turns their value into ours and `write` goes back.
    """

    ours: str
    theirs: tuple[str, ...]
    also: tuple[str, ...] = ()
    default: Any = REQUIRED
    read: Callable[[Any], Any] = same
    write: Callable[[Any], Any] = same
    nullable: bool = False


@dataclass(frozen=True)
class Rule:
    """Which of our tensors are which of theirs; "{i}" in a name is the layer, `layout` how elements lie."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    layout: Layout = SAME


@dataclass(frozen=True)
class Family:
    """How a configuration and its tensors are spelled elsewhere.

    `title` is what people call it. `implies` are values of our configuration that the family's
    architecture fixes (or functions of the configuration); a model which differs cannot be exported as
    this family. `fixed` are their keys (dotted paths) for mathematics that we do only one way, with the
    value that asks for it, which is also what an absent key means: another value is refused. `passive`
    are their keys that say nothing about the network. `buffers` are regular expressions of tensors in
    their files which hold no weights. `tokenizer_class` is the classic class that every release of
    transformers knows. `beside` are keys that only other programs look at, or that are written otherwise
    than they are read, with their values (or functions of the configuration): written, never read.
    `caution` says, of a model that it spells, what a supported release would get
    wrong; None when nothing.
    """

    name: str
    title: str
    architecture: str
    model_type: str
    fields: tuple[Field, ...]
    rules: Callable[[ModelConfig], Iterable[Rule]]
    implies: Mapping[str, Any]
    passive: frozenset[str]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    buffers: tuple[str, ...] = ()
    tokenizer_class: str = "PreTrainedTokenizerFast"
    beside: Mapping[str, Any] = field(default_factory=dict)
    caution: Callable[[ModelConfig], str | None] = no_caution


def expand(family: Family, config: ModelConfig) -> list[Rule]:
    """The rules of every layer, with "{i}" filled in."""
    found: list[Rule] = []
    for rule in family.rules(config):
        layered = any("{i}" in name for name in (*rule.ours, *rule.theirs))
        for layer in range(config.depth if layered else 1):
            ours, theirs = (tuple(n.replace("{i}", str(layer)) for n in names) for names in (rule.ours, rule.theirs))
            found.append(Rule(ours, theirs, rule.layout))
    return found
