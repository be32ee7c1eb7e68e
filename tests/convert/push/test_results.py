"""Results of lm-evaluation-harness on the card of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_store import Fault, File, Hub
from local_tasks import write_tasks
from pushing import fine, refused
from safetensors.torch import load_file, save_file
from served import make_model

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.convert.push.card import add_results
from neoxkit.errors import CheckpointError, DataError

REPO = "me/tiny"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own


def results(acc: float = 0.25, model: str = "", **more: Any) -> dict[str, Any]:
    """What the harness writes, in short."""
    return {
        "results": {
            "arc_easy": {
                "alias": "arc_easy", "acc,none": acc, "acc_stderr,none": 0.012,
                "acc_norm,none": 0.3, "acc_norm_stderr,none": "N/A",
            },
            "gsm8k": {"alias": " - gsm8k", "exact_match,strict-match": 0.0, "exact_match_stderr,strict-match": 0.0},
        },
        "versions": {"arc_easy": 1.0, "gsm8k": 3.0},
        "n-shot": {"arc_easy": 0, "gsm8k": 5},
        "config": {"model": "neoxkit", "model_sha": model},
        **more,
    }  # fmt: skip


def card(hub: Hub) -> tuple[dict[str, Any], str]:
    """Metadata and text."""
    _, front, text = hub.text("README.md", REPO).split("---\n", 2)
    return yaml.safe_load(front), text


def values(hub: Hub) -> dict[tuple[str, str], float]:
    """What the metadata says of each task and metric."""
    (index,) = card(hub)[0]["model-index"]
    assert index["name"] == "tiny"
    return {
        (each["dataset"]["name"], metric["type"]): metric["value"]
        for each in index["results"]
        for metric in each["metrics"]
    }


@pytest.fixture
def model(save) -> Path:
    """A checkpoint."""
    found: Path = save("model")
    return found


def write(path: Path, tree: object) -> Path:
    path.write_text(json.dumps(tree))
    return path


def test_push_puts_them_in_the_card(hub: Hub, neoxkit, model: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "results.json", results(model=Checkpoint.open(model).fingerprint))
    fine(neoxkit("push", model, REPO, "--results", file))
    assert values(hub) == {("arc_easy", "acc"): 0.25, ("arc_easy", "acc_norm"): 0.3, ("gsm8k", "exact_match"): 0.0}
    front, text = card(hub)
    first = front["model-index"][0]["results"][0]
    assert first["task"] == {"type": "text-generation"}
    assert first["dataset"] == {"name": "arc_easy", "type": "arc_easy"}
    about = {"num_few_shot": 0, "filter": "none", "version": 1.0, "stderr": 0.012}
    assert first["metrics"][0] == {"type": "acc", "value": 0.25, "name": "acc", "args": about}
    assert "| arc_easy | 0 | acc | 0.25 ± 0.012 |" in text
    assert "| gsm8k | 5 | exact_match (strict-match) | 0 ± 0 |" in text
    fine(neoxkit("push", model, REPO))
    assert card(hub) == (front, text), "they stay when the model is pushed again"


def test_results_of_another_model_are_refused(hub: Hub, neoxkit, model: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "results.json", results(model="0123456789abcdef"))
    refused(neoxkit("push", model, REPO, "--results", file), "they are of the model 0123456789abcdef, not of")
    refused(neoxkit("push", model, REPO, "--results", write(tmp_path / "a", [])), "no results of lm-evaluation-harness")
    (tmp_path / "b").write_text("{")
    refused(neoxkit("push", model, REPO, "--results", tmp_path / "b"), "not valid JSON")
    refused(neoxkit("push", model, REPO, "--every-step", "--results", file), "results are of one checkpoint")
    assert hub.repos == {}
    fine(neoxkit("push", model, REPO))
    with pytest.raises(DataError, match="they are of the model 0123456789abcdef"):
        add_results(REPO, [results(model="0123456789abcdef")])
    commit = "c0ffee" * 6 + "c0de"  # of a model on the Hub, as the harness itself writes it
    assert add_results(REPO, [results(model=commit)]).startswith(f"{hub.url}/{REPO}/commit/")


def test_results_are_added_and_replaced(hub: Hub, neoxkit, model: Path) -> None:
    fine(neoxkit("push", model, REPO, "--license", "mit"))
    before = hub.files(REPO)
    add_results(REPO, [results(0.25)])
    add_results(REPO, [results(0.5), {"results": {"piqa": {"acc,none": 0.75}}}])
    assert values(hub) == {
        ("arc_easy", "acc"): 0.5, ("arc_easy", "acc_norm"): 0.3, ("gsm8k", "exact_match"): 0.0, ("piqa", "acc"): 0.75,
    }  # fmt: skip
    front, text = card(hub)
    assert front["license"] == "mit"
    assert text.count("## Evaluation") == 1
    assert "0.5 ± 0.012" in text
    assert "0.25" not in text
    assert "## How to load it" in text
    after = hub.files(REPO)
    assert {name for name in after if after[name] != before.get(name)} == {"README.md"}
    shots = results(0.9)
    shots["n-shot"]["arc_easy"] = 25
    add_results(REPO, [shots])
    assert "| arc_easy | 25 | acc | 0.9 ± 0.012 |" in card(hub)[1]
    assert "| arc_easy | 0 | acc | 0.5 ± 0.012 |" in card(hub)[1], "another number of examples is another measurement"


def test_a_card_that_changes_meanwhile_is_read_anew(hub: Hub, waits: list[float]) -> None:
    repo = hub.make(REPO)
    repo.add("main", {"README.md": File(b"---\nlicense: mit\n---\nwords\n", 27)}, "by hand")

    def by_another() -> None:
        repo.add("main", {"README.md": File(b"---\nlicense: mit\n---\nother words\n", 33)}, "by another")

    hub.faults.append(Fault(f"POST /api/models/{REPO}/commit/", 1, 503, after=by_another))
    add_results(REPO, [results()])
    front, text = card(hub)
    assert front["license"] == "mit"
    assert text.startswith("other words\n")
    assert values(hub)["arc_easy", "acc"] == 0.25


def test_where_results_cannot_go(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="no such repository or revision"):
        add_results("me/nothing", [results()])
    hub.make(REPO)
    add_results(REPO, [results()])
    assert values(hub)["arc_easy", "acc"] == 0.25
    hub.repos[REPO].add("main", {"README.md": File(b"---\nlicense: [\n---\n", 19)}, "by hand")
    with pytest.raises(CheckpointError, match=r"metadata of its README.md cannot be read"):
        add_results(REPO, [results()])
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(CheckpointError, match="there is no token"):
        add_results(REPO, [results()])


THEIRS = b"---\nlicense: mit\nlanguage: [en, de]\ntags: [mine, neoxkit]\n---\n\n# Words of a person\n"


def test_what_a_person_wrote_stays(hub: Hub, neoxkit, model: Path, save, tensors) -> None:
    hub.make(REPO).add("main", {"README.md": File(THEIRS, len(THEIRS))}, "by hand")
    fine(neoxkit("push", model, REPO))
    front, text = card(hub)
    assert front["license"] == "mit"
    assert front["language"] == ["en", "de"]
    assert front["tags"] == ["neoxkit", "gpt_neox", "mine"]
    assert text.startswith("\n# Words of a person\n")
    assert "## How to load it" in text
    add_results(REPO, [results()])
    other = save("other", {name: value * 2 for name, value in tensors.items()})
    fine(neoxkit("push", other, REPO, "--force"))
    front, text = card(hub)
    assert front["license"] == "mit"
    assert "model-index" not in front, "they were of another model"
    assert "Words of a person" not in text
    add_results(REPO, [results()])
    fine(neoxkit("push", other, REPO, "--as", "neoxkit"))
    front, text = card(hub)
    assert front["library_name"] == "neoxkit"
    assert values(hub)["arc_easy", "acc"] == 0.25, "the same weights in another form keep their results"
    assert "config.json" in hub.files(REPO)
    assert not [name for name in hub.files(REPO) if name in ("model.safetensors", "tokenizer.json")]
    assert not hub.broken


def test_eval_adds_what_it_has_measured(
    hub: Hub, neoxkit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    write_tasks(tmp_path / "tasks")
    make_model(tmp_path / "hf")
    fine(neoxkit("import", tmp_path / "hf", tmp_path / "checkpoint"))
    fine(neoxkit("push", tmp_path / "checkpoint", REPO))
    options = ["--tasks", "local_choice", "--include-path", tmp_path / "tasks", "--device", "cpu", "--push"]
    done = neoxkit("eval", tmp_path / "checkpoint", *options, REPO, "--json")
    measured = json.loads(fine(done))["results"]["local_choice"]["acc,none"]
    assert f"added to the card: {hub.url}/{REPO}/commit/" in done.stderr
    assert values(hub)["local_choice", "acc"] == measured
    commits = len(hub.repos[REPO].branches["main"])
    refused(neoxkit("eval", tmp_path / "checkpoint", *options, "me/nothing"), "no such repository or revision")
    weights = load_file(tmp_path / "hf/model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, tmp_path / "hf/model.safetensors", {"format": "pt"})
    fine(neoxkit("import", tmp_path / "hf", tmp_path / "other"))
    fine(neoxkit("push", tmp_path / "other", "me/other"))
    refused(neoxkit("eval", tmp_path / "checkpoint", *options, "me/other"), "it holds the model")
    refused(neoxkit("eval", tmp_path, "--watch", *options, REPO), "--push is for the results of one model")
    assert len(hub.repos[REPO].branches["main"]) == commits
