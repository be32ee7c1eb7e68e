"""What the Hub is asked, and asked again while it cannot answer; what its refusals mean. No torch.

huggingface_hub itself tries an upload five times. It does not try a commit again, nor the making of a
repository or a branch: whether those were done cannot be told from an answer that never came.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

from neoxkit.errors import CheckpointError, NeoxkitError
from neoxkit.log import note

T = TypeVar("T")

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each further attempt, where the Hub does not say how long."""

MOST_WAIT = 3600
"""Seconds that are waited at most, when it does say: the Hub counts commits by the hour."""

LATER = "try again: what was sent is kept, and not sent twice"
_BUSY = (408, 429, 500, 502, 503, 504)
_TOLD = re.compile(r"HTTP status (?:client|server) error \((\d{3})\b")
"""How hf_xet tells of a status."""
_QUERY = re.compile(r"\?[^\s'\"]+")
"""What follows an address: where it leads to a store, it is a key to it."""


def asked(where: str, question: Callable[[], T], passes: tuple[type[Exception], ...] = ()) -> T:
    """The answer to a question, which is asked again when the connection breaks or the Hub is busy.

    `where` is what errors name. Errors of the kinds in `passes` are left as they are; other refusals
    become CheckpointErrors that say what to do.
    """
    for wait in (*WAITS, None):
        try:
            return question()
        except NeoxkitError:
            raise
        except (*passes, *_failures()) as error:
            if isinstance(error, passes):
                raise
            cause = _cause(error)
            if wait is None or not _passing(cause):
                raise refusal(where, cause) from error
            _wait(where, cause, wait)
    raise AssertionError("the last attempt returns or raises")


def _failures() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises."""
    return OSError, ValueError, *_broken()


def _cause(error: Exception) -> Exception:
    """The error that another only says the place of."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error, (RuntimeError, LocalEntryNotFoundError)) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error tells of; None for one without an answer."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None and (told := _TOLD.search(str(error))):
        return int(told[1])
    return status if isinstance(status, int) else None


def _passing(error: Exception) -> bool:
    """Whether it may be gone in a while."""
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    if (status := status_of(error)) is not None:
        return status in _BUSY
    if isinstance(error, (OfflineModeIsEnabled, LocalTokenNotFoundError)):
        return False
    return isinstance(error, (ConnectionError, TimeoutError, *_broken()))


def _broken() -> tuple[type[Exception], ...]:
    """How connections break besides: as the HTTP library says it, and as hf_xet does, whose errors have no kind."""
    from huggingface_hub.errors import HfHubHTTPError

    return RuntimeError, cast(type[Exception], HfHubHTTPError.__mro__[1])


def _wait(where: str, error: Exception, seconds: float) -> None:
    """Wait as long as the Hub says, or so many seconds. Raises CheckpointError when it says too long."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    said = re.fullmatch(r"\s*(\d+)\s*", headers.get("Retry-After", ""))
    limit = re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("RateLimit", ""))
    if stated := said or limit:
        seconds = float(stated[1]) + 1  # it rounds down
    if seconds > MOST_WAIT + 1:
        raise CheckpointError(f"{where}: the Hub asks to come back in {seconds:.0f} s", LATER) from error
    status = status_of(error)
    what = f"the Hub answers {status}" if status else f"the connection broke: {first_line(error)}"
    note(f"{where}: {what}; going on in {seconds:.0f} s")
    time.sleep(seconds)


def refusal(where: str, error: Exception) -> Exception:
    """What an error of huggingface_hub means, and what to do; an error of the disk, or of ours, as it is."""
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return CheckpointError(f"{where}: HF_HUB_OFFLINE is set", "unset it: pushing needs the Hub")
    status = status_of(error)
    if status == 401 or isinstance(error, (LocalTokenNotFoundError, PermissionError)):
        return CheckpointError(f"{where}: the Hub does not accept the token", "log in again: hf auth login")
    if status == 403:
        return CheckpointError(
            f"{where}: the Hub forbids to write there: {first_line(error)}",
            "log in with a token that may (role write, or fine-grained with this repository), or choose another name",
        )
    if status in (409, 412):
        return CheckpointError(f"{where}: somebody else has changed it meanwhile", LATER)
    if status == 404:
        return CheckpointError(f"{where}: no such repository or revision, or a private one", "check the name")
    if status is not None and status not in _BUSY:
        return CheckpointError(f"{where}: the Hub refuses: {first_line(error)}", "correct what it names")
    if status is not None:
        return CheckpointError(f"{where}: the Hub answers {status}", LATER)
    if isinstance(error, ValueError):
        return CheckpointError(f"{where}: {first_line(error)}", "correct what it names")
    if _passing(error):
        return CheckpointError(f"{where}: the Hub cannot be reached: {first_line(error)}", LATER)
    return error


def first_line(error: BaseException) -> str:
    """What an error says, in one line, without the keys that addresses may carry."""
    said = getattr(error, "server_message", None) or str(error)
    lines = [line.strip() for line in str(said).splitlines() if line.strip()]
    return _QUERY.sub("", lines[0]) if lines else type(error).__name__


@contextmanager
def telling(where: str) -> Iterator[None]:
    """Let huggingface_hub's own attempts to go on be told in our way, without addresses; drop its other warnings."""
    log = logging.getLogger("huggingface_hub")

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            if message.startswith(("Rate limited", "Retrying in")):
                note(f"{where}: {_QUERY.sub('', message)}")

    before = log.handlers[:], log.propagate, log.level
    log.handlers, log.propagate = [Told()], False
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.handlers, log.propagate = before[:2]
        log.setLevel(before[2])
