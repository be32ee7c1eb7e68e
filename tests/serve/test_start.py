"""Engines from sources: checkpoints, foreign models, several processes; and what happens when one of them dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from engines import Answer, answers
from served import make_model

from neoxkit.checkpoint.store import place
from neoxkit.convert.open import open_foreign
from neoxkit.convert.transfer import import_model
from neoxkit.errors import ConfigError
from neoxkit.mesh import Mesh
from neoxkit.parallel.world import ContactError
from neoxkit.serve.request import Limits, Request, Sampling
from neoxkit.serve.start import Serving, open_engine

LIMITS = Limits(batch=4, step_tokens=32, context=128)

ASKED = [
    Request((5, 9, 13, 7), max_tokens=12, logprobs=0, scored_from=1),
    Request(tuple(range(3, 60)), max_tokens=12),
    Request((5, 9, 13), Sampling(temperature=1.0, seed=3), max_tokens=12),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("served") / "model")


def tokens(given: list[Answer]) -> list[list[int]]:
    return [answer.tokens for answer in given]


@pytest.fixture(scope="module")
def known(model: Path) -> list[list[int]]:
    """What one process answers from the Hugging Face folder."""
    with open_engine(place(model), device="cpu", limits=LIMITS) as serving:
        return tokens(answers(serving.engine, ASKED))


def test_what_comes_with_an_engine(model: Path) -> None:
    with open_engine(place(model), device="cpu", limits=LIMITS) as serving:
        assert (serving.name, serving.config.vocab, serving.dtype) == ("model", 300, torch.float32)
        assert serving.stop_ids == {0}
        assert serving.tokenizer.vocab == 300
        assert serving.engine.context == 128


@pytest.mark.parametrize("mesh", [Mesh(), Mesh(tp=2, pp=3)], ids=["whole", "cut"])
def test_a_checkpoint_in_any_cut(model: Path, known: list[list[int]], mesh: Mesh, tmp_path: Path) -> None:
    source = open_foreign(model)
    import_model(source, tmp_path / "checkpoint", mesh)
    source.close()
    with open_engine(place(tmp_path / "checkpoint"), device="cpu", limits=LIMITS) as serving:
        assert tokens(answers(serving.engine, ASKED)) == known


def test_half_precision_on_a_cpu(model: Path) -> None:
    """Weights are rounded to bf16; on most CPUs they are then multiplied in fp32."""
    with open_engine(place(model), device="cpu", limits=LIMITS, dtype="BF16") as serving:
        assert all(len(answer.tokens) == 12 for answer in answers(serving.engine, ASKED))


OPENED = """
import sys
from neoxkit.checkpoint.store import place
from neoxkit.serve.start import open_engine

with open_engine(place(sys.argv[1]), device="cpu"):
    print([name for name in ("torch._dynamo", "transformers", "deepspeed", "starlette") if name in sys.modules])
"""


def test_what_is_not_loaded(model: Path) -> None:
    """Each takes seconds, or may be missing."""
    command = [sys.executable, "-c", OPENED, str(model)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


ON_TWO = """
import json, os, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_start import ASKED, LIMITS, answers, open_engine, place, tokens

with open_engine(place(sys.argv[2]), device="cpu", tp=2, limits=LIMITS) as serving:
    print(json.dumps(tokens(answers(serving.engine, ASKED))), flush=True)
    for _ in range(3):
        assert serving.engine.tick() == []
    if sys.argv[3] == "kill":
        follower = serving._followers.processes[0]
        follower.send_signal(signal.SIGKILL)
        follower.wait()
        for _ in range(100):
            serving.engine.tick()
            time.sleep(0.05)
    print("end", flush=True)
"""


def on_two(model: Path, how: str) -> subprocess.CompletedProcess[str]:
    """A program that divides the model over two processes, which it starts."""
    here = Path(__file__)
    environment = {**os.environ, "PYTHONPATH": str(here.parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ON_TWO, str(here.parent), str(model), how]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def test_on_two_processes(model: Path, known: list[list[int]]) -> None:
    done = on_two(model, "end")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(known), "end"]


def test_a_rank_that_dies(model: Path) -> None:
    """The others do not hang: the next tick says so, though it had nothing to do, or who watches the process."""
    before = time.monotonic()
    done = on_two(model, "kill")
    assert time.monotonic() - before < 100
    assert "end" not in done.stdout.splitlines()
    assert done.returncode != 0
    if done.returncode == ContactError.exit_code:  # who watches the process was first
        assert "rank 1 has ended" in done.stderr
    else:
        assert "lost contact with the others" in done.stderr


def test_the_first_process_dies(model: Path) -> None:
    """Whatever ends it, the other ends too."""
    here = Path(__file__)
    environment = {**os.environ, "PYTHONPATH": str(here.parents[1]), "OMP_NUM_THREADS": "1"}
    named = "    print(serving._followers.processes[0].pid, flush=True)\n    time.sleep(60)\n    for _ in range(3):"
    text = ON_TWO.replace("    for _ in range(3):", named)
    command = [sys.executable, "-c", text, str(here.parent), str(model), "end"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        follower = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    for _ in range(200):
        if not Path(f"/proc/{follower}/stat").exists() or _state(follower) == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the other process still runs")


def _state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tp 4"):
        open_engine(place(model), device="cpu", tp=4, limits=LIMITS)
    with pytest.raises(ConfigError, match="--compile records CUDA graphs, and the model runs on a CPU"):
        open_engine(place(model), device="cpu", limits=LIMITS, compile=True)
    with pytest.raises(ConfigError, match=r"--max-context 99999 is more than the model's context of [0-9]+ tokens"):
        open_engine(place(model), device="cpu", limits=Limits(context=99999))
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((model / name).read_bytes())
    with pytest.raises(ConfigError, match="has no tokenizer; name one with --tokenizer"):
        open_engine(place(bare), device="cpu", limits=LIMITS)


def test_a_job_of_another_size(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="MASTER_ADDR, MASTER_PORT is not set"):
        open_engine(place(model), device="cpu", tp=2, limits=LIMITS)


def test_pages_for_what_is_asked(model: Path) -> None:
    def pages(**limits: int) -> int:
        with open_engine(place(model), device="cpu", limits=Limits(**limits)) as serving:
            assert isinstance(serving, Serving)
            return serving.engine.statistics().pages

    assert pages(batch=4, context=128) == 4 * 8
    assert pages(batch=4, cache_tokens=100) == 7
    assert pages(batch=4, cache_tokens=17, context=128) == 2
