"""What is to be answered: prompts of a command line and of files, and the requests that one model makes of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neoxkit.checkpoint.json_text import parse_object
from neoxkit.errors import ConfigError, DataError
from neoxkit.serve.request import Request
from neoxkit.serve.seeds import derived_seed
from neoxkit.serve.settings import Settings

if TYPE_CHECKING:
    from neoxkit.data.tokenizer.template import ChatTemplate
    from neoxkit.serve.start import Serving

STDIN = Path("-")
"""The file that is standard input."""

FORMS = ("prompt", "messages", "ids")
"""What a line of a file may hold to be answered: a text, a conversation, or tokens."""

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text, a conversation or tokens to go on from; none of them is the beginning of a text.

    `index` counts the prompts of a command or a file from 0; `where` begins an error about it. `seeded` says that the
    seed of its settings is its own, not one that all prompts share. `id` is carried into its answers.
    """

    index: int
    where: str
    settings: Settings
    text: str | None = None
    messages: tuple[Message, ...] | None = None
    ids: tuple[int, ...] | None = None
    seeded: bool = False
    id: str | int | float | None = None

    @property
    def chat(self) -> bool:
        """Whether it is put into the chat template."""
        return self.messages is not None or (self.text is not None and bool(self.settings.chat))

    def conversation(self) -> list[Message]:
        """The messages of a prompt that is put into the chat template; its own system message counts."""
        said = [{"role": "user", "content": self.text}] if self.messages is None else list(self.messages)
        system = self.settings.system
        if system is not None and said[0]["role"] != "system":
            said.insert(0, {"role": "system", "content": system})
        return said

    def json(self) -> dict[str, Any]:
        """What was asked, as in a line of a file."""
        if self.messages is not None:
            return {"messages": list(self.messages)}
        if self.ids is not None:
            return {"ids": list(self.ids)}
        return {"prompt": self.text}


@dataclass(frozen=True, slots=True)
class Task:
    """An answer that is wanted: the sample-th to a prompt, as a request, and the texts that end it."""

    prompt: Prompt
    sample: int
    request: Request
    stop: tuple[str, ...] = ()


def prompts_of(texts: Sequence[str], settings: Settings) -> list[Prompt]:
    """The prompts of a command line; "-" is standard input. Raises DataError for what is not UTF-8."""
    settings.check()
    if list(texts).count(str(STDIN)) > 1:
        raise DataError("standard input can be read once", "give - once")
    several = len(texts) > 1
    return [
        Prompt(index, f"prompt {index + 1}: " if several else "", settings, _argument(text))
        for index, text in enumerate(texts)
    ]


def no_prompt(settings: Settings) -> Prompt:
    """What is before the first token of a text."""
    settings.check()
    return Prompt(0, "", settings)


def _argument(text: str) -> str:
    """A prompt of a command line, read from standard input when it is "-"."""
    try:
        if text == str(STDIN):
            return sys.stdin.buffer.read().decode("utf-8")
        text.encode("utf-8")  # bytes of an argument that are no text come as lone surrogates
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise DataError(f"the prompt is not UTF-8 ({error.reason} at {error.start})", "give text in UTF-8") from None
    return text


def read_prompts(path: Path, settings: Settings) -> list[Prompt]:
    """The prompts of a file, each with these settings and what its line states over them.

    A line of a .txt is a prompt; of any other file, a JSON object with a prompt, messages or ids. Blank lines are
    none. Raises DataError and ConfigError, naming file and line, for what is no prompt; OSError when there is no
    such file.
    """
    name = "standard input" if path == STDIN else str(path)
    raw = sys.stdin.buffer.read() if path == STDIN else path.read_bytes()
    read = _text_line if path.suffix == ".txt" else _json_line
    found: list[Prompt] = []
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            found.append(read(line, len(found), f"{name}:{number}: ", settings))
    if not found:
        raise DataError(f"{name}: no prompt in it", "write one on each line")
    if settings.system is not None and not any(prompt.chat for prompt in found):
        raise ConfigError(f"{name}: no line is put into a chat template", "leave --system out, or add --chat")
    return found


