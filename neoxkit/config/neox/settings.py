"""Values of gpt-neox's options as a run states them, read by kind, with a message that names the file."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from neoxkit.errors import ConfigError

REMEDY = "give the right settings with --config FILE"


@dataclass
class Settings:
    """Values by key, underscored, and where each is from. A null is an absent key."""

    folder: Path | str
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    remedy: str = REMEDY

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or the default of gpt-neox."""
        return self.values.get(key, default)

    def said(self, key: str) -> str:
        """A key, its value and its file, for a message."""
        return f"{self.origins.get(key, self.folder)}: {key} is {self.values.get(key)!r:.80}"

    def word(self, key: str, default: str) -> str:
        """A text in small letters. Raises ConfigError for anything else."""
        value = self.get(key, default)
        if not isinstance(value, str):
            raise ConfigError(f"{self.said(key)}, not a text", self.remedy)
        return value.lower()

    def flag(self, key: str, default: bool) -> bool:
        """True or false. Raises ConfigError for anything else."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.said(key)}, not true or false", self.remedy)
        return value

    def number(self, key: str, default: float) -> float:
        """A finite number; 1e-5, which YAML takes for a text, is one. Raises ConfigError for anything else."""
        value = self.get(key, default)
        try:
            if isinstance(value, bool) or not isinstance(value, int | float | str) or not isfinite(float(value)):
                raise ValueError
            return float(value)
        except (ValueError, OverflowError):
            raise ConfigError(f"{self.said(key)}, not a number", self.remedy) from None

    def whole(self, key: str) -> int | None:
        """A whole number above 0, or None when it is not given. Raises ConfigError for anything else."""
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{self.said(key)}, not a whole number above 0", self.remedy)
        return value
