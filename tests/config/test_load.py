"""Loading a run: merging, overrides, scalars, and one clear line for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from neoxkit.config.load import dump, load_run, load_tree, validate
from neoxkit.errors import ConfigError

BASE = """\
model:
  family: gpt_neox
  depth: 4
  width: 256
  vocab: 8192
  context: 256
  position: {kind: rotary, fraction: 0.25}
  mixer: {heads: 4}
  tokens: {eos: [0]}
data: {train: tokens/train}
batch: {size: 8}
steps: 100
optimizer:
  lr: 6e-4
  betas: [0.9, 0.95]
save: {folder: runs/x}
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


def refusal(*args: object) -> str:
    with pytest.raises(ConfigError) as raised:
        load_run(*args)  # type: ignore[arg-type]
    line = str(raised.value)
    assert "\n" not in line
    return line


def test_numbers_are_read_as_yaml_1_2_reads_them(base: Path) -> None:
    run = load_run([base], ["steps=1e3", "seed=1_000", "data.train='12'", "init.std=.5", "model.family=on"])
    assert (run.optimizer.lr, run.steps, run.seed, run.data.train[0].tokens) == (6e-4, 1000, 1000, "12")
    assert run.init.std == 0.5
    assert run.model.family == "on"
    assert run.model.tokens.eos == (0,)


