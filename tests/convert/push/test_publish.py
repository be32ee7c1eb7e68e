"""Models that are pushed, and what is there then: against a stand-in that speaks the Hub's protocol."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
import yaml
from hub_store import READ_ONLY, File, Hub
from pushing import fine, refused
from torch import Tensor

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.convert.push.repository import Repository

REPO = "me/tiny"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own


@pytest.fixture
def model(save) -> Path:
    """A checkpoint of 25 kB of weights, with an optimizer and a tokenizer."""
    found: Path = save("run/step-00000007")
    return found


@pytest.fixture
def other(save, tensors: dict[str, Tensor]) -> Path:
    """Another model of the same shape, of a later step."""
    changed = {name: value * 2 for name, value in tensors.items()}
    found: Path = save("other", changed, step=9)
    return found


def fingerprint(folder: Path) -> str:
    return Checkpoint.open(folder).fingerprint


def front(hub: Hub, revision: str = "main") -> dict:
    """What a card tells the Hub."""
    return yaml.safe_load(hub.text("README.md", REPO, revision).split("---\n")[1])


def commits(hub: Hub, revision: str = "main") -> int:
    """Commits on a branch after the first."""
    return len(hub.repos[REPO].branches[revision]) - 1


def test_what_is_pushed_comes_back(hub: Hub, neoxkit, model: Path, tmp_path: Path) -> None:
    done = neoxkit("push", model, REPO, "--max-shard-size", "10KB", "--license", "apache-2.0", "--dataset", "me/books")
    assert fine(done) == f"{REPO}@main: model {fingerprint(model)}, {hub.url}/{REPO}/tree/main\n"
    names = set(hub.files(REPO))
    weights = {name for name in names if name.endswith(".safetensors")}
    assert len(weights) > 2
    assert names == weights | {
        ".gitattributes", "README.md", "config.json", "generation_config.json", "model.safetensors.index.json",
        "neoxkit.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert commits(hub) == 1, "everything is named in one commit"
    asked = [each for each in hub.asked if each.startswith("PUT ") or "/commit/" in each]
    assert asked[-1] == f"POST /api/models/{REPO}/commit/main"
    assert sum(each.startswith("PUT ") for each in asked) == len(asked) - 1 >= 3
    assert not hub.broken
    for name in sorted(weights):
        assert f"push {REPO}@main: {name} (" in done.stderr
    fine(neoxkit("import", REPO, tmp_path / "back", "--tp", "2"))
    assert fingerprint(tmp_path / "back") == fingerprint(model)
    assert front(hub) == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["neoxkit", "gpt_neox"],
        "license": "apache-2.0", "datasets": ["me/books"],
    }  # fmt: skip
    card = hub.text("README.md", REPO)
    assert f'from_pretrained("{REPO}")' in card
    assert "Trained from step 0 to step 7: 448 tokens in 28 samples in all." in card


def test_the_weights_are_those_of_an_export(hub: Hub, neoxkit, model: Path, tmp_path: Path) -> None:
    fine(neoxkit("push", model, REPO, "--max-shard-size", "10KB", "--dtype", "fp32"))
    fine(neoxkit("export", model, tmp_path / "hf", "--max-shard-size", "10KB", "--dtype", "fp32"))
    for path in (tmp_path / "hf").iterdir():
        if path.name not in ("README.md", "neoxkit.json"):
            file = hub.files(REPO)[path.name]
            assert (file.data if file.sha256 is None else hub.objects[file.sha256]) == path.read_bytes(), path.name


def test_two_weight_files_at_a_time_are_on_the_disk(
    hub: Hub, neoxkit, model: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is sent, and one that is made meanwhile."""
    seen, send = [], Repository.send

    def watched(self: Repository, *about):
        if next(iter(about[0])).endswith(".safetensors"):
            time.sleep(0.05)  # time enough to make all of them
            seen.append(len([path for path in temporary.rglob("*") if path.suffix == ".safetensors"]))
        return send(self, *about)

    monkeypatch.setattr(Repository, "send", watched)
    fine(neoxkit("push", model, REPO, "--max-shard-size", "5KB"))
    assert len(seen) > 4
    assert set(seen) <= {1, 2}
    assert 2 in seen
    assert not list(temporary.iterdir())


