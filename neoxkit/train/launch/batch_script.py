"""A batch script for Slurm's sbatch."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace

from neoxkit.train.launch.commands import Job, command

NOTICE = 300
"""Seconds before the end of the job's time at which Slurm tells the run, which then saves and stops."""

REQUEUED = 138
"""128 + SIGUSR1: the exit code of a run that was told so. One that `scancel` ended is not started again."""


def batch_script(job: Job, name: str, options: Sequence[str] = ()) -> str:
    """A script that runs a job, and again when its time was over, until it is done.

    `options` are sbatch's own, such as "--time=24:00:00".
    """
    wanted = [
        f"--job-name={name}",
        f"--nodes={len(job.hosts)}",
        f"--ntasks-per-node={job.each}",
        *([f"--gpus-per-node={job.each}"] if job.gpus else []),
        *([f"--nodelist={','.join(host.address for host in job.hosts)}"] if job.named else []),
        f"--signal=USR1@{NOTICE}",
        "--requeue",
        "--open-mode=append",
        *options,
    ]
    start = command("slurm", replace(job, exports={}, extra=()))
    exports = {**job.exports, **start.environment}
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in wanted),
        "",
        f"cd {shlex.quote(job.folder)} || exit 2",
        *(f"export {key}={shlex.quote(value)}" for key, value in exports.items()),
        "",
        "code=0",
        f"{shlex.join(start.command)} || code=$?",
        f"# Told that its time is over ({NOTICE} s before), the run has saved; it goes on in the same job.",
        f'if [ "$code" -eq {REQUEUED} ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"
