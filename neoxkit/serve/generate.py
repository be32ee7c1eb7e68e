"""Tokens that continue a prompt, one at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch

from neoxkit.errors import NeoxkitError
from neoxkit.nn.decoder import Decoder
from neoxkit.serve.sampler import Sampling, sample


def continuation(
    model: Decoder, prompt: Sequence[int], most: int, sampling: Sampling, seed: int, stop: Collection[int] = ()
) -> Iterator[int]:
    """At most `most` token ids that follow `prompt`; a token in `stop` ends it and is not given.

    The same model, prompt and seed give the same tokens. Raises NeoxkitError, at once, when the prompt
    is empty, or longer than the model's context; stops where the context is full.
    """
    config = model.config
    if not prompt:
        raise NeoxkitError("the prompt has no tokens", "give some text to continue")
    if max(prompt) >= config.vocab:
        raise NeoxkitError(
            f"the prompt has token {max(prompt)}, the model's vocabulary {config.vocab} rows",
            "use the tokenizer that the model was trained with",
        )
    if len(prompt) >= config.context:
        raise NeoxkitError(
            f"the prompt is {len(prompt)} tokens long, the model's context {config.context}", "shorten the prompt"
        )
    return _tokens(model, prompt, most, sampling, seed, stop)


@torch.inference_mode()
def _tokens(
    model: Decoder, prompt: Sequence[int], most: int, sampling: Sampling, seed: int, stop: Collection[int]
) -> Iterator[int]:
    """What `continuation` gives, of a prompt that was checked."""
    config, weight = model.config, model.embed.weight
    capacity = min(config.context, len(prompt) + most)
    state = model.new_state(1, capacity)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor([list(prompt)], device=weight.device)
    done = 0
    for _ in range(capacity - len(prompt)):
        positions = torch.arange(done, done + ids.shape[1], device=weight.device)[None]
        hidden = model.hidden(ids, positions, state=state)
        done += ids.shape[1]
        token = sample(model.head(hidden[0, -1]), sampling, generator)
        if token in stop:
            return
        yield token
        ids = torch.tensor([[token]], device=weight.device)
