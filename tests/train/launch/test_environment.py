"""Where a process stands: the environments that launchers set, as they were seen or are documented."""

from __future__ import annotations

import pytest

from neoxkit.errors import ConfigError
from neoxkit.train.launch.environment import CHILD, PORT, Place, find, first_host, settle

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1",
    "MASTER_ADDR": "node0", "MASTER_PORT": "29400", "TORCHELASTIC_RUN_ID": "none",
}  # fmt: skip

# Open MPI 5.0.11. With daemons on other machines it tells a LOCAL_SIZE of 1, whatever there is.
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_RANK": "1", "PMIX_NAMESPACE": "prterun-vm-26366@1",
}  # fmt: skip

# MPICH 5.0.2, Intel MPI 2021.19
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2", "PMI_FD": "11"}

MVAPICH = {
    "MV2_COMM_WORLD_RANK": "3", "MV2_COMM_WORLD_SIZE": "4", "MV2_COMM_WORLD_LOCAL_RANK": "1",
    "MV2_COMM_WORLD_LOCAL_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234",
}  # fmt: skip

JSRUN = {
    "JSM_NAMESPACE_RANK": "7", "JSM_NAMESPACE_SIZE": "12", "JSM_NAMESPACE_LOCAL_RANK": "1",
    "JSM_NAMESPACE_LOCAL_SIZE": "6", "LSB_JOBID": "77", "LSB_MCPU_HOSTS": "batch1 1 a01n01 42 a01n02 42",
    "OMPI_COMM_WORLD_RANK": "7", "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5",
}  # fmt: skip

FLUX = {
    "FLUX_TASK_RANK": "1", "FLUX_JOB_SIZE": "4", "FLUX_TASK_LOCAL_ID": "1", "FLUX_JOB_NNODES": "1",
    "FLUX_JOB_ID": "f2DYMxqFX", "PMI_RANK": "1", "PMI_SIZE": "4",
}  # fmt: skip

SRUN = {
    "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_JOB_ID": "42",
    "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "gpu[007-008,11]", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_NTASKS": "5", "PMI_RANK": "3", "PMI_SIZE": "5",
}  # fmt: skip

# A batch script: it runs on the first machine only, and is no step.
SBATCH = {
    "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "16", "SLURM_JOB_ID": "42", "SLURM_NODEID": "0",
    "SLURM_JOB_NODELIST": "gpu[1-2]", "SLURM_TASKS_PER_NODE": "8(x2)",
}  # fmt: skip


def place(environ: dict[str, str]) -> Place:
    """The place that an environment tells."""
    found = find(environ)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("environ", "by", "numbers", "address"),
    [
        (TORCHRUN, "torchrun", (5, 8, 1, 4), "node0"),
        (OPEN_MPI, "mpirun of Open MPI", (1, 2, 1, 2), "127.0.0.1"),
        (HYDRA, "mpirun (Hydra)", (1, 2, 1, 2), "127.0.0.1"),
        (MVAPICH, "mpirun of MVAPICH", (3, 4, 1, 2), "10.0.0.1"),
        (JSRUN, "jsrun", (7, 12, 1, 6), "a01n01"),
        (FLUX, "flux", (1, 4, 1, None), "127.0.0.1"),
        (SRUN, "srun", (3, 5, 1, 2), "gpu007"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_launcher_is_recognised(
    environ: dict[str, str], by: str, numbers: tuple[int | None, ...], address: str
) -> None:
    found = place(environ)
    assert (found.by, found.address) == (by, address)
    assert (found.rank, found.world, found.local_rank, found.local_world) == numbers
    assert find({**environ, "MASTER_ADDR": "given", "MASTER_PORT": "7"}) == Place(
        *numbers, "given", 7, by, device=numbers[2] or 0
    )  # fmt: skip


@pytest.mark.parametrize("environ", [{}, SBATCH, {"RANK": "3"}, {"PMI_RANK": "0", "PMI_SIZE": "1"}], ids=str)
def test_a_process_alone_is_nowhere(environ: dict[str, str]) -> None:
    assert find(environ) is None


def test_a_single_task_may_be_a_shell_in_which_a_run_is_started() -> None:
    assert find({**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"}) is None
    assert find({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1", CHILD: "7"}) is not None


def test_mpirun_in_a_slurm_job_counts_before_the_daemon_that_slurm_started() -> None:
    environ = {**SRUN, **OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1", "SLURM_JOB_NODELIST": "gpu[007-008,11]"}
    found = place(environ)
    assert (found.rank, found.world, found.address) == (1, 2, "gpu007")


def test_several_machines_without_an_address_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"does not tell where rank 0 is; set MASTER_ADDR"):
        find({**HYDRA, "MPI_LOCALNRANKS": "1"})


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE is set as by torchrun, and RANK is not"),
        ({"WORLD_SIZE": "4", "RANK": "4"}, "RANK is 4, and WORLD_SIZE is 4"),
        ({"WORLD_SIZE": "four", "RANK": "0"}, "WORLD_SIZE is 'four'"),
        ({"OMPI_COMM_WORLD_RANK": "0"}, "OMPI_COMM_WORLD_SIZE is not"),
        ({**TORCHRUN, "MASTER_PORT": "-1"}, "MASTER_PORT is '-1'"),
    ],
)
def test_what_is_incomplete_is_refused(environ: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        find(environ)


def test_the_port_is_the_jobs_own() -> None:
    ports = {
        place({**SRUN, "SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}).port for job in (1, 2) for step in (0, 1)
    }
    assert len(ports) == 4
    assert all(10000 <= port < 30000 for port in ports)
    assert place(SRUN).port == place({**SRUN, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}).port
    assert place(HYDRA).port == PORT


def test_what_is_settled_is_what_torchrun_would_have_set() -> None:
    environ = dict(SRUN)
    settle(environ)
    told = {"RANK": "3", "WORLD_SIZE": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "gpu007"}
    assert {name: environ[name] for name in told} == told
    environ = dict(TORCHRUN)
    settle(environ)
    assert environ == TORCHRUN


@pytest.mark.parametrize(("visible", "device"), [("3", 0), ("0,1", 1), (None, 1)])
def test_a_process_that_sees_one_gpu_calls_it_0(visible: str | None, device: int) -> None:
    environ = {**SRUN, **({"CUDA_VISIBLE_DEVICES": visible} if visible else {})}
    assert (place(environ).local_rank, place(environ).device) == (1, device)
    settle(environ)
    assert environ["LOCAL_RANK"] == str(device)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu7", "gpu7"),
        ("gpu7,gpu9", "gpu7"),
        ("gpu[007-009,12],login", "gpu007"),
        ("gpu[3,5-9]", "gpu3"),
        ("rack[2-3]node[01-04]-ib", "rack2node01-ib"),
        ("a-1,b[1-2]", "a-1"),
    ],
)
def test_the_first_host_of_slurms_lists(nodes: str, first: str) -> None:
    assert first_host(nodes) == first
