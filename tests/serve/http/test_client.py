"""What OpenAI's own client asks, and what it makes of the answers."""

from __future__ import annotations

import math
from typing import Any

import httpx
import openai
import pytest
from served import CONTEXT, NAME, Live, until

from neoxkit.serve.request import Request, Sampling

Messages = list[Any]
HELLO: Messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello there"}]


def alone(server: Live, ids: list[int], count: int, **sampling: Any) -> list[int]:
    """The tokens that the model itself continues a prompt with, by an engine that does nothing else."""
    from neoxkit.serve.start import open_engine

    with open_engine(server.serving.folder, dtype="F32", device="cpu") as serving:
        serving.engine.submit(Request(tuple(ids), Sampling(**sampling), max_tokens=count))
        found = []
        while not serving.engine.idle:
            found += [event.token for event in serving.engine.tick() if event.token is not None]
        return found


def rendered(messages: Messages) -> str:
    return "".join(f"<{each['role']}> {each['content']}\n" for each in messages) + "<assistant> "


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    (card,) = client.models.list().data
    assert (card.id, card.object, card.owned_by) == (NAME, "model", "neoxkit")
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("gpt-4")
    assert error.value.code == "model_not_found"


def test_a_completion_is_what_the_model_says(client: openai.OpenAI, server: Live) -> None:
    tokenizer = server.serving.tokenizer
    ids = tokenizer.encode("def test")
    told = client.completions.create(model=NAME, prompt="def test", max_tokens=20, temperature=0)
    (choice,) = told.choices
    wanted = alone(server, ids, 20)
    assert choice.text == tokenizer.decode([*ids, *wanted]).removeprefix("def test")
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert told.object == "text_completion"
    assert told.model == NAME
    assert told.id.startswith("cmpl-")
    assert told.usage is not None
    assert (told.usage.prompt_tokens, told.usage.completion_tokens) == (len(ids), 20)
    assert told.usage.total_tokens == len(ids) + 20


def test_sixteen_tokens_are_made_when_nobody_says(client: openai.OpenAI) -> None:
    usage = client.completions.create(model=NAME, prompt="x", extra_body={"ignore_eos": True}).usage
    assert usage is not None
    assert usage.completion_tokens == 16


def test_a_conversation_goes_on(client: openai.OpenAI, server: Live) -> None:
    tokenizer = server.serving.tokenizer
    messages = list(HELLO)
    for question in ("and then?", "why?"):
        told = client.chat.completions.create(model=NAME, messages=messages, max_tokens=12, temperature=0)
        ids = tokenizer.encode(rendered(messages))
        (choice,) = told.choices
        text = tokenizer.decode([*ids, *alone(server, ids, 12)])[len(rendered(messages)) :]
        assert choice.message.content == text
        assert choice.message.role == "assistant"
        assert choice.finish_reason == "length"
        assert told.object == "chat.completion"
        messages += [choice.message.model_dump(), {"role": "user", "content": question}]


def test_parts_of_text_are_joined(client: openai.OpenAI) -> None:
    parts: Messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    joined: Messages = [{"role": "user", "content": "a\nb"}]
    first, second = (
        client.chat.completions.create(model=NAME, messages=messages, max_tokens=8, temperature=0)
        for messages in (parts, joined)
    )
    assert first.choices[0].message.content == second.choices[0].message.content
    assert first.usage is not None
    assert second.usage is not None
    assert first.usage.prompt_tokens == second.usage.prompt_tokens


@pytest.mark.parametrize("seed", [3, -1])
def test_a_seed_draws_the_same_again(client: openai.OpenAI, seed: int) -> None:
    def draw(number: int) -> str:
        made = client.completions.create(model=NAME, prompt="ab", max_tokens=24, temperature=1.5, seed=number)
        return made.choices[0].text

    assert draw(seed) == draw(seed) != draw(seed + 7)


def test_without_a_seed_answers_differ(client: openai.OpenAI) -> None:
    texts = {client.completions.create(model=NAME, prompt="ab", max_tokens=24).choices[0].text for _ in range(3)}
    assert len(texts) == 3


def test_the_first_of_several_answers_is_the_only_one_of_one(client: openai.OpenAI) -> None:
    given: dict[str, Any] = {"model": NAME, "prompt": "ab", "max_tokens": 20, "temperature": 1, "seed": 5}
    given["extra_body"] = {"ignore_eos": True}
    several = client.completions.create(**given, n=3)
    one = client.completions.create(**given)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert several.choices[0].text == one.choices[0].text
    assert len({choice.text for choice in several.choices}) == 3
    assert several.usage is not None
    assert one.usage is not None
    assert several.usage.prompt_tokens == one.usage.prompt_tokens
    assert several.usage.completion_tokens == 60
    again = client.completions.create(**given, n=3)
    assert [choice.text for choice in again.choices] == [choice.text for choice in several.choices]


