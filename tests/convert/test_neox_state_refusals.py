"""Training states of gpt-neox that cannot be gone on from: each is refused, and says why."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from neox_checkpoints import write
from neox_states import SMALL, State, adam, grouped, layer_files, partitioned, small_state, zero_files

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.convert.neox.source import NeoxSource
from neoxkit.convert.transfer import import_model
from neoxkit.errors import NeoxkitError
from neoxkit.mesh import Mesh


def stale(state: State, made: Path) -> None:
    """Weights that were exchanged under their masters."""
    path = made / "layer_03-model_00-model_states.pt"
    held = torch.load(path)
    held["mlp.linear1.weight"][5] += 1
    torch.save(held, path)


def edited(
    change: Callable[[dict[str, Any]], Any], name: str = "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
) -> Any:
    """A change to what a file of ZeRO holds."""

    def act(state: State, made: Path) -> None:
        held = torch.load(made / name, weights_only=False)
        change(held.get("optimizer_state_dict", held))
        torch.save(held, made / name)

    return act


def lost(name: str) -> Any:
    """A file that is not there."""
    return lambda state, made: (made / name).unlink()


def twice(state: State, made: Path) -> None:
    """Files of two formats for the same rank."""
    (made / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"")


def without_moment(held: dict[str, Any]) -> None:
    """The state of another optimizer."""
    for each in held["base_optimizer_state"]["state"].values():
        del each["exp_avg_sq"]


def later(held: dict[str, Any]) -> None:
    """A rank that is a step ahead."""
    for each in held["base_optimizer_state"]["state"].values():
        each["step"] = 7


def shorter(held: dict[str, Any]) -> None:
    """A buffer that ends too soon."""
    held["single_partition_of_fp32_groups"][0] = held["single_partition_of_fp32_groups"][0][:-100].clone()


RANK = "mp_rank_00_model_states.pt"

REFUSED: list[tuple[str, Any, str]] = [
    (
        "stale",
        stale,
        r"64 of 16384 fp32 masters of layers.1.mlp.up.weight in rows 0 to 256 do not round to the weights",
    ),
    (
        "lost",
        lost("bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"),
        r"bf16_zero_pp_rank_1_mp_rank_00.*missing.*2 files",
    ),
    ("lost first", lost("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"), r"bf16_zero_pp_rank_0_mp_rank_00.*missing"),
    ("lost rank", lost(RANK), r"mp_rank_00_model_states.pt: missing"),
    ("twice", twice, r"zero_pp_rank_0_mp_rank_00_optim_states.pt: the same rank's state as bf16_zero_pp_rank_0"),
    ("other optimizer", edited(without_moment), r"not Adam: exp_avg, step"),
    ("no step", edited(lambda held: held["base_optimizer_state"]["state"].clear()), "has made no step"),
    ("steps", edited(later, "bf16_zero_pp_rank_0_mp_rank_01_optim_states.pt"), "7 steps of Adam, and elsewhere 6"),
    ("shorter", edited(shorter), r"ends inside master of 'final_linear.weight' of layer 7"),
    (
        "sub-partitions",
        edited(lambda held: held.update(local_sub_partitions_of_fp32_groups=[])),
        "sub-partitions, by the ZeRO 1 of 2020",
    ),
    (
        "stage 3",
        edited(lambda held: held.pop("single_partition_of_fp32_groups")),
        "not of ZeRO 1 or 2, but base_optimizer",
    ),
    (
        "frozen",
        edited(lambda held: held["param_shapes"][1].popitem(), RANK),
        "no exp_avg of 'norm.bias' of layer 6 on rank 0",
    ),
    ("unknown", edited(lambda held: held["param_shapes"][1].update({"9.x": (1,)}), RANK), "has '9.x', which no weight"),
    (
        "groups",
        edited(lambda held: held["single_partition_of_fp32_groups"].pop()),
        "1 groups of parameters, not 2",
    ),
    (
        "iteration",
        edited(lambda held: [held.pop("iteration"), held.pop("global_steps")], RANK),
        "does not say its step",
    ),
]


@pytest.mark.parametrize(("damage", "said"), [each[1:] for each in REFUSED], ids=[each[0] for each in REFUSED])
def test_refusals(damage: Any, said: str, state: State, oracle: Path, tmp_path: Path) -> None:
    """Each says what is wrong, in which file, and that the weights can be had without; and they can."""
    tp = 2 if "elsewhere" in said else 1
    made = partitioned(state, oracle, tmp_path / "x", 2, tp=tp)
    damage(state, made)
    with pytest.raises(NeoxkitError, match=said) as caught:
        import_model(NeoxSource(made, state=True), tmp_path / "a", Mesh())
    assert "--weights-only" in str(caught.value)
    assert not (tmp_path / "a").exists()
    import_model(NeoxSource(made), tmp_path / "a", Mesh())
    assert Checkpoint.open(tmp_path / "a").trainer_state() is None


def test_nothing_of_a_file_is_run(state: State, oracle: Path, tmp_path: Path) -> None:
    """What ZeRO's files may ask for is the same as elsewhere; the rest is refused by name."""

    class Malicious:
        def __reduce__(self) -> Any:
            return os.system, ("touch " + str(tmp_path / "run"),)

    made = partitioned(state, oracle, tmp_path / "x", 1)
    path = made / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    held = torch.load(path)
    torch.save({**held, "ds_config": Malicious()}, path)
    with pytest.raises(NeoxkitError, match=r"posix.system: refused"):
        NeoxSource(made, state=True)
    assert not (tmp_path / "run").exists()


