"""What a run reads: the rows of its training tokens from any sample on, and its held-out tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from neoxkit.checkpoint.store import Place
from neoxkit.config.data import Source
from neoxkit.config.run import RunConfig
from neoxkit.data.rows.arrange import epochs_of
from neoxkit.data.rows.batch import Batch, collate
from neoxkit.data.rows.blend import Blend, Phase, weights_by_documents
from neoxkit.data.rows.pack import split
from neoxkit.data.rows.row import Row
from neoxkit.data.rows.rows import Rows
from neoxkit.data.rows.sampler import Sampler
from neoxkit.data.tokens.indexed import IndexedFile
from neoxkit.data.tokens.sidecar import check_prefixes, read_sidecar, sidecar_of
from neoxkit.errors import DataError
from neoxkit.log import note
from neoxkit.train.identity import Began, Identity, Known
from neoxkit.train.length import samples_of
from neoxkit.train.schedule import batch_after, length_after, samples_after
from neoxkit.train.sources import HeldOut, fill_in_middle, labels_of, open_rows

SPARE = 1.005
"""gpt-neox prepares this many times the rows that a source of a blend is expected to give."""


class Feed:
    """The batches of a run.

    Of packed rows the documents of all epochs are shuffled together, so more epochs are another order: how many there
    are is kept when a run is resumed (`began`), and otherwise follows from the samples that the run takes. Beyond
    them the text is read again, in another order.

    Raises DataError for tokens that cannot be used, ConfigError for options that they do not suit.
    """

    def __init__(
        self,
        config: RunConfig,
        began: Began | None = None,
        samples: int | None = None,
        dp_rank: int = 0,
        tokenizer: Place | None = None,
    ) -> None:
        """`samples` is how many the run takes in all, told where the batch once changed."""
        self.config = config
        self.sampler = Sampler(config.micro, config.accumulation, config.dp)
        self.dp_rank = dp_rank
        self._turn = fill_in_middle(config, tokenizer)
        files = [IndexedFile(source.tokens) for source in config.data.train]
        parts = [split(config.data.split, len(f)) if config.data.split else [(0, len(f))] for f in files]
        known = [
            Known.of(source.tokens, file, part[0], sidecar_of(file), labels_of(source, file))
            for source, file, part in zip(config.data.train, files, parts, strict=True)
        ]
        phase = Phase(0, tuple(_weights(config, known)), config.data.blend)
        fresh = Identity(config.sequence, config.seed, tuple(known), config.data.packing, (phase,))
        self.identity = fresh.after(began) if began else fresh
        self._blend = Blend(self.identity.phases)
        needed = samples or samples_after(config, config.steps)
        self._rows = self._open(
            fresh, files, [part[0] for part in parts], needed, len(began.identity.sources) if began else 0
        )
        if config.data.split:
            some = _with_some(config.data.split, [part[1] for part in parts])
            self.held_out = self._held_out(
                [config.data.train[k] for k in some], [files[k] for k in some], [parts[k][1] for k in some]
            )
        else:
            files = [IndexedFile(source.tokens) for source in config.data.valid or ()]
            self.held_out = self._held_out(config.data.valid or (), files, [(0, len(file)) for file in files])

    def _open(
        self,
        fresh: Identity,
        files: Sequence[IndexedFile],
        stretches: Sequence[tuple[int, int]],
        needed: int,
        old: int,
    ) -> list[Rows | None]:
        """The rows of each source of the identity, of which the first `old` have the epochs they had."""
        config, found = self.config, list[Rows | None]()
        used: set[int] = set()  # the same tokens may be given twice
        expected = self._expected(needed)
        sources = list(self.identity.sources)
        for at, known in enumerate(sources):
            mine = (n for n, each in enumerate(fresh.sources) if each.prefix == known.prefix and n not in used)
            here = next(mine, None)
            if here is None or not self.identity.phases[-1].weights[at]:
                found.append(None)
                continue
            used.add(here)
            file, stretch = files[here], stretches[here]
            if at >= old:
                epochs = epochs_of(config.data.packing, file, *stretch, config.sequence, expected[at])
                if config.epochs and config.data.packing == "packed":
                    epochs = max(epochs, config.epochs)  # which are shuffled together, also where steps leave some over
                known = sources[at] = replace(known, epochs=epochs)
            found.append(open_rows(config, config.data.train[here], file, stretch, known.epochs, self._turn))
            rows = found[-1]
            if rows and at < old and self._blend.counts(needed)[at] > rows.count and config.data.packing == "packed":
                note(
                    f"{known.prefix}: the run began with {rows.count:,} samples of {known.epochs} epochs in mind, and "
                    f"takes {self._blend.counts(needed)[at]:,}: beyond them its text is read again, in another order"
                )
        self.identity = replace(self.identity, sources=tuple(sources))
        return found

    def _expected(self, needed: int) -> list[int]:
        """The rows that a run of so many takes of each source."""
        phase = self.identity.phases[-1]
        if phase.algorithm == "gpt-neox":
            return [math.ceil(needed * weight / sum(phase.weights) * SPARE) for weight in phase.weights]
        return [int(count) for count in self._blend.counts(needed)]

    def locate(self, number: int) -> tuple[str, Rows, int]:
        """The prefix of the source that row `number` of the run is of, its rows, and which of them it is.

        Raises DataError for one of a source that is no longer read.
        """
        source, index = self._blend.locate(number)
        rows = self._rows[source]
        prefix = self.identity.sources[source].prefix
        if rows is None:
            raise DataError(f"sample {number} is of {prefix}, which data.train no longer names", "name it there too")
        return prefix, rows, index

    def row(self, number: int) -> Row:
        """Row `number` of the run."""
        _, rows, index = self.locate(number)
        return rows.row(index)

    def _held_out(
        self, sources: Sequence[Source], files: Sequence[IndexedFile], stretches: Sequence[tuple[int, int]]
    ) -> HeldOut | None:
        if not sources:
            return None
        found = [
            open_rows(self.config, source, file, stretch, 1, self._turn)
            for source, file, stretch in zip(sources, files, stretches, strict=True)
        ]
        most = self.config.evaluation.batches
        limit = None if most is None else most * self.config.batch.size
        return HeldOut(found, [source.weight or 1.0 for source in sources], limit)

    def batches(self, done: int, step: int) -> Iterator[Batch]:
        """The micro-batches of the step after `done` samples and `step` steps, as this data-parallel rank has them."""
        sampler = replace(
            self.sampler, accumulation=batch_after(self.config, done) // (self.config.micro * self.config.dp)
        )
        length = length_after(self.config, step)
        for micro in range(sampler.accumulation):
            yield collate([self.row(number).cut(length) for number in sampler.rows(done, micro, self.dp_rank)])

    def held_out_batches(self) -> Iterator[Batch]:
        """The micro-batches of one evaluation: always the same samples.

        Data-parallel ranks take them in turn. Each has as many, of as many samples, since engines meet
        in every micro-batch: what is beyond the end repeats the last sample, and does not count.
        """
        assert self.held_out is not None
        size, ranks, stop = self.config.micro, self.config.dp, self.held_out.count
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
        """Bits per byte of held-out text, from nats per token.

        None where the text's bytes are not known, or where not every token of it is judged.
        """
        data = self.config.data
        valid = data.valid or ()
        if data.mask_after_end or data.fill_in_middle or (self.held_out and self.held_out.labelled):
            return None
        known = read_sidecar(valid[0].tokens) if len(valid) == 1 else None
        return nats / math.log(2) * known.tokens / known.bytes if known and known.bytes else None


def _with_some(weights: str, stretches: Sequence[tuple[int, int]]) -> list[int]:
    """The sources of which something is held out: of short ones nothing may be. Raises DataError for none of any.

    As with gpt-neox, "1,0,0" holds nothing out.
    """
    found = [number for number, (first, stop) in enumerate(stretches) if first < stop]
    first, stop = split(weights, 1 << 40)[1]
    if not found and first < stop:
        raise DataError(
            f'data.split "{weights}" holds out none of so few documents', "raise its second share, or make it 0"
        )
    return found


def _weights(config: RunConfig, known: Sequence[Known]) -> list[float]:
    alpha = config.data.weigh_by_documents
    if alpha is None:
        if config.epochs and len(config.data.train) > 1:
            return [float(samples) for samples in samples_of(config, config.epochs)]
        return [source.weight or 1.0 for source in config.data.train]
    return weights_by_documents([each.documents for each in known], alpha)


def check_tokens(config: RunConfig, where: str | Place | None, fingerprint: str | None) -> None:
    """Raise DataError unless the model, its tokenizer and the tokens speak of the same vocabulary.

    The tokenizer is told by its fingerprint and where it is; None, None when there is none. The
    training tokens are compared with the held-out ones too. Of tokens without a sidecar nothing is known.
    """
    prefixes = [source.tokens for source in (*config.data.train, *(config.data.valid or ()))]
    for prefix in prefixes:
        if sidecar := read_sidecar(prefix):
            sidecar.check(config.model.vocab, prefix)
    check_prefixes(prefixes, where, fingerprint)
