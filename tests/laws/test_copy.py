"""Law 4: any chain of reshardings, then export, is bit-identical to the original, and carries everything along."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny as tinies
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy, composite
from safetensors.torch import load_file
from tiny import Tiny, save
from torch import Tensor

from neoxkit.checkpoint.dtypes import name_of
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.writer import Writer, cut
from neoxkit.config.model import ModelConfig
from neoxkit.convert.open import open_any, open_foreign
from neoxkit.convert.transfer import export_model, import_model, reshard
from neoxkit.errors import ConfigError, ConversionError
from neoxkit.families import by_name
from neoxkit.mesh import Mesh
from neoxkit.nn.decoder import specs
from neoxkit.spec import TensorSpec, whole


@composite
def _mesh(draw: DrawFn) -> Mesh:
    return Mesh(tp=draw(st.sampled_from([1, 2, 3, 4, 6, 12])), pp=draw(st.sampled_from([1, 2, 3])))


CHAINS: SearchStrategy[list[Mesh]] = st.lists(_mesh(), min_size=2, max_size=3)


def divides(config: ModelConfig, mesh: Mesh) -> bool:
    found: Mapping[str, TensorSpec] = specs(config)
    try:
        cut(found, dict.fromkeys(found, "F32"), mesh)
    except ConfigError:
        return False
    return True


def weights(folder: Path) -> dict[str, Tensor]:
    """As the safetensors package reads them."""
    return {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}


def assert_identical(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert value.dtype == b[key].dtype, key
        assert torch.equal(value.view(torch.uint8), b[key].view(torch.uint8)), key


@given(chain=CHAINS, most=st.sampled_from([20_000, 10**9]))
@settings(max_examples=2)
def test_any_chain_of_meshes(tiny: Tiny, tiny_folder: Path, chain: list[Mesh], most: int) -> None:
    source = open_foreign(tiny_folder)
    assume(all(divides(source.config, mesh) for mesh in chain))
    with tempfile.TemporaryDirectory() as here:
        import_model(source, Path(here, "0"), chain[0])
        fingerprint = Checkpoint.open(Path(here, "0")).fingerprint
        for number, mesh in enumerate(chain[1:], 1):
            with Checkpoint.open(Path(here, str(number - 1))) as before:
                reshard(before, Path(here, str(number)), mesh)
            after = Checkpoint.open(Path(here, str(number)))
            assert after.fingerprint == fingerprint
            assert {n: e.crc for n, e in after.manifest.tensors.items()} == {
                n: e.crc for n, e in before.manifest.tensors.items()
            }
        with Checkpoint.open(Path(here, str(len(chain) - 1))) as last:
            assert last.config == source.config
            export_model(last, Path(here, "hf"), by_name(tiny.family), most=most)
        assert_identical(weights(Path(here, "hf")), weights(tiny_folder))
        again = open_foreign(Path(here, "hf"))
        assert again.config == source.config
        import_model(again, Path(here, "again"), chain[-1])
        assert Checkpoint.open(Path(here, "again")).fingerprint == fingerprint
        again.close()
    source.close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    original = tmp_path / "hf"
    save(tinies.tiny("gpt_neox-parallel").model().to(dtype), original)
    import_model(open_foreign(original), tmp_path / "a", Mesh(tp=3, pp=3))
    reshard(Checkpoint.open(tmp_path / "a"), tmp_path / "b", Mesh(tp=2))
    export_model(Checkpoint.open(tmp_path / "b"), tmp_path / "c", by_name("gpt_neox"))
    assert_identical(weights(tmp_path / "c"), weights(original))


def test_another_dtype(tmp_path: Path) -> None:
    """fp32 weights as bf16: on import, on reshard and on export the same numbers."""
    original = tmp_path / "hf"
    save(tinies.tiny("llama-gqa").model(), original)
    wanted = {key: value.to(torch.bfloat16) for key, value in weights(original).items()}
    import_model(open_foreign(original), tmp_path / "bf16", Mesh(tp=2), "BF16")
    import_model(open_foreign(original), tmp_path / "fp32", Mesh(tp=6))
    reshard(Checkpoint.open(tmp_path / "fp32"), tmp_path / "recut", Mesh(), "BF16")
    export_model(Checkpoint.open(tmp_path / "fp32"), tmp_path / "out0", by_name("llama"), "BF16")
    export_model(Checkpoint.open(tmp_path / "bf16"), tmp_path / "out1", by_name("llama"))
    export_model(Checkpoint.open(tmp_path / "recut"), tmp_path / "out2", by_name("llama"))
    for name in ("out0", "out1", "out2"):
        assert_identical(weights(tmp_path / name), wanted)


def test_a_number_that_the_dtype_cannot_hold(tmp_path: Path) -> None:
    model = tinies.tiny("llama-mha").model()
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = 70000.0
    save(model, tmp_path / "hf")
    with pytest.raises(ConversionError, match=r"layers\.1\.mlp\.up\.weight: 70000 does not fit in float16"):
        import_model(open_foreign(tmp_path / "hf"), tmp_path / "a", Mesh(tp=2), "F16")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


STATE = {"step": 7, "loss_scale": 1.5, "optimizer": {"groups": [{"names": ["embed.weight"], "lr": 0.1}]}}
RNG = {"cpu": bytes(range(200)), "cuda": b"\x00\xff"}


def trained(folder: Path, config: ModelConfig, mesh: Mesh) -> dict[str, Tensor]:
    """A checkpoint of a run: weights in bf16, masters and moments in fp32, and the trainer's state."""
    generator = torch.Generator().manual_seed(3)
    found, values = {}, {}
    for component, dtype in {
        "model": torch.bfloat16,
        "optimizer/master": torch.float32,
        "optimizer/exp_avg": torch.float32,
        "optimizer/exp_avg_sq": torch.float32,
    }.items():
        for name, spec in specs(config).items():
            found[f"{component}/{name}"] = spec
            values[f"{component}/{name}"] = torch.randn(spec.shape, generator=generator).to(dtype)
    parts = cut(found, {name: name_of(value.dtype) for name, value in values.items()}, mesh)
    about: dict[str, Any] = {"step": 7, "samples": 70, "tokens": 700, "run_yaml": "steps: 9\n"}
    mesh_sizes = {"pp": mesh.pp, "tp": mesh.tp, "dp": 4, "zero": 1}
    with Writer(folder, parts, config=config, mesh=mesh_sizes, trainer=STATE, rng=RNG, **about) as writer:
        for name, value in values.items():
            writer.write(name, whole(tuple(value.shape)), value)
        writer.commit()
    return values


