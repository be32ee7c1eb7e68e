"""The default way of large files: xet, by the real client of it, whose storage is a folder here."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_store import Fault, Hub
from pushing import fine, refused

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.convert.transfer import choose_family, export_model

REPO = "me/tiny"
SHARDS = ("--max-shard-size", "10KB")


@pytest.fixture
def xet(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the client of xet takes for its servers."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.xet = tmp_path / "cas"
    hub.xet.mkdir()
    hub.small = 100_000  # only weights are large: what xet has the stand-in cannot look into
    return hub.xet


def stored(xet: Path) -> dict[str, int]:
    """What is in xet's storage, and since when."""
    return {path.name: path.stat().st_mtime_ns for path in (xet / "xet" / "xorbs" / "xorbs").iterdir()}


def test_there_and_back(hub: Hub, xet: Path, neoxkit, save, tmp_path: Path) -> None:
    import hf_xet

    model = save("model")
    fine(neoxkit("push", model, REPO, *SHARDS))
    assert not hub.broken
    assert hub.count(f"GET /api/models/{REPO}/xet-write-token/main") >= 1
    assert not hub.sent, "no byte of a weight goes by way of the Hub itself"
    weights = {name: file for name, file in hub.files(REPO).items() if name.endswith(".safetensors")}
    assert len(weights) > 2
    before = stored(xet)
    assert before

    # What the real Hub reads in what xet's client has stored: which of its hashes is which sha256.
    checkpoint = Checkpoint.open(model)
    export_model(checkpoint, tmp_path / "hf", choose_family(checkpoint, "auto"), most=10_000)
    for name, file in weights.items():
        assert file.sha256 is not None
        (about,) = hf_xet.hash_files([str(tmp_path / "hf" / name)])
        hub.hashes[file.sha256] = about.hash
    fine(neoxkit("import", REPO, tmp_path / "back"))
    assert Checkpoint.open(tmp_path / "back").fingerprint == checkpoint.fingerprint
    assert hub.count(f"GET /api/models/{REPO}/xet-read-token/") >= 1

    fine(neoxkit("push", model, f"{REPO}@again", *SHARDS))
    assert stored(xet) == before, "what xet has is not sent again"


def test_what_xet_is_refused(hub: Hub, xet: Path, neoxkit, save, waits: list[float]) -> None:
    """Its client has errors of its own, which say a status only in words."""
    hub.faults += [Fault("xet-write-token", 1, 429), Fault("xet-write-token", 1, 403)]
    model = save("model")
    refused(neoxkit("push", model, REPO), "the Hub forbids to write there")
    fine(neoxkit("push", model, REPO))
    assert not hub.broken
