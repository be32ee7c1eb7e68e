"""Row: what a model reads of one sample, and which of it it learns from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Row:
    """A sample of S tokens to predict: `ids` int64 [S + 1], of which [:-1] is the input and [1:] the labels.

    `counts` bool [S] is true where the label counts in the loss; None: everywhere. `segments` int32 [S] numbers the
    documents of the input, each of which stands together and sees itself alone; None: attention crosses them.
    """

    ids: npt.NDArray[np.int64]
    counts: npt.NDArray[np.bool_] | None = None
    segments: npt.NDArray[np.int32] | None = None

    def cut(self, tokens: int) -> Row:
        """The first `tokens` of what is predicted, and what is read for them."""
        if tokens >= len(self.ids) - 1:
            return self
        counts = None if self.counts is None else self.counts[:tokens]
        segments = None if self.segments is None else self.segments[:tokens]
        return Row(self.ids[: tokens + 1], counts, segments)
