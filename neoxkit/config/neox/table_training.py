"""gpt-neox's options of data, learning and checkpoints."""

from __future__ import annotations

from neoxkit.config.neox.option import FLAG, LIST, MAPPING, NUMBER, TEXT, WHOLE, Option, ignored, mapped, refused
from neoxkit.config.neox.table_model import NOTHING

OPTIMIZERS = ("adam", "onebitadam", "cpu_adam", "cpu_torch_adam", "sm3", "madgrad_wd", "sgd", "lion")
LABELS = ("labels beside the tokens are not built yet", "tokenize the text without a mask, and leave it out")
PAIRS = ("pairs to prefer among are not built yet", "leave it out: neoxkit trains on plain text so far")
OBJECTIVE = ("an objective other than the next token is not built yet", "set train_impl: normal")
OTHER = "of another `train_impl` than normal alone, and those are refused"
TEST = "a run makes no test pass at its end; `neoxkit eval` measures any checkpoint"
DIES = "the block `fp16` decides, in gpt-neox too"
MUP = "of muP alone, and `use_mup` is refused"
MEMORY = "of memory and time alone; no result changes"
WEIGHTS = "with one path a weight says nothing, and several are refused"

_PAIRED = tuple(
    f"{side}_{part}_{label}data_paths"
    for part in ("train", "valid", "test")
    for label in ("", "label_")
    for side in ("pos", "neg")
)

