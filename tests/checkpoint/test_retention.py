"""Which checkpoints of a run are kept, and which go."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neoxkit.checkpoint import retention
from neoxkit.checkpoint.attempt import FILES, LOCK, home_of
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.retention import carry_out, collect, keep, plan, size_of
from neoxkit.errors import CheckpointError


@pytest.fixture
def run(save, tmp_path: Path) -> Path:
    """A run with the checkpoints of steps 10 to 60."""
    for step in range(10, 61, 10):
        save(f"run/step-{step:08d}", step=step)
    (tmp_path / "run" / "latest").write_text("step-00000060\n")
    return tmp_path / "run"


def steps(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in run.glob("step-*"))


@given(
    st.lists(st.integers(0, 60), unique=True, min_size=1).map(sorted),
    st.one_of(st.none(), st.integers(1, 9)),
    st.one_of(st.none(), st.integers(1, 9)),
    st.integers(0, 60),
)
def test_the_rule(given_steps: list[int], last: int | None, every: int | None, latest: int) -> None:
    kept = keep({str(step): step for step in given_steps}, last, every, str(latest))
    expected = set(given_steps)
    if last is not None or every is not None:
        expected = {given_steps[-1], *(given_steps[-last:] if last else ()), *({latest} & expected)}
        expected |= {step for step in given_steps if every is not None and step % every == 0}
    assert {int(name) for name in kept} == expected
    assert all(kept.values())


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, [10, 20, 30, 40, 50, 60]),
        ({"last": 2}, [50, 60]),
        ({"last": 99}, [10, 20, 30, 40, 50, 60]),
        ({"every": 20}, [20, 40, 60]),
        ({"every": 25}, [50, 60]),
        ({"last": 1, "every": 30}, [30, 60]),
    ],
)
def test_collect(run: Path, options: dict[str, int], left: list[int]) -> None:
    size = size_of(run)
    planned = collect(run, **options, dry_run=True)
    assert steps(run) == [10, 20, 30, 40, 50, 60]
    found = collect(run, **options)
    assert found.json() == {**planned.json(), "dry_run": False}
    assert planned.dry_run
    assert steps(run) == left == [int(name[5:]) for name in found.kept]
    assert size - size_of(run) == found.bytes
    assert all(Checkpoint.open(run / name) for name in found.kept)
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_what_latest_names_is_kept(run: Path) -> None:
    (run / "latest").write_text("step-00000020\n")
    found = collect(run, last=1)
    assert steps(run) == [20, 60]
    assert found.kept["step-00000020"] == "latest names it"


def test_invalid_ones_count_for_nothing_and_go_only_when_asked(run: Path) -> None:
    (run / "step-00000060" / "config.json").unlink()
    (run / "step-00000030" / "manifest.json").write_text("{")
    (run / "latest").write_text("step-00000060\n")
    found = collect(run, last=1)
    assert steps(run) == [30, 50, 60]
    assert set(found.invalid) == {"step-00000030", "step-00000060"}
    assert "missing" in found.invalid["step-00000060"]
    found = collect(run, invalid=True)
    assert steps(run) == [50]
    assert set(found.removed) == {"step-00000030", "step-00000060"}


def test_without_a_valid_one_nothing_goes(run: Path) -> None:
    for path in run.glob("step-*"):
        (path / "config.json").unlink()
    found = collect(run, last=1, every=20, invalid=True)
    assert len(found.invalid) == 6
    assert found.removed == {}
    assert len(steps(run)) == 6


def test_more_than_a_checkpoint_is_left(run: Path) -> None:
    (run / "step-00000010" / "notes.txt").write_text("x")
    (run / "step-00000020").rename(run / "elsewhere")
    (run / "step-00000020").symlink_to(run / "elsewhere")
    found = collect(run, last=1)
    assert set(found.left) == {"step-00000010", "step-00000020"}
    assert "notes.txt" in found.left["step-00000010"]
    assert steps(run) == [10, 20, 60]
    assert Checkpoint.open(run / "elsewhere")


READER = """
import sys
from neoxkit.checkpoint.reader import Checkpoint
checkpoint = Checkpoint.open(sys.argv[1])
checkpoint.read("model/head.weight")
print("reading", flush=True)
sys.stdin.readline()
checkpoint.read("model/embed.weight")
checkpoint.close()
print("read", flush=True)
sys.stdin.readline()
"""


def test_one_that_another_process_reads_is_left_until_it_is_done(run: Path) -> None:
    command = [sys.executable, "-c", READER, str(run / "step-00000010")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdin is not None
        assert reader.stdout.readline() == "reading\n"
        assert "step-00000010" in collect(run, last=1, dry_run=True).left
        assert "another process reads it" in collect(run, last=1).left["step-00000010"]
        assert steps(run) == [10, 60]
        print(file=reader.stdin, flush=True)
        assert reader.stdout.readline() == "read\n"
        assert collect(run, last=1).left == {}
        assert steps(run) == [60]
        reader.stdin.close()


def test_one_that_came_into_use_after_the_plan_is_left(run: Path) -> None:
    planned = plan(run, [run / "step-00000010", run / "step-00000060"], last=1)
    assert set(planned.removed) == {"step-00000010"}
    checkpoint = Checkpoint.open(run / "step-00000010")
    checkpoint.read("model/head.weight")
    assert set(carry_out(planned).left) == {"step-00000010"}
    assert planned.bytes == 0
    checkpoint.close()
    assert 10 in steps(run)


def test_a_reader_does_not_begin_with_one_that_is_being_removed(run: Path) -> None:
    checkpoint = Checkpoint.open(run / "step-00000010")
    with retention._alone(checkpoint.path) as free:
        assert free
        with pytest.raises(CheckpointError, match="another process is removing it"):
            checkpoint.read("model/head.weight")
    assert checkpoint.read("model/head.weight").shape == (50, 16)


def test_two_at_once_remove_each_checkpoint_once(run: Path) -> None:
    planned = [plan(run, sorted(run.glob("step-*")), last=2) for _ in range(2)]
    first, second = (carry_out(each) for each in planned)
    assert len(first.removed) == 4
    assert second.removed == second.left == {}
    assert steps(run) == [50, 60]


def test_dead_attempts_go_and_live_ones_stay(run: Path, save) -> None:
    dead = home_of(run / "step-00000070", "0a1b2c")
    (dead / FILES).mkdir(parents=True)
    (dead / FILES / "config.json").write_text("{}" * 50)
    (dead / LOCK).touch()
    home = home_of(run / "step-00000080", "0a1b2d")
    home.mkdir()
    held = retention_lock(home)
    found = collect(run, dry_run=True)
    assert found.attempts == {dead.name: 100}
    assert dead.exists()
    assert collect(run).attempts == {dead.name: 100}
    assert not dead.exists()
    assert home.exists()
    held.close()


def retention_lock(home: Path):
    """Hold an attempt, as the command that writes it does."""
    import fcntl

    file = (home / LOCK).open("w+")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


@pytest.mark.parametrize(
    ("name", "said"),
    [("nowhere", "no such folder"), ("run/step-00000010", "a checkpoint, not"), ("empty", "it has no checkpoints")],
)
def test_what_is_no_run(run: Path, tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=said):
        collect(tmp_path / name, last=1)
    assert collect(tmp_path / "empty").bytes == 0


def test_json(run: Path) -> None:
    found = collect(run, last=1, dry_run=True).json()
    assert set(found) == {"run", "kept", "left", "invalid", "removed", "attempts", "bytes", "dry_run"}
    assert json.loads(json.dumps(found)) == found
