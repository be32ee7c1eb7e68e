"""Benchmarks of every shape give what the harness's own model class gives for transformers."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from local_tasks import NAMES, write_tasks
from served import TEMPLATE, make_model

from neoxkit.checkpoint.store import place
from neoxkit.errors import ConfigError
from neoxkit.eval.benchmark import Benchmarks, Results, check_tasks, evaluate
from neoxkit.eval.harness import NeoxkitLM
from neoxkit.eval.replicas import Opening, open_model
from neoxkit.eval.subject import limits_of
from neoxkit.serve.start import open_engine

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model, whose answers are any bytes."""
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


def opening(folder: Path, tp: int = 1) -> Opening:
    return partial(open_engine, place(folder), dtype="F32", device="cpu", tp=tp, limits=limits_of(4, "cpu"))


def ours(folder: Path, wanted: Benchmarks, tp: int = 1, dp: int = 1, output: Path | None = None) -> Results:
    manager = check_tasks(wanted)
    with open_model(opening(folder, tp), dp) as found:
        return evaluate(NeoxkitLM(found), wanted, manager, output, "tiny")


def theirs(folder: Path, wanted: Benchmarks) -> Results:
    """HFLM's."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    found: Results = simple_evaluate(
        HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4),
        tasks=list(wanted.tasks),
        task_manager=check_tasks(wanted),
        num_fewshot=wanted.num_fewshot,
        apply_chat_template=wanted.apply_chat_template,
        system_instruction=wanted.system_instruction,
        fewshot_as_multiturn=wanted.fewshot_as_multiturn,
    )
    return found


def numbers(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if "," in key}


def assert_same(mine: Results, his: Results, samples: dict[str, Any]) -> None:
    """All metrics, and the answers to each document."""
    assert mine["results"].keys() == his["results"].keys()
    for task, row in his["results"].items():
        found = numbers(mine["results"][task])
        assert found.keys() == numbers(row).keys()
        for key, value in numbers(row).items():
            if key.startswith(("acc", "exact_match")):
                assert found[key] == value, (task, key)
            elif not isinstance(value, str):
                assert found[key] == pytest.approx(value, rel=1e-4), (task, key)
        for one, other in zip(samples[task], his["samples"][task], strict=True):
            assert one["arguments"] == other["arguments"]
            for (a,), (b,) in zip(one["resps"], other["resps"], strict=True):
                if isinstance(b, tuple):
                    assert a[0] == pytest.approx(b[0], abs=1e-4)
                    assert a[1] == b[1]
                else:
                    assert a == (b if isinstance(b, str) else pytest.approx(b, abs=1e-4 * max(1, abs(b))))


@pytest.fixture(scope="module")
def reference(model: Path, tasks: Path) -> Results:
    return theirs(model, Benchmarks(tasks=tuple(NAMES), include_path=(tasks,)))


@pytest.mark.parametrize(("tp", "dp"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_the_same_scores_as_transformers(
    model: Path, tasks: Path, reference: Results, tp: int, dp: int, tmp_path: Path
) -> None:
    found = with_samples(model, Benchmarks(tasks=tuple(NAMES), include_path=(tasks,)), tp, dp, tmp_path)
    assert_same(found, reference, found["samples"])


def with_samples(folder: Path, wanted: Benchmarks, tp: int, dp: int, output: Path) -> Results:
    """Results, and what they come of, as the harness has it before it is written."""
    from neoxkit.eval import benchmark

    kept: dict[str, Any] = {}
    write = benchmark._write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "_write", lambda *each: (kept.update(deepcopy(each[2])), write(*each)))
        found = ours(folder, wanted, tp, dp, output)
    return {**found, "samples": kept}


def test_chats(model: Path, tasks: Path, tmp_path: Path) -> None:
    wanted = Benchmarks(
        tasks=("local_until", "local_fewshot"),
        include_path=(tasks,),
        apply_chat_template=True,
        system_instruction="Be brief.",
    )
    found = with_samples(model, wanted, 1, 1, tmp_path)
    assert_same(found, theirs(model, wanted), found["samples"])
    assert found["chat_template"] == TEMPLATE


@pytest.fixture
def lm(model: Path) -> Iterator[NeoxkitLM]:
    with open_model(opening(model)) as found:
        yield NeoxkitLM(found)


def test_text_becomes_the_tokens_of_transformers(lm: NeoxkitLM, model: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    his = HFLM(pretrained=str(model), dtype="float32", device="cpu")
    assert (lm.eot_token_id, lm.prefix_token_id, lm.max_length) == (
        his.eot_token_id,
        his.prefix_token_id,
        his.max_length,
    )
    for text in ("", " ", "a", "def f(x):\n    return", "<|endoftext|>a", "ü 漢字"):
        for special in (None, True, False):
            assert lm.tok_encode(text, special) == his.tok_encode(text, special), (text, special)
    for pair in (("a b ", "c"), ("def", " f"), ("x\n\n", "y"), (" ", "z")):
        assert lm._encode_pair(*pair) == his._encode_pair(*pair)


def test_too_much_loses_its_beginning(lm: NeoxkitLM, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lm_eval.models.huggingface import HFLM

    his = HFLM(pretrained=str(model), dtype="float32", device="cpu")
    length = lm.max_length
    asks = [
        (None, list(range(1, 250)) * 2, [7, 8, 9]),
        (None, [5], list(range(10, 10 + length % 250))),
        (None, [3], [4]),
    ]
    mine, found = lm._loglikelihood_tokens(asks), his._loglikelihood_tokens(asks)
    assert [each[0] for each in mine] == pytest.approx([each[0] for each in found], abs=1e-3)
    assert f"tokens lost its beginning: the context is {length}" in capsys.readouterr().err
    exact = [(None, list(range(1, length - 1)), [7, 8, 9])]  # the last token is only foretold
    assert lm._loglikelihood_tokens(exact)[0][0] == pytest.approx(his._loglikelihood_tokens(exact)[0][0], abs=1e-3)


def test_rows_of_the_same_tokens_are_scored_each_by_itself(lm: NeoxkitLM, model: Path) -> None:
    """HFLM 0.4.13 gives the second, beside the first, the scores of tokens at the beginning of the row."""
    from lm_eval.models.huggingface import HFLM

    his = HFLM(pretrained=str(model), dtype="float32", device="cpu")
    row = [5, 6, 7, 8] * 10
    asks = [(None, row[:1], [*row[1:], 9]), (None, row[:30], [*row[30:], 10])]
    together = [each[0] for each in lm._loglikelihood_tokens(asks)]
    alone = [his._loglikelihood_tokens([ask])[0][0] for ask in asks]
    assert together == pytest.approx(alone, abs=1e-3)


def test_what_is_repeated_is_drawn_anew(lm: NeoxkitLM) -> None:
    from lm_eval.api.instance import Instance

    def say(**settings: Any) -> list[str]:
        given = {"until": [], "max_gen_toks": 12, **settings}
        return lm.generate_until([Instance("generate_until", {}, ("def", given), n) for n in range(4)])

    assert len(set(say(do_sample=True, temperature=1.0))) == 4
    assert say(do_sample=True, temperature=1.0) == say(do_sample=True, temperature=1.0)
    assert say(do_sample=True, temperature=1.0) != say(do_sample=True, temperature=1.0, seed=1)
    assert len(set(say(do_sample=False))) == 1


def test_settings_that_mean_nothing_are_refused(lm: NeoxkitLM) -> None:
    from lm_eval.api.instance import Instance

    for settings, said in (
        ({"num_beams": 4, "max_gen_toks": 9}, "num_beams=4: a setting of generation that neoxkit does not know"),
        ({"max_gen_toks": 10**4}, "a task wants 10000 new tokens"),
    ):
        with pytest.raises(ConfigError, match=said):
            lm.generate_until([Instance("generate_until", {}, ("def", settings), 0)])


def test_a_prompt_that_loses_its_beginning_is_told(lm: NeoxkitLM, capsys: pytest.CaptureFixture[str]) -> None:
    from lm_eval.api.instance import Instance

    lm.generate_until([Instance("generate_until", {}, ("def f\n" * 60, {"until": [], "max_gen_toks": 200}), 0)])
    assert f"tokens lost its beginning: 200 new ones leave room for {lm.max_length - 200}" in capsys.readouterr().err


def test_log_likelihoods_are_logarithms(lm: NeoxkitLM) -> None:
    """Over all next tokens, probabilities sum up to one; the greedy one is the greatest."""
    found = lm._loglikelihood_tokens([(None, [5, 6], [token]) for token in range(300)])
    assert sum(math.exp(each[0]) for each in found) == pytest.approx(1, abs=1e-4)
    (best,) = [number for number, each in enumerate(found) if each[1]]
    assert found[best][0] == max(each[0] for each in found)
