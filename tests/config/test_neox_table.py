"""The table of gpt-neox's options: each once, with gpt-neox's default, and with a target that exists."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner

from neoxkit.cli import main
from neoxkit.config.load import load_tree, validate
from neoxkit.config.neox import table_model, table_running, table_training
from neoxkit.config.neox.files import Mix
from neoxkit.config.neox.network import mlp_width
from neoxkit.config.neox.settings import Settings
from neoxkit.config.neox.table import OPTIONS, RENAMED, RETIRED, find, markdown
from neoxkit.config.neox.translate import translate
from neoxkit.config.neox.vocabulary import TIKTOKEN, read_vocabulary
from neoxkit.config.reference import options, sections
from neoxkit.errors import ConfigError

DEFAULTS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "neox_yaml" / "options.json").read_text()
)
"""Names and defaults of all options of gpt-neox of 2026-05, read off its own declarations."""

OURS = {each.key for each in options()} | {each.key for each in sections()}
ONCE = (
    *("save_interval", "save_iters", "gas", "mlp_type", "label_data_paths", "train_data_path", "valid_data_path"),
    *("test_data_path", "reset_attention_mask", "reset_position_ids", "apply_residual_connection_post_layernorm"),
    *("zero_allow_untested_optimizer", "geglu", "openai_gelu", "sparsity", "num_experts", "expert_interval"),
    *("moe_type", "moe_glu", "use_tutel", "moe_token_dropping", "detect_nvlink_pairs", "slurm_comment"),
    *("deepscale", "attention_type", "batch_size"),
)


def test_every_option_is_there_once_with_its_default() -> None:
    tables = (table_model, table_training, table_running)
    names = [option.name for table in tables for option in table.OPTIONS]
    assert sorted(names) == sorted(DEFAULTS)
    assert {name: option.default for name, option in OPTIONS.items()} == DEFAULTS
    assert not set(RETIRED) & set(OPTIONS)


@pytest.mark.parametrize("name", ONCE)
def test_options_of_the_past_are_known(name: str) -> None:
    assert find(name)
    assert find(name.replace("_", "-")) == find(name)


@pytest.mark.parametrize("option", [*OPTIONS.values(), *RETIRED.values()], ids=lambda o: o.name)
def test_each_says_what_becomes_of_it(option: Any) -> None:
    assert option.default is None or option.is_of_kind(option.default) or option.becomes == "ignored"
    assert option.is_harmless(option.default)
    if option.becomes in ("mapped", "passed on"):
        targets = re.split(r", | and ", option.target)
        assert set(targets) <= OURS
    else:
        assert option.says
        assert not option.target
    assert bool(option.instead) == (option.becomes == "refused")


def test_explain_and_the_page_say_it() -> None:
    page = markdown()
    for name in (*OPTIONS, *RETIRED, *RENAMED):
        assert f"| `{name}` |" in page
    for name, said in (
        (
            "rotary-pct",
            "rotary_pct, of gpt-neox\n    becomes model.position.fraction\n    number; default there: 1.0\n",
        ),
        ("gas", "gas is today gradient_accumulation_steps, of gpt-neox\n    becomes batch.accumulation\n"),
        ("checkpoint-factor", "    becomes save.every; with checkpoint_scale log it becomes save.log_factor\n"),
        ("data_impl", "    is ignored: the format of token files"),
        ("dataset_impl", "    is refused, unless it is gpt2: pairs to prefer among"),
        ("elasticity", "    is refused: a batch that follows the devices; leave it out"),
        ("comms_logger", "    goes to DeepSpeed, as deepspeed.comms_logger\n"),
        ("hysteresis", "    is ignored: the block fp16 decides"),
    ):
        done = CliRunner().invoke(main, ["config", "explain", name])
        assert done.exit_code == 0
        assert said in done.stdout
    done = CliRunner().invoke(main, ["config", "explain", "hiden_size"])
    assert done.exit_code == 2
    assert "did you mean hidden_size?" in done.stderr


def write(tmp_path: Path, text: str) -> Path:
    """A file of options."""
    path = tmp_path / "w.yml"
    path.write_text(text)
    return path


def wrong(tmp_path: Path, *texts: str, sets: tuple[str, ...] = ()) -> str:
    """The error about files, with their names as a.yml, b.yml."""
    paths = []
    for name, text in zip("abc", texts, strict=False):
        paths.append(tmp_path / f"{name}.yml")
        paths[-1].write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_tree(paths, sets)
    return str(raised.value).replace(f"{tmp_path}/", "")


def test_mistakes_are_told_with_file_and_line(tmp_path: Path) -> None:
    assert wrong(tmp_path, "num-layers: 2\n\nhiden-size: 4\n") == (
        "a.yml:3: unknown option hiden-size; did you mean hidden_size?"
    )
    said = wrong(tmp_path, "num-layers: 2\n", "seed: 1\nnum_layers: 3\n")
    assert said.startswith("b.yml:2: num_layers was already given at a.yml:1")
    assert wrong(tmp_path, "gas: 2\ngradient_accumulation_steps: 2\n").startswith(
        "a.yml:2: gradient_accumulation_steps"
    )
    assert wrong(tmp_path, "num_layers: two\n") == "a.yml:1: num_layers is 'two'; it must be a whole number"
    assert wrong(tmp_path, "num_layers: true\n").startswith("a.yml:1: num_layers is True")
    assert "must be one of learned, rotary" in wrong(tmp_path, "pos_emb: rotry\n")
    said = wrong(tmp_path, "num_layers: 2\nsteps: 3\n")
    assert said.startswith("a.yml:1: num_layers is an option of gpt-neox, and steps, at a.yml:2, is neoxkit's own")
    said = wrong(tmp_path, "num_layers: 2\nhidden_size: 4\nsteps: 3\n")
    assert said == "a.yml:3: unknown option steps; it is neoxkit's own: write it in a file for itself, or as --set"
    assert load_tree([write(tmp_path, "steps: 2\nthreads: 4\nlr: 3\n")]).values["lr"] == 3  # told by `validate`
    said = wrong(tmp_path, "num_layers: 2\nzero_optimization: {stage: 1, overlap_com: true}\n")
    assert said == "a.yml:2: zero_optimization.overlap_com: not passed on to DeepSpeed; did you mean overlap_comm?"
    assert "zero_optimization.stage: None" in wrong(tmp_path, "num_layers: 2\nzero_optimization: {}\n")
    said = wrong(tmp_path, "num_layers: 2\nfp16: {enabled: true}\nbf16: {enabled: true}\n")
    assert said == "a.yml:3: bf16: bf16, and fp16 asks for fp16; keep one of them"
    said = wrong(tmp_path, "num_layers: 2\noptimizer: {type: Adam, params: {lr: 1.0e-3, adam_w_mode: false}}\n")
    assert said.startswith("a.yml:2: optimizer.params.adam_w_mode: False with Adam")
    assert "--set num_layers: 'x'" in wrong(tmp_path, "hidden_size: 2\n", sets=("num_layers=x",))


def test_words_of_yaml_1_1_and_what_is_given_twice_alike(tmp_path: Path) -> None:
    """gpt-neox's reader takes on and yes for true, and the last of what is given twice."""
    path = tmp_path / "a.yml"
    path.write_text("gpt-j-residual: on\nno_weight_tying: yes\nseed: 3\nnum_layers: 2\nseed: 3\nlr: null\n")
    values = load_tree([path]).values
    assert values["model"]["residual"] == "parallel"
    assert values["model"]["tied"] is False
    assert values["seed"] == 3


