"""neoxkit generate: text that continues a prompt, answers to a file of prompts, or a conversation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neoxkit.checkpoint.store import Place
from neoxkit.cli import options
from neoxkit.cli.running import Running, running
from neoxkit.log import counted, note
from neoxkit.serve.settings import NAMES, NUMBERS, Settings

if TYPE_CHECKING:
    from neoxkit.serve.answers import Answer
    from neoxkit.serve.prompts import Task
    from neoxkit.serve.start import Serving


def number(setting: str, help: str, metavar: str = "N") -> options.Decorator[Any]:  # noqa: A002 (click's own word)
    """The option of a setting that is a number, with its range and its default."""
    allowed = NUMBERS[setting]
    if allowed.kind is int:
        least, most = (None if each is None else int(each) for each in (allowed.least, allowed.most))
        kind: click.ParamType = click.IntRange(least, most)
    else:
        kind = options.Finite(min=allowed.least, max=allowed.most, min_open=allowed.above)
    stated = getattr(Settings(), setting)
    name = "--" + setting.replace("_", "-")
    return click.option(name, type=kind, default=stated, show_default=stated is not None, metavar=metavar, help=help)


class TokenType(click.ParamType):
    """A token, by its id or by what it is called."""

    name = "token"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """The id, of what is written in digits; else the text."""
        return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


SAMPLING: tuple[options.Decorator[Any], ...] = (
    number("max_tokens", "New tokens at most."),
    number("min_tokens", "No token or stop text ends an answer before so many new tokens."),
    number("temperature", "0: the likeliest token each time.", "T"),
    number("top_k", "Draw from the K likeliest tokens; 0: from all.", "K"),
    number("top_p", "Draw from the likeliest tokens that hold P together.", "P"),
    number("min_p", "Draw from tokens at least P times as likely as the likeliest.", "P"),
    number("repetition_penalty", "Above 1, tokens of prompt and answer become less likely to come again.", "X"),
    number("presence_penalty", "Take X from the logit of each token that the answer has.", "X"),
    number("frequency_penalty", "Take X from it for each time that the answer has the token.", "X"),
    number("seed", "The same seed draws the same text."),
    number("samples", "Answers to each prompt."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End an answer before this text; several times."),
    click.option(
        "--stop-token",
        "stop_tokens",
        multiple=True,
        type=TokenType(),
        metavar="TOKEN",
        help="End an answer at this token, by id or text; several times.",
    ),
    click.option("--ignore-eos", is_flag=True, help="Do not end where the model ends a text."),
    number("logprobs", "Log-probabilities of each token and of the K likeliest.", "K"),
    click.option(
        "--chat/--no-chat", default=None, help="Put prompts into the chat template; --interactive does if there is one."
    ),
    click.option("--system", metavar="TEXT", help="The system message of what is put into the chat template."),
)
"""The options that are settings of the answers, in the order of the help."""


def sampling(function: options.Decorated) -> options.Decorated:
    """The options of SAMPLING."""
    for option in reversed(SAMPLING):
        function = option(function)
    return function


@click.command()
@click.argument("source", type=options.PLACE)
@click.option(
    "--prompt", "texts", multiple=True, metavar="TEXT", help="A text to continue; - reads it from standard input."
)
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    help="A file of prompts, JSON lines or a .txt of one a line; - is standard input.",
)
@click.option("--interactive", is_flag=True, help="Talk with the model; a line is a turn.")
@click.option("--unconditional", is_flag=True, help="Begin a text without a prompt.")
@click.option("--output", type=click.Path(path_type=Path), help="Where answers to a --file go; what is there goes on.")
@click.option("--force", is_flag=True, help="Begin the --output anew.")
@click.option("--json", "as_json", is_flag=True, help="Print an object of JSON for each answer.")
@sampling
@running
def command(
    source: Place,
    texts: tuple[str, ...],
    file: Path | None,
    interactive: bool,
    unconditional: bool,
    output: Path | None,
    force: bool,
    as_json: bool,
    asked: Running,
    **given: Any,
) -> None:
    """Continue prompts, answer a file of them, or talk.

    SOURCE is a checkpoint, a run's folder (its newest checkpoint) or anything that `neoxkit import`
    takes. One prompt and its continuation go to standard output as they are made; several answers
    each when it is done, behind a line that says which it is. Answers to a file are JSON lines, and
    the same command goes on where one was interrupted.
    """
    check_modes(bool(texts), file, interactive, unconditional)
    settings = Settings(**{name: given[name] for name in NAMES})
    check_effect(settings, file, interactive, unconditional, output, force, as_json)

    from neoxkit.serve.answer_file import check_output
    from neoxkit.serve.prompts import no_prompt, prompts_of, read_prompts

    if file is not None:
        prompts = read_prompts(file, settings)
    elif unconditional:
        prompts = [no_prompt(settings)]
    else:
        prompts = prompts_of(texts, settings)
    if file is not None and output is not None:
        check_output(output, file)

    with asked.open(source, waiting=asked.max_batch) as serving:
        if interactive:
            talk(serving, settings)
            return

        from neoxkit.serve.answer_file import model_of
        from neoxkit.serve.prompts import tasks_for

        tasks = tasks_for(prompts, serving)
        if file is not None:
            answer_file(serving, tasks, model_of(serving, source, asked.dtype), output, force)
        elif len(tasks) == 1 and not as_json:
            print_one(serving, tasks[0])
        else:
            print_all(serving, tasks, as_json)


def check_modes(prompts: bool, file: Path | None, interactive: bool, unconditional: bool) -> None:
    """Raise UsageError unless the command line has one thing to do."""
    chosen = {"--prompt": prompts, "--file": file is not None, "--interactive": interactive}
    chosen["--unconditional"] = unconditional
    given = [name for name, there in chosen.items() if there]
    if not given:
        refuse("Missing option '--prompt', or one of --file, --interactive, --unconditional")
    if len(given) > 1:
        refuse(f"{given[0]} and {given[1]} are two different things to do")


def check_effect(
    settings: Settings,
    file: Path | None,
    interactive: bool,
    unconditional: bool,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Raise UsageError for an option that would have no effect beside the others."""
    if output is not None and file is None:
        refuse("--output is for answers to a --file")
    if force and output is None:
        refuse("--force is for an --output that is there already")
    if as_json and (file is not None or interactive):
        refuse("--json is for --prompt and --unconditional" + ("; answers to a file are JSON" if file else ""))
    if interactive and settings.samples > 1:
        refuse("--samples has no effect with --interactive")
    if settings.logprobs is not None and not as_json and file is None:
        refuse("--logprobs needs --json or --file")
    if settings.chat and unconditional:
        refuse("--chat needs something that is said: a --prompt, say")
    if (
        settings.system is not None
        and file is None
        and not settings.chat
        and not (interactive and settings.chat is None)
    ):
        refuse("--system has no effect without --chat")


