"""One seed becomes many: every answer of a command or a request draws from noise of its own. No torch."""

from __future__ import annotations

import hashlib

SEEDS = 2**64
"""Seeds are the numbers from 0 to one less."""


def derived_seed(seed: int, prompt: int = 0, sample: int = 0) -> int:
    """The seed of one of several samples of one of several prompts, both counted from 0.

    The first sample of the first prompt has `seed` itself, so that what is asked for alone comes out as it does among
    others. Every other has 53 bits of the BLAKE2b hash of the three numbers: it depends on nothing but them, and every
    reader of JSON reads it exactly. A negative seed stands for the one that is as much below 2**64.
    """
    seed %= SEEDS
    if not prompt and not sample:
        return seed
    numbers = b"".join(number.to_bytes(8, "little") for number in (seed, prompt, sample))
    return int.from_bytes(hashlib.blake2b(numbers, digest_size=8).digest(), "little") >> 11
