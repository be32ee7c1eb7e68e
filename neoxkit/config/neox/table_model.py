"""gpt-neox's options of the network."""

from __future__ import annotations

from neoxkit.config.neox.option import FLAG, LIST, MAPPING, NUMBER, TEXT, WHOLE, Option, ignored, mapped, refused

NORMS = ("layernorm", "rmsnorm", "non_parametric_layernorm", "scalenorm", "te_rmsnorm", "te_layernorm")
POSITIONS = ("learned", "rotary", "sinusoidal", "rpe", "alibi", "none")
ACTIVATIONS = (*("gelu", "geglu", "relu", "softsign", "swish", "mish", "silu", "reglu", "swiglu", "bilinear", "glu"),)
INITS = (
    *("normal", "scaled_normal", "orthogonal", "scaled_orthogonal", "xavier_uniform", "xavier_normal"),
    *("wang_init", "small_init", "single_residual_scaled_normal"),
)

KERNELS = "kernels are chosen by what the device can do"
FUSED = "norms, rotary and activations are fused by kernels.compile, which is off unless it is asked for"
SCALENORM = "of ScaleNorm alone, and `norm: scalenorm` is refused"
RELATIVE = "of relative positions alone, and `pos_emb: rpe` is refused"
GMLP = "of gMLP layers alone, and they are refused"
MAMBA = "of Mamba layers alone, and they are refused"
RWKV = "of RWKV layers alone, and they are refused"
EXPERTS = "of a mixture of experts alone, and `moe_num_experts` above 1 is refused"
ENGINE = "of TransformerEngine layers alone, and they are refused"
NOTHING = "it has no effect in gpt-neox"
ONLINE = "of online data alone, and `dataset_impl: online` is refused"
HIDDEN = (
    "F = intermediate_size, else expansion_factor x width, else 4 x width. Without a gate: F rounded up to "
    "mlp_multiple_of. With one: half of 2/3 F, rounded up to it. `mlp_type: llama`: F as it is"
)
TE = ("a layer of TransformerEngine", "leave it out: the layer's own form is trained")

