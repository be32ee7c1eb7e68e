"""Between the coroutine that answers a request and the engine's thread, for as long as the client is there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from neoxkit.errors import NeoxkitError
from neoxkit.serve.asking import Asked, Question
from neoxkit.serve.http.answers import Answers
from neoxkit.serve.http.errors import ApiError, from_service
from neoxkit.serve.service import Service

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
"""Nothing between here and the client shall keep or gather what is streamed."""


class Gone(Exception):  # noqa: N818 (what the client is)
    """The client has closed its connection."""


class Bell:
    """Wakes the coroutines whose answers have grown: the engine's thread rings once for all of a tick."""

    def __init__(self) -> None:
        self._events: dict[Asked, asyncio.Event] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def hang(self, asked: Asked) -> asyncio.Event:
        """What is set when there is something to take; called by the loop's own thread."""
        self._loop = asyncio.get_running_loop()
        event = self._events[asked] = asyncio.Event()
        return event

    def forget(self, asked: Asked) -> None:
        """Nobody waits any more."""
        self._events.pop(asked, None)

    def ring(self, asked: Collection[Asked]) -> None:
        """Called by the engine's thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                self._loop.call_soon_threadsafe(self._wake, list(asked))

    def _wake(self, asked: list[Asked]) -> None:
        for each in asked:
            if (event := self._events.get(each)) is not None:
                event.set()


class Exchange:
    """What a request has asked. When it is closed, or its client goes, nobody works on it any more."""

    def __init__(
        self, service: Service, bell: Bell, request: Request, questions: Collection[Question], pieces: bool
    ) -> None:
        """Ask; with `pieces`, what grows is wanted as it does.

        Raises ApiError when nothing new is answered, or there is no room.
        """
        self._service, self._bell = service, bell
        try:
            self.asked = service.ask(tuple(questions), bell.ring, pieces)
        except NeoxkitError as error:
            raise from_service(error) from None
        self._event = bell.hang(self.asked)
        self._gone = asyncio.create_task(_until_gone(request.receive))
        self._gone.add_done_callback(lambda _: self._event.set())

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it."""
        self._bell.forget(self.asked)
        self._service.cancel(self.asked)
        self._gone.cancel()

    async def accepted(self) -> None:
        """Wait until the engine has taken it up. Raises ApiError when it does not, Gone."""
        while not self.asked.accepted:
            await self.grown()

    async def done(self) -> None:
        """Wait until nothing more comes. Raises ApiError when that is for an error, Gone."""
        while not self.asked.done:
            await self.grown()
        self._check()

    async def grown(self) -> None:
        """Wait until there is something to take. Raises ApiError when nothing comes any more, Gone."""
        await self._event.wait()
        self._event.clear()
        if self._gone.done():
            raise Gone
        self._check()

    def _check(self) -> None:
        if self.asked.error is not None:
            raise from_service(self.asked.error)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream:
    """An answer as it grows, by server-sent events. The exchange is closed when it ends, however that is.

    What has grown while the client did not read is one piece.
    """

    def __init__(self, exchange: Exchange, answers: Answers) -> None:
        self._exchange, self._answers = exchange, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        with self._exchange as exchange, suppress(Gone):
            await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
            await _send(send, self._answers.first_chunks())
            try:
                while not exchange.asked.done:
                    await exchange.grown()
                    await _send(send, self._answers.chunks())
                await exchange.done()
                await _send(send, [*self._answers.chunks(), *self._answers.last_chunks()])
            except ApiError as error:
                await _send(send, [*self._answers.chunks(), error.body()])
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


async def _send(send: Send, chunks: Iterable[Any]) -> None:
    body = b"".join(
        b"data: " + json.dumps(each, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n" for each in chunks
    )
    if body:
        await send({"type": "http.response.body", "body": body, "more_body": True})
