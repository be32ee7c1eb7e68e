"""From the body of a request to what is asked of the service."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neoxkit.data.tokenizer.template import unended
from neoxkit.errors import ConfigError
from neoxkit.serve.asking import Question
from neoxkit.serve.http.errors import ApiError
from neoxkit.serve.http.schema import Asking, ChatBody, CompletionBody, Templated
from neoxkit.serve.request import Request, Sampling

if TYPE_CHECKING:
    from neoxkit.data.tokenizer.template import ChatTemplate
    from neoxkit.serve.start import Serving

COMPLETION_TOKENS = 16
"""New tokens of a completion that does not say how many, as OpenAI has it; a chat may fill the context."""

ROLES = ("system", "developer", "user", "assistant")

EMPTY = ("tool_calls", "function_call", "audio", "refusal", "annotations")
"""What messages carry that a program got from an API and sends back: nothing but null, or empty, is taken."""

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request asks: its questions, and of each the text of its prompt where that is to be shown."""

    questions: tuple[Question, ...]
    texts: tuple[str, ...]


class Asker:
    """Makes questions of requests, for one model."""

    def __init__(self, serving: Serving, template: ChatTemplate | None, defaults: Mapping[str, Any]) -> None:
        """`defaults` are how tokens are chosen where a request does not say."""
        self.serving, self.template, self.defaults = serving, template, defaults
        self._tokenizer, self._vocab = serving.tokenizer, serving.config.vocab

    def completions(self, body: CompletionBody) -> Ask:
        """What `/v1/completions` is asked. Raises ApiError."""
        _check_stream(body)
        most = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        if most == 0 and not body.echo and body.prompt_logprobs is None:
            raise ApiError("max_tokens is 0; ask for a token, or with echo for the prompt", param="max_tokens")
        scored = body.prompt_logprobs is not None or (bool(body.echo) and body.logprobs is not None)
        questions, texts = [], []
        for prompt in prompts_of(body.prompt):
            ids, text = self._prompt(prompt, body)
            texts.append(text)
            questions.append(self._question(body, ids, most, body.logprobs, scored, "prompt"))
        self._check_count(questions)
        return Ask(tuple(questions), tuple(texts))

    def chat(self, body: ChatBody) -> Ask:
        """What `/v1/chat/completions` is asked. Raises ApiError."""
        if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
            raise ApiError("max_tokens and max_completion_tokens differ; give one of them", param="max_tokens")
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError("top_logprobs come with logprobs; set logprobs to true", param="top_logprobs")
        _check_stream(body)
        most = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
        if most == 0:
            raise ApiError("max_tokens is 0; ask for a token", param="max_tokens")
        ids = _last(self.template_ids(body, bool(body.add_special_tokens)), body.truncate_prompt_tokens)
        room = self.serving.engine.context - len(ids)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        scored = body.prompt_logprobs is not None
        question = self._question(body, ids, max(room, 1) if most is None else most, logprobs, scored, "messages")
        self._check_count([question])
        return Ask((question,), ("",))

    def text_ids(self, text: str, special: bool) -> Ids:
        """The tokens of a text; with `special`, and what the tokenizer puts around it."""
        return tuple(self._tokenizer.encode(text, special=special))

    def template_ids(self, body: Templated, special: bool) -> Ids:
        """The tokens of a conversation. Raises ApiError."""
        if self.template is None:
            raise ApiError(
                "this model has no chat template; ask /v1/completions to continue a text",
                param="messages",
                code="no_chat_template",
            )
        continued = bool(body.continue_final_message)
        begin = not continued if body.add_generation_prompt is None else body.add_generation_prompt
        if continued and begin:
            raise ApiError(
                "continue_final_message and add_generation_prompt contradict each other; leave one out",
                param="continue_final_message",
            )
        variables = body.chat_template_kwargs or {}
        if taken := [name for name in ("messages", "add_generation_prompt") if name in variables]:
            raise ApiError(f"{taken[0]} is a parameter of its own; give it there", param="chat_template_kwargs")
        messages = [_message(message, f"messages[{number}]") for number, message in enumerate(body.messages)]
        try:
            text = self.template.render(messages, add_generation_prompt=begin, **variables)
            text = unended(text, messages) if continued else text
        except ConfigError as error:
            raise ApiError(str(error), param="messages", code="invalid_messages") from None
        return self.text_ids(text, special)

    def _prompt(self, prompt: str | Sequence[int], body: CompletionBody) -> tuple[Ids, str]:
        """The tokens of a prompt, and its text."""
        if isinstance(prompt, str):
            ids = self.text_ids(prompt, body.add_special_tokens is not False)
            if not ids and (begin := self._begin()) is not None:
                ids = (begin,)
        else:
            ids = tuple(prompt)
        kept = _last(ids, body.truncate_prompt_tokens)
        self._check_ids(kept, "prompt")
        if isinstance(prompt, str) and len(kept) == len(ids):
            return kept, prompt
        return kept, self._tokenizer.decode(kept, special=body.skip_special_tokens is False)

    def _begin(self) -> int | None:
        """The token before a text."""
        tokens, words = self.serving.config.tokens, self._tokenizer
        return next((each for each in (tokens.bos, words.bos, words.eos, *tokens.eos) if each is not None), None)

    def _question(self, body: Asking, ids: Ids, most: int, logprobs: int | None, scored: bool, param: str) -> Question:
        """What a prompt's tokens are to be answered with."""
        self._check_ids(ids, param)
        least = body.min_tokens or 0
        if least > most:
            raise ApiError(f"min_tokens {least} is more than max_tokens {most}; lower it", param="min_tokens")
        stop_ids = frozenset(body.stop_token_ids or ())
        self._check_known(stop_ids, "stop_token_ids")
        context = self.serving.engine.context
        if len(ids) + (most > 0) > context:
            raise ApiError(
                f"the model's context is {context} tokens long, the prompt {len(ids)}"
                f"{' and at least 1 is to be added' if len(ids) == context else ''}; shorten the prompt",
                param=param,
                code="context_length_exceeded",
            )
        request = Request(
            ids=ids,
            sampling=self._sampling(body),
            max_tokens=min(most, context),
            min_tokens=least,
            stop_ids=stop_ids if body.ignore_eos else stop_ids | self.serving.stop_ids,
            logprobs=_most(logprobs, body.prompt_logprobs),
            scored_from=0 if scored else None,
        )
        return Question(
            request,
            samples=body.n or 1,
            stop=tuple(body.stop or ()),
            keep_stop=bool(body.include_stop_str_in_output),
            special=body.skip_special_tokens is False,
        )

    def _sampling(self, body: Asking) -> Sampling:
        """How tokens are chosen."""
        chosen = {name: stated for name in self.defaults if (stated := getattr(body, name)) is not None}
        values = {**self.defaults, **chosen}
        values["top_k"] = max(values["top_k"], 0)  # -1, too, is all of them
        bias: dict[int, float] = {}
        for key, value in (body.logit_bias or {}).items():
            if not (key.isascii() and key.isdigit() and len(key) < 10):
                raise ApiError(f"logit_bias: {key[:64]!r} is no token id; give numbers", param="logit_bias")
            bias[int(key)] = value
        self._check_known(bias, "logit_bias")
        seed = secrets.randbits(64) if body.seed is None else body.seed % 2**64
        return Sampling(**values, bias=bias, seed=seed)

    def _check_ids(self, ids: Ids, param: str) -> None:
        if not ids:
            raise ApiError("the prompt has no tokens; give some text to continue", param=param, code="empty_prompt")
        self._check_known(ids, param)

    def _check_known(self, ids: Sequence[int] | frozenset[int] | Mapping[int, float], param: str) -> None:
        """Raise ApiError for an id that the model has no row for."""
        wrong = next((each for each in ids if not 0 <= each < self._vocab), None)
        if wrong is not None:
            raise ApiError(
                f"{param}: {wrong} is no token of the model; they go from 0 to {self._vocab - 1}",
                param=param,
                code="unknown_token",
            )

    def _check_count(self, questions: Sequence[Question]) -> None:
        """Raise ApiError for more answers than could ever wait together."""
        count, most = sum(each.samples for each in questions), self.serving.engine.limits.waiting
        if count > most:
            raise ApiError(
                f"{count} answers were asked for at once, at most {most} can be; ask for fewer",
                param="n" if len(questions) == 1 else "prompt",
                code="too_many_answers",
            )


