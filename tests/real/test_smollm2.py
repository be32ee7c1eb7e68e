"""A real pretrained model, SmolLM2-135M-Instruct, through the whole chain. It comes from a package, in GGUF."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from refusal import run
from safetensors.torch import load_file
from served import NAME, live

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.convert.load import load_decoder
from neoxkit.convert.open import open_foreign
from neoxkit.convert.transfer import export_model, import_model, reshard
from neoxkit.data.tokenizer import Tokenizer
from neoxkit.families import by_name
from neoxkit.mesh import Mesh
from neoxkit.serve.request import Limits

QUESTION = "The capital of France is"


@pytest.fixture(scope="module")
def recut(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    """Imported whole, cut for tp 3 x pp 2, and made whole again."""
    here = tmp_path_factory.mktemp("smollm2")
    source = open_foreign(original)
    import_model(source, here / "whole", Mesh())
    source.close()
    with Checkpoint.open(here / "whole") as first:
        reshard(first, here / "pieces", Mesh(tp=3, pp=2))
    with Checkpoint.open(here / "pieces") as pieces:
        assert len(list((here / "pieces/model").iterdir())) == 6
        reshard(pieces, here / "back", Mesh())
        assert pieces.fingerprint == first.fingerprint
    with Checkpoint.open(here / "back") as back:
        assert back.fingerprint == first.fingerprint
        yield back
    shutil.rmtree(here)


@pytest.mark.timeout(600)
def test_it_is_what_its_authors_describe(original: Path) -> None:
    source = open_foreign(original)
    config = source.config
    assert (config.family, config.depth, config.width, config.vocab) == ("llama", 30, 576, 49152)
    assert (config.mixer.heads, config.mixer.kv_heads, config.tied, config.position.base) == (9, 3, True, 100000)  # type: ignore[union-attr]
    assert sum(source.spec(name).shape[0] * (*source.spec(name).shape, 1)[1] for name in source.names()) == 134515008
    source.close()


@pytest.mark.timeout(600)
def test_export_is_bit_identical(original: Path, recut: Checkpoint, tmp_path: Path) -> None:
    export_model(recut, tmp_path / "hf", by_name("llama"), most=100_000_000)
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    found = {k: v for path in (tmp_path / "hf").glob("*.safetensors") for k, v in load_file(path).items()}
    wanted = load_file(original / "model.safetensors")
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key].dtype == torch.bfloat16
        assert torch.equal(found[key].view(torch.int16), value.view(torch.int16)), key
    for name in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (original / name).read_bytes()


@pytest.mark.timeout(600)
def test_logits(original: Path, recut: Checkpoint) -> None:
    """Against transformers in fp32. The largest logit is 44, and on the machine first tried no bit differed."""
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([Tokenizer(original).encode(TEXT)])
    assert ids.shape[1] > 60
    theirs = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32, attn_implementation="sdpa")
    with torch.inference_mode():
        wanted = theirs(ids).logits
        found = load_decoder(recut, torch.float32)(ids)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)
    assert torch.equal(found.argmax(-1), wanted.argmax(-1))


@pytest.mark.timeout(600)
def test_it_knows_the_capital_of_france(recut: Checkpoint) -> None:
    """As a text that it goes on with, and as a question in a conversation that it remembers."""
    most = "--max-tokens 24"
    text = run(f"generate {recut.path} --prompt '{QUESTION}' {most} --stop .").stdout
    assert text.startswith(f"{QUESTION} Paris")
    talk = run(f"generate {recut.path} --interactive {most}", "What is the capital of France?\nAnd of Italy?\n")
    assert talk.exit_code == 0, talk.output
    first, second = talk.stdout.splitlines()
    assert "Paris" in first
    assert "Rome" in second


@pytest.mark.timeout(600)
def test_it_chats_over_http(original: Path) -> None:
    """OpenAI's client, streaming, from weights of 16 bits; the second question makes sense after the first only."""
    with live(original, Limits(batch=4, context=512), dtype=None) as server:
        client = server.client()
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        chunks = client.chat.completions.create(
            model=NAME,
            messages=messages,
            temperature=0,
            max_tokens=24,
            stream=True,
        )
        first = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert "Paris" in first
        messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "And of Italy?"}]
        second = client.chat.completions.create(
            model=NAME,
            messages=messages,
            temperature=0,
            max_tokens=24,
        )
        assert "Rome" in str(second.choices[0].message.content)
        assert second.usage.prompt_tokens_details.cached_tokens > 16


TEXT = """A language model gives each text a probability, token by token: the first, then the second when the
first is known, and so on. To train it is to raise the probability of texts that people wrote. In Paris, on the
river Seine, it rained. def fibonacci(n): return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)"""
