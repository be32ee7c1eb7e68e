"""The commands that start many machines, against those of DeepSpeed's runners; a batch script that bash reads."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from neoxkit.cli.launching import NAMES
from neoxkit.errors import ConfigError
from neoxkit.train.launch.batch_script import batch_script
from neoxkit.train.launch.commands import LAUNCHERS, NODE, Job, by_machine, command, forwarded
from neoxkit.train.launch.hosts import Host
from neoxkit.train.launch.local import this_machine

PROGRAM = (sys.executable, "-u", "-m", "neoxkit", "train", "--set", "data.train=a b", "--", "run.yaml")
HOSTS = (Host("worker-0", (0, 1, 2, 3)), Host("worker-1", (0, 1, 2, 3)))
JOB = Job(PROGRAM, HOSTS, "/home/me/a run", address="10.0.0.1", port=29501, exports={"NCCL_DEBUG": "INFO"})
UNNAMED = replace(JOB, hosts=(Host("", (0, 1, 2, 3)),) * 2, gpus=True, address=None, port=None, exports={})


def theirs(name: str, **options: Any) -> list[str]:
    """The command of DeepSpeed's runner for the same job."""
    from deepspeed.launcher import multinode_runner, runner

    pool = {host.name: len(host.devices) for host in HOSTS}
    active = {host.name: list(host.devices) for host in HOSTS}
    args = Namespace(
        user_script="neoxkit", user_args=["train", "--set", "data.train=a b", "--", "run.yaml"], module=True,
        no_python=False, no_local_rank=True, master_addr="10.0.0.1", master_port=29501, launcher=name, hostfile="hosts",
        include="", exclude="", num_nodes=-1, num_gpus=-1, launcher_args="", ssh_port=None, venv_script=None,
        save_pid=False, enable_each_rank_log=None, bind_cores_to_rank=False, slurm_comment="", **options,
    )  # fmt: skip
    world = runner.encode_world_info(active)
    kind = runner.LAUNCHER_CLASSES[name]
    made = kind(args, world) if name == "pdsh" else kind(args, world, pool)
    made.add_export("NCCL_DEBUG", "INFO")
    found = made.get_cmd({}, active)
    assert multinode_runner.PDSH_MAX_FAN_OUT == 1024
    return list(found[0] if name == "pdsh" else found)


def after(words: list[str] | tuple[str, ...], *names: str) -> str:
    """The word after an option."""
    return next(words[index + 1] for index, word in enumerate(words) if word in names)


def test_the_command_line_knows_the_launchers() -> None:
    assert tuple(LAUNCHERS) == NAMES


def test_pdsh_starts_what_deepspeed_would_start() -> None:
    start = command("pdsh", JOB)
    reference = theirs("pdsh")
    assert start.command[:6] == tuple(reference[:6]) == ("pdsh", "-S", "-f", "1024", "-w", "worker-0,worker-1")
    assert start.environment == {"PDSH_RCMD_TYPE": "ssh"}
    line = start.command[-1]
    assert line.startswith("cd '/home/me/a run' && exec env NCCL_DEBUG=INFO MASTER_ADDR=10.0.0.1 MASTER_PORT=29501 ")
    assert f"{NODE}=%n" in line
    assert "--node_rank=%n" in reference
    assert tuple(shlex.split(line))[-len(PROGRAM) :] == PROGRAM


def test_each_machine_of_pdsh_starts_the_ranks_that_deepspeed_would_give_it(tmp_path: Path) -> None:
    """As a shell of that machine sees the line, in which pdsh has put the machine's number."""
    probe = "import json, os; print(json.dumps([os.getcwd(), dict(os.environ)]))"
    hosts = (Host("a", (0, 1)), Host("b", (1, 3, 5)))
    job = replace(JOB, hosts=hosts, folder=str(tmp_path), program=(sys.executable, "-c", probe))
    line = command("pdsh", job).command[-1].replace("%n", "1").replace("%%", "%")
    assert line == dict(by_machine("pdsh", job))["b"]
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True, env={})
    import json

    folder, environ = json.loads(done.stdout)
    share = this_machine(environ)
    assert folder == str(tmp_path)
    assert share is not None
    assert (share.count, share.first, share.world, share.devices) == (3, 2, 5, (1, 3, 5))
    assert share.environment(2, 29501) == {
        "RANK": "4", "WORLD_SIZE": "5", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "3", "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "29501", "CUDA_VISIBLE_DEVICES": "1,3,5",
    }  # fmt: skip


