"""What the files of a gpt-neox checkpoint hold of its optimizer, group by group, as DeepSpeed wrote it.

Without ZeRO, in fp32: moments for each parameter. With a wrapper for fp16: masters and moments of a
whole group of parameters in one flat buffer, or of each. With ZeRO 1 or 2, and with bf16: flat buffers
cut into one stretch for each data-parallel rank, in a file of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, prod
from pathlib import Path
from typing import Any

from neoxkit.convert.pickles.storage import Files, Stored
from neoxkit.convert.pickles.torch_file import read_objects
from neoxkit.errors import CheckpointError, ConversionError

MASTER = "master"
MOMENTS = ("exp_avg", "exp_avg_sq")

WITHOUT = "import it with --weights-only, which leaves the optimizer behind"
AGAIN = f"fetch it again, or {WITHOUT}"

ZERO = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+?)_?optim_states\.pt")
"""The file of a data-parallel rank; DeepSpeed of 2020 left the last underscore out."""

Moments = dict[str, Stored]


@dataclass
class Group:
    """The state of a group of parameters on one model-parallel rank, by kind.

    `apart`: a tensor for each parameter, None where it has no state. Else flat buffers that lie end to
    end, in which `paddings` elements follow each parameter.
    """

    kinds: dict[str, list[Stored | None]]
    apart: bool
    steps: int = 0
    about: dict[str, Any] = field(default_factory=dict)
    paddings: list[int] = field(default_factory=list)

    @property
    def shapes(self) -> list[tuple[int, ...] | None]:
        """Of what is apart, or of the buffers."""
        kind = next(iter(self.kinds.values()))
        return [None if each is None else each.shape for each in kind]

    def buffers(self, kind: str) -> list[Stored]:
        """The flat buffers of a kind."""
        return [each for each in self.kinds[kind] if each is not None]


@dataclass
class Held:
    """The groups of one model-parallel rank, the file that says so, and the loss scale where there is one."""

    file: Path
    groups: list[Group]
    scale: float | None


def zero_files(folder: Path) -> dict[int, dict[int, Path]]:
    """ZeRO's files by model-parallel and data-parallel rank. Raises CheckpointError when there are two of one."""
    found: dict[int, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        if match := ZERO.fullmatch(path.name):
            ranks = found.setdefault(int(match[2]), {})
            if other := ranks.get(int(match[1])):
                raise CheckpointError(f"{path}: the same rank's state as {other.name}", f"remove one, or {WITHOUT}")
            ranks[int(match[1])] = path
    return found


def of_zero(
    folder: Path, rank: int, zero: Mapping[int, Mapping[int, Path]], about: Mapping[str, Any], files: Files
) -> Held:
    """The groups of a model-parallel rank, whose data-parallel ranks have a file each.

    Raises CheckpointError when one is missing, ConversionError when they are cut in a way that is not read.
    """
    paths = zero.get(rank, {})
    states = {data: _state(path) for data, path in sorted(paths.items())}
    told = max([0, *(_count(state.get("partition_count")) for state in states.values())])
    world = max(told or _count(about.get("dp_world_size")) or 1, *(1 + data for data in states), 1)
    for data in range(world):
        if data not in states:
            prefix = "bf16_" if any(p.name[0] == "b" for each in zero.values() for p in each.values()) else ""
            file = folder / f"{prefix}zero_pp_rank_{data}_mp_rank_{rank:02d}_optim_states.pt"
            raise CheckpointError(f"{file}: missing; the optimizer of mp_rank_{rank:02d} is in {world} files", AGAIN)
    groups: list[Group] = []
    for data, state in states.items():
        masters = _flat(paths[data], state.get("single_partition_of_fp32_groups"))
        if data and len(masters) != len(groups):
            raise CheckpointError(f"{paths[data]}: {len(masters)} groups of parameters, not {len(groups)}", AGAIN)
        step = state.get("base_optimizer_state_step")
        paddings = state.get("param_alignment_paddings")
        for number, part in enumerate(_groups(paths[data], state.get("base_optimizer_state"), len(masters), files)):
            if len(part.shapes) != 1 or part.shapes[0] is None or len(part.shapes[0]) != 1:
                raise CheckpointError(f"{paths[data]}: the moments of group {number} are not in one buffer", AGAIN)
            part.kinds[MASTER] = [masters[number]]
            part.steps = max(part.steps, step if isinstance(step, int) else 0)
            part.paddings = _paddings(paddings, number)
            if not data:
                groups.append(part)
                continue
            for kind, buffers in groups[number].kinds.items():
                buffers += part.kinds[kind]
            groups[number].steps = max(groups[number].steps, part.steps)
    scaler = getattr(states[0].get("loss_scaler"), "state", None)
    return Held(paths[0], [_flattened(group) for group in groups], _scale(scaler))


def of_rank(file: Path, held: object, files: Files) -> Held:
    """The groups of a model-parallel rank whose state is whole in its own file: no ZeRO."""
    if not isinstance(held, dict):
        raise CheckpointError(f"{file}: holds no state of an optimizer, as other files do", AGAIN)
    inner = held.get("optimizer_state_dict", held)
    flat, apart = held.get("fp32_groups_flat"), held.get("fp32_groups")
    if inner is not held and flat is None and apart is None:
        raise ConversionError(f"{file}: an optimizer of {', '.join(sorted(map(str, held))[:4])}: not known", WITHOUT)
    if flat is not None:
        buffers = _flat(file, flat)
        groups = _groups(file, inner, len(buffers), files)
        for group, buffer in zip(groups, buffers, strict=True):
            if len(group.shapes) != 1 or group.shapes[0] != buffer.shape:
                raise CheckpointError(f"{file}: masters of {list(buffer.shape)}, moments of {group.shapes}", AGAIN)
            group.kinds[MASTER] = [buffer]
        return Held(file, [_flattened(group) for group in groups], _scale(held))
    if apart is not None and not isinstance(apart, list):
        raise CheckpointError(f"{file}: masters that are in no list", AGAIN)
    groups = _groups(file, inner, None if apart is None else len(apart), files)
    for group, masters in zip(groups, apart or (), strict=apart is not None):
        if not isinstance(masters, list) or len(masters) != len(group.shapes):
            raise CheckpointError(f"{file}: not as many masters as moments", AGAIN)
        group.kinds[MASTER] = [_tensor(file, each) for each in masters]
    return Held(file, groups, _scale(held))


def _paddings(given: object, number: int) -> list[int]:
    """The elements that follow each parameter of a group; none where nothing is said."""
    values = given[number] if isinstance(given, list) and number < len(given) else None
    whole = isinstance(values, list) and all(isinstance(each, int) and each >= 0 for each in values)
    return list(values) if whole else []  # type: ignore[arg-type]


def _flattened(group: Group) -> Group:
    group.apart = False
    return group


def _count(value: object) -> int:
    """How many ranks share a buffer: a number, or one for each group."""
    values = value if isinstance(value, list) else [value]
    return max([0, *(each for each in values if isinstance(each, int) and not isinstance(each, bool))])


def _scale(scaler: object) -> float | None:
    value = scaler.get("cur_scale") if isinstance(scaler, dict) else None
    return float(value) if isinstance(value, int | float) and isfinite(value) else None


def _state(path: Path) -> dict[str, Any]:
    """What a file of ZeRO holds."""
    held = read_objects(path)
    state = held.get("optimizer_state_dict") if isinstance(held, dict) else None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds no state of an optimizer", AGAIN)
    if "local_sub_partitions_of_fp32_groups" in state:
        raise ConversionError(f"{path}: cut into sub-partitions, by the ZeRO 1 of 2020", WITHOUT)
    if "single_partition_of_fp32_groups" not in state:
        raise ConversionError(f"{path}: not of ZeRO 1 or 2, but {', '.join(sorted(map(str, state))[:4])}", WITHOUT)
    return state


def _groups(file: Path, held: object, count: int | None, files: Files) -> list[Group]:
    """The moments of each group, Adam's steps, and what is said of the group.

    torch's form is {"state": {number: moments}, "param_groups": [{"params": [number]}]}; that of an
    elastic ZeRO a list with the moments of each group.
    """
    if isinstance(held, list):
        held = {"state": dict(enumerate(held)), "param_groups": [{"params": [each]} for each in range(len(held))]}
    states, groups = (held.get(key) for key in ("state", "param_groups")) if isinstance(held, dict) else (None, None)
    if not isinstance(states, dict) or not isinstance(groups, list) or (count is not None and len(groups) != count):
        raise CheckpointError(f"{file}: no `state` and `param_groups` of an optimizer, as its masters need", AGAIN)
    if not states:
        raise ConversionError(f"{file}: an optimizer that has made no step", WITHOUT)
    result = []
    for group in groups:
        numbers = group.get("params") if isinstance(group, dict) else None
        if not isinstance(numbers, list) or not all(isinstance(each, int) for each in numbers):
            raise CheckpointError(f"{file}: a group without `params`", AGAIN)
        steps = [_step(group.get("step"), files)]
        moments: list[Moments] = []
        for number in numbers:
            state = states.get(number) or {}
            if not isinstance(state, dict) or (state and not set(MOMENTS) <= set(state)):
                there = ", ".join(sorted(map(str, state))) if isinstance(state, dict) else "no mapping"
                raise ConversionError(f"{file}: the state of an optimizer that is not Adam: {there}", WITHOUT)
            both = {kind: _tensor(file, state[kind]) for kind in MOMENTS} if state else {}
            if len({each.shape for each in both.values()}) > 1:
                raise CheckpointError(f"{file}: moments of one parameter that differ in shape", AGAIN)
            moments.append(both)
            steps.append(_step(state.get("step"), files))
        said = {key: value for key, value in group.items() if key not in ("params", "step")}
        kinds = {kind: [each.get(kind) for each in moments] for kind in MOMENTS}
        result.append(Group(kinds, True, max(steps), said))
    return result


def _step(value: object, files: Files) -> int:
    """A number of steps, told as a number or a tensor; 0 where there is none.

    DeepSpeed's FusedAdam counts in the state of a group's last parameter alone: the greatest is right.
    """
    if isinstance(value, Stored) and prod(value.shape) == 1:
        value = files.read(value).item()
    return int(value) if isinstance(value, int | float) and isfinite(value) else 0


def _tensor(file: Path, value: object) -> Stored:
    if not isinstance(value, Stored):
        raise CheckpointError(f"{file}: something in the optimizer's state that is no tensor", AGAIN)
    return value


def _flat(file: Path, value: object) -> list[Stored]:
    """Flat buffers, one for each group."""
    if not isinstance(value, list) or any(not isinstance(each, Stored) or len(each.shape) != 1 for each in value):
        raise CheckpointError(f"{file}: masters that are not in flat buffers", AGAIN)
    return value
