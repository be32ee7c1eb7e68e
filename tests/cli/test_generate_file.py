"""neoxkit generate --file: what a line may say, and that nothing is lost, mixed up or answered twice."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusal import Case, check, run, write
from slow_engine import WAIT, press_ctrl_c, slowly

from neoxkit.serve.seeds import derived_seed

DRAWN = "--temperature 1 --max-tokens 6 --device cpu"
TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}<assistant>"


def put(name: str, rows: list[dict[str, Any]]) -> None:
    """Write a file of JSON lines."""
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows(text: str) -> list[dict[str, Any]]:
    """The objects of JSON lines."""
    return [json.loads(line) for line in text.splitlines()]


def answered(command: str, stdin: str | None = None) -> list[dict[str, Any]]:
    """The answers that a command prints, in the order of the prompts."""
    result = run(command, stdin)
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stderr == ""
    return sorted(rows(result.stdout), key=lambda row: (row["index"], row["sample"]))


PROMPTS = [{"prompt": f"prompt {'and on ' * (5 * number % 7)}{number}", "id": f"n{number}"} for number in range(9)]
"""Of all lengths, in no order."""


def test_a_line_is_answered_as_a_command_would(here: Path) -> None:
    put("prompts.jsonl", PROMPTS)
    found = answered(f"generate hf --file prompts.jsonl --samples 2 {DRAWN} --seed 4")
    assert [(row["index"], row["sample"], row["id"]) for row in found] == [
        (j, i, f"n{j}") for j in range(9) for i in range(2)
    ]
    for row in found[::5]:
        assert row["seed"] == derived_seed(4, row["index"], row["sample"])
        (alone,) = rows(run(f"generate hf --prompt '{row['prompt']}' {DRAWN} --seed {row['seed']} --json").stdout)
        assert alone["tokens"] == row["tokens"]


def test_what_a_line_states_counts(here: Path) -> None:
    Path("hf/chat_template.jinja").write_text(TEMPLATE)
    asked: list[dict[str, Any]] = [
        {"prompt": "a", "temperature": 0},
        {"prompt": "a", "max_tokens": 2, "samples": 2, "top_k": None, "id": 7},
        {"prompt": "a", "seed": 9},
        {"messages": [{"role": "user", "content": "hello"}], "system": "Be brief."},
        {"prompt": "hello", "chat": True, "system": "Be brief.", "seed": 9},
        {"ids": [5, 6, 7], "logprobs": 1, "stop": ["x", "y"], "stop_tokens": ["<|padding|>", 9]},
    ]
    put("prompts.jsonl", asked)
    found = answered(f"generate hf --file prompts.jsonl {DRAWN} --top-p 0.9 --seed 3")
    by = {(row["index"], row["sample"]): row for row in found}
    (greedy,) = rows(run("generate hf --prompt a --max-tokens 6 --json").stdout)
    assert by[0, 0]["tokens"] == greedy["tokens"]
    assert len(by[1, 0]["tokens"]) <= 2
    assert (by[1, 1]["id"], by[1, 1]["seed"]) == (7, derived_seed(3, 1, 1))
    assert by[2, 0]["seed"] == 9
    (chat,) = rows(run(f"generate hf --prompt hello --chat --system 'Be brief.' {DRAWN} --top-p .9 --json").stdout)
    assert by[3, 0]["prompt_tokens"] == by[4, 0]["prompt_tokens"] == chat["prompt_tokens"]
    assert by[3, 0]["messages"] == [{"role": "user", "content": "hello"}]
    assert (by[4, 0]["prompt"], by[5, 0]["ids"]) == ("hello", [5, 6, 7])
    assert len(by[5, 0]["logprobs"]) == len(by[5, 0]["tokens"])
    assert "logprobs" not in by[0, 0]


def test_a_text_of_prompts(here: Path) -> None:
    Path("prompts.txt").write_bytes('\ufeffone {"\r\n\n  two\n'.encode())
    assert [row["prompt"] for row in answered(f"generate hf --file prompts.txt {DRAWN}")] == ['one {"', "  two"]


def test_standard_input_is_a_file_of_prompts(here: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in PROMPTS[:2])
    assert [row["id"] for row in answered(f"generate hf --file - {DRAWN}", lines)] == ["n0", "n1"]


def test_the_file_is_in_the_order_of_the_prompts(here: Path) -> None:
    put("prompts.jsonl", PROMPTS)
    result = run(f"generate hf --file prompts.jsonl --output answers.jsonl {DRAWN}")
    assert (result.exit_code, result.stdout) == (0, "")
    assert re.fullmatch(r"generate: 9 answers in [\d.]+ s\n", result.stderr)
    found = rows(Path("answers.jsonl").read_text())
    assert [row["index"] for row in found] == list(range(9))
    printed = answered(f"generate hf --file prompts.jsonl {DRAWN}")
    assert [{key: value for key, value in row.items() if key != "key"} for row in found] == printed


@pytest.fixture
def whole(here: Path) -> str:
    """prompts.jsonl, and what becomes of it without interruption."""
    put("prompts.jsonl", PROMPTS)
    assert run(f"{COMMAND} --output whole.jsonl").exit_code == 0
    return Path("whole.jsonl").read_text()


COMMAND = f"generate hf --file prompts.jsonl {DRAWN}"


def of_all_lengths() -> str:
    """prompts.jsonl, whose 18 answers are not done at once; all of them."""
    put("prompts.jsonl", [{**row, "max_tokens": 1 + 4 * number} for number, row in enumerate(PROMPTS)])
    assert run(f"{COMMAND} --samples 2 --output whole.jsonl").exit_code == 0
    return Path("whole.jsonl").read_text()


def test_the_same_command_goes_on_after_ctrl_c(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = of_all_lengths()
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, 12)
        result = run(f"{COMMAND} --samples 2 --output answers.jsonl")
    count = Path("answers.jsonl").read_text().count("\n")
    assert 3 <= count < 18
    assert (result.exit_code, result.stderr) == (
        130,
        f"error: interrupted; answers.jsonl has {count} of 18 answers; the same command goes on with the rest\n",
    )
    result = run(f"{COMMAND} --samples 2 --output answers.jsonl")
    assert result.stderr.startswith(
        f"answers.jsonl has {count} of 18 answers; going on\ngenerate: {18 - count} answers"
    )
    assert Path("answers.jsonl").read_text() == whole


def killed(lines: int) -> None:
    """Kill the command once answers.jsonl has so many lines."""
    path = Path("answers.jsonl")
    with subprocess.Popen(slowly(f"{COMMAND} --samples 2 --output {path}", 0.1)) as process:
        until = time.monotonic() + WAIT
        while not path.exists() or path.read_bytes().count(b"\n") < lines:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        process.kill()


def test_the_same_command_goes_on_after_a_kill(here: Path) -> None:
    whole = of_all_lengths()
    killed(lines=2)
    assert 2 <= Path("answers.jsonl").read_text().count("\n") < 18
    with open("answers.jsonl", "ab") as file:
        file.write(b'{"index": 8, "sample": 1, "pro')  # as a kill in the middle of a write would leave it
    assert run(f"{COMMAND} --samples 2 --output answers.jsonl").exit_code == 0
    assert Path("answers.jsonl").read_text() == whole
    assert not [path for path in os.listdir() if path.startswith(".")]


def test_at_every_place_a_file_may_be_cut(whole: str) -> None:
    for size in (0, 1, 9, 40, len(whole.encode()) // 2, len(whole.encode()) - 1):
        Path("answers.jsonl").write_bytes(whole.encode()[:size])
        assert run(f"{COMMAND} --output answers.jsonl").exit_code == 0
        assert Path("answers.jsonl").read_text() == whole


def test_nothing_is_left_to_do(whole: str) -> None:
    result = run(f"{COMMAND} --output whole.jsonl")
    assert (result.exit_code, result.stderr) == (0, "whole.jsonl has 9 of 9 answers: nothing is left to do\n")
    assert Path("whole.jsonl").read_text() == whole


def test_more_samples_and_more_prompts_go_on(whole: str) -> None:
    Path("answers.jsonl").write_text(whole)
    put("prompts.jsonl", [*PROMPTS, {"prompt": "one more"}])
    result = run(f"{COMMAND} --samples 2 --output answers.jsonl")
    assert result.stderr.startswith("answers.jsonl has 9 of 20 answers; going on\ngenerate: 11 answers")
    found = rows(Path("answers.jsonl").read_text())
    assert [row for row in found if (row["sample"], row["index"] < 9) == (0, True)] == rows(whole)
    assert [(row["index"], row["sample"]) for row in found] == [(j, i) for j in range(10) for i in range(2)]


def test_a_prompt_that_is_too_long_can_be_mended(whole: str) -> None:
    """The other answers stay."""
    put("prompts.jsonl", [*PROMPTS, {"prompt": "word " * 64}])
    assert "prompts.jsonl:10: the prompt is" in run(f"{COMMAND} --output whole.jsonl").stderr
    put("prompts.jsonl", [*PROMPTS, {"prompt": "word"}])
    assert run(f"{COMMAND} --output whole.jsonl").exit_code == 0
    assert Path("whole.jsonl").read_text().startswith(whole)


@pytest.mark.parametrize(
    "change",
    [
        lambda: put("prompts.jsonl", [*PROMPTS[:3], {"prompt": "another"}, *PROMPTS[4:]]),
        lambda: put("prompts.jsonl", PROMPTS[:-1]),
        lambda: "--seed 1",
        lambda: "--max-tokens 7",
        lambda: "--stop x",
        lambda: "--stop-token 5",
        lambda: "--dtype bf16",
        lambda: Path("hf").rename("hf-1") and run("import neox hf").stdout[:0],
    ],
    ids=["prompt", "fewer", "seed", "max-tokens", "stop", "stop-token", "dtype", "model"],
)
def test_other_answers_are_not_mixed_in(change: Callable[[], str | None], whole: str) -> None:
    Path("answers.jsonl").write_text(whole)
    more = change() or ""
    result = run(f"{COMMAND} {more} --output answers.jsonl")
    assert result.exit_code == 2
    assert re.fullmatch(
        r"error: answers.jsonl:\d: an answer to another prompt, by another model or with other settings; "
        r"name another file, or begin anew with --force\n",
        result.stderr,
    )
    assert Path("answers.jsonl").read_text() == whole
    assert run(f"{COMMAND} {more} --output answers.jsonl --force").exit_code == 0
    assert Path("answers.jsonl").read_text() != whole


@pytest.mark.parametrize(
    "content",
    ["no answer", '{"index": 0}\n', '["index"]\n', '{"index": [], "sample": 0, "key": 1}\n', "[" * 9999 + "\n"],
)
def test_a_file_of_something_else_stays(content: str, here: Path) -> None:
    """Only the beginning of an answer, at the end of the file, is taken for one that was cut short."""
    put("prompts.jsonl", PROMPTS[:1])
    Path("notes.txt").write_text(content)
    result = run(f"{COMMAND} --output notes.txt")
    assert result.exit_code == 2
    assert result.stderr == "error: notes.txt:1: not an answer; name another file, or begin anew with --force\n"
    assert Path("notes.txt").read_text() == content


def test_an_answer_that_is_there_twice(whole: str) -> None:
    Path("answers.jsonl").write_text(whole + whole.splitlines()[0] + "\n")
    assert "answers.jsonl:10: a second answer to prompt 0;" in run(f"{COMMAND} --output answers.jsonl").stderr


def test_one_command_at_a_time(whole: str) -> None:
    with open("whole.jsonl", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = run(f"{COMMAND} --output whole.jsonl --force")
    assert (result.exit_code, result.stderr) == (
        2, "error: whole.jsonl: another command is writing to it; name another file\n"
    )  # fmt: skip
    assert Path("whole.jsonl").read_text() == whole


def test_a_link_stays_one(whole: str) -> None:
    Path("below").mkdir()
    Path("answers.jsonl").symlink_to("below/real.jsonl")
    assert run(f"{COMMAND} --output answers.jsonl").exit_code == 0
    assert Path("answers.jsonl").is_symlink()
    assert Path("below/real.jsonl").read_text() == whole
    assert os.listdir("below") == ["real.jsonl"]


def test_a_pipe_takes_answers_as_they_are_made(whole: str) -> None:
    os.mkfifo("pipe")
    with subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE, text=True) as reader:
        assert run(f"{COMMAND} --output pipe").exit_code == 0
        found = reader.communicate(timeout=60)[0]
    assert sorted(found.splitlines()) == sorted(whole.splitlines())


def test_a_full_disk_leaves_what_was_answered(here: Path) -> None:
    put("prompts.jsonl", PROMPTS[:1])
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    result = run(f"{COMMAND} --output /dev/full")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        2, "error: no space left on device; free some space, or write elsewhere"
    )  # fmt: skip


def line(name: str, text: str | bytes, says: str, more: str = "") -> Case:
    """A file whose second line is refused."""
    content = text if isinstance(text, bytes) else text.encode()
    return Case(
        name,
        f"generate hf --file p.jsonl {more}",
        f"p.jsonl:3: {says}",
        write("p.jsonl", b'{"ids": [5]}\n\n' + content),
    )


FILES = [
    Case("no file", "generate hf --file p.jsonl", "no such file or directory: p.jsonl; check"),
    Case("a folder", "generate hf --file text", "is a directory: text; name"),
    Case("empty file", "generate hf --file p.jsonl", "p.jsonl: no prompt in it; write", write("p.jsonl", "\n \n")),
    Case("text that is no text", "generate hf --file p.txt", "p.txt:2: not UTF-8 (invalid start byte at 1); give",
         write("p.txt", b"a\nb\xff\n")),
    Case("no folder for answers", "generate hf --file p.txt --output no/a.jsonl",
         "no/a.jsonl: there is no folder no; make", write("p.txt", "a")),
    Case("answers into a folder", "generate hf --file p.txt --output text", "text: a folder; name",
         write("p.txt", "a")),
    Case("answers over the prompts", "generate hf --file p.txt --output ./p.txt --force",
         "p.txt: the file of the prompts; name another", write("p.txt", "a")),
    Case("system of nothing", "generate hf --file p.txt --system b",
         "p.txt: no line is put into a chat template; leave", write("p.txt", "a")),
    Case("system without effect", "generate hf --file p.txt --top-k 3",
         "p.txt:1: top_k has no effect at temperature 0; give", write("p.txt", "a")),
    line("no JSON", "prompt", "not valid JSON (Expecting value ... ; write an object with a prompt"),
    line("stop token unknown", '{"prompt": "a", "stop_tokens": "<x>"}', 'hf/tokenizer.json: no token "<x>"; name'),
    line("token of no model", '{"ids": [5, 300]}', "the prompt has token 300, the model's vocabulary 300 rows; use"),
    line("token below 0", '{"ids": [5, -1]}', "the prompt has token -1, the model's vocabulary 300 rows; use"),
    line("too long", json.dumps({"ids": [5] * 64}), "the prompt is 64 tokens long, the model's context 64; shorten"),
    line("no template", '{"prompt": "a", "chat": true}', "hf has no chat template; ask"),
    line("messages without a template", '{"messages": [{"role": "user", "content": "a"}]}', "hf has no chat ... ; "),
]  # fmt: skip


@pytest.mark.parametrize("case", FILES, ids=str)
def test_is_refused_in_one_line(case: Case, here: Path) -> None:
    check(case, here)


def test_a_template_that_refuses_names_the_line(here: Path) -> None:
    Path("hf/chat_template.jinja").write_text("{{ raise_exception('I only hear users') }}")
    case = line("refused", '{"prompt": "a", "chat": true}', "chat_template.jinja refuses ... I only hear users; give")
    check(Case(case.name, case.command, "p.jsonl:3: hf/" + case.says.partition(": ")[2], case.damage), here)


def test_bad_lines_are_found_before_a_model_is_loaded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neoxkit.serve import start

    monkeypatch.setattr(start, "open_engine", lambda *args, **rest: pytest.fail("loaded"))
    Path("p.jsonl").write_text('{"prompt": "a"}\n{"prompt": 5}\n')
    assert "p.jsonl:2: prompt is not a text" in run("generate hf --file p.jsonl").stderr
