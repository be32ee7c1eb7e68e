"""neoxkit data: turn text into tokens to train on, and show what token files hold."""

from __future__ import annotations

import click

from neoxkit.cli import data_chat, data_files, data_show
from neoxkit.cli.data_get import get
from neoxkit.cli.data_train_tokenizer import train_tokenizer
from neoxkit.cli.tokenize import tokenize


@click.group()
def command() -> None:
    """Turn text into tokens to train on, and show what token files hold."""


GIVEN = (get, train_tokenizer, tokenize, data_chat.chat, data_chat.pairs, *data_files.COMMANDS, data_show.show)
for each in GIVEN:
    command.add_command(each)
