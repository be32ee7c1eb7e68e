"""What differs between two models, and by how much, by checksum and by reading."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf, isnan
from pathlib import Path

import pytest
import torch
from meta_reference import meta_tensors, write_meta
from neox_checkpoints import unpack
from tiny import TINY, Tiny
from torch import Tensor

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.convert.compare import Comparison, Row, Values, compare
from neoxkit.convert.logits import logits_difference
from neoxkit.convert.open import divide, open_any, open_foreign
from neoxkit.convert.transfer import choose_family, export_model, import_model
from neoxkit.errors import CheckpointError, ConfigError
from neoxkit.mesh import Mesh

Q = "model/layers.1.attn.q.weight"
UP = "model/layers.2.mlp.up.weight"
ONE_EACH = [next(each for each in TINY if each.family == name) for name in ("gpt_neox", "llama", "mistral")]
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
    assert list(found.lines())[-1] == "different: 3 tensors"
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
    assert found.same
    assert "config context: 32 | 64" in found.lines()
    assert list(found.lines())[-1] == "the same: no logit depends on context"
    found = diff(save("c", config=other), save("d", config=other.model_copy(update={"residual": "parallel"})))
    assert found.counting == ["residual"]
    assert not found.same
    assert list(found.lines())[-1] == "different: residual"
    assert found.json()["counting"] == ["residual"]


@pytest.mark.parametrize("tiny_model", ONE_EACH, ids=str)
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


@pytest.fixture(scope="module")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the checkpoints that gpt-neox wrote."""
    return unpack(tmp_path_factory.mktemp("oracles"))


@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize(("name", "differing"), [("neox_tp2pp1", []), ("learned_tied_tp1pp1", ["family"])])
def test_gpt_neox_against_what_was_exported_of_it(
    oracles: Path, name: str, differing: list[str], values: bool, tmp_path: Path
) -> None:
    """A folder of gpt-neox, the checkpoint that it became, the Hugging Face folder made of that."""
    import_model(open_foreign(oracles / name), tmp_path / "ours", Mesh(tp=2))
    ours = Checkpoint.open(tmp_path / "ours")
    export_model(ours, tmp_path / "hf", choose_family(ours, "auto"))
    for a, b in ((oracles / name, tmp_path / "hf"), (tmp_path / "hf", oracles / name), (oracles / name, ours.path)):
        found = diff(a, b, values)
        assert found.same, found.rows
        assert found.equal == {"model": len(ours.names())}
        assert list(found.config) == (differing if b != ours.path else [])
    assert logits_difference(open_any(oracles / name), tmp_path / "hf").within(1e-5)
    assert logits_difference(open_any(tmp_path / "hf"), oracles / name).within(1e-5)


@pytest.mark.parametrize("values", [False, True])
def test_metas_files_against_a_hugging_face_folder(tmp_path: Path, values: bool) -> None:
    sizes = {"vocab_size": 96, "intermediate_size": 128, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}
    model = Tiny("llama", "meta", sizes).model()
    model.save_pretrained(tmp_path / "hf")
    params = {"dim": 48, "n_layers": 3, "n_heads": 6, "n_kv_heads": 2, "multiple_of": 8, "norm_eps": 1e-5}
    write_meta(tmp_path / "meta", meta_tensors(model), {**params, "vocab_size": 96}, shards=2)
    found = diff(tmp_path / "meta", tmp_path / "hf", values)
    assert found.same, found.lines()
    assert set(found.config) == {"context"}
    told = compare(open_any(tmp_path / "meta", {"context": "64"}), open_any(tmp_path / "hf"), values)
    assert "context" not in told.config
    assert logits_difference(open_any(tmp_path / "hf"), tmp_path / "meta", assume={"context": "64"}).within(1e-5)
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight[3, 4] += 0.5
    model.save_pretrained(tmp_path / "changed")
    (row,) = diff(tmp_path / "meta", tmp_path / "changed", values).rows
    assert (row.name, row.kind) == (Q, "values")
    assert not values or (row.values is not None and row.values.differing == 1)


def test_what_was_assumed_goes_to_those_that_take_it(oracles: Path, tmp_path: Path) -> None:
    neox, meta, hf = oracles / "neox_tp1pp0", tmp_path / "meta", tmp_path / "hf"
    for folder, files in ((meta, ["params.json", "consolidated.00.pth"]), (hf, ["config.json"])):
        folder.mkdir()
        for name in files:
            (folder / name).touch()
    given = {"gqa-layout": "grouped", "context": "64"}
    assert divide([neox, meta, hf], given, [Path("a.yml")]) == [
        ({"gqa-layout": "grouped"}, [Path("a.yml")]),
        ({"context": "64"}, ()),
        ({}, ()),
    ]
    with pytest.raises(ConfigError, match="--assume context"):
        divide([neox, hf], given, [])
    with pytest.raises(ConfigError, match="no gpt-neox checkpoints"):
        divide([meta, hf], {}, [Path("a.yml")])


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
    assert set(found) == {"same", "config", "counting", "equal", "uncompared", "tensors"}
    (row,) = found["tensors"]
    assert set(row) == {"name", "kind", "ours", "theirs", "values"}
    assert set(row["values"]) == {"max", "mean", "relative", "differing", "elements"}
    assert row["values"]["relative"] == pytest.approx(1.0)
