"""Every attention kernel against the reference: causal, windows, segments, ALiBi, groups; and which is chosen."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import tiny_runs as runs
import torch
from torch import Tensor
from torch.nn.attention import flex_attention, varlen

from neoxkit.config.kernels import Kernels
from neoxkit.config.model import ModelConfig
from neoxkit.config.optimizer import Init
from neoxkit.errors import ConfigError
from neoxkit.nn import kernels
from neoxkit.nn.attention import build_context
from neoxkit.nn.decoder import Decoder
from neoxkit.nn.init import initialise
from neoxkit.nn.kernels import KERNELS, choose
from neoxkit.nn.kernels.flash import use_newest
from neoxkit.nn.kernels.reference import reference
from neoxkit.nn.kernels.sdpa import Apart, Masked
from neoxkit.nn.kernels.sight import Setting, Sight, distance_bias, ends_of, visible
from neoxkit.nn.state import State
from neoxkit.parallel.groups import LOCAL
from neoxkit.train.begin import build_engine

ON_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

SEGMENTS = torch.tensor([[0] * 4 + [1] * 7, [5] * 9 + [2] * 2])
SLOPES = torch.tensor([0.5, 0.25, 0.125, 1.0, 0.0, 0.75])


def sight(kind: str = "", tokens: int = 11, device: str = "cpu", copies: int = 1) -> Sight:
    """That of two rows of tokens; `kind` names what is special, with the window's width. Segments are repeated."""
    window = next((int(word[1:]) for word in kind.split() if word[0] == "w"), None)
    places = torch.arange(tokens, device=device)[None]
    segments = SEGMENTS.repeat_interleave(copies, 1).to(device) if "segments" in kind else None
    return Sight(2, places, tokens, window, segments, SLOPES.to(device) if "alibi" in kind else None)


KINDS = ["causal", "w1", "w4", "w11", "segments", "w4 segments", "alibi", "w3 alibi", "w4 alibi segments"]
KINDS += ["w8 segments", "alibi segments"]
CPU = Setting("cpu", torch.float32, 8)
CASES = [(kernel, kv_heads, kind) for kernel in ("sdpa", "flash") for kv_heads in (6, 3, 1) for kind in KINDS]
CASES += [("flex", {2: 3, 5: 1}.get(number, 6), kind) for number, kind in enumerate(KINDS)]  # each takes a second


def qkv(heads: int, kv_heads: int, tokens: int = 11, size: int = 8, **where: Any) -> list[Tensor]:
    torch.manual_seed(3)
    return [torch.randn(2, tokens, h, size).to(**where).requires_grad_() for h in (heads, kv_heads, kv_heads)]


def answers(kernel: str, seen: Sight, setting: Setting, given: list[Tensor]) -> list[Tensor]:
    """What a kernel says, and the gradients of q, k and v."""
    mixed = kernels.attend(*given, KERNELS[kernel].prepare(seen, setting))
    weights = torch.randn(mixed.shape, generator=torch.Generator().manual_seed(1)).to(mixed)
    return [mixed.detach(), *torch.autograd.grad((mixed * weights).sum(), given)]


