"""neoxkit generate: prompts and what comes of them, whatever they are answered together with."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from refusal import Case, also, check, run, write
from transformers import AutoModelForCausalLM

from neoxkit.data.tokenizer import Tokenizer
from neoxkit.errors import DataError
from neoxkit.serve import start
from neoxkit.serve.engine import Engine
from neoxkit.serve.request import Limits, Request, Sampling
from neoxkit.serve.seeds import derived_seed

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
DRAWN = "--temperature 1 --max-tokens 8 --device cpu"


@pytest.fixture
def chat(here: Path) -> Path:
    """The world, in which the model's tokenizer has a chat template."""
    Path("hf/chat_template.jinja").write_text(TEMPLATE)
    return here


def said(command: str, stdin: str | None = None) -> str:
    """What a command prints, which must succeed and note nothing."""
    result = run(command, stdin)
    assert (result.exit_code, result.stderr) == (0, ""), (command, result.output, result.exception)
    return result.stdout


def objects(command: str) -> list[dict[str, Any]]:
    """The lines of JSON that a command prints."""
    return [json.loads(line) for line in said(command).splitlines()]


def test_one_prompt_and_its_continuation(here: Path) -> None:
    text = said(f"generate hf --prompt 'def test' {DRAWN} --seed 3")
    (found,) = objects(f"generate hf --prompt 'def test' {DRAWN} --seed 3 --json")
    assert text == f"def test{found['text']}\n"
    words = Tokenizer("hf")
    prompt = words.encode("def test", special=True)
    assert words.decode([*prompt, *found["tokens"]]) == "def test" + found["text"]
    assert found == {
        "index": 0,
        "sample": 0,
        "prompt": "def test",
        "text": found["text"],
        "finish_reason": "length",
        "stop_reason": None,
        "tokens": found["tokens"],
        "prompt_tokens": len(prompt),
        "seed": 3,
    }


def test_standard_input_is_a_prompt(here: Path) -> None:
    assert said(f"generate hf --prompt - {DRAWN}", "def test") == said(f"generate hf --prompt 'def test' {DRAWN}")


