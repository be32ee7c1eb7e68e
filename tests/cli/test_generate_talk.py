"""neoxkit generate --interactive in a pipe and at a real terminal, and Ctrl-C in all that generates."""

from __future__ import annotations

import json
import os
import re
import signal
from itertools import count
from pathlib import Path

import pytest
from refusal import run
from slow_engine import Terminal, press_ctrl_c, terminal

from neoxkit.serve.engine import Engine
from neoxkit.serve.request import Event

DRAWN = "--temperature 1 --max-tokens 6 --device cpu"
TEMPLATE = (
    "{% for message in messages %}{{ message.role[0] }}:{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


@pytest.fixture
def chat(here: Path) -> Path:
    """The world, in which the model's tokenizer has a chat template and the model does not end by itself."""
    Path("hf/chat_template.jinja").write_text(TEMPLATE)
    return here


def test_lines_of_a_pipe_are_turns(chat: Path) -> None:
    result = run(f"generate hf --interactive {DRAWN} --system Hi --seed 3", "a\\\nb\ntwo\n/save saved.jsonl\n")
    assert result.exit_code == 0
    assert result.stderr == "saved.jsonl: 2 turns\n"
    (saved,) = [json.loads(line) for line in Path("saved.jsonl").read_text().splitlines()]
    roles = [message["role"] for message in saved["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    contents = [message["content"] for message in saved["messages"]]
    assert contents[:2] == ["Hi", "a\nb"]
    assert contents[3] == "two"
    assert result.stdout == f"{contents[2]}\n{contents[4]}\n"
    first = run(f"generate hf --prompt 'a\nb' --chat --system Hi {DRAWN} --seed 3").stdout
    assert result.stdout.startswith(first)


def test_what_was_said_is_remembered(chat: Path) -> None:
    """The second answer is that to the whole conversation."""
    command = "generate hf --interactive --max-tokens 6 --device cpu"
    both = run(command, "one\ntwo\n").stdout
    alone = run(command, "two\n").stdout
    assert both.startswith(run(command, "one\n").stdout)
    assert not both.endswith(alone)
    assert run(command, "one\n/reset\ntwo\n").stdout.endswith(alone)


def test_without_a_template_a_text_goes_on(here: Path) -> None:
    """In two steps as in one; also with --no-chat."""
    found = run("generate hf --interactive --max-tokens 4 --ignore-eos --device cpu", "def test\n\n/save a.jsonl\n")
    assert found.exit_code == 0
    text = json.loads(Path("a.jsonl").read_text())["prompt"]
    assert text == "def test" + "".join(found.stdout.split("\n"))
    Path("hf/chat_template.jinja").write_text(TEMPLATE)
    again = run("generate hf --interactive --no-chat --max-tokens 4 --ignore-eos --device cpu", "def test\n\n")
    assert again.stdout == found.stdout


def test_a_pipe_that_is_no_text(chat: Path) -> None:
    result = run(f"generate hf --interactive {DRAWN}", b"one\n\xff\n")
    assert result.exit_code == 2
    assert re.match(r"error: standard input:2: is not UTF-8 \(.*\); say it again in UTF-8\n", result.stderr)


def test_a_mistake_in_a_pipe_is_an_error(chat: Path) -> None:
    result = run(f"generate hf --interactive {DRAWN}", "/nothing\none\n")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: there is no /nothing; ")


def test_ctrl_c_keeps_what_was_said(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = "generate hf --prompt 'the prompt' --max-tokens 30 --ignore-eos --device cpu"
    whole = run(command).stdout
    press_ctrl_c(monkeypatch, 9)
    result = run(command)
    assert (result.exit_code, result.stderr) == (130, "error: interrupted\n")
    assert whole.startswith(result.stdout)
    assert len("the prompt") < len(result.stdout) < len(whole) - 5


def test_ctrl_c_among_several_answers(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are done are printed, and no half one."""
    Path("p.jsonl").write_text('{"prompt": "one", "max_tokens": 3}\n{"prompt": "two", "max_tokens": 30}\n')
    for command in ("generate hf --file p.jsonl", "generate hf --prompt one --prompt two --max-tokens 30 --json"):
        with monkeypatch.context() as patch:
            press_ctrl_c(patch, 9)
            result = run(f"{command} --ignore-eos --device cpu")
        assert (result.exit_code, result.stderr) == (130, "error: interrupted\n")
        assert [json.loads(line)["prompt"] for line in result.stdout.splitlines()] == ["one"] * ("--file" in command)


def test_ctrl_c_in_a_talk_that_goes_on(chat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    press_ctrl_c(monkeypatch, 5, 6)
    result = run("generate hf --interactive --max-tokens 12 --ignore-eos --device cpu", "one\n/save a.jsonl\n")
    assert (result.exit_code, result.stderr) == (0, "stopped\na.jsonl: 1 turn\n")
    whole = run("generate hf --prompt one --chat --max-tokens 12 --ignore-eos --device cpu").stdout
    said = json.loads(Path("a.jsonl").read_text())["messages"][1]["content"]
    assert whole.startswith(said)
    assert len(said) < len(whole) - 2


def test_the_third_ctrl_c_ends_the_program(chat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three within one tick: it does not listen."""
    press = count()
    tick = Engine.tick

    def deaf(engine: Engine) -> list[Event]:
        if not engine.idle:
            for _ in range(3):
                next(press)
                os.kill(os.getpid(), signal.SIGINT)
        return tick(engine)

    monkeypatch.setattr(Engine, "tick", deaf)
    result = run("generate hf --interactive --device cpu", "one\n")
    assert (result.exit_code, result.stderr, next(press)) == (130, "error: interrupted\n", 3)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.fixture
def at(chat: Path) -> str:
    """A conversation that a person may have at a terminal."""
    return "generate hf --interactive --max-tokens 40 --ignore-eos --device cpu"


def answer(screen: Terminal) -> str:
    """What is answered up to the next sign."""
    return screen.until("> $")


def test_at_a_terminal(at: str) -> None:
    with terminal(f"{at} --max-tokens 4", 0.01) as screen:
        assert "hf: a conversation. Ctrl-C stops an answer, Ctrl-D leaves, /help tells more.\n" in answer(screen)
        screen.type("one\r")
        first = answer(screen).partition("\n")[2].removesuffix("\n> ")
        assert first
        screen.type("\x1b[A")  # arrow up: what was said before
        screen.until("one")
        screen.type(" more\r")
        answer(screen)
        screen.type("/nothing\r")
        assert "error: there is no /nothing; see /help" in answer(screen)
        screen.type("/save a.jsonl\r")
        assert "a.jsonl: 2 turns" in answer(screen)
        screen.type("\x04")
        assert screen.ended() == 0
    said = json.loads(Path("a.jsonl").read_text())["messages"]
    assert [message["content"] for message in said if message["role"] == "user"] == ["one", "one more"]


def test_ctrl_c_at_a_terminal(at: str) -> None:
    """While an answer is made it is stopped, and the next one is made; at the sign, twice leaves."""
    with terminal(at) as screen:
        answer(screen)
        screen.type("one\r")
        screen.until("one\n.")
        screen.type("\x03")
        assert "stopped" in answer(screen)
        screen.type("half a li")
        screen.until("half a li")
        screen.interrupt_at_sign()
        assert "Ctrl-C once more, or Ctrl-D, leaves" in answer(screen)
        screen.type("/save a.jsonl\r")
        assert "a.jsonl: 1 turn" in answer(screen)
        screen.interrupt_at_sign()
        assert "Ctrl-C once more" in answer(screen)
        screen.interrupt_at_sign()
        assert screen.ended() == 0
    said = json.loads(Path("a.jsonl").read_text())["messages"]
    assert said[0]["content"] == "one"
    assert said[1]["content"]


def test_ctrl_c_at_a_terminal_with_other_ranks(at: str) -> None:
    """The terminal sends it to all of them; only the first one listens."""
    with terminal(f"{at} --tp 2") as screen:
        answer(screen)
        for said in ("one", "two"):
            screen.type(f"{said}\r")
            screen.until(f"{said}\n.")
            screen.type("\x03")
            assert "stopped" in answer(screen)
        screen.type("\x04")
        assert screen.ended() == 0
