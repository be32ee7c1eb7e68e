"""How weights begin and how they learn: initialisation, optimizer, learning rate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from neoxkit.config.model import Node

Drawn = Literal[
    "normal",
    "scaled",
    "small",
    "wang",
    "single_residual",
    "xavier_uniform",
    "xavier_normal",
    "orthogonal",
    "scaled_orthogonal",
]


class Init(Node):
    """How weights are drawn before the first step. Biases begin at 0 and norms at 1."""

    weights: Drawn = Field(
        "normal",
        description="normal: deviation init.std; small: sqrt(2 / (5 width)) (arXiv 1910.05895); xavier_uniform, "
        "xavier_normal: Glorot's, of each matrix by itself; orthogonal: rows or columns of length 1; the others "
        "as for init.output.",
    )
    output: Drawn = Field(
        "scaled",
        description="attn.o and mlp.down. scaled: init.std / sqrt(2 depth); single_residual: init.std / sqrt(depth); "
        "wang: 2 / (depth sqrt(width)); scaled_orthogonal: orthogonal x sqrt(2 / depth); the others as for "
        "init.weights.",
    )
    std: float = Field(0.02, gt=0, description="The standard deviation of the normal initialisations.")


class Mup(Node):
    """Maximal update parametrisation (arXiv 2203.03466): what was tuned at a small width holds at this one.

    Initial values and learning rates are those of the base width, scaled for each kind of tensor; the
    network itself is as ever.
    """

    base_width: int = Field(gt=0, description="The width at which lr and init.std were found.")
    base_head_dim: int | None = Field(None, gt=0, description="The head_dim there; null: the same as here.")


class Decay(Node):
    """What every optimizer has: the rate, and which tensors are decayed. Norms and biases never are."""

    lr: float = Field(gt=0, description="The highest learning rate, reached when warmup ends.")
    weight_decay: float = Field(0.1, ge=0, description="Each step takes lr x this part of a matrix away.")
    decay_embeddings: bool = Field(True, description="Decay the embeddings too, as gpt-neox does.")


def _below_one(betas: tuple[float, float]) -> None:
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas {list(betas)} must each be at least 0 and below 1")


class AdamW(Decay):
    """AdamW (arXiv 1711.05101). Norms and biases are never decayed."""

    kind: Literal["adamw"] = "adamw"
    betas: tuple[float, float] = Field((0.9, 0.95), description="Decay of the first and second moments.")
    eps: float = Field(1e-8, gt=0, description="Added to the square root of the second moment.")

    @model_validator(mode="after")
    def _betas_below_one(self) -> AdamW:
        _below_one(self.betas)
        return self


class AdamW8bit(Decay):
    """AdamW whose moments take a byte an element (arXiv 2110.02861), by bitsandbytes: pip install neoxkit[8bit].

    Tensors of fewer than 4096 elements keep moments in fp32.
    """

    kind: Literal["adamw8bit"] = "adamw8bit"
    betas: tuple[float, float] = Field((0.9, 0.95), description="Decay of the first and second moments.")
    eps: float = Field(1e-8, gt=0, description="Added to the square root of the second moment.")

    @model_validator(mode="after")
    def _betas_below_one(self) -> AdamW8bit:
        _below_one(self.betas)
        return self


class Lion(Decay):
    """Lion (arXiv 2302.06675): each step moves by the sign of a moment. It wants a third to a tenth of AdamW's lr."""

    kind: Literal["lion"] = "lion"
    betas: tuple[float, float] = Field((0.9, 0.99), description="Decay of the moment: in the step, and in itself.")

    @model_validator(mode="after")
    def _betas_below_one(self) -> Lion:
        _below_one(self.betas)
        return self


class Sgd(Decay):
    """Stochastic gradient descent. Decay is added to the gradient, so momentum holds it too."""

    kind: Literal["sgd"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1, description="Decay of the sum of gradients; 0: none is kept.")
    nesterov: bool = Field(False, description="Look a step ahead; needs momentum.")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Sgd:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum above 0")
        return self


