"""How many steps a run has that is to learn from its data so many times."""

from __future__ import annotations

from neoxkit.config.run import RunConfig
from neoxkit.data.rows.pack import split
from neoxkit.data.tokens.indexed import IndexedFile
from neoxkit.errors import ConfigError
from neoxkit.train.schedule import batch_after
from neoxkit.train.sources import open_rows


def lasting(config: RunConfig) -> RunConfig:
    """The run with the steps that its epochs take: whole ones, so samples fewer than a step's are left over.

    Raises ConfigError when there is not a single one, or options do not suit so many, and DataError for the data.
    """
    if config.epochs is None:
        return config
    samples, steps, done = sum(samples_of(config, config.epochs)), 0, 0
    while done + (size := batch_after(config, done)) <= samples:
        if size == config.batch.size:
            steps += (samples - done) // size
            break
        steps, done = steps + 1, done + size
    if not steps:
        raise ConfigError(
            f"epochs {config.epochs}: the data has {samples} samples, and a step takes {batch_after(config, 0)}",
            "give more epochs or more text, or lower batch.size",
        )
    found = config.model_copy(update={"steps": steps})
    found.check()
    return found


def samples_of(config: RunConfig, epochs: int) -> list[int]:
    """The samples of each source, so many times."""
    found = []
    for source in config.data.train:
        file = IndexedFile(source.tokens)
        stretch = split(config.data.split, len(file))[0] if config.data.split else (0, len(file))
        if config.data.packing == "packed":
            tokens = int(file.sizes[slice(*stretch)].sum(dtype="i8"))
            found.append(max(0, (epochs * tokens - 1) // config.sequence))
        else:
            found.append(open_rows(config, source, file, stretch, 1, None).order.rows_of(epochs))
    return found
