"""Checkpoints that are none, or damaged, and models asked for what they cannot do: one clear line, 2, and no more."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusal import Act, Case, also, check, cut, edit, flip, remove, rename, set_json, write

MANIFEST = "checkpoint/manifest.json"
DATA = "checkpoint/model/pp00-tp00.safetensors"
Q = "model/layers.1.attn.q.weight"


TOKEN = json.dumps(
    {"id": 300, "content": "<new>", "special": True}
    | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
)
"""An entry of a tokenizer.json that takes it beyond the model's 300 rows."""


def manifest(change: Callable[[dict[str, Any]], object]) -> Act:
    """Change the manifest."""

    def act() -> None:
        tree = json.loads(Path(MANIFEST).read_text())
        change(tree)
        Path(MANIFEST).write_text(json.dumps(tree))

    return act


def piece(number: int, **claims: Any) -> Act:
    """Change what the manifest says of one of the two pieces of a tensor of [48, 48]."""
    return manifest(lambda tree: tree["tensors"][Q]["pieces"][number].update(claims))


def config(**keys: Any) -> Act:
    """Set keys of the checkpoint's config.json, and let the manifest agree: no accident, but a mistake."""
    from neoxkit.checkpoint.checksum import crc64nvme

    def act() -> None:
        set_json("checkpoint/config.json", **keys)()
        data = Path("checkpoint/config.json").read_bytes()
        tree = json.loads(Path(MANIFEST).read_text())
        (entry,) = (entry for entry in tree["files"] if entry["path"] == "config.json")
        entry.update(bytes=len(data), crc=f"{crc64nvme(data):016x}")
        Path(MANIFEST).write_text(json.dumps(tree))

    return act


def linked() -> None:
    """The data lies elsewhere, behind a link."""
    Path(DATA).rename("elsewhere")
    Path(DATA).symlink_to(Path("elsewhere").absolute())


NONE = [
    Case("nothing there", "inspect nowhere", "nowhere: no such file or folder; check the path"),
    Case("nothing to verify", "verify nowhere", "nowhere: no such file or folder; check the path"),
    Case("nothing to compare with", "diff checkpoint nowhere", "nowhere: no such file or folder; check the path"),
    Case("a Hub id", "generate EleutherAI/pythia-160m --prompt a",
         "no such file or folder; ... neoxkit import EleutherAI/"),
    Case("another folder", "inspect text", "text: not a checkpoint: it has no manifest.json; choose a folder that"),
    Case("the parent of a run", "generate . --prompt a", ".: not a checkpoint: ... ; choose"),
    Case("a file of it", "inspect checkpoint/manifest.json",
         "a file, not a checkpoint's folder; name the folder that holds"),
    Case("the hint of a run", "export run/latest out", "run/latest: a file, not a checkpoint's folder; name"),
    Case("a Hugging Face model", "reshard hf out", "hf: a Hugging Face folder, not a ... ; run: neoxkit import hf"),
    Case("a folder of gpt-neox", "reshard global_step9 out",
         "global_step9: a gpt-neox checkpoint, not a neoxkit one; run: neoxkit import global_step9",
         also(lambda: Path("global_step9").mkdir(), write("global_step9/layer_00-model_00-model_states.pt"))),
    Case("a dead attempt", "reshard .checkpoint.0a1b2c.partial out",
         "an unfinished attempt to write checkpoint; choose", rename("checkpoint", ".checkpoint.0a1b2c.partial")),
    Case("an empty run", "generate new --prompt a", "new: a run in which no save was finished; train",
         also(lambda: Path("new").mkdir(), rename("checkpoint", "new/.step-00000001.0a1b2c.partial"))),
    Case("no manifest", "export checkpoint out", "checkpoint: ... manifest.json; ", remove(MANIFEST)),
    Case("a run without a valid checkpoint", "generate run --prompt a", "run: a run without a single valid ... ; see",
         remove("run/step-00000002/config.json")),
]  # fmt: skip

