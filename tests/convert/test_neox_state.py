"""The optimizer's state of gpt-neox checkpoints: an old run goes on here as it would have there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from neox_checkpoints import DEEPSPEED, settings, unpack, write
from neox_states import (
    FORMS,
    KINDS,
    SMALL,
    State,
    about,
    adam,
    grouped,
    layer_files,
    partitioned,
    pipelined,
    stage_of,
)

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.config.load import load_tree, validate
from neoxkit.config.parallel import LossScale
from neoxkit.convert.neox.source import NeoxSource
from neoxkit.convert.transfer import import_model
from neoxkit.convert.verify import verify
from neoxkit.data.rows.batch import Batch
from neoxkit.errors import NeoxkitError
from neoxkit.mesh import Mesh
from neoxkit.train.objectives.lm import NextToken
from neoxkit.train.plain import PlainEngine
from neoxkit.train.resume import past_of, settle
from neoxkit.train.rules import MOMENTS

ELSEWHERE = os.environ.get("NEOXKIT_ORACLES")
"""A folder of more checkpoints that gpt-neox wrote and resumed, with manifest.json, to be tested too."""

PROMISED = 1e-4


def engine_of(checkpoint: Checkpoint, precision: str = "fp32") -> PlainEngine:
    """An engine that has taken the checkpoint over, with the options of the oracle's run."""
    tree = load_tree([])
    tree.values = {
        "model": checkpoint.config.model_dump(mode="json"),
        "data": {"train": "tokens"},
        "batch": {"size": 4},
        "optimizer": {"lr": 0.01},
        "steps": 9,
        "precision": precision,
        "device": "cpu",
        "save": {"folder": "run"},
    }
    tree.origins = {(): "test"}
    engine = PlainEngine(validate(tree), NextToken())
    state = checkpoint.trainer_state()
    assert state is not None
    engine.load_state(checkpoint, state["optimizer"])
    return engine


def batches(oracle: Path) -> list[Batch]:
    """What gpt-neox read in the three steps after it had resumed."""
    ids = torch.from_numpy(np.load(oracle / "resume_batches.npy"))
    return [Batch(each[:, :-1].contiguous(), each[:, 1:].contiguous(), None) for each in ids]


def check_resume(checkpoint: Checkpoint, oracle: Path, most: float = PROMISED) -> None:
    """Three steps give gpt-neox's losses, norms of gradients and, after them, logits."""
    wanted = json.loads((oracle / "resume.json").read_text())
    engine = engine_of(checkpoint)
    for step, batch in enumerate(batches(oracle)):
        report = engine.step([batch], wanted["lr"][step])
        assert report.loss == pytest.approx(wanted["losses"][step], abs=most)
        assert report.norm == pytest.approx(wanted["grad_norm_before_clip"][step], abs=most)
    ids, logits = (torch.from_numpy(np.load(oracle / name)) for name in ("input_ids.npy", "resume_ref_logits.npy"))
    with torch.inference_mode():
        assert float((engine.model(ids) - logits).abs().max()) < most


def imported(source: NeoxSource, folder: Path, mesh: Mesh | None = None) -> Checkpoint:
    """The checkpoint made of a source; it is sound."""
    import_model(source, folder, mesh or Mesh())
    report = verify(folder)
    assert report.sound, list(report.lines())
    return Checkpoint.open(folder)


def test_gpt_neoxs_losses(oracle: Path, tmp_path: Path) -> None:
    """It went on from its checkpoint; so do we, to the order of additions, whatever the import cut it for."""
    check_resume(imported(NeoxSource(oracle, state=True), tmp_path / "a"), oracle, 5e-6)
    checkpoint = imported(NeoxSource(oracle, state=True), tmp_path / "b", Mesh(tp=2, pp=3))
    check_resume(checkpoint, oracle, 5e-6)
    told = checkpoint.manifest.step, checkpoint.manifest.samples, checkpoint.manifest.tokens
    assert told == (6, 24, 24 * 64)