def test_pdsh_leaves_percent_signs_alone() -> None:
    job = replace(JOB, program=("python", "100%n", "$HOME"))
    assert command("pdsh", job).command[-1].endswith("python 100%%n '$HOME'")
    assert dict(by_machine("pdsh", job))["worker-1"].endswith("python 100%n '$HOME'")


@pytest.mark.parametrize("launcher", ["openmpi", "mpich", "impi", "mvapich", "slurm"])
def test_others_start_as_many_processes_of_the_same_as_deepspeed(launcher: str) -> None:
    words, reference = command(launcher, JOB).command, theirs(launcher, **{})
    assert words[0] == reference[0]
    assert words[-len(PROGRAM) :] == PROGRAM
    if launcher != "impi":  # DeepSpeed's lists every process, with its rank
        assert after(words, "-n", "--ntasks") == after(reference, "-n", "-np") == "8"
    if launcher in ("impi", "mvapich"):
        assert after(words, "-ppn") == after(reference, "-ppn") == "4"
    if launcher == "impi":
        assert after(words, "-hosts") == after(reference, "-hosts") == "worker-0,worker-1"
        assert after(words, "I_MPI_PIN") == after(reference, "I_MPI_PIN") == "0"
    if launcher in ("mpich", "impi"):
        assert after(words, "MASTER_ADDR") == after(reference, "MASTER_ADDR") == "10.0.0.1"
        assert after(words, "MASTER_PORT") == after(reference, "MASTER_PORT") == "29501"
    if launcher == "slurm":
        assert "--export=ALL" in words
        assert "--kill-on-bad-exit=1" in words


def test_each_command_in_full() -> None:
    told = "NCCL_DEBUG INFO", "MASTER_ADDR 10.0.0.1", "MASTER_PORT 29501"
    genv = " ".join(f"-genv {each}" for each in told)
    x = " ".join("-x " + each.replace(" ", "=") for each in told)
    program = shlex.join(PROGRAM)
    wanted = {
        "openmpi": f"mpirun -n 8 --host worker-0:4,worker-1:4 --bind-to none {x} {program}",
        "mpich": f"mpirun -n 8 -hosts worker-0:4,worker-1:4 {genv} {program}",
        "impi": f"mpirun -n 8 -ppn 4 -hosts worker-0,worker-1 {genv} -genv I_MPI_PIN 0 {program}",
        "mvapich": f"mpirun -n 8 -ppn 4 -hosts worker-0,worker-1 {genv} {program}",
        "slurm": "NCCL_DEBUG=INFO MASTER_ADDR=10.0.0.1 MASTER_PORT=29501 srun --nodes 2 --ntasks 8 --ntasks-per-node 4 "
        f"--nodelist worker-0,worker-1 --kill-on-bad-exit=1 --export=ALL {program}",
    }
    for launcher, line in wanted.items():
        assert str(command(launcher, JOB)) == line
    wanted = {
        "slurm": "srun --nodes 2 --ntasks 8 --ntasks-per-node 4 --gpus-per-node 4 --kill-on-bad-exit=1 --export=ALL "
        + program,
        "jsrun": "jsrun --nrs 2 --rs_per_host 1 --tasks_per_rs 4 --cpu_per_rs ALL_CPUS --gpu_per_rs 4 "
        f"--launch_distribution packed --bind none {program}",
        "flux": "flux run --nodes 2 --tasks-per-node 4 --gpus-per-node 4 sh -c "
        f"""'MASTER_ADDR=$(flux hostlist --nth=0 local) exec "$0" "$@"' {program}""",
    }
    for launcher, line in wanted.items():
        assert str(command(launcher, UNNAMED)) == line
    assert "sh" not in command("flux", replace(UNNAMED, address="a")).command