def test_set_speaks_both_languages(tmp_path: Path) -> None:
    path = tmp_path / "a.yml"
    path.write_text("num_layers: 2\noptimizer: {type: Adam, params: {lr: 0.1}}\nsave: x\nload: x\n")
    tree = load_tree([path], ["num-layers=3", "optimizer.params.lr=0.2", "save=y", "load=null", "optimizer.eps=1e-6"])
    assert tree.values["model"]["depth"] == 3
    assert tree.values["optimizer"]["lr"] == 0.2
    assert tree.values["optimizer"]["eps"] == 1e-6
    assert tree.values["save"]["folder"] == "y"
    assert tree.origin(("optimizer", "lr")) == "--set optimizer.params.lr (optimizer.params.lr)"


def test_files_of_both_kinds_are_merged_in_order(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "a.yml", tmp_path / "b.yaml"
    theirs.write_text("num_layers: 2\ntrain_iters: 10\nseed: 5\n")
    ours.write_text("steps: 20\nmodel: {width: 64}\n")
    tree = load_tree([theirs, ours])
    assert (tree.values["steps"], tree.values["seed"]) == (20, 5)
    assert tree.values["model"]["depth"] == 2
    assert load_tree([ours, theirs]).values["steps"] == 10


@pytest.mark.parametrize(
    ("given", "width", "hidden"),
    [
        ({}, 768, 3072),
        ({"expansion_factor": 2}, 768, 1536),
        ({"intermediate_size": 32768, "mlp_multiple_of": 256, "activation": "swiglu"}, 4096, 11008),
        ({"intermediate_size": 41472, "mlp_multiple_of": 256, "activation": "swiglu"}, 5120, 13824),
        ({"intermediate_size": 40960, "mlp_multiple_of": 256, "activation": "swiglu"}, 5120, 13824),
        ({"intermediate_size": 53248, "mlp_multiple_of": 256, "activation": "swiglu"}, 6656, 17920),
        ({"intermediate_size": 65536, "mlp_multiple_of": 256, "activation": "swiglu"}, 8192, 22016),
        ({"intermediate_size": 86016, "mlp_multiple_of": 256, "activation": "swiglu"}, 8192, 28672),
        ({"intermediate_size": 14336, "mlp_multiple_of": 14336, "activation": "swiglu"}, 4096, 14336),
        ({"mlp_multiple_of": 256, "activation": "swiglu"}, 4096, 5632),
        ({"mlp_multiple_of": 256, "activation": "swiglu"}, 8192, 11008),
        ({"intermediate_size": 43008, "activation": "swiglu"}, 4096, 14336),
        ({"mlp_type": "llama"}, 4096, 11008),
        ({"mlp_type": "llama", "intermediate_size": 14336}, 4096, 14336),
    ],
)
def test_the_width_of_the_mlp_is_that_of_gpt_neoxs_matrices(given: dict[str, Any], width: int, hidden: int) -> None:
    """Its shipped configurations, with the columns of the matrix that gpt-neox made of each."""
    assert mlp_width(Settings("x", given), width) == hidden


def test_a_width_that_gpt_neox_cannot_make_is_refused() -> None:
    given = {"intermediate_size": 14336, "activation": "swiglu"}
    with pytest.raises(ConfigError, match=r"9558 rows .* 4778 columns, which do not fit.*43008"):
        mlp_width(Settings("x", given), 4096)


def test_vocabularies_are_counted_as_the_tokenizers_count_them(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    inner = Tokenizer(models.BPE({"a": 0, "b": 1, "<|endoftext|>": 2}, []))
    inner.add_special_tokens(["<|endoftext|>", "<|padding|>"])
    inner.add_tokens(["  ", "   "])
    path = tmp_path / "tokenizer.json"
    inner.save(str(path))
    assert read_vocabulary("hftokenizer", str(path)) == (inner.get_vocab_size(), 2)
    (tmp_path / "vocab.json").write_text(json.dumps({"x": 0, "y": 1, "<|endoftext|>": 2}))
    assert read_vocabulary("gpt2bpetokenizer", str(tmp_path / "vocab.json")) == (3, 2)
    assert read_vocabulary("charleveltokenizer", None) == (512, 0)
    assert read_vocabulary("hftokenizer", str(tmp_path / "none.json")) is None
    for kind, content in (("hftokenizer", b"[1]"), ("hftokenizer", b"\xff"), ("spmtokenizer", b"text")):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(ConfigError, match="not the file of a"):
            read_vocabulary(kind, str(tmp_path / "bad"))


def test_pieces_of_sentencepiece_are_counted(tmp_path: Path) -> None:
    """A model is a protocol buffer: repeated messages of field 1, then settings in fields 2 and 3."""
    pytest.importorskip("google.protobuf")
    pb = pytest.importorskip("transformers.utils.sentencepiece_model_pb2_new")
    model = pb.ModelProto()
    for number in range(300):
        model.pieces.add(piece=f"p{number}", score=-float(number))
    model.trainer_spec.vocab_size = 300
    model.normalizer_spec.name = "nmt"
    for eos, found in ((None, 2), (7, 7), (-1, None)):
        if eos is not None:
            model.trainer_spec.eos_id = eos
        (tmp_path / "m").write_bytes(model.SerializeToString())
        assert read_vocabulary("spmtokenizer", str(tmp_path / "m")) == (300, found)


def test_tiktoken_encodings_have_the_sizes_that_tiktoken_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    public = pytest.importorskip("tiktoken_ext.openai_public")
    for name, (size, eod) in TIKTOKEN.items():
        monkeypatch.setattr(public, "load_tiktoken_bpe", lambda *_, **__: {})
        monkeypatch.setattr(public, "data_gym_to_mergeable_bpe_ranks", lambda *_, **__: {})
        about = getattr(public, name)()
        assert about["special_tokens"]["<|endoftext|>"] == eod
        assert size == about.get("explicit_n_vocab", max(about["special_tokens"].values()) + 1)
        assert read_vocabulary("tiktokentokenizer", name) == (size, eod)
    assert read_vocabulary("tiktokentokenizer", "unheard") is None


def test_each_kind_of_tokenizer_is_named_as_data_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v.json").write_text(json.dumps({"a": 0, "<|endoftext|>": 1}))
    (tmp_path / "m.txt").write_text("#version: 0.2\n")
    (tmp_path / "m.model").write_bytes(b"\x0a\x03\x0a\x01a" * 3)
    for lines, tokenizer, tokens in (
        ("tokenizer_type: GPT2BPETokenizer\nvocab_file: v.json\nmerge_file: m.txt\n", "v.json,m.txt", 1),
        ("tokenizer_type: GPT2BPETokenizer\nvocab_file: v.json\nmerge_file: none.txt\n", None, 1),
        ("tokenizer_type: CharLevelTokenizer\n", "bytes", 0),
        ("tokenizer_type: TiktokenTokenizer\nvocab_file: cl100k_base\n", "cl100k_base", 100257),
        ("tokenizer_type: SPMTokenizer\nvocab_file: m.model\n", "m.model", 2),
    ):
        (tmp_path / "a.yml").write_text(lines)
        tree = load_tree([tmp_path / "a.yml"])
        assert tree.values.get("data", {}).get("tokenizer") == tokenizer
        assert tree.values["model"]["tokens"] == {"bos": tokens, "eos": [tokens]}
        assert any("id 0, <unk>" in note for note in tree.notes) == ("SPM" in lines)


def test_the_vocabulary_is_padded_as_gpt_neox_pads_it(tmp_path: Path) -> None:
    """50277 tokens: 50304, 50432, 50688 and 51200 rows at 1, 2, 4 and 8 ranks."""
    (tmp_path / "v.json").write_text(json.dumps({str(number): number for number in range(50277)}))
    path = tmp_path / "a.yml"
    for tp, rows in ((1, 50304), (2, 50432), (4, 50688), (8, 51200)):
        path.write_text(f"vocab_file: {tmp_path / 'v.json'}\nmodel_parallel_size: {tp}\n")
        assert load_tree([path]).values["model"]["vocab"] == rows


ODD: tuple[Any, ...] = (
    *(True, 0, -1, 3, 2**70, 10**400, 0.5, 1e300, "", "x", [], [1], ["a"], [[]], [None], {}, {1: 2}),
    *({"enabled": True}, {"enabled": "yes"}, {"type": 1}, {"type": "Adam", "params": None}),
    *({"type": "Adam", "params": {"lr": "x"}}, {"type": "Adam", "params": {"betas": 3}}, {"stage": "x"}),
    *({"stage": 3, "offload_param": "cpu"}, {"stage": 1, "offload_optimizer": {"device": ["a"]}}),
    *({"enabled": True, "initial_scale_power": "a"}, {"enabled": True, "schedule_config": 3}),
    {"enabled": True, "schedule_config": {"root_degree": "x"}, "schedule_type": []},
)
COMPLETE = {
    **{"num_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 16},
    **{"padded_vocab_size": 64, "data_path": "x", "train_iters": 5, "save": "y", "train_batch_size": 4},
}


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.becomes != "ignored"])
def test_odd_values_are_taken_or_refused_in_one_line(name: str) -> None:
    """Whatever is written, there is a run or an error that says so."""
    dice = Random(name)
    blocks = OPTIONS[name].kind == "mapping"
    lines = []
    for value in ODD[-12:] if blocks else dice.sample(ODD, 5):
        try:
            validate(translate(Mix.of({**COMPLETE, name: value}, "a.yml")))
        except ConfigError as error:
            lines.append(str(error))
    assert not [line for line in lines if "\n" in line]


TAKEN = {
    "activation": {"gelu", "geglu", "relu", "swish", "silu", "reglu", "swiglu"},
    "norm": {"layernorm", "rmsnorm"},
    "pos_emb": {"learned", "rotary", "alibi", "none"},
    "init_method": set(table_model.INITS),
    "output_layer_init_method": set(table_model.INITS),
    "lr_decay_style": {"constant", "linear", "cosine", "exponential"},
    "precision": {"fp16", "fp32", "bfloat16"},
    "checkpoint_scale": {"linear", "log"},
    "mlp_type": {"regular", "llama"},
    "pack_impl": {"packed", "pack_until_overflow", "unpacked"},
    "dataset_impl": {"gpt2"},
    "train_impl": {"normal"},
    "optimizer_type": {"adam", "cpu_adam", "cpu_torch_adam", "sgd", "lion"},
    "tokenizer_type": set(find("tokenizer_type").kind),  # type: ignore[union-attr]
}


@pytest.mark.parametrize(
    "option",
    [o for o in (*OPTIONS.values(), *RETIRED.values()) if isinstance(o.kind, tuple) and o.becomes != "ignored"],
    ids=lambda o: o.name,
)
def test_every_choice_is_taken_or_refused(option: Any) -> None:
    """gpt-neox compares small letters with capitals; so is each choice here."""
    taken = set()
    for choice in option.kind:
        given = {**COMPLETE, "intermediate_size": 48, "checkpoint_factor": 2, option.name: choice.upper()}
        try:
            validate(translate(Mix.of(given, "a.yml")))
            taken.add(choice)
        except ConfigError as error:
            refusal = error
    assert taken == TAKEN[option.name]
    assert taken == set(option.kind) or refusal.remedy


def test_a_window_that_gpt_neox_passes_over_is_told() -> None:
    """Global attention without a pipeline has none; flash attention has, and does not count the token itself."""
    given = {**COMPLETE, "sliding_window_width": 8}
    tree = translate(Mix.of(given, "a.yml"))
    assert "window" not in tree.values["model"]["mixer"]
    assert [line for line in tree.notes if "sliding_window_width is 8: passed over" in line]
    for more in ({"pipe_parallel_size": 1}, {"attention_config": [[["flash"], 2]]}):
        assert translate(Mix.of({**given, **more}, "a.yml")).values["model"]["mixer"]["window"] == 9


def noted(**given: Any) -> list[str]:
    """What is told of options beside those that a run needs."""
    return translate(Mix.of({**COMPLETE, **given}, "a.yml")).notes


def test_what_a_run_has_no_use_for_is_told() -> None:
    """Not one option that is given goes without a word."""
    assert noted() == []
    assert noted(gpt_j_tied=True) == ["gpt-neox's gpt_j_tied is passed over: it says nothing without gpt_j_residual"]
    assert noted(zero_optimization={"stage": 0, "offload_optimizer": {"device": "cpu"}})
    assert noted(zero_optimization={"stage": 0, "overlap_comm": True})
    assert noted(zero_optimization={"stage": 1, "overlap_comm": True}) == []
    assert noted(zero_optimization={"stage": 1}, log_param_norm=True)
    assert noted(log_param_norm=True) == []
    assert noted(wandb_project="x") == ["gpt-neox's wandb_project is passed over: use_wandb is not true"]
    assert noted(wandb_project="x", use_wandb=True) == []
    assert noted(finetune=True) == ["gpt-neox's finetune is passed over: no `load` is given"]
    assert noted(flops_profiler={"enabled": True})
    assert noted(flops_profiler={"enabled": False}) == []
    assert noted(load="y")
    nothing = "passed over: beside the other options it says nothing"
    for unheard in (
        {"rms_norm_epsilon": 1e-6},
        {"rotary_pct": 0.5},
        {"sequence_parallel": True},
        {"zero_stage": 1, "zero_optimization": {"stage": 1}},
        {"make_vocab_size_divisible_by": 1},
        {"checkpoint_scale": "log"},
        {"profile_step_start": 3},
        {"train_data_paths": ["x"], "data_path": None, "split": "1,1,1"},
    ):
        assert [line for line in noted(**unheard) if nothing in line], unheard
    assert noted(seq_length=16, lr_decay_iters=5, optimizer_type="adam", attention_config=[[["global"], 2]]) == []
    assert noted(rope_fusion=True, layernorm_fusion=True) == [
        (
            "gpt-neox's rope_fusion, layernorm_fusion are passed over: norms, rotary and activations are fused by "
            "kernels.compile, which is off unless it is asked for"
        )
    ]
    assert validate(translate(Mix.of({**COMPLETE, "use_comet": True}, "a"))).logging.comet


def test_nothing_is_a_mix_without_files() -> None:
    assert not Mix().take(load_tree([], ["num_layers=3"]))
