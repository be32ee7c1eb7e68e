"""How answers and servers end: clients that leave or do not read, shutdowns of all kinds, an engine that dies."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from served import LIMITS, LONG, NAME, Live, connect, held, live, until

from neoxkit.parallel.world import ContactError
from neoxkit.serve.http import server as module


def received(connection: socket.socket, end: bytes) -> bytes:
    """All that comes until it ends so."""
    data = b""
    while not data.endswith(end):
        piece = connection.recv(65536)
        assert piece, data
        data += piece
    return data


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("waits", [True, False])
def test_a_client_that_leaves_is_noticed_at_once(model_folder: Path, stream: bool, waits: bool) -> None:
    """While its answer is made, and while it waits for its turn and no token could tell."""
    limits = LIMITS if not waits else type(LIMITS)(batch=1, waiting=8)
    with live(model_folder, limits) as server, held(server.serving) as let:
        staying = connect(server, {**LONG, "max_tokens": 5})
        until(lambda: server.service.statistics.waiting == 1)
        leaving = connect(server, {**LONG, "n": 3, "stream": stream})
        until(lambda: server.service.statistics.waiting == 4)
        let(1)
        until(lambda: server.service.statistics.running == (1 if waits else 4))
        leaving.close()
        until(lambda: server.service.load == 1)
        until(lambda: server.service.statistics.running == 1)
        let(100)
        assert received(staying, b"}}}").count(b'"finish_reason":"length"') == 1
        staying.close()
        until(server.idle)


def test_a_reader_that_does_not_read_holds_nobody_up(model_folder: Path) -> None:
    """What has grown meanwhile comes as one piece; another's answer is not late for it."""
    with live(model_folder) as server, held(server.serving) as let:
        # Logprobs of 20 tokens make an answer of many times what sockets and buffers hold.
        slow = connect(server, {**LONG, "stream": True, "n": 8, "logprobs": 20, "echo": True}, buffer=2048)
        until(lambda: server.service.statistics.waiting == 8)
        for connection in server.server.server_state.connections:
            connection.transport.set_write_buffer_limits(1024)
            connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
        let(10_000)
        assert server.client().completions.create(model=NAME, prompt="x", max_tokens=100).usage is not None
        until(server.idle)  # the engine is done with it, though most was not sent
        data = received(slow, b"data: [DONE]\n\n\r\n0\r\n\r\n")
        slow.close()
        events = [json.loads(line[6:]) for line in data.split(b"\r\n\r\n", 1)[1].splitlines() if line[:7] == b"data: {"]
        choices = [event["choices"][0] for event in events]
        whole = server.post("/v1/completions", {**LONG, "logprobs": 20, "echo": True}).json()["choices"][0]
        for index in range(8):
            mine = [choice for choice in choices if choice["index"] == index]
            assert "".join(choice["text"] for choice in mine) == whole["text"]
            assert [token for choice in mine for token in choice["logprobs"]["tokens"]] == whole["logprobs"]["tokens"]
            assert [choice["finish_reason"] for choice in mine][-1] == "length"
        assert len(events) < 8 * 100


def test_what_is_open_is_finished_before_the_end(model_folder: Path) -> None:
    with live(model_folder) as server, held(server.serving) as let:
        streamed, whole = connect(server, {**LONG, "stream": True}), connect(server, LONG)
        until(lambda: server.service.statistics.waiting == 2)
        let(5)
        until(lambda: server.service.statistics.new_tokens == 10)
        server.stop()
        until(lambda: not listens(server))
        let(1000)
        assert received(streamed, b"data: [DONE]\n\n\r\n0\r\n\r\n").count(b'"finish_reason":"length"') == 1
        assert b'"finish_reason":"length"' in received(whole, b"}}}")
        streamed.close()
        whole.close()
        server.thread.join(10)
        assert not server.thread.is_alive()
        assert server.server.cut_by == 0


def listens(server: Live) -> bool:
    host, port = server.root.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def test_while_it_ends_nothing_new_is_begun(model_folder: Path) -> None:
    with live(model_folder) as server:
        server.service.drain()
        assert server.get("/health").status_code == 503
        assert server.get("/health").json() == {"status": "stopping"}
        with pytest.raises(openai.InternalServerError) as error:
            server.client().completions.create(model=NAME, prompt="a")
        assert (error.value.status_code, error.value.code) == (503, "shutting_down")
        assert server.get("/metrics").status_code == 200


