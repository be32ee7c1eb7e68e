"""64 clients at once: answers, cancels, slow readers, malformed and oversized requests, wrong keys.

NEOXKIT_LOAD_SECONDS says for how long (12).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

SECONDS = float(os.environ.get("NEOXKIT_LOAD_SECONDS", "12"))
CLIENTS = 64
PROMPTS = 40
KEY = "sesame"
MOST_BODY = 100_000
LEAK = 24e6  # bytes that memory may differ by: what an allocator keeps

Act = Callable[[], Awaitable[None]]


@pytest.fixture
def process(model_folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of its own process, so that its memory is its own, and its address."""
    options = ["--port", "0", "--dtype", "fp32", "--device", "cpu", "--api-key", KEY, "--max-body", "100KB"]
    options += ["--max-batch", "16", "--max-waiting", "60", "--step-tokens", "128"]
    program = [sys.executable, "-m", "neoxkit", "serve", str(model_folder), *options]
    found = subprocess.Popen(program, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        assert found.stderr is not None
        line = found.stderr.readline()
        address = re.search(r"(http://\S+)/v1", line)
        assert address is not None, line
        yield found, address[1]
    finally:
        found.kill()
        found.communicate()


@dataclass
class Crowd:
    """The clients, and what became of what they asked."""

    http: httpx.AsyncClient
    root: str
    wanted: dict[int, str]
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    done: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def body(self, number: int, **more: Any) -> dict[str, Any]:
        """A request whose answer is known."""
        return {"prompt": prompt(number), "max_tokens": 30, "temperature": 0, "ignore_eos": True, **more}

    async def answer(self) -> None:
        """A whole answer."""
        number = self.chance.randrange(PROMPTS)
        began = time.monotonic()
        response = await self.http.post("/v1/completions", json=self.body(number))
        if response.status_code == 429:
            await self.full(response)
            return
        assert response.status_code == 200, response.text
        self.seconds.append(time.monotonic() - began)
        assert response.json()["choices"][0]["text"] == self.wanted[number]

    async def full(self, response: httpx.Response) -> None:
        """There is no room: as it should be said."""
        assert response.headers["retry-after"] == "1"
        assert json.loads(await response.aread())["error"]["code"] == "too_many_requests"
        self.done["429"] += 1
        await asyncio.sleep(0.05)

    async def stream(self, pause: float = 0.0) -> None:
        """An answer in pieces."""
        number = self.chance.randrange(PROMPTS)
        texts = ["", ""]
        body = self.body(number, stream=True, n=2)
        async with self.http.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code == 429:
                await self.full(response)
                return
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    choice = json.loads(line[6:])["choices"][0]
                    texts[choice["index"]] += choice["text"]
                    await asyncio.sleep(pause)
        assert texts == [self.wanted[number]] * 2

    async def read_slowly(self) -> None:
        """An answer in pieces, each after a while."""
        await self.stream(0.02)

    async def score(self) -> None:
        """The scores of a prompt, as an evaluation asks for them."""
        number = self.chance.randrange(PROMPTS)
        body = {"prompt": prompt(number), "max_tokens": 1, "echo": True, "logprobs": 5, "temperature": 0}
        response = await self.http.post("/v1/completions", json=body)
        if response.status_code == 429:
            await self.full(response)
            return
        choice = response.json()["choices"][0]
        assert len(choice["logprobs"]["tokens"]) - len(prompt(number)) in (0, 1)

    async def leave(self) -> None:
        """Gone after some pieces, or before the first."""
        body = self.body(self.chance.randrange(PROMPTS), max_tokens=200, stream=True, n=3)
        pieces = self.chance.randrange(6)
        async with self.http.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code == 429:
                await self.full(response)
                return
            async for _ in response.aiter_lines():
                pieces -= 1
                if pieces < 0:
                    return

    async def lose_patience(self) -> None:
        """Gone before a whole answer comes."""
        body = self.body(self.chance.randrange(PROMPTS), max_tokens=220)
        try:
            await asyncio.wait_for(self.http.post("/v1/completions", json=body), self.chance.uniform(0.001, 0.05))
        except (asyncio.TimeoutError, TimeoutError):
            return

    async def refused(self) -> None:
        """What is wrong in one of many ways; each time it is said."""
        json_type = {"content-type": "application/json"}
        wrong: list[tuple[int, dict[str, Any]]] = [
            (400, {"content": b'{"prompt": ', "headers": json_type}),
            (400, {"content": self.chance.randbytes(200), "headers": json_type}),
            (400, {"json": {"prompt": 5}}),
            (400, {"json": {"prompt": "a", "temperature": -1}}),
            (400, {"json": {"prompt": [5] * 300}}),
            (404, {"json": {"prompt": "a", "model": "other"}}),
            (413, {"content": b" " * (MOST_BODY + 1), "headers": json_type}),
            (415, {"content": b"{}"}),
            (401, {"json": self.body(0), "headers": {"authorization": "Bearer wrong"}}),
        ]
        status, given = self.chance.choice(wrong)
        response = await self.http.post("/v1/completions", **given)
        assert response.status_code == status, (given, response.text)
        assert response.json()["error"]["message"]

    async def talk_nonsense(self) -> None:
        """No HTTP at all, or a request that never ends, and gone."""
        host, port = self.root.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head = ("POST /v1/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}", "Content-Length: 999")
        started = "\r\n".join([*head, "Content-Type: application/json", "", "{"]).encode()
        writer.write(self.chance.choice([b"\x16\x03\x01nonsense\r\n\r\n", started]))
        await writer.drain()
        writer.close()

    async def go_on(self, until: float) -> None:
        """One client, until it is time."""
        acts: list[tuple[Act, int]] = [
            (self.answer, 30),
            (self.stream, 15),
            (self.score, 10),
            (self.read_slowly, 5),
            (self.leave, 10),
            (self.lose_patience, 10),
            (self.refused, 15),
            (self.talk_nonsense, 5),
        ]
        while time.monotonic() < until:
            (act,) = self.chance.choices([act for act, _ in acts], [weight for _, weight in acts])
            await act()
            self.done[act.__name__] += 1


def prompt(number: int) -> list[int]:
    """One of the prompts, of which some begin alike."""
    return [70 + number % 4] * (5 + number % 3 * 20) + [100 + number]


async def press(root: str, memory: Callable[[], float]) -> tuple[Crowd, float, dict[str, float]]:
    """Let the crowd at a server; it, the bytes that memory grew by, and the last gauges."""
    limits = httpx.Limits(max_connections=None)
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=root, headers=headers, limits=limits, timeout=60, verify=False) as http:
        crowd = Crowd(http, root, {})
        for number in range(PROMPTS):
            told = await http.post("/v1/completions", json=crowd.body(number))
            crowd.wanted[number] = told.json()["choices"][0]["text"]

        async def rush(seconds: float) -> None:
            until = time.monotonic() + seconds
            await asyncio.gather(*(crowd.go_on(until) for _ in range(CLIENTS)))

        await rush(SECONDS / 3)
        await at_rest(http)
        before = memory()
        crowd.seconds.clear()
        await rush(SECONDS * 2 / 3)
        gauges = await at_rest(http)
        return crowd, memory() - before, gauges


