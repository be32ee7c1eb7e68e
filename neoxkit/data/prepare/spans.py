"""Where in the text of a conversation the words are that are learned.

A template that has {% generation %} says it itself. Of any other it is found out: a message is replaced by a word that
occurs nowhere else, so what stands before and after it is what the template makes of all the rest. Where the
assistant's header ends is where its generation prompt ends, for that is what a model is given to go on from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from neoxkit.data.prepare.conversations import Conversation, Message
from neoxkit.data.text.documents import NOTHING_LEARNED, UnusableError
from neoxkit.data.tokenizer import Spans
from neoxkit.data.tokenizer.template import ChatTemplate
from neoxkit.errors import ConfigError

ASSISTANT = "assistant"
EVERYTHING = "all"

_SAID = ("content", "tool_calls", "reasoning_content", "thinking", "reasoning")
"""What a message says, among the keys of one."""


@dataclass(frozen=True, slots=True)
class Learning:
    """Which messages are learned: those of `roles`, or with EVERYTHING each token; of the last one alone, if so."""

    roles: frozenset[str] = frozenset({ASSISTANT})
    only_last: bool = False

    def chosen(self, conversation: Conversation) -> list[int]:
        """The messages to learn. Raises UnusableError when there is none, or one is empty."""
        messages, learn = conversation.messages, conversation.learn
        found = [at for at, message in enumerate(messages) if message["role"] in self.roles]
        found = [at for at in (found[-1:] if self.only_last else found) if learn[at]]
        if not found:
            raise UnusableError(NOTHING_LEARNED, f"no message of {' or '.join(sorted(self.roles))} that is learned")
        for at in found:
            if not any(messages[at].get(key) for key in _SAID):
                raise UnusableError("empty message", f"message {at}, of {messages[at]['role']}, is to be learned")
        return found


class Writing:
    """How conversations become text: a template, and the tokenizer's special tokens, one of which ends a turn."""

    def __init__(self, template: ChatTemplate, special: Sequence[str]) -> None:
        self.template = template
        longest = sorted(filter(None, special), key=len, reverse=True)  # of two that begin alike, the longer
        self.tokens = re.compile("|".join(map(re.escape, longest)) or r"(?!)")
        self._longest = len(longest[0]) if longest else 0

    def learned(self, conversation: Conversation, learning: Learning) -> tuple[str, Spans]:
        """The text of a conversation, and what of it is learned.

        A message is learned with what ends it, up to the first special token; not its header.

        Raises UnusableError when there is nothing to learn, the template refuses the conversation, or writes it so that
        what it makes of a message cannot be told.
        """
        try:
            return self._learned(conversation, learning)
        except ConfigError as error:
            spelled = _spelled(conversation)
            if spelled is not None:
                try:
                    return self._learned(spelled, learning)
                except ConfigError:
                    pass  # the first says more
            raise UnusableError("refused by the chat template", error.cause) from None

    def _learned(self, conversation: Conversation, learning: Learning) -> tuple[str, Spans]:
        given = {**conversation.variables}
        if conversation.tools is not None:
            given["tools"] = conversation.tools
        if EVERYTHING in learning.roles:
            text = self.template.render(conversation.messages, add_generation_prompt=False, **given)
            return text, [(0, len(text))]
        chosen = learning.chosen(conversation)
        if self.template.marks(conversation.tools) and learning.roles == {ASSISTANT}:
            return self._marked(conversation, chosen, given)
        turns = _Turns(self, conversation.messages, given)
        return turns.text, [turns.span(at) for at in chosen]

    def _marked(self, conversation: Conversation, chosen: list[int], given: Mapping[str, Any]) -> tuple[str, Spans]:
        text, spans = self.template.marked(conversation.messages, **given)
        answers = [at for at, message in enumerate(conversation.messages) if message["role"] == ASSISTANT]
        if chosen != answers:
            if len(spans) != len(answers):
                raise UnusableError(
                    "turns that cannot be told apart",
                    f"the template marks {len(spans)} for {len(answers)} messages, of which some are not learned",
                )
            spans = [span for span, at in zip(spans, answers, strict=True) if at in chosen]
        if not any(start < end for start, end in spans):
            raise UnusableError(NOTHING_LEARNED, "the template marks nothing")
        return text, spans

    def shared(self, one: str, other: str) -> int:
        """How many characters two texts begin with alike, without half of a special token."""
        alike = common(one, other)
        for text in (one, other):
            for token in self.tokens.finditer(text, max(0, alike - self._longest)):
                if token.start() < alike < token.end():
                    alike = token.start()
        return alike


