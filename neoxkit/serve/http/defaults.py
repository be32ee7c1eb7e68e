"""How tokens are chosen where a request does not say: as the model's own generation_config.json states."""

from __future__ import annotations

from typing import Any

from neoxkit.checkpoint.json_text import parse_object
from neoxkit.checkpoint.store import Place
from neoxkit.data.tokenizer import GENERATION
from neoxkit.errors import ConfigError
from neoxkit.serve.settings import NUMBERS

OPENAI: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""What the API's own defaults are."""

STATED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""What is taken from the file, as vLLM does; its other keys are of other ways to make text."""


def stated_defaults(folder: Place) -> dict[str, Any]:
    """What the file in a model's folder states; {} where it states nothing, or is not there.

    Raises ConfigError for a value that cannot be, CheckpointError for a damaged file.
    """
    path = folder / GENERATION
    if not path.is_file():
        return {}
    tree = parse_object(path.read_bytes(), str(path), "correct or remove it")
    found = {}
    for name in STATED:
        if tree.get(name) is None:
            continue
        try:
            found[name] = NUMBERS[name].read(tree[name])
        except ValueError as error:
            raise ConfigError(f"{path}: {name}: {error}", "correct or remove it") from None
    return found
