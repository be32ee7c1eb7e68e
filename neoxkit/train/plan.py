"""What a run would do, without doing it: `neoxkit train --dry-run`."""

from __future__ import annotations

from pathlib import Path

from neoxkit.checkpoint.format import ITEM_BYTES
from neoxkit.config.run import RunConfig
from neoxkit.nn.decoder import specs
from neoxkit.parallel.device import choose_device
from neoxkit.spec import volume, whole
from neoxkit.train.loop import decide, open_feed
from neoxkit.train.resume import Position, past_of

MASTERS, MOMENTS = 4, 8
"""Bytes of optimiser state a parameter: fp32 masters (with bf16 weights), two fp32 moments."""


def plan(config: RunConfig) -> dict[str, str]:
    """The plan of a run by what it is about. Raises what the run itself would raise before its first step."""
    device = choose_device(config.device)
    folder = Path(config.save.folder)
    past = past_of(folder)
    config = decide(config, past, device)
    feed = open_feed(config, past)
    at = past.position if past else Position()
    parameters = sum(volume(whole(spec.shape)) for spec in specs(config.model).values())
    tokens = config.batch.size * config.sequence
    low = config.precision == "bf16"
    weight = ITEM_BYTES["BF16" if low else "F32"]
    saved = parameters * (weight + MOMENTS + (MASTERS if low else 0))
    left = max(0, config.steps - at.step)
    saves = left // config.save.every if config.save.every else 0
    saves += 1 if left and (not config.save.every or config.steps % config.save.every) else 0
    found = {
        "model": f"{config.model.family}, {parameters:,} parameters",
        "computes in": f"{config.precision} on {device.type}",
        "begins": f"from {past.checkpoint.path}" if past else f"with {config.load or 'random weights'}",
        "steps": f"{left:,} of {config.steps:,}, {config.batch.size} samples of {config.sequence} tokens each",
        "tokens": f"{left * tokens:,}; {tokens:,} a step, "
        f"in {config.accumulation} micro-batches of {config.micro} samples",
        "text": f"{feed.identity.tokens:,} tokens in {feed.identity.documents:,} documents, "
        f"{config.steps * tokens / feed.identity.tokens:.2f} epochs",
        "held out": f"{feed.held_out.count:,} samples" if feed.held_out else "none",
        "memory at least": f"{(saved + 4 * parameters) / 1e6:,.1f} MB for weights, gradients and optimizer",
        "checkpoints": f"{saves} of {saved / 1e6:,.1f} MB in {folder}",
    }
    if past:
        past.checkpoint.close()
    return found
