"""Conversations are written as transformers writes them; a template is a stranger's program, and fails in one line."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
from collections import OrderedDict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from chat_templates import TEMPLATES, TOKENS
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from neoxkit.data.tokenizer import sandbox
from neoxkit.data.tokenizer.template import ChatTemplate
from neoxkit.data.tokenizer.train import train_bpe
from neoxkit.errors import CheckpointError, ConfigError

SYSTEM = {"role": "system", "content": " Be brief. "}
USER = {"role": "user", "content": 'What is <&> "é"?\n'}
ANSWER = {"role": "assistant", "content": " A thing.  "}

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "many": [USER, ANSWER, {"role": "user", "content": "And 😀?"}],
    "system many": [SYSTEM, USER, ANSWER, USER, ANSWER],
    "wrong order": [USER, USER],
    "reasoning": [USER, {**ANSWER, "reasoning": "hm", "tool_calls": None, "name": None}],
    "odd role": [{"role": "skip", "content": "x"}, {"role": "other", "content": "y"}, *([USER] * 4)],
    "call": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"é": [1, 0.5]}}}]}],
    "no content": [{"role": "user"}],
    "empty": [{"role": "user", "content": ""}],
}

TOOL = {"type": "function", "function": {"name": "f", "description": "é", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer."""
    here = tmp_path_factory.mktemp("chat") / "words"
    train_bpe(["some text", *TOKENS.values()], 270, here)
    return here


@pytest.fixture(scope="module")
def theirs(words: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_file=str(words / "tokenizer.json"), **TOKENS)


def rendered(template: str, messages: Any, /, **variables: Any) -> str:
    return ChatTemplate({"default": template}, TOKENS, "the template").render(messages, **variables)


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_equals_transformers(template: str, messages: list[dict[str, Any]], theirs: PreTrainedTokenizerFast) -> None:
    from jinja2 import TemplateError

    given: list[dict[str, Any]] = [{}, {"tools": [TOOL]}, {"extra": {"a": [1]}, "eos_token": "<end>"}]
    for variables in [{**each, "add_generation_prompt": begin} for each in given for begin in (True, False)]:
        failed, wanted = "", ""
        try:
            wanted = theirs.apply_chat_template(messages, chat_template=template, tokenize=False, **variables)
        except (TemplateError, TypeError) as error:
            failed = " ".join(str(error).split())
        if failed:
            with pytest.raises(ConfigError, match=re.escape(failed)):
                rendered(template, messages, **variables)
        else:
            assert rendered(template, messages, **variables) == wanted


def test_most_conversations_are_written() -> None:
    """What is compared with transformers is not errors alone."""
    good = 0
    for template in TEMPLATES.values():
        for messages in CONVERSATIONS.values():
            with contextlib.suppress(ConfigError):
                good += bool(rendered(template, messages))
    assert good > len(TEMPLATES) * len(CONVERSATIONS) / 2


LISTS = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}<{{ part.text }}>{% endfor %}{% endif %}{% endfor %}"
)

PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    {"role": "user", "content": "c"},
]


def test_parts_are_one_text_where_the_template_takes_no_lists(theirs: PreTrainedTokenizerFast) -> None:
    joined = [{"role": "user", "content": "a\nb"}, PARTS[1]]
    for template in ("chatml", "smollm2", "llama3", "llama3.1", "zephyr", "gemma"):
        assert rendered(TEMPLATES[template], PARTS) == rendered(TEMPLATES[template], joined)
    as_json = "{% for message in messages %}{{ message.content | tojson }}{% endfor %}"
    assert rendered(as_json, PARTS) == '"a\\nb""c"'
    assert rendered(LISTS, PARTS) == theirs.apply_chat_template(PARTS, chat_template=LISTS, tokenize=False) == "<a><b>c"
    assert rendered(TEMPLATES["chatml"], [{"role": "user", "content": []}]) == rendered(
        TEMPLATES["chatml"], [{"role": "user", "content": ""}]
    )


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "no messages"),
        (["hello"], r"messages\[0\] is not a message"),
        ([USER, {"content": "x"}], r"messages\[1\] is not a message"),
        ([{"role": None}], r"messages\[0\] is not a message"),
        ([{"role": "user", "content": 5}], r"messages\[0\]\.content is neither"),
        ([{"role": "user", "content": {"text": "x"}}], r"messages\[0\]\.content is neither"),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\]\.content\[0\] is not text"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}]}],
            r"messages\[0\]\.content\[1\] is not text",
        ),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "is not text"),
        ([{"role": "user", "content": "x", "more": Path("/")}], r"messages\[0\] has a \w*Path"),
        ([{"role": "user", "content": "x", "more": {1, 2}}], r"messages\[0\] has a set"),
    ],
    ids=str,
)
def test_messages_that_are_none(messages: Any, said: str) -> None:
    for template in (TEMPLATES["chatml"], LISTS):
        with pytest.raises(ConfigError, match=said):
            rendered(template, messages)


