"""A worker process: it is told how text becomes tokens, and then given blocks until its pipe is closed."""

from __future__ import annotations

import os
import pickle
import sys
import traceback

from neoxkit.data.prepare.encode import Encoder
from neoxkit.data.prepare.workers import receive, send


def main() -> None:
    """Answer each message on stdin by one on stdout: what a block gave, or the error it caused."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    questions = sys.stdin.buffer
    recipe = receive(questions)
    if recipe is None:
        return
    encoder = Encoder(pickle.loads(recipe))
    while (question := receive(questions)) is not None:
        try:
            answer = pickle.dumps(encoder.encode(*pickle.loads(question)), pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # noqa: BLE001 (it is raised where the block came from)
            answer = pickle.dumps(_carried(error), pickle.HIGHEST_PROTOCOL)
        try:
            send(answers, answer)
        except BrokenPipeError:
            return


def _carried(error: Exception) -> Exception:
    """The error, or one with its traceback as text where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 (anything may go wrong in another library's class)
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
