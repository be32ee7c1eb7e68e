"""What is learned of a conversation: as transformers says where a template marks it, and found out where not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from chat_templates import MARKED, PLAIN, SPECIAL, TOKENS, write_tokenizer
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from neoxkit.data.prepare.conversations import conversation, conversation_of
from neoxkit.data.prepare.examples import Maker, Recipe, Wanted, touched
from neoxkit.data.prepare.spans import Learning, Writing, common
from neoxkit.data.text.documents import Reject, UnusableError
from neoxkit.data.text.rows import Row
from neoxkit.data.tokenizer.template import ChatTemplate

Messages = list[dict[str, Any]]

USER = {"role": "user", "content": "What is it?"}
ANSWER = {"role": "assistant", "content": "It is that."}
SYSTEM = {"role": "system", "content": "Be brief."}
THOUGHT = {"role": "assistant", "content": "<think>\nthat is the\n</think>\n\nIt is there."}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {"at": "é", "n": 1}}}],
}
RESULT = {"role": "tool", "content": "there", "name": "look"}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]

WORDS = st.sampled_from(
    ["What is", " the answer", "é", "e\u0301", "\U0001f600", "\n", "  ", "Xyzzy", "<|im_end|>", "<think>", "It"]
)
TEXTS = st.lists(WORDS, min_size=1, max_size=4).map("".join)


@st.composite
def talks(draw: st.DrawFn) -> Messages:
    """Conversations of one question or more, with answers, some of which were thought about."""
    messages: Messages = [{"role": "system", "content": draw(TEXTS)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(TEXTS)})
        thought = f"<think>\n{draw(TEXTS)}\n</think>\n\n" if draw(st.integers(0, 3)) == 0 else ""
        messages.append({"role": "assistant", "content": thought + draw(TEXTS)})
    return messages


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("chat") / "words")


@pytest.fixture(scope="module")
def makers(words: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Maker]:
    """What makes examples, with each template, without its marks and with them."""
    found = {}
    for marked, templates in ((False, PLAIN), (True, MARKED)):
        for number, (name, text) in enumerate(templates.items()):
            path = tmp_path_factory.mktemp("templates") / f"{number}.jinja"
            path.write_text(text)
            found[name, marked] = Maker(Recipe(parse=wanted, tokenizer=words, template=path))
    return found


@pytest.fixture(scope="module")
def judge(words: Path) -> PreTrainedTokenizerFast:
    """The same tokenizer, which also says where white space is: else transformers marks nothing from there on."""
    inner = tokenizers.Tokenizer.from_file(str(words / "tokenizer.json"))
    inner.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False)
    return PreTrainedTokenizerFast(tokenizer_object=inner, **TOKENS)


def wanted(value: Any) -> Wanted:
    return Wanted([conversation_of(value)])


def made(maker: Maker, messages: Messages, **row: Any) -> tuple[list[int], list[bool]]:
    [found] = maker.make([Row("x:1", {"messages": messages, **row})])
    assert not isinstance(found, Reject), found
    [one] = found.examples
    return one.ids.tolist(), one.learned.tolist()


def judged(judge: PreTrainedTokenizerFast, name: str, messages: Messages, **row: Any) -> tuple[list[int], list[bool]]:
    """What transformers makes of it, with the template that marks what is learned."""
    found = judge.apply_chat_template(
        messages, chat_template=MARKED[name], return_dict=True, return_assistant_tokens_mask=True, **row
    )
    return found["input_ids"], [bool(each) for each in found["assistant_masks"]]


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(
    "messages", [[USER, ANSWER], [SYSTEM, USER, ANSWER, USER, THOUGHT], [USER, THOUGHT, USER, ANSWER]]
)
def test_as_transformers(
    name: str, messages: Messages, makers: dict[tuple[str, bool], Maker], judge: PreTrainedTokenizerFast
) -> None:
    ids, mask = judged(judge, name, messages)
    assert ids == judge.apply_chat_template(messages, chat_template=PLAIN[name], return_dict=True)["input_ids"]
    assert made(makers[name, True], messages) == (ids, mask)
    assert made(makers[name, False], messages) == (ids, mask)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(PLAIN)), talks())
@example("qwen3", [USER, {"role": "assistant", "content": "<think>\n<|im_end|>\n</think>\n\n\n"}, USER, THOUGHT])
def test_any_conversation_as_transformers(
    makers: dict[tuple[str, bool], Maker], judge: PreTrainedTokenizerFast, name: str, messages: Messages
) -> None:
    expected = judged(judge, name, messages)
    assert made(makers[name, True], messages) == expected
    assert made(makers[name, False], messages) == expected


@pytest.mark.parametrize(
    "messages",
    [
        [USER, CALL, RESULT, ANSWER],
        [
            USER,
            {**CALL, "content": "Let me see."},
            RESULT,
            RESULT,
            {**CALL, "reasoning_content": "hm"},
            RESULT,
            THOUGHT,
        ],
        [USER, THOUGHT, USER, CALL, RESULT, ANSWER, USER, {**ANSWER, "reasoning_content": "that"}],
    ],
)
def test_calls_of_tools(
    messages: Messages, makers: dict[tuple[str, bool], Maker], judge: PreTrainedTokenizerFast
) -> None:
    expected = judged(judge, "qwen3", messages, tools=TOOLS)
    assert made(makers["qwen3", False], messages, tools=TOOLS) == expected


@pytest.mark.parametrize("name", [name for name in PLAIN if name != "no special tokens"])
def test_what_is_learned_reads_as_what_was_said(name: str, makers: dict[tuple[str, bool], Maker]) -> None:
    """The learned tokens alone, decoded: contents, and what ends each; whatever the template."""
    maker = makers[name, False]
    ids, mask = made(maker, [SYSTEM, USER, ANSWER, USER, {**ANSWER, "content": "The answer"}])
    text = maker.tokenizer.decode(np.asarray(ids)[mask].tolist(), special=True)
    ends = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "phi3": "<|end|>"}
    end = {**ends, "qwen3": "<|im_end|>"}.get(name, "</s>")
    space, think = " " if name == "mistral" else "", "<think>\n\n</think>\n\n" if name == "qwen3" else ""
    assert text == f"{space}It is that.{end}{space}{think}The answer{end}"


def spans(template: str, messages: Messages, learning: Learning | None = None) -> list[str]:
    """The texts that are learned."""
    writing = Writing(ChatTemplate({"default": template}, TOKENS, "the template"), SPECIAL)
    text, found = writing.learned(conversation(messages), learning or Learning())
    return [text[start:end] for start, end in found]


@pytest.mark.parametrize("templates", [PLAIN, MARKED], ids=["plain", "marked"])
def test_only_the_last_and_weights(templates: dict[str, str]) -> None:
    messages = [USER, ANSWER, USER, {**ANSWER, "content": "There."}]
    template = templates["chatml"]
    assert spans(template, messages) == ["It is that.<|im_end|>", "There.<|im_end|>"]
    assert spans(template, messages, Learning(only_last=True)) == ["There.<|im_end|>"]
    assert spans(template, [USER, {**ANSWER, "weight": 0}, *messages[2:]]) == ["There.<|im_end|>"]
    assert spans(template, [*messages[:3], {**messages[3], "train": False}]) == ["It is that.<|im_end|>"]
    with pytest.raises(UnusableError, match="nothing to learn"):
        spans(template, [*messages[:3], {**messages[3], "weight": 0}], Learning(only_last=True))


def test_other_roles() -> None:
    messages = [SYSTEM, USER, ANSWER]
    learning = Learning(frozenset({"user", "assistant"}))
    assert spans(PLAIN["chatml"], messages, learning) == ["What is it?<|im_end|>", "It is that.<|im_end|>"]
    assert spans(MARKED["chatml"], messages, learning) == ["What is it?<|im_end|>", "It is that.<|im_end|>"]
    assert spans(PLAIN["mistral"], messages, learning) == ["What is it? [/INST]", " It is that.</s>"]
    assert spans(PLAIN["zephyr"], [USER], Learning(frozenset({"user"}))) == ["What is it?</s>"]
    [everything] = spans(PLAIN["zephyr"], messages, Learning(frozenset({"all"})))
    assert everything.startswith("<|system|>\nBe")
    assert everything.endswith("</s>\n")


def test_templates_that_cannot_be_told() -> None:
    """It is said, and not guessed, where what the template writes elsewhere depends on what is said."""
    counting = (
        "{{ messages | map(attribute='content') | join | length }}: {% for m in messages %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(UnusableError, match="turns that cannot be told apart"):
        spans(counting, [USER, ANSWER])
    silent = "{% for m in messages %}{{ m.role }}\n{% endfor %}"
    with pytest.raises(UnusableError, match="message 1: the template writes what it says 0 times"):
        spans(silent, [USER, ANSWER])
    twice = "{% for m in messages %}{{ m.role }}: {{ m.content }} ({{ m.content }})\n{% endfor %}"
    with pytest.raises(UnusableError, match="writes what it says 2 times"):
        spans(twice, [ANSWER, USER])
    uneven = "{% for m in messages %}{% if m.role == 'assistant' and not loop.first %}{% generation %}{{ m.content }}"
    uneven += "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    assert spans(uneven, [ANSWER, USER, ANSWER]) == ["It is that."]
    with pytest.raises(UnusableError, match="marks 1 for 2 messages"):
        spans(uneven, [ANSWER, USER, ANSWER], Learning(only_last=True))


def test_prefixes_where_words_cannot_be_replaced() -> None:
    """A template that refuses an answer without its calls: the text up to each message tells where it is."""
    strict = (
        "{% for m in messages %}{% if m.role == 'tool' and not messages[loop.index0 - 1].tool_calls %}"
        "{{ raise_exception('a result without a call') }}{% endif %}{{ '<|' + m.role + '|>' }}"
        "{% if m.tool_calls %}{{ m.tool_calls[0].function.name }}{% else %}{{ m.content }}{% endif %}"
        "{{ eos_token + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    assert spans(strict, [USER, CALL, RESULT, ANSWER]) == ["look</s>", "It is that.</s>"]


def test_empty_answers_and_none() -> None:
    with pytest.raises(UnusableError, match="empty message"):
        spans(PLAIN["chatml"], [USER, {**ANSWER, "content": ""}])
    with pytest.raises(UnusableError, match="nothing to learn"):
        spans(PLAIN["chatml"], [USER])
    with pytest.raises(UnusableError, match=r"refused by the chat template.*alternate"):
        spans(PLAIN["mistral"], [USER, USER, ANSWER])


@given(st.text("ab", max_size=9), st.text("ab", max_size=9))
def test_common(one: str, other: str) -> None:
    alike = common(one, other)
    assert one[:alike] == other[:alike]
    assert alike == min(len(one), len(other)) or one[alike] != other[alike]


def test_tokens_that_lie_across_a_border_count() -> None:
    tokens = [(0, 0), (0, 3), (3, 5), (5, 5), (5, 9), (9, 10)]
    spaces = [(0, 2), (3, 5), (7, 7), (7, 9)]
    assert touched(spaces, [(5, 6)], 9).tolist() == [False, False, True, False]
    assert touched(spaces, [(2, 3)], 9).tolist() == [False, True, False, False]
    assert touched(tokens, [(4, 9)], 10).tolist() == [False, False, True, False, True, False]
    assert touched(tokens, [(0, 1), (9, 10)], 10).tolist() == [False, True, False, False, False, True]
    assert touched(tokens, [], 10).tolist() == [False] * 6


def test_ends_of_turns() -> None:
    """Two tokens, as Cohere's; another at the end of all, as GPT-OSS's; none in the middle."""
    each = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}"
    two = each + "{{ '<|end|></s>' }}{% endfor %}"
    assert spans(two, [USER, ANSWER, USER, ANSWER]) == ["It is that.<|end|></s>"] * 2
    other = each + "{{ '</s>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endfor %}"
    assert spans(other, [USER, ANSWER, USER, ANSWER]) == ["It is that.<|end|>", "It is that.</s>"]
    none = each + "{{ '</s>' if loop.last }}{% endfor %}"
    assert spans(none, [USER, ANSWER, USER, ANSWER]) == ["It is that.", "It is that.</s>"]


def test_prompts_that_begin_a_thought() -> None:
    """The header ends where an answer and the generation prompt part, with a thought or without."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
        "{{ '<think>\n' + m.reasoning_content + '</think>' if m.reasoning_content else '<think></think>' }}{% endif %}"
        "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
    )
    thought = {**ANSWER, "reasoning_content": "Hm."}
    assert spans(template, [USER, thought]) == ["Hm.</think>It is that.<|im_end|>"]
    assert spans(template, [USER, ANSWER]) == ["</think>It is that.<|im_end|>"]


