"""Chat templates: a conversation as the one text that a model was trained to continue.

A template is a program in Jinja that comes with the model, from whoever made it. It is run as transformers runs it:
in Jinja's sandbox, and given nothing but copies of plain values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from neoxkit.checkpoint.json_text import parse_object
from neoxkit.checkpoint.store import Place
from neoxkit.data.tokenizer import CONFIG, SPECIAL, TEMPLATE, Spans
from neoxkit.data.tokenizer.sandbox import MARKS, environment
from neoxkit.errors import ConfigError

OLD_TEMPLATE = "chat_template.json"
MORE_TEMPLATES = "additional_chat_templates"
"""The folder in which transformers 5 keeps all templates but the default, as NAME.jinja."""

LARGEST = 2**24
"""Characters that a conversation may become: a text of that length is no prompt of any model."""

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""What templates and programs call the reasoning before an answer; the first is the common name."""


class ChatTemplate:
    """How a model's conversations are written.

    `templates` are Jinja programs by name: "default", or all that there are and none is the default; "tool_use" is
    taken where tools are given. `variables` are what they are given beside the messages: the special tokens' texts.
    `text` is the program that is taken. `where` begins an error.

    Raises ConfigError for a template that is no Jinja, and when Jinja is not installed.
    """

    def __init__(
        self, templates: Mapping[str, str], variables: Mapping[str, str], where: str, name: str | None = None
    ) -> None:
        wanted = "default" if name is None else name
        if wanted not in templates:
            missing = "none of them is the default" if name is None else f"none is called {name}"
            raise ConfigError(
                f"{where}: {missing}, there are {', '.join(sorted(templates))}", "name the one that is meant"
            )
        self.where, self.variables, self.text = where, dict(variables), templates[wanted]
        texts = {"default": self.text}
        if name is None and "tool_use" in templates:
            texts["tool_use"] = templates["tool_use"]
        self._templates = {each: self._compiled(text) for each, text in texts.items()}
        self._marking = {each for each, text in texts.items() if _GENERATION.search(text)}

    @classmethod
    def of(cls, folder: Place, name: str | None = None) -> ChatTemplate | None:
        """The template that the files of a folder state, the default or the one called `name`; None without any.

        It is in chat_template.jinja, with others in additional_chat_templates/; or in chat_template.json; or in
        tokenizer_config.json, under "chat_template", a text or a list of them with names.

        Raises ConfigError when there is none of that name, or it is no template; CheckpointError for a damaged file.
        """
        where, templates = _find(folder)
        if not templates:
            return None
        return cls(templates, _special_tokens(folder), where, name)

    @classmethod
    def read(cls, path: Place, folder: Place) -> ChatTemplate:
        """The template of a file, with the special tokens that the files of a tokenizer's folder state.

        Raises ConfigError when it is no template, and OSError when it cannot be read.
        """
        return cls({"default": _read(path)}, _special_tokens(folder), str(path))

    def render(
        self, messages: Sequence[Mapping[str, Any]], /, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The text of a conversation; with `add_generation_prompt`, up to where the assistant's answer begins.

        A message has a role, and content: a text, or a list of parts {"type": "text", "text": ...}, which become one
        text, a line each, unless the template itself takes lists. `variables` are given to the template too, and
        stand over special tokens; `tools` and `documents` are None unless they are among them.

        Raises ConfigError for messages that are none, and when the template refuses them or fails. The length of
        the text is limited, and so is what a template can reach; its time and memory are not: one that loops in loops
        may take forever. Who runs strangers' models on a server should know that.
        """
        try:
            given = _plain({"tools": None, "documents": None, **self.variables, **variables}, "a variable")
            chat = self._checked(messages)
        except RecursionError as error:
            raise ConfigError("the conversation has lists in lists without end", "give fewer") from error
        template = self._templates[self._taken(given["tools"])]
        return self._text(template, {**given, "messages": chat, "add_generation_prompt": add_generation_prompt})

    def marks(self, tools: Any = None) -> bool:
        """Whether the template that is taken says by {% generation %} what the assistant wrote."""
        return self._taken(tools) in self._marking

    def marked(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> tuple[str, Spans]:
        """The text of a conversation, and from where to where in it, in characters, the blocks of {% generation %} are.

        Raises what `render` raises; and ConfigError when the text depends on the blocks, or one is in another.
        """
        text = self.render(messages, add_generation_prompt=False, **variables)
        mark = "mark"
        while mark in text:
            mark += "k"
        around = [f"<{mark}>", f"</{mark}>"]
        pieces = self.render(messages, add_generation_prompt=False, **variables, **{MARKS: around}).split(around[0])
        at, spans = len(pieces[0]), []
        for piece in pieces[1:]:
            inside, *after = piece.split(around[1])
            spans.append((at, at + len(inside)))
            at += len(inside) + sum(map(len, after))
            if len(after) != 1:
                raise ConfigError(f"{self.where} has blocks of generation in one another", "mend it")
        if "".join(pieces).replace(around[1], "") != text:
            raise ConfigError(f"{self.where} changes its text by where its blocks of generation are", "mend it")
        return text, spans

    def _taken(self, tools: Any) -> str:
        return "tool_use" if tools is not None and "tool_use" in self._templates else "default"

    def _checked(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The messages as transformers gives them to a template."""
        if not messages:
            raise ConfigError("the conversation has no messages", "give at least one")
        found = []
        for number, message in enumerate(messages):
            where = f"messages[{number}]"
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise ConfigError(f"{where} is not a message with a role", 'write {"role": "user", "content": "..."}')
            kept = {key: value for key, value in _plain(message, where).items() if value is not None}
            if "content" in kept:
                kept["content"] = self._content(kept["content"], f"{where}.content")
            reasoning = next((kept[key] for key in _REASONING if key in kept), None)
            if reasoning is not None:
                kept = {"thinking": reasoning, **kept, "reasoning_content": reasoning}
            found.append(kept)
        return found

    def _content(self, content: Any, where: str) -> Any:
        """What a message says, as the template takes it."""
        if isinstance(content, str):
            return content
        if not isinstance(content, list):
            raise ConfigError(f"{where} is neither a text nor a list of parts", "give a text")
        for number, part in enumerate(content):
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise ConfigError(f"{where}[{number}] is not text", 'write {"type": "text", "text": "..."}')
        return content if self._takes_lists else "\n".join(part["text"] for part in content)

    @cached_property
    def _takes_lists(self) -> bool:
        """Whether the template finds the text in a list of parts, rather than fail or print the list."""
        sign = "neoxkit"
        message = {"role": "user", "content": [{"type": "text", "text": sign}]}
        given = {"tools": None, "documents": None, **self.variables, "add_generation_prompt": False}
        try:
            text = self._text(self._templates["default"], {**given, "messages": [message]})
        except ConfigError:
            return False
        return sign in text and f"'{sign}'" not in text and f'"{sign}"' not in text

    def _text(self, template: Any, given: Mapping[str, Any]) -> str:
        """What a template makes of its variables."""
        from jinja2 import TemplateError

        pieces, length = [], 0
        try:
            for piece in template.generate(given):
                pieces.append(piece)
                length += len(piece)
                if length > LARGEST:
                    raise ConfigError(f"{self.where} makes more than {LARGEST} characters", "give fewer messages")
        except ConfigError:
            raise
        except TemplateError as error:
            raise ConfigError(f"{self.where} refuses the conversation: {error.message}", _MEND) from error
        except Exception as error:  # it is a program, and fails like one
            reason = f"{type(error).__name__}: {error}"
            raise ConfigError(f"{self.where} fails on the conversation: {reason}", _MEND) from error
        return "".join(pieces)

    def _compiled(self, text: str) -> Any:
        jinja = environment()
        from jinja2 import TemplateError

        try:
            return jinja.from_string(text)
        except (TemplateError, RecursionError, SyntaxError, ValueError) as error:
            raise ConfigError(f"{self.where} is not a template: {error}", "correct or remove it") from error


def unended(text: str, messages: Sequence[Mapping[str, Any]]) -> str:
    """The text of a conversation up to where its last message ends, so that the answer goes on with it.

    Raises ConfigError where the text does not have that message as it is.
    """
    content = messages[-1]["content"]
    said = content if isinstance(content, str) else str(content[-1].get("text", ""))
    for last in (said, said.rstrip(), said.strip()):  # templates may trim
        if last.strip() and (found := text.rfind(last)) >= 0:
            return text[: found + len(last)]
    raise ConfigError(
        "the last message cannot be continued: the template does not write it as it is, or it is empty", "change it"
    )


_MEND = "give messages that it takes"


def _find(folder: Place) -> tuple[str, dict[str, str]]:
    """Where the templates of a folder are, and they by name."""
    found: dict[str, str] = {}
    path = folder / TEMPLATE
    if path.is_file():
        found["default"] = _read(path)
    more = folder / MORE_TEMPLATES
    if more.is_dir():
        found |= {each.name.removesuffix(".jinja"): _read(each) for each in more.iterdir() if each.suffix == ".jinja"}
    if found:
        return str(path if len(found) == 1 else folder), found
    for path in (folder / OLD_TEMPLATE, folder / CONFIG):
        if not path.is_file():
            continue
        stated = parse_object(path.read_bytes(), str(path), "mend or remove it").get("chat_template")
        if isinstance(stated, str):
            return f"{path}: chat_template", {"default": stated}
        if stated is not None:
            return f"{path}: chat_template", _named(stated, str(path))
    return "", {}


def _named(stated: Any, where: str) -> dict[str, str]:
    """Templates by name, of a list of {"name": ..., "template": ...} or an object."""
    pairs: list[Any] = []
    if isinstance(stated, dict):
        pairs = list(stated.items())
    elif isinstance(stated, list) and all(isinstance(each, dict) for each in stated):
        pairs = [(each.get("name"), each.get("template")) for each in stated]
    if not pairs or not all(isinstance(name, str) and isinstance(text, str) for name, text in pairs):
        raise ConfigError(f"{where}: chat_template is neither a text nor texts with names", "mend or remove it")
    return dict(pairs)


def _read(path: Place) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 ({error.reason} at {error.start})", "mend or remove it") from None


def _special_tokens(folder: Place) -> dict[str, str]:
    """The texts of special tokens by their names, bos_token and others, as the files of a folder state them.

    As in transformers, special_tokens_map.json counts, and counts more, where tokenizer_config.json lists no tokens:
    then it is of the time before that file knew them.
    """
    stated: dict[str, Any] = {}
    for path in (folder / CONFIG, folder / SPECIAL):
        if path.is_file() and "added_tokens_decoder" not in stated:
            stated |= parse_object(path.read_bytes(), str(path), "mend or remove it")
    texts = {key: each.get("content") if isinstance(each, dict) else each for key, each in stated.items()}
    return {key: text for key, text in texts.items() if key.endswith("_token") and isinstance(text, str)}


def _plain(value: Any, where: str) -> Any:
    """A copy of a value as JSON has it, so that a template gets at no object's methods.

    Raises ConfigError, naming where it is, for anything else.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(each, where) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each, where) for each in value]
    raise ConfigError(f"{where} has a {type(value).__name__}, which is no JSON", "give texts, numbers and lists")