STRANGE = (None, -1, 0, 3, 10**30, 1.5, float("nan"), float("inf"), "x", [], {}, (), [1], [None], {"a": 1}, [[1]], True)


def mutated(value: Any, draw: random.Random, depth: int = 0) -> Any:
    """The same containers with one thing changed, lost, doubled or called otherwise."""
    if not isinstance(value, dict | list | tuple) or not value or (depth > 1 and draw.random() < 0.25):
        tensors = (torch.zeros(3), torch.zeros(2, 2), torch.zeros(()), torch.zeros(0), torch.ones(5000).long())
        return draw.choice((*STRANGE, *tensors))
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    at, kind = draw.randrange(len(items)), draw.random()
    key, old = items[at]
    if kind < 0.15:
        del items[at]
    elif kind < 0.25:
        items.insert(at, (draw.choice(("q", 3, -1, None)), old))
    else:
        items[at] = key, mutated(old, draw, depth + 1)
    return dict(items) if isinstance(value, dict) else type(value)(each for _, each in items)


@pytest.mark.parametrize("zero", [False, True])
def test_mutated_states(zero: bool, tmp_path: Path) -> None:
    """Whatever a file holds: read, or an error that names what is wrong; what is read is whole and can be saved."""
    state = small_state()
    groups = grouped(state)
    counters = {"iteration": 6, "global_steps": 6, "global_samples": 24, "lr_scheduler": {"num_iters": 6}}
    shapes = [{name: tuple(state[name]["master"].shape) for name in names} for names in groups]
    rank = {"module": None, "mp_world_size": 1, "dp_world_size": 2, "optimizer": adam(state, groups), **counters}
    made = write(tmp_path / "x", layer_files([state], torch.float32), SMALL, [rank])
    path, held = made / "mp_rank_00_model_states.pt", rank
    if zero:
        torch.save({**rank, "optimizer": None, "param_shapes": shapes}, path)
        files = zero_files(state, groups, 2)
        for number, each in enumerate(files):
            torch.save(each, made / f"zero_pp_rank_{number}_mp_rank_00_optim_states.pt")
        path, held = made / "zero_pp_rank_1_mp_rank_00_optim_states.pt", files[1]
    assert NeoxSource(made, state=True).training
    read, causes = 0, []
    for seed in range(100):
        draw = random.Random(seed)
        key = "optimizer_state_dict" if zero else draw.choice(("optimizer", "optimizer", "lr_scheduler"))
        torch.save({**held, key: mutated(held[key], draw)}, path)
        try:
            source = NeoxSource(made, state=True)
            for name in source.names():
                assert source.read(name).shape == source.spec(name).shape
            json.dumps(source.training.state if source.training else None, allow_nan=False)
            read += 1
        except NeoxkitError as error:
            causes.append(error.cause)
    assert all(str(made) in cause for cause in causes)
    assert read > 5
    assert len(causes) > 20
