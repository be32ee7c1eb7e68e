"""YAML files and `--set` to a RunConfig: strict, with the file and line in every error."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from neoxkit.config.neox.files import Mix, is_neox
from neoxkit.config.neox.translate import translate
from neoxkit.config.neox.write import lost, to_neox
from neoxkit.config.reference import children, options, sections
from neoxkit.config.run import RunConfig
from neoxkit.config.tree import Key, Tree, override, read
from neoxkit.errors import ConfigError

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


def load_run(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> RunConfig:
    """The run that several files, merged in order, and overrides ("a.b=c") describe.

    Raises ConfigError with the file and line for what cannot be read, is unknown, of the wrong type
    or contradicts something else.
    """
    return validate(load_tree(paths, overrides))


def load_tree(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> Tree:
    """The options as given, merged but not yet validated. Raises ConfigError as `load_run` does."""
    tree, mix = Tree(), Mix()
    parts: list[Tree | Mix] = []
    for document in (read(Path(path)) for path in paths):
        if not is_neox(document):
            parts.append(document.tree())
            continue
        if not mix.files:
            parts.append(mix)  # all of gpt-neox's files are one, where the first of them stands
        mix.add(document)
    ours = [given for given in map(override, overrides) if not mix.take(given)]
    for part in parts:
        tree.merge(translate(part) if isinstance(part, Mix) else part)
    for given in ours:
        tree.merge(given)
    tree.drop_pointless()
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


def spell(tree: Tree) -> str:
    """A tree of options as YAML: what was given, and nothing else."""
    order = {name: number for number, name in enumerate(RunConfig.model_fields)}
    values = dict(sorted(tree.values.items(), key=lambda item: order.get(item[0], 0)))
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def spell_neox(run: RunConfig) -> str:
    """A run as gpt-neox's YAML. Raises ConfigError, naming them, for options that gpt-neox has no word for."""
    options = to_neox(run)
    back = validate(translate(Mix.of(options, "gpt-neox")))
    if missing := list(lost(run, back)):
        first = missing[0]
        value = at_key(run.model_dump(mode="json"), first)
        raise ConfigError(f"gpt-neox has no word for {first} {_shown(value)}", f"set {', '.join(missing)} otherwise")
    return yaml.safe_dump(options, sort_keys=False, allow_unicode=True)


def at_key(values: Any, key: str) -> Any:
    """What a tree has at a dotted key; None where it ends before."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def dump(config: RunConfig) -> str:
    """The run as YAML, every option resolved."""
    resolved = config.model_dump(mode="json")
    if config.mesh.dp is None and config.batch.micro and config.batch.accumulation:
        del resolved["batch"]["size"]  # it follows from the devices, and would fix their number
    if config.epochs is not None:
        del resolved["steps"]  # they follow from the data
    if config.precision == "auto" and "stage" not in config.zero.model_fields_set:
        del resolved["zero"]["stage"]  # it follows from the precision, and would be stated
    if config.schedule.warmup_steps is not None:
        del resolved["schedule"]["warmup"]  # which is in its place
    return yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)


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
    cause, remedy = _said(tree, first, key)
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return ConfigError(f"{tree.origin(key)}: {cause}{more}", remedy)


def _real(values: Any, loc: Sequence[int | str]) -> Key:
    """A location without the names of kinds, which pydantic puts between the keys of a union."""
    key: list[str] = []
    for part in loc:
        # (What has no kind is an optimizer, which is AdamW then.)
        if isinstance(values, dict) and part not in values and part == values.get("kind", "adamw"):
            continue
        key.append(str(part))
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):  # the location of something that is missing
            values = None
    return tuple(key)


def _said(tree: Tree, error: Any, key: Key) -> tuple[str, str]:
    """Cause and remedy of one of pydantic's errors."""
    dotted, kind, given = ".".join(key), error["type"], error["input"]
    if kind == "extra_forbidden":
        return f"unknown option {dotted}", _suggest(key)
    if kind == "missing":
        if said := next((said for lacking, said in tree.lacking.items() if lacking[: len(key)] == key), None):
            return said
        if key[-1].isdigit():
            return f"{'.'.join(key[:-1])} is too short", "give all its values"
        if (old := tree.replaced.get(key[:-1])) is not None:
            parent = ".".join(key[:-1])
            now, (kind, where) = tree.at((*key[:-1], "kind")), old
            cause = (
                f"{dotted} is missing: {parent} of kind {now} takes the place of the {kind} at {where}, with all of it"
            )
            return cause, f"give {dotted} too; `neoxkit config explain {parent}` lists what each kind has"
        if any(option.key == dotted and option.default == "derived" for option in options()):
            return f"{dotted} is missing", f"give it, or what it follows from: see `neoxkit config explain {dotted}`"
        return f"{dotted} is missing", f"it has no default; see `neoxkit config explain {dotted}`"
    if kind in ("too_long", "too_short"):
        count = error["ctx"].get("max_length") or error["ctx"]["min_length"]
        return f"{dotted} is {_shown(given)}", f"it must have {count} values"
    if kind in _EXPECTED and _EXPECTED[kind] == "a mapping":
        return f"{dotted} is {_shown(given)}", f"it must be a mapping: see `neoxkit config explain {dotted}`"
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
    if kinds := [option.where for option in options() if option.key == ".".join(key)]:
        return f"it belongs to {parent} with {' or '.join(kinds)}"
    known = [section.key for section in sections()] + [option.key for option in options()]
    if elsewhere := [k for k in known if k.split(".")[-1] == name]:
        nearest = min(k.count(".") for k in elsewhere)
        meant = dict.fromkeys(k for k in elsewhere if k.count(".") == nearest)
        return f"did you mean {' or '.join(list(meant)[:3])}?"
    if close := difflib.get_close_matches(name, siblings, n=1, cutoff=0.6):
        return f"did you mean {'.'.join((*key[:-1], close[0]))}?"
    if close := difflib.get_close_matches(".".join(key), known, n=1, cutoff=0.7):
        return f"did you mean {close[0]}?"
    return f"{parent or 'the top level'} has {', '.join(siblings)}" if siblings else "remove it"
