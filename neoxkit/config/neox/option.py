"""What an option of gpt-neox is, and the four things that can become of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

WHOLE, NUMBER, FLAG, TEXT, MAPPING, LIST = "whole number", "number", "true or false", "text", "mapping", "list"

Becomes = Literal["mapped", "passed on", "ignored", "refused"]


@dataclass(frozen=True, slots=True)
class Option:
    """An option of gpt-neox, its kind and default there, and what becomes of it here.

    mapped: it is `target`, after the conversion that `says` tells. passed on: it goes to DeepSpeed as
    it is. ignored: `says` is why. refused: any value but the default and those of `harmless` is an
    error, and `says` is what it is; `instead` what to do.
    """

    name: str
    kind: str | tuple[str, ...]
    default: Any
    becomes: Becomes
    target: str = ""
    says: str = ""
    instead: str = ""
    harmless: tuple[Any, ...] = ()

    def is_harmless(self, value: Any) -> bool:
        """Whether a value says nothing that is refused: the default, null, or a block that is not enabled."""
        off = isinstance(value, dict) and (not value or value.get("enabled") is False)
        known = (self.default, None, *self.harmless)
        if isinstance(self.kind, tuple) and isinstance(value, str):
            known, value = tuple(each.lower() for each in known if isinstance(each, str)), value.lower()
        return off or any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in known)

    def is_of_kind(self, value: Any) -> bool:
        """Whether a value is of the option's kind. Of a list of words, capitals do not matter."""
        if isinstance(self.kind, tuple):
            return isinstance(value, str) and value.lower() in self.kind
        if self.kind == NUMBER:
            return isinstance(value, int | float) and not isinstance(value, bool)
        if self.kind == WHOLE:
            return isinstance(value, int) and not isinstance(value, bool)
        kinds: dict[str, type] = {FLAG: bool, TEXT: str, MAPPING: dict, LIST: list}
        return self.kind not in kinds or isinstance(value, kinds[self.kind])

    @property
    def spelled(self) -> str:
        """Its kind in words."""
        return " | ".join(self.kind) if isinstance(self.kind, tuple) else self.kind


def mapped(name: str, kind: str | tuple[str, ...], default: Any, target: str, says: str = "") -> Option:
    """An option that has one of ours."""
    return Option(name, kind, default, "mapped", target, says)


def passed(name: str, kind: str | tuple[str, ...], default: Any, target: str, says: str = "") -> Option:
    """An option of DeepSpeed."""
    return Option(name, kind, default, "passed on", target, says)


def ignored(name: str, kind: str | tuple[str, ...], default: Any, says: str) -> Option:
    """An option without one of ours, which a run can do without."""
    return Option(name, kind, default, "ignored", says=says)


def refused(
    name: str, kind: str | tuple[str, ...], default: Any, says: str, instead: str, harmless: tuple[Any, ...] = ()
) -> Option:
    """An option that would change what is learned, and that nothing here does."""
    return Option(name, kind, default, "refused", says=says, instead=instead, harmless=harmless)
