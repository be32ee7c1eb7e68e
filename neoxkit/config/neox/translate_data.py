"""gpt-neox's options of data to ours."""

from __future__ import annotations

from typing import Any

from neoxkit.config.neox.draft import Draft

PACKINGS = {"packed": "packed", "pack_until_overflow": "whole", "unpacked": "single"}
"""gpt-neox's kinds of packing, in our words."""


def data(draft: Draft) -> None:
    """The tokens: of one path that `split` divides, or of paths to learn from and to be judged by."""
    train, valid = _sources(draft, "train"), _sources(draft, "valid")
    path = draft.get("data_path")
    if path is not None and (train or valid):
        raise draft.refuse("data_path", "train_data_paths or valid_data_paths is given too", "keep one of them")
    if train:
        draft.put("data.train", train, "train_data_paths", "train_data_weights", "train_label_data_paths")
        _weights(draft)
    elif path:
        draft.put("data.train", path, "data_path")
    else:
        draft.lack(
            "data.train", "neither data_path nor train_data_paths is given", "give one, or --set data.train=PREFIX"
        )
    _held_out(draft, path, valid)
    draft.used.add("seq_length")
    if draft.has("seq_length") and draft.get("seq_length") != draft.get("max_position_embeddings"):
        draft.put("data.sequence", draft.get("seq_length"), "seq_length")
    draft.put("seed", draft.get("seed"), "seed")
    _samples(draft)
    _curriculum(draft)


def _held_out(draft: Draft, path: str | None, valid: list[dict[str, Any]] | None) -> None:
    held_out = valid is not None
    if path:
        share = str(draft.get("split")).replace("/", ",").split(",")
        held_out = len(share) > 1 and share[1].strip() not in ("", "0", "0.0")
        if held_out:
            draft.put("data.split", ",".join(part.strip() for part in share), "split")
    if draft.get("eval_iters") == 0:
        draft.dropped["eval_iters"] = "held-out data is not given to the run"
        draft.tree.values.get("data", {}).pop("split", None)
    elif held_out:
        if valid is not None:
            draft.put("data.valid", valid, "valid_data_paths", "valid_data_weights", "valid_label_data_paths")
        draft.put("evaluation.every", draft.get("eval_interval"), "eval_interval")
        draft.put("evaluation.batches", draft.get("eval_iters"), "eval_iters")


def _sources(draft: Draft, part: str) -> list[dict[str, Any]] | None:
    """The sources of a part, as ours; what is left out is left out."""
    names = (f"{part}_data_paths", f"{part}_data_weights", f"{part}_label_data_paths")
    paths, weights, labels = (draft.get(name) for name in names)
    if paths is None:
        for name in names[1:]:
            if draft.get(name) is not None:
                raise draft.refuse(name, f"it is given without {names[0]}", f"write {names[0]} too")
        return None
    if not paths or not all(isinstance(each, str) for each in paths):
        raise draft.refuse(names[0], f"{paths!r:.60} is no list of paths", "write a list of prefixes")
    found: list[dict[str, Any]] = [{"tokens": each} for each in paths]
    for name, key, values in ((names[1], "weight", weights), (names[2], "labels", labels)):
        if values is None:
            continue
        if len(values) != len(paths):
            raise draft.refuse(name, f"{len(values)} of them for {len(paths)} paths", "give one for each path")
        for source, value in zip(found, values, strict=True):
            source[key] = float(value) if key == "weight" and isinstance(value, int | float) else value
    return found


def _weights(draft: Draft) -> None:
    """How sources take turns. gpt-neox blends where paths are listed, be it one."""
    draft.put("data.blend", "gpt-neox", "train_data_paths")
    if draft.get("weight_by_num_documents"):
        for source in draft.tree.values["data"]["train"]:
            source.pop("weight", None)
        if draft.has("train_data_weights"):
            draft.dropped["train_data_weights"] = "weight_by_num_documents overrides it, in gpt-neox too"
        names = ("weighted_sampler_alpha", "weight_by_num_documents")
        draft.put("data.weigh_by_documents", float(draft.get(names[0])), *names)


def _samples(draft: Draft) -> None:
    """What of the documents is in a sample, and what of it is learned."""
    packing = draft.get("pack_impl")
    draft.put("data.packing", PACKINGS[packing.lower()], "pack_impl")
    mask, positions = draft.get("reset_attention_mask"), draft.get("reset_position_ids")
    if bool(mask) != bool(positions):
        raise draft.refuse(
            "reset_attention_mask" if mask else "reset_position_ids",
            "attention and positions end with a document together, or not at all",
            "set both reset_attention_mask and reset_position_ids, or neither",
        )
    if mask:
        draft.put("data.within_documents", True, "reset_attention_mask", "reset_position_ids")
    elif packing.lower() != "packed":
        draft.put("data.within_documents", False, "pack_impl")
    draft.put("data.mask_after_end", bool(draft.get("eod_mask_loss")), "eod_mask_loss")


def _curriculum(draft: Draft) -> None:
    """Samples that are short at first: DeepSpeed's curriculum of before 0.19, which is neoxkit's own."""
    block = draft.get("curriculum_learning")
    if not block or block.get("enabled") is False:
        return
    how = block.get("schedule_config")
    if not isinstance(how, dict):
        raise draft.refuse("curriculum_learning", f"schedule_config is {how!r:.60}", "it must be a mapping")
    kind, schedule = block.get("curriculum_type", "seqlen"), block.get("schedule_type", "fixed_linear")
    whole = draft.get("seq_length") or draft.get("max_position_embeddings")
    known = {"fixed_linear": 1, "fixed_root": how.get("root_degree", 1)}
    if kind != "seqlen" or str(schedule) not in known or block.get("max_difficulty", whole) != whole:
        raise draft.refuse(
            "curriculum_learning",
            "not a length that grows to seq_length by fixed_linear or fixed_root",
            "set curriculum_type: seqlen, one of these and max_difficulty: {seq_length}",
        )
    for ours, value, theirs in (
        ("start", block.get("min_difficulty"), "min_difficulty"),
        ("steps", how.get("total_curriculum_step"), "schedule_config.total_curriculum_step"),
        ("multiple", how.get("difficulty_step"), "schedule_config.difficulty_step"),
        ("root", known[schedule], "schedule_config.root_degree"),
    ):
        if value is None:
            raise draft.refuse("curriculum_learning", f"{theirs} is not given", "give it")
        draft.put(f"data.curriculum.{ours}", value, f"curriculum_learning.{theirs}", "curriculum_learning")
