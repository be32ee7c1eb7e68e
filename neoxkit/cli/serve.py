"""neoxkit serve: a model behind OpenAI's API."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from neoxkit.checkpoint.store import Place
from neoxkit.cli import options
from neoxkit.cli.running import Running, running
from neoxkit.errors import ConfigError
from neoxkit.log import note, warn

if TYPE_CHECKING:
    from socket import socket

    from neoxkit.serve.start import Serving

LOOPBACK = ("127.", "::1", "localhost")
"""How hosts begin that only this machine reaches."""


@dataclass(frozen=True)
class Offer:
    """What is served to whom, as the command line says it."""

    host: str
    port: int
    names: tuple[str, ...]
    keys: tuple[str, ...]
    most_body: int
    origins: tuple[str, ...]
    grace: float
    access_log: bool


@click.command()
@click.argument("source", type=options.PLACE)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="NAME", help="Where to listen.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    metavar="N",
    help="The port; 0 takes a free one.",
)
@click.option(
    "--served-model-name",
    "names",
    multiple=True,
    metavar="NAME",
    help="What the model is called; several times for several names. SOURCE's own when left out.",
)
@click.option(
    "--api-key",
    "keys",
    multiple=True,
    envvar="NEOXKIT_API_KEY",
    metavar="KEY",
    help="A key that lets in; several times, or in NEOXKIT_API_KEY, divided by spaces. Without one all are let in.",
)
@click.option(
    "--max-body", default="4MB", show_default=True, metavar="SIZE", help="The longest body of a request: 500KB, 4MB."
)
@click.option(
    "--allow-origin",
    "origins",
    multiple=True,
    metavar="URL",
    help="An origin whose web pages may ask, as https://example.org; several times; * for all.",
)
@click.option(
    "--grace",
    type=options.Finite(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="What open answers may take when the server is told to stop.",
)
@click.option("--access-log", is_flag=True, help="Print a line for each request, on standard error.")
@click.option(
    "--max-waiting",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    metavar="N",
    help="Answers that may wait for their turn; who asks for more is told to come again (429).",
)
@running
@click.pass_context
def command(
    ctx: click.Context,
    source: Place,
    max_body: str,
    max_waiting: int,
    asked: Running,
    **given: Any,
) -> None:
    """Serve a model by OpenAI's API, and a page to try it.

    SOURCE is a checkpoint, a run's folder (its newest checkpoint) or anything that `neoxkit import`
    takes. SIGTERM or Ctrl-C lets open answers finish; twice, it stops at once. docs/serving.md says
    what is answered.
    """
    offer = Offer(**given, most_body=options.size_in_bytes(max_body))
    check(offer)

    from neoxkit.serve.http.server import listen
    from neoxkit.serve.ranks import variables

    follows = variables(os.environ) and int(os.environ.get("RANK", "0")) > 0
    with (
        nullcontext() if follows else listen(offer.host, offer.port) as listening,  # before a model is loaded in vain
        asked.open(source, max_waiting) as serving,
    ):
        assert listening is not None, "only the first rank comes here"
        ctx.exit(serve(ctx, serving, listening, offer))


def check(offer: Offer) -> None:
    """Raise ConfigError for what cannot be served so; warn of what anyone may use."""
    if any(not key or not key.isascii() or not key.isprintable() or " " in key for key in offer.keys):
        raise ConfigError("a key of the API is empty, or has characters that no header carries", "give another one")
    if any(not name for name in offer.names):
        raise ConfigError("a name of the model is empty", "give another --served-model-name")
    if not offer.keys and not offer.host.startswith(LOOPBACK):
        warn(f"without an --api-key, whoever reaches {offer.host} can use the model")


def serve(ctx: click.Context, serving: Serving, listening: socket, offer: Offer) -> int:
    """Answer until a signal; the exit code."""
    from neoxkit.data.tokenizer.template import ChatTemplate
    from neoxkit.serve.http import server
    from neoxkit.serve.http.app import Api, Settings
    from neoxkit.serve.http.defaults import stated_defaults
    from neoxkit.serve.http.metrics import Metrics
    from neoxkit.serve.service import Service

    folder = serving.tokenizer.path.parent
    settings = Settings(
        names=offer.names or (serving.name,),
        template=ChatTemplate.of(folder),
        defaults=stated_defaults(folder),
        keys=offer.keys,
        most_body=offer.most_body,
        origins=offer.origins,
    )
    if settings.defaults:
        told = ", ".join(f"{name} {value:g}" for name, value in settings.defaults.items())
        note(f"defaults of the model's generation_config.json: {told}")
    metrics = Metrics(settings.names[0])
    service = Service(serving, metrics)
    metrics.watch(service)
    app = Api(service, settings, metrics).app()
    ready = f"serving {settings.names[0]} at {server.url(listening)}"
    if offer.access_log:
        server.log_access()
    with service:
        signal = server.Server(app, service, offer.grace, lambda: note(ready), offer.access_log).answer(listening)
        if not service.close():
            from neoxkit.train.launch.local import leave

            ctx.obj["leave"] = leave  # the engine is in the middle of a pass, which nobody waits for
    return 128 + signal if signal else 0
