"""What the machine gives this process."""

from __future__ import annotations

import os


def cores() -> int:
    """CPUs that this process may use: fewer than there are under taskset, Slurm, or a container's set of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
