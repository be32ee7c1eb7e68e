"""RunConfig: everything that a training run is, as a tree of frozen nodes.

A node validates itself; `RunConfig.problems` compares the nodes with each other. Derived values are
properties and are never stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from neoxkit.config.deepspeed import DeepSpeedOptions
from neoxkit.config.model import ModelConfig, Node
from neoxkit.config.optimizer import Init, Optimizer, Schedule
from neoxkit.config.parallel import LossScale, MeshSizes, Recompute, Zero
from neoxkit.errors import ConfigError
from neoxkit.mesh import Mesh


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


class Batch(Node):
    """How many samples a step learns from, and how many pass through the model at once."""

    size: int = Field(gt=0, description="Samples of one optimiser step.")
    micro: int | None = Field(
        None, gt=0, description="Samples of one forward and backward pass; divides size. size when left out."
    )


class Evaluation(Node):
    """The loss on held-out data while training goes on."""

    every: int | None = Field(None, gt=0, description="Steps between evaluations; null: only after the last step.")
    batches: int | None = Field(
        None, gt=0, description="An evaluation takes so many times batch.size samples; null: all held-out data."
    )


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
    optimizer: Optimizer = Field(description="How weights learn; adamw unless kind says otherwise.")
    steps: int = Field(gt=0, description="Optimiser steps of the whole run.")
    save: Save = Field(description="Where the run lives.")
    load: str | None = Field(
        None, description="A checkpoint whose weights the run begins with (fine-tuning); null: random weights."
    )
    schedule: Schedule = Schedule()
    clip: float | None = Field(1.0, gt=0, description="The largest norm of the whole gradient; null: not clipped.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Of the forward and backward pass. bf16 and fp16 keep fp32 masters; auto measures, once, "
        "whether fp32 or bf16 is faster.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one.")
    threads: int | None = Field(None, gt=0, description="Threads of the CPU; null: torch decides.")
    seed: int = Field(1234, ge=0, lt=2**32, description="Of the initial weights and the order of the data.")
    engine: Literal["auto", "plain", "deepspeed"] = Field(
        "auto",
        description="plain: neoxkit's own, for tp and dp; deepspeed: for ZeRO and pipelines too. "
        "auto: plain where it will do.",
    )
    mesh: MeshSizes = MeshSizes()
    zero: Zero = Zero()
    recompute: Recompute = Recompute()
    loss_scale: LossScale = LossScale()
    deepspeed: DeepSpeedOptions = DeepSpeedOptions()
    init: Init = Init()
    evaluation: Evaluation = Evaluation()
    logging: Logging = Logging()

    @property
    def sequence(self) -> int:
        """Tokens that a sample predicts."""
        return self.data.sequence or self.model.context

    @property
    def dp(self) -> int:
        """The data-parallel size; 1 until it is known on how many devices the run is."""
        return self.mesh.dp or 1

    @property
    def placed(self) -> Mesh:
        """The mesh of the run's processes."""
        return Mesh(self.mesh.pp, self.dp, 1, self.mesh.tp)

    @property
    def micro(self) -> int:
        """Samples of one forward and backward pass on one data-parallel rank."""
        return self.batch.micro or max(1, self.batch.size // self.dp)

    @property
    def accumulation(self) -> int:
        """Micro-batches of one optimiser step."""
        return self.batch.size // (self.micro * self.dp)

    def on(self, devices: int) -> RunConfig:
        """The run on so many devices: `mesh.dp` is what tensor and pipeline parallelism leave.

        Raises ConfigError when they do not divide, or contradict what the configuration states.
        """
        each = self.mesh.tp * self.mesh.pp
        if devices % each or (self.mesh.dp or devices // each) * each != devices:
            wanted = f"tp {self.mesh.tp} x pp {self.mesh.pp}" + (f" x dp {self.mesh.dp}" if self.mesh.dp else "")
            raise ConfigError(
                f"mesh: {wanted} does not {'make' if self.mesh.dp else 'divide'} {devices} devices",
                f"start {each * self.dp} processes, or choose another mesh",
            )
        run = self.model_copy(update={"mesh": self.mesh.model_copy(update={"dp": devices // each})})
        run.check()
        return run

    @property
    def runs_on_deepspeed(self) -> bool:
        """Whether DeepSpeed's engine trains this run."""
        return self.engine == "deepspeed" or (self.engine == "auto" and bool(self.zero.stage or self.mesh.pp > 1))

    def problems(self) -> Iterator[Problem]:
        """Options which are each right but contradict each other."""
        if self.batch.size % (self.micro * self.dp):
            ranks = f" x dp {self.dp}" if self.dp > 1 else ""
            yield Problem(
                "batch.micro",
                f"batch.micro {self.micro}{ranks} does not divide batch.size {self.batch.size}",
                f"choose a divisor of {self.batch.size}" if not ranks else "choose another batch.size or batch.micro",
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
        yield from self._parallel_problems()
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

    def _parallel_problems(self) -> Iterator[Problem]:
        mesh, zero = self.mesh, self.zero
        if mesh.pp > 1 and zero.stage > 1:
            yield Problem(
                "zero.stage",
                f"zero.stage {zero.stage} with mesh.pp {mesh.pp}: DeepSpeed's pipeline divides no gradients or weights",
                "lower zero.stage to 1, or set mesh.pp to 1",
            )
        if zero.offload == "all" and zero.stage != 3:
            yield Problem(
                "zero.offload", f"zero.offload all with zero.stage {zero.stage} keeps the weights whole", "set stage 3"
            )
        if zero.offload != "none" and not zero.stage:
            yield Problem("zero.offload", f"zero.offload {zero.offload} needs zero.stage 1 to 3", "set zero.stage")
        if self.engine == "plain" and (zero.stage or mesh.pp > 1):
            needs = f"zero.stage {zero.stage}" if zero.stage else f"mesh.pp {mesh.pp}"
            yield Problem("engine", f"engine plain knows no {needs}", "set engine: auto")
        if mesh.sequence_parallel and self.sequence % mesh.tp:
            yield Problem(
                "mesh.sequence_parallel",
                f"mesh.sequence_parallel divides {self.sequence} tokens over tp {mesh.tp}, and they do not divide",
                "choose another data.sequence",
            )
        if self.precision == "fp16":
            yield Problem("precision", "precision fp16 is not built yet", "choose bf16 or fp32")
        for key, (built, cause) in _UNBUILT.items():
            node = self.model_dump(include={key.partition(".")[0]})
            for part in key.split("."):
                node = node[part]
            if node != built:
                yield Problem(key, f"{key} {node}: {cause}", f"set it to {built}")

    def check(self) -> None:
        """Raise ConfigError for the first of `problems`."""
        for problem in self.problems():
            raise ConfigError(problem.cause, problem.remedy)


_UNBUILT: dict[str, tuple[object, str]] = {
    "recompute.layers": ("none", "recomputing activations is not built yet"),
}
"""Options of which one value is built so far, and why another is refused."""
