"""A gpt-neox checkpoint as a Source: its weights under our names, whole, whatever its parallelism was."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from torch import Tensor

from neoxkit.checkpoint.format import BLOCK_BYTES, ITEM_BYTES, MODEL, bare
from neoxkit.checkpoint.store import Place as AnyPlace
from neoxkit.config.model import ModelConfig
from neoxkit.config.neox.network import USED
from neoxkit.config.neox.vocabulary import spelled
from neoxkit.convert.neox.architecture import build_config
from neoxkit.convert.neox.folder import find
from neoxkit.convert.neox.layout import Place, Sum, places
from neoxkit.convert.neox.masters import Master, ranks, rounds, stale
from neoxkit.convert.neox.optimizer import MASTER, WITHOUT
from neoxkit.convert.neox.settings import read_settings
from neoxkit.convert.neox.states import has_states, read_states
from neoxkit.convert.neox.tensors import Key, Tensors, read_tensors
from neoxkit.convert.neox.training import Training, training
from neoxkit.convert.pickles.storage import Files
from neoxkit.data.tokenizer.kinds import open_tokenizer
from neoxkit.errors import CheckpointError, ConfigError, ConversionError, DataError
from neoxkit.log import note, warn
from neoxkit.nn.decoder import specs
from neoxkit.spec import Box, TensorSpec, rows, whole

WEIGHTS = ("F16", "BF16", "F32", "F64")

ASSUMPTIONS: Mapping[str, tuple[str, ...]] = {"gqa-layout": ("grouped", "per-head"), "row-bias": ("sum", "copy")}
"""What files may not tell, and the values that can be given for it.

