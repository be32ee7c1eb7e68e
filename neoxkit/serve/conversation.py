"""What was said, by a person and by a model, and as much of it as the model's context has room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from neoxkit.errors import ConfigError

if TYPE_CHECKING:
    from neoxkit.data.tokenizer import Tokenizer
    from neoxkit.data.tokenizer.template import ChatTemplate


@dataclass(frozen=True, slots=True)
class Turn:
    """What was said, what was answered, and how many answers were made before, and dropped."""

    said: str
    answered: str
    attempt: int = 0


@dataclass(slots=True)
class Conversation:
    """The turns so far.

    With a template, each is a message of the user and one of the assistant. Without, all of it is one text that the
    model goes on with: what is said begins a new line, and saying nothing lets the model go on where it stopped.

    `context` tokens are all that the model reads and writes at once, `reserved` of them are kept for an answer. What
    no longer fits is dropped from what the model is shown, the oldest turns first, and stays in `turns`.
    """

    tokenizer: Tokenizer
    context: int
    reserved: int
    template: ChatTemplate | None = None
    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    first: int = 0
    """The first turn that the model is shown."""

    def ids(self, said: str) -> tuple[int, ...]:
        """The tokens that a next answer goes on from; as many turns as must are dropped.

        Raises ConfigError when there is no room even for what is said now, and drops nothing then; or when the
        template refuses it.
        """
        first = self.first
        found = self._ids(first, said)
        while len(found) > self.context - self.reserved and first < len(self.turns):
            first += 1
            found = self._ids(first, said)
        if len(found) >= self.context:
            raise ConfigError(f"this is {len(found)} tokens long, the model's context {self.context}", "say less")
        self.first = first
        return found

    def add(self, turn: Turn) -> None:
        """Remember a turn."""
        self.turns.append(turn)

    def undo(self) -> Turn | None:
        """Forget the last turn, and give it; None when there is none."""
        if not self.turns:
            return None
        last = self.turns.pop()
        self.first = min(self.first, len(self.turns))
        return last

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self.turns.clear()
        self.first = 0

    def json(self) -> dict[str, Any]:
        """All of it, as a line of a file that `generate --file` would go on from."""
        if self.template is None:
            return {"prompt": self._text(self.turns)}
        return {"messages": self._messages(self.turns)}

    def _ids(self, first: int, said: str) -> tuple[int, ...]:
        turns = [*self.turns[first:], Turn(said, "")]
        if self.template is not None:
            messages = self._messages(turns)[:-1]
            return tuple(self.tokenizer.encode(self.template.render(messages, add_generation_prompt=True)))
        return tuple(self.tokenizer.encode(self._text(turns), special=True))

    def _messages(self, turns: Sequence[Turn]) -> list[dict[str, str]]:
        found = [] if self.system is None else [{"role": "system", "content": self.system}]
        for turn in turns:
            found.append({"role": "user", "content": turn.said})
            found.append({"role": "assistant", "content": turn.answered})
        return found

    @staticmethod
    def _text(turns: Sequence[Turn]) -> str:
        text = ""
        for turn in turns:
            text += ("\n" if text and turn.said else "") + turn.said + turn.answered
        return text
