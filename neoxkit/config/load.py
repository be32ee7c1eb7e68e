"""YAML files and `--set` to a RunConfig: strict, with the file and line in every error.

Scalars are read as YAML 1.2 reads them, so that 6e-4 is a number and `on` is text; 1_000 and 1e3
are whole numbers.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from neoxkit.config.reference import children, options
from neoxkit.config.run import RunConfig
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
_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")}
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dict_type": "a mapping",
}


@dataclass
class Tree:
    """Options as they were given, merged, and where each came from: "run.yaml:12" or "--set"."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Key, str] = field(default_factory=dict)

    def origin(self, key: Sequence[str]) -> str:
        """Where an option was given; for one that was not, where the nearest node above it was."""
        for length in range(len(key), -1, -1):
            if found := self.origins.get(tuple(key[:length])):
                return found
        return "configuration"

    def merge(self, other: Tree) -> None:
        """Take over what `other` gives. A mapping that names another `kind` replaces ours."""
        self._merge(self.values, other.values, (), other)

    def _merge(self, ours: dict[str, Any], theirs: Mapping[str, Any], at: Key, other: Tree) -> None:
        if at or () not in self.origins:  # what the top level lacks is told of the first file
            self.origins[at] = other.origins[at]
        for name, value in theirs.items():
            key, old = (*at, name), ours.get(name)
            if (
                isinstance(value, dict)
                and isinstance(old, dict)
                and value.get("kind", old.get("kind")) == old.get("kind")
            ):
                self._merge(old, value, key, other)
                continue
            for stale in [k for k in self.origins if k[: len(key)] == key]:
                del self.origins[stale]
            ours[name] = deepcopy(value)
            self.origins.update({k: v for k, v in other.origins.items() if k[: len(key)] == key})


def load_run(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> RunConfig:
    """The run that several files, merged in order, and overrides ("a.b=c") describe.

    Raises ConfigError with the file and line for what cannot be read, is unknown, of the wrong type
    or contradicts something else.
    """
    return validate(load_tree(paths, overrides))


def load_tree(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> Tree:
    """The options as given, merged but not yet validated. Raises ConfigError as `load_run` does."""
    tree = Tree()
    for path in paths:
        tree.merge(_read(Path(path)))
    for override in overrides:
        tree.merge(_override(override))
    return tree


def validate(tree: Tree) -> RunConfig:
    """The run that a tree of options describes. Raises ConfigError as `load_run` does."""
    try:
        run = RunConfig.model_validate(_tuples(tree.values), strict=True)  # strict: true is no number, "12" no integer
    except ValidationError as error:
        raise _explain(tree, error) from None
    for problem in run.problems():
        raise ConfigError(f"{tree.origin(problem.key.split('.'))}: {problem.cause}", problem.remedy)
    return run


def dump(config: RunConfig) -> str:
    """The run as YAML, every option resolved."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _Reader(yaml.SafeLoader):
    """Composes YAML nodes whose plain scalars are all text yet; refuses aliases."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (as pyyaml declares it)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
            raise ConfigError(f"{self.name}:{line}: aliases (*name) are not read", "write the value out")
        return super().compose_node(parent, index)


def _read(path: Path) -> Tree:
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
    return _parse(text, str(path))


def _parse(text: str, name: str) -> Tree:
    try:
        reader = _Reader(text)
        reader.name = name
        node = reader.get_single_node()
        if node is None:
            raise ConfigError(f"{name} is empty", "give at least one option")
        tree = Tree(origins={(): name})
        values = _build(node, (), tree, name)
    except yaml.YAMLError as error:
        raise _bad_yaml(error, name) from None
    except RecursionError:
        raise ConfigError(f"{name} is nested too deeply", "a configuration is a few levels deep") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{name} holds no mapping", "write one option a line, as `key: value`")
    tree.values = values
    return tree


def _bad_yaml(error: yaml.YAMLError, name: str) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
    if "'\\t'" in str(problem):
        problem = "a tab, which YAML does not allow for indentation"
    where = f"{name}:{mark.line + 1}" if mark else name
    return ConfigError(f"{where}: not valid YAML: {problem}", "mend the line (or the one before it)")


def _build(node: yaml.Node, at: Key, tree: Tree, name: str) -> Any:
    """The value of a YAML node; the origins of it and of all below it go to the tree."""
    here = f"{name}:{node.start_mark.line + 1}"
    tree.origins.setdefault(at, here)
    if node.tag not in _TAGS:
        raise ConfigError(f"{here}: the tag {node.tag} is not read", "write a plain value")
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*at, str(index)), tree, name) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, here)
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
            raise ConfigError(f"{line}: {'.'.join((*at, key))} was already given at {first}", "keep one of them")
        tree.origins[(*at, key)] = line
        values[key] = _build(value_node, (*at, key), tree, name)
    return values


