"""Which device a name means."""

from __future__ import annotations

import torch

from neoxkit.errors import ConfigError


def choose_device(wanted: str) -> torch.device:
    """The device called cpu, cuda, cuda:1, mps ...; `auto` is the first GPU, or else the CPU.

    Raises ConfigError when torch does not know the name or finds no such device.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"device {wanted!r} is not to be had here ({first})", "choose auto or cpu") from None
    if device.type == "meta":
        raise ConfigError("device 'meta' holds no numbers", "choose auto or cpu")
    return device
