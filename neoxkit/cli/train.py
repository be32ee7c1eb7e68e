"""neoxkit train: train a model, or go on training."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from neoxkit.cli.config import FILES, SET
from neoxkit.cli.launching import Launching, check, launching, start_away

if TYPE_CHECKING:
    from neoxkit.config.run import RunConfig
    from neoxkit.config.tree import Tree
    from neoxkit.train.launch.environment import Place
    from neoxkit.train.launch.local import Share


@click.command()
@FILES
@SET
@click.option("--dry-run", is_flag=True, help="Print the plan of the run and what would be started; train nothing.")
@launching
@click.pass_context
def command(
    ctx: click.Context, files: tuple[str, ...], overrides: tuple[str, ...], dry_run: bool, asked: Launching
) -> None:
    """Train the model that FILES describe, merged in order.

    The same command again goes on from the newest checkpoint in `save.folder`. Ctrl-C saves and
    stops; twice, it stops at once. Prints the folder of the last checkpoint.

    Alone it starts a process for each GPU, or, without GPUs, as many as the mesh states. Under
    torchrun, srun, mpirun, jsrun or flux it joins the processes that were started. --launcher
    starts it on several machines.
    """
    from neoxkit.config.load import load_tree, validate
    from neoxkit.train.launch.environment import settle
    from neoxkit.train.launch.local import run, share_of, this_machine

    place = settle(os.environ)
    check(asked, place, this_machine(os.environ) is not None)
    tree = load_tree(files, overrides)
    config = validate(tree)
    tell(tree, place)
    program = program_of(ctx, files, overrides)
    if asked.launcher or asked.sbatch:
        if dry_run and not asked.sbatch:
            show_plan(config, tree)
        ctx.exit(start_away(asked, config, program, dry_run))
    share = share_of(config, asked.nproc, place, os.environ, asked.max_restarts > 0)
    if dry_run:
        show_plan(config, tree)
        show_start(share, place, program)
    elif share is not None:
        follow_parent()
        ctx.exit(run(program, share, restarts=asked.max_restarts))
    else:
        ctx.exit(train_here(ctx, config, tree, place))


def tell(tree: Tree, place: Place | None) -> None:
    """What there is to know of the files, on stderr, once for all ranks."""
    from neoxkit.log import note
    from neoxkit.train.launch.environment import CHILD

    if CHILD not in os.environ and (place is None or place.rank == 0):
        for line in tree.notes:
            note(line)


def program_of(ctx: click.Context, files: tuple[str, ...], overrides: tuple[str, ...]) -> tuple[str, ...]:
    """The command line of one rank: this one without what says where ranks are started."""
    debug = ("--debug",) if isinstance(ctx.obj, dict) and ctx.obj.get("debug") else ()
    settings = tuple(word for each in overrides for word in ("--set", each))
    return (sys.executable, "-u", "-m", "neoxkit", "train", *debug, *settings, "--", *files)


def show_plan(config: RunConfig, tree: Tree) -> None:
    """Print the plan of a run."""
    from neoxkit.train.plan import plan

    for name, value in plan(config, tree.values).items():
        click.echo(f"{name:<22} {value}")


def show_start(share: Share | None, place: Place | None, program: tuple[str, ...]) -> None:
    """Print the command of each rank that would be started here."""
    import shlex

    from neoxkit.train.launch.local import free_port

    if share is None:
        click.echo(f"{'processes':<22} {place or '1, this one'}")
        return
    port = share.port or free_port()
    for index in range(share.count):
        told = share.environment(index, port)
        line = shlex.join([*(f"{name}={value}" for name, value in told.items()), *program])
        click.echo(f"{f'rank {share.first + index}':<22} {line}")


def follow_parent() -> None:
    """Let what started this process, by neoxkit's own ways, end it by its own death."""
    from neoxkit.train.launch.commands import NODES
    from neoxkit.train.launch.environment import CHILD
    from neoxkit.train.launch.local import end_with

    if CHILD in os.environ:
        end_with(int(os.environ[CHILD]))
    elif NODES in os.environ:
        end_with(None)


def train_here(ctx: click.Context, config: RunConfig, tree: Tree, place: Place | None) -> int:
    """Train, as the only process of the run or as one rank of it; the exit code."""
    from neoxkit.train.launch.local import leave

    follow_parent()
    if place is not None and place.world > 1 and isinstance(ctx.obj, dict):
        ctx.obj["leave"] = leave
    with last_words():
        from neoxkit.train.loop import train

        outcome = train(config, tree.values)
    if place is None or place.rank == 0:
        click.echo(outcome.checkpoint)
    if place is not None and place.world > 1:
        meet()
    return outcome.code


def meet() -> None:
    """Wait for the other ranks: one that has left is one that has failed, to those that still work."""
    import torch.distributed

    torch.distributed.barrier()


@contextmanager
def last_words() -> Iterator[None]:
    """Tell the process that started this one what it ends with."""
    from neoxkit.cli import explain
    from neoxkit.train.launch.local import say

    try:
        yield
    except Exception as error:
        say(explain(error) or traceback.format_exception_only(error)[-1].strip())
        raise
