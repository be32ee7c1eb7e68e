"""What is refused: each time the same shape of error, with the status, the parameter and what to do."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from served import NAME, Live, held, live, until

from neoxkit.serve.http import limits
from neoxkit.serve.http.schema import REFUSED, WITHOUT_EFFECT, ChatBody, CompletionBody
from neoxkit.serve.request import Limits

USER = [{"role": "user", "content": "a"}]


def refused(response: httpx.Response, status: int, param: str | None = None) -> dict[str, Any]:
    """The error of a response, which must be as errors are."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["message"]
    assert "\n" not in error["message"]
    assert error["param"] == param, error
    return error


COMPLETIONS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "prompt", "prompt is missing; give it"),
    ({"prompt": []}, "prompt", "neither a text"),
    ({"prompt": [[]]}, "prompt", "neither a text"),
    ({"prompt": ["a", [1]]}, "", ""),
    ({"prompt": ["a", 1]}, "prompt", "neither a text"),
    ({"prompt": [1, "a"]}, "prompt", "neither a text"),
    ({"prompt": [True]}, "prompt", "neither a text"),
    ({"prompt": {"a": 1}}, "prompt", "neither a text"),
    ({"prompt": [300]}, "prompt", "300 is no token of the model; they go from 0 to 299"),
    ({"prompt": [-1]}, "prompt", "-1 is no token"),
    ({"prompt": [2**70]}, "prompt", "is no token"),
    ({"prompt": [5] * 256}, "prompt", "context is 256 tokens long, the prompt 256 and at least 1 is to be added; "),
    ({"prompt": "a" * 3000}, "prompt", "context is 256 tokens long"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens", "max_tokens is 0"),
    ({"prompt": "a", "max_tokens": -1}, "max_tokens", "max_tokens: input should be greater"),
    ({"prompt": "a", "max_tokens": "5"}, "max_tokens", "max_tokens: input should be a valid integer"),
    ({"prompt": "a", "max_tokens": 5.5}, "max_tokens", "max_tokens: input should be a valid integer"),
    ({"prompt": "a", "max_tokens": True}, "max_tokens", "max_tokens: input should be a valid integer"),
    ({"prompt": "a", "max_tokens": 10**400}, "max_tokens", "max_tokens: "),
    ({"prompt": "a", "min_tokens": 20}, "min_tokens", "min_tokens 20 is more than max_tokens 16"),
    ({"prompt": "a", "temperature": -0.1}, "temperature", "greater than or equal to 0"),
    ({"prompt": "a", "temperature": "hot"}, "temperature", "valid number"),
    ({"prompt": "a", "top_p": 0}, "top_p", "greater than 0"),
    ({"prompt": "a", "top_p": 1.1}, "top_p", "less than or equal to 1"),
    ({"prompt": "a", "top_k": -2}, "top_k", "greater than or equal to -1"),
    ({"prompt": "a", "min_p": 2}, "min_p", "less than or equal to 1"),
    ({"prompt": "a", "repetition_penalty": 0}, "repetition_penalty", "greater than 0"),
    ({"prompt": "a", "presence_penalty": 3}, "presence_penalty", "less than or equal to 2"),
    ({"prompt": "a", "n": 0}, "n", "greater than or equal to 1"),
    ({"prompt": "a", "n": 129}, "n", "less than or equal to 128"),
    ({"prompt": "a", "n": 65}, "n", "65 answers were asked for at once, at most 64 can be"),
    ({"prompt": ["a"] * 33, "n": 2}, "prompt", "66 answers were asked for at once"),
    ({"prompt": "a", "seed": 2**63}, "seed", "less than"),
    ({"prompt": "a", "stop": ""}, "stop[0]", "at least 1 character"),
    ({"prompt": "a", "stop": ["a", 5]}, "stop[1]", "valid string"),
    ({"prompt": "a", "stop": ["a"] * 65}, "stop", "at most 64 items"),
    ({"prompt": "a", "stop": "a" * 1025}, "stop[0]", "at most 1024 characters"),
    ({"prompt": "a", "stop_token_ids": [300]}, "stop_token_ids", "300 is no token of the model"),
    ({"prompt": "a", "stop_token_ids": [-1]}, "stop_token_ids[0]", "greater than or equal to 0"),
    ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias", "'x' is no token id"),
    ({"prompt": "a", "logit_bias": {"999": 1}}, "logit_bias", "999 is no token of the model"),
    ({"prompt": "a", "logit_bias": {"9": 101}}, "logit_bias.9", "less than or equal to 100"),
    ({"prompt": "a", "logprobs": 21}, "logprobs", "less than or equal to 20"),
    ({"prompt": "a", "logprobs": True}, "logprobs", "valid integer"),
    ({"prompt": "a", "prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "are not streamed"),
    ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options", "set stream to true"),
    ({"prompt": "a", "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation", "False"),
    ({"prompt": "a", "stream_options": {"usage": True}}, "stream_options.usage", "there is no parameter"),
    ({"prompt": "a", "stream": "yes"}, "stream", "valid boolean"),
    ({"prompt": "a", "max_token": 5}, "max_token", "there is no parameter 'max_token'; did you mean max_tokens?"),
    ({"prompt": "a", "zzz": 5}, "zzz", "there is no parameter 'zzz'; leave it out"),
    ({"prompt": "a", "best_of": 2}, "best_of", "best_of is not supported"),
    ({"prompt": "a", "best_of": True}, "best_of", "best_of is not supported"),
    ({"prompt": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "greater than or equal to 1"),
    ({"prompt": "a", "model": 5}, "model", "valid string"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param", "says"), COMPLETIONS, ids=lambda value: str(value)[:60])
def test_completions(server: Live, body: dict[str, Any], param: str, says: str) -> None:
    response = server.post("/v1/completions", body)
    if not param:  # a text and tokens may stand beside each other
        assert response.status_code == 200
        return
    assert says in refused(response, 400, param)["message"]


CHATS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "messages", "messages is missing; give it"),
    ({"messages": []}, "messages", "the conversation has no messages"),
    ({"messages": "hello"}, "messages", "valid list"),
    ({"messages": ["hello"]}, "messages[0]", "valid dictionary"),
    ({"messages": [{}]}, "messages[0].role", "messages[0].role is missing"),
    ({"messages": [{"role": "wizard", "content": "a"}]}, "messages[0].role", "is 'wizard'; give one of system"),
    ({"messages": [*USER, {"role": "tool", "content": "a"}]}, "messages[1].role", "tools are not supported"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "messages[0].content is missing"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages", "messages[0].content is neither a text nor"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "[0] is not text"),
    ({"messages": [{"role": "assistant", "content": "a", "tool_calls": [{}]}]}, "messages[0].tool_calls", "supported"),
    ({"messages": [{"role": "user", "content": "a" * 3000}]}, "messages", "context is 256 tokens long"),
    ({"messages": USER, "max_tokens": 0}, "max_tokens", "max_tokens is 0"),
    ({"messages": USER, "max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "differ; give one of them"),
    ({"messages": USER, "top_logprobs": 5}, "top_logprobs", "set logprobs to true"),
    ({"messages": USER, "logprobs": 5}, "logprobs", "valid boolean"),
    ({"messages": USER, "logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
    ({"messages": USER, "tools": [{"type": "function"}]}, "tools", "tools are not supported; leave it out"),
    ({"messages": USER, "response_format": {"type": "json_object"}}, "response_format", "only text can be asked for"),
    ({"messages": USER, "continue_final_message": True, "add_generation_prompt": True}, "continue_final_message", ""),
    ({"messages": USER, "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "a parameter of its own"),
    ({"messages": USER, "echo": True}, "echo", "echo is not supported"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param", "says"), CHATS, ids=lambda value: str(value)[:60])
def test_chats(server: Live, body: dict[str, Any], param: str, says: str) -> None:
    assert says in refused(server.post("/v1/chat/completions", body), 400, param)["message"]


def test_what_cannot_change_an_answer_is_taken(server: Live) -> None:
    body: dict[str, Any] = {"messages": USER, "max_tokens": 1}
    plain = server.post("/v1/chat/completions", {**body, "temperature": 0}).json()["choices"]
    for name in WITHOUT_EFFECT:
        told = server.post("/v1/chat/completions", {**body, "temperature": 0, name: "anything"})
        assert told.json()["choices"] == plain, name
    for name, (neutral, _) in REFUSED.items():
        for value in (None, *neutral):
            assert server.post("/v1/chat/completions", {**body, name: value}).status_code == 200, (name, value)
        refused(server.post("/v1/chat/completions", {**body, name: "anything"}), 400, name)


def test_every_field_stands_in_one_table() -> None:
    for body in (CompletionBody, ChatBody):
        assert not WITHOUT_EFFECT.keys() & body.model_fields.keys()
    assert not WITHOUT_EFFECT.keys() & REFUSED.keys()
    assert ChatBody.model_fields.keys() & REFUSED.keys() == set()
    assert CompletionBody.model_fields.keys() & REFUSED.keys() == {"echo"}
    page = (Path(__file__).parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")
    fields = {*WITHOUT_EFFECT, *REFUSED, *CompletionBody.model_fields, *ChatBody.model_fields} - {"model"}
    assert [name for name in sorted(fields) if f"`{name}`" not in page] == []


def test_a_body_that_does_not_come(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PATIENCE", 0.2)
    with live(model_folder) as server:

        def slowly() -> Iterator[bytes]:
            yield b'{"prompt": '
            time.sleep(0.6)
            yield b'"a"}'

        response = server.http.post(
            server.url + "/completions", content=slowly(), headers={"content-type": "application/json"}
        )
        assert "did not come within" in refused(response, 408)["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b"nonsense",
        b"\xff\xfe",
        b'{"prompt": "\\ud800"}',
        b"[" * 100000,
        b'{"a":' * 100000,
        b'{"prompt": ' + b"9" * 5000 + b"}",
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "temperature": 1e999}',
    ],
    ids=lambda body: repr(body[:20]),
)
def test_bodies_that_are_none(server: Live, body: bytes) -> None:
    response = server.http.post(server.url + "/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    refused(response, 400, "temperature" if b"temperature" in body else None)


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_what_a_page_may_send_without_asking_is_not_taken(server: Live, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    response = server.http.post(server.url + "/completions", content=b'{"prompt": "a"}', headers=headers)
    assert refused(response, 415)["code"] == "unsupported_media_type"
    assert server.http.options(server.url + "/completions").status_code == 405


def test_paths_and_methods_that_are_none(server: Live) -> None:
    assert "/v1" in refused(server.get("/v1/nothing"), 404)["message"]
    refused(server.get("/v1/models/"), 404, "model")
    assert "takes POST, not GET" in refused(server.get("/v1/completions"), 405)["message"]
    assert server.get("/v1/completions").headers["allow"] == "POST"
    refused(server.http.delete(server.root + "/health"), 405)
    refused(server.post("/tokenize", {}), 400, "prompt")
    refused(server.post("/tokenize", {"prompt": "a", "messages": USER}), 400, "prompt")
    refused(server.post("/detokenize", {"tokens": "a"}), 400, "tokens")
    refused(server.post("/detokenize", {"tokens": [1], "model": "x"}), 404, "model")


def test_a_mistake_of_ours_is_an_error_too(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with live(model_folder) as server:
        monkeypatch.setattr(server.serving.tokenizer, "encode", lambda text, special: 1 / 0)
        assert refused(server.post("/tokenize", {"prompt": "a"}), 500)["code"] == "internal_error"
        assert server.get("/health").status_code == 200


@pytest.fixture(scope="module")
def locked(model_folder: Path) -> Iterator[Live]:
    with live(model_folder, keys=("sesame", "open"), most_body=2000, origins=("https://example.org",)) as found:
        yield found


def test_only_a_key_lets_in(locked: Live) -> None:
    body = {"prompt": "a", "max_tokens": 1}
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic sesame"}, {"authorization": "x"}):
        response = locked.post("/v1/completions", body, headers=headers)
        assert refused(response, 401)["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
    for key in locked.keys:
        assert locked.post("/v1/completions", body, headers={"authorization": f"Bearer {key}"}).status_code == 200
    for path in ("/v1/chat/completions", "/tokenize", "/detokenize"):
        refused(locked.post(path, body), 401)
    refused(locked.get("/v1/models"), 401)
    refused(locked.get(f"/v1/models/{NAME}"), 401)
    for path in ("/", "/health", "/version", "/metrics"):
        assert locked.get(path).status_code == 200
    with pytest.raises(openai.AuthenticationError):
        locked.client(api_key="wrong").models.list()
    assert locked.client().models.list().data[0].id == NAME


def test_a_long_body_is_not_read(locked: Live) -> None:
    headers = {"authorization": "Bearer sesame", "content-type": "application/json"}
    long = json.dumps({"prompt": "a" * 3000}).encode()
    response = locked.http.post(locked.url + "/completions", content=long, headers=headers)
    assert "longer than 2000 bytes" in refused(response, 413)["message"]
    pieces = (b" " * 1000 for _ in range(100))  # without a length, in chunks
    assert refused(locked.http.post(locked.url + "/completions", content=pieces, headers=headers), 413)["code"]
    with pytest.raises(openai.APIStatusError) as error:
        locked.client().completions.create(model=NAME, prompt="a" * 20_000_000)
    assert error.value.status_code == 413
    assert locked.client().completions.create(model=NAME, prompt="a", max_tokens=1).usage is not None


def test_a_stated_length_alone_is_enough_to_be_refused(locked: Live) -> None:
    host, port = locked.root.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer open\r\n"
            b"Content-Type: application/json\r\nContent-Length: 99999999999999\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_pages_of_an_origin_that_is_let_in_may_ask(locked: Live, server: Live) -> None:
    ask = {"origin": "https://example.org", "access-control-request-method": "POST"}
    ask["access-control-request-headers"] = "authorization,content-type"
    allowed = locked.http.options(locked.url + "/completions", headers=ask)
    assert allowed.headers["access-control-allow-origin"] == "https://example.org"
    other = locked.http.options(locked.url + "/completions", headers={**ask, "origin": "https://example.com"})
    assert "access-control-allow-origin" not in other.headers
    assert locked.get("/health", headers=ask).headers["access-control-allow-origin"] == "https://example.org"
    refusal = locked.get("/v1/models", headers=ask)  # whose reason the page must be able to read
    assert (refusal.status_code, refusal.headers["access-control-allow-origin"]) == (401, "https://example.org")
    assert "access-control-allow-origin" not in server.get("/health", headers=ask).headers


def test_a_model_without_a_template_has_no_chats(model_folder: Path) -> None:
    with live(model_folder, template=None) as server:
        error = refused(server.post("/v1/chat/completions", {"messages": USER}), 400, "messages")
        assert error["code"] == "no_chat_template"
        assert "ask /v1/completions" in error["message"]
        assert server.get("/v1/models").json()["data"][0]["chat"] is False


def test_one_too_many_is_told_to_come_again(model_folder: Path) -> None:
    with live(model_folder, Limits(batch=1, waiting=2)) as server, held(server.serving) as let:
        client = server.client()
        body = {"prompt": "a", "max_tokens": 3, "stream": True}
        with (
            server.http.stream("POST", server.url + "/completions", json=body) as first,
            server.http.stream("POST", server.url + "/completions", json=body) as second,
        ):
            let(1)
            until(lambda: server.service.statistics.running == 1)
            assert first.status_code == second.status_code == 200
            with pytest.raises(openai.RateLimitError) as error:
                client.completions.create(model=NAME, prompt="a", n=2)
            assert error.value.response.headers["retry-after"] == "1"
            assert error.value.code == "too_many_requests"
            let(100)
            assert first.read().endswith(b"data: [DONE]\n\n")
            assert second.read().endswith(b"data: [DONE]\n\n")
        until(server.idle)
        let(10)
        assert client.completions.create(model=NAME, prompt="a", n=2).usage is not None