def test_tokens_are_a_prefix_or_a_list_of_sources(base: Path) -> None:
    given = "data.train=[tokens/a, {tokens: tokens/b, weight: 2, labels: tokens/b-labels}]"
    run = load_run([base], [given])
    assert [(each.tokens, each.weight, each.labels) for each in run.data.train] == [
        ("tokens/a", None, None),
        ("tokens/b", 2.0, "tokens/b-labels"),
    ]
    alone = load_run([base], ["data.train=tokens/a"])
    assert load_run([base], ["data.train=[tokens/a]"]) == load_run([base], ["data.train={tokens: tokens/a}"]) == alone
    for wrong, said in (
        ("[]", "an empty list"),
        ("3", "data.train: 3 is no prefix of tokens; name one, or a list of several"),
        ("[{tokens: a, wieght: 2}]", "unknown option data.train.0.wieght"),
        ("[{weight: 2}]", "data.train.0.tokens is missing"),
        ("[{tokens: a, weight: 0}]", "data.train.0.weight is 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_run([base], [f"data.train={wrong}"])
    with pytest.raises(ConfigError, match="weigh_by_documents and the weight of a source"):
        load_run([base], [given, "data.weigh_by_documents=0.5"])


def test_later_files_and_then_overrides_win(base: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.yaml"
    second.write_text("optimizer: {lr: 1e-3}\nsteps: 7\n")
    run = load_run([base, second], ["steps=9"])
    assert run.optimizer.kind == "adamw"
    assert (run.optimizer.lr, run.optimizer.betas, run.steps) == (1e-3, (0.9, 0.95), 9)


def test_the_kind_that_goes_without_saying_is_no_other_kind(base: Path) -> None:
    run = load_run([base], ["model.norm.eps=0.5", "model.norm.kind=layer", "optimizer.kind=adamw"])
    assert run.model.norm.eps == 0.5
    assert run.optimizer == load_run([base]).optimizer


def test_another_kind_lacks_what_the_first_had(base: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load_run([base], ["optimizer.kind=muon"])
    line = next(n for n, text in enumerate(base.read_text().splitlines(), 1) if text.startswith("optimizer:"))
    assert str(raised.value) == (
        f"--set optimizer.kind: optimizer.lr is missing: optimizer of kind muon takes the place of the adamw at "
        f"{base}:{line}, with all of it; give optimizer.lr too; `neoxkit config explain optimizer` lists what each "
        "kind has"
    )
    assert load_run([base], ["optimizer.kind=muon", "optimizer.lr=0.02"]).optimizer.kind == "muon"


def test_another_kind_replaces_the_node(base: Path) -> None:
    assert load_run([base], ["model.position.base=5e5"]).model.position.fraction == 0.25  # type: ignore[union-attr]
    assert load_run([base], ["model.position={kind: alibi}"]).model.position.kind == "alibi"


def test_origins(base: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.yaml"
    second.write_text("# a comment\noptimizer:\n  weight_decay: 0.5\n")
    tree = load_tree([base, second], ["steps=9"])
    assert tree.origin(("optimizer", "lr")) == f"{base}:14"
    assert tree.origin(("optimizer", "weight_decay")) == f"{second}:3"
    assert tree.origin(("steps",)) == "--set steps"
    assert tree.origin(("optimizer", "nothing")) == f"{second}:2"


def test_dump_is_read_back_equal(base: Path, tmp_path: Path) -> None:
    run = load_run([base], ["model.position.scaling={kind: linear, factor: 2}"])
    again = tmp_path / "again.yaml"
    again.write_text(dump(run))
    assert load_run([again]) == run


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.lrr=3", "unknown option optimizer.lrr; did you mean optimizer.lr?"),
        ("lr=3", "unknown option lr; did you mean optimizer.lr?"),
        ("model.position.bse=3", "did you mean model.position.base?"),
        ("model.mixer.window_size=3", "did you mean model.mixer.window?"),
        ("optimizer.lr=true", "optimizer.lr is true; it must be a number"),
        ("steps=1.5", "it must be a whole number"),
        ("steps='1'", "it must be a whole number"),
        ("model.tied=1", "it must be true or false"),
        ("model.tied=yes", "it must be true or false"),
        ("steps=-1", "greater than or equal to 0"),
        ("steps=.inf", "no finite number"),
        ("model.position.kind=rotory", "'rotory'; choose one of 'rotary'"),
        ("precision=fp64", "choose one of 'auto', 'fp32', 'bf16' or 'fp16'"),
        ("optimizer=3", "optimizer is 3; it must be a mapping"),
        ("optimizer=", "it must be a mapping"),
        ("optimizer.betas=[1, 2]", "below 1"),
        ("optimizer.kind=adam", "'adam'; choose one of 'adamw', 'adamw8bit', 'lion', 'sgd', 'adafactor', 'muon'"),
        ("optimizer.momentum=0.9", "unknown option optimizer.momentum; it belongs to optimizer with kind: sgd or kind"),
        ("optimizer={kind: sgd, lr: 1, momentum: 0, nesterov: true}", "nesterov needs momentum above 0"),
        ("optimizer={kind: muon, lr: 1, rest: {betas: [0.9]}}", "optimizer.rest.betas is too short"),
        ("mup={base_width: 0}", "mup.base_width is 0"),
        ("init.weights=kaiming", "choose one of 'normal', 'scaled'"),
        ("optimizer.betas=[0.9]", "optimizer.betas is too short"),
        ("optimizer.betas=0.9", "it must be a list"),
        ("model.tokens.eos=[a]", "it must be a whole number"),
        ("model.tokens.bos=8192", "not below vocab"),
        ("model.width=255", "width 255 does not divide into 4 heads"),
        ("model.mixer.kv_heads=3", "kv_heads 3 does not divide heads 4"),
        ("model.position.fraction=0.01", "rotary needs an even number"),
        ("model.norm={kind: rms, bias: true}", "an RMSNorm has no bias"),
        ("batch.micro=3", "batch.micro 3 does not divide batch.size 8"),
        ("data.sequence=512", "longer than model.context 256"),
        ("schedule.min_lr=1", "above optimizer.lr"),
        ("schedule.decay_steps=50", "a cosine rises again"),
        ("schedule.warmup_steps=101", "more than the 100 steps"),
        ("schedule={warmup: 0.1, warmup_steps: 3}", "keep one"),
        ("evaluation.every=5", "without data.valid"),
        ("model=!!python/name:os.system x", "the tag"),
        ("model=[", "not valid YAML"),
        ("model", "is no assignment"),
        ("model..depth=3", "is no assignment"),
    ],
)
def test_a_wrong_override_is_one_clear_line(base: Path, override: str, said: str) -> None:
    line = refusal([base], [override])
    assert said in line
    assert "--set" in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "FILE is empty"),
        ("# nothing\n", "FILE is empty"),
        ("- a\n- b\n", "FILE holds no mapping"),
        ("text\n", "FILE holds no mapping"),
        ("steps: 1\nsteps: 2\n", "FILE:2: steps was already given at FILE:1"),
        ("data:\n  train: a\n  train: b\n", "FILE:3: data.train was already given at FILE:2"),
        ("data:\n\ttrain: a\n", "FILE:2: not valid YAML: a tab"),
        ("data: {train: a\n", "not valid YAML"),
        ("steps: 1\n---\nsteps: 2\n", "not valid YAML"),
        ("a: &x 1\nb: *x\n", "FILE:2: aliases"),
        ("<<: {a: 1}\n", "FILE:1: merge keys"),
        ("? [a, b]\n: 1\n", "FILE:1: a key must be one word"),
        ("steps: 10\noptimiser:\n  lr: 1\n", "FILE:2: unknown option optimiser"),
        ("steps: ten\n", 'FILE:1: steps is "ten"'),
        ("steps: 10\n", "model is missing"),
        ("a: " + "[" * 500 + "\n", "FILE"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert said.replace("FILE", str(path)) in refusal([path])


def test_the_error_names_the_file_that_is_wrong(base: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.yaml"
    second.write_text("steps: 5\n\noptimizer:\n  wieght_decay: 1\n")
    line = refusal([base, second])
    assert line == f"{second}:4: unknown option optimizer.wieght_decay; did you mean optimizer.weight_decay?"
    second.write_text("steps: 5\nbatch: {micro: 5}\n")
    assert refusal([base, second]).startswith(f"{second}:2: batch.micro 5 does not divide")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "no such file" in refusal([tmp_path / "absent.yaml"])
    assert "is a folder" in refusal([tmp_path])
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not text in UTF-8" in refusal([tmp_path / "b.yaml"])


def test_several_errors_are_counted(base: Path) -> None:
    assert "(and 1 more)" in refusal([base], ["optimizer.lrr=3", "optimizer.epss=3"])


MODELS = sorted((Path(__file__).parents[2] / "configs" / "models").glob("*.yaml"))


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_shipped_models_load(path: Path) -> None:
    """A file of configs/models holds the model alone; with the rest of a run it loads."""
    assert set(yaml.safe_load(path.read_text())) <= {"model", "init", "optimizer", "schedule"}
    tree = load_tree([path], ["data.train=a", "steps=1000", "batch.size=4", "save.folder=b"])
    if "optimizer" not in tree.values:
        tree.merge(load_tree([], ["optimizer.lr=1e-3"]))
    validate(tree)


def test_models_are_shipped() -> None:
    assert len(MODELS) >= 4
