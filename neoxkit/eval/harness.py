"""lm-evaluation-harness over neoxkit's engine: what it asks as text is asked of a model as tokens.

Text becomes tokens as with its own model class for transformers, HFLM, so that scores are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from neoxkit.checkpoint.dtypes import TORCH
from neoxkit.checkpoint.store import place
from neoxkit.data.tokenizer.template import ChatTemplate, unended
from neoxkit.errors import ConfigError
from neoxkit.eval.desk import Answer, Ask, in_good_order, likelihood_of
from neoxkit.eval.journal import Journal
from neoxkit.eval.replicas import Model
from neoxkit.log import counted, progress, warn
from neoxkit.serve.request import Likelihood, Request, Sampling
from neoxkit.serve.seeds import derived_seed

MOST_NEW = 256
"""New tokens of an answer at most, where a task does not say: the harness's own default."""

SAMPLED = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"}
"""Settings of generation that are those of Sampling."""

NEUTRAL = {"do_sample": (True, False), "num_beams": (1,), "use_cache": (True, False), "num_return_sequences": (1,)}
"""Settings of transformers that change nothing here, while they have one of these values."""

Pair = tuple[str, str]


class Tokens(NamedTuple):
    """A pair of texts as tokens, as the harness passes them on."""

    texts: Pair | None
    context: list[int]
    continuation: list[int]


