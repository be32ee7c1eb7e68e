"""Results files: what they say of a model, a task and a score, and what is none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from score_files import write

from neoxkit.errors import DataError
from neoxkit.eval.results import Score, find, read
from neoxkit.eval.settings import Settings


def change(path: Path, **keys: Any) -> Path:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    return path


def test_a_file_of_our_own(tmp_path: Path) -> None:
    path = write(tmp_path, {"arc": [1, 0, 0, 1]}, "runs/a", step=3)
    found = read(path)
    assert (found.name, found.step, found.tokens) == ("runs/a", 3, 3000)
    assert (found.backend, found.dtype) == ("neoxkit", "fp32")
    assert found.scores == {"arc": {"acc": Score(0.5, pytest.approx((1 / 3) ** 0.5 / 2), True)}}
    assert found.samples("arc") == next(tmp_path.glob("samples_arc_*"))
    assert found.samples("other") is None


@pytest.mark.parametrize(
    ("config", "name", "step"),
    [
        (
            {"model": "hf", "model_args": "pretrained=EleutherAI/pythia-14m,dtype=float32"},
            "EleutherAI/pythia-14m",
            None,
        ),
        (
            {"model": "hf", "model_args": {"pretrained": "EleutherAI/pythia-14m", "revision": "step1000"}},
            "EleutherAI/pythia-14m",
            1000,
        ),
        ({"model": "hf", "model_args": "pretrained=o/m", "model_revision": "step0"}, "o/m", 0),
        ({"model": "hf", "model_args": "pretrained=o/m,revision=v2"}, "o/m@v2", None),
        ({"model": "hf", "model_args": "pretrained=out/checkpoint-500/"}, "out", 500),
        ({"model": "hf", "model_args": "pretrained=out/global_step7"}, "out", 7),
        ({"model": "hf", "model_args": "pretrained=out/step-by-step"}, "out/step-by-step", None),
        ({"model": "dummy", "model_args": None}, "dummy", None),
        ({"model": "neoxkit", "neoxkit": {"source": "s3://b/run/step-00000020", "step": 20}}, "s3://b/run", 20),
        ({"model": "neoxkit", "neoxkit": {"source": "run", "step": 20}}, "run", 20),
        ({"model": "neoxkit", "neoxkit": {"source": "folder", "step": None}}, "folder", None),
        ({"model": "neoxkit", "neoxkit": {"source": ".", "step": 3}}, ".", 3),
    ],
)
def test_whose_results_they_are(tmp_path: Path, config: dict[str, Any], name: str, step: int | None) -> None:
    found = read(change(write(tmp_path, {"arc": [1, 0]}), config=config))
    assert (found.name, found.step) == (name, step)


def test_metrics_with_filters_and_without_errors(tmp_path: Path) -> None:
    results = {
        "gsm8k": {
            "alias": " - gsm8k",
            "sample_len": 4,
            "exact_match,strict-match": 0.25,
            "exact_match_stderr,strict-match": "N/A",
            "exact_match,flexible-extract": 1,
            "exact_match_stderr,flexible-extract": 0.5,
        },
        "group": {"alias": "group", " ": " "},
        "old": {"acc": 0.5, "acc_stderr": 0.1, "ok": True},
    }
    path = change(write(tmp_path, {"gsm8k": [0]}), results=results, higher_is_better={"gsm8k": {"exact_match": None}})
    assert read(path).scores == {
        "gsm8k": {
            "exact_match,strict-match": Score(0.25, None, None),
            "exact_match,flexible-extract": Score(1.0, 0.5, None),
        },
        "old": {"acc": Score(0.5, 0.1, None)},
    }


def test_numbers_beyond_reason(tmp_path: Path) -> None:
    path = change(write(tmp_path, {"arc": [1, 0]}), date=10**400, results={"arc": {"acc,none": 10**400, "x,none": -1}})
    found = read(path)
    assert found.scores["arc"] == {"acc": Score(math.inf, None, True), "x": Score(-1.0, None, None)}
    assert found.date == 0
    text = path.read_text()
    path.write_text(text.replace("-1", "-Infinity"))
    assert read(path).scores["arc"]["x"].value == -math.inf


def test_how_a_task_was_put(tmp_path: Path) -> None:
    path = write(tmp_path, {"arc": [1, 0]}, n_shot={"arc": 5}, n_samples={"arc": {"original": 9, "effective": 2}})
    change(path, chat_template_sha="ab" * 32, fewshot_as_multiturn=True, system_instruction_sha="cd" * 32)
    settings = read(path).settings["arc"]
    expected = Settings("1.0", "5", "2 of 9", "ab" * 32 + " in turns", "cd" * 32, None, f"{2:064x}")
    assert settings == expected
    assert settings.spell("documents") == "2 of 9 documents"
    assert settings.spell("instruction") == "system instruction cdcdcdcd"
    assert settings.spell("generation") == "no generation settings"


def test_a_group_is_put_as_its_tasks_are(tmp_path: Path) -> None:
    def group(name: str, **keys: Any) -> Settings:
        path = write(tmp_path / name, {"all": [1], "a": [1, 0], "b": [1, 1]}, **keys)
        return read(change(path, group_subtasks={"all": ["some", "b"], "some": ["a"], "a": []})).settings["all"]

    plain = group("plain")
    assert plain.documents == "4"
    assert plain.shots == "0"
    assert group("again") == plain
    assert group("version", versions={"a": 2.0}).differing(plain) == ["version"]
    assert group("shots", n_shot={"b": 3}).differing(plain) == ["shots"]
    assert group("prompts", task_hashes={"b": "other"}).differing(plain) == ["prompts"]
    assert group("unknown", samples=False).prompts is None


def test_a_limit_beyond_all_documents_is_none(tmp_path: Path) -> None:
    limited = read(write(tmp_path / "a", {"arc": [1, 0]}, config={"limit": 100})).settings["arc"]
    assert limited == read(write(tmp_path / "b", {"arc": [1, 0]})).settings["arc"]
    old = change(write(tmp_path / "c", {"arc": [1, 0]}, config={"limit": 100}), **{"n-samples": {}})
    assert read(old).settings["arc"].documents == "limit 100"


def test_files_are_found_once(tmp_path: Path) -> None:
    first = write(tmp_path / "a" / "deep", {"arc": [1, 0]})
    second = write(tmp_path / "b", {"arc": [1, 0]})
    assert find([tmp_path, first, tmp_path / "b"]) == [first, second]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no results_"):
        find([tmp_path / "empty"])
    with pytest.raises(DataError, match="no such file or folder"):
        find([tmp_path / "gone"])


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"results": {}}', '{"results": [], "versions": 1, "config": {}}']
)
def test_what_is_no_results_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results_x.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"results_x.json: not .*; name files"):
        read(path)
