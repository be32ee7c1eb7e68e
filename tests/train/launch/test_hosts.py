"""Hostfiles and the choice of machines, against DeepSpeed's own reading of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from neoxkit.errors import ConfigError
from neoxkit.train.launch.hosts import Host, parse, read_hosts, select, spell

TEXT = """\
# a comment
worker-0 slots=4

worker-1   slots=4   # the second
10.0.0.7\tslots=2
user@worker-3 slots=1
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A hostfile."""
    path = tmp_path / "hostfile"
    path.write_text(TEXT)
    return path


def as_dict(hosts: tuple[Host, ...]) -> dict[str, list[int]]:
    """Devices by machine, as DeepSpeed keeps them."""
    return {host.name: list(host.devices) for host in hosts}


def test_a_hostfile_is_read_as_deepspeed_reads_it(file: Path) -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    theirs = fetch_hostfile(str(file))
    assert as_dict(read_hosts(file)) == {name: list(range(slots)) for name, slots in theirs.items()}
    assert list(as_dict(read_hosts(file))) == list(theirs)
    assert read_hosts(file)[-1].address == "worker-3"


@pytest.mark.parametrize(
    ("include", "exclude"),
    [
        ("worker-1", ""),
        ("worker-1@worker-0", ""),
        ("worker-0:1,3@10.0.0.7", ""),
        ("worker-0:3,1@worker-0:0", ""),
        ("", "worker-0"),
        ("", "worker-0:0@10.0.0.7:0,1"),
        ("", "worker-1:2@10.0.0.7"),
    ],
)
def test_machines_are_chosen_as_deepspeed_chooses_them(file: Path, include: str, exclude: str) -> None:
    from deepspeed.launcher.runner import fetch_hostfile, parse_inclusion_exclusion

    pool = fetch_hostfile(str(file))
    theirs = parse_inclusion_exclusion(pool, include, exclude)
    assert list(as_dict(select(read_hosts(file), include, exclude)).items()) == list(theirs.items())


def test_the_first_machines_and_devices(file: Path) -> None:
    from deepspeed.launcher.runner import apply_num_nodes_and_gpus, fetch_hostfile, parse_inclusion_exclusion

    pool = parse_inclusion_exclusion(fetch_hostfile(str(file)), "", "")
    for nodes, gpus in ((2, 3), (1, -1), (-1, 1)):
        ours = select(read_hosts(file), nodes=nodes if nodes > 0 else None, devices=gpus if gpus > 0 else None)
        assert as_dict(ours) == dict(apply_num_nodes_and_gpus(pool, nodes, gpus))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a slots=4\nb\n", "hostfile:2: 'b' is no machine; write it as `worker-0 slots=8`"),
        ("a slots=four\n", "hostfile:1: 'a slots=four' is no machine"),
        ("a slots=4 max_slots=8\n", "hostfile:1: 'a slots=4 max_slots=8' is no machine"),
        ("a:4\n", "hostfile:1: 'a:4' is no machine"),
        ("a slots=0\n", "hostfile:1: a has no slots"),
        ("a slots=1\n\nb slots=1\na slots=2\n", "hostfile:4: a is on line 1 already"),
        ("# nothing\n", "hostfile names no machine"),
    ],
)
def test_a_bad_hostfile_is_refused_by_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "hostfile").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)):
        read_hosts(tmp_path / "hostfile")


def test_a_hostfile_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hostfile").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not text"):
        read_hosts(tmp_path / "hostfile")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"include": "worker-0", "exclude": "worker-1"}, "give one"),
        ({"include": "worker-0", "nodes": 1}, "give one"),
        ({"include": "worker-9"}, "worker-9 is not in the hostfile"),
        ({"include": "worker-0:4"}, "worker-0 has no slot 4"),
        ({"include": "worker-0:a"}, "'worker-0:a' is not NAME or NAME:0,1"),
        ({"exclude": "worker-0@worker-1@10.0.0.7@@"}, "'' is not NAME"),
        ({"nodes": 9}, "--num-nodes 9, and the hostfile has 4 machines"),
        ({"devices": 3}, "--num-gpus 3, and 10.0.0.7 has 2 slots"),
    ],
)
def test_a_choice_of_what_is_not_there_is_refused(file: Path, given: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        select(read_hosts(file), **given)  # type: ignore[arg-type]


def test_everything_excluded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leaves no device"):
        select((Host("a", (0, 1)),), exclude="a:0,1")


def test_machines_in_one_word() -> None:
    hosts = (Host("user@a-1.b", (0, 2)), Host("10.0.0.7", (1,)))
    assert spell(hosts) == "user@a-1.b:0,2/10.0.0.7:1"
    assert parse(spell(hosts)) == hosts
