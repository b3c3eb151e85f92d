"""What only attention's kernels have: sums in a fixed order, and checks of a direct call."""

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import llmjp_ext
from attention_cases import lengths, on, run
from llmjp_ext import _library
from llmjp_ext.testing import simulated_kernels
from test_attention import check, tensors

# Tiles of keys that several queries' tiles share, in every order that the masks allow.
ORDERED_CASES = {
    "full": ((70, 300, 2, 1, 64), {}),
    "causal": ((200, 200, 2, 2, 64), {"causal": True}),
    "window": ((130, 400, 1, 1, 64), {"window": (100, 30)}),
    "padding": (
        (70, 300, 1, 1, 128),
        {"starts_k": lengths(140, 0), "seqlens_k": lengths(300, 150)},
    ),
    "softcap": ((70, 150, 1, 1, 256), {"softcap": 2.0}),
}


@pytest.mark.parametrize("case", ORDERED_CASES)
def test_deterministic_gradients_repeat_bit_for_bit(
    kernel_device: str, case: str, monkeypatch
) -> None:
    """Under torch.use_deterministic_algorithms, whichever block and thread comes first; the sums
    keep the numerics rule. Every simulated launch has another order."""
    # Of the ops alone: the reference's matrix products have no fixed order on a GPU.
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    shape, options = ORDERED_CASES[case]
    check(kernel_device, torch.bfloat16, shape, options)
    inputs = tensors(shape, kernel_device, torch.bfloat16)
    options = on(kernel_device, options)

    def op(*leaves: Tensor):
        return llmjp_ext.attention(*leaves, **options, return_lse=True)

    dout = torch.randn_like(inputs[0])
    expected = run(op, inputs, dout, None)
    for a, b in zip(run(op, inputs, dout, None), expected, strict=True):
        assert torch.equal(a, b), f"seed {torch.initial_seed()}"


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 128, 256])
def test_a_fixed_order_on_a_busy_gpu(width: int) -> None:
    """Launches of many blocks on two streams at once, and a graph's replays, which start with the
    counters of the last one: each repeats the bits of a launch alone."""
    ops = torch.ops.llmjp_ext
    problems = []
    for tokens in (4096, 1000):
        q, dout = torch.randn(2, 2, tokens, 8, width, device="cuda").bfloat16()
        k, v = torch.randn(2, 2, tokens, 2, width, device="cuda").bfloat16()
        options = (None, None, None, None, None, -1, 0, 0.0, 0.0)
        out, lse = ops.attention_fwd(q, k, v, *options)
        problems.append((dout, None, q, k, v, out, lse, *options, True))
    expected = [ops.attention_bwd(*problem) for problem in problems]
    torch.cuda.synchronize()

    results: list[list[list[Tensor]]] = [[], []]
    streams = [torch.cuda.Stream() for _ in problems]
    for _ in range(10):
        for stream, problem, own in zip(streams, problems, results, strict=True):
            with torch.cuda.stream(stream):
                own.append(list(ops.attention_bwd(*problem)))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.attention_bwd(*problems[0])
    for _ in range(3):
        graph.replay()
        results[0].append([t.clone() for t in captured])
    for own, first in zip(results, expected, strict=True):
        for again in own:
            for a, b in zip(again, first, strict=True):
                assert torch.equal(a, b), f"seed {torch.initial_seed()}"


