"""How a prompt is to be answered, as a person says it: on a command line, or beside a prompt in a file. No torch."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from neoxkit.errors import ConfigError
from neoxkit.serve.request import Sampling
from neoxkit.serve.seeds import SEEDS


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that a setting takes: from `least` (with `above`, only those above it) to `most`."""

    kind: type[int] | type[float]
    least: float | None = None
    most: float | None = None
    above: bool = False

    def __str__(self) -> str:
        noun = "a whole number" if self.kind is int else "a number"
        lower = "" if self.least is None else f"{'above' if self.above else 'from'} {self.least:g}"
        upper = "" if self.most is None else f"to {int(self.most) if self.kind is int else self.most}"
        return " ".join(part for part in (noun, lower, upper) if part)

    def read(self, value: object) -> int | float:
        """The number that a JSON value is. Raises ValueError, saying what it should be, when it is none of them."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{value!r} is not {self}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{value} is not {self}")
        if self.kind is int and int(value) != value:
            raise ValueError(f"{value} is not {self}")
        if self.least is not None and (value < self.least or (self.above and value == self.least)):
            raise ValueError(f"{value} is not {self}")
        if self.most is not None and value > self.most:
            raise ValueError(f"{value} is not {self}")
        return self.kind(value)


NUMBERS = {
    "temperature": Range(float, 0),
    "top_k": Range(int, 0),
    "top_p": Range(float, 0, 1, above=True),
    "min_p": Range(float, 0, 1),
    "repetition_penalty": Range(float, 0, above=True),
    "presence_penalty": Range(float, -2, 2),
    "frequency_penalty": Range(float, -2, 2),
    "seed": Range(int, 0, SEEDS - 1),
    "max_tokens": Range(int, 1),
    "min_tokens": Range(int, 0),
    "samples": Range(int, 1),
    "logprobs": Range(int, 0),
}
"""The settings that are numbers, and which ones they take."""

TRUNCATION = ("top_k", "top_p", "min_p")
"""What chooses among the tokens that may be drawn, and has nothing to choose where the likeliest is taken."""

ELSEWHERE = {
    "n": "samples",
    "num_samples": "samples",
    "stop_token_ids": "stop_tokens",
    "max_new_tokens": "max_tokens",
    "maximum_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "top_logprobs": "logprobs",
    "random_seed": "seed",
    "text": "prompt",
    "context": "prompt",
    "input": "prompt",
    "prompt_token_ids": "ids",
    "custom_id": "id",
}
"""What other programs call a key of a prompt's line, and what it is called here."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a prompt is answered: what `Sampling` has, and when an answer ends.

    `stop` are texts that end an answer and are not part of it, `stop_tokens` tokens that do, by id or by what they are
    called in the tokenizer; with `ignore_eos` the model's own do not. `samples` answers are made of each prompt. With
    `chat` a text is put into the tokenizer's chat template, behind `system`; None leaves that to the one who asks.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int | str, ...] = ()
    ignore_eos: bool = False
    max_tokens: int = 128
    min_tokens: int = 0
    samples: int = 1
    logprobs: int | None = None
    chat: bool | None = None
    system: str | None = None

    def sampling(self, seed: int) -> Sampling:
        """How tokens are chosen, with one seed."""
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=seed,
        )

    def check(self, where: str = "") -> None:
        """Raise ConfigError for settings that contradict each other or have no effect.

        `where` begins the error about a line of a file; without it settings are spelled as on a command line.
        """

        def spelled(name: str) -> str:
            return where + name if where else "--" + name.replace("_", "-")

        for name in TRUNCATION if self.temperature == 0 else ():
            if getattr(self, name) != _DEFAULT[name]:
                raise ConfigError(f"{spelled(name)} has no effect at temperature 0", "give a temperature above it")
        if self.temperature == 0 and self.samples > 1:
            raise ConfigError(
                f"{where}{self.samples} samples at temperature 0 would be the same", "give a temperature above it"
            )
        if self.min_tokens > self.max_tokens:
            raise ConfigError(
                f"{spelled('min_tokens')} {self.min_tokens} is more than the {self.max_tokens} of max_tokens",
                "lower it",
            )
        if any(not text for text in self.stop):
            raise ConfigError(f"{where}an empty stop text would end every answer", "leave it out")

    def overridden(self, given: Mapping[str, Any], where: str) -> Settings:
        """These settings with what a JSON object states over them; a key that is null says nothing.

        An object at temperature 0 has no use for truncation that it does not state itself. Raises ConfigError,
        beginning with `where`, for a key that is none, and for a value that it does not take.
        """
        stated: dict[str, Any] = {}
        for key, value in given.items():
            if key not in NAMES:
                raise ConfigError(f"{where}no setting is called {key!r}", _meant(key))
            if value is None:
                continue
            try:
                stated[key] = NUMBERS[key].read(value) if key in NUMBERS else _READERS[key](value)
            except ValueError as error:
                raise ConfigError(f"{where}{key}: {error}", "correct it") from None
        if stated.get("temperature") == 0:
            stated = {**{name: _DEFAULT[name] for name in TRUNCATION}, **stated}
        found = replace(self, **stated)
        found.check(where)
        return found


NAMES = tuple(field.name for field in fields(Settings))
"""What a setting may be called in a file; on a command line it is spelled with hyphens."""

_DEFAULT = {field.name: field.default for field in fields(Settings)}


def _meant(key: str) -> str:
    """What to do about a key that is none."""
    if key in ELSEWHERE:
        return f"it is called {ELSEWHERE[key]} here"
    known = ("prompt", "messages", "ids", "id", *NAMES)
    near = difflib.get_close_matches(key, known, 1)
    if near:
        return f"did you mean {near[0]}?"
    return f"leave it out, or put what is yours under id; there are {', '.join(known)}"


def _texts(value: object) -> tuple[str, ...]:
    """A text, or several."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ValueError("not a text, or a list of texts")
    return tuple(found)


def _tokens(value: object) -> tuple[int | str, ...]:
    """A token by id or by what it is called, or several."""
    found = value if isinstance(value, list) else [value]
    if not all(isinstance(each, (int, str)) and not isinstance(each, bool) for each in found):
        raise ValueError("not a token's id or text, or a list of them")
    return tuple(found)


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a text")
    return value


_READERS: dict[str, Callable[[object], Any]] = {
    "stop": _texts,
    "stop_tokens": _tokens,
    "ignore_eos": _truth,
    "chat": _truth,
    "system": _text,
}
