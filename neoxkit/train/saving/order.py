"""Orders: all that a checkpoint needs but its values. They can be sent to another process, which carries them out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from neoxkit.checkpoint.folder import list_checkpoints, publish
from neoxkit.checkpoint.plan import Part
from neoxkit.checkpoint.retention import carry_out, plan
from neoxkit.checkpoint.writer import Writer
from neoxkit.config.saving import Save
from neoxkit.spec import Box, Run


class Value(NamedTuple):
    """Part of a tensor of the checkpoint: what it is called, which part, its numbers."""

    name: str
    box: Box
    run: Run | None
    numbers: Tensor


@dataclass(frozen=True)
class Order:
    """A checkpoint that a process shall write, or its part of one.

    `parts` are those of all processes; `about` are further arguments of Writer, `rank` and `attempt`
    among them.
    """

    path: Path
    parts: Sequence[Part]
    save: Save
    about: dict[str, Any]

    def fulfil(self, values: Iterable[Value], ready: Callable[[], None] = lambda: None) -> None:
        """Write this process's values. The first process then names the checkpoint, and removes what is not kept.

        Raises as Writer does; `ready` is called as `Writer.commit` does.
        """
        # Only a checkpoint that was found invalid can be there.
        with Writer(self.path, self.parts, force=True, **self.about) as writer:
            for name, box, run, numbers in values:
                writer.write(name, box, numbers, run)
            writer.commit(ready)
        if not self.about.get("rank"):
            publish(self.path.parent, self.path)
            self._retire()

    def _retire(self) -> None:
        """Delete what `save` does not keep. Checkpoints of later steps can only be damaged, and are not looked at."""
        last, every = self.save.keep_last, self.save.keep_every
        if last is not None or every is not None:
            saved = list_checkpoints(self.path.parent)
            among = saved[: saved.index(self.path) + 1]
            carry_out(plan(self.path.parent, among, last, every, invalid=True, stays=self.save.stays))
