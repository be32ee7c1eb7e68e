"""Files that the harness itself writes: of each kind of task, with filters, a group and samples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from neoxkit.eval.comparison import Difference
from neoxkit.eval.results import find, read
from neoxkit.eval.scores import Scores, collect

pytest.importorskip("lm_eval")

COMMON = "dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
TASKS = {
    "choose": "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: [a, b, c]\n"
    "doc_to_target: 0\nmetadata: {version: 3}\n"
    "metric_list: [{metric: acc}, {metric: acc_norm}]\n",
    "say": "output_type: generate_until\ndoc_to_text: '{{question}}'\ndoc_to_target: '{{answer}}'\n"
    "generation_kwargs: {until: ['.'], max_gen_toks: 4}\n"
    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    "filter_list:\n- {name: strict, filter: [{function: take_first}]}\n"
    "- {name: flexible, filter: [{function: lowercase}, {function: take_first}]}\n",
    "foretell": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{question}}'\n"
    "metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]\n",
}
GROUP = "group: both\ntask: [choose, say]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"

EVALUATE = """
import random, sys
from lm_eval.evaluator import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
folder = sys.argv[1]
tasks = TaskManager(include_path=folder, include_defaults=False)  # the index of all its own takes long
for seed, limit in ((0, None), (1, None), (2, 7)):
    random.seed(seed)
    tracker = EvaluationTracker(f"{folder}/out")
    found = simple_evaluate("dummy", f"pretrained=some/model{seed}", ["both", "foretell"], random_seed=seed,
                            limit=limit, task_manager=tasks, evaluation_tracker=tracker)
    samples = found.pop("samples")
    tracker.save_results_aggregated(found, samples)
    for task in found["configs"]:
        tracker.save_results_samples(task, samples[task])
"""
"""As its own command does it."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what it wrote: models 0 and 1 on 12 documents, model 2 on the first 7."""
    folder = tmp_path_factory.mktemp("harness")
    data = folder / "data.json"
    data.write_text("".join(json.dumps({"question": f"What is {n} ?", "answer": "lol"}) + "\n" for n in range(12)))
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{COMMON.format(data=data)}{text}")
    (folder / "both.yaml").write_text(GROUP)
    environment = {**os.environ, "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, "-c", EVALUATE, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "out"


def gather(folder: Path, *names: str) -> Scores:
    return collect([read(path) for name in names for path in find([folder / f"some__{name}"])])


def test_each_score_is_the_file_s(written: Path) -> None:
    path = find([written / "some__model0"])[0]
    tree, found = json.loads(path.read_text()), read(path)
    assert (found.name, found.backend, found.step) == ("some/model0", "dummy", None)
    assert set(found.scores) == {"both", "choose", "say", "foretell"}
    assert set(found.scores["say"]) == {"exact_match,strict", "exact_match,flexible"}
    assert found.scores["choose"]["acc"].value == tree["results"]["choose"]["acc,none"]
    assert found.scores["choose"]["acc"].error == tree["results"]["choose"]["acc_stderr,none"]
    assert found.scores["foretell"]["word_perplexity"].error is None
    assert found.scores["foretell"]["word_perplexity"].higher is False
    settings = found.settings["choose"]
    assert (settings.version, settings.shots, settings.documents) == ("3", "0", "12")
    assert len(settings.prompts or "") == 64
    assert json.loads(found.settings["say"].generation or "")["max_gen_toks"] == 4
    assert found.settings["both"].documents == "24"
    assert found.samples("foretell") is not None


def test_two_of_its_results_are_compared_by_document(written: Path) -> None:
    scores = gather(written, "model0", "model1")
    assert scores.unsure == []
    assert scores.comparison is not None
    told = {(row.task, row.metric): each for row, each in scores.comparison.items()}
    for task, metric in (("choose", "acc"), ("choose", "acc_norm"), ("foretell", "word_perplexity"),
                         ("foretell", "bits_per_byte"), ("say", "exact_match,strict")):  # fmt: skip
        found = told[task, metric]
        assert isinstance(found, Difference)
        assert found.paired == 12, (task, metric, found)
        assert found.error is not None
    group = told["both", "acc"]
    assert isinstance(group, Difference)
    assert group.why == "no samples"


def test_one_that_was_asked_less_is_not_compared(written: Path) -> None:
    scores = gather(written, "model0", "model2")
    assert scores.comparison is not None
    told = {row.task: each for row, each in scores.comparison.items()}
    assert told["choose"] == "not comparable: 12 documents and 7 of 12 documents"
    assert told["both"] == "not comparable: 24 documents and 14 of 24 documents"
