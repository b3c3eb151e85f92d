"""The benchmarks of attention without a GPU: what they cover, what they check, how long they take.

Peers that need a GPU are played by PyTorch functions.
"""

import re

import pytest
import torch
from torch import Tensor

from benchmarks import attention, attention_decode, attention_varlen
from benchmarks.harness import OURS, Candidate
from benchmarks.harness import attention as shared
from benchmarks.harness.attention import (
    ANY_ORDER,
    FLASH_3,
    SDPA_CUDNN,
    SDPA_FLASH,
    Passes,
    Way,
    Work,
    chosen,
    parts,
)
from benchmarks.harness.measure import WARM_UP_CALLS, repetitions_for
from benchmarks.harness.runner import check_candidates
from llmjp_ext.reference.attention import attention as definition
from tools.gpu_check import Stage

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


def sweep() -> list[attention.Setting]:
    """The settings of all lengths, without those that hold all scores."""
    return [setting for setting in attention.cuda_settings() if not setting.everything]


def test_the_lengths_are_those_of_the_goals() -> None:
    """head_dim 64 and 128, 512 to 16k tokens, both masks, heads of their own and groups of 8, each
    once; a batch has 16k tokens of 2048 numbers."""
    expected = {
        (head_dim, tokens, causal, group)
        for head_dim in (64, 128)
        for tokens in (512, 1024, 2048, 4096, 8192, 16384)
        for causal in (True, False)
        for group in (1, 8)
    }
    found = [
        (s.shape.head_dim, s.shape.tokens, s.causal, s.shape.heads // s.shape.kv_heads)
        for s in sweep()
    ]
    assert set(found) == expected and len(found) == len(expected)
    for setting in sweep():
        assert setting.shape.batch * setting.shape.tokens == 16384
        assert setting.shape.heads * setting.shape.head_dim == 2048


def test_decode_has_the_shapes_of_the_goals() -> None:
    """A million keys with one token and with eight, contiguous and paged, both head dimensions; a
    sequence alone with 2k keys."""
    shapes = attention_decode.CUDA_SHAPES
    large = [s for s in shapes if s.batch * s.length >= 1_000_000]
    assert {s.head_dim for s in large} == {64, 128}
    assert {s.page is None for s in large} == {True, False}
    assert {s.tokens for s in large} == {1, 8}
    alone = [s for s in shapes if s.batch == 1 and re.match(r"1 x 20\d\d ", str(s))]
    assert {s.heads // s.kv_heads for s in alone} == {1, 8}


def seconds_of(setting: attention.Setting, others: int) -> float:
    """Device time of a setting's three cases where every fused kernel runs at FlashAttention-2's
    rates on an A100 (docs/attention.md), what holds all scores at 30 TFLOP/s."""
    total = 0.0
    forward = 2 * setting.product_flops / 180e12
    for products, rate, candidates, before in (
        (2, 180e12, 2 + others, 0.0),
        (5, 140e12, 1 + others, forward),
        (5, 95e12, 2 + others, forward),
    ):
        own = products * setting.product_flops / rate
        slow = products * setting.product_flops / 30e12 if setting.everything else 0.0
        rounds = repetitions_for(max(own, slow), CUDA, quick=False)
        # A check, a probe, and half a millisecond of the host's for each call.
        calls = rounds + WARM_UP_CALLS + 2
        total += calls * (candidates * (own + before + 0.0005) + 2 * slow)
    checked = shared.SCORES_OF_TRUTH + 2 * setting.shape.heads // setting.shape.kv_heads * (
        setting.shape.tokens**2
    )
    # Some twenty passes over 8 bytes a score, and five products in float64.
    return total + checked * (20 * 8 / 1.5e12 + 10 * setting.shape.head_dim / 9.7e12)


def test_all_of_it_fits_one_call_of_gpu_check() -> None:
    """By the operations: forward and backward of every setting beside FlashAttention-2, cuDNN and
    FlashAttention-3's forward pass."""
    total = sum(seconds_of(setting, others=2) for setting in attention.cuda_settings())
    limit = Stage("bench:attention").limit
    assert total < limit < 600, f"{total:.0f} s"


def work(causal: bool, shape: tuple[int, ...] = (2, 9, 4, 2, 8), dtype=torch.float32) -> Work:
    setting = attention.Setting(attention.Shape(*shape), causal, dtype)
    return attention.work_of(setting, CPU)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 100])
def test_the_truth_in_blocks_is_the_whole_truth(causal: bool, rows: int, monkeypatch) -> None:
    """Blocks of any number of queries give what all scores at once give."""
    monkeypatch.setattr(shared, "SCORES_OF_BLOCK", rows * 2 * 9)
    made = work(causal)
    assert len(made.parts) == 4
    leaves = [t.detach().double().requires_grad_() for t in made.leaves]
    out = definition(*leaves, causal=causal)[0]
    gradients = torch.autograd.grad(out, leaves, made.dout.double())
    for name, whole in zip(("out", "dq", "dk", "dv"), (out, *gradients), strict=True):
        places = [p.keys if name in ("dk", "dv") else p.queries for p in made.parts]
        expected = torch.cat([whole[place].flatten() for place in places])
        assert torch.allclose(made.exact[name], expected, rtol=1e-12, atol=1e-14), name


def test_packed_sequences_have_their_own_truth() -> None:
    """Of documents that lie behind one another, and of a batch that takes as many operations."""
    shape = attention_varlen.QUICK_SHAPES[1]
    made = attention_varlen.passes(shape, torch.float32, CPU)
    failures, _ = check_candidates(made.backward())
    assert not failures
    first, last = made.ways[OURS].work.parts[0], made.ways[OURS].work.parts[-1]
    assert first.queries == (slice(0, 40), slice(0, 2)) and first.keys == (slice(0, 40), 0)
    assert last.queries == (slice(43, 64), slice(2, 4)) and last.keys == (slice(43, 64), 1)