def _text_line(line: bytes, index: int, where: str, settings: Settings) -> Prompt:
    try:
        text = line.removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}not UTF-8 ({error.reason} at {error.start})", "give text in UTF-8") from None
    settings.check(where)
    return Prompt(index, where, settings, text)


def _json_line(line: bytes, index: int, where: str, settings: Settings) -> Prompt:
    row = parse_object(line, where.removesuffix(": "), "write an object with a prompt on each line", unique=True)
    given = {form: row.pop(form) for form in FORMS if row.get(form) is not None}
    identity = row.pop("id", None)
    own = settings.overridden({key: value for key, value in row.items() if key not in FORMS}, where)
    if len(given) != 1:
        there = " and ".join(given) or "none of prompt, messages, ids"
        raise DataError(f"{where}{there}", "write one of prompt, messages, ids")
    if isinstance(identity, (bool, list, dict)):
        raise DataError(f"{where}id is neither a text nor a number", "correct it")
    _check_form(given, where)
    prompt = Prompt(
        index,
        where,
        own,
        text=given.get("prompt"),
        messages=None if "messages" not in given else tuple(given["messages"]),
        ids=None if "ids" not in given else tuple(given["ids"]),
        seeded=row.get("seed") is not None,
        id=identity,
    )
    _check_effect(prompt, row, where)
    return prompt


def _check_form(given: dict[str, Any], where: str) -> None:
    """Raise DataError unless what is to be answered is of its kind."""
    ((form, value),) = given.items()
    if form == "prompt" and not isinstance(value, str):
        raise DataError(f"{where}prompt is not a text", "correct it, or write messages or ids")
    if form == "ids" and not (isinstance(value, list) and value and all(type(each) is int for each in value)):
        raise DataError(f"{where}ids is not a list of whole numbers", "correct it")
    if form == "messages":
        good = isinstance(value, list) and value and all(isinstance(each, dict) for each in value)
        if not good or not all(isinstance(each.get("role"), str) for each in value):
            raise DataError(
                f"{where}messages is not a list of objects with a role", 'write {"role": "user", "content": "..."}'
            )


def _check_effect(prompt: Prompt, stated: dict[str, Any], where: str) -> None:
    """Raise ConfigError where a line says something of the chat template that has no effect."""
    if prompt.messages is not None and stated.get("chat") is False:
        raise ConfigError(f"{where}messages need the chat template", "leave chat out, or write a prompt")
    if prompt.ids is not None and stated.get("chat"):
        raise ConfigError(f"{where}ids cannot be put into the chat template", "leave chat out, or write a prompt")
    if stated.get("system") is not None and not prompt.chat:
        raise ConfigError(f"{where}system has no effect without a chat template", "add chat, or leave it out")
    if stated.get("system") is not None and prompt.conversation()[0].get("content") != stated["system"]:
        raise ConfigError(f"{where}messages have a system message of their own", "leave system out")


def tasks_for(prompts: Sequence[Prompt], serving: Serving) -> list[Task]:
    """The answers that are wanted to prompts. Raises what `tasks_of` raises, before anything is computed."""
    from neoxkit.serve.idle import awake

    template = template_for(prompts, serving)
    with awake(serving.engine):
        return [task for prompt in prompts for task in tasks_of(prompt, serving, template)]


def template_for(prompts: Sequence[Prompt], serving: Serving) -> ChatTemplate | None:
    """The chat template, if a prompt is put into it. Raises ConfigError where there is none."""
    from neoxkit.data.tokenizer.template import ChatTemplate

    asking = next((prompt for prompt in prompts if prompt.chat), None)
    if asking is None:
        return None
    template = ChatTemplate.of(serving.tokenizer.path.parent)
    if template is None:
        raise ConfigError(
            f"{asking.where}{serving.tokenizer.path.parent} has no chat template",
            "ask without one, or name a tokenizer that has one",
        )
    return template


