"""gpt-neox's YAML files: each loads as what it means, or is refused by the name of what is in the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from neoxkit.cli import main
from neoxkit.config.data import Source
from neoxkit.config.load import load_run, load_tree, spell, spell_neox, validate
from neoxkit.config.neox.write import lost
from neoxkit.config.parallel import LossScale
from neoxkit.config.run import RunConfig
from neoxkit.errors import ConfigError

FOLDER = Path(__file__).parents[1] / "fixtures" / "neox_yaml"
VOCAB = "model.vocab=50304"


def at(run: RunConfig, key: str) -> Any:
    """An option of a run, by its dotted key."""
    value: Any = run
    for part in key.split("."):
        value = getattr(value, part)
    return value


LOADS: dict[str, tuple[list[str], list[str], dict[str, Any]]] = {
    "small": (
        ["small.yml", "data.yml"],
        [VOCAB, "precision=bf16"],
        {
            "model.depth": 12,
            "model.residual": "sequential",
            "model.position.fraction": 1.0,
            "model.mlp.activation": "gelu",
            "model.mlp.hidden": 3072,
            "model.tied": False,
            "model.norm.eps": 1e-5,
            "init.weights": "small",
            "init.output": "wang",
            "optimizer.kind": "adamw",
            "optimizer.betas": (0.9, 0.95),
            "optimizer.weight_decay": 0.1,
            "schedule.decay": "cosine",
            "schedule.min_lr": 6e-5,
            "batch.micro": 4,
            "batch.accumulation": 1,
            "batch.size": 4,
            "zero.stage": 1,
            "deepspeed.zero_optimization.reduce_bucket_size": 500000000,
            "deepspeed.wall_clock_breakdown": True,
            "recompute.layers": "full",
            "data.train": (Source(tokens="tokens/text_document"),),
            "data.split": "969,30,1",
            "evaluation.every": 1000,
            "evaluation.batches": 10,
            "save.folder": "runs/one",
            "save.every": 10000,
            "save.keep_last": 4,
            "load": None,
            "logging.every": 100,
            "logging.tensorboard": "runs/tensorboard",
            "logging.wandb": None,
            "steps": 320000,
        },
    ),
    "pythia": (
        ["pythia.yml"],
        [VOCAB, "precision=bf16"],
        {
            "model.family": "gpt_neox",
            "model.residual": "parallel",
            "model.position.fraction": 0.25,
            "model.mlp.activation": "gelu_tanh",
            "model.mixer.bias": True,
            "batch.accumulation": 4,
            "save.steps": (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
            "data.valid": (Source(tokens="tokens/pile"),),
            "data.split": None,
        },
    ),
    "blend": (
        ["blend.yml"],
        [VOCAB, "precision=bf16"],
        {
            "data.train": (Source(tokens="tokens/a", weight=2.0), Source(tokens="tokens/b", weight=1.0)),
            "data.valid": (Source(tokens="tokens/a"),),
            "data.blend": "gpt-neox",
            "data.packing": "packed",
            "data.isolated": False,
            "evaluation.batches": 3,
        },
    ),
    "labels": (
        ["labels.yml"],
        [VOCAB, "precision=bf16"],
        {
            "data.train": (Source(tokens="tokens/text", labels="tokens/labels"),),
            "data.weigh_by_documents": 0.3,
            "data.packing": "whole",
            "data.isolated": False,
            "data.mask_after_end": True,
        },
    ),
    "20b": (
        ["20b.yml"],
        [VOCAB, "precision=bf16"],
        {"mesh.pp": 4, "mesh.tp": 2, "optimizer.lr": 0.97e-4, "optimizer.weight_decay": 0.01, "data.split": "995,4,1"},
    ),
    "llama2-7b": (
        ["llama2-7b.yml", "data.yml"],
        ["model.vocab=32000"],
        {
            "model.family": "llama",
            "model.mlp.hidden": 11008,
            "model.mlp.gated": True,
            "model.mlp.activation": "silu",
            "model.mlp.bias": False,
            "model.norm.kind": "rms",
            "model.mixer.kv_heads": 32,
            "precision": "bf16",
            "batch.size": 1024,
            "batch.micro": 8,
            "zero.stage": 3,
            "zero.offload": "optimizer",
            "save.log_factor": 2.0,
            "save.every": None,
        },
    ),
    "llama2-70b": (
        ["llama2-70b.yml", "data.yml"],
        ["model.vocab=32000"],
        {
            "model.mlp.hidden": 28672,
            "model.mixer.kv_heads": 8,
            "mesh.tp": 8,
            "mesh.pp": 8,
            "mesh.sequence_parallel": True,
            "precision": "bf16",
        },
    ),
    "llama-2023": (
        ["llama-2023.yml", "data.yml"],
        ["model.vocab=32000"],
        {
            "model.mlp.hidden": 11008,
            "model.mlp.gated": True,
            "model.mlp.activation": "silu",
            "model.mlp.bias": False,
            "model.mixer.bias": False,
            "optimizer.lr": 0.001,
            "optimizer.betas": (0.9, 0.999),
            "schedule.decay": "linear",
            "precision": "fp32",
        },
    ),
    "llama3-tune": (
        ["llama3-tune.yml"],
        [],
        {
            "model.mlp.hidden": 14336,
            "model.vocab": 128256,
            "model.position.base": 500000.0,
            "model.context": 8192,
            "data.sequence": 4096,
            "data.split": None,
            "load": "old/llama3",
            "save.folder": "runs/tuned",
            "evaluation.every": None,
        },
    ),
    "old": (
        ["old.yml", "data.yml"],
        [],
        {
            "model.tied": True,
            "model.position.kind": "learned",
            "model.mlp.activation": "gelu_tanh",
            "model.vocab": 512,
            "mesh.tp": 2,
            "mesh.dp": 2,
            "batch.micro": 2,
            "batch.accumulation": 2,
            "batch.size": 8,
            "precision": "bf16",
            "save.every": 50,
            "save.steps": (1, 10),
        },
    ),
    "alibi": (
        ["alibi.yml", "data.yml"],
        ["model.vocab=1024"],
        {
            "model.position.kind": "alibi",
            "model.residual": "shared",
            "model.mlp.activation": "gelu",
            "model.mlp.gated": True,
            "model.mlp.hidden": 256,
            "init.weights": "xavier_uniform",
            "init.output": "single_residual",
            "init.std": 0.01,
            "optimizer.kind": "lion",
            "optimizer.betas": (0.95, 0.98),
            "clip": None,
            "batch.size": 16,
            "batch.micro": None,
            "schedule.decay": "constant",
            "seed": 7,
            "data.split": None,
            "data.curriculum.start": 64,
            "data.curriculum.steps": 50,
            "logging.parameter_norm": 100,
            "logging.comet.project": "mine",
            "logging.comet.tags": ("a", "b"),
            "profile.first": 3,
            "profile.last": 5,
        },
    ),
}

REFUSED = {
    "mistral.yml": "intermediate_size is 14336: gpt-neox makes a matrix of 9558 rows .* write intermediate_size: 43008",
    "refused-sparse.yml": "sparsity_config .*sparse attention; use sliding_window_width",
    "refused-bigbird.yml": "attention_config .*'bigbird' layers; neoxkit computes global and flash",
    "refused-mamba.yml": "'mamba' layers",
    "refused-rwkv.yml": "'rwkv' layers",
    "refused-gmlp.yml": "'gmlp' layers",
    "refused-moe.yml": "moe_num_experts 8: a mixture of experts",
    "refused-engine.yml": r"te_columnparallel True: .*TransformerEngine \(refused too: te_rowparallel\)",
    "refused-te-norm.yml": "norm is 'te_rmsnorm'; neoxkit computes layernorm and rmsnorm",
    "refused-onebit.yml": "optimizer.type: OneBitAdam: DeepSpeed 0.19 has removed it; choose Adam",
    "refused-mup.yml": "use_mup True",
    "refused-dpo.yml": r"train_impl 'dpo'.*\(refused too: dataset_impl, pos_train_data_paths, neg_train_data_paths\)",
    "refused-tuning.yml": "autotuning",
    "refused-soft.yml": "soft prompts",
    "refused-relative.yml": "pos_emb is 'rpe'",
    "refused-dropout.yml": r"hidden_dropout 0.1: dropout \(refused too: attention_dropout\); set it to 0",
    "refused-amp.yml": "amp .*removed it; set bf16",
    "refused-resume.yml": "load: runs/old is another folder than save; .*neoxkit import",
    "refused-parallel.yml": "gpt_j_residual: .*drops the attention",
}


def test_every_fixture_is_listed() -> None:
    named = {name for files, *_ in LOADS.values() for name in files} | set(REFUSED)
    assert {path.name for path in FOLDER.glob("*.yml")} == named


def loaded(name: str) -> tuple[list[Path], list[str], RunConfig]:
    """The files of a case, what is set, and the run that they are."""
    files, overrides, _ = LOADS[name]
    paths = [FOLDER / each for each in files]
    return paths, overrides, load_run(paths, overrides)


@pytest.mark.parametrize("name", LOADS)
def test_loads_as_what_it_means(name: str) -> None:
    run = loaded(name)[2]
    wanted = LOADS[name][2]
    assert {key: at(run, key) for key in wanted} == wanted


@pytest.mark.parametrize("name", LOADS)
def test_converted_it_means_the_same(name: str, tmp_path: Path) -> None:
    """And is a file of neoxkit's own, in which nothing is left to gpt-neox's defaults."""
    paths, overrides, run = loaded(name)
    out = tmp_path / "run.yaml"
    out.write_text(spell(load_tree(paths, overrides)))
    assert not load_tree([out]).notes
    assert load_run([out]) == run


@pytest.mark.parametrize("name", LOADS)
def test_written_in_gpt_neoxs_words_it_is_read_back(name: str, tmp_path: Path) -> None:
    """Nothing is lost but what gpt-neox takes from elsewhere."""
    run = loaded(name)[2]
    out = tmp_path / "back.yml"
    out.write_text(spell_neox(run))
    assert "num_layers" in yaml.safe_load(out.read_text())
    back = load_run([out])
    assert not list(lost(run, back))
    assert load_run([out], ["model.family=x"]) != run


def test_what_gpt_neox_has_no_word_for_is_refused() -> None:
    paths, overrides, _ = loaded("llama2-7b")
    for given, said in (
        ("schedule.decay=wsd", "lr_decay_style is 'wsd'; it must be one of"),
        ("model.mixer.qk_norm=true", "model.mixer.qk_norm true"),
        ("precision=auto", "precision is 'auto'; it must be one of"),
        ("schedule.era=pythia", "schedule.era"),
    ):
        with pytest.raises(ConfigError, match=said):
            spell_neox(load_run(paths, [*overrides, given]))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"train_data_weights": [1.0]}, "train_data_weights: 1 of them for 2 paths"),
        ({"train_label_data_paths": ["a", "b", "c"]}, "train_label_data_paths: 3 of them for 2 paths"),
        ({"train_data_paths": [3]}, r"train_data_paths: \[3\] is no list of paths"),
        ({"train_data_weights": [1.0, -1.0]}, "data.train.1.weight is -1.0"),
        ({"data_path": "tokens/a"}, "keep one of them"),
        ({"reset_position_ids": True}, "reset_position_ids: attention and positions end with a document together"),
    ],
)
def test_sources_that_do_not_match_are_refused(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    tree = yaml.safe_load((FOLDER / "blend.yml").read_text())
    (tmp_path / "run.yml").write_text(yaml.safe_dump({**tree, **given}))
    with pytest.raises(ConfigError, match=said):
        load_run([tmp_path / "run.yml"], [VOCAB, "precision=bf16"])


def test_a_reset_of_attention_and_positions_is_within_documents(tmp_path: Path) -> None:
    tree = yaml.safe_load((FOLDER / "blend.yml").read_text())
    tree |= {"reset_attention_mask": True, "reset_position_ids": True}
    (tmp_path / "run.yml").write_text(yaml.safe_dump(tree))
    assert load_run([tmp_path / "run.yml"], [VOCAB, "precision=bf16"]).data.isolated


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED[name]) as raised:
        load_run([FOLDER / name], [VOCAB])
    assert raised.value.remedy
    assert raised.value.cause.startswith(str(FOLDER / name) + ":")


def test_the_command_tells_what_is_passed_over() -> None:
    files = [str(FOLDER / name) for name in LOADS["small"][0]]
    done = CliRunner().invoke(main, ["config", "check", *files, "--set", VOCAB, "--set", "precision=bf16"])
    assert (done.exit_code, done.stdout) == (0, "ok\n")
    assert "partition_activations, synchronize_each_layer are passed over" in done.stderr
    assert "load is passed over: a run goes on from its own folder by itself" in done.stderr
    done = CliRunner().invoke(main, ["config", "check", *files])
    assert done.exit_code == 2
    assert "vocab_file tokens/vocabulary.json is not here; give --set model.vocab=N" in done.stderr


def test_convert_writes_a_new_file(tmp_path: Path) -> None:
    out = tmp_path / "run.yaml"
    command = ["config", "convert", str(FOLDER / "llama3-tune.yml"), "--out", str(out)]
    assert CliRunner().invoke(main, command).exit_code == 0
    assert yaml.safe_load(out.read_text())["model"]["mlp"] == {
        "gated": True,
        "activation": "silu",
        "bias": False,
        "hidden": 14336,
    }
    before = out.read_bytes()
    again = CliRunner().invoke(main, command)
    assert again.exit_code == 2
    assert "is there already" in again.stderr
    assert out.read_bytes() == before


def test_what_is_missing_is_said_in_gpt_neoxs_words(tmp_path: Path) -> None:
    path = tmp_path / "a.yml"
    text = "num_layers: 1\nhidden_size: 8\nnum_attention_heads: 1\nmax_position_embeddings: 8\npadded_vocab_size: 9\n"
    needed = ["data_path: x\n", "train_iters: 5\n", "save: x\n", "train_batch_size: 4\n"]
    for number, said in enumerate(("data_path", "train_iters", "save", "train_batch_size")):
        path.write_text(text + "".join(needed[:number] + needed[number + 1 :]))
        with pytest.raises(ConfigError, match=f"{said} .*is"):
            load_run([path])
    path.write_text(text + "".join(needed))
    validate(load_tree([path]))


def test_what_a_later_word_makes_pointless_is_passed_over(tmp_path: Path) -> None:
    """Of a file of gpt-neox; who writes neoxkit's own options is told of a contradiction."""
    path = FOLDER / "pythia.yml"
    given = load_run([path], [VOCAB])
    assert (given.precision, given.loss_scale.initial) == ("fp16", 4096.0)
    assert given.deepspeed.zero_optimization.allgather_bucket_size == 500000000
    tree = load_tree([path], [VOCAB, "precision=bf16", "zero.stage=3"])
    run = validate(tree)
    assert run.loss_scale == LossScale()
    assert run.deepspeed.zero_optimization.allgather_bucket_size is None
    assert run.deepspeed.zero_optimization.reduce_bucket_size == 500000000
    told = "\n".join(tree.notes)
    assert "pythia.yml:60 (fp16.initial_scale_power) is passed over: precision is bf16" in told
    assert "(zero_optimization.allgather_bucket_size) is passed over: zero.stage is 3" in told
    own = tmp_path / "own.yaml"
    own.write_text(spell(load_tree([path], [VOCAB])))
    with pytest.raises(ConfigError, match="loss_scale is of precision fp16, and precision is bf16"):
        load_run([own], ["precision=bf16"])