def stand_in(
    q: Tensor, k: Tensor, v: Tensor, ends: Tensor, others: Tensor, longest: int, most: int, *,
    window_size: tuple[int, int], causal: bool = False, alibi_slopes: Tensor | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """What FlashAttention promises for such arguments, by definition; of torch's function and of the package's.

    A query sees keys at most so far before it, and so far after it, as `window_size` says; -1 is no limit.
    """
    assert torch.equal(ends, others)
    assert ends.dtype == torch.int32
    assert ends[0] == 0
    assert ends[-1] == len(q)
    rows = []
    for first, last in pairwise(ends.tolist()):
        assert 0 < last - first <= min(longest, most)
        distance = torch.arange(last - first)[:, None] - torch.arange(last - first)
        before, after = window_size
        unseen = torch.zeros_like(distance, dtype=torch.bool)
        unseen |= (distance > before) & (before >= 0)
        unseen |= (-distance > (0 if causal else after)) & (causal or after >= 0)
        keys, values = (x[first:last].repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        scores = torch.einsum("thd,shd->hts", q[first:last], keys) / q.shape[-1] ** 0.5
        if alibi_slopes is not None:
            assert alibi_slopes.dtype == torch.float32
            scores = scores - alibi_slopes[:, None, None] * distance.abs()
        rows.append(torch.einsum("hts,shd->thd", scores.masked_fill(unseen, float("-inf")).softmax(-1), values))
    return torch.cat(rows)


def strict(q: Tensor, k: Tensor, *rest: Any, enable_gqa: bool = False, **more: Any) -> Tensor:
    """torch 2.12 and later: shared keys are announced."""
    assert enable_gqa or q.shape[1] == k.shape[1]
    return stand_in(q, k, *rest, **more)


def lax(q: Tensor, k: Tensor, *rest: Any, window_size: tuple[int, int] = (-1, -1)) -> Tensor:
    """torch 2.11."""
    return stand_in(q, k, *rest, window_size=window_size)


def ready(kernel: str) -> Any:
    """What has to be so that a kernel, or a stand-in for it, runs here with gradients."""
    if kernel == "flex":  # it refuses gradients on a CPU, where it computes them all the same unless it is compiled
        return patch.object(flex_attention, "_validate_device")
    return nullcontext()


@pytest.fixture(autouse=True)
def stand_ins(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashAttention by definition, unless a test wants the real one."""
    kernels.describe(torch.device("cpu"), torch.float32, 8)  # it looks once which packages there are
    if "gpu" not in request.keywords:
        monkeypatch.setattr(varlen, "varlen_attn", strict)
        monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=stand_in))


@pytest.mark.filterwarnings(
    "ignore:flex_attention called without torch.compile", "ignore:The .grad attribute of a Tensor"
)
@pytest.mark.parametrize(("kernel", "kv_heads", "kind"), CASES)
def test_kernels_are_the_reference(kernel: str, kv_heads: int, kind: str) -> None:
    """Outputs, and gradients of queries, keys and values."""
    with ready(kernel):
        found = answers(kernel, sight(kind), CPU, qkv(6, kv_heads))
    for what, ours, theirs in zip("oqkv", found, answers("reference", sight(kind), CPU, qkv(6, kv_heads)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5, msg=lambda said, what=what: f"{what}: {said}")


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_definition(kind: str) -> None:
    """A sum over keys, one by one, of those that a query is to see."""
    seen = sight(kind)
    q, k, v = (x.detach() for x in qkv(6, 3))
    found = kernels.attend(q, k, v, KERNELS["reference"].prepare(seen, CPU))
    for row, query, head in ((0, 0, 0), (0, 6, 5), (1, 10, 3), (1, 8, 1)):
        near = range(query + 1) if seen.window is None else range(max(0, query - seen.window + 1), query + 1)
        keys = [key for key in near if seen.segments is None or seen.segments[row, key] == seen.segments[row, query]]
        slope = 0.0 if seen.slopes is None else float(seen.slopes[head])
        scores = [float(q[row, query, head] @ k[row, key, head // 2]) / 8**0.5 - slope * (query - key) for key in keys]
        weights = torch.tensor(scores).softmax(0)
        wanted = sum(weight * v[row, key, head // 2] for weight, key in zip(weights, keys, strict=True))
        torch.testing.assert_close(found[row, query, head], wanted, atol=1e-6, rtol=1e-5)


def test_the_flash_kernel_with_an_older_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", lax)
    found = answers("flash", sight("w4 segments"), CPU, qkv(6, 3))
    torch.testing.assert_close(found, answers("reference", sight("w4 segments"), CPU, qkv(6, 3)), atol=2e-6, rtol=1e-5)


def test_documents_end_where_segments_and_rows_do() -> None:
    assert ends_of(sight("segments")).tolist() == [0, 4, 11, 20, 22]
    assert ends_of(sight()).tolist() == [0, 11, 22]
    alike = sight()._replace(segments=torch.zeros(2, 11, dtype=torch.long))
    assert ends_of(alike).tolist() == [0, 11, 22], "the same number in the next row is another text"


@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("segmented", [False, True])
def test_masks(window: int | None, segmented: bool) -> None:
    seen = sight("segments" if segmented else "")._replace(window=window)
    mask = visible(seen).expand(2, 1, 11, 11)[1, 0]
    for i in range(11):
        for j in range(11):
            near = j <= i and (window is None or i - j < window)
            together = not segmented or SEGMENTS[1, i] == SEGMENTS[1, j]
            assert mask[i, j] == (near and together)


def test_alibi_lowers_scores_by_distance() -> None:
    bias = distance_bias(sight(tokens=4), torch.tensor([0.5, 0.25]))
    assert bias[0, :, 3].tolist() == [[-1.5, -1.0, -0.5, 0.0], [-0.75, -0.5, -0.25, 0.0]]


def test_plain_attention_on_a_cpu_is_as_it_was() -> None:
    """No mask, and copies of shared keys: other kernels of torch round otherwise."""
    assert KERNELS["sdpa"].prepare(sight(), CPU) == Masked(None, grouped=False)
    q, k, v = (x.detach() for x in qkv(6, 3))
    there = (x.transpose(1, 2) for x in (q, k.repeat_interleave(2, 2), v.repeat_interleave(2, 2)))
    theirs = torch.nn.functional.scaled_dot_product_attention(*there, is_causal=True).transpose(1, 2)
    assert torch.equal(kernels.attend(q, k, v, KERNELS["sdpa"].prepare(sight(), CPU)), theirs)


def test_documents_on_a_cpu_need_no_mask_of_all_pairs() -> None:
    """They are taken one by one; a window, or ALiBi, is a mask of the longest alone."""
    plain, wide, narrow = (
        KERNELS["sdpa"].prepare(sight(kind), CPU) for kind in ("segments", "w9 segments", "w8 segments")
    )
    assert isinstance(plain, Apart)
    assert plain.sizes == [4, 7, 9, 2]
    assert plain.mask is None
    assert plain == wide
    assert isinstance(narrow, Apart)
    assert narrow.mask is not None
    assert narrow.mask.shape == (1, 1, 9, 9)
    assert [narrow.alone(size).mask is None for size in narrow.sizes] == [True, True, False, True]


H100 = Setting("cuda", torch.bfloat16, 128, (9, 0), frozenset({"triton"}))
WITH_FLASH = replace(H100, packages=frozenset({"triton", "flash_attn"}))
V100 = replace(H100, capability=(7, 0))


@pytest.mark.parametrize(
    ("setting", "kernel"),
    [
        (CPU, "sdpa"),
        (replace(CPU, window=True, alibi=True, segments=True), "sdpa"),
        (replace(CPU, dtype=torch.bfloat16, window=True), "sdpa"),
        (replace(CPU, state=True), "sdpa"),
        (H100, "sdpa"),
        (replace(H100, dtype=torch.float16, window=True), "flash"),
        (replace(H100, segments=True), "flash"),
        (replace(H100, segments=True, window=True, learns=False), "flash"),
        (replace(H100, alibi=True), "flex"),
        (replace(H100, alibi=True, packages=frozenset()), "sdpa"),
        (replace(WITH_FLASH, alibi=True, window=True), "flash"),
        (replace(H100, window=True, head_dim=320), "flex"),
        (replace(H100, window=True, head_dim=12), "sdpa"),
        (replace(H100, window=True, dtype=torch.float32), "sdpa"),
        (replace(H100, alibi=True, dtype=torch.float32), "sdpa"),
        (replace(WITH_FLASH, alibi=True, state=True), "sdpa"),
        (replace(V100, window=True), "sdpa"),
        (replace(V100, alibi=True), "sdpa"),
        (replace(H100, device="mps", window=True), "sdpa"),
    ],
)
def test_the_fastest_that_can_run_is_chosen(setting: Setting, kernel: str) -> None:
    assert choose("auto", setting) == kernel
    assert choose(kernel, setting) == kernel


@pytest.mark.parametrize(
    ("kernel", "setting", "reason"),
    [
        ("flash", CPU, "flash attention is for NVIDIA GPUs, and the device is cpu"),
        ("flash", V100, "needs compute capability 8.0, and the device has 7.0"),
        ("flash", replace(H100, dtype=torch.float32), "computes in bf16 and fp16, and the run is in fp32"),
        ("flash", replace(H100, head_dim=264), "needs a head_dim of 8, 16, 24 ... 256, and the model's is 264"),
        ("flash", replace(H100, head_dim=20), "needs a head_dim of 8, 16, 24 ... 256, and the model's is 20"),
        ("flash", replace(WITH_FLASH, state=True), "does not attend to a state"),
        ("flash", replace(H100, alibi=True), "for ALiBi it needs the package flash-attn"),
        ("flex", replace(H100, device="mps"), "for GPUs, and the device is mps"),
        ("flex", CPU, "no gradients on a CPU"),
        ("flex", replace(CPU, learns=False, state=True), "does not attend to a state"),
        ("flex", V100, "needs compute capability 8.0"),
        ("flex", replace(H100, head_dim=8), "needs a head_dim of at least 16, and the model's is 8"),
        ("flex", replace(H100, packages=frozenset()), "compiled by triton, which is not installed"),
    ],
)
def test_a_kernel_that_cannot_run_says_why(kernel: str, setting: Setting, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as refused:
        choose(kernel, setting)
    assert refused.value.cause.startswith(f"kernels.attention {kernel}: ")


def test_a_run_is_refused_before_it_trains() -> None:
    cpu = torch.device("cpu")
    with pytest.raises(ConfigError, match=r"kernels.attention flash: .* the device is cpu"):
        build_engine(runs.config(kernels={"attention": "flash"}), cpu, LOCAL)
    slow, fast = (build_engine(runs.config(kernels={"attention": name}), cpu, LOCAL) for name in ("reference", "sdpa"))
    for engine in (slow, fast):
        engine.initialise()
    with patch("neoxkit.nn.kernels.reference.reference", wraps=reference) as asked:
        told = [engine.step([runs.batch(2, 0)], 0.01) for engine in (slow, fast)]
    assert asked.call_count == 2, "once in each layer of the first"
    assert told[0].loss == pytest.approx(told[1].loss, rel=1e-6)
    assert told[0].norm == pytest.approx(told[1].norm, rel=1e-5)


@pytest.mark.parametrize(
    ("setting", "newer"),
    [
        (H100, False),
        (replace(H100, packages=frozenset({"flash_attn_interface"})), True),
        (replace(H100, packages=frozenset({"flash_attn_interface"}), capability=(8, 0)), False),
        (replace(H100, packages=frozenset({"flash_attn_interface"}), dtype=torch.float32), False),
    ],
)
def test_flash_attention_3_where_it_is_installed(setting: Setting, newer: bool) -> None:
    with patch.object(torch.nn.attention, "activate_flash_attention_impl") as activate:
        use_newest(setting)
    assert activate.mock_calls == ([(("FA3",),)] if newer else [])


def model(kernel: str = "auto", **options: Any) -> Decoder:
    given = {"family": "gpt_neox", "depth": 2, "width": 32, "vocab": 50, "context": 32, "mixer": {"heads": 4}}
    config = ModelConfig.model_validate({**given, **options})
    built = Decoder(config, kernels=Kernels(attention=kernel))
    initialise(built, config, Init(std=0.2), seed=0)
    return built


ALIBI = {"position": {"kind": "alibi"}}


def test_alibi_with_a_state() -> None:
    """The same with and without a state, whose masks are made from positions."""
    built = model(**ALIBI)
    ids = torch.randint(0, 50, (1, 7), generator=torch.Generator().manual_seed(0))
    context = build_context(built.config, torch.zeros(1, 7, 32), torch.arange(7)[None], None, None)
    assert isinstance(context.seen, Masked)
    assert context.seen.mask is not None
    assert context.seen.mask.dtype == torch.float32
    with torch.no_grad():
        free = built(ids)
    state = State(built.config, 1, 16)
    with torch.no_grad():
        stepped = built(ids, torch.arange(7)[None], state=state)
    torch.testing.assert_close(free, stepped, atol=1e-5, rtol=1e-5)


def test_segments_are_separate_texts() -> None:
    """Two texts packed into one row read as they do alone, when positions restart with the segment."""
    built = model(**ALIBI)
    first, second = torch.randint(0, 50, (2, 5), generator=torch.Generator().manual_seed(1))
    packed = torch.cat([first, second])[None]
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4]])
    segments = torch.tensor([[0] * 5 + [1] * 5])
    with torch.no_grad():
        together = built(packed, positions, segments)
        alone = torch.cat([built(first[None]), built(second[None])], dim=1)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kernel", ["reference", "flex", "flash"])
def test_a_model_by_another_kernel(kernel: str) -> None:
    """Logits of packed texts, with ALiBi and a window, by a kernel that is asked for by name."""
    options = {**ALIBI, "mixer": {"heads": 4, "kv_heads": 2, "window": 4}}
    ids = torch.randint(0, 50, (2, 10), generator=torch.Generator().manual_seed(2))
    segments = torch.tensor([[0] * 4 + [1] * 6, [0] * 7 + [3] * 3])
    allowed: Callable[[Setting], None] = lambda setting: None  # noqa: E731
    table = {**KERNELS, kernel: KERNELS[kernel]._replace(lacks=allowed)}
    with torch.no_grad(), patch.object(kernels, "KERNELS", table):
        found, wanted = (model(name, **options)(ids, segments=segments) for name in (kernel, "auto"))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@ON_A_GPU
@pytest.mark.parametrize("kind", ["causal", "w40", "segments", "w40 segments", "alibi", "w40 alibi segments"])
@pytest.mark.parametrize("kernel", ["sdpa", "flex", "flash"])
def test_kernels_are_the_reference_on_a_gpu(kernel: str, kind: str) -> None:
    """In bf16, to its rounding, with shared keys; at a length that is no multiple of a block."""
    tokens, seen = 11 * 27, sight(kind, 11 * 27, "cuda", copies=27)
    setting = kernels.describe(
        torch.device("cuda"), torch.bfloat16, 64,
        window="w" in kind, segments="segments" in kind, alibi="alibi" in kind,
    )  # fmt: skip
    if (reason := KERNELS[kernel].lacks(setting)) is not None:
        pytest.skip(reason)
    given = qkv(6, 3, tokens, 64, device="cuda", dtype=torch.bfloat16)
    found = answers(kernel, seen, setting, given)
    exact = [x.detach().float().requires_grad_() for x in given]
    for ours, theirs in zip(found, answers("reference", seen, setting, exact), strict=True):
        assert (ours.float() - theirs).norm() < 0.01 * theirs.norm()


@pytest.mark.gpu
@ON_A_GPU
def test_auto_needs_no_memory_for_pairs_on_a_gpu() -> None:
    """A window over 32768 tokens; a mask of all pairs would be a GiB, and scores more."""
    config = ModelConfig.model_validate(
        {"family": "mistral", "depth": 1, "width": 128, "vocab": 50, "context": 32768}
        | {"mixer": {"heads": 2, "window": 512}, "position": {"kind": "rotary"}}
    )
    built = Decoder(config, "cuda", torch.bfloat16)
    initialise(built, config, Init(), seed=0)
    torch.cuda.reset_peak_memory_stats()
    built.hidden(torch.zeros(1, 32768, dtype=torch.long, device="cuda")).sum().backward()
    assert torch.cuda.max_memory_allocated() < 2**29