def test_values_without_end() -> None:
    endless: list[Any] = []
    endless.append(endless)
    for message in ({"role": "user", "content": "x", "more": endless}, {"role": "user", "content": endless}):
        with pytest.raises(ConfigError, match="without end"):
            rendered(TEMPLATES["chatml"], [message])
    with pytest.raises(ConfigError, match="without end"):
        rendered(TEMPLATES["chatml"], [USER], more=endless)
    with pytest.raises(ConfigError, match=r"a variable has a \w*Path"):
        rendered(TEMPLATES["chatml"], [USER], more=Path("/"))


def test_a_template_cannot_change_what_it_is_given() -> None:
    class Text(str):
        """A str with more to reach."""

        __slots__ = ()

        def secret(self) -> str:
            return "secret"

    message = MappingProxyType(OrderedDict(role=Text("user"), content=Text("x"), more=({"a": True}, None, 1.5)))
    assert (
        rendered("{{ messages }}", [message]) == "[{'role': 'user', 'content': 'x', 'more': [{'a': True}, None, 1.5]}]"
    )
    with pytest.raises(ConfigError, match="secret"):
        rendered("{{ messages[0].content.secret() }}", [message])
    for change in ("messages.append(1)", "messages[0].update(a=1)", "messages[0].pop('role')"):
        with pytest.raises(ConfigError, match="is unsafe"):
            rendered("{{ " + change + " }}", [message])


def test_names_of_variables_are_free() -> None:
    assert rendered("{{ self_ }}{{ where }}{{ add }}", [USER], **{"self_": 1, "where": 2, "add": 3}) == "123"
    assert rendered("x{{ messages[0].role }}", [USER], **{"self": 1, "messages": 2}) == "xuser"
    assert rendered("{{ bos_token }}", [USER], bos_token="<other>") == "<other>"


@pytest.mark.parametrize(
    "program",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ strftime_now.__globals__['json'] }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(strftime_now) }}",
        "{% set ns = namespace(_x=1) %}",
        "{% set ns = namespace() %}{% set ns._Namespace__attrs = 1 %}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ range(10 ** 9) | list }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
        "{{ nothing.more }}",
        "{{ undefined_function() }}",
        "{{ {}['x'].y }}",
        "{{ 'x' * (10 ** 18) }}",
        "{{ messages[0] | tojson(indent='\n', separators=1) }}",
        "{{ raise_exception('over\ntwo lines') }}",
        "{{ raise_exception() }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{% for a in range(90000) %}{% for b in range(90000) %}xxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
    ],
)
def test_programs_that_fail(program: str) -> None:
    """Each ends in an error of one line."""
    with pytest.raises(ConfigError, match=r"^the template ") as raised:
        rendered(program, [USER])
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    "program",
    ["{{ ''|attr('__class__')|attr('__mro__') }}", "{{ raise_exception.__globals__ }}", "{{ dict.__class__ }}"],
)
def test_what_a_template_must_not_reach_is_undefined(program: str) -> None:
    assert rendered(program, [USER]) == ""


