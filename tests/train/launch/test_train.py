"""`neoxkit train` on several processes: by itself, by torchrun, and what it would start elsewhere."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_runs as runs
import yaml
from click.testing import CliRunner, Result

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.cli import main
from neoxkit.train.launch.local import free_port

NEOXKIT = [sys.executable, "-m", "neoxkit"]
ENVIRON = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tokens of a run, its run.yaml and a hostfile; the current one."""
    (folder / "run.yaml").write_text(yaml.safe_dump(runs.tree("llama", folder)))
    (folder / "hosts").write_text("worker-0 slots=2\nworker-1 slots=2\n")
    monkeypatch.chdir(folder)
    return folder


def train(arguments: str, **environ: str) -> Result:
    """Call `neoxkit train run.yaml` in this process, which must start none."""
    return CliRunner().invoke(main, ["train", "run.yaml", *shlex.split(arguments)], env=environ)


def weights(checkpoint: Path) -> str:
    """What tells a checkpoint's weights from others."""
    with Checkpoint.open(checkpoint) as opened:
        return str(opened.fingerprint)


def children(pid: int) -> list[int]:
    """The processes that a process has started, oldest first."""
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a file is there."""
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, path
        time.sleep(0.05)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc")
def test_a_run_starts_its_ranks_and_survives_the_death_of_one(here: Path) -> None:
    """And is what a run of one process is that was never disturbed, to rounding; torchrun's is it to the bit."""
    arguments = ["train", "run.yaml", "--set", "mesh.tp=2", "--set", "steps=30"]
    restarting = [*arguments, "--set", "save.every=8", "--max-restarts", "1"]
    job = subprocess.Popen(
        [*NEOXKIT, *restarting], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRON
    )
    wait_for(here / "run" / "step-00000008" / "manifest.json", job)
    os.kill(children(job.pid)[1], signal.SIGKILL)
    stdout, stderr = job.communicate(timeout=120)
    assert (job.returncode, stdout) == (0, f"{here}/run/step-00000030\n"), stderr
    assert "error: rank 1 was ended by SIGKILL" in stderr
    assert "restart 1 of 1: the run goes on from its newest checkpoint" in stderr
    assert re.search(r"going on from .*step-000000(08|16|24)", stderr)

    port = str(free_port())
    agents = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
                *("--node-rank", str(node), "--master-addr", "127.0.0.1", "--master-port", port),
                *("-m", "neoxkit", *arguments, "--set", "save.folder=again"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRON,
        )
        for node in range(2)
    ]
    said = [agent.communicate(timeout=120) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert [stdout for stdout, _ in said] == ["again/step-00000030\n", ""]
    assert said[0][1].count("parameters in fp32 on cpu (tp 2)") == 1
    assert "parameters" not in said[1][1]
    assert weights(here / "run" / "step-00000030") == weights(here / "again" / "step-00000030")


def test_a_users_error_is_told_once(here: Path) -> None:
    command = [*NEOXKIT, "train", "run.yaml", "--nproc", "2", "--set", "data.train=nowhere", "--max-restarts", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRON)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: nowhere.idx: no such index; write the pair with `neoxkit data tokenize`, or mend the prefix\n"
    )


def test_a_dry_run_prints_the_command_of_each_rank(here: Path) -> None:
    lines = train("--dry-run --set mesh.tp=2").stdout.splitlines()
    assert lines[0].startswith("model")
    program = f"{sys.executable} -u -m neoxkit train --set mesh.tp=2 -- run.yaml"
    for rank, line in enumerate(lines[-2:]):
        told = rf"rank {rank} +RANK={rank} WORLD_SIZE=2 LOCAL_RANK={rank} LOCAL_WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 "
        assert re.fullmatch(rf"{told}MASTER_PORT=\d+ {re.escape(program)}", line)
    assert train("--dry-run").stdout.splitlines()[-1].split() == ["processes", "1,", "this", "one"]


