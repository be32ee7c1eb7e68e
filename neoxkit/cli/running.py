"""The options of commands that run a model in an engine, and the engine that they ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neoxkit.checkpoint.store import Place
from neoxkit.cli import options

if TYPE_CHECKING:
    from neoxkit.serve.start import Serving


@dataclass(frozen=True)
class Running:
    """The options as they were given."""

    tokenizer: Path | None
    tp: int
    dtype: str | None
    device: str
    max_batch: int
    max_context: int | None
    cache_tokens: int | None
    step_tokens: int
    compile: bool
    assume: tuple[str, ...]
    config: tuple[Path, ...]

    def open(self, source: Place, waiting: int | None = None) -> Serving:
        """The engine over SOURCE, in which so many requests may wait. Raises as `serve.start.open_engine` does."""
        from neoxkit.serve.request import Limits
        from neoxkit.serve.start import open_engine

        queue = {} if waiting is None else {"waiting": waiting}
        limits = Limits(
            batch=self.max_batch,
            step_tokens=max(self.step_tokens, self.max_batch),  # each answer gets its token in each pass
            context=self.max_context,
            cache_tokens=self.cache_tokens,
            **queue,
        )
        return open_engine(
            source,
            self.tokenizer,
            options.safetensors_dtype(self.dtype),
            self.device,
            self.tp,
            limits,
            self.compile,
            options.assumptions(self.assume),
            self.config,
        )


COUNT = click.IntRange(min=1)

OPTIONS = (
    click.option("--tokenizer", type=click.Path(path_type=Path), help="The tokenizer; SOURCE's own when left out."),
    options.tp(),
    options.dtype(
        "Run in this precision; that of the weights when left out. A CPU without instructions for half precision "
        "keeps weights of 16 bits, and computes in fp32."
    ),
    options.device(),
    click.option("--max-batch", type=COUNT, default=32, show_default=True, metavar="N",
                 help="Answers that are worked on at once."),
    click.option("--max-context", type=click.IntRange(min=2), metavar="N",
                 help="The longest text in tokens, prompt and answer; the model's context when left out."),
    click.option("--cache-tokens", type=COUNT, metavar="N",
                 help="Tokens that the key/value cache holds; when left out --max-batch texts, or as many as fit into "
                 "memory."),
    click.option("--step-tokens", type=COUNT, default=512, show_default=True, metavar="N",
                 help="Tokens of one pass at most: a longer prompt is read in several, and holds nobody up."),
    click.option("--compile", is_flag=True, help="On a GPU: record the passes that decode as CUDA graphs."),
    options.assume(),
    options.settings(),
)  # fmt: skip


def running(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of running a model, as the argument `asked`."""

    @wraps(function)
    def collected(*args: Any, **given: Any) -> Any:
        asked = Running(**{field.name: given.pop(field.name) for field in fields(Running)})
        return function(*args, asked=asked, **given)

    for option in reversed(OPTIONS):
        collected = option(collected)
    return collected
