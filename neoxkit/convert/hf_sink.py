"""A Hugging Face folder as a Sink: our tensors under their names, in their layout."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

from neoxkit.checkpoint import Source
from neoxkit.checkpoint.dtypes import TORCH, octets
from neoxkit.checkpoint.folder import CLAIM
from neoxkit.checkpoint.format import CONFIG, ITEM_BYTES, MODEL
from neoxkit.checkpoint.output import OutputFile
from neoxkit.checkpoint.safetensors_file import tensor_bytes
from neoxkit.checkpoint.store import Place, StorePath
from neoxkit.checkpoint.store_attempt import attempt_at
from neoxkit.convert.tokenizer import pretty
from neoxkit.data.tokenizer import NAMES
from neoxkit.errors import ConversionError
from neoxkit.families.layout import Same
from neoxkit.families.schema import Family, Rule, expand
from neoxkit.families.spelling import write_config
from neoxkit.spec import Box, Run, volume, whole

ORIGIN = "neoxkit.json"
"""The file that says which weights an exported model was made of."""

OLDEST = "4.45.0"
"""The oldest transformers that what is written is meant for; its `transformers_version` says so.

Before it, tokenizers 0.19 cannot read what later ones write."""


_WEIGHTS = re.compile(r".+\.(safetensors|bin)(\.index\.json)?")
_BESIDE = {"config.json", CLAIM, ORIGIN, "README.md", ".gitattributes", *NAMES}


@dataclass(frozen=True, slots=True)
class Slot:
    """One of their tensors: its dtype and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes of the tensor."""
        return tensor_bytes(self.dtype, self.shape)


def plan_shards(family: Family, source: Source, most: int) -> dict[str, dict[str, Slot]]:
    """Their tensors by weight file, each file at most `most` bytes (but for a larger tensor).

    Raises ConversionError when tensors that are one of theirs have different dtypes.
    """
    shards: list[dict[str, Slot]] = [{}]
    used = 0
    for rule in expand(family, source.config):
        for key, slot in _slots(rule, source):
            if used and used + slot.bytes > most:
                shards.append({})
                used = 0
            shards[-1][key] = slot
            used += slot.bytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{n:05d}-of-{len(shards):05d}.safetensors": shard for n, shard in enumerate(shards, 1)}


def _slots(rule: Rule, source: Source) -> list[tuple[str, Slot]]:
    """A rule's tensors of theirs, found by joining ours on the meta device."""
    found = {source.dtype(MODEL + name) for name in rule.ours}
    if len(found) > 1:
        raise ConversionError(f"{' and '.join(rule.ours)} are {' and '.join(sorted(found))}", "choose one with --dtype")
    ours = [torch.empty(source.spec(MODEL + name).shape, device="meta") for name in rule.ours]
    theirs = zip(rule.theirs, rule.layout.join(ours), strict=True)
    return [(key, Slot(min(found), tuple(tensor.shape))) for key, tensor in theirs]


def described(family: Family, source: Source, shards: Mapping[str, Mapping[str, Slot]]) -> dict[str, bytes]:
    """The files that say what the weight files are: config.json, and an index when there are several."""
    slots = {key: slot for shard in shards.values() for key, slot in shard.items()}
    config = {**write_config(family, source.config), **_dtype_keys(slots), "transformers_version": OLDEST}
    files = {CONFIG: pretty(config)}
    if len(shards) > 1:
        elements = sum(volume(whole(slot.shape)) for slot in slots.values())
        about = {"total_parameters": elements, "total_size": sum(slot.bytes for slot in slots.values())}
        file_of = {key: name for name, shard in shards.items() for key in shard}
        files["model.safetensors.index.json"] = pretty({"metadata": about, "weight_map": file_of})
    return files


