"""Where this process stands in its job: a pure function of the environment.

Each launcher tells it in variables of its own. `settle` tells it again in those of torchrun, which
torch.distributed and DeepSpeed read.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import NamedTuple

from neoxkit.errors import ConfigError

CHILD = "NEOXKIT_CHILD"
"""Set for a process that neoxkit started: the process id of the one that did."""

PORT = 29500
"""Where rank 0 listens when nothing tells one job from another; torch's own default."""


@dataclass(frozen=True, slots=True)
class Place:
    """A process among those of its job, by the launcher that started it.

    `device` is its GPU among those it can see; `local_world` is None where the launcher does not tell it.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int | None
    address: str
    port: int
    by: str
    device: int = 0

    @property
    def alone(self) -> bool:
        """Whether the launcher started no other process on this machine, as far as it tells."""
        return self.local_rank == 0 and self.local_world in (1, None)

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world}, by {self.by}"


class Kind(NamedTuple):
    """The variables of a launcher. It is recognised by all of `marks`."""

    by: str
    marks: tuple[str, ...]
    rank: str
    world: str
    local_rank: str
    local_world: str | None


STANDARD = Kind("torchrun", ("WORLD_SIZE",), "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""What torchrun sets, as do schedulers of containers."""


def _family(by: str, prefix: str, local: str = "LOCAL_") -> Kind:
    """A launcher whose variables differ in the prefix alone."""
    names = (prefix + "RANK", prefix + "SIZE", prefix + local + "RANK", prefix + local + "SIZE")
    return Kind(by, (names[0],), *names)


KINDS = (
    STANDARD,
    _family("jsrun", "JSM_NAMESPACE_"),
    _family("mpirun of Open MPI", "OMPI_COMM_WORLD_"),
    _family("mpirun of MVAPICH", "MV2_COMM_WORLD_"),
    _family("mpirun of MVAPICH", "MVP_COMM_WORLD_"),
    # PMI_RANK alone says little: srun and flux set it too, for MPI programs.
    Kind(
        "mpirun (Hydra)", ("PMI_RANK", "MPI_LOCALRANKID"), "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"
    ),
    Kind("mpiexec of PALS", ("PALS_LOCAL_RANKID",), "PALS_RANKID", "PMI_SIZE", "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE"),
    Kind("flux", ("FLUX_TASK_RANK",), "FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID", None),
    # Last: mpirun in a Slurm job starts its daemons with srun, and the processes inherit a daemon's place.
    # A batch script has SLURM_PROCID too, and is no step.
    Kind(
        "srun", ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"), "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", None
    ),
)

JOBS = (
    ("SLURM_JOB_ID", "SLURM_STEP_ID"),
    ("LSB_JOBID", "JSM_JSRUN_STEP_ID"),
    ("FLUX_JOB_ID",),
    ("PMIX_NAMESPACE",),
    ("OMPI_MCA_ess_base_jobid",),
    ("I_MPI_HYDRA_UUID",),
    ("PBS_JOBID",),
    ("PALS_APID",),
)
"""Variables that are the same for all processes of a job, and different for two jobs on one machine."""

VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


def find(environ: Mapping[str, str]) -> Place | None:
    """The place of this process; None when no launcher started it together with others.

    A single task of a scheduler is None as well: it may be a shell, and what runs there starts the
    devices that it sees. Raises ConfigError when what a launcher tells is incomplete.
    """
    kind = next((kind for kind in KINDS if all(mark in environ for mark in kind.marks)), None)
    if kind is None:
        return None
    rank, world = _number(environ, kind, kind.rank), _number(environ, kind, kind.world)
    if rank >= world:
        raise ConfigError(f"{kind.rank} is {rank}, and {kind.world} is {world}", "unset what is left of another job")
    standard = kind is STANDARD
    if world == 1 and not standard:
        return None
    # Schedulers of containers start one process a machine, and tell no local rank.
    local_rank = 0 if standard and kind.local_rank not in environ else _number(environ, kind, kind.local_rank)
    local_world = _local_world(environ, kind)
    return Place(
        rank=rank,
        world=world,
        local_rank=local_rank,
        local_world=local_world,
        address=_address(environ, kind, world, local_world),
        port=_number(environ, kind, "MASTER_PORT") if "MASTER_PORT" in environ else _port(environ),
        by=_by(environ) if standard else kind.by,
        device=local_rank if standard else _device(environ, local_rank),
    )


def settle(environ: MutableMapping[str, str]) -> Place | None:
    """As `find`, and the environment tells it in torchrun's variables from now on.

    LOCAL_RANK becomes the device: a scheduler that shows each process one GPU calls it 0 everywhere.
    """
    place = find(environ)
    if place is not None:
        environ["RANK"], environ["WORLD_SIZE"] = str(place.rank), str(place.world)
        environ["LOCAL_RANK"] = str(place.device)
        environ["MASTER_ADDR"], environ["MASTER_PORT"] = place.address, str(place.port)
        if place.local_world is not None:
            environ["LOCAL_WORLD_SIZE"] = str(place.local_world)
    return place


def first_host(nodes: str) -> str:
    """The first of a Slurm node list: "gpu[007-009,12],login" gives "gpu007"."""
    first = re.split(r",(?![^\[]*\])", nodes, maxsplit=1)[0]
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)


def _number(environ: Mapping[str, str], kind: Kind, name: str) -> int:
    """A variable that must be a number. Raises ConfigError."""
    value = environ.get(name)
    if value is None:
        raise ConfigError(
            f"{kind.marks[0]} is set as by {kind.by}, and {name} is not",
            f"set {name} for every process, or unset {kind.marks[0]}",
        )
    if not value.isdecimal():
        raise ConfigError(f"{name} is {value!r}, which is no number", "set it to a whole number")
    return int(value)


def _by(environ: Mapping[str, str]) -> str:
    """Who has set torchrun's variables."""
    if CHILD in environ:
        return "neoxkit"
    return "torchrun" if "TORCHELASTIC_RUN_ID" in environ else "RANK and WORLD_SIZE"


def _local_world(environ: Mapping[str, str], kind: Kind) -> int | None:
    """Processes of the job on this machine, where it is told."""
    if kind.local_world is not None:
        return _number(environ, kind, kind.local_world) if kind.local_world in environ else None
    tasks, node = environ.get("SLURM_STEP_TASKS_PER_NODE"), environ.get("SLURM_NODEID")
    if kind.by != "srun" or tasks is None or node is None:
        return None
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks):  # "2(x3),1" is four machines
        counts += [int(count)] * int(times or 1)
    return counts[int(node)] if int(node) < len(counts) else None


def _address(environ: Mapping[str, str], kind: Kind, world: int, local_world: int | None) -> str:
    """Where rank 0 is. Raises ConfigError when nothing tells."""
    if given := environ.get("MASTER_ADDR"):
        return given
    if local_world == world or environ.get("FLUX_JOB_NNODES") == "1":
        return "127.0.0.1"
    nodes = "SLURM_STEP_NODELIST" if kind.by == "srun" else "SLURM_JOB_NODELIST"
    if found := environ.get(nodes):
        return first_host(found)
    hosts = environ.get("LSB_MCPU_HOSTS", "").split()[::2]  # "batch 1 a01 42 a02 42": the first runs jsrun
    if kind.by == "jsrun" and hosts:
        return hosts[min(1, len(hosts) - 1)]
    raise ConfigError(
        f"{kind.by} started {world} processes and does not tell where rank 0 is",
        "set MASTER_ADDR to the host of rank 0 for every process, as in `mpirun -x MASTER_ADDR=HOST` (Open MPI) "
        "or `mpirun -genv MASTER_ADDR HOST` (MPICH, Intel MPI)",
    )


def _port(environ: Mapping[str, str]) -> int:
    """The same for all processes of a job, and likely another for each job; below the ports that systems give out."""
    for names in JOBS:
        if names[0] in environ:
            told = "/".join(environ.get(name, "") for name in names)
            return 10000 + zlib.crc32(told.encode()) % 20000
    return PORT


def _device(environ: Mapping[str, str], local_rank: int) -> int:
    """The process's GPU among those that its scheduler lets it see."""
    single = any(name in environ and len(environ[name].split(",")) == 1 for name in VISIBLE)
    return 0 if single else local_rank
