"""The command line: a group that imports a command only when it is called, and how errors look.

`neoxkit --help` imports click and nothing else. A command lives in `neoxkit/cli/NAME.py`, as the
click command or group called `command`.

Exit codes: 0 fine; 1 checked and found bad; 2 wrong usage or wrong input; 75 another process of a job was lost;
128 + N stopped by signal N (130: interrupted).
"""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from neoxkit import __version__
from neoxkit.errors import NeoxkitError

COMMANDS = {
    "data": ("neoxkit.cli.data", "Turn text into tokens to train on, and show what token files hold."),
    "train": ("neoxkit.cli.train", "Train the model that FILES describe, merged in order."),
    "plan": ("neoxkit.cli.plan", "Estimate what the run that FILES describe would need."),
    "report": ("neoxkit.cli.report", "Make a page of HTML of how a run went."),
    "import": ("neoxkit.cli.import_", "Make a checkpoint of a model that another program wrote."),
    "export": ("neoxkit.cli.export", "Make a Hugging Face model of a checkpoint."),
    "push": ("neoxkit.cli.push", "Publish a checkpoint on the Hugging Face Hub."),
    "reshard": ("neoxkit.cli.reshard", "Cut a checkpoint for another number of devices."),
    "inspect": ("neoxkit.cli.inspect", "Show what is in a checkpoint."),
    "verify": ("neoxkit.cli.verify", "Check that a checkpoint is whole and unaltered."),
    "diff": ("neoxkit.cli.diff", "Compare the weights of two checkpoints."),
    "gc": ("neoxkit.cli.gc", "Remove old checkpoints of a run."),
    "rebuild-manifest": ("neoxkit.cli.rebuild_manifest", "Make a lost or damaged manifest.json anew."),
    "generate": ("neoxkit.cli.generate", "Continue prompts, answer a file of them, or talk."),
    "serve": ("neoxkit.cli.serve", "Serve a model by OpenAI's API, and a page to try it."),
    "eval": ("neoxkit.cli.eval", "Run benchmarks, or measure bits per byte on texts."),
    "scores": ("neoxkit.cli.scores", "Show and compare the results of evaluations."),
    "config": ("neoxkit.cli.config", "Check, show, convert and explain the configuration of a run."),
}
"""For each command the module that holds it and the first line of its help, which the module has too."""

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE

REMEDIES = {
    errno.ENOSPC: "free some space, or write elsewhere",
    errno.EDQUOT: "free some of your quota, or write elsewhere",
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.EROFS: "write elsewhere",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "name a file",
    errno.EFBIG: "write elsewhere",
}


EXTRAS = {
    "transformers": "hf",
    "huggingface_hub": "hf",
    "deepspeed": "train",
    "lm_eval": "eval",
    "starlette": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "jinja2": "serve",
    "fsspec": "s3",
    "s3fs": "s3",
    "zstandard": "data",
    "pyarrow": "data",
    "sentencepiece": "data",
    "tiktoken": "data",
    "ftfy": "data",
    "datasets": "data",
    "matplotlib": "plot",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "comet_ml": "comet",
}
"""The extra of pyproject.toml that brings a module which the base installation does without."""


