"""gpt-neox's YAML files: which they are, and several of them as one, with hyphens and underscores alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import yaml

from neoxkit.config.neox.option import Option
from neoxkit.config.neox.table import RENAMED, find, similar
from neoxkit.config.reference import children
from neoxkit.config.run import RunConfig
from neoxkit.config.tree import Document, Tree
from neoxkit.errors import ConfigError


def is_neox(document: Document) -> bool:
    """Whether a file holds options of gpt-neox. Raises ConfigError when it holds as many of neoxkit's own."""
    top = document.top
    ours = [key for key in top if key in RunConfig.model_fields and not find(key)]
    theirs = [key for key in top if find(key) and key not in RunConfig.model_fields]
    if ours and theirs and len(ours) == len(theirs):
        raise ConfigError(
            f"{document.line(theirs[0])}: {theirs[0]} is an option of gpt-neox, and {ours[0]}, at "
            f"{document.line(ours[0])}, is neoxkit's own",
            "write them in two files",
        )
    if ours or theirs:
        return len(theirs) > len(ours)  # of the other there is a mistake, which is told as one
    return any(_foreign(key, value) for key, value in top.items())


def _foreign(key: str, value: yaml.Node) -> bool:
    """Whether an option that both have is given as gpt-neox has it: `save: folder`, `optimizer: {type: Adam}`."""
    if not find(key) or key not in RunConfig.model_fields:
        return False
    below = children(key)
    if isinstance(value, yaml.MappingNode):
        inside = {each.value for each, _ in value.value}
        return bool(inside & {"type", "params"}) and not inside & set(below)
    return (bool(below) and bool(value.value)) or value.value == "bfloat16"


@dataclass
class Mix:
    """The options of several of gpt-neox's files, by their names of today."""

    tree: Tree = field(default_factory=Tree)
    files: list[str] = field(default_factory=list)

    def add(self, document: Document) -> None:
        """Take over a file's options. Raises ConfigError for one that is unknown, was given, or is of another kind."""
        given = document.tree(old=True)
        self.files.append(document.name)
        self.tree.origins.setdefault((), document.name)
        for name, value in given.values.items():
            origin = given.origins[name,]
            option = find(name)
            if option is None:
                raise ConfigError(f"{origin}: unknown option {name}", _meant(name))
            if option.name in self.tree.values:
                raise ConfigError(
                    f"{origin}: {name} was already given at {self.tree.origins[option.name,]}",
                    "keep one of them, or say it with --set",
                )
            self._put(name, option, value, origin)
            self.tree.origins.update(
                {(option.name, *key[1:]): where for key, where in given.origins.items() if key[:1] == (name,)}
            )

    @classmethod
    def of(cls, options: Mapping[str, object], where: str) -> Mix:
        """A mix of options by their names of today. Raises ConfigError for one that is of another kind."""
        mix = cls(Tree(origins={(): where}), [where])
        for name, value in options.items():
            option = find(name)
            assert option is not None, name
            mix._put(name, option, value, where)
        return mix

    def _put(self, name: str, option: Option, value: object, origin: str) -> None:
        if value is None:  # gpt-neox's word for what is not given
            return
        if option.becomes != "ignored" and not option.is_of_kind(value):
            raise ConfigError(f"{origin}: {name} is {value!r:.60}", f"it must be {_kind(option)}")
        self.tree.values[option.name] = value
        self.tree.origins[option.name,] = origin

    def take(self, given: Tree) -> bool:
        """Take over a `--set`, if there are files and it is of an option of gpt-neox; whether it was."""
        ((name, value),) = given.values.items()
        option = find(name)
        if not self.files or option is None:
            return False
        if name in RunConfig.model_fields:  # an option of both: ours, unless it is given as gpt-neox has it
            below, inside = children(name), set(value) if isinstance(value, dict) else None
            taken_back = value is None and name in self.tree.values
            if not taken_back and (not below or (inside is not None and not inside - set(below))):
                return False
        bare = RENAMED.get(name.replace("-", "_"), name.replace("-", "_"))
        renamed = Tree({bare: value}, {(bare, *key[1:]) if key else key: where for key, where in given.origins.items()})
        renamed.origins[()] = self.tree.origins[()]
        self.tree.merge(renamed)
        if value is None:
            del self.tree.values[bare]
        elif not option.is_of_kind(self.tree.values[bare]):
            raise ConfigError(f"--set {name}: {value!r:.60}", f"it must be {_kind(option)}")
        return True


def _kind(option: Option) -> str:
    return f"one of {', '.join(option.kind)}" if isinstance(option.kind, tuple) else f"a {option.kind}"


def _meant(name: str) -> str:
    """What to do about a name that gpt-neox has no option of."""
    if name in RunConfig.model_fields:
        return "it is neoxkit's own: write it in a file for itself, or as --set"
    close = similar(name)
    return f"did you mean {close}?" if close else "remove it"