def test_what_is_there_is_not_sent_again(hub: Hub, neoxkit, model: Path) -> None:
    fine(neoxkit("push", model, REPO))
    sent, asked = len(hub.sent), hub.count("POST .*/batch")
    done = neoxkit("push", model, REPO, "--license", "mit")
    fine(done)
    assert "its weights are there already" in done.stderr
    assert (len(hub.sent), commits(hub), front(hub)["license"]) == (sent, 2, "mit")
    assert hub.count("POST .*/batch") == asked
    fine(neoxkit("push", model, REPO))
    assert commits(hub) == 2, "nothing has changed: no commit"


def test_another_model_is_replaced_only_by_force(hub: Hub, neoxkit, model: Path, other: Path) -> None:
    fine(neoxkit("push", model, REPO, "--max-shard-size", "5KB"))
    before = hub.files(REPO)
    sent = len(hub.sent)
    for more in ((), ("--dry-run",)):
        done = neoxkit("push", other, REPO, *more)
        refused(done, f"{REPO}@main holds the model {fingerprint(model)}", "--force", "history")
    assert hub.files(REPO) == before
    assert len(hub.sent) == sent
    fine(neoxkit("push", other, REPO, "--force"))
    after = hub.files(REPO)
    assert "model.safetensors" in after
    assert "model.safetensors.index.json" not in after
    assert not [name for name in after if name.startswith("model-0")]
    assert commits(hub) == 2
    assert not hub.broken


def test_a_model_of_unknown_making_is_left_alone(hub: Hub, neoxkit, model: Path) -> None:
    repo = hub.make(REPO)
    repo.add(
        "main", {**hub.files(REPO), "pytorch_model.bin": File(b"weights", 7), "notes.txt": File(b"a", 1)}, "by hand"
    )
    refused(neoxkit("push", model, REPO), "a model that neoxkit did not publish")
    fine(neoxkit("push", model, REPO, "--force"))
    assert "pytorch_model.bin" not in hub.files(REPO)
    assert "notes.txt" in hub.files(REPO)


def test_a_branch_begins_empty(hub: Hub, neoxkit, model: Path, other: Path, tmp_path: Path) -> None:
    fine(neoxkit("push", model, REPO, "--max-shard-size", "5KB"))
    fine(neoxkit("push", other, f"{REPO}@step9"))
    assert not [name for name in hub.files(REPO, "step9") if name.startswith("model-0")]
    assert 'revision="step9"' in hub.text("README.md", REPO, "step9")
    fine(neoxkit("import", f"hf://{REPO}@step9", tmp_path / "back"))
    assert fingerprint(tmp_path / "back") == fingerprint(other)
    assert not hub.broken


