"""The files of a tokenizer that is made here, as transformers reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping

import tokenizers

from neoxkit.data.tokenizer import CONFIG, FILE, SPECIAL


def files_of(made: tokenizers.Tokenizer, special: Mapping[str, str | None]) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and special_tokens_map.json, by name.

    `special` has the tokens by their role, {"eos_token": "</s>"}; those that are None are left out.
    """
    tree = json.loads(made.to_str())
    if tree["model"].get("merges"):
        # "a b", not ["a", "b"]: every release of tokenizers reads it, 0.19 (transformers 4.40 to 4.44) nothing else.
        tree["model"]["merges"] = [" ".join(pair) for pair in tree["model"]["merges"]]
    named = {role: token for role, token in special.items() if token is not None}
    # GPTNeoXTokenizerFast or LlamaTokenizerFast would load too, but transformers 5 then rebuilds the tokenizer,
    # whatever the file says. This class takes the file as it is, in versions 4 and 5.
    config = {
        **named,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(1e30),  # what transformers writes for "no limit"
    }
    return {
        FILE: (json.dumps(tree, indent=2, ensure_ascii=False) + "\n").encode(),
        CONFIG: (json.dumps(config, indent=2) + "\n").encode(),
        SPECIAL: (json.dumps(named, indent=2) + "\n").encode(),
    }
