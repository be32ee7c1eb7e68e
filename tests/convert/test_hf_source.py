"""Hugging Face folders, whole and damaged: what is read, what is passed over, what is refused and why."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny as tinies
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from neoxkit.convert.hf_source import HuggingFaceSource
from neoxkit.convert.load import load_decoder
from neoxkit.errors import CheckpointError, ConversionError, NeoxkitError

WEIGHTS, BIN = "model.safetensors", "pytorch_model.bin"
QKV = "gpt_neox.layers.1.attention.query_key_value.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A GPT-NeoX model in one safetensors file."""
    tinies.save(tinies.tiny("gpt_neox-parallel").model(), tmp_path)
    return tmp_path


def everything(folder: Path) -> dict[str, Tensor]:
    source = HuggingFaceSource(folder)
    found = {name: source.read(name) for name in source.names()}
    source.close()
    return found


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def as_bin(folder: Path, **options: Any) -> dict[str, Tensor]:
    """Turn model.safetensors into pytorch_model.bin."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(tensors, folder / BIN, **options)
    return tensors


def sharded(folder: Path, name: str, write: Callable[[dict[str, Tensor], Path], object]) -> dict[str, str]:
    """Two files and their index."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    stem, suffix = name.split(".")
    files = [f"{stem}-0000{n}-of-00002.{suffix}" for n in (1, 2)]
    weight_map = {key: files[number % 2] for number, key in enumerate(sorted(tensors))}
    for file in files:
        write({key: tensors[key] for key in tensors if weight_map[key] == file}, folder / file)
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def refused(folder: Path, *words: str, kind: type[NeoxkitError] = CheckpointError) -> str:
    """The one line by which a folder is refused."""
    with pytest.raises(kind) as raised:
        HuggingFaceSource(folder)
    line = str(raised.value)
    assert "\n" not in line
    assert raised.value.remedy
    for word in words:
        assert word in line, line
    return line


def test_every_kind_of_file_holds_the_same(tmp_path: Path) -> None:
    """Safetensors and .bin, single and sharded; .bin as torch wrote it before 1.6 too, and of parameters."""
    model = tinies.tiny("gpt_neox-parallel").model()
    kinds: dict[str, Callable[[Path], object]] = {
        "safetensors": lambda folder: None,
        "sharded": lambda folder: sharded(folder, WEIGHTS, lambda t, path: save_file(t, path)),
        "bin": as_bin,
        "old bin": lambda folder: as_bin(folder, _use_new_zipfile_serialization=False),
        "sharded bin": lambda folder: sharded(folder, BIN, torch.save),
        "sharded old bin": lambda folder: sharded(
            folder, BIN, lambda t, path: torch.save(t, path, _use_new_zipfile_serialization=False)
        ),
        "parameters": lambda folder: torch.save(
            OrderedDict((k, torch.nn.Parameter(v)) for k, v in as_bin(folder).items()), folder / BIN
        ),
        "strides": lambda folder: torch.save(
            {k: v.t().contiguous().t() if v.dim() == 2 else v for k, v in as_bin(folder).items()}, folder / BIN
        ),
    }
    wanted: dict[str, Tensor] = {}
    for kind, change in kinds.items():
        tinies.save(model, tmp_path / kind)
        change(tmp_path / kind)
        found = everything(tmp_path / kind)
        wanted = wanted or found
        assert_same(found, wanted)
        assert not any(value.requires_grad for value in found.values())
        assert all(value.is_contiguous() for value in found.values())


def test_boxes_and_blocks(folder: Path) -> None:
    """Of a fused tensor and of one that is as it is."""
    source = HuggingFaceSource(folder)
    for name in ("model/layers.1.attn.k.weight", "model/embed.weight"):
        whole = source.read(name)
        assert torch.equal(source.read(name, ((8, 24), (3, 40))), whole[8:24, 3:40])
        blocks = list(source.stream(name, ((5, 31), (0, 48))))
        assert torch.equal(torch.cat([value for _, value in blocks]), whole[5:31])
    source.close()


