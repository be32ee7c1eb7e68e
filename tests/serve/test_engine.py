"""An engine's answers are those of transformers: alone, in mixed batches, with pages shared, put back, and divided."""

from __future__ import annotations

from pathlib import Path

import engines
import jobs
import pytest
import torch
import torch.distributed as dist
from engines import Answer, answers, engine_of
from tiny import TINY, Tiny, tiny

from neoxkit.config.model import ModelConfig
from neoxkit.config.optimizer import Init
from neoxkit.errors import ConfigError
from neoxkit.nn.decoder import Decoder
from neoxkit.nn.init import initialise
from neoxkit.parallel.world import World
from neoxkit.serve.engine import Full
from neoxkit.serve.request import Limits, Request, Sampling


@pytest.mark.parametrize("each", TINY, ids=str)
def test_as_transformers(each: Tiny, tmp_path: Path) -> None:
    theirs = engines.foreign(each, tmp_path / "model")
    ways = tuple(engines.LIMITS) if each in engines.one_of_each() else ("tight", "packed")
    assert engines.disagreements(theirs.folder, theirs, ways=ways) == []


def on_a_rank(folder: Path, theirs: engines.Foreign, tp: int, ways: list[str]) -> list[str]:
    return engines.disagreements(folder, theirs, tp, World(dist.get_rank(), tp, dist.get_rank()), ways)


@pytest.mark.parametrize(("tp", "ways"), [(2, ["packed"]), (4, ["mixed"])])
def test_divided(tp: int, ways: list[str], tmp_path: Path) -> None:
    cases = []
    for each in engines.one_of_each():
        theirs = engines.foreign(engines.wide(each), tmp_path / str(each))
        cases.append((theirs.folder, theirs, tp, ways))
    found = jobs.run(tp, on_a_rank, cases, tmp_path / "job")
    assert dict(zip((case[0].name for case in cases), found[0], strict=True)) == {case[0].name: [] for case in cases}


@pytest.fixture(scope="module")
def model() -> Decoder:
    """A small random model, whose tokens are not all alike likely."""
    config = ModelConfig.model_validate(
        {"family": "llama", "depth": 2, "width": 32, "vocab": 61, "context": 64, "mixer": {"heads": 4, "kv_heads": 2}}
    )
    built = Decoder(config)
    initialise(built, config, Init(std=0.3), seed=5)
    return built.eval()


SOME = (7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)


def test_drawn_tokens_depend_on_no_neighbours(model: Decoder) -> None:
    """A request draws the same tokens alone, and among others that come and go and push it out."""
    drawn = [Request(SOME[: 3 + n], Sampling(temperature=1.0, top_p=0.95, seed=n), max_tokens=40) for n in range(8)]
    alone = [answers(engine_of(model), [each])[0].tokens for each in drawn]
    assert len({tuple(tokens) for tokens in alone}) == len(alone)
    tight = engine_of(model, Limits(batch=5, step_tokens=8), pages=12)
    assert [answer.tokens for answer in answers(tight, drawn)] == alone
    assert tight.statistics().preemptions


def test_ends(model: Decoder) -> None:
    whole = engines.continued(model, SOME, 12)
    stop = whole[5]
    first = whole.index(stop)

    def ask(**options: object) -> Answer:
        return answers(engine_of(model), [Request(SOME, **{"max_tokens": 12, **options})])[0]  # type: ignore[arg-type]

    assert (ask().tokens, ask().finish) == (whole, "length")
    stopped = ask(stop_ids=frozenset([stop]))
    assert (stopped.tokens, stopped.finish, stopped.stopped_by) == (whole[:first], "stop", stop)
    later = ask(stop_ids=frozenset([stop]), min_tokens=first + 2)
    assert later.tokens[:first] == whole[:first]
    assert stop not in later.tokens[: first + 2]
    assert len(later.tokens) >= first + 2
    assert ask(max_tokens=1).tokens == whole[:1]
    full = ask(max_tokens=1000)
    assert (len(SOME) + len(full.tokens), full.finish) == (64, "length")


def test_scores_of_a_prompt(model: Decoder) -> None:
    """From any token on, with nothing to be chosen, and without computing again what is before."""
    engine = engine_of(model)
    with torch.inference_mode():
        known = model(torch.tensor([SOME]))[0].log_softmax(-1)
    first = answers(engine, [Request(SOME, max_tokens=0, logprobs=0, scored_from=0)])[0]
    assert (first.tokens, first.finish, first.cached) == ([], "length", 0)
    assert [scored.token for scored in first.prompt] == list(SOME[1:])
    for index, scored in enumerate(first.prompt):
        assert scored.logprob == pytest.approx(float(known[index, SOME[index + 1]]), abs=1e-5)
    second = answers(engine, [Request(SOME, max_tokens=0, logprobs=2, scored_from=10)])[0]
    assert second.cached == engines.SIZE
    assert [scored.token for scored in second.prompt] == list(SOME[10:])
    for scored, before in zip(second.prompt, first.prompt[9:], strict=True):
        assert scored.logprob == pytest.approx(before.logprob, abs=1e-5)
        assert len(scored.alternatives) == 2


def test_samples_of_one_prompt_read_it_once(model: Decoder) -> None:
    prompt = tuple(range(3, 53))
    engine = engine_of(model)
    given = answers(engine, [Request(prompt, Sampling(1.0, seed=n), max_tokens=4) for n in range(6)])
    assert [answer.cached for answer in given] == [0, 48, 48, 48, 48, 48]


