"""From replies to the objects of OpenAI's API: whole, and as the chunks of a stream.

A whole answer is made like a stream whose only chunk has everything, so that the two cannot differ.
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from neoxkit.serve.asking import Asked, Part, Reply
from neoxkit.serve.http.asks import Ask
from neoxkit.serve.http.schema import ChatBody, CompletionBody
from neoxkit.serve.http.tokens import Offsets, TokenTexts
from neoxkit.serve.request import Scored

LEAST = -9999.0
"""What a logarithm that JSON has no number for is told as, as OpenAI has it."""

Json = dict[str, Any]


class Answers:
    """The answers to one request, whose replies grow in `asked`."""

    def __init__(self, body: CompletionBody | ChatBody, ask: Ask, asked: Asked, model: str, texts: TokenTexts) -> None:
        self.asked, self.model = asked, model
        self.with_usage = body.stream_options is not None and body.stream_options.include_usage
        self.chat = isinstance(body, ChatBody)
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        prompts = [text for each, text in zip(ask.questions, ask.texts, strict=True) for _ in range(each.samples)]
        self._choices = [
            _choice(index, reply, body, prompt, texts)
            for index, (reply, prompt) in enumerate(zip(asked.replies, prompts, strict=True))
        ]
        self._firsts = [sum(each.samples for each in ask.questions[:index]) for index in range(len(ask.questions))]

    def whole(self) -> Json:
        """The answer to a request that is not streamed, once all is done."""
        made = [choice.grown(choice.reply.take()) for choice in self._choices]
        choices = [choice.whole(each) for choice, each in zip(self._choices, made, strict=True)]
        kind = "chat.completion" if self.chat else "text_completion"
        found = {**self._head(kind), "choices": choices, "usage": self.usage()}
        if self.chat and "prompt_logprobs" in choices[0]:
            found["prompt_logprobs"] = choices[0].pop("prompt_logprobs")
        return found

    def first_chunks(self) -> list[Json]:
        """What a stream begins with, before there is anything to show: in a chat, who speaks."""
        if not self.chat:
            return []
        return [self._chunk(choice.opening()) for choice in self._choices if isinstance(choice, _ChatChoice)]

    def chunks(self) -> list[Json]:
        """What has grown since the last time; at most a chunk for each answer."""
        found = []
        for choice in self._choices:
            part = choice.reply.take()
            if part:
                made = choice.grown(part)
                if choice.worth_telling(made):
                    found.append(self._chunk(choice.delta(made)))
        return found

    def last_chunks(self) -> list[Json]:
        """What a stream ends with: the usage, if it was asked for."""
        return [{**self._chunk({}), "choices": [], "usage": self.usage()}] if self.with_usage else []

    def usage(self) -> Json:
        """How many tokens there were. A prompt counts once, however many answers it has."""
        prompts = [self.asked.replies[first] for first in self._firsts]
        read = sum(len(reply.request.ids) for reply in prompts)
        made = sum(reply.tokens for reply in self.asked.replies)
        return {
            "prompt_tokens": read,
            "completion_tokens": made,
            "total_tokens": read + made,
            "prompt_tokens_details": {"cached_tokens": sum(reply.cached for reply in prompts)},
        }

    def _head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, choice: Json) -> Json:
        found = {**self._head("chat.completion.chunk" if self.chat else "text_completion"), "choices": [choice]}
        if self.with_usage:
            found["usage"] = None
        return found


def _choice(
    index: int, reply: Reply, body: CompletionBody | ChatBody, prompt: str, texts: TokenTexts
) -> _ChatChoice | _CompletionChoice:
    if isinstance(body, ChatBody):
        return _ChatChoice(index, reply, body, texts)
    return _CompletionChoice(index, reply, body, prompt, texts)


class _Choice(ABC):
    """One of the answers. `grown` makes of a part what both forms of it have; `whole` and `delta` are the forms."""

    def __init__(self, index: int, reply: Reply, body: CompletionBody | ChatBody, texts: TokenTexts) -> None:
        self.index, self.reply, self._texts = index, reply, texts
        self._prompt_logprobs = body.prompt_logprobs
        self._asked_stops = frozenset(body.stop_token_ids or ())

    @abstractmethod
    def grown(self, part: Part) -> Json:
        """What a part is to be told as."""

    @abstractmethod
    def whole(self, made: Json) -> Json:
        """The answer as it is told at once."""

    @abstractmethod
    def delta(self, made: Json) -> Json:
        """A piece of it, in a stream."""

    def worth_telling(self, made: Json) -> bool:
        """Whether a stream needs a chunk for it: text may be held back."""
        return bool(made["text"] or made["logprobs"] or made["finish_reason"])

    def _common(self, part: Part, text: str, logprobs: Json | None) -> Json:
        """What completions and chats have alike."""
        stopped_by = part.stopped_by
        if isinstance(stopped_by, int) and stopped_by not in self._asked_stops:
            stopped_by = None  # the end of the text, as the model has it
        return {"text": text, "logprobs": logprobs, "finish_reason": part.finish, "stop_reason": stopped_by}

    def _told(self, scored: Scored, most: int) -> list[tuple[int, float]]:
        """The likeliest tokens with their logarithms, so many at most."""
        return [(token, _finite(logprob)) for token, logprob in scored.alternatives[:most]]

    def _of_prompt(self, scores: Sequence[Scored]) -> list[Json | None]:
        """The prompt's scores as vLLM has them: for each token but the first {id: {"logprob", "rank", ...}}."""
        assert self._prompt_logprobs is not None
        found: list[Json | None] = [None]
        for scored in scores:
            likeliest = self._told(scored, self._prompt_logprobs)
            ranks = {token: rank for rank, (token, _) in enumerate(scored.alternatives, 1)}
            told = dict([(scored.token, _finite(scored.logprob)), *likeliest])
            found.append(
                {
                    str(token): {
                        "logprob": logprob,
                        "rank": ranks.get(token),
                        "decoded_token": self._texts.text(token),
                    }
                    for token, logprob in told.items()
                }
            )
        return found