class Adafactor(Decay):
    """Adafactor (arXiv 1804.04235): second moments as a row and a column for each matrix, and no first.

    A step moves a tensor by the smaller of lr and 1 / sqrt(step), times the root mean square of its
    values: 0.01 is its usual lr.
    """

    kind: Literal["adafactor"] = "adafactor"
    decay: float = Field(0.8, gt=0, description="The second moment of step t forgets at 1 - t^-decay.")
    floor: float = Field(1e-3, gt=0, description="Values count as at least so large, or a zero would never move.")
    limit: float = Field(1.0, ge=1, description="The largest root mean square of an update.")


class Rest(Node):
    """AdamW, for what Muon does not take."""

    lr: float | None = Field(None, gt=0, description="Its highest learning rate; null: optimizer.lr.")
    betas: tuple[float, float] = Field((0.9, 0.95), description="Decay of the first and second moments.")
    eps: float = Field(1e-8, gt=0, description="Added to the square root of the second moment.")

    @model_validator(mode="after")
    def _betas_below_one(self) -> Rest:
        _below_one(self.betas)
        return self


class Muon(Decay):
    """Muon: each matrix moves by its momentum made orthogonal. Embeddings, head, norms and biases have AdamW."""

    kind: Literal["muon"] = "muon"
    momentum: float = Field(0.95, ge=0, lt=1, description="Decay of the mean of gradients.")
    nesterov: bool = Field(True, description="Look a step ahead.")
    iterations: int = Field(5, gt=0, lt=100, description="Newton-Schulz iterations, in bf16.")
    scale: Literal["original", "adamw"] = Field(
        "original",
        description="original: steps x sqrt(max(1, rows / columns)); adamw: x 0.2 sqrt(max(rows, columns)), so that "
        "AdamW's lr and decay will do (arXiv 2502.16982).",
    )
    rest: Rest = Rest()


def _named(given: object) -> object:
    """An optimizer that does not say its kind is AdamW."""
    return {"kind": "adamw", **given} if isinstance(given, dict) else given


Optimizer = Annotated[
    AdamW | AdamW8bit | Lion | Sgd | Adafactor | Muon, Field(discriminator="kind"), BeforeValidator(_named)
]

WHOLE = ("adamw8bit", "adafactor", "muon")
"""Kinds that treat each tensor as a whole, which ZeRO divides, and tensor parallelism."""


class Schedule(Node):
    """The learning rate over the steps: a linear warmup, then a decay."""

    decay: Literal["cosine", "linear", "exponential", "constant", "inverse_sqrt", "wsd"] = Field(
        "cosine",
        description="How the learning rate falls after warmup. inverse_sqrt: as 1 / sqrt(step); wsd: it stays, "
        "and falls to min_lr in the end (arXiv 2404.06395).",
    )
    warmup: float = Field(0.01, ge=0, le=1, description="Warmup, as a part of the steps of the decay.")
    warmup_steps: int | None = Field(None, ge=0, description="Warmup in steps, in place of schedule.warmup.")
    decay_steps: int | None = Field(None, gt=0, description="Steps until the lowest rate; steps when left out.")
    min_lr: float = Field(0.0, ge=0, description="The learning rate never decays below this.")
    cooldown: float | None = Field(
        None, gt=0, le=1, description="With wsd: the part of the steps in which the rate falls; null: 0.1."
    )
    cooldown_shape: Literal["linear", "cosine", "sqrt", "exponential"] | None = Field(
        None, description="With wsd: how it falls. sqrt: as 1 - sqrt(part done) (arXiv 2405.18392); null: linear."
    )
    era: Literal["current", "2023", "pythia"] = Field(
        "current",
        description="Whose arithmetic. current: gpt-neox's of today; 2023: its from September 2023 to May 2026, whose "
        "first step has rate 0; pythia: the one before, which decays to 0 and is flat in the end.",
    )

    @model_validator(mode="after")
    def _related(self) -> Schedule:
        if self.warmup_steps is not None and "warmup" in self.model_fields_set:
            raise ValueError("warmup and warmup_steps are both given; keep one")
        if self.decay != "wsd":
            for name in ("cooldown", "cooldown_shape"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} belongs to decay wsd, and decay is {self.decay}")
        if self.era != "current" and self.decay in ("inverse_sqrt", "wsd"):
            raise ValueError(f"gpt-neox had no decay {self.decay} in era {self.era}; leave era out")
        return self
