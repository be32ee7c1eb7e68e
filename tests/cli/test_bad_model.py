"""Models that cannot be imported, or exported as they are asked for: one clear line, 2, and nothing written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from refusal import Act, Case, also, check, cut, flip, header, remove, set_json, tensors, write

CONFIG, WEIGHTS = "hf/config.json", "hf/model.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"


def entry(key: str, **claims: Any) -> Act:
    """Change what the header says of a tensor."""
    return header(WEIGHTS, lambda tree: tree[key].update(claims))


def moved(key: str, by: int) -> Act:
    """Let the header say that a tensor lies elsewhere."""
    return header(WEIGHTS, lambda tree: tree[key].update(data_offsets=[at + by for at in tree[key]["data_offsets"]]))


def spread(**files: str) -> Act:
    """An index instead of the one file; keywords say in which file a tensor (dots written as __) lies."""

    def act() -> None:
        from safetensors import safe_open

        with safe_open(WEIGHTS, "pt") as file:
            places = dict.fromkeys(file.keys(), "one.safetensors")
        Path(WEIGHTS).rename("hf/one.safetensors")
        places.update({key.replace("__", "."): name for key, name in files.items()})
        Path("hf/model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))

    return act


def fewer_rows(found: dict[str, Any]) -> None:
    """Take the last rows of the vocabulary away."""
    found.update({key: value[:290].clone() for key, value in found.items() if len(value) == 300})


class Malicious:
    """A pickle that runs a command when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch harmed",)


def malicious() -> None:
    Path(WEIGHTS).unlink()
    torch.save({"model.norm.weight": Malicious()}, "hf/pytorch_model.bin")


def neox(embedding: Any) -> None:
    """A run of gpt-neox whose one layer's names are right."""
    folder = Path("run5/global_step5")
    folder.mkdir(parents=True)
    Path("run5/latest").write_text("global_step5")
    matrix, vector = torch.zeros(12, 4), torch.zeros(4)
    block = {"input_layernorm.weight": vector, "attention.query_key_value.weight": matrix}
    layers = {0: {"word_embeddings.weight": embedding}, 2: block, 4: {"norm.weight": vector}}
    for layer, held in layers.items():
        torch.save(held, folder / f"layer_{layer:02d}-model_00-model_states.pt")


FOLDERS = [
    Case("no such folder", "import nowhere out", "nowhere: no such file or folder; check the path"),
    Case("no such folder in one that is there", "import hf/nowhere out",
         "hf/nowhere: no such file or folder; check the path"),
    Case("a weight file", "import hf/model.safetensors out",
         "hf/model.safetensors: a file, not a model's folder; name"),
    Case("a run", "import run out", "run: a run of neoxkit, whose checkpoints need no import; use them as they are"),
    Case("a folder of text", "import text out",
         "text: no config.json: not a Hugging Face model; choose a model's folder"),
    Case("a checkpoint", "import checkpoint out", "checkpoint: a neoxkit checkpoint already; ... neoxkit reshard"),
    Case("a damaged file of gpt-neox", "import global_step100 out",
         "global_step100/mp_rank_00_model_states.pt: not a file of torch tensors ... ; fetch",
         also(lambda: Path("global_step100").mkdir(), write("global_step100/mp_rank_00_model_states.pt"))),
    Case("a malicious file of gpt-neox", "import run5 out",
         "layer_00-model_00-model_states.pt: asks for posix.system: refused; do not trust this file",
         lambda: neox(Malicious())),
    Case("a gpt-neox without settings", "import run5 out",
         "global_step5: no settings in ... configs; give them with --config", lambda: neox(torch.zeros(4, 4))),
    Case("settings of gpt-neox for another", "import hf out --config a.yml",
         "hf: no gpt-neox checkpoint, which alone has settings; leave --config out"),
    Case("settings that are not there", "import run5 out --config a.yml", "a.yml: No such file or directory; check",
         lambda: neox(torch.zeros(4, 4))),
    Case("no weights", "import hf out", "hf: no model.safetensors, no pytorch_model.bin ... ; ", remove(WEIGHTS)),
]  # fmt: skip

