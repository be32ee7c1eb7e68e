"""Law 5: logits and gradients equal those of transformers, in fp32, to 1e-5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import SIZES, Tiny, save
from tiny import tiny as tiny_called
from torch import Tensor

from neoxkit.checkpoint import Source
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.convert.load import load_decoder
from neoxkit.convert.open import open_foreign
from neoxkit.convert.transfer import import_model
from neoxkit.data.rows.batch import positions_of
from neoxkit.families import by_name
from neoxkit.families.schema import expand
from neoxkit.mesh import Mesh
from neoxkit.nn.decoder import Decoder, holdings
from neoxkit.nn.loss import cross_entropy


@pytest.fixture(scope="module", params=["folder", "checkpoint"])
def source(request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """The same weights, straight from transformers' files or by way of a checkpoint in pieces."""
    foreign = open_foreign(tiny_folder)
    if request.param == "folder":
        return foreign
    folder = tmp_path_factory.mktemp("parity") / "checkpoint"
    import_model(foreign, folder, Mesh(tp=6 if foreign.config.mixer.kv_heads != 4 else 4, pp=3))
    return Checkpoint.open(folder)


def tokens() -> Tensor:
    """Two rows, longer than every window and than the context that a scaling starts from."""
    return torch.randint(0, SIZES["vocab_size"], (2, 41), generator=torch.Generator().manual_seed(11))


def test_logits(tiny: Tiny, source: Source) -> None:
    with torch.inference_mode():
        wanted = tiny.model()(tokens()).logits
        found = load_decoder(source)(tokens())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert wanted.std() > 0.05, "logits which are all alike would prove nothing"


def test_gradients(tiny: Tiny, source: Source) -> None:
    """Every gradient of a mean cross entropy, ours laid out as theirs by the rules that lay out weights."""
    ids = tokens()
    theirs = tiny.model().train()
    logits = theirs(ids).logits[:, :-1]
    loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
    loss.backward()
    ours = load_decoder(source).train()
    assert_alike(ours, ours.hidden(ids), ids, theirs, loss)


@pytest.mark.parametrize("name", ["llama-gqa", "gpt_neox-parallel", "gpt2-tied", "mistral-window"])
def test_documents_of_a_row(name: str, tmp_path: Path) -> None:
    """Gradients where transformers is given the positions and a mask of four dimensions, in blocks."""
    ids, asked = tokens(), tiny_called(name)
    segments = torch.tensor([[0] * 17 + [1] * 3 + [2] * 21, [0] * 40 + [1]], dtype=torch.int32)
    positions, places = positions_of(segments), torch.arange(41)
    theirs = asked.model().train()
    seen = (segments[:, :, None] == segments[:, None, :]) & (places[:, None] >= places)
    if (window := getattr(asked.config(), "sliding_window", None)) is not None:
        seen = seen & (places[:, None] - places < window)
    unseen = torch.zeros(2, 1, 41, 41).masked_fill(~seen[:, None], float("-inf"))
    logits = theirs(ids, position_ids=positions, attention_mask=unseen).logits[:, :-1]
    loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
    loss.backward()
    save(theirs, tmp_path)
    source = open_foreign(tmp_path)
    ours = load_decoder(source).train()
    source.close()
    assert_alike(ours, ours.hidden(ids, positions, segments), ids, theirs, loss)


def assert_alike(ours: Decoder, hidden: Tensor, ids: Tensor, theirs: Any, loss: Tensor) -> None:
    """The loss, and every gradient."""
    family = by_name(ours.config.family)
    wanted = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    if "lm_head.weight" in wanted and family.name == "gpt_neox":
        wanted["embed_out.weight"] = wanted.pop("lm_head.weight")  # transformers 5 renames it on the way to disk
    hidden = hidden[:, :-1]
    total, count = cross_entropy(hidden.reshape(-1, hidden.shape[-1]), ours.head, ids[:, 1:].reshape(-1))
    (total / count).backward()
    assert (total / count).item() == pytest.approx(loss.item(), abs=1e-5)
    grads = {}
    for parameter in ours.parameters():
        assert parameter.grad is not None
        for held in holdings(parameter):
            grads[held.spec.name] = parameter.grad[held.rows]
    found = {}
    for rule in expand(family, ours.config):
        found.update(zip(rule.theirs, rule.layout.join([grads[name] for name in rule.ours]), strict=True))

    assert found.keys() == wanted.keys()
    for key, gradient in wanted.items():
        assert gradient is not None, key
        assert gradient.abs().max() > 1e-6, key
        torch.testing.assert_close(
            found[key], gradient, atol=1e-5, rtol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )
