"""What the tests of pushing share: how a command ended."""

from __future__ import annotations

from click.testing import Result


def fine(done: Result) -> str:
    """What a command printed that went well."""
    assert done.exit_code == 0, done.output + done.stderr + repr(done.exception)
    return done.stdout


def refused(done: Result, *said: str, printed: bool = False) -> None:
    """One line, and 2; nothing else, unless something was `printed` before."""
    assert done.exit_code == 2, done.output + repr(done.exception)
    assert printed or done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "; " in errors[0], f"no remedy: {errors[0]}"
    for each in said:
        assert each in errors[0], errors[0]