gqa-layout: how a rank's query_key_value lies when there are fewer key/value heads than heads. grouped:
[Q | K | V], since 2024-11-14. per-head: for each query head its query and a share of K and V, before.
row-bias: whether the ranks' biases of attention.dense and mlp.linear2 add up (sum, with gpt_j_residual)
or are each the bias (copy).
"""

_SURE_DEEPSPEED = (0, 16)
"""DeepSpeed 0.16.0 was released on 2024-11-25, when gpt-neox had changed its layout (2024-11-14)."""


class NeoxSource:
    """The weights that gpt-neox saved, of any of its generations, with any tensor and pipeline parallel size.

    `path` is a global_step folder, or the one with the file `latest`. `settings` are YAML files whose
    values go before those of the checkpoint's own. `assume` says what the files do not: see ASSUMPTIONS.

    With `state`, the optimizer's masters and moments are its tensors too, where there are any, and
    `training` is the rest of what a run goes on from.

    Opening reads no tensors but checks names and shapes. Raises ConversionError or CheckpointError,
    naming the file, the setting or the tensor.
    """

    kind = "gpt-neox"

    def __init__(
        self,
        path: Path,
        settings: Sequence[Path] = (),
        assume: Mapping[str, str] | None = None,
        state: bool = False,
    ) -> None:
        folder = find(path)
        if folder is None:
            raise CheckpointError(f"{path}: no gpt-neox checkpoint", "choose a folder with mp_rank_00_model_states.pt")
        self.folder = folder
        self._assumed: dict[str, str] = {}
        self._files = Files()
        self._differing: set[str] = set()
        self.tensors: Tensors = read_tensors(folder)
        _check_blocks(self.tensors)
        self.settings = read_settings(folder, settings, USED)
        self.config: ModelConfig = build_config(self.tensors, self.settings, self._files)
        given = check_assumptions(assume or {})
        grouped = self._grouped(given.get("gqa-layout"))
        self._assumed.update(given)
        add = given.get("row-bias", "sum" if self.config.residual == "parallel" else "copy") == "sum"
        self._specs = {MODEL + name: spec for name, spec in specs(self.config).items()}
        self._places: dict[str, Place] = {}
        self._keys: dict[str, Key] = {}
        for name, key, place in places(self.config, self.tensors, self.tensors.places, grouped, add):
            self._places[MODEL + name], self._keys[MODEL + name] = place, key
        self._check()
        self._masters: dict[str, Place] = {}
        self.training: Training | None = None
        if state and self.resumable:
            self._add_state(grouped, add)

    @cached_property
    def tokenizer(self) -> AnyPlace:
        """What the settings name, if it is here and can be opened; or the folder."""
        said = [self.settings.get(key) for key in ("tokenizer_type", "vocab_file", "merge_file")]
        kind, path, merges = (each if isinstance(each, str) else None for each in said)
        kind = (kind or "").lower()
        named = spelled(kind, path, merges)
        if named is None or kind == "tiktokentokenizer":  # which the network would be asked for
            return self.folder
        try:
            return open_tokenizer(named).path
        except (DataError, ModuleNotFoundError) as error:
            warn(f"{named}, which the settings name: {error}")
            return self.folder

    @property
    def resumable(self) -> bool:
        """Whether there is state of an optimizer, be it whole or not."""
        return has_states(self.tensors)

    def _add_state(self, grouped: bool, add: bool) -> None:
        """The optimizer's tensors under our names. See `masters` for how they follow the weights'."""
        states = read_states(self.tensors, self._files)
        weights = dict(self._places)
        for kind, parts in states.places.items():
            for name, key, place in places(self.config, self.tensors, parts, grouped, add and kind == MASTER):
                ours = f"optimizer/{kind}/{name}"
                if kind == MASTER:
                    self._masters[MODEL + name] = place
                    if place.dtype == weights[MODEL + name].dtype:
                        continue  # in fp32 the weights are the masters
                    place = Master(place, weights[MODEL + name])
                self._places[ours], self._keys[ours] = place, key
                self._specs[ours] = self._specs[MODEL + name]
        shared = {
            name.removeprefix(MODEL): self.tensors.tp
            for name, place in weights.items()
            if isinstance(place, Sum) and self.tensors.tp > 1
        }
        own = [self._specs[name] for name in weights]
        self.training = training(self.tensors, self.settings, states, own, shared)

    def names(self) -> Sequence[str]:
        """Ours, with component, those of one foreign tensor side by side."""
        return list(self._places)

    def spec(self, name: str) -> TensorSpec:
        """Shape, splits and role, as the decoder declares them."""
        return self._specs[name]

    def dtype(self, name: str) -> str:
        """The dtype of the foreign tensor that holds it."""
        return self._places[name].dtype

    @cached_property
    def lineage(self) -> dict[str, str]:
        """Where this came from, for the manifest, and what was assumed on the way."""
        event = {"event": "import", "source": str(self.folder), "format": "gpt-neox"}
        if self._assumed:
            event["assumed"] = ", ".join(f"{key}={value}" for key, value in self._assumed.items())
        return event

    @property
    def files(self) -> Tensors:
        """The files that hold the weights, and the weights' bytes."""
        return self.tensors

    def read(self, name: str, want: Box | None = None) -> Tensor:
        """A box of one of our tensors. Warns of ranks which differ in what they should hold alike."""
        box = whole(self._specs[name].shape) if want is None else want
        if name in self._masters:
            self._check_master(name, box[0])
        value = self._places[name].read(self._files, *box[0], lambda most: self._differs(name, most))
        return value[(slice(None), *(slice(*span) for span in box[1:]))].contiguous()

    def stream(self, name: str, want: Box | None = None) -> Iterator[tuple[Box, Tensor]]:
        """Blocks of rows."""
        box = whole(self._specs[name].shape) if want is None else want
        for block in rows(box, BLOCK_BYTES // ITEM_BYTES[self.dtype(name)]):
            yield block, self.read(name, block)

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def _check_master(self, name: str, span: tuple[int, int]) -> None:
        """Raise ConversionError where masters, on any rank, do not round to the weights in these rows."""
        pairs = zip(ranks(self._masters[name]), ranks(self._places[name]), strict=True)
        for master, weight in pairs:
            values = master.read(self._files, *span, _silent), weight.read(self._files, *span, _silent)
            if not rounds(*values) and (count := int(stale(*values).sum())):
                raise ConversionError(
                    f"{self.folder}: {count} of {values[0].numel()} fp32 masters of {name.removeprefix(MODEL)} in rows "
                    f"{span[0]} to {span[1]} do not round to the weights: gpt-neox leaves masters as they were when "
                    f"it loads weights alone",
                    WITHOUT,
                )

    def _differs(self, name: str, most: float) -> None:
        layer, key = self._keys[name]
        if name not in self._differing:
            self._differing.add(name)
            kind = name.removesuffix(bare(name)).removeprefix("optimizer/").removeprefix(MODEL)
            warn(
                f"{self.folder}: {kind.replace('/', ' of ')}{key!r} of layer {layer} should be the same on all "
                f"{self.tensors.tp} ranks, but differs by up to {most:.3g}; {name.removeprefix(MODEL)} is their mean"
            )

    def _grouped(self, given: str | None) -> bool:
        """Whether query_key_value is [Q | K | V]. Raises ConversionError when nothing tells."""
        mixer = self.config.mixer
        if mixer.kv_heads == mixer.heads:
            if given is not None:
                raise ConversionError(
                    f"{self.folder}: --assume gqa-layout={given}: as many key/value heads as heads have one layout",
                    "leave it out",
                )
            return False
        if given is not None:
            return given == "grouped"
        version = self.tensors.about.get("ds_version")
        match = re.match(r"(\d{1,4})\.(\d{1,4})\.", version) if isinstance(version, str) else None
        if self.tensors.generation < 3:
            layout, why = "per-head", "its names are those of before 2024-09-07, and the layout changed on 2024-11-14"
        elif match and (int(match[1]), int(match[2])) >= _SURE_DEEPSPEED:
            layout, why = "grouped", f"DeepSpeed {version} wrote it, and the layout changed before its release"
        else:
            raise ConversionError(
                f"{self.folder}: {mixer.kv_heads} key/value heads of {mixer.heads}, and nothing tells in which of two "
                f"layouts query_key_value is; wrong, the model would be silently another",
                "import it with --assume gqa-layout=grouped (since 2024-11-14) or --assume gqa-layout=per-head",
            )
        note(f"assumed gqa-layout={layout}: {why}; --assume gqa-layout=... says otherwise")
        self._assumed["gqa-layout"] = layout
        return layout == "grouped"

    def _check(self) -> None:
        """Every tensor that the configuration asks for is there, in its shape, and nothing else is."""
        for name, spec in self._specs.items():
            if name not in self._places:
                raise ConversionError(
                    f"{self.folder}: no tensor for {name.removeprefix(MODEL)}, which the settings ask for",
                    "give the right settings with --config FILE",
                )
            found = self._places[name].shape
            if found != spec.shape:
                layer, key = self._keys[name]
                raise ConversionError(
                    f"{self.folder}: {key!r} of layer {layer} makes {list(found)}, the settings ask for "
                    f"{list(spec.shape)}",
                    "give the right settings with --config FILE",
                )
        known = set(self._keys.values())
        unknown = [key for key in self.tensors.places if key not in known]
        unknown += [self._keys[name] for name in self._places if name not in self._specs]
        if unknown:
            layer, key = unknown[0]
            raise ConversionError(
                f"{self.folder}: {len(unknown)} tensors, {key!r} of layer {layer} among them, belong to nothing that "
                f"the settings ask for",
                "give the right settings with --config FILE",
            )


def _silent(most: float) -> None:
    """Ranks that differ are told of when the weights are read."""


def check_assumptions(given: Mapping[str, str]) -> Mapping[str, str]:
    """What was given, if it can be. Raises ConfigError with what can."""
    for key, value in given.items():
        if value not in ASSUMPTIONS.get(key, ()):
            known = ", ".join(f"{name}={'|'.join(values)}" for name, values in ASSUMPTIONS.items())
            raise ConfigError(f"--assume {key}={value}: nothing that can be assumed", f"it takes {known}")
    return given


def _check_blocks(tensors: Tensors) -> None:
    """All blocks have the same tensors, and each is of a kind and a number of dimensions that weights have."""
    shapes: dict[int, dict[str, tuple[int, ...]]] = {}
    for (layer, name), parts in tensors.places.items():
        first = parts[0]
        if first.dtype not in WEIGHTS:
            raise ConversionError(
                f"{first.storage.file}: {name!r} is {first.dtype}", f"weights are one of {', '.join(WEIGHTS)}"
            )
        if len(first.shape) != (1 if name.endswith("bias") or "norm." in name else 2):
            raise ConversionError(f"{first.storage.file}: {name!r} is {list(first.shape)}", "fetch it again")
        if layer in tensors.blocks:
            shapes.setdefault(layer, {})[name] = first.shape
    model = shapes[tensors.blocks[0]]
    for layer, found in shapes.items():
        for name in [*model, *found]:
            if found.get(name) != model.get(name):
                said = [str(list(s)) if s is not None else "missing" for s in (found.get(name), model.get(name))]
                raise ConversionError(
                    f"{tensors.folder}: {name!r} is {said[0]} in layer {layer} and {said[1]} in layer "
                    f"{tensors.blocks[0]}",
                    "neoxkit computes models whose layers are all alike",
                )
