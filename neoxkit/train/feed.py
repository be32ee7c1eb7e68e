"""What a run reads: the rows of its training tokens from any sample on, and its held-out tokens."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from neoxkit.checkpoint.store import Place
from neoxkit.config.run import RunConfig
from neoxkit.data.rows.batch import Batch, collate
from neoxkit.data.rows.pack import Rows, split
from neoxkit.data.rows.sampler import Sampler
from neoxkit.data.tokens.indexed import IndexedFile
from neoxkit.data.tokens.sidecar import read_sidecar
from neoxkit.errors import ConfigError, DataError
from neoxkit.train.schedule import batch_after, length_after, samples_after


@dataclass(frozen=True)
class Identity:
    """What decides the order of the data. A run goes on only with the identity it began with."""

    tokens: int
    documents: int
    sizes: str  # CRC-32 of the documents' lengths
    sequence: int
    seed: int
    epochs: int
    sources: str | None = None  # the sidecar's hash of the text; None where it was not known
    tokenizer: str | None = None  # the fingerprint of the one that made the tokens; None where it was not known


class Feed:
    """The batches of a run.

    The documents of all epochs are shuffled together, so more epochs are another order: `epochs` is
    given when a run is resumed, and otherwise follows from the samples that the run takes.

    Raises DataError for tokens that cannot be used, ConfigError when `epochs` hold too few samples.
    """

    def __init__(
        self, config: RunConfig, epochs: int | None = None, samples: int | None = None, dp_rank: int = 0
    ) -> None:
        """`samples` is how many the run takes in all: told where the batch once changed."""
        self.config = config
        self.sampler = Sampler(config.micro, config.accumulation, config.dp)
        self.dp_rank = dp_rank
        train = IndexedFile(config.data.train)
        stretches = split(config.data.split, len(train)) if config.data.split else [(0, len(train))]
        needed = samples or samples_after(config, config.steps)
        self.rows = Rows(
            train,
            config.sequence,
            seed=config.seed,
            rows=needed if epochs is None else None,
            epochs=epochs,
            documents=stretches[0],
            vocab=config.model.vocab,
        )
        if needed > self.rows.count:
            raise ConfigError(
                f"steps {config.steps} need {needed} samples, and the run began with {self.rows.count} "
                f"({epochs} epochs); more epochs would change the order of its data",
                "keep to the samples it began with, or begin a new run with `load`",
            )
        known = read_sidecar(config.data.train)
        sizes = np.ascontiguousarray(train.sizes[slice(*stretches[0])])
        self.identity = Identity(
            int(sizes.sum(dtype=np.int64)),
            len(sizes),
            f"{zlib.crc32(sizes.tobytes()):08x}",
            config.sequence,
            config.seed,
            self.rows.packing.epochs,
            known.sources or None if known else None,
            known.tokenizer if known else None,
        )
        self.held_out = self._held_out(train, stretches[1] if config.data.split else None)

    def _held_out(self, train: IndexedFile, stretch: tuple[int, int] | None) -> Rows | None:
        config = self.config
        if config.data.valid is None and stretch is None:
            return None
        file = train if config.data.valid is None else IndexedFile(config.data.valid)
        return Rows(file, config.sequence, seed=config.seed, epochs=1, documents=stretch, vocab=config.model.vocab)

    def batches(self, done: int, step: int) -> Iterator[Batch]:
        """The micro-batches of the step after `done` samples and `step` steps, as this data-parallel rank has them."""
        sampler = replace(
            self.sampler, accumulation=batch_after(self.config, done) // (self.config.micro * self.config.dp)
        )
        length = length_after(self.config, step)
        for micro in range(sampler.accumulation):
            yield collate([self.rows.row(number).cut(length) for number in sampler.rows(done, micro, self.dp_rank)])

    def held_out_batches(self) -> Iterator[Batch]:
        """The micro-batches of one evaluation: always the same samples.

        Data-parallel ranks take them in turn. Each has as many, of as many samples, since engines meet
        in every micro-batch: what is beyond the end repeats the last sample, and does not count.
        """
        assert self.held_out is not None
        size, most, ranks = self.config.micro, self.config.evaluation.batches, self.config.dp
        stop = self.held_out.count if most is None else min(self.held_out.count, most * self.config.batch.size)
        for first in range(self.dp_rank * size, stop + self.dp_rank * size, size * ranks):
            numbers = range(first, first + size)
            if ranks == 1:
                numbers = range(first, min(first + size, stop))
            batch = collate([self.held_out.row(min(number, stop - 1)) for number in numbers])
            if numbers.stop <= stop:
                yield batch
            else:
                counts = torch.tensor([number < stop for number in numbers])[:, None].expand_as(batch.labels)
                yield replace(batch, mask=counts.contiguous() if batch.mask is None else batch.mask & counts)

    def bits_per_byte(self, nats: float) -> float | None:
        """Bits per byte of held-out text, from nats per token; None where the text's bytes are not known."""
        known = read_sidecar(self.config.data.valid) if self.config.data.valid else None
        return nats / math.log(2) * known.tokens / known.bytes if known and known.bytes else None


def check_tokens(config: RunConfig, where: str | Place | None, fingerprint: str | None) -> None:
    """Raise DataError unless the model, its tokenizer and the tokens speak of the same vocabulary.

    The tokenizer is told by its fingerprint and where it is; None, None when there is none. The
    training tokens are compared with the held-out ones too. Of tokens without a sidecar nothing is known.
    """
    for prefix in filter(None, (config.data.train, config.data.valid)):
        if (sidecar := read_sidecar(prefix)) is None:
            continue
        sidecar.check(config.model.vocab, prefix)
        if fingerprint is None:
            where, fingerprint = prefix, sidecar.tokenizer
        if sidecar.tokenizer != fingerprint:
            raise DataError(
                f"{prefix} was made with tokenizer {sidecar.tokenizer}, not {fingerprint}, that of {where}",
                "name the tokenizer that made it, or tokenize the text again",
            )