def _spelled(conversation: Conversation) -> Conversation | None:
    """The same with the arguments of calls as texts of JSON, for the templates that take no other; None without."""
    messages = []
    for message in conversation.messages:
        calls = [
            {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}
            for call in message.get("tool_calls") or ()
            if isinstance(function := call.get("function"), Mapping) and isinstance(function.get("arguments"), Mapping)
        ]
        messages.append({**message, "tool_calls": calls} if calls else message)
    return None if messages == [*conversation.messages] else replace(conversation, messages=messages)


class _UnclearError(Exception):
    """This way does not tell where a message is."""


class _Turns:
    """One conversation as a template writes it, whole and in part."""

    def __init__(self, writing: Writing, messages: Sequence[Message], given: Mapping[str, Any]) -> None:
        self._writing, self._messages, self._given = writing, messages, given
        self._texts: dict[tuple[int, bool], str] = {}
        self.text = self._upto(len(messages))

    def span(self, at: int) -> tuple[int, int]:
        """From where to where a message is learned. Raises UnusableError when that cannot be told."""
        reasons = []
        for way in (self._by_replacing, self._by_prefix):
            try:
                return way(at)
            except (_UnclearError, ConfigError) as error:
                reasons.append(error.cause if isinstance(error, ConfigError) else str(error))
        raise UnusableError("turns that cannot be told apart", f"message {at}: {reasons[0]}")

    def _by_replacing(self, at: int) -> tuple[int, int]:
        before, after = self._around(self._messages, at)
        if not self.text.endswith(after):
            raise _UnclearError("what the template writes after it depends on what it says")
        self._check_results(at)
        said = len(self.text) - len(after)
        start, alike = self._start(at, before), common(before, self.text)
        if start > min(alike, said):
            raise _UnclearError("what the template writes before it depends on what it says")
        if start == alike < len(before) and (prompt := self._prompt(at)):  # a word has no thought, and this may have
            found = self.text.find(prompt, max(0, start - len(prompt) + 1), start + len(prompt))
            start = found + len(prompt) if 0 <= found <= start else start
        return min(start, said), said + self._closing(at, after)

    def _check_results(self, at: int) -> None:
        """Raise _UnclearError when what a tool answered goes with the call, as part of the same message."""
        if not self._messages[at].get("tool_calls") or at + 1 == len(self._messages):
            return
        both = [*self._messages]
        both[at + 1] = self._replaced(both[at + 1], self._words[1])
        if self._words[1] not in self._around(both, at)[1]:
            raise _UnclearError("the template writes what follows a call as part of it")

    def _start(self, at: int, before: str) -> int:
        """Where the header of a message ends."""
        if self._messages[at]["role"] != ASSISTANT:
            return len(before)
        prompt = self._prompt(at)
        if not prompt:
            earlier = self._upto(at) if at else ""
            return len(earlier) if before.startswith(earlier) and before[len(earlier) :].isspace() else len(before)
        header = prompt if before.endswith(prompt) else self._between(at, before)
        # Of a prompt that begins a thought, as much as there is: an answer without one has less.
        for length in range(len(prompt), len(prompt) // 2, -1):
            found = header.rfind(prompt[:length])
            if found >= 0:
                start = len(before) - len(header) + found
                alike = common(before, self.text)
                return start + length if alike < start + length // 2 else min(alike, start + length)
        return len(before)

    def _prompt(self, at: int) -> str:
        """The generation prompt after the messages before one."""
        earlier = self._messages[:at] or [{"role": "user", "content": self._words[0]}]
        whole = self._upto(at) if at else self._render(earlier)
        asked = self._upto(at, True) if at else self._render(earlier, True)
        return asked[self._writing.shared(asked, whole) :]

    def _between(self, at: int, before: str) -> str:
        """What of `before` is written between what the message before says and what this one does."""
        if not at:
            return before
        both = [*self._messages]
        both[at - 1] = self._replaced(both[at - 1], self._words[1])
        found = self._around(both, at)[0].rpartition(self._words[1])
        if not found[1] or not before.endswith(found[2]):
            raise _UnclearError("the template does not write what the message before it says")
        return found[2]

    def _closing(self, at: int, after: str) -> int:
        """How many characters of what is written after a message end it."""
        tokens = self._writing.tokens
        if at < len(self._messages) - 1:
            alone = self._around(self._messages[: at + 1], at)[1]
            shared = self._writing.shared(alone, after)
            if alone and not shared:
                return self._closing_within(at, after)
            after = after[:shared]
        token = tokens.search(after)
        if not token:
            return len(after.rstrip()) or len(after)
        end = token.end()
        while token := tokens.match(after, end):  # some end with two
            end = token.end()
        return end

    def _closing_within(self, at: int, after: str) -> int:
        """The same where the last message ends in another way, as GPT-OSS's do: a token, whoever speaks next."""
        afters = [after]
        for role in ("user", ASSISTANT):
            following = {"role": role, "content": self._words[1]}
            try:
                afters.append(self._around([*self._messages[: at + 1], following], at)[1])
            except ConfigError:
                return 0
        token = self._writing.tokens.match(after)
        return token.end() if token and all(each.startswith(token.group()) for each in afters) else 0

    def _by_prefix(self, at: int) -> tuple[int, int]:
        """As transformers' templates are meant to be: each message only adds to the text."""
        if not at or self._messages[at]["role"] != ASSISTANT:
            raise _UnclearError("it has no generation prompt before it")
        asked, answered = self._upto(at, True), self._upto(at + 1)
        if not (self.text.startswith(asked) and self.text.startswith(answered) and len(asked) < len(answered)):
            raise _UnclearError("the template writes it in another way when more follows")
        message, turn = self._messages[at], answered[len(asked) :]
        if not message.get("tool_calls"):
            content = message.get("content")
            if not self._prompt(at) or not isinstance(content, str) or content.strip() not in turn:
                raise _UnclearError("the template does not write what it says as it is")
        ends = [token.end() for token in self._writing.tokens.finditer(answered, len(asked))]
        ended = ends and not answered[ends[-1] :].strip()
        return len(asked), ends[-1] if ended else len(answered)

    def _around(self, messages: Sequence[Message], at: int) -> tuple[str, str]:
        """What the template writes before and after what a message says."""
        replaced = [*messages]
        replaced[at] = self._replaced(messages[at], self._words[0])
        found = self._render(replaced).split(self._words[0])
        if len(found) != 2:
            raise _UnclearError(f"the template writes what it says {len(found) - 1} times")
        return found[0], found[1]

    @staticmethod
    def _replaced(message: Message, word: str) -> Message:
        rest = {key: value for key, value in message.items() if key not in _SAID}
        listed = isinstance(message.get("content"), list)
        return {**rest, "content": [{"type": "text", "text": word}] if listed else word}

    @cached_property
    def _words(self) -> tuple[str, str]:
        """Two words that the text has nowhere."""
        ending = ""
        while any(word + ending in self.text for word in ("Xyzzy", "Plugh")):
            ending += "z"
        return "Xyzzy" + ending, "Plugh" + ending

    def _upto(self, count: int, asking: bool = False) -> str:
        """The text of so many messages."""
        if (count, asking) not in self._texts:
            self._texts[count, asking] = self._render(self._messages[:count], asking)
        return self._texts[count, asking]

    def _render(self, messages: Sequence[Message], asking: bool = False) -> str:
        return self._writing.template.render(messages, add_generation_prompt=asking, **self._given)


def common(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
