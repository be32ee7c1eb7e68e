"""The server itself: where it listens, and how it ends."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from neoxkit.errors import ConfigError
from neoxkit.log import counted, note
from neoxkit.serve.service import Service

BACKLOG = 2048
"""Connections that may wait to be accepted."""

KEEP_ALIVE = 65
"""Seconds that a connection is kept on which nothing is asked: longer than balancers keep theirs, commonly 60."""

LOOK = 0.05
"""Seconds between looks at whether it is time."""

LAST = 5
"""Seconds after the grace in which errors, too, must have reached their readers."""


def listen(host: str, port: int) -> socket.socket:
    """A socket at a host's name or address and a port; 0 takes a free one. Nobody is let in yet.

    Raises ConfigError when there is no such host here, or the port cannot be had.
    """
    try:
        known = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE) if host else []
        family, kind, protocol, _, address = known[0]
    except (socket.gaierror, UnicodeError, IndexError):
        raise ConfigError(f"there is no host {host!r}", "give one of this machine's names or addresses") from None
    found = socket.socket(family, kind, protocol)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(address)
        found.listen(BACKLOG)  # or another could still bind it, too
    except OSError as error:
        found.close()
        raise ConfigError(
            f"cannot listen at {host} port {port}: {(error.strerror or str(error)).lower()}",
            "give another --host" if error.errno == errno.EADDRNOTAVAIL else "give another --port, or 0 for a free one",
        ) from None
    return found


def url(listening: socket.socket) -> str:
    """What a program on this machine asks."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


class Server(uvicorn.Server):
    """uvicorn's, which ends when its service does, and ends answers before it ends connections."""

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        grace: float,
        ready: Callable[[], None] = lambda: None,
        access_log: bool = False,
    ) -> None:
        """`ready` is called when the server answers; open answers get `grace` seconds when it is to end."""
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level=None,
            access_log=access_log,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=int(grace) + LAST,
        )
        super().__init__(config)
        self._service, self._grace, self._ready = service, grace, ready
        self.cut_by = 0

    def answer(self, listening: socket.socket) -> int:
        """Answer until a signal, or until the engine fails; the signal that cut answers off, else 0.

        SIGINT or SIGTERM: nobody new is let in, and what is open may take the grace; the second one ends it at once.
        Raises what the engine died of.
        """
        self.run(sockets=[listening])
        if self._service.failure is not None:
            raise self._service.failure
        return self.cut_by

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        self._ready()

    async def on_tick(self, counter: int) -> bool:
        """Several times a second: whether it is over."""
        return self._service.failure is not None or await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let what is open finish; when the grace is over, whoever still waits is told so."""
        self._service.drain()
        if self._service.load:
            note(f"finishing {counted(self._service.load, 'answer')}, for at most {self._grace:g} s")
        hurrying = asyncio.create_task(self._hurry())
        await super().shutdown(sockets)
        hurrying.cancel()
        self._abort()  # those of readers who do not read

    async def _hurry(self) -> None:
        """End the answers when the grace is over, and connections too at a second signal."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._grace
        while loop.time() < until and not self.force_exit:
            await asyncio.sleep(LOOK)
        if self._service.load:
            note(f"{counted(self._service.load, 'answer')} cut off")
        self._service.cut()
        while not self.force_exit:
            await asyncio.sleep(LOOK)
        self._abort()

    def _abort(self) -> None:
        for connection in list(self.server_state.connections):
            if (transport := getattr(connection, "transport", None)) is not None:
                transport.abort()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """What a signal does: the first asks for the end, the second does not wait for it."""
        if self.should_exit:
            self.cut_by = sig
            self.force_exit = True
        self.should_exit = True
        self._service.drain()


def log_access() -> None:
    """Have a line for each request on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("uvicorn.access")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
