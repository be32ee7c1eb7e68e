"""RunConfig: everything that a training run is, as a tree of frozen nodes.

A node validates itself; `RunConfig.problems` compares the nodes with each other. Derived values are
properties and are never stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeGuard

from pydantic import Field, model_validator

from neoxkit.config.data import Batch, Data, Evaluation
from neoxkit.config.deepspeed import DeepSpeedOptions
from neoxkit.config.faults import Faults
from neoxkit.config.kernels import Kernels
from neoxkit.config.model import ModelConfig, Node
from neoxkit.config.optimizer import WHOLE, Init, Mup, Optimizer, Schedule
from neoxkit.config.parallel import LossScale, MeshSizes, Recompute, Zero
from neoxkit.config.saving import Save
from neoxkit.config.watching import Logging, Profile
from neoxkit.errors import ConfigError
from neoxkit.mesh import Mesh

HALF = ("bf16", "fp16")
"""Precisions that keep fp32 masters."""


class Problem(NamedTuple):
    """Two options that contradict each other: the one to change, what is wrong, what to do."""

    key: str
    cause: str
    remedy: str


class RunConfig(Node):
    """A training run.

    Raises pydantic's ValidationError, which `neoxkit.config.load` turns into a ConfigError with the
    file and line.
    """

    model: ModelConfig = Field(description="What the network computes.")
    data: Data = Field(description="Tokens to learn from and to be judged by.")
    batch: Batch = Field(description="Samples of a step.")
    optimizer: Optimizer = Field(description="How weights learn; adamw unless kind says otherwise.")
    steps: int = Field(ge=0, description="Optimiser steps of the whole run. As many as epochs take when left out.")
    epochs: int | None = Field(None, gt=0, description="How often it learns from all its data, in place of steps.")
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
        description="plain: neoxkit's own, for tp, cp and dp; deepspeed: for ZeRO and pipelines too. "
        "auto: plain where it will do.",
    )
    mesh: MeshSizes = MeshSizes()
    zero: Zero = Zero()
    recompute: Recompute = Recompute()
    kernels: Kernels = Kernels()
    loss_scale: LossScale = LossScale()
    deepspeed: DeepSpeedOptions = DeepSpeedOptions()
    init: Init = Init()
    mup: Mup | None = Field(None, description="Rates and initial values scaled from those of a small width; null: not.")
    faults: Faults = Faults()
    evaluation: Evaluation = Evaluation()
    logging: Logging = Logging()
    profile: Profile | None = Field(None, description="Steps that are recorded in detail; null: none.")

    @model_validator(mode="before")
    @classmethod
    def _of_steps_or_epochs(cls, given: object) -> object:
        """No steps, that is 0, where epochs are given: how many there are is not known before the data is read."""
        if not isinstance(given, dict) or given.get("epochs") is None:
            return given
        if given.get("steps"):
            raise ValueError("steps and epochs are both given; leave epochs out, or set steps: null")
        return {**given, "steps": 0}

    @model_validator(mode="after")
    def _has_an_end(self) -> RunConfig:
        if not self.steps and self.epochs is None:
            raise ValueError("steps is 0; give at least 1, or epochs")
        return self

    @model_validator(mode="before")
    @classmethod
    def _solve_batch(cls, given: object) -> object:
        """What follows from two or three of batch size, micro-batch, accumulation and data-parallel size."""
        if not isinstance(given, dict) or not isinstance(given.get("batch"), dict):
            return given
        batch, mesh = dict(given["batch"]), given.get("mesh", {})
        size, micro, passes = (batch.get(key) for key in ("size", "micro", "accumulation"))
        if not _whole(micro) or not _whole(passes) or not isinstance(mesh, dict):
            return given
        if size is None:
            dp = mesh.get("dp")
            batch["size"] = micro * passes * (dp if _whole(dp) else 1)
        elif mesh.get("dp") is None and _whole(size) and size % (micro * passes) == 0:
            mesh = {**mesh, "dp": size // (micro * passes)}
        return {**given, "batch": batch, "mesh": mesh}

    @model_validator(mode="before")
    @classmethod
    def _divide_half(cls, given: object) -> object:
        """ZeRO 1 where DeepSpeed is to compute in half precision and no stage is stated: it has no less."""
        if not isinstance(given, dict) or given.get("precision") not in HALF:
            return given
        mesh, zero = given.get("mesh", {}), given.get("zero", {})
        if not isinstance(mesh, dict) or not isinstance(zero, dict) or "stage" in zero:
            return given
        stages = mesh.get("pp", 1)
        if given.get("engine") == "deepspeed" or (_whole(stages) and stages > 1):
            return {**given, "zero": {**zero, "stage": 1}}
        return given

    def computing_in(self, precision: str) -> RunConfig:
        """The run in a precision that was chosen for it, with the ZeRO stage that follows when none is stated."""
        update: dict[str, object] = {"precision": precision}
        if precision in HALF and self.runs_on_deepspeed and "stage" not in self.zero.model_fields_set:
            update["zero"] = self.zero.model_copy(update={"stage": 1})
        return self.model_copy(update=update)

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
        return Mesh(self.mesh.pp, self.dp, self.mesh.cp, self.mesh.tp)

    @property
    def micro(self) -> int:
        """Samples of one forward and backward pass on one data-parallel rank."""
        return self.batch.micro or max(1, self.batch.size // (self.dp * (self.batch.accumulation or 1)))

    @property
    def accumulation(self) -> int:
        """Micro-batches of one optimiser step."""
        return self.batch.size // (self.micro * self.dp)

    def on(self, devices: int) -> RunConfig:
        """The run on so many devices: `mesh.dp` is what the other parallelisms leave.

        Raises ConfigError when they do not divide, or contradict what the configuration states.
        """
        each = self.mesh.model
        if devices % each or (self.mesh.dp or devices // each) * each != devices:
            wanted = f"tp {self.mesh.tp} x pp {self.mesh.pp}" + (f" x cp {self.mesh.cp}" if self.mesh.cp > 1 else "")
            wanted += f" x dp {self.mesh.dp}" if self.mesh.dp else ""
            raise ConfigError(
                f"mesh: {wanted} does not {'make' if self.mesh.dp else 'divide'} {devices} devices",
                f"start {each * self.dp} processes, or choose another mesh",
            )
        dp, batch = devices // each, self.batch
        if self.mesh.dp is None and batch.micro and batch.accumulation:  # the size was left to the devices
            batch = batch.model_copy(update={"size": batch.micro * batch.accumulation * dp})
        run = self.model_copy(update={"mesh": self.mesh.model_copy(update={"dp": dp}), "batch": batch})
        run.check()
        return run

    @property
    def runs_on_deepspeed(self) -> bool:
        """Whether DeepSpeed's engine trains this run."""
        return self.engine == "deepspeed" or (self.engine == "auto" and bool(self.zero.stage or self.mesh.pp > 1))

    def problems(self) -> Iterator[Problem]:
        """Options which are each right but contradict each other."""
        passes = self.batch.accumulation
        if passes and self.micro * passes * self.dp != self.batch.size:
            yield Problem(
                "batch.size",
                f"batch.size {self.batch.size} is not micro {self.micro} x accumulation {passes} x dp {self.dp}",
                "leave one of them out",
            )
        elif self.batch.micro is None and self.batch.size % self.dp:
            cause = f"batch.size {self.batch.size} does not divide over dp {self.dp}"
            yield Problem("batch.size", cause, f"choose a multiple of {self.dp}, or another mesh")
        elif self.batch.size % (self.micro * self.dp):
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
        if self.steps:  # otherwise they follow from the data
            yield from self._schedule_problems()
        if self.epochs and self.data.weighed:
            cause = "epochs: sources that are taken by weight are not read equally often"
            yield Problem("epochs", cause, "leave out the weights, or give steps instead of epochs")
        yield from self._growth_problems()
        yield from self._mup_problems()
        yield from self._parallel_problems()
        watching = self.logging.problems(self.runs_on_deepspeed, self.precision, self.accumulation * self.dp)
        yield from (Problem(f"logging.{key}", cause, remedy) for key, cause, remedy in watching)
        if self.profile and self.profile.last > self.steps > 0:
            cause = f"profile.last {self.profile.last} is after the last step, {self.steps}"
            yield Problem("profile.last", cause, "lower profile.first and profile.last, or leave profile out")
        if self.data.valid is None and self.data.split is None:
            for name in ("every", "batches"):
                if getattr(self.evaluation, name):
                    key = f"evaluation.{name}"
                    yield Problem(key, f"{key} is given without data.valid or data.split", "name held-out tokens")
        if self.precision != "fp16" and self.loss_scale != LossScale():
            never = "which auto never chooses" if self.precision == "auto" else f"and precision is {self.precision}"
            cause = f"loss_scale is of precision fp16, {never}"
            yield Problem("loss_scale", cause, "leave it out, or set precision: fp16")

    def _schedule_problems(self) -> Iterator[Problem]:
        decay = self.schedule.decay_steps or self.steps
        if decay < self.steps and self.schedule.decay == "cosine" and self.schedule.era != "pythia":
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

    def _mup_problems(self) -> Iterator[Problem]:
        if self.mup is None:
            return
        if self.model.tied:
            yield Problem(
                "mup", "mup: a tied head cannot learn at another rate than the embedding", "set model.tied: false"
            )
        if self.optimizer.kind not in ("adamw", "adamw8bit", "lion"):
            yield Problem("mup", f"mup with optimizer.kind {self.optimizer.kind}: its rates are Adam's", "use adamw")
        for name in ("weights", "output"):
            if "xavier" in (drawn := getattr(self.init, name)) or "orthogonal" in drawn:
                cause = f"init.{name} {drawn} knows no base width, as mup asks"
                yield Problem(f"init.{name}", cause, f"set init.{name}: normal")
        smaller = self.mup.base_head_dim not in (None, self.model.mixer.head_dim)
        if smaller and self.model.mixer.qk_norm:
            yield Problem("mup.base_head_dim", "mup.base_head_dim: a norm of queries undoes their scale", "remove it")
        if smaller and self.runs_on_deepspeed:
            cause = "mup.base_head_dim gives queries a rate of their own, and DeepSpeed takes them together with keys"
            yield Problem("mup.base_head_dim", cause, "keep head_dim, and change the number of heads")

    def _growth_problems(self) -> Iterator[Problem]:
        """What is wrong with the growth of batches and of samples."""
        if warmup := self.batch.warmup:
            at_once, size = self.micro * self.dp, self.batch.size
            if warmup.start > size or (size - warmup.start) % warmup.increment:
                cause = f"batch.warmup grows from {warmup.start} by {warmup.increment}, which never is {size}"
                remedy = f"choose an increment that divides {size - warmup.start}"
                yield Problem("batch.warmup", cause, remedy if warmup.start < size else "lower batch.warmup.start")
            for name in ("start", "increment"):
                if getattr(warmup, name) % at_once:
                    cause = f"batch.warmup.{name} {getattr(warmup, name)} is no multiple of the {at_once} samples"
                    yield Problem("batch.warmup", f"{cause} that pass through the model at once", "lower batch.micro")
        if (curriculum := self.data.curriculum) is None:
            return
        if curriculum.start > self.sequence:
            yield Problem(
                "data.curriculum",
                f"data.curriculum.start {curriculum.start} is longer than a sample of {self.sequence}",
                "lower data.curriculum.start",
            )
        if curriculum.multiple % (ranks := self.mesh.tokens):
            cause = f"data.curriculum.multiple {curriculum.multiple} does not divide over {ranks} ranks, as tokens do"
            yield Problem("data.curriculum", cause, f"choose a multiple of {ranks}")
        if self.mesh.pp > 1:
            yield Problem(
                "data.curriculum", "data.curriculum: pipelines send samples of one length only", "leave it out"
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
                "zero.offload",
                f"zero.offload all with zero.stage {zero.stage} keeps the weights whole",
                "set zero.stage: 3",
            )
        if zero.offload != "none" and not zero.stage:
            yield Problem("zero.offload", f"zero.offload {zero.offload} needs zero.stage 1 to 3", "set zero.stage: 1")
        if self.engine == "plain" and (zero.stage or mesh.pp > 1):
            needs = f"zero.stage {zero.stage}" if zero.stage else f"mesh.pp {mesh.pp}"
            yield Problem("engine", f"engine plain knows no {needs}", "set engine: auto")
        yield from self._cut_problems()
        noise = self.logging.noise_scale is not None
        found = mesh.problems(self.model.mixer.heads, self.sequence, noise)
        yield from (Problem(key, cause, remedy) for key, cause, remedy in found)
        compiled = self.kernels.problems(zero.stage, self.deepspeed.flops_profiler is not None)
        yield from (Problem(key, cause, remedy) for key, cause, remedy in compiled)
        divided = mesh.tp > 1 and self.optimizer.kind != "muon"  # which joins what it needs
        if self.optimizer.kind in WHOLE and (self.runs_on_deepspeed or divided):
            how = f"mesh.tp {mesh.tp}" if divided else "engine deepspeed"
            yield Problem(
                "optimizer.kind",
                f"optimizer.kind {self.optimizer.kind} treats each tensor as a whole, and {how} divides tensors",
                "choose adamw or lion, or engine plain and mesh.tp 1",
            )
        yield from self._deepspeed_problems()

    def _cut_problems(self) -> Iterator[Problem]:
        """What of the model does not divide over the mesh. A head on two ranks would count twice."""
        tp, pp, mixer = self.mesh.tp, self.mesh.pp, self.model.mixer
        for count, what in ((mixer.heads, "heads"), (self.model.mlp.hidden, "hidden rows of an MLP")):
            if count % tp:
                cause = f"mesh.tp {tp} does not divide the model's {count} {what}"
                yield Problem("mesh.tp", cause, f"choose a divisor of {count}")
        if mixer.kv_heads % tp and tp % mixer.kv_heads:
            cause = (
                f"mesh.tp {tp} neither divides the model's {mixer.kv_heads} key/value heads nor is a multiple of them"
            )
            yield Problem("mesh.tp", cause, "choose another mesh.tp")
        if pp > self.model.depth:
            cause = f"mesh.pp {pp} is more stages than the model's {self.model.depth} layers"
            yield Problem("mesh.pp", cause, "lower mesh.pp")

    def _deepspeed_problems(self) -> Iterator[Problem]:
        """What DeepSpeed's engine cannot do as the plain engine does it."""
        if not self.runs_on_deepspeed:
            if self.deepspeed != DeepSpeedOptions():
                yield Problem(
                    "deepspeed",
                    "deepspeed: its options are for its own engine",
                    "set engine: deepspeed, or leave it out",
                )
            return
        if self.precision in HALF and not self.zero.stage:
            yield Problem(
                "zero.stage",
                f"zero.stage 0 with precision {self.precision}: DeepSpeed would sum gradients in {self.precision}",
                "set zero.stage: 1, or leave it out",
            )
        found = self.deepspeed.problems(self.zero.stage, self.mesh.pp, self.steps)
        yield from (Problem(f"deepspeed.{key}", f"deepspeed.{key}{cause}", remedy) for key, cause, remedy in found)
        if self.precision == "fp16" and self.mesh.pp > 1:
            cause = f"precision fp16 with mesh.pp {self.mesh.pp}: DeepSpeed's pipeline would sum gradients in fp16"
            yield Problem("precision", cause, "choose bf16")
        if self.zero.offload != "none" and self.mesh.pp > 1:
            yield Problem(
                "zero.offload",
                f"zero.offload {self.zero.offload} is not for pipelines",
                "leave it out, or set mesh.pp: 1",
            )
        kind = self.optimizer.kind
        if self.zero.offload != "none" and kind not in ("adamw", "lion"):
            yield Problem(
                "zero.offload",
                f"zero.offload {self.zero.offload} with optimizer.kind {kind}: DeepSpeed has none on a CPU",
                "choose adamw or lion",
            )

    def check(self) -> None:
        """Raise ConfigError for the first of `problems`."""
        for problem in self.problems():
            raise ConfigError(problem.cause, problem.remedy)


def _whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
