"""What differs between two models, and by how much, by checksum and by reading."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf, isnan
from pathlib import Path

import pytest
import torch
from tiny import TINY, Tiny
from torch import Tensor

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.convert.compare import Comparison, Row, Values, compare
from neoxkit.convert.open import open_any, open_foreign
from neoxkit.convert.transfer import import_model
from neoxkit.errors import CheckpointError
from neoxkit.mesh import Mesh

Q = "model/layers.1.attn.q.weight"
UP = "model/layers.2.mlp.up.weight"
Save = Callable[..., Path]
Tensors = Mapping[str, Tensor]


def diff(a: Path, b: Path, values: bool = False) -> Comparison:
    return compare(open_any(a), open_any(b), values)


@pytest.fixture
def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of a checkpoint can be read."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(Checkpoint, "stream", refuse)
    monkeypatch.setattr(Checkpoint, "read", refuse)


@pytest.mark.usefixtures("no_reading")
@pytest.mark.parametrize("values", [False, True])
def test_other_cuts_of_the_same_weights_are_the_same_without_reading(save: Save, values: bool) -> None:
    a, b = save("a", mesh=Mesh(tp=2)), save("b", mesh=Mesh(tp=4, pp=3))
    found = diff(a, b, values)
    assert found.same
    assert found.rows == []
    assert set(found.equal) == {"model", "optimizer/master", "optimizer/exp_avg", "optimizer/exp_avg_sq"}
    assert len(set(found.equal.values())) == 1
    assert list(found.lines())[-1] == "the same"


@pytest.mark.usefixtures("no_reading")
def test_a_difference_shows_without_reading(save: Save, tensors: Tensors) -> None:
    other = {**tensors, Q: tensors[Q] + 1, UP: tensors[UP].float()}
    del other["optimizer/exp_avg/embed.weight"]
    found = diff(save("a"), save("b", values=other))
    assert not found.same
    assert found.rows == [
        Row("optimizer/exp_avg/embed.weight", "only in A"),
        Row(Q, "values"),
        Row(UP, "dtype", "BF16", "F32"),
    ]
    assert found.equal["model"] == found.equal["optimizer/master"] - 2
    back = diff(save("c", values=other), save("d"))
    assert back.rows[0] == Row("optimizer/exp_avg/embed.weight", "only in B")


@pytest.mark.usefixtures("no_reading")
def test_a_component_that_one_lacks_is_not_compared(save: Save, tensors: Tensors) -> None:
    weights = {name: value for name, value in tensors.items() if name.startswith("model/")}
    found = diff(save("a"), save("b", values=weights, trainer=None))
    assert found.same
    assert set(found.uncompared) == {"optimizer/master", "optimizer/exp_avg", "optimizer/exp_avg_sq"}
    assert set(found.uncompared.values()) == {"A"}


def test_values_are_those_that_torch_computes(save: Save, tensors: Tensors) -> None:
    a = tensors[Q]
    b = a.clone()
    b[3, 1:5] += torch.tensor([0.5, -2.0, 1.0, 0.25], dtype=torch.bfloat16)
    name = "optimizer/exp_avg/embed.weight"
    c = tensors[name]
    d = c + torch.randn_like(c) * 1e-3
    found = diff(save("a"), save("b", mesh=Mesh(tp=4), values={**tensors, Q: b, name: d}), values=True)
    rows = {row.name: row.values for row in found.rows}
    assert set(rows) == {Q, name}
    for key, x, y in ((Q, a, b), (name, c, d)):
        x, y = x.double(), y.double()
        v = rows[key]
        assert v is not None
        assert v.max == pytest.approx((x - y).abs().max().item(), rel=1e-6)
        assert v.mean == pytest.approx((x - y).abs().mean().item(), rel=1e-5)
        assert v.relative == pytest.approx(((x - y).norm() / x.norm()).item(), rel=1e-5)
        assert (v.differing, v.elements) == (int((x != y).sum()), x.numel())
    assert rows[Q].differing == 4  # type: ignore[union-attr]


def test_another_dtype_is_compared_as_numbers(save: Save, tensors: Tensors) -> None:
    wider = tensors[Q].float()
    wider[0, 0] += 1e-3
    found = diff(save("a"), save("b", values={**tensors, Q: wider}), values=True)
    (row,) = found.rows
    assert (row.kind, row.ours, row.theirs) == ("dtype", "BF16", "F32")
    assert row.values is not None
    assert row.values.differing == 1
    assert row.values.max == pytest.approx(1e-3, rel=1e-3)
    exact = diff(save("c"), save("d", values={**tensors, Q: tensors[Q].float()}), values=True)
    assert exact.rows[0].values == Values(0.0, 0.0, 0.0, 0, 256)
    assert not exact.same


def test_numbers_that_are_not_finite(save: Save, tensors: Tensors) -> None:
    a, b = tensors[Q].clone(), tensors[Q].clone()
    a[0, :2] = torch.tensor([float("nan"), inf])
    b[0, :2] = torch.tensor([float("nan"), inf])
    b[1, 1] += 1
    (row,) = diff(save("a", values={**tensors, Q: a}), save("b", values={**tensors, Q: b}), values=True).rows
    assert row.values is not None
    assert row.values.differing == 1
    assert row.values.max == pytest.approx(1, abs=0.02)
    b[2, 2] = float("nan")
    found = diff(save("c", values={**tensors, Q: a}), save("d", values={**tensors, Q: b}), values=True)
    assert found.rows[0].values is not None
    assert isnan(found.rows[0].values.max)
    assert found.json()["tensors"][0]["values"]["max"] is None


def test_a_sign_of_zero_is_a_difference(save: Save, tensors: Tensors) -> None:
    a, b = tensors[Q].clone(), tensors[Q].clone()
    a[0, 0], b[0, 0] = 0.0, -0.0
    (row,) = diff(save("a", values={**tensors, Q: a}), save("b", values={**tensors, Q: b}), values=True).rows
    assert row.values == Values(0.0, 0.0, 0.0, 1, 256)


def test_damage_stops_a_comparison_of_values(save: Save, tensors: Tensors) -> None:
    b = save("b", values={**tensors, Q: tensors[Q] + 1})
    path = next((b / "model").iterdir())
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start:] = bytes(len(data) - start)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"damaged"):
        diff(save("a"), b, values=True)


def test_configurations(save: Save, config: object) -> None:
    other = config.model_copy(update={"context": 64, "tied": False})  # type: ignore[attr-defined]
    found = diff(save("a"), save("b", config=other))
    assert found.config == {"context": (32, 64)}
    assert found.rows == []
    assert not found.same
    assert "config context: 32 | 64" in found.lines()


@pytest.mark.parametrize("tiny_model", [TINY[0], TINY[7], TINY[-1]], ids=str)
@pytest.mark.parametrize("values", [False, True])
def test_a_hugging_face_folder_against_its_checkpoint(tiny_model: Tiny, tmp_path: Path, values: bool) -> None:
    model = tiny_model.model()
    model.save_pretrained(tmp_path / "hf")
    import_model(open_foreign(tmp_path / "hf"), tmp_path / "ours", Mesh(tp=2))
    hf, ours = tmp_path / "hf", tmp_path / "ours"
    for a, b in ((hf, ours), (ours, hf), (hf, hf)):
        found = diff(a, b, values)
        assert found.same, found.rows
        assert found.equal == {"model": len(open_any(ours).names())}
    key, name = (
        ("gpt_neox.layers.1.attention.query_key_value.weight", "model/layers.1.attn.{}.weight")
        if tiny_model.family == "gpt_neox"
        else ("model.layers.1.mlp.up_proj.weight", "model/layers.1.mlp.{}.weight")
    )
    with torch.no_grad():
        dict(model.named_parameters())[key][8, 5] += 0.5  # a row of the first head's keys
    model.save_pretrained(tmp_path / "changed")
    part = "k" if tiny_model.family == "gpt_neox" else "up"
    for a in (ours, hf):
        (row,) = diff(a, tmp_path / "changed", values).rows
        assert (row.name, row.kind) == (name.format(part), "values")
        if values:
            assert row.values is not None
            assert row.values.differing == 1
            assert row.values.max == pytest.approx(0.5, rel=1e-5)
        else:
            assert row.values is None
    wide = diff(ours, tmp_path / "changed", values)
    assert wide.equal["model"] == len(open_any(ours).names()) - 1


def test_many_blocks_are_one_tensor(save: Save, tensors: Tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {
        **tensors,
        UP: tensors[UP] + torch.linspace(0, 1, tensors[UP].numel()).reshape(tensors[UP].shape).bfloat16(),
    }
    a, b = save("a"), save("b", mesh=Mesh(pp=3), values=other)
    once = diff(a, b, values=True).rows[0].values
    monkeypatch.setattr("neoxkit.convert.compare._BLOCK", 50)
    many = diff(a, b, values=True).rows[0].values
    assert once is not None
    assert many is not None
    assert (many.max, many.differing, many.elements) == (once.max, once.differing, once.elements)
    assert (many.mean, many.relative) == pytest.approx((once.mean, once.relative))


def test_json_has_what_it_says(save: Save, tensors: Tensors) -> None:
    found = diff(save("a"), save("b", values={**tensors, Q: tensors[Q] * 2}), values=True).json()
    assert set(found) == {"same", "config", "equal", "uncompared", "tensors"}
    (row,) = found["tensors"]
    assert set(row) == {"name", "kind", "ours", "theirs", "values"}
    assert set(row["values"]) == {"max", "mean", "relative", "differing", "elements"}
    assert row["values"]["relative"] == pytest.approx(1.0)
