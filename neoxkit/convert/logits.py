"""Do two models compute the same? Their logits on the same tokens, in fp32, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neoxkit.checkpoint import Source
from neoxkit.checkpoint.store import Place
from neoxkit.checkpoint.store_input import on_disk
from neoxkit.convert.load import load_decoder
from neoxkit.convert.open import is_hugging_face, open_any
from neoxkit.errors import ConversionError

_SEED = 20_480


@dataclass(frozen=True)
class Difference:
    """How far two models' logits are apart: greatest and mean absolute difference; `scale` is the greatest logit.

    All three are NaN where a model computes NaN.
    """

    max: float
    mean: float
    scale: float

    def within(self, tolerance: float) -> bool:
        """Whether no logit differs by more; NaN never is."""
        return self.max <= tolerance


def logits_difference(
    ours: Source,
    theirs: Place,
    tokens: int = 64,
    assume: Mapping[str, str] | None = None,
    settings: Sequence[Path] = (),
) -> Difference:
    """Compare the decoder of a source with the model in a folder, on random tokens of a fixed seed.

    `theirs` is a Hugging Face folder, loaded and run by transformers, or anything else that `open_any`
    opens (with `assume` and `settings`), loaded as `ours` is. One model is in memory at a time.

    Raises ModuleNotFoundError without transformers, ConversionError when the vocabularies differ or
    transformers cannot load the folder whole, CheckpointError when either is damaged.
    """
    config = ours.config
    ids = random_ids(config.vocab, min(tokens, config.context))
    if is_hugging_face(theirs):
        import transformers  # noqa: F401 (missing, it should say so before minutes of work)

        a = _decoder_logits(ours, ids)
        b = _transformers_logits(theirs, ids, config.vocab)
    else:
        with closing(open_any(theirs, assume, settings)) as other:
            _check_vocab(theirs, other.config.vocab, config.vocab)
            a = _decoder_logits(ours, ids)
            b = _decoder_logits(other, ids[:, : other.config.context])
            a = a[:, : b.shape[1]]
    difference = (a - b).abs()
    return Difference(difference.max().item(), difference.mean().item(), a.abs().max().item())


def random_ids(vocab: int, tokens: int) -> Tensor:
    """The token ids [1, tokens] that models are compared on."""
    return torch.randint(vocab, (1, tokens), generator=torch.Generator().manual_seed(_SEED))


def _check_vocab(folder: Place, theirs: int, ours: int) -> None:
    if theirs != ours:
        raise ConversionError(
            f"{folder}: its vocabulary has {theirs} rows, the other model's {ours}", "compare models of the same tokens"
        )


@torch.inference_mode()
def _decoder_logits(source: Source, ids: Tensor) -> Tensor:
    """Logits [1, tokens, vocab] of our own decoder."""
    logits: Tensor = load_decoder(source, torch.float32)(ids)
    return logits


@torch.inference_mode()
def _transformers_logits(folder: Place, ids: Tensor, vocab: int) -> Tensor:
    """Logits [1, tokens, vocab] of transformers' own model."""
    with on_disk(folder) as there:
        model = _load_transformers(there)
    _check_vocab(folder, model.get_input_embeddings().weight.shape[0], vocab)
    logits: Tensor = model(ids).logits
    return logits


def _load_transformers(folder: Path) -> Any:
    """The model as transformers loads it, every weight from the folder, in fp32."""
    from safetensors import SafetensorError

    transformers: Any = import_module("transformers")  # its annotations do not know output_loading_info
    dtype = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, local_files_only=True, **{dtype: torch.float32}
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        said = (str(error) or repr(error)).strip().splitlines()[0]
        raise ConversionError(f"{folder}: transformers cannot load it: {said}", "see: neoxkit verify") from error
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()
    if missing := sorted(loaded["missing_keys"]):
        raise ConversionError(
            f"{folder}: transformers finds no {missing[0]!r} there, and would make it up",
            "is config.json the one that belongs to these weights?",
        )
    return model.eval()
