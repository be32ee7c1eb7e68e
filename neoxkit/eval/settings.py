"""How a task was put to a model. Two scores of a task are comparable where all of this is equal. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from typing import Any

NAMES = {
    "version": "version",
    "shots": "n-shot",
    "documents": "documents",
    "template": "chat template",
    "instruction": "system instruction",
    "generation": "generation settings",
    "prompts": "prompts",
}
"""What each of the Settings is called where people read it."""

ABSENT = ("template", "instruction", "generation")
"""Those that are None because there are none, rather than because nobody wrote them down."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a task was put; each None where the results do not say, or there is none.

    version is the task's; shots the solved examples before each question; documents how many, or how many of how
    many; template and instruction digests of the chat template and the system instruction; generation how answers
    are made, as JSON; prompts a digest of all documents, prompts and targets, known where samples were kept.
    """

    version: str | None = None
    shots: str | None = None
    documents: str | None = None
    template: str | None = None
    instruction: str | None = None
    generation: str | None = None
    prompts: str | None = None

    def json(self) -> dict[str, str | None]:
        """Ready for JSON."""
        return asdict(self)

    def differing(self, *others: Settings) -> list[str]:
        """The names of the fields in which these differ.

        A chat template or another number of examples makes other prompts: where something else differs, it is the
        cause, and `prompts` are left out.
        """
        found = [f.name for f in fields(self) if len({getattr(each, f.name) for each in (self, *others)}) > 1]
        return found if found == ["prompts"] else [name for name in found if name != "prompts"]

    def spell(self, name: str) -> str:
        """One of them for people: "n-shot 5", "no chat template"."""
        value = getattr(self, name)
        if value is None:
            return f"no {NAMES[name]}" if name in ABSENT else f"{NAMES[name]} unknown"
        if name == "documents":
            return str(value) if value.startswith("limit ") else f"{value} documents"
        return f"{NAMES[name]} {short(value)}"


def digest(text: str) -> str:
    """12 hexadecimal digits that tell a text from others."""
    return blake2b(text.encode(), digest_size=6).hexdigest()


def short(value: str) -> str:
    """A setting in at most 20 letters: of a digest the beginning, of another long text a digest."""
    if len(value) <= 20:
        return value
    return value[:8] if set(value) <= set("0123456789abcdef") else digest(value)[:8]


def leaves(tree: Mapping[str, Any], task: str) -> list[str]:
    """The tasks that a group consists of, groups within it taken apart; a task itself."""
    groups = _object(tree, "group_subtasks")
    found: list[str] = []
    waiting, seen = [task], set()
    while waiting:
        name = waiting.pop(0)
        below = groups.get(name)
        if isinstance(below, list) and below and name not in seen:
            waiting = [str(each) for each in below] + waiting
        elif name not in seen:
            found.append(name)
        seen.add(name)
    return found


def settings_of(tree: Mapping[str, Any], task: str) -> Settings:
    """How a results file says that a task, or all tasks of a group, were put."""
    tasks = leaves(tree, task)
    group = tasks != [task]
    config = _object(tree, "config")
    template = _told(tree.get("chat_template_sha"))
    if template is not None and tree.get("fewshot_as_multiturn"):
        template += " in turns"
    version = _joint(tasks, _object(tree, "versions").get)
    if group:
        version = f"{version or 'unknown'}, tasks {digest(' '.join(tasks))}"
    return Settings(
        version=version,
        shots=_joint(tasks, _object(tree, "n-shot").get),
        documents=_documents(tree, tasks, config.get("limit")),
        template=template,
        instruction=_told(tree.get("system_instruction_sha")),
        generation=_joint(tasks, lambda name: _object(_object(tree, "configs"), name).get("generation_kwargs") or None),
        prompts=_joint(tasks, _object(tree, "task_hashes").get, whole=True),
    )


def _object(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = tree.get(key)
    return found if isinstance(found, dict) else {}


def _told(value: object) -> str | None:
    """A value as text."""
    if value is None or value == "":
        return None
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _joint(tasks: Sequence[str], value: Callable[[str], object], whole: bool = False) -> str | None:
    """What tasks have in common; or a digest of what they have. With `whole` None when one of them has nothing."""
    told = [_told(value(name)) for name in tasks]
    if all(each is None for each in told) or (whole and None in told):
        return None
    return told[0] if len(set(told)) == 1 else f"mixed {digest(repr(told))[:6]}"


def _documents(tree: Mapping[str, Any], tasks: Sequence[str], limit: object) -> str | None:
    """How many documents were asked about: "100", or of more "10 of 100". Older files state the limit alone."""
    counts = [_object(_object(tree, "n-samples"), name) for name in tasks]
    if all(isinstance(count.get(key), int) for count in counts for key in ("original", "effective")):
        asked, there = (sum(count[key] for count in counts) for key in ("effective", "original"))
        return str(asked) if asked == there else f"{asked} of {there}"
    return None if limit is None else f"limit {limit}"
