"""How weights begin and how they learn: initialisation, optimizer, learning rate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from neoxkit.config.model import Node


class Init(Node):
    """How weights are drawn before the first step. Biases begin at 0 and norms at 1."""

    weights: Literal["normal", "small"] = Field(
        "normal", description="normal: deviation init.std; small: sqrt(2 / (5 width)) (arXiv 1910.05895)."
    )
    output: Literal["normal", "scaled", "wang"] = Field(
        "scaled",
        description="attn.o and mlp.down. normal: as the others; scaled: init.std / sqrt(2 depth); "
        "wang: 2 / (depth sqrt(width)).",
    )
    std: float = Field(0.02, gt=0, description="The standard deviation of the normal initialisations.")


class Decay(Node):
    """What every optimizer has: the rate, and which tensors are decayed. Norms and biases never are."""

    lr: float = Field(gt=0, description="The highest learning rate, reached when warmup ends.")
    weight_decay: float = Field(0.1, ge=0, description="Each step takes lr x this part of a matrix away.")
    decay_embeddings: bool = Field(True, description="Decay the embeddings too, as gpt-neox does.")


class AdamW(Decay):
    """AdamW (arXiv 1711.05101). Norms and biases are never decayed."""

    kind: Literal["adamw"] = "adamw"
    betas: tuple[float, float] = Field((0.9, 0.95), description="Decay of the first and second moments.")
    eps: float = Field(1e-8, gt=0, description="Added to the square root of the second moment.")

    @model_validator(mode="after")
    def _betas_below_one(self) -> AdamW:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {list(self.betas)} must each be at least 0 and below 1")
        return self


Optimizer = AdamW


class Schedule(Node):
    """The learning rate over the steps: a linear warmup, then a decay."""

    decay: Literal["cosine", "linear", "exponential", "constant"] = Field(
        "cosine", description="How the learning rate falls after warmup."
    )
    warmup: float = Field(0.01, ge=0, le=1, description="Warmup, as a part of the steps of the decay.")
    warmup_steps: int | None = Field(None, ge=0, description="Warmup in steps, in place of schedule.warmup.")
    decay_steps: int | None = Field(None, gt=0, description="Steps until the lowest rate; steps when left out.")
    min_lr: float = Field(0.0, ge=0, description="The learning rate never decays below this.")

    @model_validator(mode="after")
    def _one_warmup(self) -> Schedule:
        if self.warmup_steps is not None and "warmup" in self.model_fields_set:
            raise ValueError("warmup and warmup_steps are both given; keep one")
        return self
