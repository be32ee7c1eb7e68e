"""The README's shell commands are run, its links lead somewhere, its Makefile targets exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from neoxkit.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[str]:
    """The lines of the blocks marked `sh`: those that run anywhere. Blocks without a mark are not run."""
    blocks = re.findall(
        r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    return [line for block in blocks for line in block.splitlines() if line]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the commands start from: a Hugging Face model, texts, the configurations."""
    import tokenizers
    import transformers

    text = (ROOT / "neoxkit" / "spec.py").read_text(encoding="utf-8")
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator([text], vocab_size=300, special_tokens=["<|endoftext|>"])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>")
    config = transformers.GPTNeoXConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    transformers.GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "my-model")
    tokenizer.save_pretrained(tmp_path / "my-model")

    (tmp_path / "texts").mkdir()
    for number in range(40):
        (tmp_path / "texts" / f"{number}.txt").write_text(text[100 * number : 100 * number + 400], encoding="utf-8")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_of_the_readme_run(folder: Path) -> None:
    lines = commands()
    assert len(lines) >= 8
    for line in lines:
        program, *args = shlex.split(line)
        assert program == "neoxkit"
        result = CliRunner().invoke(main, args)
        assert result.exit_code == 0, f"{line}\n{result.output}{result.exception or ''}"
    assert (folder / "my-model-again" / "config.json").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_targets_of_the_readme_exist() -> None:
    rules = (ROOT / "Makefile").read_text(encoding="utf-8")
    wanted = set(re.findall(r"make ([a-z]+)", " ".join(re.findall(r"`([^`]*)`", (ROOT / "README.md").read_text()))))
    assert {"quickstart", "test"} <= wanted
    for target in wanted:
        assert re.search(rf"^{target}:", rules, re.MULTILINE), target


def test_the_architecture_page_names_what_exists() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for path in re.findall(r"`(neoxkit/[\w/.]+|tests/[\w/.]+)`", page):
        assert (ROOT / path).exists(), path


def test_the_examples_of_the_family_page_are_the_code() -> None:
    """Each example is found in a family file, line by line."""
    page = (ROOT / "docs" / "adding-a-family.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    files = [path.read_text(encoding="utf-8") for path in (ROOT / "neoxkit" / "families").glob("*.py")]
    sources = ["\n".join(line.strip() for line in text.splitlines()) for text in files]
    assert len(blocks) >= 3
    for block in blocks:
        wanted = "\n".join(line.strip().removesuffix(",") for line in block.splitlines())
        assert any(wanted in source.replace(",\n", "\n") for source in sources), block
