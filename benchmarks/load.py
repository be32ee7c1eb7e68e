"""Clients of a server with OpenAI's API, so many at once: what each of them waits for. For serving.py.

Run as a program, this takes one JSON object on standard input and answers with one on standard output:

    {"url": ..., "clients": N, "bodies": [...]}     bodies of POST /v1/completions, streamed

Each client takes the next body as soon as its answer is complete, until none is left. Told are the seconds of all, and
of each answer its text, its tokens (as the server counts them), the seconds to the first piece of text, and those
between any two pieces that follow each other.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import aiohttp

PATIENCE = 900.0
"""Seconds after which an answer is given up."""


async def answer(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> dict[str, Any]:
    """One answer. Raises RuntimeError when the server refuses, or ends it with an error."""
    pieces: list[str] = []
    times: list[float] = []
    tokens, ended = 0, False
    begun = time.perf_counter()
    async with session.post(f"{url}/v1/completions", json={**body, "stream": True}) as response:
        if response.status != 200:
            raise RuntimeError(f"{url}: {response.status}: {await response.text()}")
        async for line in response.content:
            told = line.removeprefix(b"data:").strip()
            if told == line.strip() or told == b"[DONE]":  # an empty line, a comment, the end
                continue
            event = json.loads(told)
            if "error" in event:
                raise RuntimeError(f"{url}: {event['error']}")
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
            for choice in event["choices"]:
                ended = ended or choice.get("finish_reason") is not None
                if choice.get("text"):
                    times.append(time.perf_counter())
                    pieces.append(choice["text"])
    if not (tokens and times and ended):
        raise RuntimeError(f"{url}: an answer broke off")
    gaps = [after - before for before, after in pairwise(times)]
    return {"text": "".join(pieces), "tokens": tokens, "first": times[0] - begun, "gaps": gaps}


async def client(
    session: aiohttp.ClientSession, url: str, bodies: Iterator[tuple[int, dict[str, Any]]], answers: dict[int, Any]
) -> None:
    """Ask until nothing is left to ask."""
    for number, body in bodies:
        answers[number] = await answer(session, url, body)


async def ask(url: str, clients: int, bodies: list[dict[str, Any]]) -> dict[str, Any]:
    """All clients."""
    answers: dict[int, Any] = {}
    left = iter(enumerate(bodies))
    limits = aiohttp.ClientTimeout(total=PATIENCE)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=limits) as session:
        begun = time.perf_counter()
        await asyncio.gather(*(client(session, url, left, answers) for _ in range(clients)))
        wall = time.perf_counter() - begun
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = used.ru_utime + used.ru_stime
    return {"wall": wall, "cpu": spent, "answers": [answers[number] for number in range(len(bodies))]}


if __name__ == "__main__":
    job = json.load(sys.stdin)
    try:
        found = asyncio.run(ask(job["url"], job["clients"], job["bodies"]))
    except (RuntimeError, aiohttp.ClientError, TimeoutError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    json.dump(found, sys.stdout)
