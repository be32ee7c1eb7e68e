"""The options of `neoxkit train` that say where its processes run, and what follows from them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neoxkit.errors import ConfigError

if TYPE_CHECKING:
    from neoxkit.config.run import RunConfig
    from neoxkit.train.launch.commands import Job
    from neoxkit.train.launch.environment import Place

NAMES = ("pdsh", "openmpi", "mpich", "impi", "mvapich", "slurm", "jsrun", "flux")
"""The launchers, as `--launcher` takes them. A test holds them to those of neoxkit.train.launch.commands."""


@dataclass(frozen=True)
class Launching:
    """The options as they were given."""

    nproc: int | None
    max_restarts: int
    launcher: str | None
    hostfile: Path | None
    include: str
    exclude: str
    num_nodes: int | None
    num_gpus: int | None
    master_addr: str | None
    master_port: int | None
    env: tuple[str, ...]
    launcher_args: str
    sbatch: Path | None


COUNT = click.IntRange(min=1)

OPTIONS = (
    click.option("--nproc", type=COUNT, metavar="N", help="Processes on each machine. When left out: one for each "
                 "GPU; without GPUs as many as the mesh states."),
    click.option("--max-restarts", type=click.IntRange(min=0), default=0, metavar="N",
                 help="Start again, from the newest checkpoint, up to N times after a failure of the machine or the "
                 "program. For runs on one machine."),
    click.option("--launcher", type=click.Choice(NAMES), help="Start the run on several machines, with this program."),
    click.option("--hostfile", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
                 help="The machines, a line `NAME slots=N` each."),
    click.option("--include", default="", metavar="HOSTS",
                 help="Of the hostfile only these: worker-0@worker-1:0,2 is all of one and two devices of the other."),
    click.option("--exclude", default="", metavar="HOSTS", help="Of the hostfile all but these."),
    click.option("--num-nodes", type=COUNT, metavar="N",
                 help="Machines: the first N of the hostfile, or N of the scheduler's."),
    click.option("--num-gpus", type=COUNT, metavar="N", help="GPUs, and processes, of each machine."),
    click.option("--master-addr", metavar="HOST", help="Where rank 0 is. When left out: the first machine."),
    click.option("--master-port", type=click.IntRange(1, 65535), metavar="PORT", help="Where rank 0 listens."),
    click.option("--env", multiple=True, metavar="NAME[=VALUE]",
                 help="A variable that every process is given; without a value that of this environment. May repeat."),
    click.option("--launcher-args", default="", metavar="ARGS",
                 help="Options for the launcher itself; with --sbatch lines of the script, such as --time=24:00:00."),
    click.option("--sbatch", type=click.Path(path_type=Path), metavar="FILE",
                 help="Write a batch script of this run for Slurm's sbatch, and train nothing."),
)  # fmt: skip

REMOTE = tuple(
    name for name in Launching.__dataclass_fields__ if name not in ("nproc", "max_restarts", "launcher", "sbatch")
)
"""Options that concern several machines only."""


def launching(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of launching, as the argument `asked`."""

    @wraps(function)
    def collected(*args: Any, **given: Any) -> Any:
        asked = Launching(**{field.name: given.pop(field.name) for field in fields(Launching)})
        return function(*args, asked=asked, **given)

    command: Callable[..., Any] = collected
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def spelled(name: str) -> str:
    """An option as it is typed."""
    return "--" + name.replace("_", "-")