@pytest.mark.skipif(not ELSEWHERE, reason="needs NEOXKIT_ORACLES, a folder of gpt-neox's checkpoints")
def test_gpt_neoxs_losses_elsewhere(tmp_path: Path) -> None:
    """The same for all checkpoints of a folder: those without a resumed run are only read."""
    root = Path(str(ELSEWHERE))
    for each in json.loads((root / "manifest.json").read_text()):
        source = NeoxSource(root / each["ckpt"], state=True)
        checkpoint = imported(source, tmp_path / each["name"])
        assert {name.split("/")[1] for name in checkpoint.names() if name.startswith("optimizer")} == set(KINDS[1:])
        if each.get("resume"):
            check_resume(checkpoint, (root / each["resume"]).parent)


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, state: State, oracle: Path, tmp_path: Path) -> None:
    """The same numbers, bit for bit, and so the same losses, from the masters, whatever the weights' precision."""
    source = NeoxSource(FORMS[form](state, oracle, tmp_path / "x"), state=True)
    plain = NeoxSource(oracle, state=True)
    checkpoint = imported(source, tmp_path / "a")
    for name in plain.names():
        if name.startswith("optimizer/"):
            assert torch.equal(checkpoint.read(name), plain.read(name)), name
            continue
        master = name.replace("model/", "optimizer/master/")
        assert torch.equal(checkpoint.read(master if master in checkpoint.names() else name), plain.read(name)), name
        assert (master in checkpoint.names()) == (checkpoint.dtype(name) != "F32")
    if "ranks" not in form:  # there the sums of biases learn at twice the rate: see below
        check_resume(checkpoint, oracle, 5e-6)
    scale = checkpoint.trainer_state()["loss_scale"] if "fp16" in form else None  # type: ignore[index]
    assert scale in (None, 65536.0)


SAVED = {
    "stage0-fp32-dp1": "",
    "stage0-bf16-dp1": "master",
    "stage1-fp32-dp2": "",
    "stage1-bf16-dp1": "master",
    "stage1-bf16-dp4": "master",
    "stage2-bf16-dp2": "master",
    "stage2-bf16-dp4": "master",
    "bf16-optimizer-dp2": "master",
    "pipeline-fp32": "",
    "pipeline-dp2": "master",
}
"""Checkpoints that DeepSpeed wrote (see tests/fixtures/neox), and what each has beside moments."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the checkpoints that DeepSpeed wrote."""
    return unpack(tmp_path_factory.mktemp("deepspeed"), DEEPSPEED)


@pytest.mark.parametrize("case", SAVED)
def test_what_deepspeed_gathers(case: str, saved: Path, tmp_path: Path) -> None:
    """Every master and moment is that of DeepSpeed's own full gather, and masters round to the weights."""
    tied = case.startswith("pipeline")
    source = small(saved / case / "global_step4", not tied)
    assert source.training is not None
    # DeepSpeed's wrapper for bf16 without ZeRO makes a step with zeros to get its state, and counts it.
    assert source.training.state["optimizer"]["steps"] == (5 if case == "stage0-bf16-dp1" else 4)
    assert (source.training.step, source.training.samples, source.training.tokens) == (4, 32, 32 * 6)
    wanted: dict[str, torch.Tensor] = {}
    for path in sorted((saved / case).glob("full-*.pt"), reverse=True):
        wanted |= torch.load(path)
    seen = 0
    for name in source.names():
        kind = "weight" if name.startswith("model/") else name.split("/")[1]
        if kind == "weight":
            continue
        value = source.read(name)
        theirs = wanted[f"{kind} {_deepspeeds(name.split('/', 2)[2], tied)}"]
        if ".attn." in name and name.split(".")[3] in "qkv":
            part = "qkv".index(name.split(".")[3])
            theirs = theirs.view(2, 3, 4, *theirs.shape[1:])[:, part].reshape(value.shape)
        assert torch.equal(value, theirs), name
        seen += 1
    kinds = 3 if SAVED[case] else 2
    assert seen == kinds * len([name for name in source.names() if name.startswith("model/")])
    imported(source, tmp_path / "a")


def small(folder: Path, untied: bool = True) -> NeoxSource:
    """One of DeepSpeed's checkpoints, which has no settings of its own."""
    (folder / "configs").mkdir(exist_ok=True)
    (folder / "configs" / "config.yml").write_text(yaml.safe_dump({**SMALL, "no_weight_tying": untied}))
    return NeoxSource(folder, state=True)


def test_round_robin(saved: Path, tmp_path: Path) -> None:
    """With round_robin_gradients the parameters lie in another order, which DeepSpeed's own gather does not know.

    Ours are the masters: they round to the weights, all of them, while few of what it gathers do.
    """
    folder = saved / "round-robin-dp4" / "global_step4"
    imported(small(folder), tmp_path / "a")
    weights = torch.load(folder / "mp_rank_00_model_states.pt")["module"]
    theirs = torch.load(folder.parent / "full-0.pt")
    right = [name for name, value in weights.items() if torch.equal(theirs[f"master {name}"].bfloat16(), value)]
    assert len(right) < len(weights) / 2


def _deepspeeds(ours: str, tied: bool) -> str:
    """What the network that DeepSpeed trained calls one of our tensors."""
    words = ours.split(".")
    if words[0] == "layers":
        name = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm", "up": "linear1", "down": "linear2"}
        name |= dict.fromkeys("qkv", "query_key_value") | {"o": "dense", "attn": "attention"}
        words = [str(int(words[1]) + 2), *(name.get(word, word) for word in words[2:])]
    else:
        words = {"embed": ["0", "word_embeddings"], "norm": ["6", "norm"], "head": ["7", "final_linear"]}[
            words[0]
        ] + words[1:]
    if tied:
        return ".".join(["tied_modules", "embed", *words[1:]] if words[0] == "0" else words)
    return ".".join(["sequential", *words])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("form", ["stage", "fp16 flat", "zero over 4"])
