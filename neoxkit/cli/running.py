"""The options of commands that run a model in an engine, and the engine that they ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neoxkit.checkpoint.store import Place
from neoxkit.cli import options

if TYPE_CHECKING:
    from neoxkit.serve.request import Limits
    from neoxkit.serve.start import Serving


@dataclass(frozen=True)
class ModelOptions:
    """The options that say which model it is and what it runs on, as they were given."""

    tokenizer: Path | None
    tp: int
    dtype: str | None
    device: str
    max_context: int | None
    cache_tokens: int | None
    assume: tuple[str, ...]
    config: tuple[Path, ...]

    def opening(self, source: Place, limits: Limits, compile: bool = False) -> Callable[[], Serving]:  # noqa: A002
        """What opens an engine over SOURCE within limits. It raises as `serve.start.open_engine` does."""
        from neoxkit.serve.start import open_engine

        return partial(
            open_engine,
            source,
            self.tokenizer,
            options.safetensors_dtype(self.dtype),
            self.device,
            self.tp,
            replace(limits, context=self.max_context, cache_tokens=self.cache_tokens),
            compile,
            options.assumptions(self.assume),
            self.config,
        )


@dataclass(frozen=True)
class Running(ModelOptions):
    """The same, and how an engine works that answers people."""

    max_batch: int
    step_tokens: int
    compile: bool

    def open(self, source: Place, waiting: int | None = None) -> Serving:
        """The engine over SOURCE, in which so many requests may wait. Raises as `serve.start.open_engine` does."""
        from neoxkit.serve.request import Limits

        queue = {} if waiting is None else {"waiting": waiting}
        step = max(self.step_tokens, self.max_batch)  # each answer gets its token in each pass
        return self.opening(source, Limits(batch=self.max_batch, step_tokens=step, **queue), self.compile)()


COUNT = click.IntRange(min=1)

Option = options.Decorator[Any]

MODEL: dict[str, Option] = {
    "tokenizer": click.option(
        "--tokenizer", type=click.Path(path_type=Path), help="The tokenizer; SOURCE's own when left out."
    ),
    "tp": options.tp(),
    "dtype": options.dtype(
        "Run in this precision; that of the weights when left out. A CPU without instructions for half precision "
        "keeps weights of 16 bits, and computes in fp32."
    ),
    "device": options.device(),
    "max_context": click.option(
        "--max-context",
        type=click.IntRange(min=2),
        metavar="N",
        help="The longest text in tokens, prompt and answer; the model's context when left out.",
    ),
    "cache_tokens": click.option(
        "--cache-tokens",
        type=COUNT,
        metavar="N",
        help="Tokens that the key/value cache holds; when left out as many as texts are worked on at once, or as many "
        "as fit into memory.",
    ),
    "assume": options.assume(),
    "config": options.settings(),
}

ENGINE: dict[str, Option] = {
    "max_batch": click.option(
        "--max-batch",
        type=COUNT,
        default=32,
        show_default=True,
        metavar="N",
        help="Answers that are worked on at once.",
    ),
    "step_tokens": click.option(
        "--step-tokens",
        type=COUNT,
        default=512,
        show_default=True,
        metavar="N",
        help="Tokens of one pass at most: a longer prompt is read in several, and holds nobody up.",
    ),
    "compile": click.option("--compile", is_flag=True, help="On a GPU: record the passes that decode as CUDA graphs."),
}


def running(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of running a model for people, as the argument `asked`, a Running."""
    order = ("tokenizer", "tp", "dtype", "device", "max_batch", "max_context", "cache_tokens", "step_tokens", "compile")
    return _collected(function, Running, {name: (MODEL | ENGINE)[name] for name in (*order, "assume", "config")})


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of running a model, as the argument `asked`, a ModelOptions."""
    return _collected(function, ModelOptions, MODEL)


def _collected(
    function: Callable[..., Any], kind: type[ModelOptions], wanted: Mapping[str, Option]
) -> Callable[..., Any]:
    @wraps(function)
    def collected(*args: Any, **given: Any) -> Any:
        return function(*args, asked=kind(**{name: given.pop(name) for name in wanted}), **given)

    for option in reversed(list(wanted.values())):
        collected = option(collected)
    return collected