def test_prompts_come_as_texts_and_tokens_alone_and_together(client: openai.OpenAI, server: Live) -> None:
    texts = ["def ", "import", "class"]
    ids = [server.serving.tokenizer.encode(text) for text in texts]

    def told(prompt: Any, **more: Any) -> list[str]:
        made = client.completions.create(model=NAME, prompt=prompt, max_tokens=12, temperature=0, **more)
        return [choice.text for choice in made.choices]

    alone = [told(text)[0] for text in texts]
    assert told(texts) == told(ids) == alone
    assert [told(each)[0] for each in ids] == alone
    assert told(texts[:2], n=2) == [alone[0], alone[0], alone[1], alone[1]]


def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI) -> None:
    given: dict[str, Any] = {"model": NAME, "prompt": ["ab", "cd"], "max_tokens": 20, "seed": 1, "n": 2}
    whole = client.completions.create(**given)
    texts, reasons = ["", "", "", ""], [None] * 4
    ids = set()
    for chunk in client.completions.create(**given, stream=True):
        ids.add(chunk.id)
        for choice in chunk.choices:
            assert reasons[choice.index] is None, "something came after the end"
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == ["length"] * 4
    assert len(ids) == 1


def test_a_chat_streams_who_speaks_first_and_the_usage_last(client: openai.OpenAI) -> None:
    given: dict[str, Any] = {"model": NAME, "messages": HELLO, "max_tokens": 15, "seed": 2}
    whole = client.chat.completions.create(**given)
    chunks = list(client.chat.completions.create(**given, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert all(chunk.usage is None for chunk in client.chat.completions.create(**given, stream=True))


def test_stop_texts_end_an_answer_before_them(client: openai.OpenAI) -> None:
    given: dict[str, Any] = {"model": NAME, "prompt": "ab", "max_tokens": 60, "seed": 4, "temperature": 1}
    whole = client.completions.create(**given).choices[0].text
    stop = whole[20:23]
    before = whole[: whole.index(stop)]
    cut = client.completions.create(**given, stop=[stop, "\x00\x00never"]).choices[0]
    assert (cut.text, cut.finish_reason) == (before, "stop")
    assert cut.stop_reason == stop
    kept = client.completions.create(**given, stop=stop, extra_body={"include_stop_str_in_output": True}).choices[0]
    assert kept.text == before + stop
    streamed = [chunk.choices[0].text for chunk in client.completions.create(**given, stop=stop, stream=True)]
    assert "".join(streamed) == before


def test_stop_tokens_end_an_answer(client: openai.OpenAI, server: Live) -> None:
    ids = server.serving.tokenizer.encode("ab")
    tokens = alone(server, ids, 30, temperature=1.5, seed=9)
    stop = next(token for token in tokens if tokens.index(token) > 3)
    place = tokens.index(stop)
    given: dict[str, Any] = {"model": NAME, "prompt": "ab", "max_tokens": 30, "seed": 9, "temperature": 1.5}
    told = client.completions.create(**given, extra_body={"stop_token_ids": [stop]})
    assert told.usage is not None
    assert told.usage.completion_tokens == place
    assert told.choices[0].finish_reason == "stop"
    assert told.choices[0].stop_reason == stop
    later = client.completions.create(**given, extra_body={"stop_token_ids": [stop], "min_tokens": place + 1})
    assert later.usage is not None
    assert later.usage.completion_tokens > place


def test_the_end_of_a_text_ends_an_answer_unless_it_is_ignored(client: openai.OpenAI) -> None:
    # Token 0 is the model's end; the bias makes it the likeliest.
    given: dict[str, Any] = {"model": NAME, "prompt": "ab", "max_tokens": 5, "temperature": 0, "logit_bias": {"0": 100}}
    ended = client.completions.create(**given)
    assert ended.usage is not None
    assert (ended.usage.completion_tokens, ended.choices[0].finish_reason) == (0, "stop")
    assert ended.choices[0].stop_reason is None
    extra: dict[str, Any] = {"ignore_eos": True}
    ignored = client.completions.create(**given, extra_body=extra)
    assert (ignored.choices[0].text, ignored.choices[0].finish_reason) == ("", "length")
    shown = client.completions.create(**given, extra_body={**extra, "skip_special_tokens": False})
    assert shown.choices[0].text == "<|endoftext|>" * 5
    least = client.completions.create(**given, extra_body={"min_tokens": 3})
    assert least.usage is not None
    assert least.usage.completion_tokens == 3


def test_logprobs_of_a_completion(client: openai.OpenAI, server: Live) -> None:
    told = client.completions.create(model=NAME, prompt="ab", max_tokens=10, temperature=0, logprobs=3)
    logprobs = told.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    assert logprobs.text_offset is not None
    assert logprobs.text_offset[0] == 0
    assert logprobs.text_offset == sorted(logprobs.text_offset)
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert logprob == max(top.values()) == top[token]  # greedy, and to the last bit
        assert 1 <= len(top) <= 3
    drawn = client.completions.create(model=NAME, prompt="ab", max_tokens=10, temperature=2, seed=1, logprobs=0)
    logprobs = drawn.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.top_logprobs is not None
    assert logprobs.tokens is not None
    assert [list(top) for top in logprobs.top_logprobs] == [[token] for token in logprobs.tokens]


def test_logprobs_of_a_chat(client: openai.OpenAI) -> None:
    given: dict[str, Any] = {"model": NAME, "messages": HELLO, "max_tokens": 10, "seed": 3, "logprobs": True}
    told = client.chat.completions.create(**given, top_logprobs=4).choices[0]
    assert told.logprobs is not None
    assert told.logprobs.content is not None
    assert len(told.logprobs.content) == 10
    data = b"".join(bytes(each.bytes or ()) for each in told.logprobs.content)
    assert told.message.content == data.decode(errors="replace")
    for each in told.logprobs.content:
        assert len(each.top_logprobs) == 4
        chances = [math.exp(top.logprob) for top in each.top_logprobs]
        assert chances == sorted(chances, reverse=True)
        assert sum(chances) <= 1
    streamed = [
        entry
        for chunk in client.chat.completions.create(**given, top_logprobs=4, stream=True)
        for choice in chunk.choices
        if choice.logprobs is not None
        for entry in choice.logprobs.content or ()
    ]
    assert [each.model_dump() for each in streamed] == [each.model_dump() for each in told.logprobs.content]
    bare = client.chat.completions.create(**given).choices[0]
    assert bare.logprobs is not None
    assert bare.logprobs.content is not None
    assert [each.top_logprobs for each in bare.logprobs.content] == [[]] * 10


def test_penalties_and_truncation_change_what_is_drawn(client: openai.OpenAI) -> None:
    given: dict[str, Any] = {"model": NAME, "prompt": "ab", "max_tokens": 30, "temperature": 0}
    greedy = client.completions.create(**given).choices[0].text
    assert client.completions.create(**given, frequency_penalty=2).choices[0].text != greedy
    assert client.completions.create(**given, presence_penalty=2).choices[0].text != greedy
    assert client.completions.create(**given, extra_body={"repetition_penalty": 1.8}).choices[0].text != greedy
    given["temperature"] = 1.5
    for extra in ({"top_k": 1}, {"min_p": 1.0}):
        assert client.completions.create(**given, extra_body=extra).choices[0].text == greedy
    assert client.completions.create(**given, top_p=1e-9).choices[0].text == greedy
    assert client.completions.create(**given, extra_body={"top_k": -1}, seed=1).choices[0].text != greedy


def test_what_was_computed_is_shared(client: openai.OpenAI) -> None:
    prompt = "a text that nobody has begun so far, " * 4
    first, second = (client.completions.create(model=NAME, prompt=prompt, max_tokens=2).usage for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.prompt_tokens_details is not None
    assert second.prompt_tokens_details is not None
    assert first.prompt_tokens_details.cached_tokens == 0
    cached = second.prompt_tokens_details.cached_tokens
    assert cached is not None
    assert second.prompt_tokens - 17 <= cached < second.prompt_tokens  # all of its whole pages


def test_an_answer_ends_where_the_context_does(client: openai.OpenAI) -> None:
    ids = [5] * (CONTEXT - 6)
    told = client.completions.create(model=NAME, prompt=ids, max_tokens=50, extra_body={"ignore_eos": True})
    assert told.usage is not None
    assert (told.usage.total_tokens, told.choices[0].finish_reason) == (CONTEXT, "length")
    chat = client.chat.completions.create(model=NAME, messages=HELLO, extra_body={"ignore_eos": True})
    assert chat.usage is not None
    assert (chat.usage.total_tokens, chat.choices[0].finish_reason) == (CONTEXT, "length")
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model=NAME, prompt=[5] * CONTEXT, max_tokens=1)
    assert error.value.code == "context_length_exceeded"
    assert error.value.param == "prompt"


def test_wrong_requests_are_told_what_is_wrong(client: openai.OpenAI, server: Live) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt-4", prompt="a")
    assert missing.value.code == "model_not_found"
    assert missing.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="temperature") as wrong:
        client.completions.create(model=NAME, prompt="a", temperature=-1)
    assert (wrong.value.param, wrong.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="suffix is not supported"):
        client.completions.create(model=NAME, prompt="a", suffix="b")
    with pytest.raises(openai.BadRequestError, match="no such role"):
        client.chat.completions.create(model=NAME, messages=[{"role": "developer", "content": "a"}])
    assert client.completions.create(model=NAME, prompt="a", user="me", max_tokens=1).usage is not None
    until(server.idle)


def test_a_client_that_leaves_costs_nothing_more(client: openai.OpenAI, server: Live) -> None:
    with client.chat.completions.create(model=NAME, messages=HELLO, n=4, stream=True) as stream:
        next(iter(stream))
    until(server.idle)
    impatient = server.client(timeout=httpx.Timeout(0.001, connect=10, write=10))
    with pytest.raises(openai.APITimeoutError):
        impatient.completions.create(model=NAME, prompt="x", max_tokens=250, n=8)
    until(server.idle)
