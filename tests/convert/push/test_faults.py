"""A Hub and a network that fail: nothing is lost, nothing is half published, and the same command goes on."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hub_store import Fault, File, Hub
from pushing import fine, refused

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.convert.push import asking
from neoxkit.convert.push.repository import Repository

REPO = "me/tiny"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own
SHARDS = ("--max-shard-size", "10KB")
COMMIT = f"POST /api/models/{REPO}/commit/main"


@pytest.fixture
def model(save) -> Path:
    """A checkpoint whose weights are three files of at most 10 kB."""
    found: Path = save("model")
    return found


def sound(hub: Hub, neoxkit, model: Path, tmp_path: Path) -> None:
    """All is there, in one commit, and comes back."""
    assert len(hub.repos[REPO].branches["main"]) == 2, "one commit after the first"
    assert not hub.broken
    fine(neoxkit("import", REPO, tmp_path / "back"))
    assert Checkpoint.open(tmp_path / "back").fingerprint == Checkpoint.open(model).fingerprint


def said(fault: Fault) -> str:
    """A fault in short."""
    what = "late" if fault.late else fault.status or "cut"
    return "-".join(map(str, [*re.findall(r"\w+", fault.matches), what, fault.times, *fault.headers]))


FAULTS = [
    Fault("PUT /lfs/"),
    Fault("PUT /lfs/", 3),
    Fault("PUT /lfs/", 2, late=True),
    Fault("PUT /lfs/", 2, 500),
    Fault("POST .*/batch", 1, 503),
    Fault("POST .*/verify", 1, 500),
    Fault("POST .*/preupload/", 1, 429, {"Retry-After": "30"}),
    Fault("POST .*/preupload/", 1, 429, {"RateLimit": '"api";r=0;t=55'}),
    Fault(COMMIT, 1, 429, {"RateLimit": '"api";r=0;t=55'}),
    Fault("POST /api/repos/create", 2),
    Fault("POST /api/repos/create", 1, late=True),
    Fault("POST /api/validate-yaml", 1, 502),
    Fault(COMMIT, 1, 503),
    Fault(COMMIT, 1, 429, {"Retry-After": "120"}),
    Fault(COMMIT, 2),
    Fault(COMMIT, 1, late=True),
    Fault(f"GET /api/models/{REPO}", 2, 500),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=said)
def test_what_passes_is_waited_for(
    fault: Fault, hub: Hub, neoxkit, model: Path, tmp_path: Path, waits: list[float]
) -> None:
    hub.faults.append(Fault(fault.matches, fault.times, fault.status, fault.headers, fault.late))
    fine(neoxkit("push", model, REPO, *SHARDS))
    assert hub.faults[0].times == 0, "it has happened"
    stated = {"Retry-After": 31.0, "RateLimit": 56.0}
    for name in fault.headers:
        assert name not in stated or stated.get(name) in waits or float(fault.headers["Retry-After"]) + 1 in waits
    hub.faults.clear()
    sound(hub, neoxkit, model, tmp_path)


def test_a_commit_whose_answer_is_lost_is_not_made_again(
    hub: Hub, neoxkit, model: Path, tmp_path: Path, waits: list[float]
) -> None:
    hub.faults.append(Fault(COMMIT, 1, late=True))
    fine(neoxkit("push", model, REPO, *SHARDS))
    assert hub.count(COMMIT) == 1
    sound(hub, neoxkit, model, tmp_path)


def by_another(hub: Hub) -> None:
    """Somebody commits to main."""
    hub.repos[REPO].add("main", {**hub.files(REPO), "notes.txt": File(b"theirs", 6)}, "by another")


@pytest.mark.parametrize("status", [None, 503, 412])
def test_a_commit_of_somebody_else_is_not_overrun(
    status: int | None, hub: Hub, neoxkit, model: Path, waits: list[float]
) -> None:
    hub.make(REPO)
    hub.faults.append(Fault(COMMIT, 1, status, after=lambda: by_another(hub)))
    refused(neoxkit("push", model, REPO), "somebody else has changed it meanwhile", "try again")
    assert set(hub.files(REPO)) == {".gitattributes", "notes.txt"}
    sent = len(hub.sent)
    fine(neoxkit("push", model, REPO))
    assert "notes.txt" in hub.files(REPO)
    assert len(hub.sent) == sent
    assert not hub.broken


def test_a_commit_between_the_look_and_ours(hub: Hub, neoxkit, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.make(REPO)
    send = Repository.send

    def meanwhile(self: Repository, *about):
        if "config.json" in about[0]:
            by_another(hub)
        return send(self, *about)

    monkeypatch.setattr(Repository, "send", meanwhile)
    refused(neoxkit("push", model, REPO), "somebody else has changed it meanwhile")
    assert set(hub.files(REPO)) == {".gitattributes", "notes.txt"}


@pytest.mark.parametrize(
    "fault",
    [Fault("PUT /lfs/", 99), Fault("PUT /lfs/", 99, 500), Fault(COMMIT, 99, 503), Fault("preupload", 99, 429)],
    ids=said,
)
def test_what_does_not_pass_is_one_line_and_the_next_attempt_goes_on(
    fault: Fault, hub: Hub, neoxkit, model: Path, tmp_path: Path, temporary: Path, waits: list[float]
) -> None:
    hub.make(REPO)
    first = {"matches": fault.matches, "times": fault.times, "status": fault.status}
    hub.faults.append(Fault(**first))
    refused(neoxkit("push", model, REPO, *SHARDS), REPO, "try again: what was sent is kept")
    assert set(hub.files(REPO)) == {".gitattributes"}
    assert not list(temporary.iterdir())
    hub.faults.clear()
    kept = len(hub.objects)
    before = len(hub.sent)
    fine(neoxkit("push", model, REPO, *SHARDS))
    assert len(hub.sent) - before == len(hub.objects) - kept, "what was sent is not sent again"
    sound(hub, neoxkit, model, tmp_path)


def test_a_wait_that_is_too_long_is_not_begun(hub: Hub, neoxkit, model: Path, waits: list[float]) -> None:
    hub.faults.append(Fault(COMMIT, 99, 429, {"Retry-After": "86400"}))
    refused(neoxkit("push", model, REPO), "asks to come back in 86401 s")
    assert not waits


def test_an_interrupted_push_goes_on(
    hub: Hub, neoxkit, model: Path, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Repository.send

    def interrupted(self: Repository, *about):
        if next(iter(about[0])).startswith("model-00003"):
            raise KeyboardInterrupt
        return send(self, *about)

    with monkeypatch.context() as during:
        during.setattr(Repository, "send", interrupted)
        done = neoxkit("push", model, REPO, *SHARDS)
    assert done.exit_code == 130
    assert done.stderr.splitlines()[-1] == "error: interrupted; nothing is half published; the same command goes on"
    assert not list(temporary.iterdir())
    assert set(hub.files(REPO)) == {".gitattributes"}
    sent = len(hub.sent)
    assert sent > 2
    fine(neoxkit("push", model, REPO, *SHARDS))
    assert sent < len(hub.sent) == len(hub.objects), "each object is sent once"
    sound(hub, neoxkit, model, tmp_path)


def test_what_a_killed_push_left_is_removed(hub: Hub, neoxkit, model: Path, temporary: Path) -> None:
    left = temporary / ".neoxkit-push.0123ab.partial"
    (left / "files").mkdir(parents=True)
    (left / "files" / "model.safetensors").write_bytes(b"a part")
    (left / "neoxkit.lock").touch()
    fine(neoxkit("push", model, REPO))
    assert not list(temporary.iterdir())


def test_a_full_disk_is_known_beforehand(hub: Hub, neoxkit, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    refused(neoxkit("push", model, REPO), "needs", "the disk has 10 free", "TMPDIR")
    assert set(hub.files(REPO)) == {".gitattributes"}


@pytest.mark.parametrize("seed", range(8))
def test_law_any_faults(seed: int, hub: Hub, neoxkit, model: Path, tmp_path: Path, waits: list[float]) -> None:
    """Whatever fails, and however often: a reader sees nothing or all, and at last all is there, in one commit."""
    chance = random.Random(seed)
    for _ in range(chance.randint(3, 8)):
        status = chance.choice([None, None, 429, 500, 503])
        late = status is None and chance.random() < 0.5
        method = chance.choice(["PUT", "POST", "GET", "POST .*commit", "POST .*preupload"])
        hub.faults.append(Fault(f"^{method}", chance.randint(1, 9), status, late=late))
    for _ in range(20):
        done = neoxkit("push", model, REPO, *SHARDS)
        assert done.exit_code in (0, 2), done.stderr + repr(done.exception)
        assert not hub.broken
        if done.exit_code == 0:
            break
    assert done.exit_code == 0, done.stderr
    hub.faults.clear()
    sound(hub, neoxkit, model, tmp_path)


def test_keys_of_addresses_are_not_told() -> None:
    said = asking.first_line(RuntimeError("500 for 'https://store/x?X-Amz-Signature=sealed' (Request ID: 1)\nmore"))
    assert said == "500 for 'https://store/x' (Request ID: 1)"