def tasks_of(prompt: Prompt, serving: Serving, template: ChatTemplate | None = None) -> list[Task]:
    """The answers that are wanted to a prompt, with seeds of their own: see `derived_seed`.

    `template` is for prompts that are put into one. Raises ConfigError and DataError, saying which prompt, when it
    has no tokens, tokens that the model does not have, or more than its context.
    """
    settings = prompt.settings
    ids = _ids(prompt, serving, template)
    place = 0 if prompt.seeded else prompt.index
    first = request_of(ids, settings, serving, derived_seed(settings.seed, place), prompt.where)
    others = (settings.sampling(derived_seed(settings.seed, place, each)) for each in range(1, settings.samples))
    requests = [first, *(replace(first, sampling=sampling) for sampling in others)]
    return [Task(prompt, sample, request, settings.stop) for sample, request in enumerate(requests)]


def request_of(ids: Sequence[int], settings: Settings, serving: Serving, seed: int, where: str = "") -> Request:
    """The request that tokens and settings are, with a seed.

    Raises ConfigError and DataError, beginning with `where`, for what the model cannot answer.
    """
    vocab, context = serving.config.vocab, serving.engine.context
    if not ids:
        raise ConfigError(f"{where}the prompt has no tokens", "give some text to continue")
    if not 0 <= min(ids) <= max(ids) < vocab:
        wrong = max(ids) if max(ids) >= vocab else min(ids)
        raise ConfigError(
            f"{where}the prompt has token {wrong}, the model's vocabulary {vocab} rows",
            "use the tokenizer that the model was trained with",
        )
    if len(ids) >= context:
        raise ConfigError(
            f"{where}the prompt is {len(ids)} tokens long, the model's context {context}", "shorten the prompt"
        )
    if settings.logprobs is not None and settings.logprobs > vocab:
        raise ConfigError(f"{where}{settings.logprobs} logprobs of a vocabulary of {vocab} tokens", "ask for fewer")
    return Request(
        ids=tuple(ids),
        sampling=settings.sampling(seed),
        max_tokens=settings.max_tokens,
        min_tokens=settings.min_tokens,
        stop_ids=_stop_ids(settings, serving, where),
        logprobs=settings.logprobs,
    )


def _stop_ids(settings: Settings, serving: Serving, where: str) -> frozenset[int]:
    """The tokens that end an answer: the model's own, unless they are to be passed over, and those that are named."""
    found = set() if settings.ignore_eos else set(serving.stop_ids)
    for token in settings.stop_tokens:
        try:
            number = serving.tokenizer.id(token) if isinstance(token, str) else token
        except DataError as error:
            raise DataError(f"{where}{error.cause}", error.remedy) from None
        if not 0 <= number < serving.config.vocab:
            raise ConfigError(
                f"{where}stop token {number} is none of the model's {serving.config.vocab}", "name another"
            )
        found.add(number)
    return frozenset(found)


def _ids(prompt: Prompt, serving: Serving, template: ChatTemplate | None) -> tuple[int, ...]:
    """The tokens that an answer goes on from."""
    if prompt.ids is not None:
        return prompt.ids
    words, tokens = serving.tokenizer, serving.config.tokens
    if prompt.chat:
        assert template is not None, "a prompt for a chat template, and no template"
        try:
            return tuple(words.encode(template.render(prompt.conversation())))
        except ConfigError as error:
            raise ConfigError(f"{prompt.where}{error.cause}", error.remedy) from error
    if prompt.text is not None:
        ids = tuple(words.encode(prompt.text, special=True))
        return ids or (() if tokens.bos is None else (tokens.bos,))
    begin = next((each for each in (tokens.bos, words.bos, words.eos, *tokens.eos) if each is not None), None)
    if begin is None:
        raise ConfigError("the model has no token that begins a text", "give a --prompt")
    return (begin,)
