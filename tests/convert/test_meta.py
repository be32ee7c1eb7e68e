"""Meta's and Mistral's own files: merged, laid out anew, and computing what Meta's mathematics computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from meta_reference import Scaling, Tensors, divided, logits, meta_tensors, permute, write_meta
from refusal import run
from safetensors.torch import load_file, save_file
from tiny import Tiny
from torch import Tensor

from neoxkit.convert.hf_source import HuggingFaceSource
from neoxkit.convert.load import load_decoder
from neoxkit.convert.meta_source import MetaSource
from neoxkit.convert.open import open_any
from neoxkit.errors import NeoxkitError
from neoxkit.families import by_name
from neoxkit.families.layout import Interleaved

HEADS, WIDTH, VOCAB = 8, 64, 96
SIZES = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_attention_heads": HEADS}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def llama(kv_heads: int = HEADS, theta: float = 10000.0, context: int = 2048, **options: Any) -> Tiny:
    """A tiny Llama whose sizes divide over 4 shards; its FFN width is what multiple_of 32 makes."""
    rope = {"rope_type": "default", "rope_theta": theta, **options.pop("scaling", {})}
    sizes = {"num_key_value_heads": kv_heads, "intermediate_size": 192, "max_position_embeddings": context}
    return Tiny("llama", "meta", {**SIZES, **sizes, "rms_norm_eps": 1e-5, "rope_parameters": rope, **options})


PARAMS = {"dim": WIDTH, "n_layers": 3, "n_heads": HEADS, "norm_eps": 1e-5, "multiple_of": 32, "vocab_size": -1}
GROUPED = {**PARAMS, "n_kv_heads": 4, "vocab_size": VOCAB, "rope_theta": 500000.0}
SCALED = {**GROUPED, "use_scaled_rope": True}
SCALING = {"rope_type": "llama3", **LLAMA3}
MISTRAL = {
    "dim": WIDTH, "n_layers": 3, "n_heads": HEADS, "n_kv_heads": 2, "head_dim": 10, "hidden_dim": 96,
    "norm_eps": 1e-6, "sliding_window": 5, "vocab_size": VOCAB, "rope_theta": 1e6,
}  # fmt: skip


@pytest.fixture(scope="module")
def ids() -> Tensor:
    """Tokens to compare on, more than the sliding window."""
    return torch.randint(VOCAB, (48,), generator=torch.Generator().manual_seed(3))


def computed(source: Any, ids: Tensor) -> Tensor:
    """Our decoder's logits [tokens, vocab]."""
    with torch.no_grad():
        found: Tensor = load_decoder(source)(ids[None])[0]
    return found


def check(folder: Path, model: Any, params: dict[str, Any], ids: Tensor, scaling: Scaling | None = None, **assume: str):
    """The imported model computes what Meta's reference does, and its tensors are the original's."""
    source = MetaSource(folder, {key.replace("_", "-"): value for key, value in assume.items()})
    theirs = logits(meta_tensors(model), params, ids, scaling)
    apart = (computed(source, ids) - theirs).abs().max().item()
    print(f"{folder.name}: greatest difference of a logit {apart:.2e}, greatest logit {theirs.abs().max():.2f}")
    assert apart < 1e-5
    ours = {name.removeprefix("model/"): source.read(name) for name in source.names()}
    state = model.state_dict()
    assert torch.equal(ours["layers.1.attn.q.weight"], state["model.layers.1.self_attn.q_proj.weight"])
    for name in source.names():
        blocks = [value for _, value in source.stream(name)]
        assert torch.equal(torch.cat(blocks), source.read(name))
        if len(source.spec(name).shape) == 2:
            rows, columns = source.spec(name).shape
            box = ((3, rows - 2), (1, columns - 3))
            assert torch.equal(source.read(name, box), source.read(name)[3 : rows - 2, 1 : columns - 3])
    return source