def test_any_precision_goes_on(form: str, precision: str, state: State, oracle: Path, tmp_path: Path) -> None:
    """An engine takes the masters, and rounds its weights from them, whatever the weights were rounded to."""
    source = NeoxSource(FORMS[form](state, oracle, tmp_path / "x"), state=True)
    engine = engine_of(imported(source, tmp_path / "a"), precision)
    plain = NeoxSource(oracle)
    for spec, box, master in engine.optimizer.masters():
        assert torch.equal(master, plain.read(f"model/{spec.name}", box)), spec.name
    for group in engine.optimizer.groups:
        for weight, master in zip(group.weights, group.masters, strict=True):
            assert torch.equal(weight, master.to(weight.dtype))
    assert engine.counters()["steps"] == 6


def test_the_loss_scale_is_told(state: State, oracle: Path, tmp_path: Path) -> None:
    """That of fp16 is kept in the trainer's state; a run in fp16 takes it up, others say that they need none."""
    source = NeoxSource(FORMS["fp16 flat"](state, oracle, tmp_path / "x"), state=True)
    checkpoint = imported(source, tmp_path / "run" / "step-00000006")
    past = past_of(tmp_path / "run")
    assert past is not None
    for precision in ("fp32", "bf16"):
        _, told = settle(engine_of(checkpoint, precision).config, past)
        assert f"the loss scale 65536 of fp16 is not used: {precision} needs none" in told
    options = engine_of(checkpoint, "fp16").config.model_copy(update={"loss_scale": LossScale(initial=8.0)})
    config, told = settle(options, past)
    assert config.loss_scale.initial == 65536
    assert not [line for line in told if "of fp16 is not used" in line]


def test_a_tied_head_is_trained_once(oracle: Path, tmp_path: Path) -> None:
    """The last stage has a copy of the embedding and of the positions, before its layers; the first's count."""
    tied = oracle.parent / "learned_tied_tp1pp1"
    weights: dict[str, torch.Tensor] = {}
    for path in sorted((tied / "global_step6").glob("layer_*.pt")):
        weights |= {f"{int(path.name[6:8])}.{name}": value for name, value in torch.load(path).items()}
    generator = torch.Generator().manual_seed(1)
    held: State = {
        name: {"master": value, **{kind: torch.rand(value.shape, generator=generator) for kind in KINDS[1:]}}
        for name, value in weights.items()
    }
    second = {name: {kind: v + 1 for kind, v in kinds.items()} for name, kinds in stage_of(held, 0, 1).items()}
    stages = [stage_of(held, 0, 3), {**second, **stage_of(held, 3, 99)}]
    ranks: list[dict[str, Any]] = []
    for stage in stages:
        optimizer = adam(stage, grouped(stage))
        ranks.append({**about(oracle), "module": None, "optimizer": optimizer})
    del ranks[1]["optimizer"]["state"][1]  # positions get no gradient there, so FusedAdam has no state of them
    source = NeoxSource(write(tmp_path / "x", layer_files([held], torch.float32), settings(tied), ranks), state=True)
    for ours, theirs in (
        ("embed.weight", "0.word_embeddings.weight"),
        ("position.weight", "0.position_embeddings.weight"),
    ):
        for kind in KINDS[1:]:
            assert torch.equal(source.read(f"optimizer/{kind}/{ours}"), held[theirs][kind])
    assert torch.equal(source.read("optimizer/exp_avg/norm.weight"), held["6.norm.weight"]["exp_avg"])
    assert "optimizer/exp_avg/head.weight" not in source.names()


# Biases that are the sum of the ranks' own.


