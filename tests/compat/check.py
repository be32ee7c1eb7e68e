"""Run by another transformers: load each model, compare its logits with ours, save it once more.

Arguments: a folder of models, each with `expected.safetensors` (ids, logits) and perhaps `text.json`;
a folder for what is saved. Prints one JSON object: for each model what was found, null where this
transformers does not have its family, the error where it refuses the model.
"""

import gc
import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

transformers.logging.set_verbosity_error()
gc.collect = lambda *_: 0  # transformers before 4.50 does it after each file of weights, half a second each time
found = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    if json.loads((folder / "config.json").read_text())["model_type"] not in transformers.CONFIG_MAPPING:
        found[folder.name] = None
        continue
    expected = load_file(folder / "expected.safetensors")
    try:
        model, info = AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto", output_loading_info=True)
    except (ValueError, RuntimeError) as error:
        found[folder.name] = {"refused": str(error)}
        continue
    dtype = str(model.dtype)
    with torch.inference_mode():
        logits = model.float().eval()(expected["ids"]).logits
    about = {
        "class": type(model).__name__,
        "dtype": dtype,
        "difference": (logits - expected["logits"]).abs().max().item(),
        "problems": [str(info[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[kind]],
    }
    out = Path(sys.argv[2]) / folder.name
    model.save_pretrained(out / "safetensors", max_shard_size="60KB")
    if transformers.__version__ < "5":
        model.save_pretrained(out / "bin", safe_serialization=False, max_shard_size="60KB")
        model.save_pretrained(out / "one", safe_serialization=False)
    if (folder / "text.json").exists():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except Exception as error:  # noqa: BLE001 (what the tokenizers package raises)
            found[folder.name] = {**about, "unread": str(error)}
            continue
        texts = json.loads((folder / "text.json").read_text())
        about["ids"] = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        about["texts"] = [tokenizer.decode(ids) for ids in about["ids"]]
        about["special"] = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
        about["more"] = tokenizer.convert_tokens_to_ids("<|more|>") in tokenizer.all_special_ids
        if tokenizer.chat_template:
            about["chat"] = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    found[folder.name] = about
print(json.dumps({"version": transformers.__version__, "models": found}))
