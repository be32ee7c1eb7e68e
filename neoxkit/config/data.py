"""What a run learns from and is judged by, and how much of it at a time."""

from __future__ import annotations

from pydantic import Field, model_validator

from neoxkit.config.model import Node


class Curriculum(Node):
    """Samples that are short at first (arXiv 2108.06084): cut short, and what is cut off is not learned from."""

    start: int = Field(gt=0, description="Tokens that a sample predicts in the first steps.")
    steps: int = Field(gt=0, description="Steps until samples are as long as data.sequence says.")
    multiple: int = Field(8, gt=0, description="Lengths are multiples of this.")
    root: int = Field(1, gt=0, description="They grow with this root of the steps: 1 linearly, 2 fast at first.")

    @model_validator(mode="after")
    def _starts_with_a_multiple(self) -> Curriculum:
        if self.start % self.multiple:
            raise ValueError(f"start {self.start} is no multiple of multiple {self.multiple}; change one of them")
        return self


class Data(Node):
    """The tokens that the model learns from, and those that it is judged by."""

    train: str = Field(description="Prefix of the training tokens: PREFIX.bin and PREFIX.idx.")
    valid: str | None = Field(None, description="Prefix of the held-out tokens; null: no evaluation.")
    split: str | None = Field(
        None, description='Shares of the documents of data.train, as "969,30,1": training, held-out, neither.'
    )
    tokenizer: str | None = Field(None, description="Folder of the tokenizer; it is copied into every checkpoint.")
    sequence: int | None = Field(None, gt=0, description="Tokens that a sample predicts; model.context when left out.")

    curriculum: Curriculum | None = Field(None, description="How the length of samples grows; null: it does not.")

    @model_validator(mode="after")
    def _held_out_once(self) -> Data:
        if self.valid is not None and self.split is not None:
            raise ValueError("valid and split are both given; keep one")
        return self


class BatchWarmup(Node):
    """Steps of fewer samples at first; as Megatron's rampup. Micro-batches stay as they are, and there are fewer."""

    start: int = Field(gt=0, description="Samples of the first steps.")
    increment: int = Field(gt=0, description="Samples by which a step grows.")
    samples: int = Field(gt=0, description="Samples until a step has batch.size of them.")


class Batch(Node):
    """How many samples a step learns from, and how many pass through the model at once."""

    size: int = Field(
        gt=0, description="Samples of one optimiser step. micro x accumulation x mesh.dp when left out, both given."
    )
    micro: int | None = Field(
        None, gt=0, description="Samples of one forward and backward pass; divides size. size when left out."
    )
    accumulation: int | None = Field(
        None, gt=0, description="Passes of a data-parallel rank in one step. What micro leaves of size when left out."
    )
    warmup: BatchWarmup | None = Field(None, description="How steps grow at first; null: they do not.")


class Benchmarks(Node):
    """Benchmarks of lm-evaluation-harness on each checkpoint: what `neoxkit eval --watch` is told."""

    tasks: tuple[str, ...] = Field(min_length=1, description="Names, groups or patterns of benchmarks.")
    include_path: tuple[str, ...] = Field((), description="Folders with more benchmarks, in YAML.")
    num_fewshot: int | None = Field(None, ge=0, description="Examples before each question; null: as the task says.")
    limit: float | None = Field(
        None, gt=0, description="Only so many documents of each, or below 1 that share; null: all."
    )
    device: str = Field("cpu", description="Where they run, beside the training: cpu, or a GPU that is not trained on.")
    tp: int = Field(1, gt=0, description="Devices that the model is divided over for it.")


class Evaluation(Node):
    """How good the model is while training goes on: the loss on held-out data, and benchmarks."""

    every: int | None = Field(None, gt=0, description="Steps between evaluations; null: only after the last step.")
    batches: int | None = Field(
        None, gt=0, description="An evaluation takes so many times batch.size samples; null: all held-out data."
    )
    benchmarks: Benchmarks | None = Field(None, description="What each checkpoint is put to; null: nothing.")
