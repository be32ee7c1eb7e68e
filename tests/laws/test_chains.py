"""Law 4 for any model of any family: chains of reshards, exports and imports leave every tensor's CRC as it was."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn import configs
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy, composite

from neoxkit.checkpoint.plan import cut
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.writer import Writer
from neoxkit.config.model import ModelConfig
from neoxkit.convert.open import open_foreign
from neoxkit.convert.transfer import export_model, import_model, reshard
from neoxkit.errors import ConfigError
from neoxkit.families import FAMILIES, by_name
from neoxkit.mesh import Mesh
from neoxkit.nn.decoder import specs
from neoxkit.spec import whole


@composite
def _steps(draw: DrawFn) -> list[dict[str, Any]]:
    """A chain: each step a reshard, or an export and an import, onto a mesh."""
    sizes = st.sampled_from([1, 2, 3, 4, 5, 6, 8])
    step: SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
        {
            "by": st.sampled_from(["reshard", "reshard", "export"]),
            "tp": sizes,
            "pp": st.sampled_from([1, 2, 3]),
            "most": st.sampled_from([300, 5_000, 10**9]),
        }
    )
    return draw(st.lists(step, min_size=2, max_size=4))


def fitting(config: ModelConfig, tp: int, pp: int) -> Mesh:
    """The mesh, or the nearest below it that the model can be cut for: heads that do not divide are refused."""
    found = specs(config)
    for way in range(tp, 0, -1):
        mesh = Mesh(tp=way, pp=min(pp, config.depth))
        try:
            cut(found, dict.fromkeys(found, "BF16"), mesh)
        except ConfigError:
            continue
        return mesh
    raise AssertionError("one device takes any model")


def fill(folder: Path, config: ModelConfig, dtype: torch.dtype, seed: int) -> None:
    """A checkpoint of random bits: NaN, Inf and numbers below the normal ones among them."""
    generator = torch.Generator().manual_seed(seed)
    known = {f"model/{name}": spec for name, spec in specs(config).items()}
    name = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    with Writer(folder, cut(known, dict.fromkeys(known, name), Mesh()), config=config, mesh={}) as writer:
        for key, spec in known.items():
            count = torch.Size(spec.shape).numel() * dtype.itemsize
            bits = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)
            writer.write(key, whole(spec.shape), bits.view(dtype).reshape(spec.shape))
        writer.commit()


def sums(folder: Path) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """What every tensor is."""
    with Checkpoint.open(folder) as checkpoint:
        for name in checkpoint.names():
            checkpoint.read(name)  # against its checksum
        return {n: (e.dtype, e.spec.shape, e.crc) for n, e in checkpoint.manifest.tensors.items()}


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=4)
def test_any_chain_of_any_model(family: str, data: st.DataObject) -> None:
    """Uneven vocabularies, fused and stacked tensors, tied heads, biases or none: whatever the family has."""
    config = data.draw(configs(family))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    chain = data.draw(_steps())
    assume(any(step["by"] == "export" for step in chain))
    with tempfile.TemporaryDirectory() as temporary:
        here = Path(temporary)
        fill(here / "0", config, dtype, seed=data.draw(st.integers(0, 99)))
        before = sums(here / "0")
        for number, step in enumerate(chain, 1):
            mesh = fitting(config, step["tp"], step["pp"])
            with Checkpoint.open(here / str(number - 1)) as last:
                if step["by"] == "reshard":
                    reshard(last, here / str(number), mesh)
                else:
                    export_model(last, here / f"hf-{number}", by_name(family), most=step["most"])
                    source = open_foreign(here / f"hf-{number}")
                    assert source.config == config
                    import_model(source, here / str(number), mesh)
                    source.close()
            assert sums(here / str(number)) == before
            assert Checkpoint.open(here / str(number)).config == config
