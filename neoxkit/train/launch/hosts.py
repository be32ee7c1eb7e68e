"""The machines of a job: hostfiles as DeepSpeed and gpt-neox read them, and which of their devices to use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neoxkit.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Host:
    """A machine and the devices of it that are used. A scheduler's own machine has no name yet."""

    name: str
    devices: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}:{','.join(map(str, self.devices))}"

    @property
    def address(self) -> str:
        """Its name, without the user to log in as."""
        return self.name.rpartition("@")[2]


def read_hosts(path: Path) -> tuple[Host, ...]:
    """The machines of a hostfile: a line `NAME slots=N` each, `#` begins a comment.

    Raises ConfigError, with file and line, for anything else: DeepSpeed leaves unread what follows `slots=N`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text", "name a hostfile") from None
    found: dict[str, int] = {}
    hosts = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = re.fullmatch(r"([A-Za-z0-9][\w.@-]*)\s+slots\s*=\s*(\d+)", text)
        if match is None:
            raise ConfigError(f"{path}:{number}: {text!r} is no machine", "write it as `worker-0 slots=8`")
        name, slots = match[1], int(match[2])
        if slots == 0:
            raise ConfigError(f"{path}:{number}: {name} has no slots", "give it some, or take the line out")
        if name in found:
            raise ConfigError(
                f"{path}:{number}: {name} is on line {found[name]} already", "give all its slots in one line"
            )
        found[name] = number
        hosts.append(Host(name, tuple(range(slots))))
    if not hosts:
        raise ConfigError(f"{path} names no machine", "write lines like `worker-0 slots=8`")
    return tuple(hosts)


def select(
    hosts: Sequence[Host], include: str = "", exclude: str = "", nodes: int | None = None, devices: int | None = None
) -> tuple[Host, ...]:
    """The machines and devices that are used, in the hostfile's order.

    `include` and `exclude` are "NAME[:DEVICE,...]@NAME...", as DeepSpeed writes them; `nodes` keeps so
    many machines and `devices` so many devices of each. Raises ConfigError for what is not there, for
    both ways at once, and when nothing is left.
    """
    if (include and exclude) or ((include or exclude) and (nodes or devices)):
        raise ConfigError(
            "--include, --exclude and --num-nodes or --num-gpus each choose machines in their own way", "give one"
        )
    if include or exclude:
        named = _named(include or exclude, "--include" if include else "--exclude", hosts)
        kept = {host.name: _kept(host, named.get(host.name), bool(include)) for host in hosts}
        hosts = [Host(host.name, kept[host.name]) for host in hosts if kept[host.name]]
        if not hosts:
            raise ConfigError("--exclude leaves no device", "exclude less")
    if nodes is not None and nodes > len(hosts):
        raise ConfigError(f"--num-nodes {nodes}, and the hostfile has {len(hosts)} machines", "ask for fewer")
    hosts = hosts[:nodes]
    for host in hosts:
        if devices is not None and devices > len(host.devices):
            raise ConfigError(f"--num-gpus {devices}, and {host.name} has {len(host.devices)} slots", "ask for fewer")
    return tuple(Host(host.name, host.devices[:devices]) for host in hosts)


def _kept(host: Host, named: tuple[int, ...] | None, including: bool) -> tuple[int, ...]:
    """The devices of a machine that are kept: () is all of it in `named`, None that it is not named."""
    if named is None:
        return () if including else host.devices
    if including:
        return named or host.devices
    return tuple(device for device in host.devices if named and device not in named)


def _named(text: str, option: str, hosts: Sequence[Host]) -> dict[str, tuple[int, ...]]:
    """Devices by machine, as `--include` and `--exclude` name them; none stands for all."""
    known = {host.name: host.devices for host in hosts}
    found: dict[str, tuple[int, ...]] = {}
    for each in text.split("@"):
        match = re.fullmatch(r"([^:,\s]+)(?::(\d+(?:,\d+)*))?", each)
        if match is None:
            raise ConfigError(f"{option} {text}: {each!r} is not NAME or NAME:0,1", "write it as worker-0@worker-1:0,2")
        name, devices = match[1], tuple(sorted({int(one) for one in (match[2] or "").split(",") if one}))
        if name not in known:
            raise ConfigError(f"{option} {text}: {name} is not in the hostfile", "name one that is there")
        if absent := [str(one) for one in devices if one not in known[name]]:
            raise ConfigError(f"{option} {text}: {name} has no slot {', '.join(absent)}", "name one that it has")
        found[name] = tuple(sorted({*found.get(name, ()), *devices}))
    return found


def spell(hosts: Sequence[Host]) -> str:
    """Machines in one word, as `parse` reads it."""
    return "/".join(map(str, hosts))


def parse(text: str) -> tuple[Host, ...]:
    """What `spell` wrote."""
    parts = (each.rpartition(":") for each in text.split("/"))
    return tuple(Host(name, tuple(map(int, devices.split(",")))) for name, _, devices in parts)
