"""Who may ask, and how much: keys, and the bodies of requests."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from neoxkit.serve.http.errors import ApiError

MOST_BODY = 4 * 2**20
"""Bytes of a request's body that are read, where nobody says otherwise."""

PATIENCE = 60.0
"""Seconds in which a body must have come."""

LINGER = 2.0
"""Seconds in which the rest of a body that is too long is thrown away, so that its sender reads why."""


class Keys:
    """The keys of an API; without any, whoever asks is let in."""

    def __init__(self, keys: Collection[str]) -> None:
        self._hashes = [_hash(key) for key in keys]

    def check(self, request: Request) -> None:
        """Raise ApiError unless the request has one of the keys. How long it takes tells nothing of them."""
        if not self._hashes:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        given = _hash(key.strip() if scheme.lower() == "bearer" else "")
        if not sum(hmac.compare_digest(given, each) for each in self._hashes):  # (all of them, each time)
            message = "no key was given" if not key else "this is no key of this server"
            raise ApiError(
                f"{message}; send one in the header `Authorization: Bearer KEY`",
                401,
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


async def read_json(request: Request, most: int) -> dict[str, Any]:
    """The JSON object of a request's body.

    Raises ApiError when it has more than `most` bytes, which are not read then, takes too long to come or is no JSON
    object; `ClientDisconnect` of starlette when its sender goes.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # what any page in a browser may send without asking is of another type
        raise ApiError(
            f"the body is {kind or 'of no type'}; send JSON, and the header `Content-Type: application/json`",
            415,
            code="unsupported_media_type",
        )
    stated = request.headers.get("content-length", "0")
    if stated.isascii() and stated.isdigit() and (len(stated) > 18 or int(stated) > most):
        raise TooLargeError(most)
    try:
        body = await asyncio.wait_for(_read(request, most), PATIENCE)
    except (asyncio.TimeoutError, TimeoutError):
        raise ApiError(f"the body did not come within {PATIENCE:.0f} s; send it again", 408) from None
    return parse(body)


async def _read(request: Request, most: int) -> bytes:
    pieces, length = [], 0
    async for piece in request.stream():
        length += len(piece)
        if length > most:
            raise TooLargeError(most)
        pieces.append(piece)
    return b"".join(pieces)


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is. Raises ApiError for anything else, and for half characters."""
    try:
        text = body.decode("utf-8")
        tree = json.loads(text)
        if "\\u" in text:
            json.dumps(tree, ensure_ascii=False).encode()  # half a character could be neither read nor written
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is not valid JSON ({error}); correct it", code="invalid_json") from None
    if not isinstance(tree, dict):
        raise ApiError("the body is not a JSON object; write it in braces", code="invalid_json")
    return tree


class TooLargeError(ApiError):
    """A body that is longer than it may be."""

    def __init__(self, most: int) -> None:
        super().__init__(
            f"the body is longer than {most} bytes; send less at once",
            413,
            code="request_too_large",
            headers={"connection": "close"},
        )


class Refusal:
    """The answer to a body that is too long: said at once, while what still comes of it is thrown away for a while."""

    def __init__(self, error: ApiError) -> None:
        self.error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        answer = self.error.response()
        await send({"type": "http.response.start", "status": answer.status_code, "headers": answer.raw_headers})
        await send({"type": "http.response.body", "body": bytes(answer.body), "more_body": True})
        with suppress(asyncio.TimeoutError, TimeoutError):
            await asyncio.wait_for(_discard(receive), LINGER)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive) -> None:
    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        pass