def check(asked: Launching, place: Place | None, node: bool) -> None:
    """Raise ConfigError for options that contradict each other, or the job that this process is in."""
    away = asked.launcher or asked.sbatch
    if given := [spelled(name) for name in REMOTE if getattr(asked, name) and not away]:
        raise ConfigError(f"{given[0]} is for several machines, and --launcher is not given", "name the launcher")
    if away and asked.max_restarts:
        raise ConfigError("--max-restarts is for one machine", "let the scheduler start the job again")
    if asked.sbatch and asked.launcher not in (None, "slurm"):
        raise ConfigError(f"--sbatch with --launcher {asked.launcher}", "leave --launcher out: it is srun")
    if (asked.include or asked.exclude) and not asked.hostfile:
        raise ConfigError("--include and --exclude choose from a hostfile", "name it with --hostfile")
    if asked.nproc and (asked.hostfile or asked.num_gpus):
        raise ConfigError("--nproc, --num-gpus and the slots of a hostfile say the same", "give one of them")
    if place is None and not node:
        return
    where = f"this process is {place}" if place else "this process starts the ranks of a machine"
    if away or asked.max_restarts:
        option = "--launcher" if asked.launcher else "--sbatch" if asked.sbatch else "--max-restarts"
        raise ConfigError(f"{option} is given, and {where}", "give it where the job is started")
    if asked.nproc and place and not (place.alone and place.by != "neoxkit"):
        raise ConfigError(f"--nproc is given, and {where}", "leave it out, or start one process a machine")


def job(asked: Launching, config: RunConfig, program: tuple[str, ...]) -> Job:
    """The job on several machines that the options describe. Raises ConfigError when they are too few."""
    from neoxkit.train.launch.commands import COUNTS, SCHEDULED, Job, forwarded
    from neoxkit.train.launch.hosts import Host, read_hosts, select

    launcher = asked.launcher or "slurm"
    hosts: tuple[Host, ...] = ()
    if asked.hostfile:
        hosts = select(read_hosts(asked.hostfile), asked.include, asked.exclude, asked.num_nodes, asked.num_gpus)
    elif launcher in SCHEDULED:
        each = asked.num_gpus or asked.nproc
        if not (asked.num_nodes and each):
            raise ConfigError(f"{launcher} must know how many machines and processes", COUNTS)
        hosts = (Host("", tuple(range(each))),) * asked.num_nodes
    else:
        raise ConfigError(f"--launcher {launcher} needs --hostfile", "name the file with a line `NAME slots=N` each")
    exports = {} if launcher in SCHEDULED else forwarded(os.environ)
    found = Job(
        program=program,
        hosts=hosts,
        folder=str(Path.cwd()),
        address=asked.master_addr,
        port=asked.master_port,
        exports={**exports, **dict(map(_variable, asked.env))},
        extra=tuple(shlex.split(asked.launcher_args)),
        gpus=asked.num_gpus is not None and config.device != "cpu",
    )
    config.on(found.world)
    return found


def _variable(given: str) -> tuple[str, str]:
    """A variable of `--env` and its value."""
    name, equals, value = given.partition("=")
    if not name.isidentifier():
        raise ConfigError(f"--env {given}: not NAME or NAME=VALUE", "write it as --env NCCL_DEBUG=INFO")
    if equals:
        return name, value
    if name not in os.environ:
        raise ConfigError(f"--env {name}: it is not set here", f"give a value: --env {name}=VALUE")
    return name, os.environ[name]


def start_away(asked: Launching, config: RunConfig, program: tuple[str, ...], dry_run: bool) -> int:
    """Run the launcher's command, or write the batch script, or print what would be run; the exit code.

    Raises ConfigError when the launcher is not installed, or the script is there already.
    """
    from neoxkit.train.launch.batch_script import batch_script
    from neoxkit.train.launch.commands import by_machine, command
    from neoxkit.train.launch.remote import run_away

    wanted, launcher = job(asked, config, program), asked.launcher or "slurm"
    if asked.sbatch:
        text = batch_script(wanted, Path(config.save.folder).name or "neoxkit", wanted.extra)
        if dry_run:
            click.echo(text, nl=False)
            return 0
        try:
            with asked.sbatch.open("x", encoding="utf-8") as script:
                script.write(text)
        except FileExistsError:
            raise ConfigError(f"--sbatch {asked.sbatch}: it is there already", "remove it, or name another") from None
        size = f"{wanted.world} processes on {len(wanted.hosts)} machines"
        click.echo(f"{asked.sbatch}: {size}; run `sbatch {asked.sbatch}`")
        return 0
    start = command(launcher, wanted)
    if not dry_run:
        return run_away(launcher, start)
    click.echo(f"{launcher:<22} {start}")
    for name, line in by_machine(launcher, wanted):
        click.echo(f"{name:<22} {line}")
    return 0