def test_summed_biases_learn_as_their_parts_did(state: State, oracle: Path, tmp_path: Path) -> None:
    """gpt-neox with tensor parallelism 2 trains two biases where the model has their sum: so it moves twice as far.

    The reference does what gpt-neox does: two parameters, each with its own AdamW, and their sum in the
    model; the norm of the gradient counts one of them.
    """
    made = pipelined(state, oracle, tmp_path / "x", [0], 2)
    checkpoint = imported(NeoxSource(made, state=True), tmp_path / "a")
    ours = engine_of(checkpoint)
    twice = [group for group in ours.counters()["groups"] if group.get("lr_scale") == 2]
    assert [len(group["names"]) for group in twice] == [6]

    plain = engine_of(imported(NeoxSource(oracle, state=True), tmp_path / "b"))
    model = plain.model
    names = {held.spec.name: name for name, p in model.named_parameters() for held in p.held}  # type: ignore[attr-defined]
    sums = {names[name] for group in twice for name in group["names"]}
    values: dict[str, list[torch.nn.Parameter]] = {}
    moments: dict[torch.nn.Parameter, tuple[torch.Tensor, torch.Tensor]] = {}
    for group in plain.optimizer.groups:
        for weight, *held in zip(group.weights, *(group.state[moment] for moment in MOMENTS), strict=True):
            name = next(name for name, p in model.named_parameters() if p is weight)
            count = 2 if name in sums else 1
            values[name] = [torch.nn.Parameter(weight.detach() / count) for _ in range(count)]
            moments |= dict.fromkeys(values[name], (held[0], held[1]))
    adamw = torch.optim.AdamW(
        [
            {"params": [p for each in values.values() for p in each if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for each in values.values() for p in each if p.ndim == 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    for parameter, (first, second) in moments.items():
        adamw.state[parameter] = {"step": torch.tensor(6.0), "exp_avg": first.clone(), "exp_avg_sq": second.clone()}
    rates = json.loads((oracle / "resume.json").read_text())["lr"]
    for batch, rate in zip(batches(oracle), rates, strict=True):
        adamw.zero_grad()
        logits = torch.func.functional_call(
            model, {name: torch.stack(list(each)).sum(0) for name, each in values.items()}, batch.ids
        )
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
        loss.backward()
        once = [each[0].grad for each in values.values() if each[0].grad is not None]
        norm = float(torch.nn.utils.get_total_norm(once))
        for each in values.values():
            for parameter in each:
                assert parameter.grad is not None
                parameter.grad *= min(1.0, 1.0 / (norm + 1e-6))
        for options in adamw.param_groups:
            options["lr"] = rate
        adamw.step()
        report = ours.step([batch], rate)
        assert report.loss == pytest.approx(loss.item(), abs=5e-6)
        assert report.norm == pytest.approx(norm, abs=5e-6)
    del oracle


def test_another_dtype_is_refused(oracle: Path, tmp_path: Path) -> None:
    """The masters would no longer be the weights."""
    with pytest.raises(NeoxkitError, match=r"it has an optimizer.*--weights-only"):
        import_model(NeoxSource(oracle, state=True), tmp_path / "a", Mesh(), "BF16")
    import_model(NeoxSource(oracle), tmp_path / "a", Mesh(), "BF16")


def test_slim_checkpoints_have_none(oracle: Path) -> None:
    """Published weights come without the optimizer: there is nothing to go on from, and nothing is wrong."""
    source = NeoxSource(oracle.parent / "neox_tp2pp1", state=True)
    assert not source.resumable
    assert source.training is None
    assert all(name.startswith("model/") for name in source.names())


def test_masters_of_sums_round_to_the_weights(state: State, oracle: Path, tmp_path: Path) -> None:
    """In half precision the sum of rounded biases is not always the rounded sum: there the master is the weight."""
    made = partitioned(state, oracle, tmp_path / "x", 2, tp=2, uneven=0.3)
    source, plain = NeoxSource(made, state=True), NeoxSource(oracle)
    apart = count = 0
    for layer in range(3):
        for name in ("attn.o.bias", "mlp.down.bias"):
            weight, master = (source.read(f"{part}/layers.{layer}.{name}") for part in ("model", "optimizer/master"))
            assert torch.equal(master.to(weight.dtype), weight)
            wanted = plain.read(f"model/layers.{layer}.{name}")
            torch.testing.assert_close(master, wanted, rtol=2**-7, atol=0)
            apart, count = apart + int(((master - wanted).abs() > 1e-6 * wanted.abs()).sum()), count + len(wanted)
    assert 0 < apart < count / 2


def test_ranks_that_drifted_apart(
    state: State, oracle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Moments and masters that differ between ranks are told, each once, and are their mean, which is a sound one."""
    made = partitioned(state, oracle, tmp_path / "x", 1, tp=2, drift=0.25)
    source = NeoxSource(made, state=True)
    capsys.readouterr()
    imported(source, tmp_path / "a")
    told = [line for line in capsys.readouterr().err.splitlines() if "should be the same" in line]
    for what in ("x: 'norm.weight' of layer 6", "x: exp_avg of 'norm.weight'", "x: master of 'norm.weight'"):
        assert sum(what in line for line in told) == 1, told
    assert len(told) == 3
    for kind, change in (("exp_avg", 0.125), ("master", 0.125)):
        wanted = state["6.norm.weight"][kind] + change
        torch.testing.assert_close(source.read(f"optimizer/{kind}/norm.weight"), wanted, rtol=2**-7, atol=0)