@pytest.mark.parametrize("name", ["gpt_neox-parallel", "llama-gqa", "mistral-linear"])
def test_the_optimizer_and_the_trainer_survive(tmp_path: Path, name: str) -> None:
    save(tinies.tiny(name).model(), tmp_path / "hf")
    config = open_foreign(tmp_path / "hf").config
    values = trained(tmp_path / "0", config, Mesh(tp=2, pp=2) if divides(config, Mesh(tp=2)) else Mesh(pp=2))
    for number, mesh in enumerate([Mesh(pp=3), Mesh(tp=6) if divides(config, Mesh(tp=6)) else Mesh(tp=3), Mesh()]):
        reshard(Checkpoint.open(tmp_path / str(number)), tmp_path / str(number + 1), mesh)
    last = Checkpoint.open(tmp_path / "3")
    assert_identical({name: last.read(name) for name in last.names()}, values)
    assert last.trainer_state() == STATE
    assert last.rng() == RNG
    assert (last.run_yaml, last.config) == ("steps: 9\n", config)
    manifest = last.manifest
    assert (manifest.step, manifest.samples, manifest.tokens) == (7, 70, 700)
    assert manifest.mesh == {"pp": 1, "tp": 1, "ep": 1, "dp": 4, "zero": 1}
    assert last.fingerprint == Checkpoint.open(tmp_path / "0").fingerprint


def test_weights_only(tmp_path: Path) -> None:
    save(tinies.tiny("llama-tied").model(), tmp_path / "hf")
    config = open_foreign(tmp_path / "hf").config
    values = trained(tmp_path / "0", config, Mesh(pp=3))
    reshard(Checkpoint.open(tmp_path / "0"), tmp_path / "1", Mesh(), weights_only=True)
    last = Checkpoint.open(tmp_path / "1")
    assert_identical(
        {name: last.read(name) for name in last.names()},
        {name: value for name, value in values.items() if name.startswith("model/")},
    )
    assert last.trainer_state() is None
    assert last.rng() == {}
    assert not (tmp_path / "1/optimizer").exists()
    assert not (tmp_path / "1/trainer").exists()
    assert last.manifest.step == 7
    assert last.fingerprint == Checkpoint.open(tmp_path / "0").fingerprint


def test_another_dtype_beside_an_optimizer_is_refused(tmp_path: Path) -> None:
    save(tinies.tiny("llama-mha").model(), tmp_path / "hf")
    trained(tmp_path / "0", open_foreign(tmp_path / "hf").config, Mesh())
    with pytest.raises(ConversionError, match=r"it has an optimizer.*--weights-only"):
        reshard(Checkpoint.open(tmp_path / "0"), tmp_path / "1", Mesh(tp=2), "F16")
    reshard(Checkpoint.open(tmp_path / "0"), tmp_path / "1", Mesh(tp=2), "F16", weights_only=True)
    assert {entry.dtype for entry in Checkpoint.open(tmp_path / "1").manifest.tensors.values()} == {"F16"}


def test_a_mesh_that_does_not_divide(tmp_path: Path) -> None:
    save(tinies.tiny("llama-gqa").model(), tmp_path / "hf")
    with pytest.raises(ConfigError, match=r"layers\.0\.attn\.q\.weight: .*6 units of 8 rows.* do not divide over tp 4"):
        import_model(open_foreign(tmp_path / "hf"), tmp_path / "a", Mesh(tp=4))
    with pytest.raises(ConfigError, match="pp 4 is more stages than the model's 3 layers"):
        import_model(open_foreign(tmp_path / "hf"), tmp_path / "a", Mesh(pp=4))
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_open_any_tells_them_apart(tmp_path: Path) -> None:
    save(tinies.tiny("llama-mha").model(), tmp_path / "hf")
    import_model(open_foreign(tmp_path / "hf"), tmp_path / "a", Mesh())
    assert isinstance(open_any(tmp_path / "a"), Checkpoint)
    assert not isinstance(open_any(tmp_path / "hf"), Checkpoint)
