"""A Hugging Face folder as a Sink: our tensors under their names, in their layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from neoxkit.checkpoint import dtypes as dtype_names
from neoxkit.checkpoint.dtypes import TORCH
from neoxkit.checkpoint.folder import attempt_path, exists, flush, new_attempt, put_in_place, remove, write_durably
from neoxkit.checkpoint.format import ITEM_BYTES, MODEL
from neoxkit.checkpoint.output import OutputFile
from neoxkit.checkpoint.safetensors_file import tensor_bytes
from neoxkit.config.model import ModelConfig
from neoxkit.convert.tokenizer import pretty
from neoxkit.errors import CheckpointError
from neoxkit.families.layout import Same
from neoxkit.families.schema import Family, Rule, expand
from neoxkit.families.spelling import write_config
from neoxkit.nn.decoder import specs
from neoxkit.spec import Box, Run, volume, whole

OLDEST = "4.40.0"
"""The oldest transformers that what is written is meant for; its `transformers_version` says so."""


class HuggingFaceSink:
    """Writes a model's folder aside, and names it once it is whole and on stable storage.

    `dtypes` gives each of our tensors' dtypes, `files` what else belongs in the folder. Weights lie
    in files of at most `most` bytes (but for a larger tensor). Raises ConversionError when the model
    does not fit the family, CheckpointError when `folder` exists (with `force`: when it exists and is
    no model's folder).
    """

    def __init__(
        self,
        folder: Path,
        family: Family,
        config: ModelConfig,
        dtypes: Mapping[str, str],
        files: Mapping[str, bytes],
        most: int = 5_000_000_000,
        force: bool = False,
    ) -> None:
        self.folder = folder.absolute()
        self._force = force
        self._rules = expand(family, config)
        self._specs = specs(config)
        self._dtypes = {name: dtypes[MODEL + name] for rule in self._rules for name in rule.ours}
        self._rule_of = {name: rule for rule in self._rules for name in rule.ours}
        self._waiting: dict[str, Tensor] = {}
        self._left: dict[str, int] = {}  # elements that a waiting tensor lacks
        theirs = {**write_config(family, config), **self._dtype_keys(), "transformers_version": OLDEST}
        self._files = {"config.json": pretty(theirs), **files}
        self._check()
        self._aside = attempt_path(self.folder, new_attempt())
        self._threads = ThreadPoolExecutor(3)
        self._outputs: dict[str, OutputFile] = {}
        self._file_of: dict[str, str] = {}
        try:
            self._start(most)
        except BaseException:
            self.abort()
            raise

    def names(self) -> list[str]:
        """What to write, those of one rule side by side, so that least is kept in memory."""
        return [MODEL + name for rule in self._rules for name in rule.ours]

    def write(self, name: str, box: Box, value: Tensor, run: Run | None = None) -> None:
        """Take a block. What is fused with others waits until all of them are whole. See Sink."""
        assert run is None, "a Hugging Face file holds no runs"
        bare = name.removeprefix(MODEL)
        rule = self._rule_of[bare]
        if isinstance(rule.layout, Same):
            self._put(rule.theirs[0], box, value)
            return
        for each in rule.ours:
            if each not in self._waiting:
                shape = self._specs[each].shape
                self._waiting[each] = torch.empty(shape, dtype=value.dtype)
                self._left[each] = volume(whole(shape))
        self._waiting[bare][tuple(slice(*span) for span in box)] = value
        self._left[bare] -= volume(box)
        if not any(self._left[each] for each in rule.ours):
            joined = rule.layout.join([self._waiting.pop(each) for each in rule.ours])
            for key, tensor in zip(rule.theirs, joined, strict=True):
                self._put(key, whole(tuple(tensor.shape)), tensor)

    def commit(self) -> None:
        """Name the folder. Raises CheckpointError when a tensor was not written whole."""
        for path, output in self._outputs.items():
            if missing := output.incomplete():
                raise CheckpointError(
                    f"{self.folder / path}: {missing[0]} was not written whole", "report this as a bug"
                )
            output.finish(self._threads)
        self._outputs.clear()
        for name, data in self._files.items():
            write_durably(self._aside / name, data)
        flush(self._aside)
        put_in_place(self._aside, self.folder, self._force)
        self._threads.shutdown()

    def abort(self) -> None:
        """Remove what was written."""
        for output in self._outputs.values():
            output.close()
        self._outputs.clear()
        self._threads.shutdown()
        if self._aside.exists():
            remove(self._aside)

    def _put(self, key: str, box: Box, value: Tensor) -> None:
        self._outputs[self._file_of[key]].write(key, box, dtype_names.octets(value), self._threads)

    def _check(self) -> None:
        if not self.folder.exists():
            return
        if not self._force:
            raise exists(self.folder)
        model = (self.folder / "config.json").is_file() and not (self.folder / "manifest.json").exists()
        if not self.folder.is_dir() or not (model or not any(self.folder.iterdir())):
            raise CheckpointError(f"{self.folder} exists and is no Hugging Face model", "choose another destination")

    def _start(self, most: int) -> None:
        self._aside.mkdir(parents=True)
        shards: list[dict[str, tuple[str, tuple[int, ...]]]] = [{}]
        used, total, elements = 0, 0, 0
        for key, (dtype, shape) in self._theirs():
            size = tensor_bytes(dtype, shape)
            if used and used + size > most:
                shards.append({})
                used = 0
            shards[-1][key] = dtype, shape
            used, total, elements = used + size, total + size, elements + size // ITEM_BYTES[dtype]
        for number, tensors in enumerate(shards, 1):
            several = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            name = "model.safetensors" if len(shards) == 1 else several
            self._outputs[name] = OutputFile(self._aside / name, tensors, ITEM_BYTES, {"format": "pt"})
            self._file_of.update(dict.fromkeys(tensors, name))
        if len(shards) > 1:
            about = {"metadata": {"total_parameters": elements, "total_size": total}, "weight_map": self._file_of}
            self._files["model.safetensors.index.json"] = pretty(about)

    def _theirs(self) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
        """Their tensors: key, dtype and shape, found by joining ours on the meta device."""
        for rule in self._rules:
            ours = [torch.empty(self._specs[name].shape, device="meta") for name in rule.ours]
            for key, tensor in zip(rule.theirs, rule.layout.join(ours), strict=True):
                yield key, (self._dtype(rule), tuple(tensor.shape))

    def _dtype(self, rule: Rule) -> str:
        found = {self._dtypes[name] for name in rule.ours}
        if len(found) > 1:
            raise CheckpointError(
                f"{' and '.join(rule.ours)} are {' and '.join(sorted(found))}", "choose one with --dtype"
            )
        return found.pop()

    def _dtype_keys(self) -> dict[str, str]:
        """The dtype that a model is loaded in, in the spelling of transformers 4 and of 5."""
        counts: dict[str, int] = {}
        for dtype in self._dtypes.values():
            counts[dtype] = counts.get(dtype, 0) + 1
        most = str(TORCH[max(counts, key=lambda dtype: counts[dtype])]).removeprefix("torch.")
        return {"torch_dtype": most, "dtype": most}
