"""The processes of one machine: small programs as ranks, which end, fail, hang, are killed and told of signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from neoxkit.machine import cores
from neoxkit.train.launch import local
from neoxkit.train.launch.commands import NODE, NODES
from neoxkit.train.launch.environment import CHILD
from neoxkit.train.launch.local import Share, run, share_of

HEAD = """
import os, signal, sys, time
from pathlib import Path
rank, here = int(os.environ["RANK"]), Path(sys.argv[1])

def mark(name):
    (here / name).write_text(str(os.getpid()))

def wait_for(*names):
    while not all((here / name).exists() for name in names):
        time.sleep(0.01)
"""

HANG = "time.sleep(600)"


def program(folder: Path, body: str) -> list[str]:
    """The command of ranks that run `body`."""
    path = folder / "rank.py"
    path.write_text(HEAD + textwrap.dedent(body))
    return [sys.executable, str(path), str(folder)]


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter waits, and no place of pytest's own."""
    monkeypatch.setattr(local, "GRACE", 0.5)
    monkeypatch.setattr(local, "PATIENCE", 0.5)
    monkeypatch.delenv(CHILD, raising=False)


def test_ranks_are_told_what_torchrun_would_tell(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    body = """
        names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NEOXKIT_CHILD"]
        names += ["CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"]
        (here / f"told-{rank}").write_text(" ".join(os.environ.get(name, "-") for name in names))
        print("rank", rank, "on stdout")
        print("rank", rank, "on stderr", file=sys.stderr)
    """
    environ = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    }
    assert run(program(tmp_path, body), Share(2), environ) == 0
    told = [(tmp_path / f"told-{rank}").read_text().split() for rank in range(2)]
    port, threads = told[0][5], str(max(1, cores() // 2))
    assert int(port) > 0
    assert told == [[str(r), "2", str(r), "2", "127.0.0.1", port, str(os.getpid()), "-", threads] for r in range(2)]
    assert capfd.readouterr() == ("rank 0 on stdout\n", "rank 0 on stderr\n")

    share = Share(2, first=3, world=5, address="worker-0", port=7, devices=(1, 3))
    assert run(program(tmp_path, body), share, environ) == 0
    assert (tmp_path / "told-4").read_text().split()[:8] == [
        "4",
        "5",
        "1",
        "2",
        "worker-0",
        "7",
        str(os.getpid()),
        "1,3",
    ]
    assert capfd.readouterr() == ("", "")


def test_a_rank_that_fails_ends_the_others_and_is_heard(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    body = f"""
        mark(f"pid-{{rank}}")
        if rank == 1:
            wait_for("pid-0", "pid-2")
            print("a line of rank 1", file=sys.stderr)
            raise ArithmeticError("the loss is lost")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as one that waits in gloo for a dead rank
        {HANG}
    """
    assert run(program(tmp_path, body), Share(3)) == 1
    stderr = capfd.readouterr().err.splitlines()
    assert stderr[0] == "[rank 1] a line of rank 1"
    assert "[rank 1] ArithmeticError: the loss is lost" in stderr
    assert stderr[-1] == "error: rank 1 ended with exit code 1; the others were ended"
    assert all(gone(int((tmp_path / f"pid-{rank}").read_text())) for rank in range(3))


def test_a_rank_that_is_killed_is_the_reason_though_others_fail_of_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    body = """
        mark(f"pid-{rank}")
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        wait_for("pid-1")
        while not (here / "pid-1").read_text():
            pass
        time.sleep(0.2)
        sys.exit("connection closed by peer")
    """
    assert run(program(tmp_path, body), Share(2)) == 128 + signal.SIGKILL
    said = capfd.readouterr().err.splitlines()
    assert said[-1].startswith("error: rank 1 was ended by SIGKILL (by hand, or for want of memory)")


def test_what_a_rank_started_ends_with_it(tmp_path: Path) -> None:
    body = f"""
        if rank == 0:
            if os.fork() == 0:
                mark("grandchild")
                {HANG}
            {HANG}
        wait_for("grandchild")
        sys.exit(3)
    """
    assert run(program(tmp_path, body), Share(2)) == 3
    grandchild, deadline = int((tmp_path / "grandchild").read_text()), time.monotonic() + 10
    while not gone(grandchild) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert gone(grandchild)


@pytest.mark.parametrize("same", [True, False])
def test_an_error_that_rank_0_has_told_is_not_told_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], same: bool
) -> None:
    body = f"""
        line = "no such file" if {same} or rank == 0 else "rank 1 has no such GPU"
        print("error:", line, file=sys.stderr)
        Path(os.environ["NEOXKIT_SAID"]).write_text(line)
        if rank == 0:
            wait_for("done-1")
        mark(f"done-{{rank}}")
        os._exit(2)
    """
    assert run(program(tmp_path, body), Share(2), restarts=3) == 2
    told = ["error: no such file"] + ([] if same else ["[rank 1] error: rank 1 has no such GPU"])
    assert sorted(capfd.readouterr().err.splitlines()) == sorted(told)


def test_a_users_error_of_another_rank_alone_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    body = f"""
        if rank == 0:
            {HANG}
        print("error: no such GPU", file=sys.stderr)
        Path(os.environ["NEOXKIT_SAID"]).write_text("no such GPU")
        sys.exit(2)
    """
    assert run(program(tmp_path, body), Share(2)) == 2
    assert capfd.readouterr().err.splitlines() == [
        "[rank 1] error: no such GPU",
        "error: rank 1 ended with exit code 2; the others were ended",
    ]


def test_a_job_is_started_again_after_a_failure_and_no_more_often_than_asked(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    body = """
        attempt = int(os.environ["NEOXKIT_ATTEMPT"])
        mark(f"started-{attempt}-{rank}")
        wait_for(*(f"started-{attempt}-{other}" for other in range(2)))
        if rank == 1 and attempt < int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGSEGV)
    """
    command = program(tmp_path, body)
    assert run([*command, "2"], Share(2), restarts=2) == 0
    told = capfd.readouterr().err.splitlines()
    assert told[0].startswith("error: rank 1 was ended by SIGSEGV")
    assert told[1] == "restart 1 of 2: the run goes on from its newest checkpoint"
    assert len(told) == 4
    for path in tmp_path.glob("started-*"):
        path.unlink()
    assert run([*command, "9"], Share(2), restarts=1) == 128 + signal.SIGSEGV
    assert len(list(tmp_path.glob("started-*"))) == 4


STARTER = """
import sys
from neoxkit.train.launch import local
local.PATIENCE = 1.0
sys.exit(local.run(sys.argv[2:], local.Share(2), restarts=int(sys.argv[1])))
"""


def start(command: list[str], restarts: int = 0) -> subprocess.Popen[str]:
    """A process that runs a command as two ranks."""
    return subprocess.Popen([sys.executable, "-c", STARTER, str(restarts), *command], stderr=subprocess.PIPE, text=True)


def ready(folder: Path, *names: str) -> None:
    """Wait until ranks have left their marks."""
    deadline = time.monotonic() + 30
    while not all((folder / name).exists() for name in names):
        assert time.monotonic() < deadline
        time.sleep(0.02)


COUNTING = """
    counts = {}
    def count(number, frame):
        counts[number] = counts.get(number, 0) + 1
        Path(here / f"signals-{rank}").write_text(" ".join(f"{signal.Signals(n).name}={c}" for n, c in counts.items()))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, count)
    mark(f"ready-{rank}")
    while not counts:
        time.sleep(0.01)
    time.sleep(0.3)
    sys.exit(128 + next(iter(counts)))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_reaches_every_rank_once_and_is_no_failure(tmp_path: Path, number: signal.Signals) -> None:
    starter = start(program(tmp_path, COUNTING), restarts=3)
    ready(tmp_path, "ready-0", "ready-1")
    starter.send_signal(number)
    _, stderr = starter.communicate(timeout=30)
    assert (starter.returncode, stderr) == (128 + number, "")
    assert [(tmp_path / f"signals-{rank}").read_text() for rank in range(2)] == [f"{number.name}=1"] * 2


def test_ctrl_c_at_a_terminal_reaches_every_rank_once(tmp_path: Path) -> None:
    """The terminal sends it to its whole foreground group; the ranks are not in it."""
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, "0", *program(tmp_path, COUNTING)], start_new_session=True
    )
    ready(tmp_path, "ready-0", "ready-1")
    os.killpg(starter.pid, signal.SIGINT)
    assert starter.wait(30) == 130
    assert [(tmp_path / f"signals-{rank}").read_text() for rank in range(2)] == ["SIGINT=1"] * 2


def test_a_job_that_is_told_twice_ends_though_its_ranks_do_not_listen(tmp_path: Path) -> None:
    body = f"""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        mark(f"ready-{{rank}}")
        {HANG}
    """
    starter = start(program(tmp_path, body), restarts=3)
    ready(tmp_path, "ready-0", "ready-1")
    starter.send_signal(signal.SIGINT)
    time.sleep(0.2)
    starter.send_signal(signal.SIGINT)
    assert starter.wait(30) == 128 + signal.SIGKILL
    starter.communicate()


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    """`nohup neoxkit train` is told nothing when the terminal closes, nor are its ranks."""
    body = """
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        mark(f"ready-{rank}")
        wait_for("enough")
    """
    shell = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", sys.executable, "-c", STARTER, "0", *program(tmp_path, body)]
    starter = subprocess.Popen(shell)
    ready(tmp_path, "ready-0", "ready-1")
    starter.send_signal(signal.SIGHUP)
    (tmp_path / "enough").touch()
    assert starter.wait(30) == 0


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the kernel of Linux tells a process of its parent's death"
)
def test_ranks_end_when_what_started_them_is_killed(tmp_path: Path) -> None:
    body = f"""
        from neoxkit.train.launch.local import end_with
        end_with(int(os.environ["NEOXKIT_CHILD"]))
        mark(f"pid-{{rank}}")
        {HANG}
    """
    starter = start(program(tmp_path, body))
    ready(tmp_path, "pid-0", "pid-1")
    pids = [int((tmp_path / f"pid-{rank}").read_text()) for rank in range(2)]
    starter.kill()
    starter.communicate()
    deadline = time.monotonic() + 20
    while not all(map(gone, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert all(map(gone, pids))


def test_leaving_skips_the_interpreters_end(tmp_path: Path) -> None:
    code = """
import atexit, sys
from neoxkit.train.launch.local import leave
atexit.register(print, "torn down")
print("done", end="")
leave(5)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (5, "done")


def test_the_share_of_a_machine_that_pdsh_reached() -> None:
    import tiny_runs

    environ = {NODES: "a:0,1/user@b:1,2,3", NODE: "1", "MASTER_ADDR": "a", "MASTER_PORT": "7"}
    config = tiny_runs.config()
    wanted = Share(3, first=2, world=5, address="a", port=7, devices=(1, 2, 3))
    assert share_of(config, None, None, environ, False) == wanted
    assert not wanted.whole
    assert share_of(config, None, None, {**environ, CHILD: "1"}, False) is None
