"""Import, reshard and export: what is planned is what is written, and what is wrong leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny as tinies
import torch

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.convert.copy import Converted, converted, copy
from neoxkit.convert.load import load_decoder, load_weights
from neoxkit.convert.open import open_foreign
from neoxkit.convert.transfer import export_model, file_sizes, import_model, kept_names, parts_for, reshard
from neoxkit.errors import CheckpointError, ConversionError
from neoxkit.families import by_name
from neoxkit.mesh import Mesh
from neoxkit.nn.decoder import Decoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama as transformers writes it."""
    folder = tmp_path_factory.mktemp("transfer") / "hf"
    tinies.save(tinies.tiny("llama-gqa").model(), folder)
    return folder


@pytest.mark.parametrize("mesh", [Mesh(), Mesh(tp=2, pp=3), Mesh(tp=6)], ids=["whole", "2x3", "6"])
def test_what_is_planned_is_written(folder: Path, tmp_path: Path, mesh: Mesh) -> None:
    source = open_foreign(folder)
    planned = file_sizes(parts_for(source, source.names(), mesh))
    import_model(source, tmp_path / "a", mesh)
    checkpoint = Checkpoint.open(tmp_path / "a")
    written: dict[str, int] = {}
    for entry in checkpoint.manifest.tensors.values():
        for piece in entry.pieces:
            path = checkpoint.manifest.files[piece.file].path
            written[path] = written.get(path, 0) + 4 * torch.Size(stop - start for start, stop in piece.box).numel()
    assert written == planned
    assert len(planned) == max(1, mesh.tp * mesh.pp)


def test_lineage_tells_what_was_done(folder: Path, tmp_path: Path) -> None:
    import_model(open_foreign(folder), tmp_path / "a", Mesh())
    reshard(Checkpoint.open(tmp_path / "a"), tmp_path / "b", Mesh(tp=2))
    first, last = Checkpoint.open(tmp_path / "b").manifest.lineage
    assert (first["event"], first["source"]) == ("import", str(folder))
    assert (last["event"], last["model"]) == ("reshard", Checkpoint.open(tmp_path / "a").fingerprint)


def test_a_damaged_source_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    import_model(open_foreign(folder), tmp_path / "a", Mesh(tp=2))
    victim = next((tmp_path / "a/model").iterdir())
    data = bytearray(victim.read_bytes())
    data[-5] ^= 1
    victim.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged: its checksum is"):
        reshard(Checkpoint.open(tmp_path / "a"), tmp_path / "b", Mesh())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_destination_that_exists(folder: Path, tmp_path: Path) -> None:
    import_model(open_foreign(folder), tmp_path / "a", Mesh())
    with pytest.raises(CheckpointError, match="exists"):
        import_model(open_foreign(folder), tmp_path / "a", Mesh(tp=2))
    import_model(open_foreign(folder), tmp_path / "a", Mesh(tp=2), force=True)
    assert Checkpoint.open(tmp_path / "a").manifest.mesh == {"pp": 1, "tp": 2, "ep": 1}


def test_only_weights_are_converted(folder: Path, tmp_path: Path) -> None:
    source = Converted(open_foreign(folder), "BF16")
    assert {source.dtype(name) for name in source.names()} == {"BF16"}
    name = "model/layers.1.attn.k.weight"
    whole = open_foreign(folder).read(name)
    assert torch.equal(source.read(name, ((8, 16), (0, 48))), whole[8:16].bfloat16())
    assert torch.equal(torch.cat([block for _, block in source.stream(name)]), whole.bfloat16())
    import_model(open_foreign(folder), tmp_path / "a", Mesh())
    checkpoint = Checkpoint.open(tmp_path / "a")
    assert kept_names(checkpoint, "BF16", weights_only=False) == list(checkpoint.names())


def test_numbers_that_are_not_finite_stay_so() -> None:
    """An infinity was there before; a finite number that becomes one is refused."""
    odd = torch.tensor([float("inf"), float("nan"), 1.0])
    assert torch.equal(converted("x", odd, torch.float16).isfinite(), odd.isfinite())
    with pytest.raises(ConversionError, match="x: 1e\\+39 does not fit in float32"):
        converted("x", torch.tensor([1e39, float("inf")], dtype=torch.float64), torch.float32)


def test_progress_is_told_of_every_byte(folder: Path) -> None:
    source, seen = open_foreign(folder), []

    class Bar:
        def advance(self, amount: float) -> None:
            seen.append(amount)

    class Nowhere:
        def write(self, *given: object) -> None: ...
        def commit(self) -> None: ...
        def abort(self) -> None: ...

    copy(source, Nowhere(), source.names(), Bar())
    assert sum(seen) == source.files.bytes


def test_a_decoder_is_loaded_in_any_dtype(folder: Path) -> None:
    source = open_foreign(folder)
    assert load_decoder(source).embed.weight.dtype == torch.float32
    half = load_decoder(source, torch.bfloat16)
    assert not half.training
    assert torch.equal(half.embed.weight, source.read("model/embed.weight").bfloat16())
    model = Decoder(source.config)
    kept = model.embed.weight.data_ptr()
    load_weights(source, model)
    assert model.embed.weight.data_ptr() == kept


@pytest.mark.parametrize(
    ("model", "family", "said"),
    [
        ("mistral-linear", "mistral", "warning: transformers before 4.48 ignores rotary scaling of Mistral models\n"),
        ("mistral-window", "mistral", ""),
        ("llama-linear", "llama", ""),
        ("gpt_neox-linear", "gpt_neox", ""),
    ],
)
def test_what_old_releases_get_wrong_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, family: str, said: str
) -> None:
    tinies.save(tinies.tiny(model).model(), tmp_path / "hf")
    import_model(open_foreign(tmp_path / "hf"), tmp_path / "a", Mesh())
    capsys.readouterr()
    export_model(Checkpoint.open(tmp_path / "a"), tmp_path / "again", by_name(family))
    assert [line for line in capsys.readouterr().err.splitlines(keepends=True) if "export" not in line] == [said][
        : bool(said)
    ]