CONFIGS = [
    Case("no config", "import hf out", "hf: ... config.json ... ; ", remove(CONFIG)),
    Case("broken config", "import hf out", "hf/config.json: not valid JSON ... ; fetch", cut(CONFIG, 300)),
    Case("config is a list", "import hf out", "hf/config.json: not a JSON object; fetch", write(CONFIG, "[]")),
    Case("unknown architecture", "import hf out",
         "describes GPTJForCausalLM ... ; it knows GPTNeoXForCausalLM, LlamaFor",
         set_json(CONFIG, architectures=["GPTJForCausalLM"])),
    Case("missing key", "import hf out", "hf/config.json: ... 'hidden_size' ... ; ", set_json(CONFIG, hidden_size=...)),
    Case("null for a size", "import hf out", "hf/config.json: ... hidden_size ... ; ",
         set_json(CONFIG, hidden_size=None)),
    Case("text for a size", "import hf out", "hf/config.json: ... num_hidden_layers ... ; ",
         set_json(CONFIG, num_hidden_layers="three")),
    Case("number beyond all floating point", "import hf out", "hf/config.json: rope_theta = 1000 ... a number ... ; ",
         set_json(CONFIG, rope_theta=10**400)),
    Case("size beyond all reason", "import hf out",
         "hf/config.json: model: mixer.head_dim is beyond all reason; ",
         set_json(CONFIG, head_dim=10**400)),
    Case("activation unknown", "import hf out", "hf/config.json: hidden_act = 'quick_gelu': neoxkit has gelu ... ; ",
         set_json(CONFIG, hidden_act="quick_gelu")),
    Case("rotary scaling unknown", "import hf out", "hf/config.json: rope_parameters ... 'yarn' ... ; ",
         set_json(CONFIG, rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0})),
    Case("rotary scaling incomplete", "import hf out", "hf/config.json: rope_parameters ... lacks 'factor' ... ; ",
         set_json(CONFIG, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0})),
    Case("spellings disagree", "import hf out",
         "hf/config.json: two spellings disagree: rope_theta says 5.0, rope_par ... ;",
         set_json(CONFIG, rope_theta=5.0)),
    Case("quantised", "import hf out", "hf/config.json: the weights are quantised; import the model before",
         set_json(CONFIG, quantization_config={"quant_method": "gptq", "bits": 4})),
    Case("kv heads do not divide heads", "import hf out",
         "hf/config.json: ... kv_heads 4 does not divide heads 6 ... ; ", set_json(CONFIG, num_key_value_heads=4)),
    Case("width is not heads times head_dim", "import hf out",
         "hf: tensor 'model.layers.0.self_attn.q_proj.weight' is ... ;", set_json(CONFIG, head_dim=16)),
    Case("config of more layers", "import hf out", "hf: 9 of ", set_json(CONFIG, num_hidden_layers=4)),
    Case("config of fewer layers", "import hf out", "hf: 9 tensors, 'model.layers.2.",
         set_json(CONFIG, num_hidden_layers=2)),
    Case("config of another vocabulary", "import hf out",
         "tensor 'model.embed_tokens.weight' is [300, 48] ... [301, 48]; ", set_json(CONFIG, vocab_size=301)),
]  # fmt: skip

