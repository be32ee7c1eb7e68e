"""The numbers by which Python and decode.cpp name things to each other: it is compiled with these."""

from __future__ import annotations

from enum import IntEnum

SLOTS = 16
"""Integers of an instruction: what is to be done, and with what."""


class Operation(IntEnum):
    """What can be done."""

    LINEAR = 0
    RMS_NORM = 1
    LAYER_NORM = 2
    ENTER = 3
    ATTEND = 4
    ACTIVATED = 5
    ADD = 6


class Activation(IntEnum):
    """Activations, by their names in a configuration, in capitals."""

    SILU = 0
    GELU_TANH = 1
    GELU = 2
    RELU = 3


class Weight(IntEnum):
    """What the weights of a product are kept in."""

    FP32 = 0
    BF16 = 1
    FP16 = 2


def definitions() -> list[str]:
    """All of them as a compiler's options: `-DOPERATION_LINEAR=0`."""
    names = {f"{kind.__name__}_{each.name}": each for kind in (Operation, Activation, Weight) for each in kind}
    return [f"-DSLOTS={SLOTS}", *(f"-D{name.upper()}={each.value}" for name, each in names.items())]
