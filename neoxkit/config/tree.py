"""YAML as it was written: a tree of values that knows the file and line of each.

Scalars are read as YAML 1.2 reads them, so that 6e-4 is a number and `on` is text; 1_000 and 1e3
are whole numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from neoxkit.errors import ConfigError

Key = tuple[str, ...]

_WHOLE = re.compile(r"[-+]?[0-9][0-9_]*")
_EXPONENT = re.compile(r"([-+]?[0-9]+)[eE]\+?([0-9]{1,3})")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF|nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_OLD_WORDS = {
    **{word: True for each in ("yes", "on") for word in (each, each.title(), each.upper())},
    **{word: False for each in ("no", "off") for word in (each, each.title(), each.upper())},
}
KINDS: dict[Key, str] = {("optimizer",): "adamw", ("model", "norm"): "layer", ("model", "mixer"): "attention"}
"""Mappings that need not say their `kind`, and what it is then."""
_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")}


@dataclass
class Tree:
    """Options as they were given, merged, and where each came from: "run.yaml:12" or "--set"."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Key, str] = field(default_factory=dict)
    lacking: dict[Key, tuple[str, str]] = field(default_factory=dict)
    """What to say of an option that has to be given and is not: why, and what to do."""
    notes: list[str] = field(default_factory=list)
    """What whoever wrote the files should know of them, a line each."""
    replaced: dict[Key, tuple[str, str]] = field(default_factory=dict)
    """Mappings in whose place one of another `kind` came: the old kind, and where it was given."""
    only: dict[Key, tuple[Key, tuple[Any, ...]]] = field(default_factory=dict)
    """Options that stand only while another has one of these values, which a later file may change."""

    def origin(self, key: Sequence[str]) -> str:
        """Where an option was given; for one that was not, where the nearest node above it was."""
        for length in range(len(key), -1, -1):
            if found := self.origins.get(tuple(key[:length])):
                return found
        return "configuration"

    def merge(self, other: Tree) -> None:
        """Take over what `other` gives. A mapping that names another `kind` replaces ours."""
        self.lacking.update(other.lacking)
        self.notes += other.notes
        self.only.update(other.only)
        self.replaced.update(other.replaced)
        self._merge(self.values, other.values, (), other)

    def drop_pointless(self) -> None:
        """Take out the options of `only` whose condition no longer holds, and note it."""
        for key, (other, allowed) in self.only.items():
            holder, value = self.at(key[:-1]), self.at(other)
            if isinstance(holder, dict) and key[-1] in holder and value not in allowed:
                del holder[key[-1]]
                self.notes.append(f"{self.origins[key]} is passed over: {'.'.join(other)} is {value}")

    def at(self, key: Key) -> Any:
        """What stands at a key; None where nothing does."""
        value: Any = self.values
        for part in key:
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def _merge(self, ours: dict[str, Any], theirs: Mapping[str, Any], at: Key, other: Tree) -> None:
        if at or () not in self.origins:  # what the top level lacks is told of the first file
            self.origins[at] = other.origins[at]
        for name, value in theirs.items():
            key, old = (*at, name), ours.get(name)
            if isinstance(value, dict) and isinstance(old, dict):
                kind = old.get("kind", KINDS.get(key))
                if value.get("kind", kind) == kind:
                    self._merge(old, value, key, other)
                    continue
                self.replaced[key] = str(kind), self.origins[key]
            for stale in [k for k in self.origins if k[: len(key)] == key]:
                del self.origins[stale]
            ours[name] = deepcopy(value)
            self.origins.update({k: v for k, v in other.origins.items() if k[: len(key)] == key})