def neox(tmp_path: Path, **options: Any) -> tuple[RunConfig, str]:
    """A small file of gpt-neox with options of its own, as a run, and what is told of it."""
    path = tmp_path / "own.yml"
    layers = {"num_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 16}
    run = {"train_iters": 10, "train_batch_size": 4, "data_path": "tokens", "save": "run", "eval_iters": 0}
    path.write_text(yaml.safe_dump({**layers, **run, **options}))
    tree = load_tree([path], [VOCAB])
    return validate(tree), "\n".join(tree.notes)


def test_what_deepspeed_would_pass_over_is_told_and_not_passed_on(tmp_path: Path) -> None:
    tuning = {"stage": 1, "stage3_max_live_parameters": 5, "sub_group_size": 5, "overlap_comm": True}
    passed = {"prescale_gradients": True, "gradient_predivide_factor": 2.0}
    profiler = {"enabled": True, "profile_step": 10}
    run, told = neox(tmp_path, zero_optimization=tuning, flops_profiler=profiler, comms_logger={}, **passed)
    assert run.deepspeed.zero_optimization.model_dump(exclude_none=True) == {"overlap_comm": True}
    assert run.deepspeed.prescale_gradients
    assert run.deepspeed.gradient_predivide_factor is run.deepspeed.flops_profiler is None
    for said in (
        "zero_optimization.stage3_max_live_parameters, zero_optimization.sub_group_size are passed over: ZeRO stage 1",
        "gradient_predivide_factor is passed over: prescale_gradients decides",
        "flops_profiler is passed over: its profile_step never comes",
    ):
        assert said in told


def test_a_pipeline_in_half_precision_has_zero_1_whatever_the_file_says(tmp_path: Path) -> None:
    half = {"precision": "bfloat16", "pipe_parallel_size": 2}
    for options in ({}, {"zero_stage": 0}, {"zero_optimization": {"stage": 0, "overlap_comm": True}}):
        run, told = neox(tmp_path, **half, **options)
        assert run.zero.stage == 1
        assert ("stage is passed over: in half precision a pipeline has ZeRO 1" in told) == bool(options)
        assert ("overlap_comm is passed over: a pipeline" in told) == ("zero_optimization" in options)
    assert neox(tmp_path, pipe_parallel_size=2, zero_optimization={"stage": 0})[0].zero.stage == 0
