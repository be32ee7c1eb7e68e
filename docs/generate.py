"""Writes the pages that are generated from the code: the commands, the options of a run.

    python docs/generate.py            write them
    python docs/generate.py --check    exit with 1, and name them, when any is out of date

tests/cli/options.txt is written too: an option that appears or goes shows in its diff.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from neoxkit.cli import main
from neoxkit.config import reference
from neoxkit.config.neox import table

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 100


def walk(command: click.Command = main, parent: click.Context | None = None) -> Iterator[click.Context]:
    """A context for each command, depth first, groups before what they hold."""
    ctx = click.Context(command, parent, info_name=command.name, terminal_width=WIDTH, max_content_width=WIDTH)
    yield ctx
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            below = command.get_command(ctx, name)
            assert below is not None
            yield from walk(below, ctx)


def commands() -> str:
    """The page of all commands: what `--help` says."""
    lines = ["# Commands", "", "Generated from `--help` by `make docs`."]
    for ctx in walk():
        lines += ["", f"## {ctx.command_path}", "", "```text", ctx.command.get_help(ctx).rstrip(), "```"]
    return "\n".join(lines) + "\n"


def options() -> str:
    """A line for each argument and option of each command."""
    lines = []
    for ctx in walk():
        for param in ctx.command.get_params(ctx):
            spelled = param.human_readable_name if isinstance(param, click.Argument) else "/".join(param.opts)
            lines.append(f"{ctx.command_path} {spelled}")
    return "\n".join(lines) + "\n"


def results() -> str:
    """The page of what commands print with `--json`: the docstrings of what makes it."""
    from neoxkit.checkpoint.retention import Removal
    from neoxkit.cli.data_chat import show as supervised_json
    from neoxkit.cli.data_show import stretch_json
    from neoxkit.cli.tokenize import report_json
    from neoxkit.cli.verify import against_json
    from neoxkit.convert.compare import Comparison
    from neoxkit.convert.contents import Report
    from neoxkit.convert.describe import describe
    from neoxkit.convert.push.publish import Published
    from neoxkit.data.tokens.summary import count, summary
    from neoxkit.eval.scores import Scores
    from neoxkit.serve.answers import Answer
    from neoxkit.train.estimate import Estimate

    makers = {
        "inspect": [describe],
        "verify": [Report.json, against_json],
        "diff": [Comparison.json],
        "gc": [Removal.json],
        "plan": [Estimate.json],
        "push": [Published.json],
        "generate": [Answer.json],
        "scores": [Scores.json],
        "data tokenize": [report_json],
        "data chat, neoxkit data pairs": [supervised_json],
        "data show": [stretch_json],
        "data info": [summary],
        "data count": [count],
    }
    lines = ["# What commands print with `--json`", "", "Generated from the code by `make docs`."]
    for name, functions in makers.items():
        lines += ["", f"## neoxkit {name}"]
        for function in functions:
            lines += ["", "```text", inspect.getdoc(function) or "", "```"]
    return "\n".join(lines) + "\n"


PAGES = {
    "docs/json.md": results,
    "docs/cli.md": commands,
    "docs/options.md": reference.markdown,
    "docs/gpt-neox-options.md": table.markdown,
    "tests/cli/options.txt": options,
}


def generate(check: bool) -> int:
    """Write the pages, or only say which are out of date. The exit code."""
    stale = 0
    for name, page in PAGES.items():
        path, content = ROOT / name, page()
        if path.is_file() and path.read_text(encoding="utf-8") == content:
            continue
        if check:
            print(f"{name} is out of date; run `make docs` and look at the difference", file=sys.stderr)
            stale = 1
        else:
            path.write_text(content, encoding="utf-8")
            print(f"wrote {name}")
    return stale


if __name__ == "__main__":
    sys.exit(generate(check=sys.argv[1:] == ["--check"]))
