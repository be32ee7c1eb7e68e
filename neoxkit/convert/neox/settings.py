"""The settings of a gpt-neox run: its YAML files, with hyphens and underscores alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from neoxkit.config.neox.settings import REMEDY, Settings
from neoxkit.errors import ConfigError, ConversionError


def read_settings(folder: Path, given: Sequence[Path] = (), used: Iterable[str] = ()) -> Settings:
    """The settings in a checkpoint's configs/, and over them those of the files `given`, later ones first.

    Raises ConversionError when there are none, or when two files in configs/ disagree about a key of `used`.
    """
    settings = Settings(folder)
    inside = sorted(p for p in (folder / "configs").glob("*") if p.suffix in (".yml", ".yaml", ".json") and p.is_file())
    for path in inside:
        for key, value in _read(path).items():
            if value is None:
                continue
            if key in settings.values and settings.values[key] != value and key in used and not given:
                raise ConversionError(
                    f"{path}: {key} is {value!r:.80}, but {Path(settings.origins[key]).name} has "
                    f"{settings.values[key]!r:.80}",
                    REMEDY,
                )
            settings.values[key], settings.origins[key] = value, str(path)
    for path in given:
        for key, value in _read(path).items():
            settings.values[key], settings.origins[key] = value, str(path)
            if value is None:
                del settings.values[key]
    if not settings.values:
        raise ConversionError(f"{folder}: no settings in {folder / 'configs'}", "give them with --config FILE")
    return settings


def _read(path: Path) -> Mapping[str, Any]:
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        _weigh(node, {})
        tree = None if node is None else loader.construct_document(node)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "check the path") from error
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())[:160]})", REMEDY) from error
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise ConfigError(f"{path}: not a mapping of settings", REMEDY)
    return {key.replace("-", "_"): value for key, value in tree.items()}


_MOST_VALUES, _LONGEST_NUMBER = 100_000, 400


def _weigh(node: Any, known: dict[int, int]) -> int:
    """How many values a part of a YAML file stands for, each alias counted as what it repeats.

    Raises ValueError for more than any settings have (ten lines of aliases can stand for billions), for
    a value that holds itself, and for a number of more digits than Python will print.
    """
    if id(node) not in known:
        known[id(node)] = 0
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        pairs = parts if isinstance(node, yaml.MappingNode) else [(part,) for part in parts]
        known[id(node)] = 1 + sum(_weigh(part, known) for pair in pairs for part in pair)
        if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
            raise ValueError(f"a number of {len(node.value)} digits")
    if not 0 < known[id(node)] <= _MOST_VALUES:
        raise ValueError("an alias of itself, or aliases that stand for too much")
    return known[id(node)]


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