def test_parts_are_chosen_from_the_first_to_the_last() -> None:
    """As many as the scores allow, two at least, and all where they fit."""
    every = parts([((b, slice(None)), 100) for b in range(8)], heads=4, kv_heads=2)
    assert len(every) == 16 and all(part.scores == 20_000 for part in every)
    assert chosen(every, 10**9) == every
    few = chosen(every, 100_000)
    assert len(few) == 5 and few[0] == every[0] and few[-1] == every[-1]
    assert chosen(every, 1) == [every[0], every[-1]]
    assert chosen(every[:1], 1) == every[:1]


def test_memory_of_the_truth_is_bounded() -> None:
    """A block of queries has few scores at every setting, 16k tokens in groups of 8 included."""
    for setting in attention.cuda_settings():
        shape = setting.shape
        row = shape.heads // shape.kv_heads * shape.tokens
        assert row <= shared.SCORES_OF_BLOCK <= 1 << 24


def wrong(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention whose last query sees nothing new."""
    return torch.cat([definition(q, k, v, causal=True)[0][:, :-1], q[:, -1:]], 1)


def test_a_wrong_result_is_seen_in_both_directions() -> None:
    made = work(causal=True)
    ways = {OURS: Way(attention.ours(True), made), "wrong": Way(wrong, made)}
    passes = Passes("shape", ways, {}, 1)
    for case, name in ((passes.forward(), "out"), (passes.backward(), "dq")):
        failures, _ = check_candidates(case)
        assert set(failures) == {"wrong"} and f"{name}: error" in str(failures["wrong"])


def fake_peers(device: torch.device, causal: bool):
    """As on a GPU: one does all, one has no fixed order, one no backward."""

    def unordered(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if torch.are_deterministic_algorithms_enabled():
            raise RuntimeError("No available kernel. Aborting execution.\nmore")
        return definition(q, k, v, causal=causal)[0]

    def forward_only(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return definition(*(t.detach() for t in (q, k, v)), causal=causal)[0]

    functions = {SDPA_FLASH: shared.sdpa(causal), SDPA_CUDNN: unordered, FLASH_3: forward_only}
    return functions, {}


def test_peers_that_cannot_are_absent_with_their_reason(monkeypatch) -> None:
    """Beside those that can; the deterministic case has our own in any order."""
    monkeypatch.setattr(attention, "gpu_peers", fake_peers)
    setting = attention.cpu_settings(quick=True)[0]
    made = attention.passes(setting, CPU)
    forward, backward, fixed = made.forward(), made.backward(), made.backward(deterministic=True)
    own = {OURS, attention.SDPA, attention.SCORES}
    assert set(forward.candidates) == own | {SDPA_FLASH, SDPA_CUDNN, FLASH_3}
    assert set(backward.candidates) == own | {SDPA_FLASH, SDPA_CUDNN}
    assert backward.absent[FLASH_3] == "has no backward"
    assert set(fixed.candidates) == {OURS, ANY_ORDER, attention.SDPA, SDPA_FLASH}
    assert fixed.absent[SDPA_CUDNN] == "RuntimeError: No available kernel. Aborting execution."
    assert [case.name for case in (forward, backward, fixed)] == [
        "forward, causal",
        "backward, causal",
        "backward, deterministic, causal",
    ]
    for case in (forward, backward, fixed):
        failures, _ = check_candidates(case)
        assert not failures, failures
    # 4 · tokens² · head_dim of each head in forward, halved by the mask.
    assert forward.flops == 4 * 64 * 64 * 32 * 4 // 2
    assert backward.flops == fixed.flops == forward.flops * 5 // 2


def test_a_fixed_order_is_asked_for_where_it_is_measured() -> None:
    """In the pass forward and back, without filling new tensors, and in no other candidate."""
    seen: list[tuple[bool, bool]] = []

    class Asked(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q: Tensor) -> Tensor:
            return q.clone()

        @staticmethod
        def backward(ctx, dout: Tensor) -> Tensor:
            filling = torch.utils.deterministic.fill_uninitialized_memory
            seen.append((torch.are_deterministic_algorithms_enabled(), filling))
            return dout

    made = work(causal=True)
    function = attention.materialised(True)
    ways = {OURS: Way(lambda q, k, v: function(Asked.apply(q), k, v), made)}
    case = Passes("shape", ways, {}, 1).backward(deterministic=True)
    for name in (OURS, ANY_ORDER):
        candidate = case.candidates[name]
        assert isinstance(candidate, Candidate)
        candidate.run(*candidate.arguments())
    assert seen == [(True, False), (False, True)]
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_mix_is_compared_with_as_many_operations() -> None:
    """Documents of one length: operations within 1 %, and equal documents are their own equal."""
    for shape in attention_varlen.CUDA_SHAPES:
        equal = shape.equal()
        assert len(set(equal.lengths)) == 1
        assert abs(equal.squares / shape.squares - 1) < 0.01, str(shape)
        assert abs(equal.total / shape.total - 1) < 0.3, str(shape)
        assert equal.equal() == equal
    longest = max(max(shape.lengths) for shape in attention_varlen.CUDA_SHAPES)
    kinds = {len(set(shape.lengths)) > 1 for shape in attention_varlen.CUDA_SHAPES}
    assert longest > 2048 and kinds == {True, False}
