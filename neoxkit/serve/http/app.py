"""The endpoints: what each path takes and gives."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from neoxkit import __version__
from neoxkit.data.tokenizer.template import ChatTemplate
from neoxkit.serve.http import errors
from neoxkit.serve.http.answers import Answers
from neoxkit.serve.http.asks import Ask, Asker
from neoxkit.serve.http.defaults import OPENAI
from neoxkit.serve.http.errors import ApiError
from neoxkit.serve.http.exchange import Bell, EventStream, Exchange, Gone
from neoxkit.serve.http.limits import MOST_BODY, Keys, Refusal, TooLargeError, read_json
from neoxkit.serve.http.metrics import CONTENT_TYPE, Metrics
from neoxkit.serve.http.schema import ChatBody, CompletionBody, DetokenizeBody, TokenizeChat, TokenizeText, read
from neoxkit.serve.http.tokens import TokenTexts
from neoxkit.serve.service import Service

logger = logging.getLogger("neoxkit.serve")

CLIENT_GONE = 499
"""What the metrics say of a request whose client did not wait, as nginx does; nobody is sent it."""

PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
)
"""What a browser lets the page do: run what is in it, and ask this server."""

Endpoint = Callable[[Request], Awaitable[ASGIApp]]


@dataclass(frozen=True, slots=True)
class Settings:
    """What is served, and to whom: the names of the model (the first is the one that is told), its chat template, how
    tokens are chosen where a request does not say, the keys that let in, the longest body in bytes, and the origins
    whose pages may ask."""

    names: tuple[str, ...]
    template: ChatTemplate | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    keys: Sequence[str] = ()
    most_body: int = MOST_BODY
    origins: Sequence[str] = ()


class Api:
    """The endpoints of one service."""

    def __init__(self, service: Service, settings: Settings, metrics: Metrics) -> None:
        self.service, self.settings, self.metrics = service, settings, metrics
        self._asker = Asker(service.serving, settings.template, {**OPENAI, **settings.defaults})
        self._texts = TokenTexts(service.serving.tokenizer)
        self._bell = Bell()
        self._created = int(time.time())
        self._page = files("neoxkit.serve.http").joinpath("page.html").read_text(encoding="utf-8")

    def app(self) -> ASGIApp:
        """The application."""
        open_, locked = Keys(()), Keys(self.settings.keys)
        routes = [
            Route("/", _guarded(self.page, open_)),
            Route("/health", _guarded(self.health, open_)),
            Route("/version", _guarded(self.version, open_)),
            Route("/metrics", _guarded(self.show_metrics, open_)),
            Route("/v1/models", _guarded(self.models, locked)),
            Route("/v1/models/{model:path}", _guarded(self.model, locked)),
            Route("/v1/completions", _guarded(self.completions, locked), methods=["POST"]),
            Route("/v1/chat/completions", _guarded(self.chat, locked), methods=["POST"]),
            Route("/tokenize", _guarded(self.tokenize, locked), methods=["POST"]),
            Route("/detokenize", _guarded(self.detokenize, locked), methods=["POST"]),
        ]
        cors = Middleware(
            CORSMiddleware, allow_origins=list(self.settings.origins), allow_methods=["*"], allow_headers=["*"]
        )
        app = Starlette(
            routes=routes,
            middleware=[cors] if self.settings.origins else [],
            exception_handlers={HTTPException: errors.of_http, ApiError: errors.of_api},
        )
        app.router.redirect_slashes = False
        return Counted(app, self.metrics, {route.path for route in routes})

    async def page(self, request: Request) -> Response:
        """The page on which the model can be tried."""
        return HTMLResponse(self._page, headers={"content-security-policy": PAGE_POLICY})

    async def health(self, request: Request) -> Response:
        """Whether requests are answered."""
        state = "failed" if self.service.failure is not None else "stopping" if self.service.draining else "ok"
        return JSONResponse({"status": state}, 200 if state == "ok" else 503)

    async def version(self, request: Request) -> Response:
        """neoxkit's."""
        return JSONResponse({"version": __version__})

    async def show_metrics(self, request: Request) -> Response:
        """For Prometheus."""
        return Response(self.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def models(self, request: Request) -> Response:
        """The one model, under each of its names."""
        return JSONResponse({"object": "list", "data": [self._card(name) for name in self.settings.names]})

    async def model(self, request: Request) -> Response:
        """It by one of its names."""
        name = request.path_params["model"]
        self._check_model(name)
        return JSONResponse(self._card(name))

    async def completions(self, request: Request) -> ASGIApp:
        """A text is continued."""
        body = read(CompletionBody, await read_json(request, self.settings.most_body))
        self._check_model(body.model)
        return await self._answer(request, body, await asyncio.to_thread(self._asker.completions, body))

    async def chat(self, request: Request) -> ASGIApp:
        """A conversation goes on."""
        body = read(ChatBody, await read_json(request, self.settings.most_body))
        self._check_model(body.model)
        return await self._answer(request, body, await asyncio.to_thread(self._asker.chat, body))

    async def tokenize(self, request: Request) -> Response:
        """The tokens of a text or a conversation."""
        given = await read_json(request, self.settings.most_body)
        kind: type[TokenizeText] | type[TokenizeChat] = TokenizeChat if "messages" in given else TokenizeText
        body = read(kind, given)
        self._check_model(body.model)
        if isinstance(body, TokenizeText):
            ids = await asyncio.to_thread(self._asker.text_ids, body.prompt, body.add_special_tokens is not False)
        else:
            ids = await asyncio.to_thread(self._asker.template_ids, body, bool(body.add_special_tokens))
        found: dict[str, Any] = {"count": len(ids), "max_model_len": self.service.serving.engine.context}
        found["tokens"] = list(ids)
        found["token_strs"] = [self._texts.text(token) for token in ids] if body.return_token_strs else None
        return JSONResponse(found)

    async def detokenize(self, request: Request) -> Response:
        """The text of tokens, with those that are special."""
        body = read(DetokenizeBody, await read_json(request, self.settings.most_body))
        self._check_model(body.model)
        tokenizer = self.service.serving.tokenizer
        return JSONResponse({"prompt": await asyncio.to_thread(tokenizer.decode, body.tokens, special=True)})

    async def _answer(self, request: Request, body: CompletionBody | ChatBody, ask: Ask) -> ASGIApp:
        """The answer, whole or as a stream."""
        exchange = Exchange(self.service, self._bell, request, ask.questions, pieces=bool(body.stream))
        try:
            answers = Answers(body, ask, exchange.asked, body.model or self.settings.names[0], self._texts)
            await exchange.accepted()
            if body.stream:
                return EventStream(exchange, answers)
            await exchange.done()
        except BaseException as error:
            exchange.close()
            if isinstance(error, Gone):
                return Response(status_code=CLIENT_GONE)
            raise
        exchange.close()
        return JSONResponse(await asyncio.to_thread(answers.whole))

    def _check_model(self, name: str | None) -> None:
        """Raise ApiError for a model that is not served; one that is not named is the one that is."""
        if name is not None and name not in self.settings.names:
            raise ApiError(
                f"there is no model {name[:128]!r}; this server has {', '.join(self.settings.names)}",
                404,
                param="model",
                code="model_not_found",
            )

    def _card(self, name: str) -> dict[str, Any]:
        """What is told of the model: `max_model_len` as vLLM does, and whether it can be chatted with."""
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "neoxkit",
            "max_model_len": self.service.serving.engine.context,
            "chat": self.settings.template is not None,
        }


def _guarded(endpoint: Endpoint, keys: Keys) -> Endpoint:
    """An endpoint for those who have a key; a mistake of ours in it is logged, and told as an error."""

    @functools.wraps(endpoint)
    async def guarded(request: Request) -> ASGIApp:
        keys.check(request)
        try:
            return await endpoint(request)
        except TooLargeError as error:
            return Refusal(error)
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        except (ApiError, HTTPException):
            raise
        except Exception:  # whatever it is, the others go on
            logger.exception("%s %s failed", request.method, request.url.path)
            return errors.OURS.response()

    return guarded


class Counted:
    """Counts the responses of an application, by path and status; unknown paths are one."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: set[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if path.startswith("/v1/models/"):
            path = "/v1/models/{model:path}"
        known = path if path in self._paths else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.responded(known, message["status"])
            await send(message)

        await self._app(scope, receive, counted)