def test_the_permutation() -> None:
    weight = torch.arange(24 * 3).reshape(24, 3)
    (ours,) = Interleaved(4).split([weight])
    assert torch.equal(ours, permute(weight, 4))
    assert torch.equal(Interleaved(4).join([ours])[0], weight)
    assert Interleaved(1).split([torch.tensor([0, 10, 1, 11])])[0].tolist() == [0, 1, 10, 11]


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_llama_1_and_2(shards: int, tmp_path: Path, ids: Tensor) -> None:
    model = llama().model()
    folder = write_meta(tmp_path / f"llama-{shards}", meta_tensors(model), PARAMS, shards)
    source = check(folder, model, PARAMS, ids)
    assert source.config.context == 2048
    assert source.config.vocab == VOCAB
    assert (source.config.family, source.kind) == ("llama", "meta")


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_llama_3_divides_the_vocabulary(shards: int, tmp_path: Path, ids: Tensor) -> None:
    model = llama(4, 500000.0).model()
    folder = write_meta(tmp_path / f"llama3-{shards}", meta_tensors(model), GROUPED, shards, embedding=0)
    check(folder, model, GROUPED, ids)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_scaling(factor: float, tmp_path: Path, ids: Tensor) -> None:
    model = llama(4, 500000.0, scaling={**SCALING, "factor": factor}).model()
    folder = write_meta(tmp_path / f"scaled-{factor:g}", meta_tensors(model), SCALED, 2, embedding=0)
    source = check(folder, model, SCALED, ids, Scaling(factor), rope_factor=f"{factor:g}")
    with torch.no_grad():
        apart = (computed(source, ids) - model(ids[None]).logits[0]).abs().max().item()
    assert apart < 1e-5
    plain = logits(meta_tensors(model), SCALED, ids)
    assert (computed(source, ids) - plain).abs().max() > 1e-4  # the scaling is seen


def test_without_a_factor_scaling_is_refused(tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "a", meta_tensors(llama(4).model()), SCALED)
    with pytest.raises(NeoxkitError, match="rope-factor=8"):
        MetaSource(folder)
    (folder / "params.json").write_text(json.dumps({**SCALED, "rope_scaling_factor": 8.0}))
    assert MetaSource(folder).config.position.scaling.factor == 8.0
    (folder / "params.json").write_text(json.dumps(GROUPED))
    with pytest.raises(NeoxkitError, match="does not scale"):
        MetaSource(folder, {"rope-factor": "8"})


@pytest.mark.parametrize("kind", ["safetensors", "pth", "sharded"])
def test_mistral(kind: str, tmp_path: Path, ids: Tensor) -> None:
    rope = {"rope_type": "default", "rope_theta": 1e6}
    options = {"num_key_value_heads": 2, "head_dim": 10, "sliding_window": 5, "rms_norm_eps": 1e-6}
    model = Tiny("mistral", "own", {**SIZES, **options, "rope_parameters": rope}).model()
    tensors, folder = meta_tensors(model), tmp_path / f"mistral-{kind}"
    write_meta(folder, tensors, MISTRAL, 2 if kind == "sharded" else 1)
    if kind == "safetensors":
        (folder / "consolidated.00.pth").unlink()
        save_file(tensors, folder / "consolidated.safetensors")
    source = check(folder, model, MISTRAL, ids)
    assert source.config.mixer.window == 5
    assert source.config.context == 32768
    assert (source.config.family, source.kind) == ("mistral", "mistral")