def test_buffers_of_old_files_are_passed_over(folder: Path) -> None:
    """transformers before 4.26 saved masks and frequencies with GPT-NeoX."""
    wanted = everything(folder)
    tensors = as_bin(folder)
    for layer in range(3):
        at = f"gpt_neox.layers.{layer}.attention."
        tensors[at + "bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool)
        tensors[at + "masked_bias"] = torch.tensor(-1e9)
        tensors[at + "rotary_emb.inv_freq"] = torch.ones(1)
    torch.save(tensors, folder / BIN)
    assert_same(everything(folder), wanted)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "old"])
def test_a_pickle_that_would_run_something_is_refused(
    folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    tensors: dict[str, Any] = as_bin(folder)
    torch.save({**tensors, "x": Malicious()}, folder / BIN, **options)
    line = refused(folder, BIN, "asks for posix.system: refused", "do not trust this file")
    assert "add_safe_globals" not in line, "torch's advice to allow it is none for a stranger's file"
    assert not Path("ran").exists()
    pickle.loads(pickle.dumps(Malicious()))  # the proof that it would have run
    assert Path("ran").exists()


def test_a_bare_pickle_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / BIN).write_bytes(pickle.dumps(Malicious(), protocol=2))
    refused(folder, BIN)
    assert not Path("ran").exists()