@pytest.mark.parametrize("width", [0, 264])
def test_head_dimensions_of_no_tile(width: int) -> None:
    """The public functions refuse them with a ValueError before anything is launched."""
    if not _library.has_cuda_kernel("attention_fwd"):
        pytest.skip("this build holds no CUDA kernels")
    words = f"attention(_varlen)?: head_dim must be 1 to 256 on CUDA, got {width}"
    with FakeTensorMode():  # of a GPU that need not be there
        q = torch.empty(2, 3, 4, width, device="cuda", dtype=torch.float16)
        rows = torch.empty(6, 4, width, device="cuda", dtype=torch.float16)
        bounds = torch.empty(4, device="cuda", dtype=torch.int32)
        with pytest.raises(ValueError, match=words):
            llmjp_ext.attention(q, q, q)
        with pytest.raises(ValueError, match=words):
            llmjp_ext.attention_varlen(rows, rows, rows, bounds, bounds, 3, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": torch.ones(1, 3, 4, 8)}, "q must be float16 or bfloat16 on CUDA, got float32"),
        ({"q": torch.ones(3, 4, 8).half()}, r"head_dim\], got \[3, 4, 8\]"),
        ({"k": torch.ones(1, 5, 3, 8).half()}, r"v must have shape \[1, 5, 3, 8\]"),
        ({"v": torch.ones(1, 5, 2, 8).bfloat16()}, "v must be float16 here, got bfloat16"),
        ({"kv": torch.ones(1, 5, 3, 8).half()}, "multiple of k's, got 4 and 3"),
        ({"qkv": torch.ones(1, 5, 4, 264).half()}, "head_dim must be 1 to 256 on CUDA, got 264"),
        ({"qkv": torch.ones(8).half().expand(2**16, 1, 2**15, 8)}, "heads must be below 21474836"),
        ({"kv": torch.ones(8).half().expand(1, 2**30, 2, 8)}, "at most 1073741823, got 1073741824"),
        ({"q": torch.ones(8).half().expand(1, 2**30, 4, 8)}, "at most 1073741823, got 1073741824"),
        ({"starts_k": torch.ones(1)}, "starts_k must be int32"),
        ({"seqlens_k": lengths(1, 2)}, r"seqlens_k must have shape \[1\], got \[2\]"),
        ({"alibi_slopes": torch.ones(2, 4)}, r"alibi_slopes must have shape \[1, 4\]"),
        ({"window_left": -2}, "window_left must be at least -1, got -2"),
        ({"softcap": -1.0}, "softcap must not be negative"),
        ({"dropout_p": 0.5}, "dropout_p needs random_state"),
        ({"dropout_p": 0.5, "random_state": torch.ones(2)}, "random_state must be int64"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_kernel_checks_what_it_is_given(change, words) -> None:
    """A direct call of the raw op with what the public function would have refused."""
    arguments = {
        "q": torch.ones(1, 3, 4, 8).half(),
        "k": torch.ones(1, 5, 2, 8).half(),
        "v": torch.ones(1, 5, 2, 8).half(),
        **dict.fromkeys(("alibi_slopes", "starts_k", "seqlens_k", "random_state", "scale")),
        "window_left": -1,
        "window_right": -1,
        "softcap": 0.0,
        "dropout_p": 0.0,
    }
    for name, value in change.items():
        for single in name if name in ("kv", "qkv") else (name,):
            arguments[single] = value
    with simulated_kernels(), pytest.raises(RuntimeError, match=words):
        torch.ops.llmjp_ext_simt.attention_fwd(**arguments)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": torch.ones(1, 3, 4, 8)}, "attention_bwd: q must be float16 or bfloat16 on CUDA"),
        ({"dout": torch.ones(1, 2, 4, 8).half()}, r"dout must have shape \[1, 3, 4, 8\], got"),
        ({"dout": torch.ones(1, 3, 4, 8)}, "dout must be float16 here, got float32"),
        ({"out": torch.ones(1, 3, 2, 8).half()}, r"out must have shape \[1, 3, 4, 8\], got"),
        ({"lse": torch.ones(1, 4, 2)}, r"lse must have shape \[1, 4, 3\], got"),
        ({"dlse": torch.ones(1, 4, 3).half()}, "dlse must be float32 here, got float16"),
        ({"window_right": -3}, "attention_bwd: window_right must be at least -1, got -3"),
        ({"dropout_p": 0.5}, "attention_bwd: dropout_p needs random_state"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_backward_kernel_checks_what_it_is_given(change, words) -> None:
    arguments = {
        **dict.fromkeys(("dout", "q", "out"), torch.ones(1, 3, 4, 8).half()),
        **dict.fromkeys(("k", "v"), torch.ones(1, 5, 2, 8).half()),
        "lse": torch.ones(1, 4, 3),
        **dict.fromkeys(("dlse", "alibi_slopes", "starts_k", "seqlens_k", "random_state", "scale")),
        "window_left": -1,
        "window_right": -1,
        "softcap": 0.0,
        "dropout_p": 0.0,
        "deterministic": False,
        **change,
    }
    with simulated_kernels(), pytest.raises(RuntimeError, match=words):
        torch.ops.llmjp_ext_simt.attention_bwd(**arguments)
