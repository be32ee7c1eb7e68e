"""RunConfig: everything that a training run is, as a tree of frozen nodes.

A node validates itself; `RunConfig.problems` compares the nodes with each other. Derived values are
properties and are never stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from neoxkit.config.model import ModelConfig, Node
from neoxkit.errors import ConfigError


class Problem(NamedTuple):
    """Two options that contradict each other: the one to change, what is wrong, what to do."""

    key: str
    cause: str
    remedy: str


class Data(Node):
    """The tokens that the model learns from, and those that it is judged by."""

    train: str = Field(description="Prefix of the training tokens: PREFIX.bin and PREFIX.idx.")
    valid: str | None = Field(None, description="Prefix of the held-out tokens; null: no evaluation.")
    split: str | None = Field(
        None, description='Shares of the documents of data.train, as "969,30,1": training, held-out, neither.'
    )
    tokenizer: str | None = Field(None, description="Folder of the tokenizer; it is copied into every checkpoint.")
    sequence: int | None = Field(None, gt=0, description="Tokens that a sample predicts; model.context when left out.")

    @model_validator(mode="after")
    def _held_out_once(self) -> Data:
        if self.valid is not None and self.split is not None:
            raise ValueError("valid and split are both given; keep one")
        return self


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


class Optimizer(Node):
    """AdamW (arXiv 1711.05101). Norms and biases are never decayed."""

    lr: float = Field(gt=0, description="The highest learning rate, reached when warmup ends.")
    betas: tuple[float, float] = Field((0.9, 0.95), description="Decay of the first and second moments.")
    eps: float = Field(1e-8, gt=0, description="Added to the square root of the second moment.")
    weight_decay: float = Field(0.1, ge=0, description="Each step takes lr x this part of a matrix away.")
    decay_embeddings: bool = Field(True, description="Decay the embeddings too, as gpt-neox does.")

    @model_validator(mode="after")
    def _betas_below_one(self) -> Optimizer:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {list(self.betas)} must each be at least 0 and below 1")
        return self


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


class Batch(Node):
    """How many samples a step learns from, and how many pass through the model at once."""

    size: int = Field(gt=0, description="Samples of one optimiser step.")
    micro: int | None = Field(
        None, gt=0, description="Samples of one forward and backward pass; divides size. size when left out."
    )


class Evaluation(Node):
    """The loss on held-out data while training goes on."""

    every: int | None = Field(None, gt=0, description="Steps between evaluations; null: only after the last step.")
    batches: int | None = Field(None, gt=0, description="Micro-batches of an evaluation; null: all held-out data.")


class Save(Node):
    """Where the run lives, and which checkpoints are kept there."""

    folder: str = Field(description="The run's folder: checkpoints, metrics.jsonl, loss.png.")
    every: int | None = Field(None, gt=0, description="Steps between checkpoints; null: only after the last step.")
    keep_last: int | None = Field(None, gt=0, description="Checkpoints to keep, the newest; null: all.")


class Logging(Node):
    """What is told while training goes on."""

    every: int = Field(10, gt=0, description="Steps between lines of the log, where stderr is no terminal.")


class RunConfig(Node):
    """A training run.

    Raises pydantic's ValidationError, which `neoxkit.config.load` turns into a ConfigError with the
    file and line.
    """

    model: ModelConfig = Field(description="What the network computes.")
    data: Data = Field(description="Tokens to learn from and to be judged by.")
    batch: Batch = Field(description="Samples of a step.")
    optimizer: Optimizer = Field(description="AdamW.")
    steps: int = Field(gt=0, description="Optimiser steps of the whole run.")
    save: Save = Field(description="Where the run lives.")
    load: str | None = Field(
        None, description="A checkpoint whose weights the run begins with (fine-tuning); null: random weights."
    )
    schedule: Schedule = Schedule()
    clip: float | None = Field(1.0, gt=0, description="The largest norm of the whole gradient; null: not clipped.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="Of the forward and backward pass. bf16 keeps fp32 masters; auto measures which is faster, once.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one.")
    threads: int | None = Field(None, gt=0, description="Threads of the CPU; null: torch decides.")
    seed: int = Field(1234, ge=0, lt=2**32, description="Of the initial weights and the order of the data.")
    init: Init = Init()
    evaluation: Evaluation = Evaluation()
    logging: Logging = Logging()

    @property
    def sequence(self) -> int:
        """Tokens that a sample predicts."""
        return self.data.sequence or self.model.context

    @property
    def micro(self) -> int:
        """Samples of one forward and backward pass."""
        return self.batch.micro or self.batch.size

    @property
    def accumulation(self) -> int:
        """Micro-batches of one optimiser step."""
        return self.batch.size // self.micro

    def problems(self) -> Iterator[Problem]:
        """Options which are each right but contradict each other."""
        if self.batch.size % self.micro:
            yield Problem(
                "batch.micro",
                f"batch.micro {self.micro} does not divide batch.size {self.batch.size}",
                f"choose a divisor of {self.batch.size}",
            )
        if self.sequence > self.model.context:
            yield Problem(
                "data.sequence",
                f"data.sequence {self.sequence} is longer than model.context {self.model.context}",
                "lower data.sequence or raise model.context",
            )
        if self.schedule.min_lr > self.optimizer.lr:
            yield Problem(
                "schedule.min_lr",
                f"schedule.min_lr {self.schedule.min_lr:g} is above optimizer.lr {self.optimizer.lr:g}",
                "lower schedule.min_lr",
            )
        yield from self._schedule_problems()
        if self.evaluation.every and self.data.valid is None and self.data.split is None:
            yield Problem(
                "evaluation.every", "evaluation.every is given without data.valid or data.split", "name held-out tokens"
            )

    def _schedule_problems(self) -> Iterator[Problem]:
        decay = self.schedule.decay_steps or self.steps
        if decay < self.steps and self.schedule.decay == "cosine":
            yield Problem(
                "schedule.decay_steps",
                f"schedule.decay_steps {decay} is below steps {self.steps}: past its end a cosine rises again",
                "raise schedule.decay_steps or choose another schedule.decay",
            )
        if (self.schedule.warmup_steps or 0) > decay:
            yield Problem(
                "schedule.warmup_steps",
                f"schedule.warmup_steps {self.schedule.warmup_steps} is more than the {decay} steps of the schedule",
                "lower schedule.warmup_steps",
            )

    def check(self) -> None:
        """Raise ConfigError for the first of `problems`."""
        for problem in self.problems():
            raise ConfigError(problem.cause, problem.remedy)
