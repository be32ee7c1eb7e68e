"""Options that several commands share, so that each is spelled and explained once."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import click

from neoxkit.checkpoint.store import Place, StorePath, place
from neoxkit.errors import ConfigError

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
Decorator = Callable[[Decorated], Decorated]

DTYPES = ("fp32", "bf16", "fp16")
"""How a command line spells the dtypes that a model may be kept or run in."""

SAFETENSORS_DTYPES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
"""The same, as safetensors and a manifest spell them."""


class PlaceType(click.ParamType):
    """A path, or the URL of a folder in an object store."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:
        """The place. Nothing is looked up."""
        return place(value)


PLACE = PlaceType()


class FolderType(PlaceType):
    """A folder of a disk, for a command that no object store can do."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:
        """The folder. Raises ConfigError for a URL."""
        found = super().convert(value, param, ctx)
        if isinstance(found, StorePath):
            raise ConfigError(f"{value}: not a folder of a disk", "name a folder, or copy it to one first")
        return found


FOLDER = FolderType()


class Size(click.ParamType[int]):
    """A number of bytes: 1000000, 64M, 2G (powers of 1024)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of bytes."""
        if isinstance(value, int):
            return value
        digits, power = value, 0
        if value[-1:].upper() in ("K", "M", "G", "T"):
            digits, power = value[:-1], "KMGT".index(value[-1].upper()) + 1
        if not digits.isascii() or not digits.isdigit() or int(digits) == 0:
            self.fail(f"{value!r} is not a size such as 1000000, 64M or 2G", param, ctx)
        return int(digits) << (10 * power)


class Finite(click.FloatRange):
    """A number in a range; `nan` and `inf`, which no range keeps out, are refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


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


def ep() -> Decorator[Any]:
    """`--ep`: ways that experts are divided."""
    return click.option(
        "--ep",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        metavar="N",
        help="Expert parallel size: the experts are divided N ways. Only a model that has experts can be.",
    )


def assume() -> Decorator[Any]:
    """`--assume`, several times: see `assumptions`."""
    return click.option(
        "--assume",
        multiple=True,
        metavar="KEY=VALUE",
        help="What a foreign model's files leave open, such as rope-factor=8; may be given several times.",
    )


def settings() -> Decorator[Any]:
    """`--config`, several times: the settings of a gpt-neox checkpoint."""
    return click.option(
        "--config",
        multiple=True,
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Settings (YAML) of a gpt-neox checkpoint, over its own; may be given several times, the last counts.",
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


def whole_or_nothing(function: Decorated) -> Decorated:
    """Let a command whose `destination` appears by one rename say, when it is interrupted, whether it did."""

    @wraps(function)
    def told(*args: Any, destination: Place, **rest: Any) -> Any:
        before = _identity(destination)
        try:
            with stopped_in_order(destination) as stopped:
                return function(*args, destination=destination, **rest)
        except KeyboardInterrupt:
            now = destination.again() if isinstance(destination, StorePath) else destination
            same = _identity(now) == before
            became = "nothing was written" if same else f"{destination} is written, and whole"
            if stopped:
                click.echo(f"error: interrupted; {became}", err=True)
                raise SystemExit(128 + stopped[0]) from None
            raise KeyboardInterrupt(became) from None

    return cast(Decorated, told)


@contextmanager
def stopped_in_order(destination: Place) -> Iterator[list[int]]:
    """Let SIGTERM interrupt a command that writes to a store: what it has sent is removed then. Yields the signals.

    On a disk the next command removes what one leaves; in a store nobody sees it, and it costs money.
    """
    if not isinstance(destination, StorePath):
        yield []
        return
    with terminated_as_interrupted() as signals:
        yield signals


@contextmanager
def terminated_as_interrupted() -> Iterator[list[int]]:
    """Let SIGTERM interrupt a command as Ctrl-C does. Yields the signals that came."""
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def stop(number: int, frame: object) -> NoReturn:
        signals.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield signals
    finally:
        signal.signal(signal.SIGTERM, before)


def _identity(path: Place) -> object:
    """What tells a folder from one that takes its place; None when there is none."""
    if isinstance(path, StorePath):
        return path.identity()
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def safetensors_dtype(dtype: str | None) -> str | None:
    """What `--dtype` gave, as safetensors spells it."""
    return None if dtype is None else SAFETENSORS_DTYPES[dtype]


def assumptions(given: Sequence[str]) -> dict[str, str]:
    """What `--assume KEY=VALUE` gave, by key. Raises ConfigError for what is not of this form, or given twice."""
    found: dict[str, str] = {}
    for each in given:
        key, equals, value = each.partition("=")
        if not (key and equals and value) or key in found:
            raise ConfigError(f"--assume {each}: not KEY=VALUE, or given twice", "write it as --assume rope-factor=8")
        found[key] = value
    return found


def size_in_bytes(text: str) -> int:
    """Bytes of "500MB" or "5GB" (powers of 1000). Raises ConfigError for anything else."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    number, unit = text[:-2], text[-2:].upper()
    if unit not in units or not number.replace(".", "", 1).isdigit() or float(number) <= 0:
        raise ConfigError(f"{text!r} is no size", "write it as 500MB or 5GB")
    return int(float(number) * units[unit])


def require(module: str, extra: str) -> None:
    """Raise ConfigError unless a module of an extra is installed."""
    if find_spec(module) is None:
        raise ConfigError(f"{module} is not installed", f"pip install 'neoxkit[{extra}]'")


def print_plan(files: Mapping[str, int]) -> None:
    """What would be written, a line a file."""
    for path, size in files.items():
        click.echo(f"{size:>16,}  {path}")
    click.echo(f"{sum(files.values()):>16,}  bytes of tensors in {len(files)} files; nothing was written")


def print_checkpoint(folder: Place) -> None:
    """What was written: the folder and the fingerprint of its model."""
    from neoxkit.checkpoint.reader import Checkpoint

    click.echo(f"{folder}: model {Checkpoint.open(folder).fingerprint}")


def spelled_dtype(name: str) -> str:
    """A dtype that safetensors has a name for, as `--dtype` spells it."""
    return next((ours for ours, theirs in SAFETENSORS_DTYPES.items() if theirs == name), name.lower())