class NeoxkitLM(TemplateLM):
    """A model for the harness. Requests are answered in an order that lets those that begin alike share their start."""

    def __init__(
        self,
        model: Model,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        max_gen_toks: int = MOST_NEW,
        about: Mapping[str, Any] | None = None,
        journal: Journal | None = None,
    ) -> None:
        """`prefix_token_id` comes before what has no context; bos, or else eos, unless given. `add_bos_token` says
        whether the tokenizer puts its tokens around a text; as its file says unless given. `about` is put into the
        results' config. What is in the `journal` is not asked again.
        """
        super().__init__()
        self._model, self._about, self._journal = model, dict(about or {}), journal
        self._words = model.tokenizer
        self._bos, self._prefix, self.max_gen_toks = add_bos_token, prefix_token_id, max_gen_toks
        self._named: str | None = None  # of several chat templates

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text. Raises ConfigError when there is none."""
        return self._words.eod()

    @cached_property
    def prefix_token_id(self) -> int:
        """The token before a text that has no context."""
        if self._prefix is not None:
            return self._prefix
        return self.eot_token_id if self._words.bos is None else self._words.bos

    @property
    def max_length(self) -> int:
        """Tokens of a text at most."""
        return self._model.facts.context

    @property
    def tokenizer_name(self) -> str:
        """What requests that the harness keeps are known by."""
        return self._words.fingerprint.replace(":", "-")

    def get_model_info(self) -> dict[str, Any]:
        """What the results say of the model."""
        return {"model_dtype": str(TORCH[self._model.facts.dtype]), **self._about}

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The tokens of a text; those that the tokenizer puts around it not where the text has them already."""
        special = True if self._bos is None else self._bos
        if add_special_tokens is not None:
            special = add_special_tokens
        elif string.startswith(self._words.decode([self.prefix_token_id], special=True)):
            special = False
        return self._words.encode(string, special=special)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Pair | None, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        def keep(number: int, found: Answer) -> None:
            if (texts := requests[number][0]) is not None:
                self.cache_hook.add_partial("loglikelihood", texts, _pair(found))

        asks = [self._score(Tokens(*each)) for each in requests]
        return [_pair(each) for each in self._answers(asks, "score", "requests", keep)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each text from its first token on, in windows of the model's context."""
        asks: list[Ask] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            (text,) = request.args
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            for context, continuation in map(make_disjoint_window, windows):
                asks.append(self._score(Tokens(None, context, continuation)))
                owners.append(number)
        found = [0.0] * len(requests)
        left = Counter(owners)

        def keep(index: int, answer: Answer) -> None:
            number = owners[index]
            found[number] += _pair(answer)[0]
            left[number] -= 1
            if not left[number]:
                self.cache_hook.add_partial("loglikelihood_rolling", requests[number].args, found[number])

        self._answers(asks, "score", "windows", keep)
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model says to each text, up to one of its stop texts. Raises ConfigError for settings that mean
        nothing here."""
        asks: list[Ask] = []
        times: Counter[Hashable] = Counter()
        for request in requests:
            ask = self._generate(*request.args)
            asks.append(_again(ask, times[ask.key]))
            times[ask.key] += 1
        found = [""] * len(asks)

        def keep(number: int, answer: Answer) -> None:
            assert isinstance(answer, str)
            found[number] = postprocess_generated_text(answer, list(asks[number].stop), None)
            self.cache_hook.add_partial("generate_until", requests[number].args, found[number])

        self._answers(asks, "generate", "answers", keep)
        return found

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation; one that is not to be answered is left open, so that its end can be continued."""
        template = self._template()
        try:
            text = template.render(chat_history, add_generation_prompt=add_generation_prompt)
        except ConfigError:
            without = [each for each in chat_history if each["role"] != "system"]
            if len(without) == len(chat_history):
                raise
            warn("the chat template takes no system message: it is left out")
            chat_history = without
            text = template.render(without, add_generation_prompt=add_generation_prompt)
        return text if add_generation_prompt else unended(text, chat_history)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's program; with a name, that of this name from then on."""
        if chat_template is False or chat_template is None:
            return None
        self._named = chat_template if isinstance(chat_template, str) else None
        return self._template().text

    def _template(self) -> ChatTemplate:
        folder = place(self._model.facts.tokenizer)
        folder = folder if folder.is_dir() else folder.parent
        found = ChatTemplate.of(folder, self._named)
        if found is None:
            raise ConfigError(f"{folder}: no chat template", "leave --apply-chat-template out")
        return found

    def _score(self, tokens: Tokens) -> Ask:
        """The ask for the likelihood of a continuation; what is too long loses its beginning."""
        _, context, continuation = tokens
        if not continuation or len(continuation) > self.max_length:
            raise ConfigError(
                f"a continuation has {counted(len(continuation), 'token')}, the model's context {self.max_length}",
                "such a task cannot be given to this model",
            )
        row = (context + continuation)[-(self.max_length + 1) :]
        if (size := len(context) + len(continuation)) > len(row):
            warn(f"a text of {size} tokens lost its beginning: the context is {self.max_length}")
        return likelihood_of(row, len(continuation))

    def _generate(self, context: str, settings: Mapping[str, Any]) -> Ask:
        """The ask for an answer to a text."""
        known: dict[str, Any] = dict(normalize_gen_kwargs(dict(settings), self.max_gen_toks))
        end = self._words.decode([self.eot_token_id], special=True)
        stop = tuple(each for each in handle_stop_sequences(known.pop("until", None), end) if each)
        most = known.pop("max_gen_toks")
        if (room := self.max_length - most) < 1:
            raise ConfigError(
                f"a task wants {most} new tokens, the model's context is {self.max_length}",
                "give less: --gen-kwargs max_gen_toks=N",
            )
        seed = int(known.pop("seed", 0))
        sampled = {name: known.pop(name) for name in SAMPLED & known.keys()}
        for name, value in known.items():
            if value not in NEUTRAL.get(name, ()):
                raise ConfigError(f"{name}={value}: a setting of generation that neoxkit does not know", "leave it out")
        if known.get("do_sample") and not sampled.get("temperature"):
            sampled["temperature"] = 1.0  # transformers' own
        tokens = self.tok_encode(context)
        if len(tokens) > room:
            warn(f"a text of {len(tokens)} tokens lost its beginning: {most} new ones leave room for {room}")
        ids = tuple(tokens[-room:]) or (self.prefix_token_id,)
        sampling = Sampling(seed=seed, **sampled)
        stop_ids = self._model.facts.stop_ids | {self.eot_token_id}
        return Ask(Request(ids, sampling, max_tokens=most, stop_ids=stop_ids), stop)

    def _answers(self, asks: Sequence[Ask], what: str, unit: str, keep: Callable[[int, Answer], None]) -> list[Answer]:
        """The answers to asks, in their order; `keep` is told of each when it is done. An ask is answered once."""
        found: dict[int, Answer] = {}
        alike: dict[Hashable, list[int]] = {}
        for number, ask in enumerate(asks):
            alike.setdefault(ask.key, []).append(number)

        def take(numbers: Sequence[int], answer: Answer) -> None:
            for number in numbers:
                found[number] = answer
                keep(number, answer)
            bar.advance(len(numbers))

        with progress(what, len(asks), unit) as bar:
            missing: list[list[int]] = []
            for numbers in alike.values():
                known = None if self._journal is None else self._journal.find(asks[numbers[0]])
                if known is None:
                    missing.append(numbers)
                else:
                    take(numbers, known)
            for index, answer in self._model.answered(in_good_order([asks[each[0]] for each in missing])):
                if self._journal is not None:
                    self._journal.keep(asks[missing[index][0]], answer)
                take(missing[index], answer)
        return [found[number] for number in range(len(asks))]


def _again(ask: Ask, times: int) -> Ask:
    """An ask that was asked so many times before: a task that repeats what is drawn wants another answer each time."""
    sampling = ask.request.sampling
    seed = derived_seed(sampling.seed, sample=times) if sampling.temperature else sampling.seed
    return replace(ask, request=replace(ask.request, sampling=replace(sampling, seed=seed)))


def _pair(answer: Answer) -> tuple[float, bool]:
    assert isinstance(answer, Likelihood)
    return answer.logprob, answer.greedy
