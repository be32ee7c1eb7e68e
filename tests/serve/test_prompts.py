"""Lines of a file as prompts, settings over settings, and a seed for every answer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neoxkit.errors import NeoxkitError
from neoxkit.serve.answer_file import key_of, longest_first
from neoxkit.serve.prompts import Prompt, Task, read_prompts, tasks_of
from neoxkit.serve.request import Request, Sampling
from neoxkit.serve.seeds import SEEDS, derived_seed
from neoxkit.serve.settings import ELSEWHERE, NAMES, NUMBERS, Range, Settings


class Words:
    """A tokenizer of bytes, behind a token 1 where that is wanted."""

    bos, eos = 1, 2

    def encode(self, text: str, special: bool = False) -> list[int]:
        return [1] * special + list(text.encode())

    def id(self, token: str) -> int:
        return {"<end>": 3}[token]


def serving(**other: Any) -> Any:
    """What prompts are made for."""
    tokens = SimpleNamespace(bos=None, eos=(2,))
    given = {"config": SimpleNamespace(vocab=256, tokens=tokens), "engine": SimpleNamespace(context=100)}
    return SimpleNamespace(**{**given, "tokenizer": Words(), "stop_ids": frozenset({2}), "name": "words", **other})


def read(folder: Path, text: str | bytes, settings: Settings | None = None, name: str = "p.jsonl") -> list[Prompt]:
    """The prompts of a file with this text."""
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_prompts(folder / name, settings or Settings())


def test_seeds_are_as_documented() -> None:
    """What was drawn once is drawn for ever."""
    assert derived_seed(7) == 7
    assert derived_seed(-1) == SEEDS - 1
    assert derived_seed(7, 0, 1) == 6431924590463260
    assert derived_seed(7, 1, 0) == 2432183221865889
    assert derived_seed(-1, 2, 3) == derived_seed(SEEDS - 1, 2, 3)


def test_no_two_answers_share_a_seed() -> None:
    seeds = [derived_seed(seed, j, i) for seed in (0, 1, 2) for j in range(50) for i in range(20)]
    assert len(set(seeds)) == len(seeds)
    assert all(seed == int(float(seed)) < 2**53 for seed in seeds)


def test_a_line_over_the_settings(tmp_path: Path) -> None:
    base = Settings(temperature=0.5, top_p=0.9, seed=4, stop=("x",), max_tokens=9)
    lines = (
        '{"prompt": "a"}\n{"prompt": "", "temperature": 1, "stop": "y", "top_k": 5.0, "seed": null}\n'
        '{"ids": [1, 2], "temperature": 0, "stop_tokens": ["<end>", 5], "ignore_eos": true, "seed": 4}\n'
    )
    first, second, third = read(tmp_path, lines, base)
    assert (first.text, first.settings, first.index, first.seeded) == ("a", base, 0, False)
    assert first.where == f"{tmp_path / 'p.jsonl'}:1: "
    assert second.settings == Settings(temperature=1.0, top_p=0.9, top_k=5, seed=4, stop=("y",), max_tokens=9)
    assert (second.text, second.seeded) == ("", False)
    assert third.settings.sampling(8) == Sampling(temperature=0.0, top_p=1.0, seed=8)
    assert (third.settings.stop_tokens, third.settings.ignore_eos) == (("<end>", 5), True)
    assert (third.ids, third.seeded) == ((1, 2), True)


def test_a_text_is_a_prompt_a_line(tmp_path: Path) -> None:
    found = read(tmp_path, b'\xef\xbb\xbf{"prompt"\r\n\n \n b\xe2\x80\xa8c', name="p.txt")
    assert [(prompt.text, prompt.where.rpartition("txt:")[2]) for prompt in found] == [
        ('{"prompt"', "1: "),
        (" b\u2028c", "4: "),
    ]


BAD = [
    ("prompt", "not valid JSON (Expecting value ... ; write an object with a prompt"),
    (b'{"prompt": "\xff"}', "not valid JSON ('utf-8' codec ... ; write"),
    (r'{"prompt": "\ud800"}', "not valid JSON ... surrogates ... ; write"),
    ("[1]", "not a JSON object; write"),
    ("[" * 100_000, "not valid JSON ... ; write"),
    ('{"prompt": "a", "seed": ' + "1" * 5000 + "}", "not valid JSON ... ; write"),
    ('{"prompt": "a", "prompt": "b"}', "not valid JSON ('prompt' is there twice); write"),
    ('{"id": 5}', "none of prompt, messages, ids; write one of prompt, messages, ids"),
    ('{"prompt": null}', "none of prompt, messages, ids; write one of prompt, messages, ids"),
    ('{"prompt": "a", "ids": [5]}', "prompt and ids; write one"),
    ('{"prompt": 5}', "prompt is not a text; correct"),
    ('{"ids": [5, true]}', "ids is not a list of whole numbers; correct"),
    ('{"ids": []}', "ids is not a list of whole numbers; correct"),
    ('{"messages": []}', "messages is not a list of objects with a role; write"),
    ('{"messages": ["a"]}', "messages is not a list of objects with a role; write"),
    ('{"messages": [{"content": "a"}]}', "messages is not a list of objects with a role; write"),
    ('{"prompt": "a", "id": {}}', "id is neither a text nor a number; correct"),
    ('{"prompt": "a", "temprature": 1}', "no setting is called 'temprature'; did you mean temperature?"),
    ('{"prompt": "a", "xyz": 2}', "no setting is called 'xyz'; leave it out, or put what is yours under id; there"),
    ('{"prompt": "a", "temperature": -1}', "temperature: -1 is not a number from 0; correct"),
    ('{"prompt": "a", "temperature": NaN}', "temperature: nan is not a number from 0; correct"),
    ('{"prompt": "a", "temperature": 1e999}', "temperature: inf is not a number from 0; correct"),
    ('{"prompt": "a", "top_p": 0}', "top_p: 0 is not a number above 0 to 1; correct"),
    ('{"prompt": "a", "max_tokens": 2.5}', "max_tokens: 2.5 is not a whole number from 1; correct"),
    ('{"prompt": "a", "seed": "7"}', "seed: '7' is not a whole number from 0 to 18446744073709551615; correct"),
    ('{"prompt": "a", "seed": true}', "seed: True is not a whole number from 0 to 18446744073709551615; correct"),
    ('{"prompt": "a", "ignore_eos": 1}', "ignore_eos: 1 is neither true nor false; correct"),
    ('{"prompt": "a", "system": 1, "chat": true}', "system: 1 is not a text; correct"),
    ('{"prompt": "a", "stop": 1}', "stop: not a text, or a list of texts; correct"),
    ('{"prompt": "a", "stop": ["b", 1]}', "stop: not a text, or a list of texts; correct"),
    ('{"prompt": "a", "stop": ""}', "an empty stop text would end every answer; leave"),
    ('{"prompt": "a", "stop_tokens": [true]}', "stop_tokens: not a token's id or text, or a list of them; correct"),
    ('{"prompt": "a", "min_tokens": 129}', "min_tokens 129 is more than the 128 of max_tokens; lower"),
    ('{"prompt": "a", "temperature": 0, "top_k": 3}', "top_k has no effect at temperature 0; give"),
    ('{"prompt": "a", "temperature": 0, "samples": 2}', "2 samples at temperature 0 would be the same; give"),
    ('{"ids": [5], "chat": true}', "ids cannot be put into the chat template; leave"),
    ('{"messages": [{"role": "user"}], "chat": false}', "messages need the chat template; leave"),
    ('{"prompt": "a", "system": "b"}', "system has no effect without a chat template; add"),
    ('{"messages": [{"role": "system", "content": "a"}], "system": "b"}', "messages have a system message of their"),
]


@pytest.mark.parametrize(("text", "says"), BAD)
def test_a_line_that_is_no_prompt_is_named(text: str | bytes, says: str, tmp_path: Path) -> None:
    content = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(NeoxkitError) as error:
        read(tmp_path, b'{"ids": [5]}\n\n' + content, Settings(temperature=1))
    rest = str(error.value)
    for part in f"{tmp_path}/p.jsonl:3: {says}".split(" ... "):
        assert part in rest, str(error.value)
        rest = rest.partition(part)[2]


@pytest.mark.parametrize("theirs", ELSEWHERE)
def test_what_others_call_a_key(theirs: str, tmp_path: Path) -> None:
    ours = ELSEWHERE[theirs]
    assert ours in (*NAMES, "prompt", "messages", "ids", "id")
    assert theirs not in NAMES
    with pytest.raises(NeoxkitError, match=f"no setting is called '{theirs}'; it is called {ours} here"):
        read(tmp_path, f'{{"prompt": "a", "{theirs}": 1}}')


def test_the_defaults_are_allowed() -> None:
    for name, allowed in NUMBERS.items():
        value = getattr(Settings(), name)
        assert value is None or allowed.read(value) == value
    Settings().check()


def test_the_ends_of_a_range() -> None:
    closed, above = Range(int, 0, 5), Range(float, 0, 1, above=True)
    assert [closed.read(value) for value in (0, 5, 5.0)] == [0, 5, 5]
    assert above.read(1) == 1.0
    for allowed, value in ((closed, -1), (closed, 6), (above, 0), (above, 1.001)):
        with pytest.raises(ValueError, match=f"{value} is not a"):
            allowed.read(value)


def test_tasks_have_seeds_of_their_own() -> None:
    shared = Prompt(3, "", Settings(temperature=1.0, seed=5, samples=2), "ab")
    own = Prompt(3, "", Settings(temperature=1.0, seed=5, samples=2), "ab", seeded=True)
    first, second = tasks_of(shared, serving())
    assert [task.request.sampling.seed for task in (first, second)] == [derived_seed(5, 3, 0), derived_seed(5, 3, 1)]
    assert [task.request.sampling.seed for task in tasks_of(own, serving())] == [5, derived_seed(5, 0, 1)]
    assert first.request.ids == (1, *b"ab")
    assert (first.sample, second.sample) == (0, 1)


def test_what_ends_an_answer() -> None:
    def stops(**settings: Any) -> frozenset[int]:
        (task,) = tasks_of(Prompt(0, "", Settings(**settings), "a"), serving())
        return task.request.stop_ids

    assert stops() == {2}
    assert stops(stop_tokens=(7, "<end>")) == {2, 3, 7}
    assert stops(stop_tokens=(7,), ignore_eos=True) == {7}


def test_what_begins_a_text() -> None:
    def begin(models: int | None, ends: tuple[int, ...], bos: int | None, eos: int | None) -> tuple[int, ...]:
        config = SimpleNamespace(vocab=256, tokens=SimpleNamespace(bos=models, eos=ends))
        given = serving(config=config, tokenizer=SimpleNamespace(bos=bos, eos=eos))
        (task,) = tasks_of(Prompt(0, "", Settings()), given)
        return task.request.ids

    assert begin(9, (2,), bos=1, eos=3) == (9,)
    assert begin(None, (2,), bos=1, eos=3) == (1,)
    assert begin(None, (2,), bos=None, eos=3) == (3,)
    assert begin(None, (2,), bos=None, eos=None) == (2,)
    with pytest.raises(NeoxkitError, match="no token that begins a text; give"):
        begin(None, (), bos=None, eos=None)


def test_a_system_message_of_its_own_counts() -> None:
    own = ({"role": "system", "content": "mine"}, {"role": "user", "content": "a"})
    settings = Settings(system="theirs", chat=True)
    assert Prompt(0, "", settings, messages=own).conversation() == list(own)
    assert Prompt(0, "", settings, messages=own[1:]).conversation()[0] == {"role": "system", "content": "theirs"}
    assert Prompt(0, "", settings, "a").conversation() == [{"role": "system", "content": "theirs"}, own[1]]


def test_a_key_tells_tasks_apart() -> None:
    request = Request((1, 2), Sampling(seed=5), 16, 0, frozenset({2}))
    tasks = [
        Task(Prompt(0, "", Settings()), 0, each, stop)
        for each, stop in [
            (request, ()),
            (request, ("a",)),
            (Request((1, 3), Sampling(seed=5), 16, 0, frozenset({2})), ()),
            (Request((1, 2), Sampling(seed=6), 16, 0, frozenset({2})), ()),
            (Request((1, 2), Sampling(seed=5, min_p=0.1), 16, 0, frozenset({2})), ()),
            (Request((1, 2), Sampling(seed=5), 17, 0, frozenset({2})), ()),
            (Request((1, 2), Sampling(seed=5), 16, 1, frozenset({2})), ()),
            (Request((1, 2), Sampling(seed=5), 16, 0, frozenset({3})), ()),
            (Request((1, 2), Sampling(seed=5), 16, 0, frozenset({2}), 0), ()),
        ]
    ]
    keys = [key_of(task, model) for task in tasks for model in ("one", "other")]
    assert len(set(keys)) == len(keys)


def test_long_prompts_come_first_and_alike_ones_together() -> None:
    ids = [(5, 1), (7, 1, 2), (5, 1), (6, 0, 0), (7, 1, 1)]
    tasks = [
        Task(Prompt(index, "", Settings()), sample, Request(each))
        for index, each in enumerate(ids)
        for sample in range(2)
    ]
    order = [(task.prompt.index, task.sample) for task in longest_first(reversed(tasks))]
    assert order == [(3, 0), (3, 1), (4, 0), (4, 1), (1, 0), (1, 1), (0, 0), (0, 1), (2, 0), (2, 1)]