@pytest.mark.parametrize(
    "text", ["{% for %}", "{{ x", "{% endfor %}", "{{ x | nothing }}", "{% generation %}", "{{ 1 }"]
)
def test_texts_that_are_no_template(text: str, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(text)
    with pytest.raises(ConfigError, match=r"chat_template\.jinja is not a template"):
        ChatTemplate.of(tmp_path)


def test_an_old_jinja_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.environment.cache_clear()
    monkeypatch.setattr(sandbox, "version", lambda name: "3.1.5")
    with pytest.raises(ConfigError, match=r"3\.1\.5.*neoxkit\[serve\]"):
        rendered("x", [USER])
    monkeypatch.setattr(sandbox, "version", lambda name: "4.0.dev1")
    assert rendered("x", [USER]) == "x"
    sandbox.environment.cache_clear()


def test_without_jinja(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.environment.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2.sandbox", None)
    with pytest.raises(ConfigError, match=r"jinja2.*install neoxkit\[data\]"):
        rendered("x", [USER])
    sandbox.environment.cache_clear()


def place(folder: Path, words: Path, files: dict[str, Any]) -> Path:
    """A folder with a tokenizer and these files: texts, or what becomes JSON."""
    shutil.copytree(words, folder)
    about = json.loads((folder / "tokenizer_config.json").read_text())
    for name, content in {"tokenizer_config.json": {}, **files}.items():
        if name == "tokenizer_config.json":
            content = {**about, **content}
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


SOME = "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ tokenizer_class }} some"
OTHER = "{{ messages[0].content }} other"
NAMED = [{"name": "default", "template": SOME}, {"name": "rag", "template": OTHER}]
TOOLS = [*NAMED, {"name": "tool_use", "template": "{{ tools | length }} tools"}]


@pytest.mark.parametrize(
    "files",
    [
        {"chat_template.jinja": SOME},
        {"chat_template.jinja": "é\r\n{{ 'x' }}\r\n"},
        {"tokenizer_config.json": {"chat_template": SOME}},
        {"tokenizer_config.json": {"chat_template": OTHER}, "chat_template.jinja": SOME},
        {"tokenizer_config.json": {"chat_template": NAMED}},
        {"tokenizer_config.json": {"chat_template": TOOLS}},
        {"chat_template.jinja": SOME, "additional_chat_templates/tool_use.jinja": OTHER},
        {
            "chat_template.jinja": SOME,
            "tokenizer_config.json": {"bos_token": {"__type": "AddedToken", "content": "<s>"}, "eos_token": "</s>"},
        },
        {
            "chat_template.jinja": SOME,
            "tokenizer_config.json": {"bos_token": None, "pad_token": None},
            "special_tokens_map.json": {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>"},
        },
        {
            "chat_template.jinja": SOME,
            "tokenizer_config.json": {
                "bos_token": "<s>",
                "added_tokens_decoder": {"0": {"content": "<|endoftext|>", "special": True}},
            },
            "special_tokens_map.json": {"bos_token": "<pad>"},
        },
    ],
    ids=str,
)
def test_files_are_read_like_transformers(files: dict[str, Any], words: Path, tmp_path: Path) -> None:
    folder = place(tmp_path / "model", words, files)
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = ChatTemplate.of(folder)
    assert ours is not None
    for variables in ({}, {"tools": [TOOL]}):
        wanted = theirs.apply_chat_template([USER], tokenize=False, add_generation_prompt=True, **variables)
        assert ours.render([USER], **variables) == wanted


def test_an_old_file_of_its_own(words: Path, tmp_path: Path) -> None:
    folder = place(
        tmp_path / "model",
        words,
        {"chat_template.json": {"chat_template": SOME}, "tokenizer_config.json": {"chat_template": OTHER}},
    )
    found = ChatTemplate.of(folder)
    assert found is not None
    assert found.render([USER]).endswith(" some")


def test_a_template_by_name(words: Path, tmp_path: Path) -> None:
    folder = place(tmp_path / "model", words, {"tokenizer_config.json": {"chat_template": TOOLS}})
    found = ChatTemplate.of(folder, "rag")
    assert found is not None
    assert found.render([USER], tools=[TOOL]) == USER["content"] + " other"
    with pytest.raises(ConfigError, match="none is called more, there are default, rag, tool_use"):
        ChatTemplate.of(folder, "more")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": {"rag": OTHER}}))
    with pytest.raises(ConfigError, match="none of them is the default, there are rag"):
        ChatTemplate.of(folder)


def test_a_folder_without_one(words: Path, tmp_path: Path) -> None:
    assert ChatTemplate.of(tmp_path) is None
    assert ChatTemplate.of(words) is None


@pytest.mark.parametrize(
    "stated", [5, True, [], {}, ["x"], [{"name": "default"}], {"default": 5}, [NAMED[0], 5]], ids=str
)
def test_what_is_stated_is_no_template(stated: Any, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": stated}))
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json: chat_template is neither"):
        ChatTemplate.of(tmp_path)


@pytest.mark.parametrize(
    ("name", "error"), [("chat_template.jinja", ConfigError), ("tokenizer_config.json", CheckpointError)]
)
def test_damaged_files(name: str, error: type[Exception], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\xff{")
    with pytest.raises(error, match=re.escape(name)):
        ChatTemplate.of(tmp_path)
