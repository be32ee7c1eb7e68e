"""Options that several commands share, so that each is spelled and explained once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
Decorator = Callable[[Decorated], Decorated]

DTYPES = ("fp32", "bf16", "fp16")
"""How a command line spells the dtypes that a model may be kept or run in."""

SAFETENSORS_DTYPES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
"""The same, as safetensors and a manifest spell them."""


def tp(default: int | None = 1) -> Decorator[Any]:
    """`--tp`: ways that each layer's matrices are cut."""
    return click.option(
        "--tp",
        type=click.IntRange(min=1),
        default=default,
        show_default=default is not None,
        metavar="N",
        help="Tensor parallel size: each layer's matrices are cut N ways.",
    )


def pp(default: int | None = 1) -> Decorator[Any]:
    """`--pp`: runs that the layers are divided into."""
    return click.option(
        "--pp",
        type=click.IntRange(min=1),
        default=default,
        show_default=default is not None,
        metavar="N",
        help="Pipeline parallel size: the layers are divided into N runs.",
    )


def dtype(help: str, default: str | None = None) -> Decorator[Any]:  # noqa: A002 (click's own word)
    """`--dtype`: fp32, bf16 or fp16; what for, `help` says."""
    return click.option(
        "--dtype", type=click.Choice(DTYPES), default=default, show_default=default is not None, help=help
    )


def force() -> Decorator[Any]:
    """`--force`: replace what the destination holds."""
    return click.option("--force", is_flag=True, help="Replace the destination when it exists.")


def json() -> Decorator[Any]:
    """`--json`, as the argument `as_json`: the result for programs."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def dry_run() -> Decorator[Any]:
    """`--dry-run`: print the plan and write nothing."""
    return click.option("--dry-run", is_flag=True, help="Print what would be written, and write nothing.")


def device() -> Decorator[Any]:
    """`--device`: where the model runs; `auto` is the first GPU, or else the CPU."""
    return click.option(
        "--device",
        default="auto",
        show_default=True,
        metavar="DEVICE",
        help="Where to run: auto (a GPU when there is one), cpu, cuda, cuda:1, mps.",
    )
