"""The commands that start a job on many machines: pdsh, the four families of mpirun, srun, jsrun, flux.

What is started, and where, is as in deepspeed/launcher/multinode_runner.py (jsrun: DeeperSpeed's), and
tests compare them. Left out is what concerns MPI's own traffic (UCX_TLS=tcp, btl_tcp_if_include eth0,
MV2_*): MPI only starts the processes here, and torch.distributed talks. So processes ask no MPI where
they are: `environment` reads it from what their launcher sets.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from neoxkit.errors import ConfigError
from neoxkit.train.launch.environment import PORT
from neoxkit.train.launch.hosts import Host, spell

NODES, NODE = "NEOXKIT_NODES", "NEOXKIT_NODE"
"""For a process that starts those of its machine: all machines of the job, and which of them this is."""

FORWARDED = ("NCCL_", "GLOO_", "UCX_", "FI_", "MV2_", "OMP_", "TORCH_", "MLFLOW_", "PYTHON")
"""Variables that begin so go along to other machines. DeepSpeed's list, and torch's. Keys and passwords do not:
what is on a command line, every user of a machine can read."""

FAN_OUT = 1024
"""Machines that pdsh talks to at once, as DeepSpeed has it."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is started where.

    `program` is what each process runs; `hosts` have no names when a scheduler chooses them; `exports`
    go to every process; `extra` are options for the launcher itself; `gpus` asks the scheduler for as
    many GPUs as processes.
    """

    program: tuple[str, ...]
    hosts: tuple[Host, ...]
    folder: str
    address: str | None = None
    port: int | None = None
    exports: Mapping[str, str] = field(default_factory=dict)
    extra: tuple[str, ...] = ()
    gpus: bool = False

    @property
    def world(self) -> int:
        """Processes of the job."""
        return sum(len(host.devices) for host in self.hosts)

    @property
    def named(self) -> bool:
        """Whether the machines are known."""
        return bool(self.hosts[0].name)

    @property
    def each(self) -> int | None:
        """Processes of every machine; None when they differ."""
        counts = {len(host.devices) for host in self.hosts}
        return counts.pop() if len(counts) == 1 else None

    def variables(self) -> dict[str, str]:
        """What a launcher that knows nothing of torch.distributed must tell every process."""
        address = self.address or self.hosts[0].address
        return {**self.exports, "MASTER_ADDR": address, "MASTER_PORT": str(self.port or PORT)}


class Start(NamedTuple):
    """A command, and what its environment has more than this one."""

    command: tuple[str, ...]
    environment: dict[str, str]

    def __str__(self) -> str:
        return shlex.join([*(f"{name}={value}" for name, value in self.environment.items()), *self.command])


def command(launcher: str, job: Job) -> Start:
    """The command that starts a job with one of LAUNCHERS.

    Raises ConfigError when the launcher cannot express which machines and devices are wanted.
    """
    if launcher in SCHEDULED and job.named and launcher != "slurm":
        raise ConfigError(f"{launcher} runs where the scheduler says, and --hostfile names machines", COUNTS)
    if launcher not in SCHEDULED and not job.named:
        raise ConfigError(f"--launcher {launcher} needs --hostfile", "name the file with a line `NAME slots=N` each")
    if launcher != "pdsh":
        for host in job.hosts:
            if host.devices != tuple(range(len(host.devices))):
                raise ConfigError(
                    f"{launcher} counts processes and chooses no devices; {host} asks for some",
                    "choose whole machines, or use --launcher pdsh",
                )
    if launcher in EVEN and job.each is None:
        counts = ", ".join(f"{host.name}: {len(host.devices)}" for host in job.hosts)
        raise ConfigError(
            f"{launcher} starts equally many processes on each machine, not {counts}", "use openmpi, mpich or pdsh"
        )
    return LAUNCHERS[launcher](job)


def by_machine(launcher: str, job: Job) -> Iterator[tuple[str, str]]:
    """What each machine runs, by its name: for pdsh a line that can be typed there by hand as well."""
    first = 0
    for number, host in enumerate(job.hosts):
        name = host.name or f"machine {number}"
        if launcher == "pdsh":
            yield name, _line(job, str(number))
        else:
            yield name, f"ranks {first} to {first + len(host.devices) - 1}: {shlex.join(job.program)}"
        first += len(host.devices)


def forwarded(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of this machine that processes on others are given."""
    return {name: value for name, value in sorted(environ.items()) if name.startswith(FORWARDED)}


def _line(job: Job, number: str) -> str:
    """A shell's line that starts the processes of one machine, in any shell."""
    told = {**job.variables(), NODES: spell(job.hosts), NODE: number}
    words = ["exec", "env", *(f"{name}={value}" for name, value in told.items()), *job.program]
    return f"cd {shlex.quote(job.folder)} && {shlex.join(words)}"


