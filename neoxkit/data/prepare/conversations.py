"""Rows of JSON as conversations, in the shapes that people keep them in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neoxkit.data.text.documents import UnusableError

Message = Mapping[str, Any]

ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""What ShareGPT's files call the roles, and what chat templates do; others are taken as they are."""

CALL = "function_call"
"""The role of ShareGPT's messages in which the assistant calls a function."""

_SWITCHES = ("train", "training")
_LISTS = ("messages", "conversations", "conversation")


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages as a chat template takes them; `learn` says of each whether it may be learned from.

    `tools` and `variables` are given to the template too.
    """

    messages: Sequence[Message]
    learn: Sequence[bool]
    tools: Any = None
    variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Passage:
    """Plain text that no template is put around: a prompt, which is not learned, and what follows it."""

    prompt: str
    completion: str


def conversation_of(row: Any, key: str | None = None) -> Conversation | Passage:
    """The conversation of a row; of `key` in it, if that is given.

    It is one of

    - {"messages": [{"role": ..., "content": ...}, ...]}, as OpenAI has it, or the list alone;
    - {"conversations": [{"from": "human", "value": ...}, ...]}, as ShareGPT has it;
    - {"instruction": ..., "input": ..., "output": ...}, as Alpaca has it;
    - {"prompt": ..., "completion": ...}: messages, or texts, which become a `Passage`.

    Raises UnusableError for any other.
    """
    if key is not None:
        if not isinstance(row, Mapping) or row.get(key) is None:
            raise UnusableError(f'no key "{key}"')
        return conversation(messages_of(row[key], f'"{key}"'), row)
    if isinstance(row, list):
        return conversation(messages_of(row, "the row"))
    if not isinstance(row, Mapping):
        raise UnusableError("no conversation", type(row).__name__)
    for each in _LISTS:
        if row.get(each) is not None:
            return conversation(messages_of(row[each], f'"{each}"'), row)
    if row.get("instruction") is not None and row.get("output") is not None:
        return conversation(_alpaca(row), row)
    if row.get("prompt") is not None and row.get("completion") is not None:
        return completed(row["prompt"], row["completion"], row)
    raise UnusableError("no conversation", f"its keys are {', '.join(map(str, row)) or 'none'}")


def completed(prompt: Any, completion: Any, row: Message) -> Conversation | Passage:
    """A prompt and what follows it, which alone is learned from: both texts, or one of them messages.

    The prompt may be None where messages follow. Raises UnusableError when they are neither.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        if not completion:
            raise UnusableError("empty completion")
        return Passage(prompt, completion)
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    asked = [] if prompt is None else messages_of(prompt, "the prompt")
    answered = messages_of(completion, "the completion")
    found = conversation([*asked, *answered], row)
    first = len(found.messages) - len(answered)
    return Conversation(
        found.messages, [each and at >= first for at, each in enumerate(found.learn)], found.tools, found.variables
    )


def conversation(messages: Sequence[Message], row: Message | None = None) -> Conversation:
    """A conversation of messages, with the tools and the system message that a row has beside them."""
    row = row or {}
    system, variables = row.get("system"), row.get("chat_template_kwargs") or {}
    if isinstance(system, str) and system and not (messages and messages[0]["role"] == "system"):
        messages = [{"role": "system", "content": system}, *messages]
    if not isinstance(variables, Mapping):
        raise UnusableError('"chat_template_kwargs" is no object', type(variables).__name__)
    learn = [_learned(message, at) for at, message in enumerate(messages)]
    kept = [{key: each for key, each in message.items() if key not in ("weight", *_SWITCHES)} for message in messages]
    return Conversation(kept, learn, _parsed(row.get("tools"), "tools") or None, variables)


def messages_of(value: Any, where: str) -> list[Message]:
    """The messages of a list, of OpenAI's kind or ShareGPT's. Raises UnusableError, saying `where`."""
    if not isinstance(value, list):
        raise UnusableError("no list of messages", f"{where} is of type {type(value).__name__}")
    if not value:
        raise UnusableError("no messages", f"{where} is empty")
    return [_message(each, at) for at, each in enumerate(value)]


def _message(value: Any, at: int) -> Message:
    if not isinstance(value, Mapping):
        raise UnusableError("broken message", f"message {at} is of type {type(value).__name__}")
    if "role" not in value and isinstance(value.get("from"), str):
        value = _sharegpt(value, at)
    role, content, calls = value.get("role"), value.get("content"), value.get("tool_calls")
    if not isinstance(role, str):
        raise UnusableError("broken message", f"message {at} has no role")
    if content is None and not calls:
        raise UnusableError("broken message", f"message {at} has no content")
    if content is not None and not _is_text(content):
        raise UnusableError("broken message", f"message {at} has content that is neither text nor a list of texts")
    if not calls:
        return value
    if not isinstance(calls, list):
        raise UnusableError("broken message", f"message {at} has tool_calls that are no list")
    return {**value, "tool_calls": [_call(call, at) for call in calls]}


def _is_text(content: Any) -> bool:
    if isinstance(content, list):
        return all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content)
    return isinstance(content, str)


def _sharegpt(value: Message, at: int) -> Message:
    """{"from": ..., "value": ...} with the keys of a message; others are kept."""
    role, text = value["from"], value.get("value")
    rest = {key: each for key, each in value.items() if key not in ("from", "value")}
    if role != CALL:
        return {**rest, "role": ROLES.get(role, role), "content": text}
    called = _parsed(text, f"message {at}")
    calls = called if isinstance(called, list) else [called]
    if not all(isinstance(call, Mapping) and "name" in call for call in calls):
        raise UnusableError("broken message", f"message {at} calls no function by name")
    return {**rest, "role": "assistant", "tool_calls": [{"type": "function", "function": call} for call in calls]}


def _call(call: Any, at: int) -> Any:
    """A call of a tool, with its arguments as the object that templates expect; OpenAI writes them as a text."""
    if not isinstance(call, Mapping):
        raise UnusableError("broken message", f"message {at} has a tool call that is no object")
    function = call.get("function")
    if isinstance(function, Mapping) and isinstance(function.get("arguments"), str):
        arguments = _parsed(function["arguments"] or "{}", f"message {at}: arguments")
        return {**call, "function": {**function, "arguments": arguments}}
    return call


def _parsed(value: Any, where: str) -> Any:
    """A value, or what it spells in JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value else None
    except (ValueError, RecursionError) as error:
        raise UnusableError("broken JSON inside", f"{where}: {error}") from None


def _learned(message: Message, at: int) -> bool:
    weight = message.get("weight")
    if weight not in (None, 0, 1):
        raise UnusableError("a weight that is neither 0 nor 1", f"message {at} has {weight!r}")
    switches = [message[key] for key in _SWITCHES if message.get(key) is not None]
    if not all(isinstance(each, bool) for each in switches):
        raise UnusableError("broken message", f'message {at} has a "train" that is neither true nor false')
    return weight != 0 and all(switches)


def _alpaca(row: Message) -> list[Message]:
    """The messages of a row of Alpaca; the input is on a line of its own, below the instruction."""
    texts = [row["instruction"], row.get("input") or "", row["output"]]
    if not all(isinstance(text, str) for text in texts):
        raise UnusableError("no conversation", "instruction, input and output are not all texts")
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise UnusableError("no conversation", '"history" is no list of pairs')
    turns = [*history, ["\n".join(text for text in texts[:2] if text), texts[2]]]
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    return messages_of(messages, "the row")