class Joining:
    """Blocks of our tensors become tensors of theirs: what is fused waits until all of it is whole.

    A subclass says in `_put` where theirs go; `shards` are their tensors by weight file.
    """

    def __init__(self, family: Family, source: Source, shards: Mapping[str, Mapping[str, Slot]]) -> None:
        self._rules = {name: rule for rule in expand(family, source.config) for name in rule.ours}
        self._shapes = {name: source.spec(MODEL + name).shape for name in self._rules}
        self._waiting: dict[str, Tensor] = {}
        self._left: dict[str, int] = {}  # elements that a waiting tensor lacks
        self._file_of = {key: name for name, shard in shards.items() for key in shard}
        self.bytes = sum(slot.bytes for shard in shards.values() for slot in shard.values())

    def names(self) -> list[str]:
        """What to write, those of one rule side by side, so that least is kept in memory."""
        return [MODEL + name for name in self._rules]

    def write(self, name: str, box: Box, value: Tensor, run: Run | None = None) -> None:
        """Take a block. What is fused with others waits until all of them are whole. See Sink."""
        assert run is None, "a Hugging Face file holds no runs"
        bare = name.removeprefix(MODEL)
        rule = self._rules[bare]
        if isinstance(rule.layout, Same):
            self._put(rule.theirs[0], box, value)
            return
        for each in rule.ours:
            if each not in self._waiting:
                self._waiting[each] = torch.empty(self._shapes[each], dtype=value.dtype)
                self._left[each] = volume(whole(self._shapes[each]))
        self._waiting[bare][tuple(slice(*span) for span in box)] = value
        self._left[bare] -= volume(box)
        if not any(self._left[each] for each in rule.ours):
            joined = rule.layout.join([self._waiting.pop(each) for each in rule.ours])
            for key, tensor in zip(rule.theirs, joined, strict=True):
                self._put(key, whole(tuple(tensor.shape)), tensor)

    def _put(self, key: str, box: Box, value: Tensor) -> None:
        """Take a block of one of their tensors."""
        raise NotImplementedError


class HuggingFaceSink(Joining):
    """Writes a model's folder aside, and names it once it is whole and on stable storage.

    `source` is what will be copied from; `files` is what else belongs in the folder, by name.
    Leaving a `with` block without a commit removes what was written. Raises ConversionError when the
    model does not fit the family, CheckpointError when `folder` exists (with `force`: when it exists
    and is no model's folder).
    """

    def __init__(
        self, folder: Place, family: Family, source: Source, files: Mapping[str, bytes], most: int, force: bool = False
    ) -> None:
        self._attempt = attempt_at(folder, not_a_model, force)
        self.folder: Place = self._attempt.folder
        shards = plan_shards(family, source, most)
        super().__init__(family, source, shards)
        self._files = {**files, **described(family, source, shards)}
        self._config = self._files.pop(CONFIG)
        self._threads = ThreadPoolExecutor(3)
        self._outputs: dict[str, OutputFile] = {}
        try:
            self._attempt.make(self.bytes + sum(map(len, self._files.values())))
            for name, shard in shards.items():
                tensors = {key: (slot.dtype, slot.shape) for key, slot in shard.items()}
                self._outputs[name] = self._attempt.output(name, tensors, ITEM_BYTES, {"format": "pt"})
        except BaseException:
            self.abort()
            raise

    def __enter__(self) -> HuggingFaceSink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.abort()

    def commit(self) -> None:
        """Name the folder. Nothing is visible before this."""
        for path, output in self._outputs.items():
            assert not output.incomplete(), f"{path}: {output.incomplete()[0]} was not written whole"
            output.finish(self._threads)
        self._outputs.clear()
        for name, data in self._files.items():
            self._attempt.save(name, data)
        self._attempt.commit(CONFIG, self._config)
        self._threads.shutdown()

    def abort(self) -> None:
        """Remove what was written. After a commit, nothing."""
        for output in self._outputs.values():
            output.close()
        self._outputs.clear()
        self._threads.shutdown()
        self._attempt.abort()

    def _put(self, key: str, box: Box, value: Tensor) -> None:
        self._outputs[self._file_of[key]].write(key, box, octets(value), self._threads)


def not_a_model(folder: Place) -> str | None:
    """Why a folder is other, or more, than a Hugging Face model, in words; None when it is one."""
    names = sorted(path.name for path in folder.iterdir())
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        config = None
    known = isinstance(config, dict) and not {"model_type", "architectures"}.isdisjoint(config)
    begun = isinstance(folder, StorePath) and CLAIM in names  # what an interrupted export left
    if not begun and not (known and any(_WEIGHTS.fullmatch(name) for name in names)):
        return "is no Hugging Face model"
    for name in names:
        ours = name in _BESIDE or _WEIGHTS.fullmatch(name) or name.startswith("LICENSE")
        if not ours or (folder / name).is_dir():
            return f"is not only a Hugging Face model: {name} is there"
    return None


def _dtype_keys(slots: Mapping[str, Slot]) -> dict[str, str]:
    """The dtype that a model is loaded in, in the spelling of transformers 4 and of 5."""
    ((dtype, _),) = Counter(slot.dtype for slot in slots.values()).most_common(1)
    name = str(TORCH[dtype]).removeprefix("torch.")
    return {"torch_dtype": name, "dtype": name}
