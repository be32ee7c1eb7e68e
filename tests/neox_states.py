"""The optimizer's state of gpt-neox checkpoints, for tests: read from one, and written in every form that there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from neox_checkpoints import STEP, Layers, sequential, settings, write
from torch import Tensor

State = dict[str, dict[str, Tensor]]
"""The optimizer's state by name ("2.attention.dense.weight"), in the order of the network: by kind, all in fp32."""

KINDS = ("master", "exp_avg", "exp_avg_sq")


def read_state(oracle: Path) -> State:
    """Weights (which are the masters) and moments of a checkpoint without pipeline, tensor parallelism and ZeRO."""
    held = torch.load(oracle / STEP / "mp_rank_00_model_states.pt", weights_only=False)
    weights = {name.removeprefix("sequential."): value for name, value in held["module"].items()}
    order = [name for group in grouped(weights) for name in group]
    moments = held["optimizer"]["state"]
    assert len(order) == len(moments)
    numbers = {name: number for number, name in enumerate(order)}
    return {
        name: {"master": value, **{kind: moments[numbers[name]][kind] for kind in KINDS[1:]}}
        for name, value in weights.items()
    }


def about(oracle: Path) -> dict[str, Any]:
    """What the rank's file says beside weights and optimizer."""
    held = torch.load(oracle / STEP / "mp_rank_00_model_states.pt", weights_only=False)
    return {key: value for key, value in held.items() if key not in ("module", "optimizer")}