OPTIONS: tuple[Option, ...] = (
    mapped("precision", ("fp16", "fp32", "bfloat16"), None, "precision", "bfloat16 is bf16; fp32 when left out"),
    mapped("num_layers", WHOLE, None, "model.depth"),
    mapped("hidden_size", WHOLE, None, "model.width"),
    mapped("intermediate_size", WHOLE, None, "model.mlp.hidden", HIDDEN),
    mapped("mlp_multiple_of", WHOLE, 1, "model.mlp.hidden", HIDDEN),
    mapped("expansion_factor", NUMBER, None, "model.mlp.hidden", HIDDEN),
    mapped("num_attention_heads", WHOLE, None, "model.mixer.heads"),
    mapped("num_kv_heads", WHOLE, None, "model.mixer.kv_heads"),
    mapped("seq_length", WHOLE, None, "data.sequence"),
    mapped("sliding_window_width", WHOLE, None, "model.mixer.window", "one more, for the token itself"),
    mapped("max_position_embeddings", WHOLE, None, "model.context"),
    mapped("norm", NORMS, "layernorm", "model.norm.kind", "layernorm is layer, rmsnorm is rms; others are refused"),
    ignored("layernorm_fusion", FLAG, False, FUSED),
    ignored("rmsnorm_fusion", FLAG, False, FUSED),
    refused(
        "use_qk_layernorm",
        FLAG,
        False,
        "a norm over the queries and keys of all heads of a rank, which depends on the number of ranks",
        "set model.mixer.qk_norm, in a file of neoxkit's own",
    ),
    mapped("layernorm_epsilon", NUMBER, 1e-5, "model.norm.eps"),
    mapped("rms_norm_epsilon", NUMBER, 1e-8, "model.norm.eps"),
    ignored("scalenorm_epsilon", NUMBER, 1e-8, SCALENORM),
    mapped("pos_emb", POSITIONS, "learned", "model.position.kind", "sinusoidal and rpe are refused"),
    ignored("rpe_num_buckets", WHOLE, 32, RELATIVE),
    ignored("rpe_max_distance", WHOLE, 128, RELATIVE),
    refused("opt_pos_emb_offset", WHOLE, 0, "positions that do not count from 0", "leave it out"),
    mapped("no_weight_tying", FLAG, False, "model.tied", "the opposite"),
    mapped(
        "attention_config",
        LIST,
        None,
        "model.mixer",
        "global and flash are both attention, by the kernel of kernels.attention; local, sparse, gmlp, amlp, rwkv and "
        "mamba layers are refused",
    ),
    refused("sparsity_config", MAPPING, None, "sparse attention", "use sliding_window_width with flash attention"),
    ignored("num_unique_layers", WHOLE, None, NOTHING),
    ignored("param_sharing_style", TEXT, "grouped", NOTHING),
    mapped(
        "make_vocab_size_divisible_by",
        WHOLE,
        128,
        "model.vocab",
        "the tokenizer's vocabulary, rounded up to this x model_parallel_size",
    ),
    mapped(
        "activation",
        ACTIVATIONS,
        "gelu",
        "model.mlp.activation and model.mlp.gated",
        "geglu, reglu and swiglu have a gate; swish is silu; softsign, mish, bilinear and glu are refused",
    ),
    ignored("use_flashattn_swiglu", FLAG, False, FUSED),
    ignored("scaled_upper_triang_masked_softmax_fusion", FLAG, False, KERNELS),
    ignored("scaled_masked_softmax_fusion", FLAG, False, KERNELS),
    mapped("bias_gelu_fusion", FLAG, False, "model.mlp.activation", "gelu becomes gelu_tanh, as in its fused kernel"),
    ignored("bias_dropout_fusion", FLAG, False, FUSED),
    ignored("rope_fusion", FLAG, False, FUSED),
    ignored("fused_kernels_build_path", TEXT, None, KERNELS),
    ignored("fp16_lm_cross_entropy", FLAG, False, "the loss is computed in fp32"),
    mapped("init_method_std", NUMBER, 0.02, "init.std"),
    ignored("apply_query_key_layer_scaling", FLAG, False, "it divides scores and multiplies them again"),
    ignored("use_cpu_initialization", FLAG, False, "weights follow from seed and name alone, on any device"),
    ignored("attention_softmax_in_fp32", FLAG, False, KERNELS),
    mapped("rotary_pct", NUMBER, 1.0, "model.position.fraction"),
    mapped("rotary_emb_base", NUMBER, 10000, "model.position.base"),
    ignored("rotary_save_freqs_buffer", FLAG, False, "frequencies are computed, in fp32, and never saved"),
    mapped("init_method", INITS, "normal", "init.weights", "small_init is small, wang_init wang, scaled_normal scaled"),
    mapped("output_layer_init_method", INITS, "scaled_normal", "init.output", "as init_method"),
    ignored("gmlp_attn_dim", WHOLE, 64, GMLP),
    mapped("gpt_j_residual", FLAG, False, "model.residual", "parallel, or shared with gpt_j_tied; else sequential"),
    mapped("gpt_j_tied", FLAG, False, "model.residual", "shared, with gpt_j_residual; else nothing"),
    ignored("use_bias_in_norms", FLAG, True, NOTHING),
    mapped("use_bias_in_attn_linear", FLAG, True, "model.mixer.bias and model.mixer.out_bias"),
    mapped("use_bias_in_mlp", FLAG, True, "model.mlp.bias"),
    refused("soft_prompt_tuning", MAPPING, None, "soft prompts", "leave it out: all weights are trained"),
    *(
        ignored(f"mamba_{name}", FLAG, default, MAMBA)
        for name, default in (
            ("selective_scan_fusion", False),
            ("causal_conv_fusion", False),
            ("inner_func_fusion", False),
            ("selective_fp32_params", True),
            ("use_bias_in_conv", True),
            ("use_bias_in_linears", False),
        )
    ),
    ignored("output_layer_parallelism", ("column",), "column", "the head is always divided by rows of the vocabulary"),
    refused(
        "serve_model_weights",
        FLAG,
        False,
        "weights handed to a server while they are trained",
        "leave it out",
    ),
    ignored("weight_server_port", "", 6000, NOTHING),
    ignored("online_dataserver_ips", "", "localhost", ONLINE),
    ignored("online_dataserver_ports", "", 10000, ONLINE),
    refused("te_columnparallel", FLAG, False, *TE),
    refused("te_rowparallel", FLAG, False, *TE),
    refused("te_layernorm_mlp", FLAG, False, *TE),
    refused("te_mha", FLAG, False, *TE),
    ignored("te_fp8_format", ("e4m3", "hybrid"), "hybrid", ENGINE),
    ignored("te_fp8_wgrad", FLAG, True, ENGINE),
    ignored("te_fp8_amax_history_len", WHOLE, 1, ENGINE),
    ignored("te_fp8_amax_compute_algo", TEXT, "most_recent", ENGINE),
    ignored("te_fp8_margin", WHOLE, 0, ENGINE),
    refused("te_fp8_mha", FLAG, False, *TE),
    ignored("dim_att", WHOLE, None, RWKV),
    ignored("head_size", WHOLE, None, RWKV),
    ignored("ffn_dim", WHOLE, None, RWKV),
    refused("moe_num_experts", WHOLE, 1, "a mixture of experts", "leave it out: neoxkit trains dense models"),
    ignored("moe_expert_interval", WHOLE, 1, EXPERTS),
    ignored("moe_top_k", WHOLE, 1, EXPERTS),
    ignored("moe_router_type", ("sinkhorn", "topk"), "sinkhorn", EXPERTS),
    ignored("moe_lbl_in_fp32", FLAG, False, EXPERTS),
    ignored("moe_jitter_eps", NUMBER, None, EXPERTS),
    mapped(
        "tokenizer_type",
        (
            *("gpt2bpetokenizer", "hftokenizer", "hfgpt2tokenizer", "spmtokenizer"),
            *("charleveltokenizer", "tiktokentokenizer"),
        ),
        "GPT2BPETokenizer",
        "model.vocab",
        "which kind of file vocab_file is",
    ),
    mapped("padded_vocab_size", WHOLE, None, "model.vocab"),
)