def test_after_the_grace_whoever_waits_is_told(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with live(model_folder, grace=0.3) as server, held(server.serving) as let:
        streamed, whole = connect(server, {**LONG, "stream": True}), connect(server, LONG)
        until(lambda: server.service.statistics.waiting == 2)
        let(3)
        until(lambda: server.service.statistics.new_tokens == 6)
        began = time.monotonic()
        server.stop()
        end = received(streamed, b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert b'data: {"error":{"message":"the server was stopped before the answer was finished' in end
        assert received(whole, b"}}").startswith(b"HTTP/1.1 503")
        streamed.close()
        whole.close()
        server.thread.join(10)
        assert not server.thread.is_alive()
        assert 0.3 <= time.monotonic() - began < 5
    assert "finishing 2 answers, for at most 0.3 s\n2 answers cut off\n" in capsys.readouterr().err


def test_the_second_signal_ends_it_at_once(model_folder: Path) -> None:
    with live(model_folder, grace=60) as server, held(server.serving) as let:
        slow = connect(server, {**LONG, "stream": True})
        until(lambda: server.service.statistics.waiting == 1)
        let(2)
        until(lambda: server.service.statistics.new_tokens == 2)
        server.stop()
        time.sleep(0.3)
        assert server.thread.is_alive()
        server.stop()
        server.thread.join(5)
        assert not server.thread.is_alive()
        assert server.server.cut_by == 15
        slow.close()


def test_a_reader_who_never_reads_does_not_stop_the_end(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LAST", 1)
    with live(model_folder, grace=0) as server:
        slow = connect(server, {**LONG, "stream": True, "n": 8, "logprobs": 20}, buffer=2048)
        until(lambda: server.service.statistics.new_tokens > 0)
        until(server.idle, 20)
        server.stop()
        server.thread.join(10)
        assert not server.thread.is_alive()
        slow.close()


@pytest.mark.parametrize("error", [ContactError("rank 1 is gone", "look at it"), RuntimeError("a mistake of ours")])
def test_when_the_engine_dies_everyone_is_told_and_the_server_ends(model_folder: Path, error: Exception) -> None:
    with live(model_folder) as server, held(server.serving) as let:
        streamed, whole = connect(server, {**LONG, "stream": True}), connect(server, LONG)
        until(lambda: server.service.statistics.waiting == 2)
        let(3)
        until(lambda: server.service.statistics.new_tokens == 6)

        def die() -> Any:
            raise error

        server.serving.engine.tick = die  # type: ignore[method-assign]
        end = received(streamed, b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert b'data: {"error":{"message":"the engine has failed' in end
        assert (b"rank 1 is gone" in end) == isinstance(error, ContactError)
        assert received(whole, b"}}").startswith(b"HTTP/1.1 500")
        server.thread.join(10)
        assert not server.thread.is_alive()
        assert server.service.failure is error
        streamed.close()
        whole.close()


def test_health_tells_of_a_dead_engine(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with live(model_folder) as server:
        assert server.get("/health").json() == {"status": "ok"}

        async def never(self: Any, counter: int) -> bool:
            return bool(self.should_exit)

        monkeypatch.setattr(module.Server, "on_tick", never)  # so that it can be asked
        monkeypatch.setattr(server.serving.engine, "tick", lambda: 1 / 0)
        with pytest.raises(openai.InternalServerError):
            server.client().completions.create(model=NAME, prompt="a")
        assert (server.get("/health").status_code, server.get("/health").json()) == (503, {"status": "failed"})
        with pytest.raises(openai.InternalServerError) as error:
            server.client().completions.create(model=NAME, prompt="a")
        assert error.value.status_code == 503


def test_many_requests_on_one_connection(model_folder: Path) -> None:
    with live(model_folder) as server, httpx.Client(base_url=server.root) as one:
        for count in (1, 3, 1):
            body = {"prompt": "a", "max_tokens": count, "ignore_eos": True}
            assert one.post("/v1/completions", json=body).json()["usage"]["completion_tokens"] == count
            assert one.post("/v1/completions", json={}).status_code == 400
        assert len(server.server.server_state.connections) == 1


def test_each_asker_gets_its_own_answer(model_folder: Path) -> None:
    """Thirty at once, each with a prompt of its own, in a batch of eight."""
    with live(model_folder) as server:
        prompts = [[70 + number, 71, 72 + number % 5] for number in range(30)]
        body = {"max_tokens": 40, "temperature": 0, "ignore_eos": True}
        wanted = [
            server.post("/v1/completions", {**body, "prompt": prompt}).json()["choices"][0]["text"]
            for prompt in prompts
        ]
        found: dict[int, str] = {}

        def ask(number: int) -> None:
            with httpx.Client(timeout=60, verify=False) as one:
                answer = one.post(server.url + "/completions", json={**body, "prompt": prompts[number]})
                found[number] = answer.json()["choices"][0]["text"]

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [found[number] for number in range(30)] == wanted
