"""Every option that gpt-neox has or had, each once, and what becomes of it here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

from neoxkit.config.neox import table_model, table_running, table_training
from neoxkit.config.neox.option import FLAG, TEXT, Option, ignored, mapped, refused

OPTIONS: Mapping[str, Option] = {
    option.name: option for table in (table_model, table_training, table_running) for option in table.OPTIONS
}
"""Those of 2026-05, by name."""

RENAMED: Mapping[str, str] = {
    "gas": "gradient_accumulation_steps",
    "save_interval": "checkpoint_factor",
    "save_iters": "extra_save_iters",
    "label_data_paths": "train_label_data_paths",
    "slurm_comment": "comment",
    "num_experts": "moe_num_experts",
    "expert_interval": "moe_expert_interval",
}
"""Names that options once had, and have no longer."""

_EXPERTS = table_model.EXPERTS
_SINGLE = ("one path each for training and held-out data is given otherwise", "write train_data_paths: [PATH]")

RETIRED: Mapping[str, Option] = {
    option.name: option
    for option in (
        mapped("mlp_type", ("regular", "llama"), "regular", "model.mlp.gated", "llama: a gate, and no biases"),
        mapped("geglu", FLAG, False, "model.mlp.activation and model.mlp.gated", "as activation: geglu"),
        refused("openai_gelu", FLAG, False, "a gelu of its own", "set bias_gelu_fusion: true, for the gelu by tanh"),
        refused("sparsity", TEXT, "none", "sparse attention", "use sliding_window_width", ("None",)),
        refused(
            "attention_type",
            TEXT,
            "global",
            "an old name of attention_config",
            "write it as attention_config",
            ("global", "flash"),
        ),
        refused(
            "apply_residual_connection_post_layernorm", FLAG, False, "residuals taken after the norm", "leave it out"
        ),
        mapped("reset_attention_mask", FLAG, False, "data.within_documents", "together with reset_position_ids"),
        mapped("reset_position_ids", FLAG, False, "data.within_documents", "together with reset_attention_mask"),
        refused("train_data_path", TEXT, None, *_SINGLE),
        refused("valid_data_path", TEXT, None, *_SINGLE),
        refused("test_data_path", TEXT, None, *_SINGLE),
        ignored("zero_allow_untested_optimizer", FLAG, False, "the optimizers that can be chosen are tested"),
        ignored("detect_nvlink_pairs", FLAG, False, table_running.LAUNCH),
        *(ignored(name, "", None, _EXPERTS) for name in ("moe_type", "moe_glu", "use_tutel", "moe_token_dropping")),
        *(
            ignored(name, "", None, _EXPERTS)
            for name in (
                *("moe_expert_parallel_size", "moe_min_capacity", "moe_train_capacity_factor", "moe_loss_coeff"),
                *("moe_eval_capacity_factor", "moe_use_residual", "moe_aux_loss_coeff"),
            )
        ),
    )
}
"""Options that gpt-neox had once, and no longer has."""


def find(name: str) -> Option | None:
    """The option of a name, with hyphens or underscores, of today or of old; None when there was never one."""
    bare = name.replace("-", "_")
    bare = RENAMED.get(bare, bare)
    return OPTIONS.get(bare) or RETIRED.get(bare)


def similar(name: str) -> str | None:
    """The option that a misspelled name probably means."""
    close = difflib.get_close_matches(name.replace("-", "_"), [*OPTIONS, *RETIRED, *RENAMED], n=1, cutoff=0.6)
    return close[0] if close else None


def markdown() -> str:
    """The page of all options."""
    lines = [
        "# Every option of gpt-neox, and what becomes of it",
        "",
        "Generated from `neoxkit/config/neox`. `neoxkit config explain KEY` says the same of one of them.",
        "",
        (
            "**mapped** to an option of a run ([options.md](options.md)); **passed on** to DeepSpeed; **ignored**, "
            "since a run can do without it; **refused**, with another value than its default, since it would change "
            "what is learned."
        ),
    ]
    counts = {kind: sum(o.becomes == kind for o in OPTIONS.values()) for kind in ("mapped", "passed on", "ignored")}
    counts["refused"] = len(OPTIONS) - sum(counts.values())
    lines += ["", f"{len(OPTIONS)} options: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()) + "."]
    for title, table in (("Options of today", OPTIONS), ("Options of the past", RETIRED)):
        lines += ["", f"## {title}", "", "| option | default | becomes | |", "|---|---|---|---|"]
        lines += [_row(option) for _, option in sorted(table.items())]
    lines += ["", "## Names of the past", "", "| name | today |", "|---|---|"]
    lines += [f"| `{old}` | `{new}` |" for old, new in sorted(RENAMED.items())]
    return "\n".join(lines) + "\n"


def _row(option: Option) -> str:
    cells = (f"`{option.name}`", f"`{spelled(option.default)}`", option.becomes, explain(option))
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", "\\n") for cell in cells) + " |"


def verb(option: Option) -> str:
    """What is done with an option, before what `explain` says."""
    verbs = {"mapped": "becomes", "passed on": "goes to DeepSpeed, as", "ignored": "is ignored:"}
    fine = dict.fromkeys(spelled(value) for value in (option.default, *option.harmless) if value is not None)
    other = f", unless it is {' or '.join(fine)}" if fine else ""
    return verbs.get(option.becomes, f"is refused{other}:")


def explain(option: Option) -> str:
    """What becomes of an option, in one line."""
    if option.becomes in ("mapped", "passed on"):
        said = re.sub(r"[\w.]+\.\w+|^\w+$", r"`\g<0>`", option.target)
        return said + (f"; {option.says}" if option.says else "")
    return option.says + (f"; {option.instead}" if option.instead else "")


def spelled(value: object) -> str:
    """A value as YAML has it."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return repr(value) if value in ("", "\n") else str(value)
