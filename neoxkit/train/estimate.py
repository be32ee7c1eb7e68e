"""What a run would need, before it is started: `neoxkit plan`. Nothing is read but the configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any

from neoxkit.config.run import RunConfig
from neoxkit.errors import ConfigError
from neoxkit.log import counted, unit_of
from neoxkit.nn.decoder import specs
from neoxkit.spec import Role, TensorSpec, volume, whole
from neoxkit.train.flops import count, device_of, peak_of
from neoxkit.train.memory import Memory, largest_micro, of_run
from neoxkit.train.schedule import samples_by_length

RESERVED = 1.5e9
"""Bytes that CUDA, NCCL and the kernels' workspaces take of a GPU: 0.5 to 2 GB, and no tensor of the run."""


@dataclass(frozen=True)
class Machine:
    """What is assumed of the devices: how many, of which name, what they reach, hold and cost."""

    devices: int
    name: str | None = None
    peak: float | None = None
    """Operations a second; None where it is not known."""
    mfu: float = 0.4
    memory: float | None = None
    """Bytes of one device; None where it is not known."""
    price: float | None = None
    """Of one device for an hour."""


def machine_of(
    config: RunConfig, devices: int | None, name: str | None, memory: float | None, mfu: float, price: float | None
) -> Machine:
    """The devices that options describe; `memory` in GB. Raises ConfigError for a name that is not known.

    What the name says of memory and operations gives way to `memory` and `logging.peak_tflops`.
    """
    known = device_of(name) if name else None
    stated = config.logging.peak_tflops
    if name and known is None and stated is None:
        raise ConfigError(f"the device {name} is not known", "set logging.peak_tflops, and give --memory")
    room = memory * 1e9 if memory is not None else known.memory if known else None
    count = devices or config.mesh.model * config.dp
    return Machine(count, name, peak_of(name or "", config.precision, stated), mfu, room, price)


