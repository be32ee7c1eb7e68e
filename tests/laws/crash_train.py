"""A process with everything loaded, which forks the ranks of a training job. See test_crash_train.py.

Says that it is ready. Reads one line of JSON for each job: {"folder": ..., "size": 4, "port": ..., "overrides":
[...], "file_limit": [rank, bytes] or null}. Answers with the pids; when it is sent an empty line, it ends what still
runs as soon as one rank has died of a signal, and answers with the exit status of each rank.

What ranks need is imported by functions: the processes that write for them import this module, and need none of it.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

MODEL = {"mixer": {"heads": 4, "head_dim": 8}}


def rank_of(job: dict[str, Any], rank: int) -> None:
    """What a rank does, in its own process; its output is in the file `rank-N.log`."""
    import tiny_runs as runs
    import torch

    from neoxkit.errors import NeoxkitError
    from neoxkit.train.loop import train

    log = os.open(f"{job['folder']}/rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    size = job["size"]
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=job["port"]
    )
    if job["file_limit"] and job["file_limit"][0] == rank:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_limit"][1], resource.RLIM_INFINITY))
    torch.manual_seed(0)
    config = runs.config("gpt_neox", Path(job["folder"]), *job["overrides"])
    code = 1
    try:
        code = train(config, {"steps": config.steps}).code
    except NeoxkitError as error:
        print(error, flush=True)
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(code)


def main() -> None:
    """Serve jobs until the input ends."""
    import tiny_runs  # noqa: F401 (it and the others once, before there are ranks)
    import torch._dynamo  # noqa: F401 (an optimizer imports it: 4 CPU-seconds)

    import neoxkit.train.loop  # noqa: F401

    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        pids = []
        for rank in range(job["size"]):
            if (pid := os.fork()) == 0:
                rank_of(job, rank)
            pids.append(pid)
        print(*pids, flush=True)
        sys.stdin.readline()
        statuses: dict[int, int] = {}
        while len(statuses) < len(pids):
            for pid in pids:
                if pid not in statuses:
                    found, status = os.waitpid(pid, os.WNOHANG)
                    if found:
                        statuses[pid] = os.waitstatus_to_exitcode(status)
            if any(statuses.values()):
                for pid in set(pids) - set(statuses):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
        print(*(statuses[pid] for pid in pids), flush=True)


if __name__ == "__main__":
    main()