def test_cancel(model: Decoder) -> None:
    engine = engine_of(model, Limits(batch=2))
    numbers = [engine.submit(Request(SOME, max_tokens=30)) for _ in range(4)]
    engine.tick()
    for number in numbers[:1] + numbers[3:]:
        engine.cancel(number)
    engine.cancel(999)
    ended = [event.number for event in engine.tick() if event.finish == "cancelled"]
    assert ended == [numbers[0], numbers[3]]
    left = set()
    while not engine.idle:
        left |= {event.number for event in engine.tick() if event.finish == "length"}
    assert left == set(numbers[1:3])
    assert engine.statistics().pages_used == 0


def test_full(model: Decoder) -> None:
    engine = engine_of(model, Limits(batch=1, waiting=2))
    engine.submit(Request(SOME))
    engine.tick()
    for _ in range(2):
        engine.submit(Request(SOME))
    with pytest.raises(Full, match="2 requests wait already; try again later"):
        engine.submit(Request(SOME))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(()), "the prompt has no tokens"),
        (Request((3, 61)), "the prompt has token 61, the model's vocabulary 61 rows"),
        (Request((3, -1)), "the prompt has token -1"),
        (Request((5,) * 64), "the prompt is 64 tokens long, the model's context 64"),
    ],
)
def test_refused(model: Decoder, request_: Request, message: str) -> None:
    engine = engine_of(model)
    with pytest.raises(ConfigError, match=message):
        engine.submit(request_)
    assert engine.idle


def test_a_context_below_the_models(model: Decoder) -> None:
    engine = engine_of(model, Limits(context=16))
    answer = answers(engine, [Request(SOME, max_tokens=100)])[0]
    assert len(answer.tokens) == 4
    with pytest.raises(ConfigError, match="context 16"):
        engine.submit(Request((5,) * 16))


def test_long_prompts_hold_nobody_up(model: Decoder) -> None:
    """A short request that comes after long ones is answered while they are still being read."""
    engine = engine_of(model, Limits(batch=8, step_tokens=8))
    long = [engine.submit(Request((n + 3, *[5] * 54), max_tokens=2)) for n in range(4)]
    short = engine.submit(Request((9,), max_tokens=2))
    order = []
    while not engine.idle:
        order += [event.number for event in engine.tick() if event.finish]
    assert order[0] == short
    assert set(order[1:]) == set(long)


def test_bf16_runs(model: Decoder) -> None:
    """In half precision the same passes run; their numbers are torch's business."""
    halved = Decoder(model.config, dtype=torch.bfloat16)
    halved.load_state_dict(model.state_dict())
    assert len(engines.continued(halved.eval(), SOME, 8)) == 8


@pytest.mark.parametrize("compiled", [True, False])
def test_packed_weights(model: Decoder, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of weights that bf16 holds, products by FBGEMM are those of fp32, also where nothing can be compiled."""
    from neoxkit.native import ops
    from neoxkit.nn.packing import pack
    from neoxkit.parallel.packed import half, has_fbgemm, turned

    if not has_fbgemm():
        pytest.skip("torch has no FBGEMM on this processor")
    if not compiled:
        monkeypatch.setattr(ops, "available", lambda: False)
    kept = Decoder(model.config, dtype=torch.bfloat16)
    kept.load_state_dict(model.state_dict())
    exact = Decoder(model.config)
    exact.load_state_dict(kept.state_dict())
    asked = [Request(SOME[:n], max_tokens=20, logprobs=0, scored_from=1) for n in (2, 5, 12)]
    wanted = answers(engine_of(exact.eval()), asked)
    pack(exact, turned)
    pack(kept.eval(), half)
    assert kept.dtype == torch.float32
    for packed in (exact, kept):
        for given, known in zip(answers(engine_of(packed), asked), wanted, strict=True):
            assert given.tokens == known.tokens
            scores = zip([*given.prompt, *given.scores], [*known.prompt, *known.scores], strict=True)
            assert max(abs(a.logprob - b.logprob) for a, b in scores) < 1e-5


def test_biases_and_tied_heads_of_packed_weights(tmp_path: Path) -> None:
    from neoxkit.convert.load import load_decoder
    from neoxkit.convert.open import open_foreign
    from neoxkit.nn.packing import pack
    from neoxkit.parallel.packed import half, has_fbgemm, turned

    for name in ("gpt_neox-parallel", "gpt2-tied", "falcon-sequential"):
        theirs = engines.foreign(tiny(name), tmp_path / name)
        for make in (half, turned) if has_fbgemm() else (turned,):
            model = load_decoder(open_foreign(theirs.folder), torch.float32)
            before = answers(engine_of(model), [Request((5, 6, 7), max_tokens=0, logprobs=0, scored_from=1)])[0]
            pack(model, make)
            after = answers(engine_of(model), [Request((5, 6, 7), max_tokens=0, logprobs=0, scored_from=1)])[0]
            for a, b in zip(before.prompt, after.prompt, strict=True):
                assert a.logprob == pytest.approx(b.logprob, abs=2e-3 if make is half else 1e-5)


def test_a_weight_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large matrix is packed in several; one that fp16 cannot hold stays in fp32."""
    from neoxkit.parallel import packed

    if not packed.has_fbgemm():
        pytest.skip("torch has no FBGEMM on this processor")
    monkeypatch.setattr(packed, "PIECE", 40)
    drawn = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(23, 8, generator=drawn).bfloat16(), torch.randn(23, generator=drawn)
    x = torch.randn(2, 3, 8, generator=drawn)
    wanted = torch.nn.functional.linear(x, weight.float(), bias)
    torch.testing.assert_close(packed.half(weight, bias)(x), wanted, atol=1e-5, rtol=1e-5)
    weight[3, 4] = 1e6
    wanted = torch.nn.functional.linear(x, weight.float(), bias)
    torch.testing.assert_close(packed.half(weight, bias)(x), wanted)