DAMAGED = [
    Case("manifest cut short", "inspect checkpoint", "checkpoint/manifest.json: not valid JSON ... ; fetch",
         cut(MANIFEST, 900)),
    Case("manifest of a later version", "inspect checkpoint", "manifest.json: format version 2, ... version 1; upgrade",
         edit(MANIFEST, '"version": 1', '"version": 2')),
    Case("manifest requires more", "export checkpoint out",
         "requires 'delta', which is not known here; upgrade neoxkit",
         edit(MANIFEST, '"requires": []', '"requires": ["delta"]')),
    Case("manifest of another program", "inspect checkpoint", "the format is 'other', not 'neoxkit-checkpoint'; choose",
         edit(MANIFEST, '"neoxkit-checkpoint"', '"other"')),
    Case("path out of the checkpoint", "export checkpoint out",
         "the path '../hf/config.json' leads out ... ; do not trust",
         edit(MANIFEST, '"path": "config.json"', '"path": "../hf/config.json"')),
    Case("link out of the checkpoint", "export checkpoint out", "pp00-tp00.safetensors: a link, ... ; put the file",
         linked),
    Case("gap", "export checkpoint out", f"manifest.json: tensor {Q}: ... ; fetch", piece(0, box=[[0, 23], [0, 48]])),
    Case("overlap", "export checkpoint out", f"manifest.json: tensor {Q}: ... ; fetch",
         piece(0, box=[[0, 25], [0, 48]])),
    Case("piece outside", "export checkpoint out",
         f"tensor {Q}: pieces[1]: ... lies outside a tensor of shape [48, 48]; ", piece(1, box=[[24, 49], [0, 48]])),
    Case("piece in no file", "export checkpoint out", f"tensor {Q}: pieces[0]: file 99 of ... ; fetch",
         piece(0, file=99)),
    Case("piece in another entry", "export checkpoint out", f"{Q} ... ; ", piece(0, key="nothing")),
    Case("data file missing", "generate checkpoint --prompt a", "pp00-tp00.safetensors: the file is missing; fetch",
         remove(DATA)),
    Case("data cut short", "reshard checkpoint out", "pp00-tp00.safetensors: cut short: ... the manifest says",
         cut(DATA, -1)),
    Case("flipped bit, to generate", "generate checkpoint --prompt a",
         "pp00-tp00.safetensors: model/ ... damaged: ... ; fetch", flip(DATA)),
    Case("flipped bit, to export", "export checkpoint out", "pp00-tp00.safetensors: model/ ... damaged ... ; ",
         flip(DATA)),
    Case("flipped bit, to reshard", "reshard checkpoint out", "pp00-tp00.safetensors: model/ ... damaged ... ; ",
         flip(DATA)),
    Case("flipped bit, to train on", "train run.yaml --set steps=4", "optimizer/ ... damaged ... ; fetch",
         flip("run/step-00000002/optimizer/r00000.safetensors"), noted=("going on", "steps was")),
    Case("flipped bit in the configuration", "export checkpoint out", "checkpoint/config.json: damaged: ... ; fetch",
         flip("checkpoint/config.json", 30)),
    Case("configuration of another version", "export checkpoint out", "config.json: future: ... ; upgrade",
         config(future=1)),
    Case("configuration of more layers", "generate checkpoint --prompt a",
         "layers.3.norm1.weight ... config.json ... ; ", config(depth=4)),
    Case("configuration of fewer layers", "generate checkpoint --prompt a",
         "layers.2.norm1.weight ... config.json ... ; ", config(depth=2)),
    Case("configuration of another size", "generate checkpoint --prompt a",
         "mlp.gate.weight is [96, 48] ... config.json ... ; ",
         config(mlp={"hidden": 95, "gated": True, "activation": "silu", "bias": False})),
    Case("configuration of another size, to export", "export checkpoint out",
         "embed.weight is [300, 48] ... config.json ... [310, 48]; ", config(vocab=310)),
]  # fmt: skip

RESHARD = [
    Case(
        "heads do not divide over tp",
        "reshard checkpoint out --tp 5",
        "attn.q.weight ... tp 5; choose a tp that divides 6",
    ),
    Case(
        "more stages than layers",
        "reshard checkpoint out --pp 9",
        "pp 9 is more stages than the model's 3 layers; lower",
    ),
    Case(
        "another dtype beside an optimizer",
        "reshard run out --dtype bf16",
        "it has an optimizer ... ; add --weights-only",
    ),
    Case("too large for fp16", "reshard checkpoint out --dtype fp16 --pp 0", "'--pp': 0 is not in the range x>=1; see"),
]