def grouped(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The decayed parameters and the others."""
    names = list(names)
    plain = [name for name in names if not name.endswith("bias") and "norm." not in name]
    return plain, [name for name in names if name not in plain]


def cut_state(state: State, tp: int) -> list[State]:
    """The same on tensor-parallel ranks, as gpt-neox cuts a model with gpt_j_residual."""
    cut: list[State] = [{} for _ in range(tp)]
    for name, kinds in state.items():
        row = name.endswith(("attention.dense", "mlp.linear2")) or ".dense." in name or ".linear2." in name
        for rank in range(tp):
            cut[rank][name] = {kind: _cut(name, row, kind, value, rank, tp) for kind, value in kinds.items()}
    return cut


def _cut(name: str, row: bool, kind: str, value: Tensor, rank: int, tp: int) -> Tensor:
    if row and name.endswith("bias"):
        return value / tp if kind == "master" else value.clone()
    if "norm" in name or "position" in name:
        return value.clone()
    return value.chunk(tp, dim=1 if row else 0)[rank].clone()


def stage_of(state: State, first: int, last: int) -> State:
    """The parameters of the layers first:last."""
    return {name: kinds for name, kinds in state.items() if first <= int(name.split(".")[0]) < last}


def layer_files(ranks: Iterable[State], dtype: torch.dtype) -> Layers:
    """The weights, for `write`."""
    layers: Layers = {}
    for rank, state in enumerate(ranks):
        for name, kinds in state.items():
            layer, _, rest = name.partition(".")
            layers.setdefault((int(layer), rank), {})[rest] = kinds["master"].to(dtype)
    return dict(sorted(layers.items()))


def adam(state: State, groups: Iterable[list[str]], steps: int = 6) -> dict[str, Any]:
    """torch's state of an optimizer, with the count where DeepSpeed's FusedAdam has it."""
    states: dict[int, Any] = {}
    described = []
    for number, names in enumerate(groups):
        params = range(len(states), len(states) + len(names))
        for at, name in zip(params, names, strict=True):
            last = name == names[-1]
            states[at] = {"step": steps if last else 0, **{kind: state[name][kind] for kind in KINDS[1:]}}
        described.append({**HYPER, "weight_decay": 0.0 if number else 0.1, "params": list(params)})
    return {"state": states, "param_groups": described}


HYPER: dict[str, Any] = {"lr": 0.007750000000000001, "betas": [0.9, 0.95], "eps": 1e-8, "step": 0}


def flat_adam(groups: Iterable[dict[str, Tensor]], steps: int = 6) -> dict[str, Any]:
    """The same over one flat buffer for each group."""
    held = {number: {"step": steps, **group} for number, group in enumerate(groups)}
    described = [{**HYPER, "weight_decay": 0.0 if number else 0.1, "params": [number]} for number in held]
    return {"state": held, "param_groups": described}


def flattened(state: State, names: Iterable[str], pad: int = 1) -> dict[str, Tensor]:
    """A group's flat buffers by kind, padded to a multiple."""
    found = {}
    for kind in KINDS:
        flat = torch.cat([state[name][kind].flatten() for name in names])
        found[kind] = torch.cat([flat, flat.new_full((-len(flat) % pad,), 7.0)])
    return found


def zero_files(state: State, groups: Iterable[list[str]], dp: int, changes: dict[str, Any] | None = None) -> list[Any]:
    """The files of data-parallel ranks, cut as DeepSpeed's ZeRO 1 does; `changes` to each one's optimizer."""
    flat = [flattened(state, names, 2 * dp) for names in groups]
    counts = [sum(state[name]["master"].numel() for name in names) for names in groups]
    files = []
    for rank in range(dp):
        cut = [{kind: value.chunk(dp)[rank].clone() for kind, value in group.items()} for group in flat]
        lean = [
            max(0, min(len(each["master"]), count - rank * len(each["master"])))
            for each, count in zip(cut, counts, strict=True)
        ]
        held = {
            "zero_stage": 1,
            "partition_count": [dp] * len(cut),
            "group_paddings": [len(each["master"]) - size for each, size in zip(cut, lean, strict=True)],
            "single_partition_of_fp32_groups": [each["master"][:size] for each, size in zip(cut, lean, strict=True)],
            "base_optimizer_state": flat_adam([{kind: each[kind] for kind in KINDS[1:]} for each in cut]),
            **(changes or {}),
        }
        files.append({"optimizer_state_dict": {k: v for k, v in held.items() if v is not ...}, "ds_version": "0.19.8"})
    return files


def write_zero(
    folder: Path, rank: int, files: Iterable[Any], name: str = "zero_pp_rank_{}_mp_rank_{:02d}_optim_states.pt"
) -> None:
    """Put the files of data-parallel ranks into a checkpoint."""
    for data, held in enumerate(files):
        torch.save(held, folder / name.format(data, rank))


# The same state in every form that DeepSpeed writes.

Form = Callable[[State, Path, Path], Path]


def pipelined(state: State, oracle: Path, folder: Path, stages: list[int], tp: int = 1, **changes: Any) -> Path:
    """fp32 without ZeRO, in layer files and a rank's file for each stage, which begin at these layers."""
    ranks = []
    for first, last in zip(stages, [*stages[1:], 99], strict=True):
        for part in cut_state(stage_of(state, first, last), tp):
            ranks.append({**about(oracle), "module": None, "mp_world_size": tp, "optimizer": adam(part, grouped(part))})
    return write(folder, layer_files(cut_state(state, tp), torch.float32), settings(oracle, **changes), ranks)


def wrapped(state: State, oracle: Path, folder: Path, dtype: torch.dtype, flat: bool) -> Path:
    """Without ZeRO, in half precision: DeepSpeed's FP16_Optimizer, or FP16_UnfusedOptimizer."""
    groups = grouped(state)
    buffers = [flattened(state, names) for names in groups]
    scale = {"cur_scale": 65536.0, "dynamic_loss_scale": True, "cur_iter": 6}
    if flat:
        held = {"fp32_groups_flat": [each["master"] for each in buffers], "optimizer_state_dict": flat_adam(buffers)}
    else:
        held = {
            "fp32_groups": [[state[name]["master"] for name in names] for names in groups],
            "optimizer_state_dict": adam(state, groups),
        }
    rank = sequential(layer_files([state], dtype), 0)
    return write(folder, {}, settings(oracle), [{**about(oracle), **rank, "optimizer": {**scale, **held}}])


def partitioned(
    state: State,
    oracle: Path,
    folder: Path,
    dp: int,
    stages: list[int] | None = None,
    tp: int = 1,
    told: bool = True,
    uneven: float = 0,
    drift: float = 0,
) -> Path:
    """ZeRO 1 in bf16, without and with pipeline stages and tensor parallelism, and with what DeepSpeed says or not."""
    ranks: list[Any] = []
    parts = []
    for first, last in zip(stages or [0], [*(stages or [0])[1:], 99], strict=True):
        parts += cut_state(stage_of(state, first, last), tp)
    for rank, part in enumerate(parts):
        for name, kinds in part.items():
            if name.endswith(("dense.bias", "linear2.bias")):
                kinds["master"] *= 1 + uneven * (-1) ** rank
            if name == "6.norm.weight":
                kinds["master"] += drift * rank
                kinds["exp_avg"] += drift * rank
    for part in parts:
        shapes = [{name: tuple(part[name]["master"].shape) for name in names} for names in grouped(part)]
        ranks.append({**about(oracle), "module": None, "mp_world_size": tp, "dp_world_size": dp, "optimizer": None})
        ranks[-1]["param_shapes"] = shapes if told else None
    whole: list[State] = [{} for _ in range(tp)]
    for rank, part in enumerate(parts):
        whole[rank % tp] |= part
    made = write(folder, layer_files(whole, torch.bfloat16), settings(oracle), ranks)
    for rank, part in enumerate(parts):
        write_zero(
            made, rank, zero_files(part, grouped(part), dp), "bf16_zero_pp_rank_{}_mp_rank_{:02d}_optim_states.pt"
        )
    return made


def elastic(state: State, oracle: Path, folder: Path) -> Path:
    """ZeRO's elastic form: the moments of each group without what pads them, and one count of steps."""
    made = partitioned(state, oracle, folder, 3)
    for path in made.glob("bf16_zero_*"):
        held = torch.load(path)
        optimizer = held["optimizer_state_dict"]
        moments = optimizer["base_optimizer_state"]["state"]
        sizes = [len(each) for each in optimizer["single_partition_of_fp32_groups"]]
        optimizer["base_optimizer_state"] = [
            {kind: moments[number][kind][:size].clone() for kind in KINDS[1:]} for number, size in enumerate(sizes)
        ]
        torch.save({"optimizer_state_dict": {**optimizer, "base_optimizer_state_step": 6}}, path)
    return made


FORMS: dict[str, Form] = {
    "stage": lambda state, oracle, folder: pipelined(state, oracle, folder, [0]),
    "three stages": lambda state, oracle, folder: pipelined(state, oracle, folder, [0, 3, 5]),
    "two stages, two ranks": lambda state, oracle, folder: pipelined(state, oracle, folder, [0, 4], 2),
    "fp16 flat": lambda state, oracle, folder: wrapped(state, oracle, folder, torch.float16, True),
    "fp16 apart": lambda state, oracle, folder: wrapped(state, oracle, folder, torch.float16, False),
    "zero": lambda state, oracle, folder: partitioned(state, oracle, folder, 1),
    "zero over 4": lambda state, oracle, folder: partitioned(state, oracle, folder, 4),
    "zero over 3, untold": lambda state, oracle, folder: partitioned(state, oracle, folder, 3, told=False),
    "zero elastic": elastic,
    "zero, stages, ranks": lambda state, oracle, folder: partitioned(state, oracle, folder, 2, [0, 3], 2),
    "zero, stages, untold": lambda state, oracle, folder: partitioned(state, oracle, folder, 2, [0, 3], told=False),
}


SMALL: dict[str, Any] = {
    "num_layers": 3,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "seq_length": 6,
    "pos_emb": "rotary",
    "gpt_j_residual": True,
    "no_weight_tying": True,
}
"""Settings of a network of three layers that is small enough to be written many times."""


def small_state() -> State:
    """Masters and moments of such a network."""
    size, generator = SMALL["hidden_size"], torch.Generator().manual_seed(3)
    shapes: dict[str, tuple[int, ...]] = {"0.word_embeddings.weight": (16, size)}
    for layer in range(2, 2 + SMALL["num_layers"]):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes |= {f"{layer}.{norm}.weight": (size,), f"{layer}.{norm}.bias": (size,)}
        for name, rows, columns in (
            ("attention.query_key_value", 3 * size, size),
            ("attention.dense", size, size),
            ("mlp.linear1", 4 * size, size),
            ("mlp.linear2", size, 4 * size),
        ):
            shapes |= {f"{layer}.{name}.weight": (rows, columns), f"{layer}.{name}.bias": (rows,)}
    last = 3 + SMALL["num_layers"]
    shapes |= {f"{last}.norm.weight": (size,), f"{last}.norm.bias": (size,)}
    shapes[f"{last + 1}.final_linear.weight"] = (16, size)
    return {name: {kind: torch.rand(shape, generator=generator) for kind in KINDS} for name, shape in shapes.items()}
