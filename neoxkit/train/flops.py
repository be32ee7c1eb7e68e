"""The floating-point operations of a model, counted from its configuration, and what devices can do.

Counted are matrix products, a multiplication and an addition each, as everybody does: norms,
activations, softmax and rotation are left out. Of attention scores those are counted which a token
sees, so half of them where attention is causal, as Megatron-LM counts today; PaLM (arXiv 2204.02311,
appendix B) and gpt-neox count all. A row of several documents is counted as one text. Nothing here needs torch.
"""

from __future__ import annotations

from typing import NamedTuple

from neoxkit.config.model import ModelConfig
from neoxkit.config.parallel import Recompute

NEVER = Recompute()
"""Nothing is computed again."""


class Flops(NamedTuple):
    """Operations of the forward pass of one sample, by part; the backward pass takes twice as many."""

    projections: int
    """Of all layers: queries, keys, values and the output of attention."""
    scores: int
    """Of all layers: queries times keys, and their softmax times values."""
    mlp: int
    head: int
    repeated: int = 0
    """Those of layers that are recomputed on the way back. What fused kernels repeat inside is not counted."""

    @property
    def forward(self) -> int:
        """The forward pass."""
        return self.projections + self.scores + self.mlp + self.head

    @property
    def training(self) -> int:
        """Forward and backward: what the model itself asks for (MFU)."""
        return 3 * self.forward

    @property
    def executed(self) -> int:
        """Forward and backward with what is computed again (HFU)."""
        return self.training + self.repeated


def recomputed(recompute: Recompute, stop: int, start: int = 0) -> int:
    """Of the layers from `start` to `stop` how many are computed again: those whose number `every` divides."""
    if recompute.layers == "none":
        return 0
    return -(-stop // recompute.every) - -(-start // recompute.every)


def pairs(tokens: int, window: int | None = None) -> int:
    """Query-key pairs that causal attention over a sample sees.

    Example: 4 tokens see 1 + 2 + 3 + 4 = 10; with a window of 2 they see 1 + 2 + 2 + 2 = 7.
    """
    span = min(tokens, window or tokens)
    return span * (span + 1) // 2 + (tokens - span) * span


def count(model: ModelConfig, tokens: int, recompute: Recompute = NEVER, causal: bool = True) -> Flops:
    """The operations of one sample of `tokens`. Without `causal` every token sees every other, as PaLM counts.

    Recomputing stops where nothing more is needed: before the last product, but for a norm that comes after.
    """
    mixer, mlp = model.mixer, model.mlp
    columns = (2 * mixer.heads + 2 * mixer.kv_heads) * mixer.head_dim
    seen = pairs(tokens, mixer.window) if causal else tokens * tokens
    projections = 2 * tokens * model.width * columns
    scores = 2 * 2 * seen * mixer.heads * mixer.head_dim
    product = 2 * tokens * model.width * mlp.hidden
    whole = projections + scores + product * (3 if mlp.gated else 2)
    again = {
        "none": 0,
        "full": whole - (0 if model.residual == "post" else product),
        "selective": projections + scores - 2 * tokens * model.width * mixer.heads * mixer.head_dim,
    }[recompute.layers]
    return Flops(
        projections=model.depth * projections,
        scores=model.depth * scores,
        mlp=model.depth * product * (3 if mlp.gated else 2),
        head=2 * tokens * model.width * model.vocab,
        repeated=again * recomputed(recompute, model.depth),
    )


class Device(NamedTuple):
    """What a device can do at most, by the makers' data sheets: dense, without sparsity. Memory in bytes."""

    half: float
    """Operations a second in bf16 (fp16, where there is no bf16)."""
    full: float
    """Operations a second in fp32, without TF32."""
    memory: float

    def peak(self, precision: str) -> float:
        """Operations a second in a precision of `config.precision`."""
        return self.full if precision == "fp32" else self.half


DEVICES = {
    "B200": Device(2250e12, 75e12, 180e9),
    "GH200": Device(989.4e12, 66.9e12, 96e9),
    "H200": Device(989.4e12, 66.9e12, 141e9),
    "H100 PCIe": Device(756.5e12, 51.2e12, 80e9),
    "H100 NVL": Device(835.5e12, 60e12, 94e9),
    "H100": Device(989.4e12, 66.9e12, 80e9),
    "H800": Device(989.4e12, 66.9e12, 80e9),
    "H20": Device(148e12, 44e12, 96e9),
    "A100-PCIE-40GB": Device(312e12, 19.5e12, 40e9),
    "A100-SXM4-40GB": Device(312e12, 19.5e12, 40e9),
    "A100": Device(312e12, 19.5e12, 80e9),
    "A800": Device(312e12, 19.5e12, 80e9),
    "A40": Device(149.7e12, 37.4e12, 48e9),
    "A30": Device(165e12, 10.3e12, 24e9),
    "A10": Device(125e12, 31.2e12, 24e9),
    "RTX A6000": Device(154.8e12, 38.7e12, 48e9),
    "RTX 6000 Ada": Device(364.2e12, 91.1e12, 48e9),
    "RTX 4090": Device(165.2e12, 82.6e12, 24e9),
    "RTX 3090": Device(71e12, 35.6e12, 24e9),
    "L40S": Device(362e12, 91.6e12, 48e9),
    "L40": Device(181e12, 90.5e12, 48e9),
    "L4": Device(121e12, 30.3e12, 24e9),
    "V100-PCIE": Device(112e12, 14e12, 32e9),
    "V100": Device(125e12, 15.7e12, 32e9),
    "T4": Device(65e12, 8.1e12, 16e9),
    "MI300X": Device(1307.4e12, 163.4e12, 192e9),
    "MI325X": Device(1307.4e12, 163.4e12, 256e9),
    "MI250X": Device(191.5e12, 23.9e12, 64e9),
}
"""Devices by part of the name that torch gives them; of a kind with several forms the special ones stand first."""


def device_of(name: str) -> Device | None:
    """The device of this name ("NVIDIA H100 80GB HBM3", "h100"); None where it is not known.

    A name is known by its words: "NVIDIA A100-SXM4-80GB" is an A100, "NVIDIA A1000" is not.
    """
    words = name.lower().replace("-", " ").split()
    for known, device in DEVICES.items():
        wanted = known.lower().replace("-", " ").split()
        if any(words[at : at + len(wanted)] == wanted for at in range(len(words))):
            return device
    return None


def peak_of(name: str, precision: str, stated: float | None = None) -> float | None:
    """The most operations a second of a device: `stated` in units of 1e12 where given, else by its name.

    None where neither is known, as of a CPU: a utilisation would then be a guess.
    """
    if stated is not None:
        return stated * 1e12
    device = device_of(name)
    return None if device is None else device.peak(precision)