GENERATE = [
    Case("no prompt", "generate checkpoint", "missing option '--prompt', or one of --file, --interactive ... ; see"),
    Case("empty prompt", "generate hf --prompt ''", "the prompt has no tokens; give",
         set_json("hf/config.json", bos_token_id=None)),
    Case("empty prompt on standard input", "generate hf --prompt -", "the prompt has no tokens; give",
         set_json("hf/config.json", bos_token_id=None), stdin=""),
    Case("prompt that is no text", "generate hf --prompt -", "the prompt is not UTF-8 ... ; give text",
         stdin=b"\xff\xfe"),
    Case("long prompt", f"generate checkpoint --prompt '{'word ' * 64}'",
         "tokens long, the model's context 64; shorten"),
    Case("no tokenizer", "generate hf --prompt a",
         "hf has no tokenizer: hf: transformers can make no tokenizer.json of it ... ; name one with --tokenizer",
         remove("hf/tokenizer.json")),
    Case("tokenizer of nothing", "generate hf --prompt a --tokenizer text", "text has no tokenizer; name one"),
    Case("tokenizer of another model", "generate checkpoint --prompt a --tokenizer hf",
         "ids up to 300, the model 300 rows; use",
         edit("hf/tokenizer.json", '"added_tokens": [', f'"added_tokens": [{TOKEN},')),
    Case("unknown device", "generate hf --prompt a --device gpu",
         "device 'gpu' is not to be had here ... ; choose auto"),
    Case("device without numbers", "generate hf --prompt a --device meta", "device 'meta' holds no numbers; choose"),
    Case("top-p above 1", "generate hf --prompt a --top-p 1.5", "'--top-p': 1.5 is not in the range 0<x<=1; see"),
    Case("temperature below 0", "generate hf --prompt a --temperature -1", "'--temperature': -1 ... ; see"),
    Case("temperature of nan", "generate hf --prompt a --temperature nan", "'--temperature': nan ... ; see"),
    Case("temperature of inf", "generate hf --prompt a --temperature inf", "'--temperature': inf ... ; see"),
    Case("seed too large", f"generate hf --prompt a --temperature 1 --seed {1 << 64}",
         "'--seed': 18446744073709551616 is not ... ;"),
    Case("bad generation settings", "generate hf --prompt a", "hf/generation_config.json: not valid JSON ... ; fetch",
         cut("hf/generation_config.json", 9)),
]  # fmt: skip

EVAL = [
    Case("nothing to do", "eval checkpoint", "missing option '--tasks'; see"),
    Case("text missing", "eval checkpoint --perplexity txt", "txt: no such file or directory; name"),
    Case("text is a folder", "eval checkpoint --perplexity text", "text: is a directory; name"),
    Case("text is empty", "eval checkpoint --perplexity a.txt", "a.txt: the file is empty; leave it out",
         write("a.txt")),
    Case("text is not UTF-8", "eval checkpoint --perplexity a.txt",
         "a.txt: not UTF-8 (invalid start byte at byte 3); leave", write("a.txt", b"abc\xff")),
    Case("list missing", "eval checkpoint --files-from list", "list: no such file or directory; name"),
    Case("list is not text", "eval checkpoint --files-from a.txt", "a.txt: not a list of names ... ; give a text file",
         write("a.txt", b"\xff\xfe")),
    Case("list is empty", "eval checkpoint --files-from a.txt", "there is no text to measure; name", write("a.txt")),
    Case("list names nothing", "eval checkpoint --files-from a.txt", "txt/none: ... ; ", write("a.txt", "txt/none\n")),
    Case("model missing", "eval nowhere --perplexity run.yaml", "nowhere: no such file or folder; check"),
    Case("no end of documents", "eval hf --perplexity run.yaml",
         "hf/tokenizer.json: no token that ends a document ... ; see --tokenizer",
         also(remove("hf/tokenizer_config.json"), remove("hf/special_tokens_map.json"),
              edit("hf/tokenizer.json", "<|endoftext|>", "<|end|>"))),
]  # fmt: skip


@pytest.mark.parametrize("case", [*NONE, *DAMAGED, *RESHARD, *GENERATE, *EVAL], ids=str)
def test_is_refused_in_one_line(case: Case, here: Path) -> None:
    check(case, here)
