"""A worker process: it is told its job, and then answers questions until its pipe is closed."""

from __future__ import annotations

import os
import pickle
import sys
import traceback

import numpy  # noqa: F401 (with the next, what every job needs: imported while the job is not known yet)
import tokenizers  # noqa: F401

from neoxkit.data.prepare.workers import receive, send


def main() -> None:
    """Answer each message on stdin, after the job, by one on stdout: what it gave, or the error it caused."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    questions = sys.stdin.buffer
    job = receive(questions)
    if job is None:
        return
    begun = pickle.loads(job).begin()
    while (question := receive(questions)) is not None:
        try:
            answer = pickle.dumps(begun(*pickle.loads(question)), pickle.HIGHEST_PROTOCOL)
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
