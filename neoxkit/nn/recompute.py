"""Activations that are not kept, but computed again on the way back (arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from neoxkit.config.parallel import Recompute


def recompute(layers: Iterable[tuple[int, nn.Module]], options: Recompute) -> None:
    """Let layers, each given with its number, recompute what the options say: of `every` so many, one.

    Nothing in a layer is random, so no random state is kept either. Without gradients nothing changes.
    """
    if options.layers == "none":
        return
    for number, layer in layers:
        if number % options.every == 0:
            part = layer if options.layers == "full" else layer.get_submodule("attn")
            again = partial(checkpoint, part.forward, use_reentrant=False, preserve_rng_state=False)
            part.forward = again  # type: ignore[method-assign]