def test_several_are_printed_in_order_behind_headings(here: Path) -> None:
    prompts = "--prompt 'a long prompt, read later' --prompt b"
    found = objects(f"generate hf {prompts} --samples 2 {DRAWN} --json")
    assert [(each["index"], each["sample"]) for each in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len({each["text"] for each in found}) == 4
    assert said(f"generate hf {prompts} --samples 2 {DRAWN}") == "".join(
        f"=== prompt {each['index'] + 1} of 2, sample {each['sample'] + 1} of 2 ===\n{each['prompt']}{each['text']}\n"
        for each in found
    )
    assert said(f"generate hf --prompt b --samples 2 {DRAWN}").startswith("=== sample 1 of 2 ===\nb")
    assert said(f"generate hf {prompts} {DRAWN}").startswith("=== prompt 1 of 2 ===\na long")


def test_an_answer_depends_on_nothing_beside_it(here: Path) -> None:
    """Among others, alone, and as the only answer that the engine works on."""
    texts = [f"prompt {'x' * number}" for number in range(7)]
    prompts = " ".join(f"--prompt {shlex.quote(text)}" for text in texts)
    together = objects(f"generate hf {prompts} --samples 3 {DRAWN} --seed 11 --json")
    assert [each["seed"] for each in together] == [derived_seed(11, j, i) for j in range(7) for i in range(3)]
    assert len({each["seed"] for each in together}) == 21
    for each in together[::4]:
        (alone,) = objects(f"generate hf --prompt '{each['prompt']}' {DRAWN} --seed {each['seed']} --json")
        assert alone["tokens"] == each["tokens"]


def test_an_answer_does_not_depend_on_tensor_parallelism(here: Path) -> None:
    command = f"generate hf --prompt a --prompt bcd --samples 2 {DRAWN} --logprobs 0 --json"
    one, two = objects(command), objects(f"{command} --tp 2")
    assert [each["tokens"] for each in one] == [each["tokens"] for each in two]
    for ours, theirs in zip(one, two, strict=True):
        for a, b in zip(ours["logprobs"], theirs["logprobs"], strict=True):
            assert a["logprob"] == pytest.approx(b["logprob"], abs=1e-5)


def test_every_setting_arrives(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Request] = []
    submit = Engine.submit

    def spy(engine: Engine, request: Request) -> int:
        asked.append(request)
        return submit(engine, request)

    monkeypatch.setattr(Engine, "submit", spy)
    said(
        "generate hf --prompt a --temperature 0.7 --top-k 9 --top-p 0.8 --min-p 0.1 --repetition-penalty 1.2 "
        "--presence-penalty 0.5 --frequency-penalty -0.25 --seed 5 --max-tokens 6 --min-tokens 2 --logprobs 3 --json "
        "--stop-token 17 --stop-token '<|padding|>'"
    )
    (request,) = asked
    assert request.sampling == Sampling(0.7, 9, 0.8, 0.1, 1.2, 0.5, -0.25, {}, 5)
    assert (request.max_tokens, request.min_tokens, request.logprobs) == (6, 2, 3)
    assert request.stop_ids >= {17, 1}
    eos = request.stop_ids - {17, 1}
    assert eos
    said("generate hf --prompt a --max-tokens 1 --ignore-eos --stop-token 17")
    assert asked[1].stop_ids == {17}


def test_the_engine_is_as_asked(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def spy(*args: Any, **rest: Any) -> None:
        asked.append((*args, rest))
        raise DataError("enough", "look")

    monkeypatch.setattr(start, "open_engine", spy)
    run(
        "generate hf --prompt a --tokenizer t --tp 2 --dtype bf16 --device cpu --max-batch 3 --max-context 40 "
        "--cache-tokens 99 --step-tokens 7 --compile --assume a=b --config c.yml"
    )
    limits = Limits(batch=3, waiting=3, step_tokens=7, context=40, cache_tokens=99)
    assert asked == [(Path("hf"), Path("t"), "BF16", "cpu", 2, limits, True, {"a": "b"}, (Path("c.yml"),), {})]


def test_texts_and_tokens_that_end_an_answer(here: Path) -> None:
    command = "generate hf --prompt 'def' --max-tokens 24 --ignore-eos --json"
    (whole,) = objects(command)
    stop = whole["text"].strip("�")[4:6]
    assert "�" not in stop
    assert stop
    (cut,) = objects(f"{command} --stop {shlex.quote(stop)}")
    assert cut["text"] == whole["text"].partition(stop)[0]
    assert (cut["finish_reason"], cut["stop_reason"]) == ("stop", stop)
    assert cut["tokens"] == whole["tokens"][: len(cut["tokens"])]
    token = whole["tokens"][5]
    (cut,) = objects(f"{command} --stop-token {token}")
    assert cut["tokens"] == whole["tokens"][: whole["tokens"].index(token)]
    assert (cut["finish_reason"], cut["stop_reason"]) == ("stop", token)
    (late,) = objects(f"{command} --stop-token {token} --min-tokens 9")
    assert len(late["tokens"]) >= 9


def test_log_probabilities_are_those_of_transformers(here: Path) -> None:
    (found,) = objects("generate hf --prompt 'def test' --max-tokens 6 --dtype fp32 --logprobs 4 --json")
    model = AutoModelForCausalLM.from_pretrained("hf")
    ids = torch.tensor([[*Tokenizer("hf").encode("def test", special=True), *found["tokens"]]])
    with torch.inference_mode():
        wanted = model(ids).logits[0, found["prompt_tokens"] - 1 : -1].log_softmax(-1)
    for row, token, entry in zip(wanted, found["tokens"], found["logprobs"], strict=True):
        best = row.topk(4)
        assert entry["id"] == token
        assert entry["logprob"] == pytest.approx(float(row[token]), abs=1e-4)
        assert [each["id"] for each in entry["top_logprobs"]] == best.indices.tolist()
        assert [each["logprob"] for each in entry["top_logprobs"]] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert entry["token"] == Tokenizer("hf").decode([token], special=True)


def test_without_a_prompt(here: Path) -> None:
    begin = json.loads(Path("hf/config.json").read_text())["bos_token_id"]
    (found,) = objects(f"generate hf --unconditional {DRAWN} --json")
    assert (found["prompt"], found["prompt_tokens"]) == (None, 1)
    Path("begin.jsonl").write_text(json.dumps({"ids": [begin]}))
    assert json.loads(run(f"generate hf --file begin.jsonl {DRAWN}").stdout)["tokens"] == found["tokens"]
    assert said(f"generate hf --unconditional {DRAWN}") == found["text"] + "\n"
    assert said(f"generate hf --unconditional --samples 2 {DRAWN}").startswith(
        f"=== sample 1 of 2 ===\n{found['text']}"
    )


def test_a_prompt_in_the_chat_template(chat: Path) -> None:
    (found,) = objects(f"generate hf --prompt hello --chat --system 'Be brief.' {DRAWN} --json")
    (plain,) = objects(f"generate hf --prompt '<system>Be brief.\n<user>hello\n<assistant>' {DRAWN} --json")
    assert (found["prompt"], found["tokens"]) == ("hello", plain["tokens"])
    assert said(f"generate hf --prompt hello --chat --system 'Be brief.' {DRAWN}") == found["text"] + "\n"


def test_what_is_continued_may_be_of_any_kind(here: Path) -> None:
    """Cut for two devices, a run's newest checkpoint."""
    assert said(f"generate checkpoint --prompt 'a b' {DRAWN}") == said(f"generate hf --prompt 'a b' {DRAWN}")
    assert said(f"generate run --prompt 'a b' {DRAWN} --max-tokens 2").startswith("a b")


USAGE = [
    Case("two modes", "generate hf --prompt a --file text", "--prompt and --file are two different things to do; see"),
    Case("interactive and unconditional", "generate hf --interactive --unconditional", "two different things to do; "),
    Case("output of prompts", "generate hf --prompt a --output b", "--output is for answers to a --file; see"),
    Case("force of nothing", "generate hf --file a --force", "--force is for an --output ... ; see"),
    Case("json of a file", "generate hf --file a --json", "--json is for --prompt ... answers to a file are JSON; see"),
    Case("json of a talk", "generate hf --interactive --json", "--json is for --prompt and --unconditional; see"),
    Case("samples of a talk", "generate hf --interactive --samples 2 --temperature 1", "--samples has no effect ... ;"),
    Case("logprobs unseen", "generate hf --prompt a --logprobs 2", "--logprobs needs --json or --file; see"),
    Case("logprobs of a talk", "generate hf --interactive --logprobs 2", "--logprobs needs --json or --file; see"),
    Case("chat of nothing", "generate hf --unconditional --chat", "--chat needs something that is said ... ; see"),
    Case("system without chat", "generate hf --prompt a --system b", "--system has no effect without --chat; see"),
    Case("system without a talk's chat", "generate hf --interactive --no-chat --system b",
         "--system has no effect without --chat; see"),
    Case("top-k of the likeliest", "generate hf --prompt a --top-k 3", "--top-k has no effect at temperature 0; give"),
    Case("top-p of the likeliest", "generate hf --prompt a --top-p .3", "--top-p has no effect at temperature 0; give"),
    Case("equal samples", "generate hf --prompt a --samples 3", "3 samples at temperature 0 would be the same; give"),
    Case("min over max", "generate hf --prompt a --min-tokens 9 --max-tokens 8",
         "--min-tokens 9 is more than the 8 of max_tokens; lower"),
    Case("empty stop", "generate hf --prompt a --stop ''", "an empty stop text would end every answer; leave"),
    Case("min-p above 1", "generate hf --prompt a --min-p 1.5", "'--min-p': 1.5 is not in the range 0<=x<=1; see"),
    Case("penalty of nan", "generate hf --prompt a --presence-penalty nan", "nan is not a finite number; see"),
    Case("penalty out of range", "generate hf --prompt a --frequency-penalty 3", "3.0 is not in the range -2<=x<=2; "),
    Case("repetition penalty of 0", "generate hf --prompt a --repetition-penalty 0", "0.0 is not in the range x>0; "),
]  # fmt: skip

INPUT = [
    Case("long prompt of several", f"generate hf --prompt a --prompt '{'word ' * 64}'",
         "prompt 2: the prompt is ... tokens long, the model's context 64; shorten"),
    Case("standard input twice", "generate hf --prompt - --prompt -", "standard input can be read once; ", stdin="a"),
    Case("no chat template", "generate hf --prompt a --chat", "hf has no chat template; ask"),
    Case("no chat template to talk", "generate hf --interactive --chat", "hf has no chat template; leave", stdin=""),
    Case("broken chat template", "generate hf --prompt a --chat", "chat_template.jinja is not a template ... ; correct",
         write("hf/chat_template.jinja", "{% if %}")),
    Case("unknown stop token", "generate hf --prompt a --stop-token '<|nothing|>'",
         'hf/tokenizer.json: no token "<|nothing|>"; name'),
    Case("stop token beyond", "generate hf --prompt a --stop-token 300", "stop token 300 is none of the model's 300; "),
    Case("more logprobs than tokens", "generate hf --prompt a --logprobs 301 --json",
         "301 logprobs of a vocabulary of 300 tokens; ask"),
    Case("heads that do not divide", "generate hf --prompt a --tp 5", "5"),
    Case("no beginning", "generate hf --unconditional", "no token that begins a text; give",
         also(write("hf/generation_config.json", "{}"), write("hf/special_tokens_map.json", "{}"),
              write("hf/tokenizer_config.json", "{}"))),
]  # fmt: skip


@pytest.mark.parametrize("case", [*USAGE, *INPUT], ids=str)
def test_is_refused_in_one_line(case: Case, here: Path) -> None:
    if case.name == "no beginning":
        config = json.loads(Path("hf/config.json").read_text())
        Path("hf/config.json").write_text(json.dumps({**config, "bos_token_id": None, "eos_token_id": None}))
        words = Path("hf/tokenizer.json")
        words.write_text(words.read_text().replace("<|endoftext|>", "<|end|>"))
    check(case, here)