def test_every_step_of_a_run(hub: Hub, neoxkit, save, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    def step(number: int) -> Path:
        changed = {name: value + number / 64 for name, value in tensors.items()}
        found: Path = save(f"run/step-{number:08d}", changed, step=number)
        return found

    folders = {number: step(number) for number in (1, 2)}
    lines = fine(neoxkit("push", tmp_path / "run", REPO, "--every-step")).splitlines()
    assert [line.split(":")[0] for line in lines] == [f"{REPO}@step1", f"{REPO}@step2", f"{REPO}@main"]
    assert len(hub.sent) == len(set(hub.sent)) + 1 or len(hub.objects) == len(hub.sent), "nothing is sent twice"
    sent = len(hub.sent)
    folders[30] = step(30)
    done = neoxkit("push", tmp_path / "run", REPO, "--every-step", "--json")
    told = [json.loads(line) for line in fine(done).splitlines()]
    assert [each["revision"] for each in told] == ["step1", "step2", "step30", "main"]
    assert done.stderr.count("its weights are there already") == 2
    assert len(hub.sent) == sent + 1
    assert [commits(hub, f"step{number}") for number in folders] == [1, 1, 1]
    assert commits(hub) == 2
    for number, folder in folders.items():
        fine(neoxkit("import", f"{REPO}@step{number}", tmp_path / f"back{number}"))
        assert fingerprint(tmp_path / f"back{number}") == fingerprint(folder)
    fine(neoxkit("import", REPO, tmp_path / "newest"))
    assert fingerprint(tmp_path / "newest") == fingerprint(folders[30])
    assert not hub.broken


def test_main_moves_on_only_from_a_step_that_is_kept(hub: Hub, neoxkit, model: Path, other: Path) -> None:
    fine(neoxkit("push", other, REPO))
    run = model.parent
    done = neoxkit("push", run, REPO, "--every-step")
    assert done.stdout.startswith(f"{REPO}@step7: model ")
    refused(done, f"{REPO}@main holds the model {fingerprint(other)}", printed=True)
    assert "step7" in hub.repos[REPO].branches
    fine(neoxkit("push", other, REPO, "--revision", "step9"))
    fine(neoxkit("push", run, REPO, "--every-step"))
    refused(neoxkit("push", run, REPO, "--every-step", "--revision", "a"), "each step has its own")
    refused(neoxkit("push", other, REPO, "--every-step"), "not a run's folder")


def test_a_checkpoint_as_it_is(hub: Hub, neoxkit, model: Path, tmp_path: Path) -> None:
    done = neoxkit("push", model, REPO, "--as", "neoxkit", "--private")
    fine(done)
    assert hub.repos[REPO].private
    assert {"manifest.json", "neoxkit.json", "trainer/state.json"} < set(hub.files(REPO))
    assert front(hub)["library_name"] == "neoxkit"
    assert commits(hub) == 1
    assert not hub.broken
    fine(neoxkit("import", REPO, tmp_path / "back"))
    ours, back = Checkpoint.open(model), Checkpoint.open(tmp_path / "back")
    assert back.fingerprint == ours.fingerprint
    assert back.names() == ours.names()
    for name in ours.names():
        assert torch.equal(ours.read(name), back.read(name)), name
    assert back.trainer_state() == ours.trainer_state()
    assert back.manifest.lineage[-1]["source"].startswith(f"{REPO}@")
    assert not list((tmp_path / "cache").rglob(".neoxkit-*"))
    fine(neoxkit("import", REPO, tmp_path / "weights", "--weights-only", "--dtype", "fp16", "--tp", "4"))
    assert all(name.startswith("model/") for name in Checkpoint.open(tmp_path / "weights").names())
    refused(neoxkit("import", REPO, tmp_path / "no", "--no-tokenizer"), "taken as it is")


@pytest.mark.parametrize("form", ["neoxkit", "gpt_neox"])
def test_a_checkpoint_in_a_store(form: str, hub: Hub, neoxkit, model: Path, temporary: Path, tmp_path: Path) -> None:
    fine(neoxkit("reshard", model, f"memory://push-{form}/a"))
    fine(neoxkit("push", f"memory://push-{form}/a", REPO, "--as", form))
    fine(neoxkit("import", REPO, tmp_path / "back"))
    assert fingerprint(tmp_path / "back") == fingerprint(model)
    assert not list(temporary.iterdir())


def test_a_damaged_checkpoint_is_not_published(hub: Hub, neoxkit, model: Path) -> None:
    path = sorted((model / "model").glob("*.safetensors"))[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for form in ("neoxkit", "gpt_neox"):
        refused(neoxkit("push", model, REPO, "--as", form), "damaged")
    assert commits(hub) == 0


def test_a_dry_run_writes_nothing(hub: Hub, neoxkit, model: Path) -> None:
    said = fine(neoxkit("push", model, f"{REPO}@new", "--dry-run"))
    assert said.startswith(f"{REPO}@new would be made; it would be of the model {fingerprint(model)}, as gpt_neox:\n")
    assert "  config.json\n" in said
    assert "bytes of tensors in 1 files; nothing was written" in said
    assert hub.repos == {}
    fine(neoxkit("push", model, REPO))
    assert "@main holds this model; " in fine(neoxkit("push", model, REPO, "--dry-run"))
    asked = len(hub.asked)
    told = json.loads(fine(neoxkit("push", model, f"{REPO}@new", "--dry-run", "--json")))
    assert (told["commit"], told["before"], told["form"]) == (None, None, "gpt_neox")
    assert not [each for each in hub.asked[asked:] if not each.startswith(("GET", "HEAD"))]
    assert "new" not in hub.repos[REPO].branches


def test_private_folders_are_not_told(hub: Hub, neoxkit, save) -> None:
    run = yaml.safe_dump({"data": {"train": "/home/somebody/private/books"}})
    lineage = [
        {"event": "load", "source": "/home/somebody/private/step-5", "model": "ab12"},
        {"event": "import", "source": f"org/base@{'c0ffee' * 6}c0de", "format": "x"},
    ]
    fine(neoxkit("push", save("a", lineage=lineage, run_yaml=run), REPO))
    everything = b"".join(file.data or b"" for file in hub.files(REPO).values())
    assert b"private" not in everything
    assert front(hub)["base_model"] == "org/base"
    assert "| trained on | `books` |" in hub.text("README.md", REPO)
    assert json.loads(hub.text("neoxkit.json", REPO))["lineage"][0]["source"] == "step-5"


def test_who_may_not_is_told_so(hub: Hub, neoxkit, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(neoxkit("push", model, "somebody/tiny"), "somebody/tiny", "the Hub forbids to write there")
    refused(neoxkit("push", model, "no name"), "no name of a repository")
    refused(neoxkit("push", model, f"{REPO}@a", "--revision", "b"), "two branches")
    repo = hub.make(REPO)
    repo.tags["v1"] = repo.branches["main"][0]
    refused(neoxkit("push", model, REPO, "--private"), "is there, and public")
    refused(neoxkit("push", model, f"{REPO}@v1"), "a tag or a commit")
    refused(neoxkit("push", model, f"{REPO}@{'0' * 40}"), "no name for a branch")
    refused(neoxkit("push", model, REPO, "--as", "llama"), "does not fit Llama")
    refused(neoxkit("push", model, REPO, "--as", "neoxkit", "--dtype", "bf16"), "as it is")
    refused(neoxkit("push", model, REPO, "--license", "no-such"), "the card", '"license" must be one of')
    monkeypatch.setenv("HF_TOKEN", READ_ONLY)
    refused(neoxkit("push", model, REPO), "the Hub forbids to write there")
    monkeypatch.setenv("HF_TOKEN", "hf_a-secret-of-nobody")
    refused(neoxkit("push", model, "me/new"), "the Hub forbids to write there")
    monkeypatch.delenv("HF_TOKEN")
    asked = len(hub.asked)
    refused(neoxkit("push", model, REPO), "there is no token", "hf auth login", "HF_TOKEN")
    assert len(hub.asked) == asked
    assert not hub.sent
    assert commits(hub) == 0


def test_without_the_hub(hub: Hub, neoxkit, model: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "is_offline_mode", lambda: True)
    refused(neoxkit("push", model, REPO), "HF_HUB_OFFLINE is set")
    monkeypatch.undo()


def test_what_gitignore_keeps_out_is_told(hub: Hub, neoxkit, model: Path) -> None:
    repo = hub.make(REPO)
    repo.add("main", {**hub.files(REPO), ".gitignore": File(b"config.json", 11)}, "by hand")
    refused(neoxkit("push", model, REPO), ".gitignore keeps config.json out")
    assert commits(hub) == 1


def test_large_files_go_in_parts(hub: Hub, neoxkit, model: Path, tmp_path: Path) -> None:
    hub.part = 4096
    fine(neoxkit("push", model, REPO))
    assert max(hub.sent) == 4096
    fine(neoxkit("import", REPO, tmp_path / "back"))
    assert fingerprint(tmp_path / "back") == fingerprint(model)
