"""A conversation: what the model is shown of it, what is forgotten, and what its commands do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neoxkit.errors import ConfigError, NeoxkitError
from neoxkit.serve.conversation import Conversation, Turn
from neoxkit.serve.request import Event, Request
from neoxkit.serve.seeds import derived_seed
from neoxkit.serve.settings import Settings
from neoxkit.serve.talk import Talk


class Letters:
    """A tokenizer in which each letter is a token."""

    single_bytes: frozenset[int] = frozenset()
    bos = eos = None

    def encode(self, text: str, special: bool = False) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        return "".join(map(chr, ids))

    def shows(self, token: int, special: bool) -> bool:
        return True


class Template:
    """u and what the user said, a and what was answered: short enough to count."""

    def render(self, messages: Iterable[dict[str, str]], add_generation_prompt: bool = True) -> str:
        text = "".join(message["role"][0] + message["content"] for message in messages)
        if "refuse" in text:
            raise ConfigError("the template refuses", "say something else")
        return text + "a" * add_generation_prompt


def conversation(chat: bool = True, context: int = 40, reserved: int = 10, **other: Any) -> Conversation:
    template: Any = Template() if chat else None
    letters: Any = Letters()
    return Conversation(letters, context, reserved, template, **other)


def shown(found: Conversation, said: str) -> str:
    """What the model is shown when something is said."""
    return Letters().decode(found.ids(said))


def test_turns_become_messages() -> None:
    found = conversation(system="be")
    assert shown(found, "one") == "sbeuonea"
    found.add(Turn("one", "1"))
    assert shown(found, "two") == "sbeuonea1utwoa"
    assert found.json() == {
        "messages": [
            {"role": "system", "content": "be"},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "1"},
        ]
    }


def test_without_a_template_all_is_one_text() -> None:
    found = conversation(chat=False)
    assert shown(found, "Once") == "Once"
    found.add(Turn("Once", " upon"))
    assert shown(found, "") == "Once upon"
    found.add(Turn("", " a time"))
    assert shown(found, "Then") == "Once upon a time\nThen"
    assert found.json() == {"prompt": "Once upon a time"}


@pytest.mark.parametrize("chat", [True, False])
def test_the_oldest_turns_are_dropped_when_the_context_is_full(chat: bool) -> None:
    found = conversation(chat, context=44, system="be" if chat else None)
    for number in range(4):
        found.add(Turn(f"{number}" * 4, "answer"))
    text = shown(found, "last")
    assert found.first == 2
    assert len(text) <= 44 - 10
    assert "2222" in text
    assert "1111" not in text
    assert text.startswith("sbeu2222" if chat else "2222")
    assert len(found.turns) == 4
    assert "0000" in json.dumps(found.json())


def test_turns_are_dropped_no_further_than_they_must() -> None:
    found = conversation(reserved=10, context=40)
    found.add(Turn("x" * 10, "y" * 10))
    assert len(found.ids("z" * 6)) == 30
    assert found.first == 0
    assert len(found.ids("z" * 7)) == 9
    assert found.first == 1


def test_what_does_not_fit_alone_drops_nothing() -> None:
    found = conversation()
    found.add(Turn("one", "1"))
    assert len(found.ids("z" * 37)) == 39  # into the room that is reserved, rather than not at all
    found.first = 0
    with pytest.raises(ConfigError, match="this is 40 tokens long, the model's context 40; say less"):
        found.ids("z" * 38)
    assert found.first == 0


def test_undo_and_reset() -> None:
    found = conversation(system="be")
    assert found.undo() is None
    found.add(Turn("one", "1"))
    found.add(Turn("two", "2"))
    found.first = 2
    assert found.undo() == Turn("two", "2")
    assert (found.turns, found.first) == ([Turn("one", "1")], 1)
    found.reset()
    assert (found.turns, found.first, found.system) == ([], 0, "be")


class Echo:
    """An engine that answers with the end of the prompt, in capitals, and remembers what it was asked."""

    def __init__(self, context: int = 200) -> None:
        self.context = context
        self.asked: list[Request] = []
        self._events: Iterator[Event] = iter(())

    def submit(self, request: Request) -> int:
        self.asked.append(request)
        letters = [ord(chr(each).upper()) for each in request.ids[-4:-1]][: request.max_tokens]
        number = len(self.asked)
        found = [Event(number, token) for token in letters[:-1]] + [Event(number, letters[-1], finish="length")]
        self._events = iter(found)
        return number

    def tick(self) -> list[Event]:
        return [event for event in [next(self._events, None)] if event]

    def cancel(self, number: int) -> None:
        self._events = iter([Event(number, finish="cancelled")])


class Said:
    """Lines that are said; an exception among them is raised."""

    def __init__(self, *lines: str | type[BaseException], person: bool = True) -> None:
        self.person, self._lines = person, iter(lines)

    def read(self) -> str | None:
        line = next(self._lines, None)
        if isinstance(line, type):
            raise line
        return line


def talk(*lines: str | type[BaseException], person: bool = True, chat: bool = True, **other: Any) -> tuple[Talk, Echo]:
    """A talk in which these lines were said, and the engine that heard them."""
    engine = Echo()
    vocabulary = SimpleNamespace(vocab=2000)
    serving: Any = SimpleNamespace(
        engine=engine, tokenizer=Letters(), config=vocabulary, stop_ids=frozenset(), name="echo"
    )
    template: Any = Template() if chat else None
    said: Any = Said(*lines, person=person)
    shows: list[str] = []
    found = Talk(serving, Settings(temperature=1.0, seed=5, **other), template, said, shows.append)
    found.run()
    return found, engine


def prompts(engine: Echo) -> list[str]:
    """What the engine was asked."""
    return [Letters().decode(request.ids) for request in engine.asked]


def test_each_answer_has_a_seed_of_its_own() -> None:
    _, engine = talk("one", "two", "/retry", "/retry", "three")
    seeds = [request.sampling.seed for request in engine.asked]
    turns = [(0, 0), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert seeds == [derived_seed(5, turn, attempt) for turn, attempt in turns]


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    found, engine = talk(
        "one", "/retry", "/undo", "/system be", "two", "/reset", "/system", "three", "//four", "/quit", "x"
    )
    assert prompts(engine) == ["uonea", "uonea", "sbeutwoa", "uthreea", "uthreeaREEu/foura"]
    assert [turn.said for turn in found.conversation.turns] == ["three", "/four"]
    capsys.readouterr()


def test_help_tells_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    talk("/help")
    told = capsys.readouterr().err
    for name in ("/retry", "/undo", "/reset", "/system TEXT", "/save FILE", "/help", "/quit", "Ctrl-D"):
        assert name in told


def test_a_conversation_is_saved_as_a_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "saved.jsonl"
    found, _ = talk("one", f"/save {path}", f"/save {path}", "/save", f"/save {tmp_path}/no/file")
    assert json.loads(path.read_text()) == found.conversation.json()
    told = capsys.readouterr().err.splitlines()
    assert told[1:] == [
        f"{path}: 1 turn",
        f"error: {path}: file exists; name another file",
        "error: /save needs the name of a file; say /save FILE",
        f"error: {tmp_path}/no/file: no such file or directory; name another file",
    ]


MISTAKES = {
    "/nothing": "there is no /nothing; see /help",
    "/undo": "nothing was said yet; say something",
    "/retry": "nothing was said yet; say something",
    "/reset now": "/reset takes nothing; say /reset alone",
    "refuse": "the template refuses; say something else",
    "x" * 199: "this is 201 tokens long, the model's context 200; say less",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_person_is_told_and_goes_on(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, engine = talk(line, "one")
    assert f"error: {MISTAKES[line]}" in capsys.readouterr().err
    assert prompts(engine) == ["uonea"]


@pytest.mark.parametrize("line", MISTAKES)
def test_in_a_pipe_it_is_an_error(line: str) -> None:
    with pytest.raises(NeoxkitError) as error:
        talk(line, "one", person=False)
    assert MISTAKES[line] in str(error.value)


def test_a_turn_that_cannot_be_answered_again_stays(capsys: pytest.CaptureFixture[str]) -> None:
    found, engine = talk("one", "/system refuse", "/retry", "/system", "two")
    assert "error: the template refuses" in capsys.readouterr().err
    assert found.conversation.turns[0] == Turn("one", "ONE", 0)
    assert prompts(engine) == ["uonea", "uoneaONEutwoa"]


def test_nothing_said_is_passed_over_or_lets_a_text_go_on() -> None:
    assert prompts(talk("", " ", "one")[1]) == ["uonea"]
    _, engine = talk("", "ones", "", "two", chat=False)
    assert prompts(engine) == ["ones", "onesONE", "onesONESON\ntwo"]


def test_ctrl_c_twice_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    stop = KeyboardInterrupt
    assert prompts(talk(stop, "one", stop, stop, "two")[1]) == ["uonea"]
    assert capsys.readouterr().err.count("Ctrl-C once more, or Ctrl-D, leaves") == 2
    with pytest.raises(KeyboardInterrupt):
        talk(stop, "one", person=False)


def test_turns_that_are_dropped_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    talk("x" * 100, "y" * 100, max_tokens=20)
    assert "the oldest 1 turn dropped" in capsys.readouterr().err


def test_a_full_context_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    _, engine = talk("x" * 195)
    assert len(engine.asked[0].ids) == 197
    assert "stopped after 3 new tokens: the model's context is full" in capsys.readouterr().err