def _pdsh(job: Job) -> Start:
    """pdsh replaces %n by the number of the machine, and %% by %. With -b one SIGINT ends it."""
    mark = "_NEOXKIT_NUMBER_"
    line = _line(job, mark).replace("%", "%%").replace(mark, "%n")
    names = ",".join(host.name for host in job.hosts)
    return Start(("pdsh", "-S", "-f", str(FAN_OUT), "-w", names, "-b", *job.extra, line), {"PDSH_RCMD_TYPE": "ssh"})


def _counted(job: Job) -> str:
    """Machines with their counts: "a:8,b:4"."""
    return ",".join(f"{host.name}:{len(host.devices)}" for host in job.hosts)


def _openmpi(job: Job) -> Start:
    told = (word for name, value in job.variables().items() for word in ("-x", f"{name}={value}"))
    # Bound to one core each, as is its default, processes of one GPU each would have one core for all their threads.
    where = ("-n", str(job.world), "--host", _counted(job), "--bind-to", "none")
    return Start(("mpirun", *where, *job.extra, *told, *job.program), {})


def _hydra(job: Job, *where: str, **more: str) -> Start:
    told = (word for name, value in {**job.variables(), **more}.items() for word in ("-genv", name, value))
    return Start(("mpirun", "-n", str(job.world), *where, *job.extra, *told, *job.program), {})


def _mpich(job: Job) -> Start:
    return _hydra(job, "-hosts", _counted(job))


def _even(job: Job) -> tuple[str, ...]:
    return "-ppn", str(job.each), "-hosts", ",".join(host.name for host in job.hosts)


def _impi(job: Job) -> Start:
    return _hydra(job, *_even(job), I_MPI_PIN="0")


def _mvapich(job: Job) -> Start:
    return _hydra(job, *_even(job))


def _slurm(job: Job) -> Start:
    """srun gives processes its own environment, so nothing is said on the command line that has a comma."""
    where = ["--nodes", str(len(job.hosts)), "--ntasks", str(job.world), "--ntasks-per-node", str(job.each)]
    if job.named:
        where += ["--nodelist", ",".join(host.address for host in job.hosts)]
    if job.gpus:
        where += ["--gpus-per-node", str(job.each)]
    command = ("srun", *where, "--kill-on-bad-exit=1", "--export=ALL", *job.extra, *job.program)
    return Start(command, _scheduled(job))


def _jsrun(job: Job) -> Start:
    """One resource set for each machine, so that every process sees all GPUs of its machine."""
    count = str(job.each)
    where = ["--nrs", str(len(job.hosts)), "--rs_per_host", "1", "--tasks_per_rs", count, "--cpu_per_rs", "ALL_CPUS"]
    where += ["--gpu_per_rs", count] if job.gpus else []
    where += ["--launch_distribution", "packed", "--bind", "none"]
    return Start(("jsrun", *where, *job.extra, *job.program), _scheduled(job))


def _flux(job: Job) -> Start:
    """flux tells its tasks no address: a shell asks for it on the way."""
    where = ["--nodes", str(len(job.hosts)), "--tasks-per-node", str(job.each)]
    where += ["--gpus-per-node", str(job.each)] if job.gpus else []
    program = job.program
    if job.address is None and len(job.hosts) > 1:
        ask = 'MASTER_ADDR=$(flux hostlist --nth=0 local) exec "$0" "$@"'
        program = ("sh", "-c", ask, *program)
    return Start(("flux", "run", *where, *job.extra, *program), _scheduled(job))


def _scheduled(job: Job) -> dict[str, str]:
    """What is set for the scheduler's command, which hands it on. Address and port are found by the processes."""
    told = dict(job.exports)
    if job.address is not None:
        told["MASTER_ADDR"] = job.address
    if job.port is not None:
        told["MASTER_PORT"] = str(job.port)
    return told


LAUNCHERS: dict[str, Callable[[Job], Start]] = {
    "pdsh": _pdsh,
    "openmpi": _openmpi,
    "mpich": _mpich,
    "impi": _impi,
    "mvapich": _mvapich,
    "slurm": _slurm,
    "jsrun": _jsrun,
    "flux": _flux,
}

SCHEDULED = ("slurm", "jsrun", "flux")
"""Those that choose machines by themselves, and give processes the environment of the command."""

EVEN = ("impi", "mvapich", *SCHEDULED)
"""Those that start equally many processes on each machine."""

COUNTS = "give --num-nodes and --num-gpus (or --nproc, without GPUs)"
