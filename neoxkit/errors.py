"""The errors that a user can cause and mend; each says what is wrong, where, and what to do."""

from __future__ import annotations


class NeoxkitError(ValueError):
    """A mistake in the input. The command line prints it as one line and exits with `exit_code`.

    `cause` says what is wrong and where (file, key, tensor); `remedy` says what to do about it.
    """

    exit_code = 2

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(cause, remedy)
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        line = f"{self.cause}; {self.remedy}" if self.remedy else self.cause
        return " ".join(line.split())


class ConfigError(NeoxkitError):
    """A configuration that is misspelled, of the wrong type, or contradicts itself."""


class CheckpointError(NeoxkitError):
    """A checkpoint, or another file of tensors, that is missing, damaged or of another kind."""


class ConversionError(NeoxkitError):
    """Weights or a configuration that the family asked for cannot express."""


class DataError(NeoxkitError):
    """Text, tokens or a tokenizer that cannot be used."""