FILES = [
    Case("weights cut short", "import hf out", "hf/model.safetensors: ... cut short; fetch", cut(WEIGHTS, -1)),
    Case("weights too long", "import hf out", "hf/model.safetensors: ... belong to no tensor; fetch",
         lambda: Path(WEIGHTS).write_bytes(Path(WEIGHTS).read_bytes() + b"more")),
    Case("empty weights", "import hf out", "hf/model.safetensors: too short", cut(WEIGHTS, 0)),
    Case("pointer of git-lfs", "import hf out", "hf/model.safetensors: ... ; ",
         write(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2\nsize 548118077\n")),
    Case("header longer than the file", "import hf out", "hf/model.safetensors: too short",
         lambda: Path(WEIGHTS).write_bytes((1 << 62).to_bytes(8, "little") + Path(WEIGHTS).read_bytes()[8:])),
    Case("header is no JSON", "import hf out", "hf/model.safetensors: its header: not valid JSON", flip(WEIGHTS, 8)),
    Case("tensors overlap", "import hf out", f"hf/model.safetensors: tensors ... '{UP}' ... overlap; ", moved(UP, -4)),
    Case("tensor beyond the end", "import hf out", "hf/model.safetensors: tensor ... ends at byte ... ; ",
         moved(UP, 10**9)),
    Case("bytes of no tensor", "import hf out", "hf/model.safetensors: bytes ... belong to no tensor; ",
         header(WEIGHTS, lambda tree: tree.pop(UP))),
    Case("dtype unknown", "import hf out", f"hf/model.safetensors: tensor '{UP}' has the unknown dtype 'Q4'; ",
         entry(UP, dtype="Q4")),
    Case("dtype of integers", "import hf out", f"hf: {UP} is I32; ", entry(UP, dtype="I32")),
    Case("shape and size disagree", "import hf out", f"hf/model.safetensors: tensor '{UP}' fills ... ; ",
         entry(UP, shape=[1 << 40, 1 << 40])),
    Case("tensor missing", "import hf out", f"hf: 1 of 30 tensors are missing, '{UP}' among them; ",
         tensors(WEIGHTS, lambda found: found.pop(UP))),
    Case("tensor too many", "import hf out", "hf: 1 tensors, 'adapter.weight' among them, belong to nothing ... ; ",
         tensors(WEIGHTS, lambda found: found.update({"adapter.weight": torch.ones(2)}))),
    Case("tensor of another shape", "import hf out", f"hf: tensor '{UP}' is [48, 96], config.json asks for [96, 48]; ",
         tensors(WEIGHTS, lambda found: found.update({UP: found[UP].T.contiguous()}))),
    Case("malicious pickle", "import hf out",
         "hf/pytorch_model.bin: ... posix.system ... refused; do not trust this file", malicious),
    Case("pickle of something else", "import hf out", "hf/pytorch_model.bin: not a mapping of names to tensors; ",
         also(remove(WEIGHTS), lambda: torch.save([1, 2], "hf/pytorch_model.bin"))),
    Case("pickle cut short", "import hf out", "hf/pytorch_model.bin: ... ; fetch it again",
         also(lambda: torch.save({"a": torch.ones(999)}, "hf/pytorch_model.bin"), remove(WEIGHTS),
              cut("hf/pytorch_model.bin", -99))),
    Case("broken index", "import hf out", "hf/model.safetensors.index.json: not an index of weights ... ; fetch",
         also(spread(), cut("hf/model.safetensors.index.json", 50))),
    Case("index leads out", "import hf out",
         "index.json: '../one.safetensors' names no file in the folder; do not trust",
         spread(**{UP.replace(".", "__"): "../one.safetensors"})),
    Case("file of the index missing", "import hf out", "hf/two.safetensors: ... ; ",
         spread(**{UP.replace(".", "__"): "two.safetensors"})),
    Case("tensor of the index missing", "import hf out", "hf/one.safetensors: tensor 'more' ... is not there; fetch",
         spread(more="one.safetensors")),
    Case("tokenizer of another model", "import hf out",
         "hf/tokenizer.json: the tokenizer has ids up to 299, the model 290",
         also(set_json(CONFIG, vocab_size=290), tensors(WEIGHTS, fewer_rows))),
    Case("broken tokenizer", "import hf out", "hf/tokenizer.json is not a tokenizer ... ; give",
         cut("hf/tokenizer.json", 9)),
]  # fmt: skip

CUTS = [
    Case("heads do not divide over tp", "import hf out --tp 4", "attn.q.weight ... tp 4; choose a tp that divides 6"),
    Case("more stages than layers", "import hf out --pp 4", "pp 4 is more stages than the model's 3 layers; lower pp"),
    Case("too large for fp16", "import hf out --dtype fp16", "norm.weight: 70000 does not fit in float16 ... ; choose",
         tensors(WEIGHTS, lambda found: found["model.norm.weight"].fill_(7e4))),
    Case("plan of a broken model", "import hf out --dry-run", "hf/model.safetensors: ... cut short", cut(WEIGHTS, -1)),
]  # fmt: skip

EXPORTS = [
    Case("as a family that it does not fit", "export checkpoint out --to gpt_neox",
         "checkpoint: the model does not fit GPT-NeoX: norm: rmsnorm, GPT-NeoX has ... ; choose --to llama"),
    Case("run as a family that it does not fit", "export run out --to mistral",
         "does not fit Mistral: residual: parallel, ... ; choose --to gpt_neox"),
    Case("as an unknown family", "export checkpoint out --to gptneox", "no family is called 'gptneox'; choose one of"),
    Case("in no size", "export checkpoint out --max-shard-size 5", "'5' is no size; write it as 500MB or 5GB"),
    Case("of a Hugging Face model", "export hf out", "hf: a Hugging Face folder, not ... ; run: neoxkit import hf"),
    Case("with a broken tokenizer", "export checkpoint out", "checkpoint/tokenizer/tokenizer_config.json: ... ; ",
         cut("checkpoint/tokenizer/tokenizer_config.json", -1)),
    Case("plan to compare logits", "export checkpoint out --check --dry-run",
         "--check loads what --dry-run does not write;"),
    *(Case(f"plan to {verb} onto something", f"{verb} {source} text --dry-run",
           "text exists; choose another destination")
      for verb, source in (("import", "hf"), ("export", "checkpoint"), ("reshard", "checkpoint"))),
    *(Case(f"plan to {verb} over something else", f"{verb} {source} text --dry-run --force",
           "text exists and is no ... ; choose another destination")
      for verb, source in (("import", "hf"), ("export", "checkpoint"), ("reshard", "checkpoint"))),
]  # fmt: skip


@pytest.mark.parametrize("case", [*FOLDERS, *CONFIGS, *FILES, *CUTS, *EXPORTS], ids=str)
def test_is_refused_in_one_line(case: Case, here: Path) -> None:
    check(case, here)
