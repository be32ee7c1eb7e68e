"""The stock command line of lm-evaluation-harness prints for our server what it prints for the model itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packages import installed
from served import NAME, Live

PACKAGES = (
    "lm_eval==0.4.13", "accelerate==1.15.0", "chardet==6.0.0.post1", "colorama==0.4.6", "DataProperty==1.1.1",
    "datasets==5.2.0", "dill==0.4.1", "evaluate==0.4.6", "joblib==1.6.0", "lxml==6.1.3", "mbstrdecoder==1.1.5",
    "more-itertools==11.2.1", "multiprocess==0.70.19", "narwhals==2.29.0", "nltk==3.10.4", "pandas==3.1.1",
    "pathvalidate==3.3.1", "portalocker==4.4.2", "pyarrow==26.0.1", "pytablewriter==1.2.1", "pytz==2026.6",
    "rouge_score==0.1.2", "sacrebleu==2.6.0", "scikit-learn==1.9.1", "scipy==1.17.1", "sqlitedict==2.1.0",
    "tabledata==1.3.5", "tabulate==0.10.0", "tcolorpy==0.1.7", "tenacity==9.1.2", "threadpoolctl==3.8.0",
    "typepy==1.3.5", "word2number==1.1",
)  # fmt: skip
"""The harness and what it needs, all of it: nothing else of the tests wants these."""

CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""

ROLLING = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""

UNTIL = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["e", "a"], max_gen_toks: 24, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three tasks over the same twelve documents."""
    folder = tmp_path_factory.mktemp("tasks")
    names = [
        "import",
        "return",
        "def f",
        "assert x",
        "for each",
        "yield",
        "class A",
        "from b",
        "with c",
        "not d",
        "if e",
        "else",
    ]
    rows = [
        {"question": f"{name} is what comes:", "choices": [" " + name, " nothing", " x == y"],
         "label": n % 3}
        for n, name in enumerate(names)
    ]  # fmt: skip
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("choice", CHOICE), ("rolling", ROLLING), ("until", UNTIL)):
        (folder / f"{name}.yaml").write_text(text.format(name=f"local_{name}", data=data))
    return folder


def evaluate(tasks: Path, output: Path, model: str, arguments: str) -> dict[str, Any]:
    """The metrics, by task, that `lm_eval` writes, and the log-likelihoods or texts of every document."""
    packages = installed("lm-eval-0.4.13", PACKAGES)
    environment = {
        **os.environ, "PYTHONPATH": str(packages), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(output / "home"), "OMP_NUM_THREADS": "1", "OPENAI_API_KEY": "none",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "lm_eval", "--model", model, "--model_args", arguments, "--include_path", str(tasks),
        "--tasks", "local_choice,local_rolling,local_until", "--batch_size", "4", "--output_path", str(output),
        "--log_samples", "--device", "cpu",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = output.glob("**/results_*.json")
    found = json.loads(results.read_text())["results"]
    metrics = {task: {key: value for key, value in row.items() if "," in key} for task, row in found.items()}
    for path in output.glob("**/samples_*.jsonl"):
        task = path.name.split("_2")[0].removeprefix("samples_")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        metrics[task]["samples"] = [row["filtered_resps"] for row in sorted(rows, key=lambda row: row["doc_id"])]
    return metrics


@pytest.mark.slow
def test_the_same_figures_as_of_the_model_itself(server: Live, tasks: Path, tmp_path: Path) -> None:
    folder = server.serving.folder
    served = f"model={NAME},base_url={server.url}/completions,tokenizer={folder},num_concurrent=2,max_retries=1"
    ours = evaluate(tasks, tmp_path / "served", "local-completions", served)
    theirs = evaluate(tasks, tmp_path / "hf", "hf", f"pretrained={folder},dtype=float32")
    assert set(ours) == set(theirs) == {"local_choice", "local_rolling", "local_until"}
    for task, row in theirs.items():
        for key, value in row.items():
            if key == "samples":
                continue
            if isinstance(value, float):
                assert ours[task][key] == pytest.approx(value, rel=1e-5), (task, key)
            else:
                assert ours[task][key] == value, (task, key)
    assert ours["local_until"]["samples"] == theirs["local_until"]["samples"]
    for here, there in zip(ours["local_choice"]["samples"], theirs["local_choice"]["samples"], strict=True):
        for (a, greedy), (b, best) in zip(here, there, strict=True):
            assert float(a) == pytest.approx(float(b), abs=1e-4)
            assert greedy == best