@dataclass(frozen=True)
class Estimate:
    """A run on a machine: its parameters by part, its operations, the memory of each pipeline stage's devices."""

    config: RunConfig
    machine: Machine
    parameters: Mapping[str, int]
    memory: list[Memory]
    micro: int | None
    """The most samples of a micro-batch that fit; None where the memory of a device is not known."""

    @cached_property
    def samples(self) -> Mapping[int, int]:
        """Samples of the whole run by their length: batches and samples may be smaller at first."""
        return samples_by_length(self.config, self.config.steps)

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return sum(length * number for length, number in self.samples.items())

    @property
    def flops_per_token(self) -> float:
        """Operations of the model, forward and backward."""
        return count(self.config.model, self.config.sequence).training / self.config.sequence

    @property
    def executed_per_token(self) -> float:
        """The same with what is computed again."""
        flops = count(self.config.model, self.config.sequence, self.config.recompute)
        return flops.executed / self.config.sequence

    @property
    def seconds(self) -> float | None:
        """How long the run takes, where the devices' peak is known."""
        if self.machine.peak is None:
            return None
        return self.run_flops / (self.machine.devices * self.machine.peak * self.machine.mfu)

    @property
    def cost(self) -> float | None:
        """What the run costs, where a price is given."""
        if self.seconds is None or self.machine.price is None:
            return None
        return self.seconds / 3600 * self.machine.devices * self.machine.price

    def json(self) -> dict[str, Any]:
        """An object:

        parameters          by part: embedding, attention, mlp, norms, head; and total
        mesh                sizes: tp, pp, cp, dp
        tokens              of the run; tokens_per_step of a step, when batches and samples have grown
        flops               per_token: forward and backward of the model, in a whole sample;
                            executed_per_token: with what is computed again; run: of the model and the
                            whole run
        memory              for each pipeline stage, bytes of one device: weights, gradients, optimizer,
                            activations, loss, total; host: in the CPU's memory
        micro_batch         samples: of the run; largest: that fits, null where memory is not known
        seconds, cost       of the run; null where peak or price is not known
        assumed             devices, name, peak (operations a second), mfu, memory (bytes), price
        """
        config = self.config
        return {
            "parameters": {**self.parameters, "total": sum(self.parameters.values())},
            "mesh": {"tp": config.mesh.tp, "pp": config.mesh.pp, "cp": config.mesh.cp, "dp": config.dp},
            "tokens": self.tokens,
            "tokens_per_step": config.batch.size * config.sequence,
            "flops": {
                "per_token": self.flops_per_token,
                "executed_per_token": self.executed_per_token,
                "run": self.run_flops,
            },
            "memory": [{**each._asdict(), "total": each.total} for each in self.memory],
            "micro_batch": {"samples": config.micro, "largest": self.micro},
            "seconds": self.seconds,
            "cost": self.cost,
            "assumed": vars(self.machine),
        }

    def lines(self) -> Iterator[str]:
        """The same for a person."""
        config, machine = self.config, self.machine
        total = sum(self.parameters.values())
        yield _line("model", f"{config.model.family}, {total:,} parameters")
        yield _line(
            "", ", ".join(f"{part} {said(number).rstrip()}" for part, number in self.parameters.items() if number)
        )
        zero = f", ZeRO {config.zero.stage}" if config.zero.stage else ""
        shared = f" x cp {config.mesh.cp}" if config.mesh.cp > 1 else ""
        mesh = f"tp {config.mesh.tp} x pp {config.mesh.pp}{shared} x dp {config.dp}{zero}"
        yield _line("devices", f"{machine.devices}{f' {machine.name}' if machine.name else ''}: {mesh}")
        yield _line(
            "a step",
            f"{counted(config.batch.size, 'sample')} of {counted(config.sequence, 'token')}, in "
            f"{counted(config.accumulation, 'micro-batch')} of {config.micro} on "
            + (f"each of {config.dp} ranks" if config.dp > 1 else "1 rank"),
        )
        grows = "; fewer a step at first" if config.batch.warmup or config.data.curriculum else ""
        yield _line("the run", f"{counted(config.steps, 'step')}, {said(self.tokens).rstrip()} tokens{grows}")
        again = self.executed_per_token / self.flops_per_token
        more = f"; {again:.2f} times as many with recomputation" if again > 1 else ""
        yield _line("operations", f"{said(self.flops_per_token)}FLOP a token, {self.run_flops:.3g} FLOP in all{more}")
        yield from self._memory_lines()
        if self.micro is not None and machine.memory is not None:
            fits = "fits" if self.micro == 1 else "fit"
            fit = f"at most {counted(self.micro, 'sample')} {fits}" if self.micro else "not even one sample fits"
            yield _line("micro-batch", f"{fit} in {machine.memory / 1e9:g} GB, of which CUDA takes {RESERVED / 1e9:g}")
        if self.seconds is not None and machine.peak is not None:
            speed = self.tokens / self.seconds
            yield _line(
                "time",
                f"{_duration(self.seconds)} at an MFU of {machine.mfu:.0%} of {machine.peak / 1e12:,.0f} TFLOP/s "
                f"({speed:,.0f} tokens/s)",
            )
        if self.cost is not None:
            yield _line("cost", f"{self.cost:,.2f} at {machine.price:g} for a device and hour")

    @cached_property
    def run_flops(self) -> float:
        """Operations of the model in the whole run."""
        return sum(count(self.config.model, length).training * number for length, number in self.samples.items())

    def _memory_lines(self) -> Iterator[str]:
        parts = ("weights", "gradients", "optimizer", "activations", "loss", "total")
        unit, unit_name = unit_of(max(max(each.total, each.host) for each in self.memory))
        titles = "".join(f"{part:>13}" for part in parts) + ("   in the CPU's" if self.hosted else "")
        yield _line(f"memory, {unit_name}", titles)
        for each in self.memory:
            name = "a device" if len(self.memory) == 1 else f"stage {each.stage}"
            sizes = "".join(f"{getattr(each, part) / unit:13.2f}" for part in parts)
            yield _line("  " + name, sizes + (f"{each.host / unit:15.2f}" if self.hosted else ""))

    @property
    def hosted(self) -> bool:
        """Whether part of the state lies in the CPU's memory."""
        return any(each.host for each in self.memory)


def estimate(config: RunConfig, machine: Machine) -> Estimate:
    """The estimate of a run on a machine. Raises ConfigError when its mesh does not divide the devices.

    A precision that is to be measured is taken for bf16, as on a GPU.
    """
    if config.precision == "auto":
        config = config.computing_in("bf16")
    config = config.on(machine.devices)
    found = specs(config.model)
    room = None if machine.memory is None else int(machine.memory - RESERVED)
    micro = None if room is None else largest_micro(config, room)
    return Estimate(config, machine, parts_of(found), of_run(config), micro)


def parts_of(found: Mapping[str, TensorSpec]) -> dict[str, int]:
    """Parameters by what they belong to, of the specs of a model."""
    counts = {"embedding": 0, "attention": 0, "mlp": 0, "norms": 0, "head": 0}
    for name, spec in found.items():
        if spec.role is Role.EMBED:
            part = "embedding"
        elif spec.role is Role.HEAD:
            part = "head"
        else:
            part = "attention" if ".attn." in name else "mlp" if ".mlp." in name else "norms"
        counts[part] += volume(whole(spec.shape))
    return counts


def said(number: float) -> str:
    """A large number in three digits: 405334016 is "405 M"."""
    for factor, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {letter}"
    return f"{number:.3g} "


def _line(name: str, value: str) -> str:
    return f"{name:<14}{value}"


def _duration(seconds: float) -> str:
    if seconds >= 172800:
        return f"{seconds / 86400:,.1f} days"
    return str(timedelta(seconds=round(seconds)))
