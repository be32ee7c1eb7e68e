"""Which folder of a gpt-neox run holds the weights. Imports no torch."""

from __future__ import annotations

import re

from neoxkit.checkpoint.folder import AnyPlace
from neoxkit.checkpoint.store import Place
from neoxkit.errors import CheckpointError

LAYER = re.compile(r"layer_(\d+)-model_(\d+)-model_states\.pt")
RANK = re.compile(r"mp_rank_(\d+)_model_states\.pt")
ZERO3 = re.compile(r"zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt")
_STEP = re.compile(r"global_step\d+")


def find(path: AnyPlace) -> AnyPlace | None:
    """The folder of a checkpoint: `path`, the one that its file `latest` names, or the only one in it.

    None when there is none. Raises CheckpointError when there are several and nothing says which.
    """
    if not path.is_dir():
        return None
    if _has_weights(path):
        return path
    latest = path / "latest"
    if latest.is_file():
        name = latest.read_text(encoding="utf-8", errors="replace").strip()
        named = path / name
        if name and name not in (".", "..") and "/" not in name and "\0" not in name and _has_weights(named):
            return named
    found = sorted(each for each in path.iterdir() if _STEP.fullmatch(each.name) and _has_weights(each))
    if len(found) > 1:
        raise CheckpointError(
            f"{path}: {len(found)} gpt-neox checkpoints, and no file `latest` names one of them",
            f"choose one: {', '.join(str(each) for each in found[:3])}{' ...' if len(found) > 3 else ''}",
        )
    return found[0] if found else None


def _has_weights(folder: Place) -> bool:
    if not folder.is_dir():
        return False
    return any(
        LAYER.fullmatch(n) or RANK.fullmatch(n) or ZERO3.fullmatch(n) for n in (p.name for p in folder.iterdir())
    )
