"""What the endpoints take: every field of OpenAI's API is one that has an effect, cannot have one, or is refused."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from neoxkit.serve.http.errors import ApiError

MOST_LOGPROBS = 20
"""Likeliest tokens that may be asked for with each token."""

MOST_SAMPLES = 128
"""Answers to one prompt, as OpenAI has it."""

MOST_STOPS, LONGEST_STOP = 64, 1024
"""Stop texts of a request, and characters of one."""

SEEDS = 2**63
"""A seed is an integer of 64 bits."""

WITHOUT_EFFECT = {
    "user": "names who asks",
    "metadata": "is the asker's own",
    "store": "nothing is stored",
    "safety_identifier": "names who asks",
    "prompt_cache_key": "prompts that begin alike share what was computed anyway",
    "prompt_cache_retention": "what was computed is kept while there is room",
    "service_tier": "there is one",
    "parallel_tool_calls": "there are no tools",
    "prediction": "a guess at the answer, to be quicker",
    "request_id": "answers have one of their own",
}
"""Fields that cannot change an answer: accepted, and why nothing comes of them."""

NO_TOOLS = "tools are not supported; leave it out"
NO_FORMS = "only text can be asked for; leave it out"
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "suffix": (("",), "a text is continued at its end only; leave it out"),
    "best_of": ((1,), "ask for n answers with logprobs, and choose"),
    "use_beam_search": ((False,), "answers are drawn, or greedy at temperature 0; leave it out"),
    "length_penalty": ((1, 1.0), "it belongs to beam search, which there is none of; leave it out"),
    "early_stopping": ((False,), "it belongs to beam search, which there is none of; leave it out"),
    "tools": (([],), NO_TOOLS),
    "tool_choice": (("none", "auto"), NO_TOOLS),
    "functions": (([],), NO_TOOLS),
    "function_call": (("none", "auto"), NO_TOOLS),
    "response_format": (({"type": "text"},), NO_FORMS),
    "guided_json": ((), NO_FORMS),
    "guided_regex": ((), NO_FORMS),
    "guided_choice": ((), NO_FORMS),
    "guided_grammar": ((), NO_FORMS),
    "structured_outputs": ((), NO_FORMS),
    "modalities": ((["text"],), NO_FORMS),
    "audio": ((), NO_FORMS),
    "web_search_options": ((), "nothing is searched; leave it out"),
    "reasoning_effort": ((), "give what the model's chat template takes in chat_template_kwargs"),
    "verbosity": ((), "ask for it in the prompt"),
    "allowed_token_ids": (([],), "use logit_bias"),
    "bad_words": (([],), "use logit_bias"),
    "prompt_embeds": ((), "give text or token ids"),
    "chat_template": ((), "the server runs the model's own template alone"),
    "documents": (([],), "put them into the messages"),
    "priority": ((0,), "requests are answered in the order in which they come; leave it out"),
    "return_tokens_as_token_ids": ((False,), "/tokenize gives the ids of a text; leave it out"),
    "return_token_ids": ((False,), "/tokenize gives the ids of a text; leave it out"),
    "spaces_between_special_tokens": ((True,), "special tokens are shown as they are; leave it out"),
    "mm_processor_kwargs": ((), NO_FORMS),
    "echo": ((False,), "an answer in a chat stands alone; leave it out"),
}
"""Fields that would change an answer in a way that is not done here: the values that change nothing, what to do."""


def _one_or_several(value: Any) -> Any:
    """Stop texts: one, or a list."""
    return [value] if isinstance(value, str) else value


Chance = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Id = Annotated[int, Field(ge=0, lt=2**31)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Logprobs = Annotated[int, Field(ge=0, le=MOST_LOGPROBS)]


class Body(BaseModel):
    """A request: unknown fields are errors, and "5" is no number. What is null counts as left out."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Body):
    """How an answer is streamed. `include_obfuscation`, padding that hides lengths from listeners, is not done."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Asking(Body):
    """What both kinds of completions take."""

    model: str | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_SAMPLES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Annotated[list[Stop], Field(max_length=MOST_STOPS), BeforeValidator(_one_or_several)] | None = None
    seed: Annotated[int, Field(ge=-SEEDS, lt=SEEDS)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Chance | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    min_tokens: Count | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[Id] | None = None
    prompt_logprobs: Logprobs | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=1)] | None = None


class CompletionBody(Asking):
    """`/v1/completions`."""

    prompt: Any = None
    echo: bool | None = None
    logprobs: Logprobs | None = None


class Templated(Body):
    """How messages become a prompt."""

    messages: list[dict[str, Any]]
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ChatBody(Asking, Templated):
    """`/v1/chat/completions`."""

    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None


class TokenizeText(Body):
    """`/tokenize`, of a text."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class TokenizeChat(Templated):
    """`/tokenize`, of messages."""

    model: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    """`/detokenize`."""

    model: str | None = None
    tokens: list[Id]


Kind = TypeVar("Kind", bound=Body)


def read(kind: type[Kind], given: dict[str, Any]) -> Kind:
    """A request's body. Raises ApiError, naming the field, for one that is unknown, wrong or not done here."""
    kept = {}
    for name, value in given.items():
        if value is None or name in WITHOUT_EFFECT:
            continue
        if name in kind.model_fields:
            kept[name] = value
        elif name in REFUSED:
            _check_neutral(name, value)
        else:
            raise ApiError(_unknown(name, kind), param=name, code="unknown_parameter")
    try:
        return kind.model_validate(kept)
    except ValidationError as error:
        raise _wrong(error) from None


def _check_neutral(name: str, value: Any) -> None:
    """Raise ApiError for a value that would change the answer."""
    neutral, remedy = REFUSED[name]
    # (1 == True, which is no number here)
    if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral):
        raise ApiError(f"{name} is not supported: {remedy}", param=name, code="unsupported_parameter")


def _unknown(name: str, kind: type[Body]) -> str:
    """What is told of a field that is none."""
    near = difflib.get_close_matches(name, kind.model_fields, 1, 0.7)
    meant = f"did you mean {near[0]}?" if near else "leave it out"
    return f"there is no parameter {name[:64]!r}; {meant}"


def _wrong(error: ValidationError) -> ApiError:
    """What is told of a field that is not as it should be: the first of them."""
    first = error.errors(include_url=False, include_input=False)[0]
    param = ""
    for part in first["loc"]:
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else str(part)
    said = first["msg"][:1].lower() + first["msg"][1:]
    if first["type"] == "missing":
        return ApiError(f"{param} is missing; give it", param=param, code="missing_required_parameter")
    if first["type"] == "extra_forbidden":
        return ApiError(f"there is no parameter {param[:64]!r}; leave it out", param=param, code="unknown_parameter")
    return ApiError(f"{param}: {said}", param=param, code="invalid_value")