class Commands(click.Group):
    """The group of all commands, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order in which one meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, imported; None when there is none."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[cmd_name][0]).command
        command.name = cmd_name
        _accept_debug(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()], col_max=8)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first argument names. Raises NoSuchCommand with the nearest names."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.exceptions.NoSuchCommand(args[0], possibilities=COMMANDS, ctx=ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> int:
        """Run the command. Its result is its exit code alone: what it returns is dropped.

        An interrupt may say what became of the work: KeyboardInterrupt("nothing was written").
        """
        try:
            super().invoke(ctx)
            sys.stdout.flush()  # a full disk or a closed pipe must show here, not in the interpreter's last breath
        except BrokenPipeError:
            _forget_output()
            return BROKEN_PIPE
        except KeyboardInterrupt as interrupt:
            _forget_output()
            if sys.stderr.isatty():
                click.echo(err=True)  # the terminal has shown ^C on this line
            became = f"; {interrupt}" if interrupt.args else ""
            click.echo(f"error: interrupted{became}", err=True)
            return INTERRUPTED
        return 0

    def main(self, args: Sequence[str] | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Run a command line and exit. A user's mistake is one line on stderr, and 2.

        A command that must not end by way of the interpreter's teardown sets `session["leave"]`.
        """
        session: dict[str, Any] = {"debug": False, "leave": sys.exit}
        extra.update(standalone_mode=False, obj=session)
        try:
            code = super().main(args, **extra)
        except click.exceptions.NoArgsIsHelpError as bare:
            click.echo(bare.format_message(), err=True)
            code = 2
        except click.Abort as abort:
            if isinstance(abort.__cause__, EOFError):  # click takes it for the end of what a person types
                raise abort.__cause__ from None
            click.echo("error: interrupted", err=True)
            code = INTERRUPTED
        except Exception as error:
            line = explain(error)
            if line is not None and not session["debug"]:
                if isinstance(error, OSError):
                    _forget_output()
                click.echo(f"error: {line}", err=True)
                code = error.exit_code if isinstance(error, NeoxkitError) else 2
            elif session["leave"] is sys.exit:
                raise
            else:
                traceback.print_exc()
                code = 1
        session["leave"](code)
        raise AssertionError("nothing comes after this")


def explain(error: Exception) -> str | None:
    """One line that says what the user did wrong and how to mend it; None for a mistake of ours."""
    if isinstance(error, NeoxkitError):
        return str(error)
    if isinstance(error, click.ClickException):
        return _usage(error)
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename is not None else ""
        remedy = REMEDIES.get(error.errno or 0)
        return f"{error.strerror[:1].lower()}{error.strerror[1:]}{where}" + (f"; {remedy}" if remedy else "")
    if isinstance(error, ModuleNotFoundError) and (extra := EXTRAS.get((error.name or "").split(".")[0])):
        return f"{error.name} is not installed; pip install 'neoxkit[{extra}]'"
    return _out_of_memory(error)


def _out_of_memory(error: Exception) -> str | None:
    """A line about memory that was asked for and is not there, on a GPU or a CPU; None for another error."""
    text = " ".join(str(error).split())
    asked = re.search(r"tried to allocate ([0-9.]+ \w+)", text, re.IGNORECASE)
    # (Torch's own by name, since torch is not loaded by every command.)
    known = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
    if not known and not (isinstance(error, RuntimeError) and "can't allocate memory" in text):
        return None
    where = "the GPU's" if "CUDA" in text else "the computer's"
    wanted = f"{asked[1]} more were asked for" if asked else "more was asked for than there is"
    return f"{where} memory is full: {wanted}; lower batch.micro, or see `neoxkit plan` for what a run needs"


def _forget_output() -> None:
    """Send what stdout still holds nowhere, when it can not be written: the interpreter would try again and say so."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage(error: click.ClickException) -> str:
    """A mistake in the command line itself, and where the right usage is explained."""
    message = " ".join(error.format_message().split()).rstrip(".")
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    message = message[:1].lower() + message[1:]
    return f"{message}; see `{ctx.command_path} --help`" if ctx is not None else message


def _debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Remember, for `main`, that errors shall show where they were raised."""
    if value and isinstance(ctx.obj, dict):
        ctx.obj["debug"] = True


def _debug_option(hidden: bool) -> click.Option:
    return click.Option(
        ["--debug"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        hidden=hidden,
        callback=_debug,
        help="Show the traceback of an error.",
    )


def _accept_debug(command: click.Command) -> None:
    """Let `--debug` stand after the command's name too."""
    if not any("--debug" in param.opts for param in command.params):
        command.params.append(_debug_option(hidden=True))
    if isinstance(command, click.Group):
        for below in command.commands.values():
            _accept_debug(below)


main = Commands(
    name="neoxkit",
    help="Train, convert, inspect and run large language models around one sharded checkpoint.",
    epilog="`neoxkit COMMAND --help` explains a command.",
    no_args_is_help=True,
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=lambda ctx, param, value: _version(ctx) if value else None,
            help="Show the version.",
        ),
        _debug_option(hidden=False),
    ],
)


def _version(ctx: click.Context) -> NoReturn:
    click.echo(f"neoxkit {__version__}")
    ctx.exit()
