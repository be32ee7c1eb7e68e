"""neoxkit data: turn text into tokens to train on, and show what token files hold."""

from __future__ import annotations

import click

from neoxkit.cli import data_files
from neoxkit.cli.tokenize import tokenize


@click.group()
def command() -> None:
    """Turn text into tokens to train on, and show what token files hold."""


command.add_command(tokenize)


for each in data_files.COMMANDS:
    command.add_command(each)