def refuse(line: str) -> None:
    """Raise UsageError, which names the command."""
    raise click.UsageError(line, click.get_current_context())


def talk(serving: Serving, settings: Settings) -> None:
    """Let a person, or a pipe, talk with the model."""
    from neoxkit.serve.talk import Lines, Talk, talk_template

    Talk(serving, settings, talk_template(serving, settings), Lines(), echo).run()


def answer_file(serving: Serving, tasks: Sequence[Task], model: str, output: Path | None, force: bool) -> None:
    """Answer a file of prompts, to another one or to standard output."""
    from neoxkit.serve.answer_file import AnswerFile, answer_into, answer_lines

    if output is None:
        for line in answer_lines(tasks, serving):
            echo(line + "\n")
        return
    with AnswerFile(output, tasks, model, force) as found:
        answer_into(found, serving)


def print_one(serving: Serving, task: Task) -> None:
    """Print a prompt and its continuation as it is made."""
    from neoxkit.serve.answers import Draft, grow
    from neoxkit.serve.interrupts import interrupts

    echo(shown(task))
    draft = Draft(task, serving.tokenizer)
    with interrupts() as interrupted:
        for piece in grow(serving.engine, draft, interrupted):
            echo(piece)
    if draft.answer().finish == "cancelled":
        raise KeyboardInterrupt
    echo("\n")
    tell_full(draft.answer(), serving)


def print_all(serving: Serving, tasks: Sequence[Task], as_json: bool) -> None:
    """Print several answers in the order of the prompts, each as soon as it and all before it are done."""
    from neoxkit.serve.answers import answers, in_order
    from neoxkit.serve.interrupts import interrupts

    words = serving.tokenizer
    with interrupts() as interrupted:
        for answer in in_order(answers(serving.engine, tasks, words, interrupted), tasks):
            if as_json:
                echo(json.dumps(answer.json(words), ensure_ascii=False) + "\n")
            else:
                echo(f"=== {heading(answer.task, tasks)} ===\n{shown(answer.task)}{answer.text}\n")
                tell_full(answer, serving)
    if interrupted():
        raise KeyboardInterrupt


def heading(task: Task, tasks: Sequence[Task]) -> str:
    """Which of several answers it is: "prompt 1 of 2, sample 3 of 4"."""
    prompts, samples = tasks[-1].prompt.index + 1, task.prompt.settings.samples
    parts = [f"prompt {task.prompt.index + 1} of {prompts}"] if prompts > 1 else []
    parts += [f"sample {task.sample + 1} of {samples}"] if samples > 1 else []
    return ", ".join(parts)


def shown(task: Task) -> str:
    """What is printed before an answer: the text that it continues."""
    return "" if task.prompt.chat or task.prompt.text is None else task.prompt.text


def tell_full(answer: Answer, serving: Serving) -> None:
    """Say that an answer could not go on."""
    context = serving.engine.context
    if answer.fills(context):
        new = counted(len(answer.tokens), "new token")
        note(f"{answer.task.prompt.where}stopped after {new}: the model's context of {context} is full")


def echo(text: str) -> None:
    """Print a piece of text at once."""
    click.echo(text, nl=False)