async def at_rest(http: httpx.AsyncClient) -> dict[str, float]:
    """Wait until nothing is open, and no page held; the gauges then."""
    for _ in range(200):
        text = (await http.get("/metrics")).text
        found = re.findall(r"^vllm:(num_requests_\w+|kv_cache\w+)\{.*\} (\S+)", text, re.MULTILINE)
        gauges = {name: float(value) for name, value in found}
        if not any(gauges.values()):
            return gauges
        await asyncio.sleep(0.05)
    raise AssertionError(f"it does not come to rest: {gauges}")


@pytest.mark.slow
def test_a_crowd(process: tuple[subprocess.Popen[str], str]) -> None:
    server, root = process

    def memory() -> float:
        text = Path(f"/proc/{server.pid}/smaps_rollup").read_text()
        return float(re.findall(r"^Private_Dirty: +(\d+) kB", text, re.M)[0]) * 1024

    crowd, grown, gauges = asyncio.run(press(root, memory))
    waited = sorted(crowd.seconds)
    p50, p99 = (waited[int(len(waited) * share)] for share in (0.5, 0.99))
    print(f"\n{sum(crowd.done.values())} requests in {SECONDS:g} s: {dict(crowd.done)}")
    print(f"30 tokens: p50 {p50:.3f} s, p99 {p99:.3f} s; memory {grown / 1e6:+.1f} MB")
    assert len(gauges) == 3
    assert all(crowd.done[act.__name__] > 5 for act in (crowd.answer, crowd.stream, crowd.leave, crowd.refused))
    assert grown < LEAK
    assert server.poll() is None
    server.send_signal(signal.SIGTERM)
    assert server.wait(30) == 0
    assert server.stderr is not None
    said = set(server.stderr.read().splitlines())
    assert said <= {"Invalid HTTP request received."}
