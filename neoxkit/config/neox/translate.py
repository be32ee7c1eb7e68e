"""gpt-neox's options to ours: a tree that a run is validated from, with the place of each in gpt-neox's files."""

from __future__ import annotations

from neoxkit.config.neox import translate_data, translate_learning, translate_model, translate_running
from neoxkit.config.neox.draft import Draft
from neoxkit.config.neox.files import Mix
from neoxkit.config.tree import Tree


def translate(mix: Mix) -> Tree:
    """Our options that mean the same. What is passed over is in its `notes`, a line for each reason.

    Raises ConfigError for an option that is refused, with its file and line.
    """
    draft = Draft(mix.tree)
    draft.check_refused()
    translate_model.model(draft)
    for part in (translate_learning.precision, translate_learning.optimizer, translate_learning.schedule):
        part(draft)
    for part in (translate_data.data, translate_running.devices, translate_running.batch):
        part(draft)
    for part in (translate_running.saving, translate_running.loading, translate_running.watching):
        part(draft)
    draft.tree.notes += draft.notes()
    return draft.tree