def _scalar(node: yaml.ScalarNode, here: str) -> Any:
    text = node.value
    if node.style is not None:  # quoted or a block: text, whatever it looks like
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _WHOLE.fullmatch(text):
        return int(text)
    if match := _EXPONENT.fullmatch(text):
        return int(match[1]) * 10 ** int(match[2])
    if _NUMBER.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        raise ConfigError(f"{here}: {text} is no finite number", "write a finite number, or null for no limit")
    return text


def _override(text: str) -> Tree:
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


def _tuples(value: Any) -> Any:
    """The value with tuples for lists, which strict validation would refuse."""
    if isinstance(value, dict):
        return {key: _tuples(below) for key, below in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _explain(tree: Tree, error: ValidationError) -> ConfigError:
    """The first of pydantic's errors as one line; the number of the others is said."""
    errors = error.errors(include_url=False)
    # A misspelled option is often a missing one too, and the spelling is the cause; so it is told first.
    errors.sort(key=lambda e: {"extra_forbidden": 0, "missing": 2}.get(e["type"], 1))
    first = errors[0]
    key = _real(tree.values, first["loc"])
    cause, remedy = _said(first, key)
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return ConfigError(f"{tree.origin(key)}: {cause}{more}", remedy)


def _real(values: Any, loc: Sequence[int | str]) -> Key:
    """A location without the names of kinds, which pydantic puts between the keys of a union."""
    key: list[str] = []
    for part in loc:
        if isinstance(values, dict) and part not in values and part == values.get("kind"):
            continue
        key.append(str(part))
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):  # the location of something that is missing
            values = None
    return tuple(key)


def _said(error: Any, key: Key) -> tuple[str, str]:
    """Cause and remedy of one of pydantic's errors."""
    dotted, kind, given = ".".join(key), error["type"], error["input"]
    if kind == "extra_forbidden":
        return f"unknown option {dotted}", _suggest(key)
    if kind == "missing":
        if key[-1].isdigit():
            return f"{'.'.join(key[:-1])} is too short", "give all its values"
        return f"{dotted} is missing", f"it has no default; see `neoxkit config explain {dotted}`"
    if kind in _EXPECTED:
        return f"{dotted} is {_shown(given)}", f"it must be {_EXPECTED[kind]}"
    if kind == "union_tag_invalid":
        return f"{dotted}.kind is {error['ctx']['tag']!r}", f"choose one of {error['ctx']['expected_tags']}"
    if kind == "union_tag_not_found":
        return f"{dotted} has no kind", f"`neoxkit config explain {dotted}` lists the kinds"
    if kind == "literal_error":
        return f"{dotted} is {_shown(given)}", f"choose one of {error['ctx']['expected']}"
    if kind == "value_error":
        where = f"{dotted}: " if dotted else ""
        return where + str(error["ctx"]["error"]), ""
    message = error["msg"][0].lower() + error["msg"][1:]
    return f"{dotted} is {_shown(given)}", message.replace("input should", "it should")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _suggest(key: Key) -> str:
    """What an unknown option was probably meant to be."""
    parent, name = ".".join(key[:-1]), key[-1]
    siblings = children(parent)
    if close := difflib.get_close_matches(name, siblings, n=1, cutoff=0.6):
        return f"did you mean {'.'.join((*key[:-1], close[0]))}?"
    known = [option.key for option in options()]
    if elsewhere := [k for k in known if k.split(".")[-1] == name]:
        return f"did you mean {elsewhere[0]}?"
    if close := difflib.get_close_matches(".".join(key), known, n=1, cutoff=0.7):
        return f"did you mean {close[0]}?"
    return f"{parent or 'the top level'} has {', '.join(siblings)}" if siblings else "remove it"