def test_export_gives_the_original_model_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the command line, cut for tp 2 pp 3 on the way; inspect, diff, verify and reshard take the files too."""
    monkeypatch.chdir(tmp_path)
    model = llama(4, 500000.0, scaling=SCALING).model().bfloat16()
    model.save_pretrained("original")
    write_meta(Path("meta"), meta_tensors(model), SCALED, 4, embedding=0)
    assumed = "--assume rope-factor=8 --assume context=2048"
    result = run(f"import meta checkpoint --tp 2 --pp 3 {assumed}")
    assert result.exit_code == 0, result.output
    assert run("export checkpoint exported --to llama").exit_code == 0
    ours, theirs = load_file("exported/model.safetensors"), load_file("original/model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in theirs)
    wanted = HuggingFaceSource(Path("original")).config
    assert HuggingFaceSource(Path("exported")).config == wanted
    result = run(f"import meta whole {assumed}")
    assert run("diff checkpoint whole").exit_code == 0
    lineage = json.loads(run("inspect checkpoint --json").stdout)["lineage"]
    assert lineage[0]["format"] == "Meta Llama, 4 shards"


def test_other_commands_take_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = llama().model()
    model.save_pretrained("hf")
    write_meta(Path("meta"), meta_tensors(model), PARAMS, 2)
    about = json.loads(run("inspect meta --json").stdout)
    assert about["kind"] == "meta"
    assert about["parameters"]["total"] == sum(each.numel() for each in model.parameters())
    assert "Meta's files" in run("inspect meta").stdout
    result = run("diff meta hf --values")
    assert result.exit_code == 0, result.output
    assert run("verify meta").exit_code == 0
    source = open_any(Path("meta"))
    assert isinstance(source, MetaSource)
    assert source.lineage["assumed"].startswith("context 2048")


def test_a_head_that_is_the_embedding_is_tied(tmp_path: Path, ids: Tensor) -> None:
    model = llama(4, tie_word_embeddings=True).model()
    folder = write_meta(tmp_path / "tied", meta_tensors(model), GROUPED | {"rope_theta": 10000.0})
    source = check(folder, model, GROUPED | {"rope_theta": 10000.0}, ids)
    assert source.config.tied
    assert "model/head.weight" not in source.names()


def test_replicas_that_differ_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_meta(tmp_path / "a", meta_tensors(llama().model()), PARAMS, 2)
    shard = torch.load(folder / "consolidated.01.pth")
    shard["layers.1.ffn_norm.weight"][3] += 0.25
    torch.save(shard, folder / "consolidated.01.pth")
    MetaSource(folder)
    said = capsys.readouterr().err
    assert "1 tensors differ between shards, by up to 0.25 (layers.1.ffn_norm.weight)" in said


def params(**keys: Any) -> Callable[[Path], object]:
    """Damage: other values in params.json."""
    return lambda folder: (folder / "params.json").write_text(json.dumps({**PARAMS, **keys}))


def shard(rank: int, change: Callable[[Tensors], object]) -> Callable[[Path], None]:
    """Damage: other tensors in a shard."""

    def act(folder: Path) -> None:
        path = folder / f"consolidated.{rank:02}.pth"
        tensors = torch.load(path)
        change(tensors)
        torch.save(tensors, path)

    return act


class Malicious:
    """A pickle that runs a command when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("harmed",)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard is missing": (lambda f: (f / "consolidated.00.pth").unlink(), r"consolidated\.00\.pth is missing"),
    "the last shard is missing": (lambda f: (f / "consolidated.01.pth").unlink(), "are all shards there"),
    "vocabulary": (params(vocab_size=100), "vocab_size is 100, but the embedding has 96 rows"),
    "width of the FFN": (params(multiple_of=256), "is 256, but the tensors have 192 rows"),
    "stated hidden_dim": (params(hidden_dim=200), "hidden_dim is 200, but the tensors have 192 rows"),
    "kv heads": (params(n_kv_heads=2), r"wk.weight' of 2 shards is \[64, 64\], params.json asks for \[16, 64\]"),
    "more shards than kv heads": (params(n_kv_heads=1), "2 shards do not divide 1 key/value heads"),
    "fewer layers": (params(n_layers=2), "belong to nothing in params.json"),
    "more layers": (params(n_layers=4), "tensors are missing"),
    "no dim": (params(dim=None), "'dim' is missing"),
    "experts": (params(moe={"num_experts": 8}), "moe is"),
    "quantised": (params(quantization={"qformat_weight": "fp8_e4m3"}), "quantization is"),
    "not JSON": (lambda f: (f / "params.json").write_text("{"), "not valid JSON"),
    "a tensor in one shard only": (shard(1, lambda t: t.pop("norm.weight")), "only one of .* has 'norm.weight'"),
    "other dtypes": (
        shard(1, lambda t: t.update({"norm.weight": t["norm.weight"].half()})),
        "F32 in consolidated.00.pth, .* F16 in consolidated.01.pth",
    ),
    "two models": (lambda f: save_file({}, f / "consolidated.safetensors"), "two models"),
    "a pickle that runs code": (shard(1, lambda t: t.update(x=Malicious())), "asks for .*print.*: refused"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_contradicts_itself_is_refused(what: str, tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "a", meta_tensors(llama().model()), PARAMS, 2)
    damage, said = BAD[what]
    damage(folder)
    with pytest.raises(NeoxkitError, match=said):
        MetaSource(folder)


def test_what_may_be_assumed(tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "a", meta_tensors(llama().model()), PARAMS)
    assert MetaSource(folder, {"context": "4096"}).config.context == 4096
    for wrong in ({"context": "many"}, {"context": "-1"}, {"colour": "red"}):
        with pytest.raises(NeoxkitError):
            MetaSource(folder, wrong)


def test_evidence_of_published_models(tmp_path: Path) -> None:
    """context, special tokens and the rotary factor, from what the published params.json say (depth cut short)."""
    from neoxkit.convert.meta_params import FACTORS, LLAMA_3_VOCAB, _context, _hidden, _scaling

    assert _hidden(4096, 256, None) == 11008  # Llama 7B
    assert _hidden(5120, 256, None) == 13824  # 13B
    assert _hidden(8192, 4096, 1.3) == 28672  # Llama 2 70B
    assert _hidden(4096, 1024, 1.3) == 14336  # Llama 3 8B
    assert _hidden(2048, 256, 1.5) == 8192  # Llama 3.2 1B
    assert _hidden(3072, 256, 1.0) == 8192  # Llama 3.2 3B
    for (dim, layers), factor in FACTORS.items():
        found, said = _scaling({"dim": dim, "n_layers": layers, "vocab_size": LLAMA_3_VOCAB}, {}, "params.json")
        assert found["factor"] == factor
        assert "assume" in said[0]
    files: Any = type("Files", (), {"dtype": lambda self, key: "F16"})()
    assert _context({"vocab_size": 32000}, files, False)[0] == 2048
    assert _context({"vocab_size": 32000, "n_kv_heads": 8}, files, False)[0] == 4096
    assert _context({"vocab_size": 32016, "rope_theta": 1000000}, files, False)[0] == 16384
    assert _context({"vocab_size": LLAMA_3_VOCAB, "rope_theta": 500000.0}, files, False)[0] == 8192


def test_a_hugging_face_model_beside_them_wins(tmp_path: Path) -> None:
    model = llama().model()
    folder = write_meta(tmp_path / "a", meta_tensors(model), PARAMS)
    model.save_pretrained(folder)
    assert isinstance(open_any(folder), HuggingFaceSource)
    (folder / "model.safetensors").unlink()
    assert isinstance(open_any(folder), MetaSource)


def test_shards_divide_as_fairscale_does() -> None:
    tensors = meta_tensors(llama(4).model())
    columns, rows = divided(tensors, 4, 1), divided(tensors, 4, 0)
    assert columns[0]["tok_embeddings.weight"].shape == (VOCAB, WIDTH // 4)
    assert rows[0]["tok_embeddings.weight"].shape == (VOCAB // 4, WIDTH)
    assert columns[0]["layers.0.attention.wo.weight"].shape == (WIDTH, WIDTH // 4)
    assert by_name("llama").name == "llama"