class _Reader(yaml.SafeLoader):
    """Composes YAML nodes whose plain scalars are all text yet; refuses aliases."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (as pyyaml declares it)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
            raise ConfigError(f"{self.name}:{line}: aliases (*name) are not read", "write the value out")
        return super().compose_node(parent, index)


@dataclass(frozen=True)
class Document:
    """A YAML file that was read and not yet understood: its name, and the top of its nodes."""

    name: str
    node: yaml.MappingNode

    @property
    def top(self) -> dict[str, yaml.Node]:
        """The values of the top level, by key."""
        return {key.value: value for key, value in self.node.value if isinstance(key, yaml.ScalarNode)}

    def line(self, key: str) -> str:
        """Where a key of the top level is: "run.yaml:12"."""
        return next(f"{self.name}:{k.start_mark.line + 1}" for k, _ in self.node.value if k.value == key)

    def tree(self, old: bool = False) -> Tree:
        """Its options. With `old`, words and numbers are read as YAML 1.1 has them: `on` is true.

        And an option may be given twice, if it is the same.
        """
        tree = Tree(origins={(): self.name})
        try:
            tree.values = _build(self.node, (), tree, self.name, old)
        except RecursionError:
            raise _too_deep(self.name) from None
        return tree


def read(path: Path) -> Document:
    """A YAML file. Raises ConfigError when it is none, or holds no mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", "name a YAML file that exists") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder", "name a YAML file in it") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text in UTF-8", "name a YAML file") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", "check its permissions") from None
    name = str(path)
    try:
        reader = _Reader(text)
        reader.name = name
        node = reader.get_single_node()
    except yaml.YAMLError as error:
        raise _bad_yaml(error, name) from None
    except RecursionError:
        raise _too_deep(name) from None
    if node is None:
        raise ConfigError(f"{name} is empty", "give at least one option")
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{name} holds no mapping", "write one option a line, as `key: value`")
    return Document(name, node)


def _too_deep(name: str) -> ConfigError:
    return ConfigError(f"{name} is nested too deeply", "a configuration is a few levels deep")


def _bad_yaml(error: yaml.YAMLError, name: str) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
    if "'\\t'" in str(problem):
        problem = "a tab, which YAML does not allow for indentation"
    where = f"{name}:{mark.line + 1}" if mark else name
    return ConfigError(f"{where}: not valid YAML: {problem}", "mend the line (or the one before it)")


def _build(node: yaml.Node, at: Key, tree: Tree, name: str, old: bool = False) -> Any:
    """The value of a YAML node; the origins of it and of all below it go to the tree."""
    here = f"{name}:{node.start_mark.line + 1}"
    tree.origins.setdefault(at, here)
    if node.tag not in _TAGS:
        raise ConfigError(f"{here}: the tag {node.tag} is not read", "write a plain value")
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*at, str(index)), tree, name, old) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, here, old)
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = f"{name}:{key_node.start_mark.line + 1}"
        key = key_node.value
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{line}: a key must be one word", "write `key: value`")
        if key == "<<":
            raise ConfigError(f"{line}: merge keys (<<) are not read", "give several files; they are merged in order")
        if key in values:
            first = tree.origins[(*at, key)]
            if old and _build(value_node, (*at, key), Tree(), name, old) == values[key]:
                continue
            raise ConfigError(f"{line}: {'.'.join((*at, key))} was already given at {first}", "keep one of them")
        tree.origins[(*at, key)] = line
        values[key] = _build(value_node, (*at, key), tree, name, old)
    return values


def _scalar(node: yaml.ScalarNode, here: str, old: bool) -> Any:
    text = node.value
    if node.style is not None:  # quoted or a block: text, whatever it looks like
        return text
    if text in _WORDS:
        return _WORDS[text]
    if old and text in _OLD_WORDS:
        return _OLD_WORDS[text]
    if _WHOLE.fullmatch(text):
        return int(text)
    if match := _EXPONENT.fullmatch(text):
        return int(match[1]) * 10 ** int(match[2])
    if _NUMBER.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        raise ConfigError(f"{here}: {text} is no finite number", "write a finite number, or null for no limit")
    return text


def override(text: str) -> Tree:
    """The tree of one "a.b=c"; the value is YAML."""
    dotted, equals, value = text.partition("=")
    key = tuple(part.strip() for part in dotted.split("."))
    if not equals or not all(key):
        raise ConfigError(f"--set {text} is no assignment", "write it as --set key.below=value")
    origin = f"--set {dotted}"
    tree = Tree()
    try:
        reader = _Reader(value)
        reader.name = origin
        node = reader.get_single_node()
        below = Tree()
        found = _build(node, (), below, origin) if node is not None else None
    except yaml.YAMLError:
        raise ConfigError(f"--set {text}: the value is not valid YAML", "quote it") from None
    tree.values = {key[-1]: found}
    for name in reversed(key[:-1]):
        tree.values = {name: tree.values}
    tree.origins = {key[:length]: origin for length in range(len(key) + 1)}
    tree.origins.update({(*key, *rest): origin for rest in below.origins})
    return tree
