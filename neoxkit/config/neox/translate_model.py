"""gpt-neox's options of the network to ours, and the initial weights."""

from __future__ import annotations

from typing import Any

from neoxkit.config.neox import network
from neoxkit.config.neox.draft import Draft
from neoxkit.config.neox.vocabulary import read_vocabulary, spelled

INITS = {
    "normal": "normal",
    "scaled_normal": "scaled",
    "orthogonal": "orthogonal",
    "scaled_orthogonal": "scaled_orthogonal",
    "xavier_uniform": "xavier_uniform",
    "xavier_normal": "xavier_normal",
    "wang_init": "wang",
    "small_init": "small",
    "single_residual_scaled_normal": "single_residual",
}

SIZES = {
    "num_layers": "model.depth",
    "hidden_size": "model.width",
    "num_attention_heads": "model.mixer.heads",
    "max_position_embeddings": "model.context",
}


def model(draft: Draft) -> None:
    """The network, the vocabulary and how weights are drawn. Raises ConfigError for what is not computed."""
    settings = draft.settings
    network.refuse_network(settings)
    for theirs, ours in SIZES.items():
        if draft.has(theirs):
            draft.put(ours, settings.whole(theirs), theirs)
        else:
            draft.lack(ours, f"{theirs} is not given", f"give it in one of the files, or --set {ours}=N")
    norm = network.norm(settings)
    eps = "rms_norm_epsilon" if norm["kind"] == "rms" else "layernorm_epsilon"
    draft.put("model.norm.kind", norm["kind"], "norm", always=True)
    draft.put("model.norm.eps", norm["eps"], eps)
    _position(draft)
    gated = network.is_gated(settings)
    _attention(draft)
    _mlp(draft, gated)
    draft.put("model.tied", not draft.get("no_weight_tying"), "no_weight_tying")
    spelled = "llama" if gated and norm["kind"] == "rms" else "gpt_neox"
    windowed = draft.tree.values["model"].get("mixer", {}).get("window")
    draft.put("model.family", "mistral" if spelled == "llama" and windowed else spelled, always=True)
    _vocabulary(draft)
    draft.put("init.weights", INITS[draft.get("init_method").lower()], "init_method")
    draft.put("init.output", INITS[draft.get("output_layer_init_method").lower()], "output_layer_init_method")
    draft.put("init.std", draft.get("init_method_std"), "init_method_std")


def _position(draft: Draft) -> None:
    position = network.position(draft.settings)
    draft.put("model.position.kind", position["kind"], "pos_emb", always=True)
    if position["kind"] == "rotary":
        draft.put("model.position.base", position["base"], "rotary_emb_base")
        draft.put("model.position.fraction", position["fraction"], "rotary_pct")


def _attention(draft: Draft) -> None:
    settings = draft.settings
    if draft.has("num_kv_heads"):
        draft.put("model.mixer.kv_heads", settings.whole("num_kv_heads"), "num_kv_heads")
    for ours in ("bias", "out_bias"):
        draft.put(f"model.mixer.{ours}", draft.get("use_bias_in_attn_linear"), "use_bias_in_attn_linear")
    draft.used |= {"attention_config", "sliding_window_width"}
    window = network.window(settings, draft.get("pipe_parallel_size") > 0, draft.tree.notes.append)
    draft.put("model.mixer.window", window, *(["sliding_window_width"] if window else []))


def _mlp(draft: Draft, gated: bool) -> None:
    settings = draft.settings
    llama = draft.get("mlp_type").lower() == "llama"
    name = network.activation_name(settings)
    bias = draft.get("use_bias_in_mlp") and not llama
    froms = [key for key in ("geglu", "activation", "mlp_type") if draft.has(key)] or ["activation"]
    exact = network.activation(settings, name, gated)
    fused = ["bias_gelu_fusion"] if exact == "gelu_tanh" else []
    draft.put("model.mlp.gated", gated, *froms)
    draft.put("model.mlp.activation", exact, *froms, *fused)
    draft.put("model.mlp.bias", bias, "mlp_type" if llama else "use_bias_in_mlp")
    if draft.has("hidden_size"):
        hidden = network.mlp_width(settings, settings.whole("hidden_size") or 1)
        sizes = ("intermediate_size", "expansion_factor", "mlp_multiple_of")
        if gated or any(map(draft.has, sizes)):
            draft.put("model.mlp.hidden", hidden, *sizes, "hidden_size")
    if draft.get("gpt_j_residual"):
        if not bias:
            raise draft.refuse(
                "gpt_j_residual",
                "without biases in the MLP gpt-neox drops the attention of such a model",
                "set use_bias_in_mlp: true, or gpt_j_residual: false",
            )
        tied = draft.get("gpt_j_tied")
        froms = ["gpt_j_tied"] if tied else []
        draft.put("model.residual", "shared" if tied else "parallel", *froms, "gpt_j_residual")
    elif draft.has("gpt_j_tied"):
        draft.dropped["gpt_j_tied"] = "it says nothing without gpt_j_residual"


def _vocabulary(draft: Draft) -> None:
    """The rows of the embedding, padded as gpt-neox pads them, and the token that ends a document."""
    kind, path = draft.get("tokenizer_type").lower(), draft.get("vocab_file")
    found = read_vocabulary(kind, path)
    froms = ("vocab_file", "tokenizer_type", "make_vocab_size_divisible_by")
    draft.used.add("tokenizer_type")
    unit = draft.get("make_vocab_size_divisible_by") * max(1, draft.get("model_parallel_size"))
    rows: Any = draft.get("padded_vocab_size")
    if rows is not None:
        draft.put("model.vocab", rows, "padded_vocab_size")
    elif found is not None:
        draft.put("model.vocab", -(-found.size // unit) * unit, *froms)
    else:
        where = "vocab_file is not given" if path is None else f"vocab_file {path} is not here"
        if kind == "tiktokentokenizer":
            where = f"{path} is no encoding of tiktoken"
        draft.used.add("make_vocab_size_divisible_by")
        draft.lack(
            "model.vocab",
            f"the vocabulary is not known: {where}",
            f"give --set model.vocab=N, the tokens rounded up to a multiple of {unit}",
        )
    if found is not None and found.eod is not None:
        draft.put("model.tokens.bos", found.eod, *froms)
        draft.put("model.tokens.eos", [found.eod], *froms)
    _tokenizer(draft, kind, path, found is not None)


def _tokenizer(draft: Draft, kind: str, path: str | None, known: bool) -> None:
    """The tokenizer in the words of `data.tokenizer`, where its files are here."""
    named = spelled(kind, path, draft.get("merge_file")) if known else None
    if named is not None:
        froms = {"charleveltokenizer": ["tokenizer_type"], "gpt2bpetokenizer": ["vocab_file", "merge_file"]}
        draft.put("data.tokenizer", named, *froms.get(kind, ["vocab_file"]))
        if kind == "spmtokenizer":
            draft.tree.notes.append(
                "documents end with the model's own end of text; gpt-neox ends them with <|endoftext|>, or with id 0, "
                "<unk>, where a SentencePiece model has no such piece: look at the data that it made"
            )
    elif known and draft.has("merge_file"):
        draft.dropped["merge_file"] = "no such file, and without it the checkpoints will have no tokenizer"
    elif not known and draft.has("vocab_file"):
        draft.dropped["vocab_file"] = "the checkpoints will have no tokenizer; name it with --set data.tokenizer=PATH"
    if kind != "gpt2bpetokenizer" and draft.has("merge_file"):
        draft.dropped["merge_file"] = "only a GPT2BPETokenizer has one"
