"""Activations that are not kept, but computed again on the way back (arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from types import MethodType
from typing import Any

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
        if number % options.every:
            continue
        if options.layers == "full":  # around what is compiled
            again = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
            layer.forward = again
        else:  # inside what is compiled, where layers are alike only if they call the same function
            part = layer.get_submodule("attn")
            part.forward = MethodType(_again, part)


def _again(part: nn.Module, *given: Any) -> Any:
    """The forward pass of a module that computes it again on the way back."""
    return checkpoint(type(part).forward, part, *given, use_reentrant=False, preserve_rng_state=False)