@pytest.mark.parametrize("launcher", NAMES)
def test_options_for_the_launcher_stand_before_the_program(launcher: str) -> None:
    job = replace(UNNAMED if launcher in ("jsrun", "flux") else JOB, extra=("--verbose",))
    words = command(launcher, job).command
    assert 0 < words.index("--verbose") < len(words) - 1
    assert words.index("--verbose") < next(i for i, word in enumerate(words) if "neoxkit" in word)


def test_machines_that_differ(tmp_path: Path) -> None:
    job = replace(JOB, hosts=(Host("a", (0, 1)), Host("b", (0,))))
    assert after(command("openmpi", job).command, "--host") == "a:2,b:1"
    assert after(command("mpich", job).command, "-hosts") == "a:2,b:1"
    for launcher in ("impi", "mvapich", "slurm"):
        with pytest.raises(ConfigError, match="equally many processes on each machine, not a: 2, b: 1"):
            command(launcher, job)
    assert [name for name, _ in by_machine("openmpi", job)] == ["a", "b"]
    assert [line.split(":")[0] for _, line in by_machine("openmpi", job)] == ["ranks 0 to 1", "ranks 2 to 2"]


def test_what_a_launcher_cannot_do_is_refused() -> None:
    for launcher in ("openmpi", "mpich", "impi", "mvapich", "slurm"):
        with pytest.raises(ConfigError, match=r"chooses no devices; worker-0:1,3 asks for some"):
            command(launcher, replace(JOB, hosts=(Host("worker-0", (1, 3)),)))
    for launcher in ("pdsh", "openmpi", "mpich", "impi", "mvapich"):
        with pytest.raises(ConfigError, match=f"--launcher {launcher} needs --hostfile"):
            command(launcher, UNNAMED)
    for launcher in ("jsrun", "flux"):
        with pytest.raises(ConfigError, match="runs where the scheduler says"):
            command(launcher, JOB)


def test_no_key_goes_onto_a_command_line() -> None:
    """Every user of a machine can read the command lines of all."""
    environ = {
        "WANDB_API_KEY": "secret", "HF_TOKEN": "secret", "AWS_SECRET_ACCESS_KEY": "secret", "COMET_API_KEY": "secret",
        "NCCL_DEBUG": "INFO", "PYTHONPATH": "/a", "UCX_TLS": "rc", "MV2_DEBUG": "1", "MLFLOW_RUN": "r",
    }  # fmt: skip
    found = forwarded(environ)
    assert "secret" not in found.values()
    from deepspeed.launcher.runner import EXPORT_ENVS

    assert set(found) >= {name for name in environ if name.startswith(tuple(EXPORT_ENVS))}


STUBS = """
srun() { printf '%s\\n' "srun $*" "MASTER_PORT=$MASTER_PORT" "$PWD"; return ${CODE:-0}; }
scontrol() { echo "scontrol $*"; }
"""


@pytest.mark.parametrize(("code", "again"), [(0, False), (138, True), (143, False), (1, False)])
def test_a_batch_script_runs_and_goes_on_when_its_time_was_over(tmp_path: Path, code: int, again: bool) -> None:
    job = replace(UNNAMED, folder=str(tmp_path), port=7, exports={"WHAT": "it's"})
    text = batch_script(job, "a-run", ["--time=24:00:00", "--partition=gpu"])
    options = re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE)
    assert options == [
        "--job-name=a-run", "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--signal=USR1@300", "--requeue",
        "--open-mode=append", "--time=24:00:00", "--partition=gpu",
    ]  # fmt: skip
    assert text.startswith("#!/bin/bash\n#SBATCH ")
    script = tmp_path / "job.sh"
    script.write_text(text.replace("\ncd ", f"{STUBS}\ncd "))
    environ = {"SLURM_JOB_ID": "42", "CODE": str(code), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=False, env=environ)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (code, "")
    assert lines[0].startswith("srun --nodes 2 --ntasks 8 --ntasks-per-node 4 --gpus-per-node 4 ")
    assert lines[0].endswith("neoxkit train --set data.train=a b -- run.yaml")
    assert lines[1:3] == ["MASTER_PORT=7", str(tmp_path)]
    assert lines[3:] == (["scontrol requeue 42"] if again else [])
