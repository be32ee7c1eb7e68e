"""Greedy text against transformers' own generate; stops; seeds; the context's end."""

from pathlib import Path

import pytest
import torch
from tiny import TINY, Tiny

from neoxkit.convert.hf_source import HuggingFaceSource
from neoxkit.convert.load import load_decoder
from neoxkit.errors import NeoxkitError
from neoxkit.nn.decoder import Decoder
from neoxkit.serve.generate import continuation
from neoxkit.serve.sampler import Sampling

PROMPT = [5, 17, 42]


def load(tiny: Tiny, folder: Path) -> tuple[Decoder, object]:
    theirs = tiny.model()
    theirs.save_pretrained(folder / "hf")
    return load_decoder(HuggingFaceSource(folder / "hf")), theirs


@pytest.mark.parametrize("tiny", TINY, ids=str)
def test_greedy_equals_transformers(tiny: Tiny, tmp_path: Path) -> None:
    ours, theirs = load(tiny, tmp_path)
    wanted = theirs.generate(torch.tensor([PROMPT]), max_new_tokens=20, do_sample=False, eos_token_id=None)  # type: ignore[attr-defined]
    assert list(continuation(ours, PROMPT, 20, Sampling(), 0)) == wanted[0, 3:].tolist()


def test_stops_and_seeds(tmp_path: Path) -> None:
    model, _ = load(TINY[0], tmp_path)
    drawn = Sampling(temperature=1.0)
    first = list(continuation(model, PROMPT, 12, drawn, 1))
    assert first == list(continuation(model, PROMPT, 12, drawn, 1))
    assert first != list(continuation(model, PROMPT, 12, drawn, 2))
    stop = first[4]
    assert list(continuation(model, PROMPT, 12, drawn, 1, {stop})) == first[: first.index(stop)]


def test_the_context_ends_the_text(tmp_path: Path) -> None:
    model, _ = load(TINY[0], tmp_path)
    assert len(list(continuation(model, PROMPT, 1000, Sampling(), 0))) == 64 - len(PROMPT)


@pytest.mark.parametrize("prompt", [[], [97], [1] * 64])
def test_prompts_that_cannot_be_continued(prompt: list[int], tmp_path: Path) -> None:
    model, _ = load(TINY[0], tmp_path)
    with pytest.raises(NeoxkitError):
        next(continuation(model, prompt, 1, Sampling(), 0))
