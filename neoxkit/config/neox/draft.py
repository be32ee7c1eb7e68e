"""A run that is made of gpt-neox's options: what was given, what it becomes, and what is said of the rest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from neoxkit.config.neox.settings import Settings
from neoxkit.config.neox.table import find
from neoxkit.config.reference import nodes_of
from neoxkit.config.run import RunConfig
from neoxkit.config.tree import Tree
from neoxkit.errors import ConfigError

REQUIRED = object()
"""The default of an option that has none: nothing equals it."""

NO_SAY = "beside the other options it says nothing"
REMEDY = "`neoxkit config explain` says what each of gpt-neox's options becomes"


class Draft:
    """Options of gpt-neox, and the tree of ours that grows out of them.

    What gpt-neox leaves out is written only where its default is not ours: what a configuration does
    not state, a run may take from the weights that it begins with.
    """

    def __init__(self, given: Tree) -> None:
        self.given = given
        self.tree = Tree(origins={(): given.origins.get((), "configuration")})
        where = {key[0]: origin for key, origin in given.origins.items() if len(key) == 1}
        self.settings = Settings(self.tree.origins[()], given.values, where, REMEDY)
        self.dropped: dict[str, str] = {}
        """Options that are passed over for a reason of this run, by name."""
        self.used: set[str] = set()
        """Options that had a say in what is put, or that were looked at and mean what is done anyway."""

    def get(self, name: str) -> Any:
        """The value of an option, or gpt-neox's default."""
        option = find(name)
        assert option is not None, name
        return self.settings.get(name, option.default)

    def has(self, name: str) -> bool:
        """Whether an option is given."""
        return name in self.settings.values

    def put(self, key: str, value: Any, *froms: str, always: bool = False) -> None:
        """Set an option of ours, to be blamed on the first of gpt-neox's that is given ("optimizer.params.lr")."""
        path = tuple(key.split("."))
        given = [tuple(name.split(".")) for name in froms if tuple(name.split(".")) in self.given.origins]
        self.used.update(name[0] for name in given)
        if not given and not always and value == our_default(key):
            return
        origin = f"{self.tree.origins[()]} (gpt-neox's default of {froms[0]})" if froms else self.tree.origins[()]
        if given:
            origin = f"{self.given.origins[given[0]]} ({'.'.join(given[0])})"
        self._node(path, origin)[path[-1]] = value
        self.tree.origins[path] = origin

    def _node(self, path: tuple[str, ...], origin: str) -> dict[str, Any]:
        """The mapping that holds an option of ours, made where there is none yet."""
        values = self.tree.values
        for length, part in enumerate(path[:-1], 1):
            values = values.setdefault(part, {})
            self.tree.origins.setdefault(path[:length], origin)
        return values

    def lack(self, key: str, cause: str, remedy: str) -> None:
        """Say what to do when an option of ours that gpt-neox's options do not give is given nowhere else."""
        path = tuple(key.split("."))
        self.tree.lacking[path] = (cause, remedy)
        self._node(path, self.tree.origins[()])

    def refuse(self, name: str, cause: str, remedy: str) -> ConfigError:
        """The error about an option, with its file and line. `name` may be "optimizer.params.lr"."""
        origin = self.given.origin(name.split("."))
        return ConfigError(f"{origin}: {name}: {cause}", remedy)

    def notes(self) -> Iterator[str]:
        """A line for each reason for which options were passed over."""
        groups: dict[str, list[str]] = {}
        for name, reason in self.dropped.items():
            groups.setdefault(reason, []).append(name)
        for name, value in self.settings.values.items():
            option = find(name)
            assert option is not None, name
            default = value == option.default or (value is False and option.default is None)
            if default or any(each.partition(".")[0] == name for each in self.dropped):
                continue
            if option.becomes == "ignored":
                groups.setdefault(option.says, []).append(name)
            elif option.becomes != "refused" and name not in self.used and not option.is_harmless(value):
                groups.setdefault(NO_SAY, []).append(name)
        for reason, names in groups.items():
            yield f"gpt-neox's {', '.join(names)} {'is' if len(names) == 1 else 'are'} passed over: {reason}"

    def check_refused(self) -> None:
        """Raise ConfigError for the first option that has a value which is refused; the others are named."""
        found = []
        for name, value in self.settings.values.items():
            option = find(name)
            assert option is not None, name
            if option.becomes == "refused" and not option.is_harmless(value):
                found.append(option)
        if not found:
            return
        first, *rest = found
        more = f" (refused too: {', '.join(option.name for option in rest)})" if rest else ""
        origin, value = self.given.origin((first.name,)), self.settings.values[first.name]
        raise ConfigError(f"{origin}: {first.name} {value!r:.60}: {first.says}{more}", first.instead)


def our_default(key: str) -> Any:
    """The default of one of our options; a value that equals nothing when it has none."""
    nodes: list[Any] = [RunConfig]
    *above, last = key.split(".")
    for part in above:
        nodes = [
            below
            for node in nodes
            if part in node.model_fields
            for below in nodes_of(node.model_fields[part].annotation)
        ]
    found = [node.model_fields[last] for node in nodes if last in node.model_fields]
    assert found, key
    return REQUIRED if found[0].is_required() else found[0].get_default(call_default_factory=True)
