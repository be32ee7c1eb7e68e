"""A conversation with a model, at a terminal or with lines that come through a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from neoxkit.errors import ConfigError, DataError, NeoxkitError
from neoxkit.log import counted, note
from neoxkit.serve.answers import Draft, grow
from neoxkit.serve.conversation import Conversation, Turn
from neoxkit.serve.idle import awake
from neoxkit.serve.interrupts import interrupts
from neoxkit.serve.prompts import Prompt, Task, request_of
from neoxkit.serve.seeds import derived_seed
from neoxkit.serve.settings import Settings

if TYPE_CHECKING:
    from neoxkit.data.tokenizer.template import ChatTemplate
    from neoxkit.serve.start import Serving

SIGN = "> "
"""What asks a person to say something."""


class Lines:
    """What is said, line by line, by a person at a terminal or through a pipe."""

    def __init__(self) -> None:
        self.person = sys.stdin.isatty()
        """Whether a person sits there."""
        self._count = 0
        if self.person:
            with suppress(ImportError):  # a Python without it
                import readline  # noqa: F401 (from here on `input` knows arrow keys and what was said before)

    def read(self) -> str | None:
        """The next thing said, of several lines where each but the last ends in a backslash; None at the end.

        Raises DataError for what is not UTF-8.
        """
        said = ""
        while (line := self._line()) is not None:
            if not line.endswith("\\"):
                return said + line
            said += line[:-1] + "\n"
        return said.removesuffix("\n") or None

    def _line(self) -> str | None:
        self._count += 1
        try:
            if self.person and sys.stdout.isatty():
                line = input(SIGN)
                line.encode()  # bytes that are no text come as lone surrogates
                return line
            if self.person:
                print(SIGN, end="", file=sys.stderr, flush=True)
            raw = sys.stdin.buffer.readline()
            return raw.decode("utf-8").removesuffix("\n").removesuffix("\r") if raw else None
        except EOFError:
            return None
        except UnicodeError as error:
            where = "this" if self.person else f"standard input:{self._count}:"
            raise DataError(f"{where} is not UTF-8 ({error})", "say it again in UTF-8") from None


class Command(NamedTuple):
    """What may be said to the program instead of the model: what it takes, and what it does."""

    takes: str
    about: str


COMMANDS = {
    "/retry": Command("", "answer what was said last once more, with other noise"),
    "/undo": Command("", "forget what was said last, and its answer"),
    "/reset": Command("", "forget everything but the system message"),
    "/system": Command("TEXT", "what the model is told before the conversation; without TEXT, nothing"),
    "/save": Command("FILE", "write the conversation as a line that `generate --file` takes"),
    "/help": Command("", "show this"),
    "/quit": Command("", "leave"),
}


class Talk:
    """Says what `lines` say to a model and shows what it answers.

    Each answer has a seed of its own, derived from that of the settings, so that a conversation is the same again for
    the same seed. In a pipe a line that cannot be answered is an error; a person is told and may go on.
    """

    def __init__(
        self,
        serving: Serving,
        settings: Settings,
        template: ChatTemplate | None,
        lines: Lines,
        show: Callable[[str], object],
    ) -> None:
        context = serving.engine.context
        reserved = min(settings.max_tokens, max(1, context // 4))
        self._serving, self._settings, self._lines, self._show = serving, settings, lines, show
        self.conversation = Conversation(serving.tokenizer, context, reserved, template, settings.system)

    def run(self) -> None:
        """Go on until there is nothing more to read, /quit, or Ctrl-C twice while nothing is answered."""
        if self._lines.person:
            kind = "a conversation" if self.conversation.template else "one text (the tokenizer has no chat template)"
            note(f"{self._serving.name}: {kind}. Ctrl-C stops an answer, Ctrl-D leaves, /help tells more.")
        asked = False
        while True:
            try:
                with awake(self._serving.engine):
                    line = self._lines.read()
            except KeyboardInterrupt:
                if not self._lines.person:
                    raise
                self._show("\n")
                if asked:
                    return
                asked = True
                note("Ctrl-C once more, or Ctrl-D, leaves")
                continue
            except DataError as error:
                self._refuse(error)
                continue
            asked = False
            if line is None and self._lines.person:
                self._show("\n")  # the terminal's own line shows the sign alone
            if line is None or not self._hear(line):
                return

    def _hear(self, line: str) -> bool:
        """Answer a line, or do what it says. Whether to go on."""
        if line.rstrip() == "/quit":
            return False
        with interrupts() as interrupted:
            try:
                if line.startswith("/") and not line.startswith("//"):
                    self._obey(line, interrupted)
                elif line.strip() or self._may_go_on():
                    said = line[1:] if line.startswith("//") else line
                    self._answer(Turn(said if said.strip() else "", ""), interrupted)
            except NeoxkitError as error:
                self._refuse(error)
        return True

    def _may_go_on(self) -> bool:
        """Whether saying nothing means something: that a text goes on."""
        return self.conversation.template is None and bool(self.conversation.turns)

    def _refuse(self, error: NeoxkitError) -> None:
        """Tell a person what is wrong. Raises the error in a pipe."""
        if not self._lines.person:
            raise error
        note(f"error: {error}")

    def _answer(self, turn: Turn, interrupted: Callable[[], bool]) -> None:
        """Show the answer to a turn, as far as nobody interrupts it, and remember what was shown."""
        serving, conversation, settings = self._serving, self.conversation, self._settings
        before = conversation.first
        ids = conversation.ids(turn.said)
        if dropped := conversation.first - before:
            note(f"the context is full: the oldest {counted(dropped, 'turn')} dropped from what the model is shown")
        index = len(conversation.turns)
        seed = derived_seed(settings.seed, index, turn.attempt)
        request = request_of(ids, settings, serving, seed)
        draft = Draft(Task(Prompt(index, "", settings), 0, request, settings.stop), serving.tokenizer)
        for piece in grow(serving.engine, draft, interrupted):
            self._show(piece)
        self._show("\n")
        answer = draft.answer()
        if answer.finish == "cancelled":
            note("stopped")
        elif answer.fills(serving.engine.context):
            note(f"stopped after {counted(len(answer.tokens), 'new token')}: the model's context is full")
        conversation.add(Turn(turn.said, answer.text, turn.attempt))

    def _obey(self, line: str, interrupted: Callable[[], bool]) -> None:
        """Do what a line with a slash says. Raises NeoxkitError when that cannot be done."""
        name, _, rest = line.rstrip().partition(" ")
        rest = rest.strip()
        if name not in COMMANDS:
            raise DataError(f"there is no {name}", "see /help; // begins what is said with a slash")
        if rest and not COMMANDS[name].takes:
            raise DataError(f"{name} takes nothing", f"say {name} alone")
        if name == "/help":
            for each, command in COMMANDS.items():
                note(f"  {each + ' ' + command.takes:<14} {command.about}")
            note("A line that ends in \\ goes on with the next. // begins what is said with a slash.")
        elif name == "/retry":
            self._retry(interrupted)
        elif name == "/undo":
            note(f"forgotten: {_forgotten(self.conversation.undo()).said}")
        elif name == "/reset":
            self.conversation.reset()
            note("everything is forgotten")
        elif name == "/system":
            self._tell(rest)
        else:
            self._save(rest)

    def _retry(self, interrupted: Callable[[], bool]) -> None:
        last = _forgotten(self.conversation.undo())
        try:
            self._answer(Turn(last.said, "", last.attempt + 1), interrupted)
        except NeoxkitError:
            self.conversation.add(last)
            raise

    def _tell(self, system: str) -> None:
        if self.conversation.template is None:
            raise ConfigError("the tokenizer has no chat template, and so no place for it", "say it in the text")
        self.conversation.system = system or None
        note("the model is told so from now on" if system else "the model is told nothing")

    def _save(self, name: str) -> None:
        if not name:
            raise DataError("/save needs the name of a file", "say /save FILE")
        try:
            with open(Path(name).expanduser(), "x", encoding="utf-8") as file:
                file.write(json.dumps(self.conversation.json(), ensure_ascii=False) + "\n")
        except OSError as error:
            raise DataError(f"{name}: {(error.strerror or str(error)).lower()}", "name another file") from None
        note(f"{name}: {counted(len(self.conversation.turns), 'turn')}")


def talk_template(serving: Serving, settings: Settings) -> ChatTemplate | None:
    """The chat template that a conversation is put into, unless it is not to be.

    Raises ConfigError where it is to be, or there is a system message, and the tokenizer has none.
    """
    from neoxkit.data.tokenizer.template import ChatTemplate

    template = None if settings.chat is False else ChatTemplate.of(serving.tokenizer.path.parent)
    if template is None and (settings.chat or settings.system is not None):
        raise ConfigError(
            f"{serving.tokenizer.path.parent} has no chat template",
            "leave --chat and --system out, or name a tokenizer that has one",
        )
    return template


def _forgotten(turn: Turn | None) -> Turn:
    """The turn. Raises DataError when there was none."""
    if turn is None:
        raise DataError("nothing was said yet", "say something")
    return turn