class _CompletionChoice(_Choice):
    """An answer of `/v1/completions`."""

    def __init__(self, index: int, reply: Reply, body: CompletionBody, prompt: str, texts: TokenTexts) -> None:
        super().__init__(index, reply, body, texts)
        self._logprobs = body.logprobs
        self._echo = prompt if body.echo else None  # until it is told
        self._offsets = Offsets(texts, special=body.skip_special_tokens is False)
        self._offsets.begin(prompt=bool(body.echo))

    def grown(self, part: Part) -> Json:
        """What a part is to be told as; the first one begins with the prompt, if that is to be echoed."""
        text = part.text
        rows: list[tuple[int, Scored | None]] = []
        if self._echo is not None:
            text, self._echo = self._echo + text, None
            rows.append((self.reply.request.ids[0], None))
            rows += [(scored.token, scored) for scored in part.prompt]
        rows += [(scored.token, scored) for scored in part.scored]
        made = self._common(part, text, self._table(rows) if self._logprobs is not None and rows else None)
        if self._prompt_logprobs is not None and part.finish is not None:
            made["prompt_logprobs"] = self._of_prompt(part.prompt)
        return made

    def whole(self, made: Json) -> Json:
        """The answer as it is told at once."""
        if self._logprobs is not None and made["logprobs"] is None:
            made["logprobs"] = self._table([])
        return {"index": self.index, **made}

    def delta(self, made: Json) -> Json:
        """A piece of it, in a stream."""
        return {"index": self.index, **made}

    def _table(self, rows: Sequence[tuple[int, Scored | None]]) -> Json:
        """Tokens, where they begin in the text, and their logarithms. The prompt's first token has none."""
        most = self._logprobs or 0
        likeliest: list[dict[str, float] | None] = []
        for token, scored in rows:
            if scored is None:
                likeliest.append(None)
                continue
            best: dict[str, float] = {}  # of ids that have one text, the likeliest counts; what was chosen is there too
            for each, logprob in (*self._told(scored, most), (token, _finite(scored.logprob))):
                best.setdefault(self._texts.text(each), logprob)
            likeliest.append(best)
        return {
            "text_offset": [self._offsets.next(token) for token, _ in rows],
            "token_logprobs": [None if scored is None else _finite(scored.logprob) for _, scored in rows],
            "tokens": [self._texts.text(token) for token, _ in rows],
            "top_logprobs": likeliest,
        }


class _ChatChoice(_Choice):
    """An answer of `/v1/chat/completions`."""

    def __init__(self, index: int, reply: Reply, body: ChatBody, texts: TokenTexts) -> None:
        super().__init__(index, reply, body, texts)
        self._logprobs = (body.top_logprobs or 0) if body.logprobs else None

    def opening(self) -> Json:
        """The first chunk."""
        delta = {"role": "assistant", "content": ""}
        return {"index": self.index, "delta": delta, "logprobs": None, "finish_reason": None, "stop_reason": None}

    def grown(self, part: Part) -> Json:
        """What a part is to be told as."""
        logprobs = None
        if self._logprobs is not None and part.scored:
            logprobs = {"content": [self._entry(scored) for scored in part.scored], "refusal": None}
        made = self._common(part, part.text, logprobs)
        if self._prompt_logprobs is not None and part.finish is not None:
            made["prompt_logprobs"] = self._of_prompt(part.prompt)
        return made

    def whole(self, made: Json) -> Json:
        """The answer as it is told at once."""
        if self._logprobs is not None and made["logprobs"] is None:
            made["logprobs"] = {"content": [], "refusal": None}
        message = {"role": "assistant", "content": made.pop("text"), "refusal": None}
        return {"index": self.index, "message": message, **made}

    def delta(self, made: Json) -> Json:
        """A piece of it, in a stream."""
        text = made.pop("text")
        return {"index": self.index, "delta": {"content": text} if text else {}, **made}

    def _entry(self, scored: Scored) -> Json:
        assert self._logprobs is not None
        return {
            **self._token(scored.token, _finite(scored.logprob)),
            "top_logprobs": [self._token(*each) for each in self._told(scored, self._logprobs)],
        }

    def _token(self, token: int, logprob: float) -> Json:
        return {"token": self._texts.text(token), "logprob": logprob, "bytes": list(self._texts.data(token))}


def _finite(logprob: float) -> float:
    return max(logprob, LEAST)
