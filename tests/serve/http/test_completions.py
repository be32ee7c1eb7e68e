"""What OpenAI's client has no words for: echo, prompts' scores, lm-evaluation-harness' requests, the stream's bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from served import CONTEXT, NAME, Live, until

from neoxkit.convert.open import open_any


def ask(server: Live, **body: Any) -> dict[str, Any]:
    response = server.post("/v1/completions", {"model": NAME, **body})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


@pytest.fixture(scope="module")
def scores(server: Live) -> Any:
    """The logarithms that the model gives, of all tokens [T, V] of some ids, by transformers."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(server.serving.folder)

    def of(ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            found: torch.Tensor = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        return found

    return of


def test_an_echo_begins_with_the_prompt(server: Live) -> None:
    whole = ask(server, prompt="def test", echo=True, max_tokens=5, temperature=0)["choices"][0]["text"]
    answer = ask(server, prompt="def test", max_tokens=5, temperature=0)["choices"][0]["text"]
    assert whole == "def test" + answer
    ids = server.serving.tokenizer.encode("def test")
    assert ask(server, prompt=ids, echo=True, max_tokens=5, temperature=0)["choices"][0]["text"] == whole
    found = ask(server, prompt="def test", echo=True, max_tokens=0)
    assert found["choices"][0]["text"] == "def test"
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"]["completion_tokens"] == 0


def test_an_echo_has_the_scores_of_the_prompt(server: Live, scores: Any) -> None:
    ids = server.serving.tokenizer.encode("from tests import é€")
    found = ask(server, prompt=ids, echo=True, max_tokens=3, temperature=0, logprobs=2)["choices"][0]
    logprobs = found["logprobs"]
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    tokens = server.post("/tokenize", {"prompt": found["text"]}).json()["tokens"]
    assert tokens[: len(ids)] == ids
    wanted = scores(ids)
    for place in range(1, len(ids)):
        assert logprobs["token_logprobs"][place] == pytest.approx(float(wanted[place - 1, ids[place]]), abs=1e-4)
        best = max(logprobs["top_logprobs"][place].values())
        assert best == pytest.approx(float(wanted[place - 1].max()), abs=1e-4)
    for at, token, after in zip(
        logprobs["text_offset"], logprobs["tokens"], [*logprobs["text_offset"][1:], len(found["text"])], strict=True
    ):
        if not token.startswith("bytes:"):
            assert found["text"][at:after] == token
    assert len(logprobs["tokens"]) == len(ids) + 3


def test_a_streamed_echo_is_the_same(server: Live) -> None:
    given = {"prompt": ["ab", [70, 71]], "echo": True, "max_tokens": 6, "temperature": 0, "logprobs": 1}
    whole = ask(server, **given)["choices"]
    texts: list[str] = ["", ""]
    tables: list[dict[str, list[Any]]] = [{}, {}]
    for chunk in events(server, "/v1/completions", given):
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
        for name, values in (choice["logprobs"] or {}).items():
            tables[choice["index"]].setdefault(name, []).extend(values)
    assert texts == [choice["text"] for choice in whole]
    assert tables == [choice["logprobs"] for choice in whole]


def events(server: Live, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """What is streamed, of which each event must be as it should."""
    response = server.post(path, {**body, "stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    *pieces, done, nothing = response.text.split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    assert all(piece.startswith("data: {") and "\n" not in piece for piece in pieces)
    return [json.loads(piece.removeprefix("data: ")) for piece in pieces]


def test_the_harness_scores_texts(server: Live, scores: Any) -> None:
    """The requests of `lm_eval --model local-completions`, and what it reads of the answers."""
    texts = ["def test_", "from served import NAME, Live", "a"]
    ids = [server.serving.tokenizer.encode(text) for text in texts]
    body = {"prompt": ids, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    choices = sorted(ask(server, **body)["choices"], key=lambda choice: int(choice["index"]))
    for row, choice in zip(ids, choices, strict=True):
        table, wanted = choice["logprobs"], scores(row)
        logprobs, tops = table["token_logprobs"][1:-1], table["top_logprobs"][1:-1]
        assert len(logprobs) == len(row) - 1
        for place, (logprob, top) in enumerate(zip(logprobs, tops, strict=True)):
            assert logprob == pytest.approx(float(wanted[place, row[place + 1]]), abs=1e-4)
            assert (logprob == max(top.values())) == (int(wanted[place].argmax()) == row[place + 1])


def test_the_harness_makes_texts(server: Live) -> None:
    ids = [server.serving.tokenizer.encode(text) for text in ("def test_", "from")]
    body = {"prompt": ids, "max_tokens": 30, "temperature": 0, "stop": ["\n\n", "<|endoftext|>"], "seed": 1234}
    found = ask(server, **body)["choices"]
    assert [choice["index"] for choice in found] == [0, 1]
    assert server.get("/tokenizer_info").status_code == 404


def test_scores_of_a_prompt_as_vllm_has_them(server: Live, scores: Any) -> None:
    ids = server.serving.tokenizer.encode("import os")
    found = ask(server, prompt=ids, max_tokens=1, prompt_logprobs=2, logprobs=5)["choices"][0]
    assert len(found["logprobs"]["top_logprobs"][0]) in (5, 6)
    first, *rest = found["prompt_logprobs"]
    assert first is None
    wanted = scores(ids)
    for place, entry in enumerate(rest):
        likeliest = [int(token) for token in wanted[place].topk(2).indices]
        assert set(entry) == {str(token) for token in (*likeliest, ids[place + 1])}
        assert [entry[str(token)]["rank"] for token in likeliest] == [1, 2]
        chosen = entry[str(ids[place + 1])]
        assert chosen["logprob"] == pytest.approx(float(wanted[place, ids[place + 1]]), abs=1e-4)
        assert chosen["decoded_token"] == server.serving.tokenizer.decode([ids[place + 1]])
    chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "prompt_logprobs": 0}
    told = server.post("/v1/chat/completions", chat).json()
    assert len(told["prompt_logprobs"]) == told["usage"]["prompt_tokens"]
    assert all(len(entry) == 1 for entry in told["prompt_logprobs"][1:])


def test_a_prompt_that_fills_the_context_is_only_scored(server: Live) -> None:
    given: dict[str, Any] = {"prompt": [5] * CONTEXT, "echo": True, "logprobs": 0}
    found = ask(server, **given, max_tokens=0)
    assert len(found["choices"][0]["logprobs"]["tokens"]) == CONTEXT
    refused = server.post("/v1/completions", {**given, "max_tokens": 1})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_only_the_end_of_a_long_prompt_is_read(server: Live) -> None:
    long = ask(server, prompt=[9] * 999 + [70, 71, 72], truncate_prompt_tokens=3, max_tokens=6, temperature=0)
    short = ask(server, prompt=[70, 71, 72], max_tokens=6, temperature=0)
    assert long["choices"][0]["text"] == short["choices"][0]["text"]
    assert long["usage"]["prompt_tokens"] == 3


def test_an_empty_prompt_is_the_beginning_of_a_text(server: Live) -> None:
    assert ask(server, prompt="", max_tokens=3)["usage"]["prompt_tokens"] == 1


def test_the_last_message_can_be_continued(server: Live) -> None:
    messages = [{"role": "user", "content": "say it"}, {"role": "assistant", "content": "it begins "}]
    body = {"messages": messages, "continue_final_message": True, "max_tokens": 5, "temperature": 0}
    chat = server.post("/v1/chat/completions", body).json()
    prompt = "<user> say it\n<assistant> it begins "
    text = ask(server, prompt=prompt, max_tokens=5, temperature=0)
    assert chat["choices"][0]["message"]["content"] == text["choices"][0]["text"]
    assert chat["usage"] == {**text["usage"], "prompt_tokens_details": chat["usage"]["prompt_tokens_details"]}
    for wrong in ({"add_generation_prompt": True}, {"messages": [{"role": "user", "content": " "}]}):
        assert server.post("/v1/chat/completions", {**body, **wrong}).status_code == 400


def test_the_template_takes_variables(server: Live) -> None:
    messages = [{"role": "user", "content": "a"}]

    def count(**more: Any) -> int:
        body = {"messages": messages, "max_tokens": 1, **more}
        return int(server.post("/v1/chat/completions", body).json()["usage"]["prompt_tokens"])

    assert count(chat_template_kwargs={"shout": True}) == count() + 1
    without = server.post("/tokenize", {"messages": messages, "add_generation_prompt": False}).json()["count"]
    assert count(add_generation_prompt=False) == without < count()


def test_tokens_of_a_text_and_back(server: Live) -> None:
    tokenizer = server.serving.tokenizer
    text = "def test() -> é€😀"
    told = server.post("/tokenize", {"model": NAME, "prompt": text, "return_token_strs": True}).json()
    assert told["tokens"] == tokenizer.encode(text)
    assert told["count"] == len(told["tokens"]) == len(told["token_strs"])
    assert told["max_model_len"] == CONTEXT
    assert told["token_strs"][0] == tokenizer.decode(told["tokens"][:1])
    assert server.post("/detokenize", {"tokens": told["tokens"]}).json() == {"prompt": text}
    assert server.post("/detokenize", {"tokens": [0, 70]}).json()["prompt"].startswith("<|endoftext|>")
    chat = server.post("/tokenize", {"messages": [{"role": "user", "content": "a"}]}).json()
    assert chat["tokens"] == tokenizer.encode("<user> a\n<assistant> ")
    assert chat["token_strs"] is None


def test_the_model_may_be_left_out(server: Live) -> None:
    assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 1}).json()["model"] == NAME


def test_the_model_is_the_one_that_was_opened(server: Live) -> None:
    # The fixtures compare with transformers: this is why they may.
    assert server.serving.config == open_any(server.serving.folder).config
    until(server.idle)