@pytest.mark.parametrize("launcher", ["pdsh", "openmpi", "slurm"])
def test_a_dry_run_prints_what_would_start_each_machine(here: Path, launcher: str) -> None:
    result = train(f"--dry-run --launcher {launcher} --hostfile hosts --set mesh.tp=2 --env NCCL_DEBUG=INFO")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    first = {"pdsh": "PDSH_RCMD_TYPE=ssh pdsh", "openmpi": "mpirun -n 4", "slurm": "NCCL_DEBUG=INFO srun --nodes 2"}
    assert lines[-3].split(maxsplit=1)[1].startswith(first[launcher])
    assert [line.split()[0] for line in lines[-2:]] == ["worker-0", "worker-1"]
    assert all(line.endswith("-m neoxkit train --set mesh.tp=2 -- run.yaml") for line in lines[-2:])


def test_a_batch_script_is_written(here: Path) -> None:
    result = train("--sbatch job.sh --num-nodes 2 --nproc 2 --set mesh.tp=2 --launcher-args=--time=1:00:00")
    assert result.stdout == "job.sh: 4 processes on 2 machines; run `sbatch job.sh`\n"
    text = (here / "job.sh").read_text()
    assert "#SBATCH --job-name=run\n" in text
    assert "#SBATCH --time=1:00:00\n" in text
    assert "gpus" not in text
    assert subprocess.run(["bash", "-n", "job.sh"], check=False).returncode == 0


def test_a_batch_script_takes_no_files_place(here: Path) -> None:
    """Least of all that of the configuration, which is easily named instead."""
    before = (here / "run.yaml").read_text()
    result = train("--sbatch run.yaml --num-nodes 2 --nproc 2 --set mesh.tp=2")
    assert result.exit_code == 2
    assert "--sbatch run.yaml: it is there already; remove it, or name another" in result.stderr
    assert (here / "run.yaml").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--hostfile hosts", "--hostfile is for several machines, and --launcher is not given"),
        ("--env A=1", "--env is for several machines"),
        ("--launcher pdsh", "--launcher pdsh needs --hostfile"),
        ("--launcher slurm", "slurm must know how many machines and processes; give --num-nodes and --num-gpus"),
        ("--launcher slurm --num-nodes 2 --num-gpus 2 --nproc 2", "say the same; give one"),
        ("--launcher slurm --num-nodes 2 --num-gpus 2 --include a", "--include and --exclude choose from a hostfile"),
        ("--launcher pdsh --hostfile hosts --max-restarts 1", "--max-restarts is for one machine"),
        ("--launcher pdsh --hostfile hosts --sbatch x", "--sbatch with --launcher pdsh"),
        ("--launcher pdsh --hostfile hosts --env A-B=1", "--env A-B=1: not NAME or NAME=VALUE"),
        ("--launcher pdsh --hostfile hosts --env NEOXKIT_UNSET", "--env NEOXKIT_UNSET: it is not set here"),
        (
            "--launcher pdsh --hostfile hosts --set mesh.pp=3 --set model.depth=3",
            "tp 1 x pp 3 does not divide 4 devices",
        ),
        ("--launcher jsrun --num-nodes 1 --nproc 1", "there is no program jsrun here; install it"),
        ("--launcher pdsh --hostfile run.yaml", "run.yaml:1: 'batch:' is no machine"),
        ("--nproc 3 --set mesh.tp=2", "tp 2 x pp 1 does not divide 3 devices"),
        ("--nproc 3", "batch.micro 2 x dp 3 does not divide batch.size 4"),
    ],
)
def test_options_that_contradict_each_other_are_refused(here: Path, arguments: str, said: str) -> None:
    result = train(arguments, PATH="/nowhere")
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


PLACED = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize("option", ["--max-restarts 1", "--launcher pdsh --hostfile hosts", "--sbatch x", "--nproc 2"])
def test_a_process_that_has_its_place_starts_no_others(here: Path, option: str) -> None:
    result = train(option, **PLACED)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{option.split()[0]} is given, and this process is rank 1 of 2, by RANK and WORLD_SIZE" in result.stderr
