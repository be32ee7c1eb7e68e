"""A tiny model with a tokenizer and a chat template, and a live server of it on a free port."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
from tiny import Tiny

from neoxkit.data.tokenizer.template import ChatTemplate
from neoxkit.data.tokenizer.train import train_bpe
from neoxkit.serve.http.app import Api, Settings
from neoxkit.serve.http.metrics import Metrics
from neoxkit.serve.http.server import Server, listen, url
from neoxkit.serve.request import Limits
from neoxkit.serve.service import Service
from neoxkit.serve.start import Serving, open_engine

CONTEXT = 256
LIMITS = Limits(batch=8, waiting=64, step_tokens=64)
NAME = "tiny"

LONG: dict[str, Any] = {"prompt": "ab", "max_tokens": 200, "temperature": 0, "ignore_eos": True}
"""A completion that takes a while."""

TEMPLATE = (
    "{% for message in messages %}{% if message.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('no such role') }}{% endif %}"
    "<{{ message.role }}> {{ message.content }}\n{% endfor %}"
    "{% if shout is defined %}!{% endif %}{% if add_generation_prompt %}<assistant> {% endif %}"
)


def make_model(folder: Path, template: bool = True) -> Path:
    """A random model of 300 tokens, nearly all of them bytes, whose answers are therefore any bytes."""
    texts = [path.read_text() for path in sorted(Path(__file__).parent.glob("serve/*.py"))]
    train_bpe(texts, 300, folder)
    sizes = {"vocab_size": 300, "max_position_embeddings": CONTEXT, "bos_token_id": 0, "eos_token_id": 0}
    Tiny("llama", "gqa", {**sizes, "num_key_value_heads": 2}).model().save_pretrained(folder)
    (folder / "generation_config.json").write_text("{}")
    if template:
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@dataclass
class Live:
    """A server that runs."""

    url: str
    service: Service
    serving: Serving
    server: Server
    thread: threading.Thread
    keys: Sequence[str] = ()
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=60, verify=False))
    clients: list[Any] = field(default_factory=list)

    @property
    def root(self) -> str:
        """What comes before /v1."""
        return self.url.removesuffix("/v1")

    def client(self, **options: Any) -> openai.OpenAI:
        """OpenAI's own client, which does not try again by itself."""
        key = self.keys[0] if self.keys else "none"
        client = openai.OpenAI(base_url=self.url, **{"api_key": key, "max_retries": 0, "timeout": 60, **options})
        self.clients.append(client)
        return client

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        """The response to a JSON body."""
        return self.http.post(self.root + path, json=body, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        """The response to a GET."""
        return self.http.get(self.root + path, **options)

    def idle(self) -> bool:
        """Whether nothing is open, and no page held."""
        now = self.service.statistics
        return self.service.load == now.running == now.waiting == now.pages_used == 0

    def stop(self) -> None:
        """As a signal would."""
        self.server.handle_exit(15, None)


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for something that must become true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def connect(server: Live, body: dict[str, Any], buffer: int | None = None) -> socket.socket:
    """A connection on which a completion was asked for, and nothing was read."""
    host, port = server.root.removeprefix("http://").split(":")
    connection = socket.socket()
    server.clients.append(connection)  # which are closed in the end
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(20)
    connection.connect((host, int(port)))
    content = json.dumps(body).encode()
    lines = (
        "POST /v1/completions HTTP/1.1",
        "Host: x",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
    )
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + content)
    return connection


@contextmanager
def live(
    folder: Path,
    limits: Limits = LIMITS,
    keys: Sequence[str] = (),
    grace: float = 10.0,
    dtype: str | None = "F32",
    **settings: Any,
) -> Iterator[Live]:
    """A server of the model of a folder, in a thread."""
    with open_engine(folder, dtype=dtype, device="cpu", limits=limits) as serving:
        given = {"names": (NAME,), "template": ChatTemplate.of(folder), **settings}
        metrics = Metrics(NAME)
        service = Service(serving, metrics)
        metrics.watch(service)
        app = Api(service, Settings(keys=keys, **given), metrics).app()
        ready = threading.Event()
        server = Server(app, service, grace, ready.set)
        with service:
            listening = listen("127.0.0.1", 0)
            where = url(listening)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
            thread.start()
            assert ready.wait(30)
            found = Live(where, service, serving, server, thread, keys)
            try:
                yield found
            finally:
                for client in (found.http, *found.clients):
                    client.close()
                server.should_exit = True
                thread.join(30)
                assert not thread.is_alive()


@contextmanager
def held(serving: Serving) -> Iterator[Callable[[int], None]]:
    """The engine makes no pass but those that are let through, by a call with their number."""
    engine, permits = serving.engine, threading.Semaphore(0)
    tick = engine.tick

    def waiting() -> Any:
        if engine.idle or engine._cancelled or permits.acquire(timeout=0.005):  # what is given up needs no pass
            return tick()
        return []

    def let(count: int) -> None:
        for _ in range(count):
            permits.release()

    engine.tick = waiting  # type: ignore[method-assign]
    try:
        yield let
    finally:
        engine.tick = tick  # type: ignore[method-assign]