def test_results_that_are_written_into_the_call() -> None:
    """What a tool answered is not learned, even where the template has it in the assistant's turn, as Gemma 4's."""
    template = (
        "{% for m in messages %}{% if m.role != 'tool' %}{{ '<|' + m.role + '|>' + (m.content or '') }}"
        "{% for call in m.tool_calls or [] %}{{ call.function.name }}"
        "{% if messages[loop.index] is defined %}{% for r in messages if r.role == 'tool' %}{{ '=' + r.content }}"
        "{% endfor %}{% endif %}{% endfor %}{{ '<|end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    with pytest.raises(UnusableError, match="the template writes what follows a call as part of it"):
        spans(template, [USER, CALL, RESULT, ANSWER])


def test_arguments_as_text_where_a_template_takes_no_other() -> None:
    """As DeepSeek-V3's template, which adds them to a text."""
    template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>' + (m.content or '') }}{% for call in m.tool_calls or [] %}"
        "{{ call.function.name + call.function.arguments }}{% endfor %}{{ '<|end|>' }}{% endfor %}"
    )
    assert spans(template, [USER, CALL]) == ['look{"at": "é", "n": 1}<|end|>']
    with pytest.raises(UnusableError, match="fails on the conversation: TypeError"):
        spans(template + "{{ 1 + 'x' }}", [USER, CALL])
