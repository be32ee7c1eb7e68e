"""Meta's files of Llama, and Mistral's, as a Source: shards merged, rotary pairs apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from math import prod
from pathlib import Path

from torch import Tensor

from neoxkit.checkpoint.format import BLOCK_BYTES, ITEM_BYTES, MODEL
from neoxkit.convert.hf_source import WEIGHTS
from neoxkit.convert.meta_files import MetaFiles
from neoxkit.convert.meta_params import read_params
from neoxkit.errors import ConversionError
from neoxkit.families.layout import Interleaved
from neoxkit.families.schema import Family, expand
from neoxkit.log import note, warn
from neoxkit.nn.decoder import specs
from neoxkit.spec import Box, TensorSpec, rows, whole

_REMEDY = "is params.json the one that belongs to these weights, and are all shards there?"


class MetaSource:
    """A folder of consolidated.NN.pth, or consolidated.safetensors, and params.json.

    Opening checks that params.json and the tensors' names and shapes agree; what neither says is
    assumed and told, or taken from `assume` (see meta_params.ASSUMPTIONS). Raises ConversionError or
    CheckpointError, naming the file, the key or the tensor.
    """

    resumable, training = False, None

    def __init__(self, folder: Path, assume: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.files = MetaFiles(folder)
        params = read_params(folder, self.files, assume or {})
        self.family: Family = params.family
        self.config = params.config
        self.assumed = params.assumed
        self._check_heads()
        self._specs: dict[str, TensorSpec] = self._declared()
        self._rules = {MODEL + rule.ours[0]: rule for rule in expand(self.family, self.config)}
        self._check_tensors()
        self._check_replicas()
        for line in self.assumed:
            note(f"{folder}: assumed {line}")

    @property
    def kind(self) -> str:
        """What `inspect` calls it."""
        return "mistral" if self.family.name == "mistral" else "meta"

    def names(self) -> Sequence[str]:
        """Ours, with component."""
        return list(self._rules)

    def spec(self, name: str) -> TensorSpec:
        """Shape, splits and role, as the decoder declares them."""
        return self._specs[name]

    def dtype(self, name: str) -> str:
        """The dtype of the foreign tensor that holds it."""
        return self.files.dtype(self._rules[name].theirs[0])

    @cached_property
    def lineage(self) -> dict[str, str]:
        """Where this came from and what was assumed, for the manifest."""
        maker = {"meta": "Meta Llama", "mistral": "Mistral"}[self.kind]
        event = {"event": "import", "source": str(self.folder), "format": f"{maker}, {len(self.files.ranks)} shards"}
        return {**event, "assumed": "; ".join(self.assumed)} if self.assumed else event

    @property
    def tokenizer(self) -> Path:
        """The folder that the tokenizer's files are in, if there are any."""
        return self.folder

    def read(self, name: str, want: Box | None = None) -> Tensor:
        """A box of one of our tensors. Of a tensor whose rows lie otherwise, the heads around it are read."""
        rule = self._rules[name]
        box = whole(self._specs[name].shape) if want is None else want
        first, last = box[0]
        if isinstance(rule.layout, Interleaved):
            head = self.config.mixer.head_dim
            heads = (first // head, -(-last // head))
            theirs = self.files.read(rule.theirs[0], (heads[0] * head, heads[1] * head))
            (value,) = Interleaved(heads[1] - heads[0]).split([theirs])
            value = value[first - heads[0] * head : last - heads[0] * head]
        else:
            value = self.files.read(rule.theirs[0], box[0])
        return value[(slice(None), *(slice(*span) for span in box[1:]))].contiguous()

    def stream(self, name: str, want: Box | None = None) -> Iterator[tuple[Box, Tensor]]:
        """Blocks of rows; of queries and keys whole heads."""
        box = whole(self._specs[name].shape) if want is None else want
        most = BLOCK_BYTES // ITEM_BYTES[self.dtype(name)]
        if isinstance(self._rules[name].layout, Interleaved):
            head = self.config.mixer.head_dim * prod(stop - start for start, stop in box[1:])
            most = max(1, most // max(1, head)) * head
        for block in rows(box, most):
            yield block, self.read(name, block)

    def close(self) -> None:
        """Close the files."""
        self.files.close()

    def _check_heads(self) -> None:
        """Each shard holds whole heads, as it does in Meta's model, whose shards hold no replicas of any."""
        shards, mixer = len(self.files.ranks), self.config.mixer
        for kind, count in {"query": mixer.heads, "key/value": mixer.kv_heads}.items():
            if count % shards:
                raise ConversionError(
                    f"{self.folder}: {shards} shards do not divide {count} {kind} heads",
                    "use the files of a smaller model-parallel size",
                )

    def _declared(self) -> dict[str, TensorSpec]:
        """The tensors of the model. Sizes beyond all reason are refused before a model of them is built."""
        c = self.config
        if c.depth > len(self.files.dims) or max(c.width, c.vocab, c.mixer.heads, c.mixer.head_dim) >= 2**31:
            raise ConversionError(
                f"{self.folder}: {c.depth} layers of width {c.width}; the weights are no such model", _REMEDY
            )
        return {MODEL + name: spec for name, spec in specs(c).items()}

    def _check_tensors(self) -> None:
        """Every tensor is there, in the shape that the configuration asks for, and nothing else is."""
        dims = self.files.dims
        expected = {rule.theirs[0]: self._specs[name].shape for name, rule in self._rules.items()}
        if missing := [key for key in expected if key not in dims]:
            raise ConversionError(
                f"{self.folder}: {len(missing)} of {len(expected)} tensors are missing, {missing[0]!r} among them",
                _REMEDY,
            )
        known = {*expected, "output.weight", "rope.freqs"}  # a tied head may lie there once more
        if extra := [key for key in dims if key not in known]:
            raise ConversionError(
                f"{self.folder}: {len(extra)} tensors, {extra[0]!r} among them, belong to nothing in params.json",
                _REMEDY,
            )
        for key, shape in expected.items():
            if (held := self.files.shape(key)) != shape:
                said = f"tensor {key!r} of {len(self.files.ranks)} shards is {list(held)}"
                raise ConversionError(f"{self.folder}: {said}, params.json asks for {list(shape)}", _REMEDY)
            if self.files.dtype(key) not in WEIGHTS:
                raise ConversionError(
                    f"{self.folder}: {key} is {self.files.dtype(key)}",
                    f"weights must be one of {', '.join(sorted(WEIGHTS))}",
                )

    def _check_replicas(self) -> None:
        """Tell of tensors that the shards hold alike, and that are not."""
        apart = dict(self.files.differing_replicas())
        if apart:
            key = max(apart, key=lambda each: apart[each])
            listed = ", ".join(sorted(apart)[:4]) + (" ..." if len(apart) > 4 else "")
            warn(
                f"{self.folder}: {len(apart)} tensors differ between shards, by up to {apart[key]:g} ({key}); "
                f"those of {self.files.names[0]} are taken: {listed}"
            )
