"""Benchmarks of every shape for lm-evaluation-harness, over a few documents of our own: nothing is fetched."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

BEGIN = """
task: local_{name}
dataset_path: json
dataset_kwargs: {{data_files: {{train: {data}, test: {data}}}}}
test_split: test
"""

SHAPES = {
    # Several choices behind one question.
    "choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
metadata: {version: 1.0}
""",
    # The same, behind examples.
    "fewshot": """
output_type: multiple_choice
fewshot_split: train
num_fewshot: 3
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc}]
metadata: {version: 2.0}
""",
    # One question behind each of several contexts, and single letters as answers.
    "letters": """
output_type: multiple_choice
doc_to_text: "{{question}}\\nA.{{choices[0]}}\\nB.{{choices[1]}}\\nC.{{choices[2]}}\\nAnswer:"
doc_to_choice: ["A", "B", "C"]
doc_to_target: "{{label}}"
metric_list: [{metric: acc}]
metadata: {version: 1.0}
""",
    # LAMBADA's shape: how likely the last word is, and whether it would be said.
    "cloze": """
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: "{{choices[label]}}"
metric_list: [{metric: perplexity}, {metric: acc}]
metadata: {version: 1.0}
""",
    # Whole texts, longer than the context.
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
metadata: {version: 1.0}
""",
    # What is said up to a stop text.
    "until": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["e", "a", "\\n\\n"], max_gen_toks: 24, do_sample: false}
metric_list: [{metric: exact_match}]
metadata: {version: 1.0}
""",
}


def remember_index(patch: pytest.MonkeyPatch) -> None:
    """Let the harness look through its own tasks once: it takes ten seconds."""
    from lm_eval.tasks._index import TaskIndex

    build = TaskIndex.build

    def quick(paths: Sequence[Path]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for path in paths:
            if path not in _INDICES or path.name != "tasks" or "lm_eval" not in path.parts:
                _INDICES[path] = build([path])
            found |= _INDICES[path]
        return found

    patch.setattr(TaskIndex, "build", staticmethod(quick))


_INDICES: dict[Path, dict[str, Any]] = {}

NAMES = [f"local_{name}" for name in SHAPES]


def write_tasks(folder: Path, growth: int = 12) -> Path:
    """Write them, and their documents, of which each has so many parts more than the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ("import", "return", "def f", "assert x", "for each", "yield", "class A", "from b", "with c", "not d")
    rows: list[dict[str, Any]] = [
        {
            "question": f"{word} is what comes:" + " and then some more of it" * (n % 3),
            "choices": [" " + word, " nothing", f" x == {n}"],
            "label": n % 3,
            "text": " ".join(f"{word} {place}" for place in range(3 + growth * n)),
        }
        for n, word in enumerate(words)
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in SHAPES.items():
        (folder / f"{name}.yaml").write_text(BEGIN.format(name=name, data=data) + text)
    return folder