OPTIONS: tuple[Option, ...] = (
    mapped("optimizer_type", OPTIMIZERS, "adam", "optimizer.kind", "as optimizer.type, which decides"),
    mapped("use_bnb_optimizer", FLAG, False, "optimizer.kind", "adamw8bit"),
    mapped("zero_stage", "", None, "zero.stage", "as zero_optimization.stage, which decides"),
    ignored("zero_reduce_scatter", FLAG, None, NOTHING),
    ignored("zero_contiguous_gradients", FLAG, None, NOTHING),
    ignored("zero_reduce_bucket_size", WHOLE, None, NOTHING),
    ignored("zero_allgather_bucket_size", WHOLE, None, NOTHING),
    mapped("lr", NUMBER, None, "optimizer.lr", "as optimizer.params.lr, which decides"),
    mapped("lr_decay_style", ("constant", "linear", "cosine", "exponential"), "linear", "schedule.decay"),
    mapped("lr_decay_iters", WHOLE, None, "schedule.decay_steps", "train_iters when left out"),
    mapped("lr_decay_fraction", NUMBER, None, "schedule.decay_steps", "this part of train_iters"),
    mapped("min_lr", NUMBER, 0.0, "schedule.min_lr"),
    mapped("warmup", NUMBER, 0.01, "schedule.warmup", "a part of the steps of the decay"),
    ignored("override_lr_scheduler", FLAG, False, "the schedule of the configuration always counts"),
    refused(
        "use_checkpoint_lr_scheduler",
        FLAG,
        False,
        "the schedule of the configuration counts, and one that the checkpoint had otherwise is told",
        "write the old run's lr, min_lr, warmup and lr_decay_iters",
    ),
    mapped("data_path", TEXT, None, "data.train", "held-out data is what `split` takes of it"),
    ignored("use_shared_fs", FLAG, True, "every process makes its index in memory, so nothing is shared"),
    mapped("train_data_paths", LIST, None, "data.train", "one path; a blend of several is not built yet"),
    refused("train_label_data_paths", LIST, None, *LABELS),
    refused("train_reward_data_paths", LIST, None, *OBJECTIVE),
    ignored("test_data_paths", LIST, None, TEST),
    ignored("test_label_data_paths", LIST, None, TEST),
    ignored("test_reward_data_paths", LIST, None, TEST),
    mapped("valid_data_paths", LIST, None, "data.valid", "one path"),
    refused("valid_label_data_paths", LIST, None, *LABELS),
    refused("valid_reward_data_paths", LIST, None, *OBJECTIVE),
    *(refused(name, LIST, None, *PAIRS) for name in _PAIRED),
    ignored("train_data_weights", LIST, None, WEIGHTS),
    ignored("valid_data_weights", LIST, None, WEIGHTS),
    ignored("test_data_weights", LIST, None, TEST),
    ignored("weight_by_num_documents", FLAG, False, WEIGHTS),
    ignored("weighted_sampler_alpha", NUMBER, 1.0, WEIGHTS),
    refused(
        "data_impl",
        ("infer", "mmap", "cached"),
        "infer",
        "the old format of token files",
        "make .bin and .idx of the text anew, with `neoxkit data tokenize`",
        ("mmap",),
    ),
    refused(
        "pack_impl",
        ("packed", "pack_until_overflow", "unpacked"),
        "packed",
        "samples that end where a document ends are not built yet",
        "set pack_impl: packed",
    ),
    refused("dataset_impl", ("gpt2", "pairwise", "online"), "gpt2", *PAIRS),
    refused("train_impl", ("normal", "dpo", "rm", "kto", "reinforce"), "normal", *OBJECTIVE),
    ignored("dpo_fp32", FLAG, True, OTHER),
    ignored("dpo_reference_free", FLAG, False, OTHER),
    ignored("dpo_beta", NUMBER, 0.1, OTHER),
    ignored("kto_fp32", FLAG, True, OTHER),
    ignored("kto_desirable_weight", NUMBER, 1.0, OTHER),
    ignored("kto_undesirable_weight", NUMBER, 1.0, OTHER),
    ignored("z_loss", NUMBER, 0.0, OTHER),
    ignored("kto_beta", NUMBER, 0.1, OTHER),
    ignored("fp32_reinforce", FLAG, True, OTHER),
    ignored("kl_impl", ("abs", "mse", "kl", "full"), "mse", OTHER),
    ignored("kl_div_beta", NUMBER, 0.1, OTHER),
    ignored("reinforce_leave_one_out", FLAG, False, OTHER),
    ignored("allow_chopped", FLAG, True, "of other packings than `packed` alone, and those are refused"),
    ignored("mmap_warmup", FLAG, False, "the system reads ahead by itself"),
    mapped("save", TEXT, None, "save.folder"),
    refused(
        "s3_path",
        TEXT,
        None,
        "checkpoints are not sent to an object store while a run goes on",
        "copy them with `neoxkit reshard CHECKPOINT s3://BUCKET/FOLDER --layout whole`",
    ),
    ignored("s3_chunk_size", WHOLE, 104857600, "of `s3_path` alone, and it is refused"),
    ignored("config_files", MAPPING, None, "gpt-neox's copy of its files; a checkpoint has run.yaml"),
    mapped(
        "load",
        TEXT,
        None,
        "load",
        "with `finetune`: the weights to begin with. Without, the same folder as `save` says nothing, since a run goes "
        "on by itself, and another is refused, for `neoxkit import` takes an old run over",
    ),
    ignored(
        "checkpoint_validation_with_forward_pass",
        FLAG,
        False,
        "tensors have checksums, which `neoxkit verify` reads",
    ),
    mapped(
        "checkpoint_scale",
        ("linear", "log"),
        "linear",
        "save.log_factor",
        "with log, where checkpoint_factor is a factor",
    ),
    mapped("checkpoint_factor", NUMBER, None, "save.every", "with checkpoint_scale log it becomes save.log_factor"),
    mapped("extra_save_iters", LIST, None, "save.steps"),
    ignored("no_save_optim", FLAG, False, NOTHING),
    ignored("no_save_rng", FLAG, False, "nothing is drawn while a run goes on"),
    refused(
        "no_load_optim",
        FLAG,
        False,
        "gpt-neox then trains nothing at all",
        "set finetune: true, to begin anew with the weights of `load`",
    ),
    ignored("no_load_rng", FLAG, False, "nothing is drawn while a run goes on"),
    mapped("finetune", FLAG, False, "load", "begin anew with the weights of `load`"),
    mapped("batch_size", WHOLE, None, "batch.micro", "as train_micro_batch_size_per_gpu, which decides"),
    mapped("train_iters", WHOLE, None, "steps"),
    refused("train_epochs", WHOLE, None, "a run is as long as its steps", "set train_iters"),
    mapped("eval_iters", WHOLE, 100, "evaluation.batches"),
    mapped("keep_last_n_checkpoints", WHOLE, None, "save.keep_last"),
    mapped("eval_interval", WHOLE, 1000, "evaluation.every"),
    mapped("split", TEXT, "969, 30, 1", "data.split", "of data_path alone"),
    mapped(
        "vocab_file",
        TEXT,
        None,
        "data.tokenizer and model.vocab",
        "the file of an HFTokenizer becomes data.tokenizer; of others it is only counted",
    ),
    ignored("merge_file", TEXT, None, "the vocabulary is counted in `vocab_file`"),
    ignored("num_workers", WHOLE, 2, "samples are read where they lie, without processes"),
    refused("exit_interval", WHOLE, None, "a run goes on to its end", "lower train_iters, or send SIGTERM to stop"),
    refused("attention_dropout", NUMBER, 0.0, "dropout", "set it to 0", (0,)),
    refused("hidden_dropout", NUMBER, 0.0, "dropout", "set it to 0", (0,)),
    mapped("weight_decay", NUMBER, 0.1, "optimizer.weight_decay"),
    mapped("checkpoint_activations", FLAG, False, "recompute.layers", "full"),
    ignored("checkpoint_num_layers", WHOLE, 1, "every layer is recomputed by itself"),
    ignored("deepspeed_activation_checkpointing", FLAG, True, MEMORY),
    ignored("contiguous_checkpointing", FLAG, False, MEMORY),
    ignored("checkpoint_in_cpu", FLAG, False, MEMORY),
    ignored("synchronize_each_layer", FLAG, False, MEMORY),
    ignored("profile_backward", FLAG, False, MEMORY),
    ignored("partition_activations", FLAG, False, MEMORY),
    ignored("clip_grad", NUMBER, 1.0, "gradient_clipping decides, in gpt-neox too"),
    ignored("hysteresis", WHOLE, 2, DIES),
    ignored("dynamic_loss_scale", FLAG, None, DIES),
    ignored("loss_scale", NUMBER, None, DIES),
    ignored("loss_scale_window", NUMBER, 1000.0, DIES),
    ignored("min_scale", NUMBER, 1.0, DIES),
    ignored("char_level_ppl", FLAG, False, "bits per byte are told where the text's bytes are known"),
    refused("use_mup", FLAG, False, "base shapes of the package mup", "set mup.base_width, in a file of neoxkit's own"),
    refused("coord_check", FLAG, False, "muP's coordinate check", "leave it out"),
    refused("save_base_shapes", FLAG, False, "muP's base shapes", "leave it out"),
    ignored("base_shapes_file", TEXT, None, MUP),
    ignored("mup_init_scale", NUMBER, 1.0, MUP),
    ignored("mup_attn_temp", NUMBER, 1.0, MUP),
    ignored("mup_output_temp", NUMBER, 1.0, MUP),
    ignored("mup_embedding_mult", NUMBER, 1.0, MUP),
    ignored("mup_rp_embedding_mult", NUMBER, 1.0, MUP),
    ignored("mup_width_scale", WHOLE, 2, MUP),
)
