"""A Hugging Face folder as a Source: its tensors under our names, in our layout."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from neoxkit.checkpoint.format import BLOCK_BYTES, ITEM_BYTES, MODEL
from neoxkit.checkpoint.store import Place
from neoxkit.config.model import ModelConfig
from neoxkit.convert.weight_files import WeightFiles
from neoxkit.errors import CheckpointError, ConversionError
from neoxkit.families import recognise
from neoxkit.families.layout import Same
from neoxkit.families.schema import Family, Rule, expand
from neoxkit.families.spelling import read_config, unknown_keys
from neoxkit.log import warn
from neoxkit.nn.decoder import specs
from neoxkit.spec import Box, TensorSpec, rows, whole

WEIGHTS = frozenset({"F16", "BF16", "F32", "F64"})
"""Dtypes of weights as they are; in another they are quantised, and mean nothing without their scales."""


class HuggingFaceSource:
    """A model that transformers wrote, of any release, or another program in its format.

    Opening checks that the configuration and the tensors' names and shapes agree. Raises
    ConversionError or CheckpointError, naming the file, the key or the tensor.
    """

    kind = "huggingface"
    resumable, training = False, None

    def __init__(self, folder: Place) -> None:
        self.folder = folder
        where = folder / "config.json"
        try:
            theirs: Any = json.loads(where.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"{where}: {error.strerror}", "choose a model's folder") from error
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{where}: not valid JSON ({error})", "fetch it again") from error
        if not isinstance(theirs, dict):
            raise CheckpointError(f"{where}: not a JSON object", "fetch it again")
        if theirs.get("quantization_config"):
            raise ConversionError(f"{where}: the weights are quantised", "import the model before its quantisation")
        self.theirs = theirs
        self.family: Family = recognise(theirs, str(where))
        self.config: ModelConfig = read_config(self.family, theirs, str(where))
        if unknown := unknown_keys(self.family, theirs):
            warn(f"{where}: keys that neoxkit does not know are passed over: {', '.join(unknown)}")
        self.files = WeightFiles(folder)
        self._specs = self._declared(where)
        self._rules = {MODEL + name: rule for rule in expand(self.family, self.config) for name in rule.ours}
        self._last: tuple[Rule, dict[str, Tensor]] | None = None
        self._check_tensors()

    def names(self) -> Sequence[str]:
        """Ours, with component, those of one rule side by side."""
        return list(self._rules)

    def spec(self, name: str) -> TensorSpec:
        """Shape, splits and role, as the decoder declares them."""
        return self._specs[name]

    def dtype(self, name: str) -> str:
        """The dtype of the foreign tensor that holds it."""
        return self.files.places[self._rules[name].theirs[0]].dtype

    @cached_property
    def lineage(self) -> dict[str, str]:
        """Where this came from, for the manifest."""
        return {"event": "import", "source": str(self.folder), "format": f"Hugging Face {self.family.architecture}"}

    @property
    def tokenizer(self) -> Place:
        """The folder that the tokenizer's files are in, if there are any."""
        return self.folder

    def read(self, name: str, want: Box | None = None) -> Tensor:
        """A box of one of our tensors. A fused foreign tensor is read whole, and kept for its other parts."""
        rule = self._rules[name]
        box = whole(self._specs[name].shape) if want is None else want
        if isinstance(rule.layout, Same):
            value = self.files.read(rule.theirs[0], box[0])
            return value[(slice(None), *(slice(*span) for span in box[1:]))].contiguous()
        if self._last is None or self._last[0] is not rule:
            self._last = None  # before the next is read: two at once would double the memory
            ours = rule.layout.split([self.files.read(key) for key in rule.theirs])
            self._last = rule, {MODEL + each: value for each, value in zip(rule.ours, ours, strict=True)}
        return self._last[1][name][tuple(slice(*span) for span in box)].contiguous()

    def stream(self, name: str, want: Box | None = None) -> Iterator[tuple[Box, Tensor]]:
        """Blocks of rows; of a fused tensor one block, since it is in memory whole already."""
        box = whole(self._specs[name].shape) if want is None else want
        fused = not isinstance(self._rules[name].layout, Same)
        for block in [box] if fused else rows(box, BLOCK_BYTES // ITEM_BYTES[self.dtype(name)]):
            yield block, self.read(name, block)

    def close(self) -> None:
        """Close the files and drop what is kept."""
        self._last = None
        self.files.close()

    def _declared(self, where: Place) -> dict[str, TensorSpec]:
        """The tensors of the model. Sizes beyond all reason are refused before a model of them is built."""
        sizes = self.config.width, self.config.vocab, self.config.mlp.hidden, self.config.mixer.heads
        if self.config.depth > len(self.files.places) or max(*sizes, self.config.mixer.head_dim) >= 2**31:
            raise ConversionError(
                f"{where}: {self.config.depth} layers of width {self.config.width}; the weights are no such model",
                "is config.json the one that belongs to these weights?",
            )
        return {MODEL + name: spec for name, spec in specs(self.config).items()}

    def _check_tensors(self) -> None:
        """Every rule's tensors are there, in the shape that the configuration asks for, and nothing else is."""
        places = self.files.places
        expected = {key: shape for rule in self._rules.values() for key, shape in self._shapes(rule)}
        if missing := [key for key in expected if key not in places]:
            raise ConversionError(
                f"{self.folder}: {len(missing)} of {len(expected)} tensors are missing, {missing[0]!r} among them",
                "is config.json the one that belongs to these weights?",
            )
        for key, shape in expected.items():
            if places[key].shape != shape:
                raise ConversionError(
                    f"{self.folder}: tensor {key!r} is {list(places[key].shape)}, config.json asks for {list(shape)}",
                    "is config.json the one that belongs to these weights?",
                )
        extra = [k for k in places if k not in expected and not any(re.search(b, k) for b in self.family.buffers)]
        extra = [key for key in extra if not self._is_tied_head(key)]
        if extra:
            raise ConversionError(
                f"{self.folder}: {len(extra)} tensors, {extra[0]!r} among them, belong to nothing in config.json",
                "is config.json the one that belongs to these weights?",
            )
        for rule in self._rules.values():
            dtypes = {places[key].dtype for key in rule.theirs}
            if not dtypes <= WEIGHTS or len(dtypes) > 1:
                raise ConversionError(
                    f"{self.folder}: {', '.join(rule.theirs)} is {', '.join(sorted(dtypes))}",
                    f"weights must be one of {', '.join(sorted(WEIGHTS))}",
                )

    def _shapes(self, rule: Rule) -> list[tuple[str, tuple[int, ...]]]:
        """The shapes of a rule's foreign tensors, from those of ours, on the meta device."""
        ours = [torch.empty(self._specs[MODEL + name].shape, device="meta") for name in rule.ours]
        return [(key, tuple(t.shape)) for key, t in zip(rule.theirs, rule.layout.join(ours), strict=True)]

    def _is_tied_head(self, key: str) -> bool:
        """Is this the head that a tied model's file holds once more? Raises when it differs from the embedding."""
        if not self.config.tied:
            return False
        untied = expand(self.family, self.config.model_copy(update={"tied": False}))
        heads = {name for rule in untied if rule.ours == ("head.weight",) for name in rule.theirs}
        if key not in heads:
            return False
        head, embed = self.files.read(key), self.read(MODEL + "embed.weight")
        if head.dtype != embed.dtype or not torch.equal(head, embed):
            raise ConversionError(
                f"{self.folder}: config.json ties the head to the embedding, but {key!r} differs from it",
                "set tie_word_embeddings to false",
            )
        return True