@pytest.mark.parametrize("content", [[1, 2], {"a": 3}, {4: torch.ones(2)}], ids=["list", "number", "key"])
def test_a_bin_of_something_else(folder: Path, content: Any) -> None:
    (folder / WEIGHTS).unlink()
    torch.save(content, folder / BIN)
    refused(folder, BIN, "not a mapping of names to tensors")


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
def test_a_bin_cut_short_or_scrambled(folder: Path, old: bool) -> None:
    """Wherever it is cut, and whatever byte of its pickle changes: refused in words, or read without harm."""
    as_bin(folder, _use_new_zipfile_serialization=not old)
    data = (folder / BIN).read_bytes()
    for size in [0, 1, 10, 100, 1000, len(data) // 2, len(data) - 1]:
        (folder / BIN).write_bytes(data[:size])
        refused(folder, BIN, "damaged", "fetch it again")
    if old:
        pickled = range(30, 3000, 61)
        scrambled = (data[:at] + bytes([data[at] ^ 0x15]) + data[at + 1 :] for at in pickled)
    else:
        scrambled = scrambled_zips(data)
    for content in scrambled:
        (folder / BIN).write_bytes(content)
        try:
            HuggingFaceSource(folder).close()
        except NeoxkitError as error:
            assert "\n" not in str(error)  # noqa: PT017


def scrambled_zips(data: bytes) -> Any:
    """The same archive with one byte of its data.pkl changed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    for at in range(0, min(3000, len(members[name])), 61):
        changed = bytearray(members[name])
        changed[at] ^= 0x15
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for each, content in members.items():
                archive.writestr(each, bytes(changed) if each == name else content)
        yield buffer.getvalue()


def test_a_tied_model_whose_file_has_the_head_too(tmp_path: Path) -> None:
    for name, head in (("llama-tied", "lm_head.weight"), ("gpt_neox-tied", "embed_out.weight")):
        folder = tmp_path / name
        tinies.save(tinies.tiny(name).model(), folder)
        wanted, tensors = everything(folder), load_file(folder / WEIGHTS)
        embed = next(value for key, value in tensors.items() if "embed" in key)
        save_file({**tensors, head: embed.clone()}, folder / WEIGHTS)
        assert_same(everything(folder), wanted)
        different = embed.clone()
        different[5, 7] += 1
        for wrong in (different, embed.half(), embed[:-1].clone()):
            save_file({**tensors, head: wrong}, folder / WEIGHTS)
            refused(folder, f"{head!r} differs", "set tie_word_embeddings to false", kind=ConversionError)


def test_tensors_that_disagree_with_the_configuration(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)

    def of(changed: dict[str, Tensor], *words: str) -> None:
        save_file(changed, folder / WEIGHTS)
        refused(folder, *words, kind=ConversionError)

    of({k: v for k, v in tensors.items() if k != QKV}, "1 of 40 tensors are missing", QKV)
    of(
        {**tensors, "gpt_neox.layers.3.x": torch.ones(2)},
        "1 tensors, 'gpt_neox.layers.3.x' among them, belong to nothing",
    )
    of({**tensors, QKV: tensors[QKV][:-1].clone()}, f"{QKV!r} is [143, 48], config.json asks for [144, 48]")
    of({**tensors, QKV: tensors[QKV].to(torch.int8)}, f"{QKV} is I8", "weights must be one of")
    of({**tensors, QKV: tensors[QKV].to(torch.float8_e4m3fn)}, f"{QKV} is F8_E4M3", "weights must be one of")


def set_config(folder: Path, **keys: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def test_a_configuration_beyond_all_reason_is_refused_at_once(folder: Path) -> None:
    for keys in ({"num_hidden_layers": 10**9}, {"hidden_size": 6 * 10**14}, {"vocab_size": 10**30}):
        tree = json.loads((folder / "config.json").read_text())
        set_config(folder, **keys)
        refused(folder, "the weights are no such model", kind=ConversionError)
        (folder / "config.json").write_text(json.dumps(tree))


def test_a_quantised_model(folder: Path) -> None:
    set_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    refused(folder, "quantised", "before its quantisation", kind=ConversionError)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "[" * 100000, "\xff"])
def test_a_configuration_that_is_none(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="latin-1")
    refused(folder, "config.json: not")


def test_no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    refused(folder, "no model.safetensors, no pytorch_model.bin and no index of either")
    (folder / "config.json").unlink()
    refused(folder, "config.json: No such file")


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/passwd", "..", "", "a/b.safetensors", "a\0b.safetensors", 3, None, {}],
)
def test_an_index_that_leads_elsewhere(folder: Path, name: Any) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).rename(folder.parent / "model.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, name)}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    refused(folder, "model.safetensors.index.json")


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": 3}', "{}", "[" * 100000])
def test_an_index_that_is_none(folder: Path, text: str) -> None:
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(text)
    refused(folder, "not an index of weights")


def test_an_index_that_names_what_is_not_there(folder: Path) -> None:
    weight_map = sharded(folder, WEIGHTS, lambda t, path: save_file(t, path))
    index, files = folder / f"{WEIGHTS}.index.json", sorted(set(weight_map.values()))
    index.write_text(json.dumps({"weight_map": {**weight_map, "more": files[1]}}))
    refused(folder, files[1], "tensor 'more', which the index names, is not there")
    index.write_text(json.dumps({"weight_map": {**weight_map, QKV: next(f for f in files if f != weight_map[QKV])}}))
    refused(folder, f"tensor {QKV!r}, which the index names, is not there")
    index.write_text(json.dumps({"weight_map": weight_map}))
    (folder / files[0]).unlink()
    refused(folder, files[0], "No such file")


def test_an_index_beside_a_whole_file(folder: Path) -> None:
    """Two models in one folder: which is meant? transformers takes the one, other programs the other."""
    data = (folder / WEIGHTS).read_bytes()
    weight_map = sharded(folder, WEIGHTS, lambda t, path: save_file(t, path))
    (folder / WEIGHTS).write_bytes(data)
    refused(folder, "both model.safetensors and model.safetensors.index.json, two models")
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(weight_map, WEIGHTS)}))
    HuggingFaceSource(folder).close()


def test_a_file_cut_short(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    for size in (0, 4, 8, 100, len(data) // 2, len(data) - 1):
        (folder / WEIGHTS).write_bytes(data[:size])
        refused(folder, WEIGHTS, "short")


def test_a_file_cut_short_after_it_was_opened(folder: Path) -> None:
    source = HuggingFaceSource(folder)
    os.truncate(folder / WEIGHTS, 5000)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: ends inside tensor"):
        load_decoder(source)
    source.close()


def test_a_header_whose_tensors_overlap(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    shape = header[QKV]["shape"]
    twin = next(v for k, v in header.items() if k != QKV and v.get("shape") == shape)
    header[QKV]["data_offsets"] = twin["data_offsets"]
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    refused(folder, WEIGHTS, "overlap")


def test_unknown_keys_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    HuggingFaceSource(folder).close()
    assert "does not know" not in capsys.readouterr().err
    set_config(folder, logit_softcap=30.0, _private=1)
    HuggingFaceSource(folder).close()
    assert "keys that neoxkit does not know are passed over: logit_softcap" in capsys.readouterr().err
