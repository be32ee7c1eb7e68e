"""What a run learns from and is judged by, and how much of it at a time."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

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


class Source(Node):
    """Token files, and how much of them is read."""

    tokens: str = Field(description="Prefix of the tokens: PREFIX.bin and PREFIX.idx.")
    weight: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Share of the samples, of any sum; null: 1, and in a run of epochs what the source has.",
    )
    labels: str | None = Field(
        None,
        description="Prefix of labels beside the tokens, -100 where none is learned; null: what `neoxkit data chat` "
        "wrote with them, if it did.",
    )


class FillInMiddle(Node):
    """Documents whose middle comes last, so that the model learns to fill gaps (arXiv 2207.14255)."""

    rate: float = Field(0.5, gt=0, le=1, description="Share of documents that are turned.")
    spm_rate: float = Field(0.5, ge=0, le=1, description="Share of these that have the suffix first.")
    prefix: str = Field("<fim_prefix>", description="Token before the beginning; one of the tokenizer's.")
    middle: str = Field("<fim_middle>", description="Token before the middle.")
    suffix: str = Field("<fim_suffix>", description="Token before the end.")


def _read_sources(given: object) -> object:
    """A prefix, or a source, is a list of one, and a list may have prefixes."""
    if isinstance(given, str | dict | Source):
        given = (given,)
    if not isinstance(given, list | tuple):
        raise ValueError(f"{given} is no prefix of tokens; name one, or a list of several")
    return tuple({"tokens": each} if isinstance(each, str) else each for each in given)


def _write_sources(sources: tuple[Source, ...]) -> object:
    """One source of which nothing is said but its prefix is that prefix."""
    if len(sources) == 1 and sources[0] == Source(tokens=sources[0].tokens):
        return sources[0].tokens
    return [source.model_dump(mode="json") for source in sources]


def _some(sources: tuple[Source, ...]) -> tuple[Source, ...]:
    if not sources:
        raise ValueError("an empty list; name tokens")
    return sources


Sources = Annotated[
    tuple[Source, ...], BeforeValidator(_read_sources), AfterValidator(_some), PlainSerializer(_write_sources)
]


class Data(Node):
    """The tokens that the model learns from, and those that it is judged by."""

    train: Sources = Field(
        description="Prefix of the training tokens, PREFIX.bin and PREFIX.idx; or a list of several."
    )
    valid: Sources | None = Field(
        None, description="Prefix of the held-out tokens, or a list as for train; null: no evaluation."
    )
    split: str | None = Field(
        None, description='Shares of the documents of data.train, as "969,30,1": training, held-out, neither.'
    )
    tokenizer: str | None = Field(
        None, description="The tokenizer, as `data tokenize` takes it; it is copied into every checkpoint."
    )
    sequence: int | None = Field(None, gt=0, description="Tokens that a sample predicts; model.context when left out.")
    packing: Literal["packed", "whole", "single", "best_fit"] = Field(
        "packed",
        description="packed: documents end to end, cut into samples (gpt-neox's order); whole: as many whole documents "
        "as a sample holds; best_fit: those that fill it best; single: one.",
    )
    within_documents: bool | None = Field(
        None,
        description="Whether attention and positions stay within a document, and its first token is not foretold; "
        "null: unless packing is packed.",
    )
    mask_after_end: bool = Field(
        False, description="Whether what follows a token that ends a document is not learned (eod_mask_loss)."
    )
    blend: Literal["exact", "gpt-neox"] = Field(
        "exact",
        description="How sources take turns. exact: by largest remainder; gpt-neox: whichever is furthest behind.",
    )
    weigh_by_documents: float | None = Field(
        None, ge=0, description="Weights from the sources' numbers of documents, to this power, as gpt-neox has them."
    )
    fill_in_middle: FillInMiddle | None = Field(None, description="Documents turned to fill gaps; null: none.")
    cache: str | None = Field(
        None, description="Folder for the indexes of samples; null: PREFIX.index, where there are many documents."
    )

    curriculum: Curriculum | None = Field(None, description="How the length of samples grows; null: it does not.")

    @model_validator(mode="after")
    def _held_out_once(self) -> Data:
        if self.valid is not None and self.split is not None:
            raise ValueError("valid and split are both given; keep one")
        return self

    @model_validator(mode="after")
    def _weighed_once(self) -> Data:
        if self.weigh_by_documents is not None and any(source.weight is not None for source in self.train):
            raise ValueError("weigh_by_documents and the weight of a source are both given; keep one")
        return self

    @property
    def weighed(self) -> bool:
        """Whether several sources are taken by weights that somebody gave."""
        given = self.weigh_by_documents is not None or any(source.weight for source in self.train)
        return given and len(self.train) > 1

    @property
    def isolated(self) -> bool:
        """Whether attention and positions stay within documents."""
        return self.packing != "packed" if self.within_documents is None else self.within_documents


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