def prompts_of(given: Any) -> list[str | list[int]]:
    """The prompts of a completion: a text, texts, tokens or lists of tokens. Raises ApiError for anything else."""
    if given is None:
        raise ApiError("prompt is missing; give it", param="prompt", code="missing_required_parameter")
    if isinstance(given, str) or (isinstance(given, list) and given and _ids(given)):
        return [given]
    if isinstance(given, list) and given and all(isinstance(each, str) or (each and _ids(each)) for each in given):
        return given
    message = "prompt: neither a text, nor texts, nor token ids, nor lists of token ids; give one of them"
    raise ApiError(message, param="prompt", code="invalid_value")


def _check_stream(body: Asking) -> None:
    """Raise ApiError for what is not streamed, and for what is said of a stream that is none."""
    if body.stream and body.prompt_logprobs is not None:
        raise ApiError("prompt_logprobs are not streamed; leave out stream", param="prompt_logprobs")
    if body.stream_options is not None and not body.stream:
        raise ApiError("stream_options are for a stream; set stream to true", param="stream_options")


def _ids(given: Any) -> bool:
    return isinstance(given, list) and all(type(each) is int for each in given)


def _last(ids: Ids, most: int | None) -> Ids:
    """The last tokens, so many at most."""
    return ids if most is None else ids[-most:]


def _most(*counts: int | None) -> int | None:
    """The largest of the numbers that are there."""
    return max((count for count in counts if count is not None), default=None)


def _message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A message as a template takes it. Raises ApiError for one that holds what is not done here."""
    role = message.get("role")
    if role in ("tool", "function"):
        raise ApiError(f"{where}.role: tools are not supported; leave the message out", param=f"{where}.role")
    if role not in ROLES:
        said = "is missing" if role is None else f"is {str(role)[:64]!r}"
        raise ApiError(f"{where}.role {said}; give one of {', '.join(ROLES)}", param=f"{where}.role")
    for name in EMPTY:
        if message.get(name):
            raise ApiError(f"{where}.{name} is not supported; leave it out", param=f"{where}.{name}")
    if message.get("content") is None:
        raise ApiError(f"{where}.content is missing; give a text", param=f"{where}.content")
    return {name: value for name, value in message.items() if name not in EMPTY and value is not None}
