"""Wrong command lines, configurations, text and tokens: each one clear line, 2, and nothing written."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from refusal import Case, check, check_line, check_untouched, cut, edit, everything, run, write

from neoxkit.cli import explain

USAGE = [
    Case("unknown command", "trian run.yaml", "no such command 'trian'. Did you mean 'train'?"),
    Case(
        "unknown option",
        "import hf out --dtyp bf16",
        "no such option '--dtyp'. ... Did you mean ... '--dtype' ... ; see `neoxkit import --help`",
    ),
    Case("missing argument", "import hf", "missing argument 'DESTINATION'; see `neoxkit import --help`"),
    Case("argument too many", "export checkpoint out more", "unexpected extra argument (more); see"),
    Case("not a number", "import hf out --tp two", "'--tp': 'two' is not a valid integer"),
    Case("number out of range", "import hf out --tp 0", "'--tp': 0 is not in the range x>=1"),
    Case("none of the choices", "import hf out --dtype bf32", "'--dtype': 'bf32' is not one of 'fp32', 'bf16', 'fp16'"),
    Case("no output", "data tokenize text", "missing option '-o' / '--output'"),
    Case("explain an unknown key", "config explain model.widht", "no option model.widht; did you mean model.width?"),
]


def set_run(option: str) -> str:
    return f"config check run.yaml --set {option}"


CONFIG = [
    Case("misspelled key", "config check run.yaml",
         "run.yaml:3: unknown option model.dpeth ... did you mean model.depth?", edit("run.yaml", "depth", "dpeth")),
    Case("misspelled section", "config check run.yaml",
         "run.yaml:13: unknown option optimiser ... ; did you mean optimizer?",
         edit("run.yaml", "optimizer", "optimiser")),
    Case("text for a number", "config check run.yaml", 'run.yaml:3: model.depth is "two"; it must be a whole number',
         edit("run.yaml", "depth: 2", "depth: two")),
    Case("quoted number", "config check run.yaml", 'run.yaml:14: steps is "2"; it must be a whole number',
         edit("run.yaml", "steps: 2", 'steps: "2"')),
    Case("key given twice", "config check run.yaml",
         "run.yaml:4: model.depth was already given at run.yaml:3; keep one",
         edit("run.yaml", "  width: 16", "  depth: 3")),
    Case("no YAML", "config check run.yaml", "run.yaml:8: not valid YAML",
         edit("run.yaml", "residual: ", "residual: [")),
    Case("tab", "config check run.yaml", "run.yaml:3: not valid YAML: a tab", edit("run.yaml", "  depth", "\tdepth")),
    Case("empty configuration", "config check run.yaml", "run.yaml is empty; give", write("run.yaml", "# nothing\n")),
    Case("configuration missing", "config check rum.yaml", "rum.yaml: no such file; name"),
    Case("a folder for a configuration", "train text", "text is a folder; name a YAML file"),
    Case("weights for a configuration", "train hf/model.safetensors", "hf/model.safetensors is not text"),
    Case("missing section", "config check run.yaml", "run.yaml: save is missing ... neoxkit config explain save",
         edit("run.yaml", "save: {folder: run}", "")),
    Case("override of an unknown key", set_run("optimizer.rl=1"),
         "--set optimizer.rl: unknown option ... optimizer.lr?"),
    Case("override without a value", set_run("steps"), "--set steps is no assignment; write it as"),
    Case("micro does not divide", set_run("batch.micro=3"), "batch.micro 3 does not divide batch.size 4; choose"),
    Case("heads do not divide width", set_run("model.mixer.heads=3"), "width 16 does not divide into 3 heads; set"),
    Case("size beyond all reason", set_run("model.mixer.head_dim=1e400"), "mixer.head_dim is beyond all reason; lower"),
    Case("min_lr above lr", set_run("schedule.min_lr=1"), "schedule.min_lr 1 is above optimizer.lr 0.01; lower"),
    Case("infinite number", set_run("clip=.inf"), ".inf is no finite number; write"),
    Case("unknown kind", set_run("model.position.kind=rotory"), "model.position.kind is 'rotory'; choose one of"),
    Case("sequence beyond context", set_run("data.sequence=17"), "data.sequence 17 is longer than model.context 16; "),
]  # fmt: skip

TRAIN = [
    Case("no tokens", "train new.yaml --set data.train=tokns", "tokns.idx: no such index; write the pair"),
    Case("index is no index", "train new.yaml", "tokens.idx is not a token index ... ; ",
         write("tokens.idx", b"x" * 99)),
    Case("tokens cut short", "train new.yaml", "tokens.bin is truncated: ", cut("tokens.bin", -2)),
    Case("index cut short", "train new.yaml", "tokens.idx is truncated: ", cut("tokens.idx", 60)),
    Case("too little text", "train new.yaml --set model.context=99999", "tokens.bin ... ; give more text, lower"),
    Case("another tokenizer", "train new.yaml", "tokens was made with tokenizer sha256: ... , not sha256: ... ; name",
         edit("tokens-tokenizer/tokenizer.json", "{\n", "{ \n")),
    Case("no tokenizer", "train new.yaml --set data.tokenizer=text", "text: no tokenizer.json; give"),
    Case("vocabulary too small", "train new.yaml --set model.vocab=299",
         "300 ... model.vocab is 299; set model.vocab to"),
    Case("unknown family", "train new.yaml --set model.family=gpt3",
         "no family is called 'gpt3'; choose one of gpt_neox"),
    Case("nothing to load", "train new.yaml --set load=nowhere", "nowhere: no such file or folder; check"),
    Case("another model to load", "train new.yaml --set load=hf", "model. ... hf ... ; set model."),
    Case("run of another model", "train run.yaml --set model.width=32 --set steps=4", "width ... 16 ... ; "),
    Case("run without a valid checkpoint", "train run.yaml", "run has checkpoints, and none is valid; restore",
         cut("run/step-00000002/manifest.json", 99)),
    Case("run folder is a file", "train new.yaml --set save.folder=run.yaml", "save.folder run.yaml is a file; name"),
    Case("no such device", "train new.yaml --set device=cuda", "cuda"),
]  # fmt: skip

TOKENIZE = [
    Case("no text file", "data tokenize txt -o new --train-tokenizer 300",
         "txt: no such file or folder; mend the path"),
    Case("empty folder", "data tokenize empty -o new --train-tokenizer 300", "no text found in empty ... --include",
         lambda: Path("empty").mkdir()),
    Case("only empty files", "data tokenize a.txt -o new --tokenizer hf", "new: no document can be used ... ; give",
         write("a.txt"), noted=("tokenize: ",)),
    Case("not UTF-8", "data tokenize a.txt -o new --tokenizer hf --strict", "a.txt:2: not UTF-8 ... ; mend",
         write("a.txt", b"good\n\xff\xfe bad\n")),
    Case("broken JSON line", "data tokenize a.jsonl -o new --tokenizer hf --strict",
         "a.jsonl:2: broken JSON ... ; mend", write("a.jsonl", '{"text": "good"}\n{"text": bad}\n')),
    Case("tiny vocabulary", "data tokenize text -o new --train-tokenizer 200",
         "200 entries is too small; give at least"),
    Case("no tokenizer named", "data tokenize text -o new", "one tokenizer is needed ... ; give --tokenizer or"),
    Case("broken tokenizer", "data tokenize text -o new --tokenizer hf",
         "hf/tokenizer.json is not a tokenizer ... ; give", cut("hf/tokenizer.json", 1000)),
    Case("another JSON for a tokenizer", "data tokenize text -o new --tokenizer run/step-00000002/manifest.json",
         'manifest.json is not a tokenizer: it has no "model"; give'),
    Case("unknown end of document", "data tokenize text -o new --tokenizer hf --eod '</doc>'",
         'no token "</doc>"; name'),
    Case("tokens exist", "data tokenize text -o tokens --tokenizer hf", "tokens.bin exists; give --force"),
    Case("no folder for tokens", "data tokenize text -o no/new --tokenizer hf",
         "no: no such folder ... ; make it first"),
    Case("prefix is a folder", "data tokenize text -o run --tokenizer hf", '"run" is no prefix of file names; give'),
    Case("holdout of everything", "data tokenize text -o new --tokenizer hf --holdout 3", "holdout 3.0 is not a share"),
    Case("no size", "data tokenize text -o new --train-tokenizer 300 --train-bytes 1Q", "'1Q' is not a size such as"),
    Case("info of nothing", "data info nowhere", "nowhere.idx: no such index; write the pair"),
]  # fmt: skip


@pytest.mark.parametrize("case", [*USAGE, *CONFIG, *TOKENIZE], ids=str)
def test_is_refused_in_one_line(case: Case, here: Path) -> None:
    check(case, here)


@pytest.mark.parametrize("case", TRAIN, ids=str)
def test_a_run_is_refused_before_its_first_step(case: Case, here: Path) -> None:
    text = Path("run.yaml").read_text()
    Path("new.yaml").write_text(text.replace("folder: run", "folder: new"))
    check(case, here)


def test_a_run_that_another_process_trains_is_refused(here: Path) -> None:
    held = os.open("run", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        check(Case("", "train run.yaml --set steps=4", "another process is training in run; wait for it"), here)
    finally:
        os.close(held)


def test_ids_beyond_the_vocabulary_stop_a_run(here: Path) -> None:
    """Only reading finds them, where no sidecar tells: the run has begun, and is left without a checkpoint."""
    Path("tokens.json").unlink()
    result = run("train run.yaml --set save.folder=new --set model.vocab=270 --set data.tokenizer=null")
    says = "tokens.bin: row ... has token id ... the vocabulary is 270; train with"
    case = Case("", "", says, noted=("no data.tokenizer", "gpt_neox: "))
    check_line(result.exit_code, result.stdout, result.stderr, case)
    assert not list(Path("new").glob("*step-*"))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["trian"], "no such command 'trian'. Did you mean 'train'?; see"),
        (["config", "check", "run.yaml", "--set", "optimizer.rl=1"], "unknown option optimizer.rl; did you mean"),
        (["inspect", "text"], "text: not a checkpoint"),
        (["import", "text", "out"], "text: no config.json: not a Hugging Face model; choose"),
        (["generate", "hf", "--prompt", b"\xff"], "the prompt is not UTF-8 ... ; give text in UTF-8"),
    ],
    ids=["usage", "config", "inspect", "import", "generate"],
)
def test_a_process_says_the_same(args: list[str | bytes], says: str, here: Path) -> None:
    """As a user meets it: no traceback, and nothing that a library prints on the way."""
    before = everything(here)
    done = subprocess.run([sys.executable, "-m", "neoxkit", *args], capture_output=True, text=True, check=False)
    check_line(done.returncode, done.stdout, done.stderr, Case("", "", says))
    check_untouched(before, everything(here))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "the computer's memory is full: more was asked for than there is; lower batch.micro, or see"),
        (
            type("OutOfMemoryError", (RuntimeError,), {})(
                "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which"
            ),
            "the GPU's memory is full: 20.00 GiB more were asked for; lower batch.micro, or see `neoxkit plan`",
        ),
    ],
    ids=["cpu", "gpu"],
)
def test_memory_that_is_not_there_is_one_line(error: Exception, says: str) -> None:
    assert (explain(error) or "").startswith(says)


def test_torch_says_of_a_cpu_what_is_looked_for() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 59, dtype=torch.uint8)
    assert (explain(raised.value) or "").startswith("the computer's memory is full: 5764607")
    assert explain(RuntimeError("the shapes do not fit")) is None
