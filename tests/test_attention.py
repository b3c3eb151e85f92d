"""attention on every backend that implements it: values, gradients, masks, tracing, errors.

Values and gradients follow the numerics rule of llmjp_ext.testing; failures print the seed.
"""

import math

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import llmjp_ext
from attention_cases import FLOATS, SLOPES, compare, lengths, on, run, runs_kernels, sdpa
from llmjp_ext.ops import _attention_torch
from llmjp_ext.reference import attention as reference
from llmjp_ext.testing import GRADIENT_FACTOR, assert_accurate, simulated_kernels

pytestmark = pytest.mark.usefixtures("sums_in_any_order")


# (tokens, keys, heads, kv_heads, head_dim), options. Batch is 2.
CASES = {
    "plain": ((33, 33, 4, 4, 64), {}),
    "one key": ((1, 1, 1, 1, 8), {}),
    "odd sizes": ((7, 13, 3, 3, 20), {}),
    "scale": ((9, 9, 2, 2, 16), {"scale": 0.3}),
    "causal": ((37, 37, 4, 4, 32), {"causal": True}),
    "causal, fewer queries": ((5, 21, 4, 2, 16), {"causal": True}),
    "causal, one query": ((1, 21, 4, 2, 16), {"causal": True}),
    "causal, fewer keys": ((21, 5, 4, 2, 16), {"causal": True}),
    "grouped heads": ((12, 12, 6, 2, 16), {"causal": True}),
    "one key head": ((12, 12, 6, 1, 16), {}),
    "window": ((19, 25, 2, 2, 16), {"window": (4, 2)}),
    "window, left open": ((19, 25, 2, 2, 16), {"window": (-1, 3)}),
    "window, fewer keys": ((25, 6, 2, 2, 16), {"window": (3, 0)}),
    "causal window": ((40, 40, 2, 1, 16), {"causal": True, "window": (7, 7)}),
    "softcap": ((15, 15, 2, 2, 16), {"softcap": 1.5, "causal": True}),
    "softcap, grouped": ((9, 15, 4, 2, 16), {"softcap": 0.7}),
    "alibi": ((11, 17, 4, 2, 16), {"alibi_slopes": SLOPES}),
    "alibi a sequence": (
        (11, 11, 2, 2, 16),
        {"alibi_slopes": torch.tensor([[0.5, 0.1], [0.3, 0.0]]), "causal": True},
    ),
    "right padding": ((10, 14, 2, 1, 16), {"seqlens_k": lengths(14, 5)}),
    "left padding": ((14, 14, 2, 2, 16), {"starts_k": lengths(0, 6), "causal": True}),
    "both paddings": ((14, 14, 2, 2, 16), {"starts_k": lengths(2, 6), "seqlens_k": lengths(9, 6)}),
    "all of it": (
        (13, 18, 4, 2, 16),
        {
            "starts_k": lengths(1, 4),
            "seqlens_k": lengths(18, 15),
            "window": (6, 1),
            "softcap": 2.0,
            "alibi_slopes": SLOPES,
            "scale": 0.4,
        },
    ),
}


def tensors(
    shape: tuple[int, int, int, int, int], device: str, dtype: torch.dtype, batch: int = 2
) -> list[Tensor]:
    tokens, keys, heads, kv_heads, width = shape
    sizes = [(batch, tokens, heads, width)] + [(batch, keys, kv_heads, width)] * 2
    return [torch.randn(size).to(device, dtype) for size in sizes]


def check(
    device: str,
    dtype: torch.dtype,
    shape: tuple[int, int, int, int, int],
    options: dict[str, object],
    with_dlse: bool = False,
    dropout_scale: Tensor | None = None,
    dropout_p: float = 0.0,
    inputs: list[Tensor] | None = None,
) -> list[Tensor]:
    """Compares with the reference in float64; returns what the op gave."""
    inputs = tensors(shape, device, dtype) if inputs is None else inputs
    options = on(device, options)
    dout = torch.randn_like(inputs[0])
    dlse = torch.randn(2, shape[2], shape[0], device=device) if with_dlse else None

    def op(*leaves: Tensor):
        if dropout_p:
            torch.manual_seed(7)
        return llmjp_ext.attention(*leaves, **options, dropout_p=dropout_p, return_lse=True)

    def truth(*leaves: Tensor):
        scale = None if dropout_scale is None else dropout_scale.to(leaves[0].dtype)
        return reference.attention(*leaves, **options, dropout_scale=scale)

    actual = run(op, inputs, dout, dlse)

    def plain_pytorch(*leaves: Tensor):
        out, lse = truth(*leaves)
        if not dropout_p and not with_dlse and not options.keys() & {"softcap", "alibi_slopes"}:
            out = sdpa(*leaves, options)
        return out, lse

    plain = run(plain_pytorch, inputs, dout, dlse)
    exact = run(truth, [t.double() for t in inputs], dout, dlse)
    return compare(actual, exact, plain, f"{shape}, {options}")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(device: str, case: str, dtype: torch.dtype) -> None:
    """Each mask, alone and together, in each dtype; the kernel takes no float32."""
    if runs_kernels(device) and dtype == torch.float32:
        pytest.skip("attention takes float16 and bfloat16 on CUDA")
    check(device, dtype, *CASES[case])


# Beside CASES, which are small: lengths about the edges of the kernel's tiles of 128 queries and
# 32, 64 or 96 keys, every width of a tile, and several blocks of queries and of keys.
TILE_CASES = {
    "whole tiles": ((128, 128, 2, 2, 128), {}),
    "17 queries": ((17, 64, 2, 1, 128), {"causal": True}),
    "97 keys": ((33, 97, 2, 1, 64), {}),
    "63 keys": ((65, 63, 2, 1, 64), {"causal": True}),
    "65 keys": ((63, 65, 2, 1, 128), {}),
    "more keys": ((113, 203, 2, 1, 128), {"causal": True}),
    "more queries": ((203, 113, 2, 1, 64), {"causal": True}),
    "three blocks": ((258, 300, 4, 1, 64), {"causal": True}),
    "one query, one of four heads": ((1, 239, 8, 2, 128), {"causal": True}),
    "head of 40": ((70, 70, 2, 2, 40), {"causal": True}),
    "head of 88": ((70, 70, 2, 2, 88), {}),
    "head of 256": ((130, 70, 2, 1, 256), {"causal": True}),
    "head of 192": ((9, 33, 2, 1, 192), {"softcap": 2.0}),
    "window of two tiles": ((150, 260, 2, 1, 64), {"window": (90, 3)}),
    "window of few keys": ((140, 280, 2, 1, 128), {"window": (2, 0)}),
    "left padding of a tile": (
        (90, 200, 2, 1, 128),
        {"starts_k": lengths(130, 7), "seqlens_k": lengths(200, 70)},
    ),
    "no key at all": ((20, 30, 2, 1, 64), {"starts_k": lengths(0, 9), "seqlens_k": lengths(0, 9)}),
    "lengths beyond the keys": (
        (20, 30, 2, 1, 64),
        {"starts_k": lengths(-5, 40), "seqlens_k": lengths(90, -1)},
    ),
    "huge window": ((20, 30, 2, 1, 64), {"window": (2**40, 2**40)}),
    "scale of nothing": ((20, 30, 2, 1, 64), {"scale": 0.0}),
    "negative scale": ((20, 130, 2, 1, 128), {"scale": -0.2, "causal": True}),
    "softcap and alibi": (
        (150, 170, 2, 1, 128),
        {"softcap": 1.5, "alibi_slopes": torch.tensor([0.05, 0.3]), "causal": True},
    ),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", TILE_CASES)
def test_edges_of_the_tiles(device: str, case: str, dtype: torch.dtype) -> None:
    """Lengths, widths and masks that end inside, at and behind a tile of the kernel."""
    check(device, dtype, *TILE_CASES[case])


@pytest.mark.parametrize("case", ["plain", "causal, fewer keys", "softcap", "both paddings"])
def test_lse_is_differentiable(device: str, case: str) -> None:
    """The gradient that reaches lse arrives at q and k beside that of out."""
    check(device, torch.bfloat16, *CASES[case], with_dlse=True)


def test_lse_alone_is_differentiable() -> None:
    """With no gradient for out at all."""
    q, k, v = (t.requires_grad_() for t in tensors(CASES["causal"][0], "cpu", torch.float32))
    llmjp_ext.attention(q, k, v, causal=True, return_lse=True)[1].sum().backward()
    exact = [t.detach().double().requires_grad_() for t in (q, k, v)]
    reference.attention(*exact, causal=True)[1].sum().backward()
    plain = [t.detach().requires_grad_() for t in (q, k, v)]
    reference.attention(*plain, causal=True)[1].sum().backward()
    for name, a, e, p in zip(("dq", "dk"), (q, k), exact, plain, strict=False):
        assert_accurate(a.grad, e.grad, p.grad, factor=GRADIENT_FACTOR, what=name)
    assert not v.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_blocks_agree_with_the_reference(dtype: torch.dtype, monkeypatch) -> None:
    """The computation by blocks of query rows, with blocks that do not divide the queries."""
    monkeypatch.setattr(_attention_torch, "_LARGEST_MASK", 0)
    for case in ("window", "causal window", "causal, fewer keys", "both paddings", "all of it"):
        shape, options = CASES[case]
        monkeypatch.setattr(_attention_torch, "_SCORES_OF_BLOCK", 2 * shape[2] * shape[1] * 4)
        check("cpu", dtype, shape, options)


def test_rows_without_keys_are_zero(device: str) -> None:
    """A query that sees nothing gives out 0 and lse -inf, and takes no gradient."""
    shape = (6, 4, 2, 2, 16)
    out, lse, dq, _dk, _dv = check(device, torch.bfloat16, shape, {"causal": True})
    assert not out[:, :2].any() and bool((lse[:, :, :2] == -math.inf).all())
    assert not dq[:, :2].any() and bool(out[:, 2:].any())


def test_dropout_is_philox_of_the_drawn_state(device: str) -> None:
    """Values and gradients are those of the documented mask, and lse is that without dropout."""
    shape, p = (21, 30, 4, 2, 16), 0.3
    torch.manual_seed(7)
    state = torch.randint(2**63 - 1, (2,), device=device)
    head = torch.arange(8, device=device).view(2, 4)
    dropout = _attention_torch.Dropout(state, p, head * 21, 30)
    kept = dropout.scale(range(21), 30)
    options = {"causal": True}
    out = check(device, torch.bfloat16, shape, options, dropout_scale=kept, dropout_p=p)[0]
    assert out.any()
    assert abs(float((kept > 0).float().mean()) - (1 - p)) < 5 * math.sqrt(p * (1 - p) / 5040)
    # Any part of the mask can be computed alone.
    assert torch.equal(dropout.scale(range(5, 9), 11), kept[:, :, 5:9, :11])


def test_dropout_follows_the_generator() -> None:
    """The same seed gives the same result, a draw later another, and checkpointing repeats it."""
    q, k, v = (t.requires_grad_() for t in tensors((8, 8, 2, 2, 16), "cpu", torch.float32))

    def op(q: Tensor) -> Tensor:
        return llmjp_ext.attention(q, k, v, dropout_p=0.5)

    torch.manual_seed(3)
    first, second = op(q), op(q)
    first.square().sum().backward()
    torch.manual_seed(3)
    again = checkpoint(op, q, use_reentrant=False)
    expected, q.grad = q.grad, None
    assert torch.equal(first, again) and not torch.equal(first, second)
    again.square().sum().backward()
    assert torch.equal(q.grad, expected)


def test_philox_is_the_kernels() -> None:
    """The published vectors of Philox4x32-10, which csrc/device/philox.h implements too."""
    from llmjp_ext.ops._support import philox

    ones = torch.tensor(-1)
    assert [int(w) for w in philox(torch.zeros(2, dtype=torch.int64), torch.tensor(0))] == [
        0x6627E8D5,
        0xE169C58D,
        0xBC57AC4C,
        0x9B00DBD8,
    ]
    assert [int(w) for w in philox(ones.expand(2), ones)] == [
        0x408F276D,
        0x41C83B0E,
        0xA20BC7C6,
        0x6D5451FD,
    ]


def test_strided_inputs(device: str) -> None:
    """Slices of one projection, and heads before tokens in memory."""
    packed = torch.randn(2, 12, 3, 4, 16, device=device, dtype=torch.bfloat16)
    check(
        device,
        torch.bfloat16,
        (12, 12, 4, 4, 16),
        {"causal": True},
        inputs=[packed[:, :, i] for i in range(3)],
    )
    heads_first = torch.randn(3, 2, 4, 12, 16, device=device, dtype=torch.bfloat16)
    check(
        device,
        torch.bfloat16,
        (12, 12, 4, 4, 16),
        {"softcap": 3.0},
        inputs=[t.transpose(1, 2) for t in heads_first],
    )


@pytest.mark.parametrize("layout", ["expanded", "one a head", "heads first", "odd rows"])
def test_gradients_of_any_strides(device: str, layout: str) -> None:
    """What reaches out may be expanded, transposed or unaligned: it counts by its values."""
    inputs = tensors((12, 12, 4, 2, 16), device, torch.bfloat16)
    dout = {
        "expanded": torch.randn(1, 1, 1, 1).expand(2, 12, 4, 16),
        "one a head": torch.randn(2, 1, 4, 16).expand(2, 12, 4, 16),
        "heads first": torch.randn(2, 4, 12, 16).transpose(1, 2),
        "odd rows": torch.randn(2, 12, 4, 17)[..., 1:],
    }[layout]
    dout = dout.to(device, torch.bfloat16)

    def gradients(dout: Tensor) -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in inputs]
        return torch.autograd.grad(llmjp_ext.attention(*leaves, causal=True), leaves, dout)

    for given, copied in zip(gradients(dout), gradients(dout.contiguous()), strict=True):
        assert torch.equal(given, copied)


def test_rows_that_begin_anywhere(device: str) -> None:
    """Rows that are not 16-byte aligned, and elements that do not lie side by side."""
    odd = torch.randn(2, 12, 3, 2, 17, device=device, dtype=torch.bfloat16)
    apart = torch.randn(2, 12, 3, 2, 32, device=device, dtype=torch.bfloat16)
    for inputs in (odd[..., 1:].unbind(2), apart[..., ::2].unbind(2)):
        check(device, torch.bfloat16, (12, 12, 2, 2, 16), {"causal": True}, inputs=list(inputs))


def test_offsets_beyond_32_bits(device: str, monkeypatch) -> None:
    """Three tokens spread over more than 2^31 elements, of which only their rows are touched."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    step = 2**30
    if device == "cuda" and torch.cuda.mem_get_info()[0] < 6 * step:
        pytest.skip("needs 6 GiB of free GPU memory")
    memory = torch.empty(2 * step + 4 * 128, device=device, dtype=torch.bfloat16)
    *inputs, dout = (
        torch.as_strided(memory, (1, 3, 2, 64), (0, step, 64, 1), 128 * i).normal_()
        for i in range(4)
    )

    def results(inputs: list[Tensor], dout: Tensor) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in inputs]
        out = llmjp_ext.attention(*leaves, causal=True)
        return [out, *torch.autograd.grad(out, leaves, dout)]

    near = [t.clone(memory_format=torch.contiguous_format) for t in (*inputs, dout)]
    for a, b in zip(results(inputs, dout), results(near[:3], near[3]), strict=True):
        assert torch.equal(a, b)


def test_padding_may_hold_anything(device: str) -> None:
    """The kernels do not read keys and values outside [starts_k, seqlens_k), which get gradients
    of 0."""
    if not runs_kernels(device):
        pytest.skip("the PyTorch implementation multiplies padding by 0")
    q, k, v = tensors((9, 150, 2, 1, 64), device, torch.bfloat16)
    padding = {"starts_k": lengths(70, 3), "seqlens_k": lengths(140, 20)}
    padding = {name: value.to(device) for name, value in padding.items()}
    dout = torch.randn_like(q)

    def op(*leaves: Tensor):
        return llmjp_ext.attention(*leaves, **padding, return_lse=True)

    expected = run(op, [q, k, v], dout, None)
    for t in (k, v):
        t[0, :70] = t[0, 140:] = t[1, :3] = t[1, 20:] = torch.nan
    for a, b in zip(run(op, [q, k, v], dout, None), expected, strict=True):
        assert torch.equal(a, b)
    for gradient in expected[3:]:
        assert not gradient[0, :70].any() and not gradient[0, 140:].any()
        assert not gradient[1, :3].any() and not gradient[1, 20:].any()


@pytest.mark.parametrize("shape", [(0, 4, 2, 2, 8), (4, 0, 2, 2, 8), (0, 0, 2, 1, 8)], ids=str)
def test_empty_inputs(device: str, shape: tuple[int, int, int, int, int]) -> None:
    """No queries give nothing; no keys give rows of 0 and -inf, and gradients of 0."""
    q, k, v = (t.requires_grad_() for t in tensors(shape, device, torch.bfloat16))
    out, lse = llmjp_ext.attention(q, k, v, return_lse=True)
    out.sum().backward()
    assert out.shape == q.shape and not out.any()
    assert lse.shape == (2, 2, shape[0]) and bool((lse == -math.inf).all())
    assert not any(t.grad.any() for t in (q, k, v))
    none = torch.zeros(0, 3, 2, 8, device=device, dtype=torch.bfloat16)
    assert llmjp_ext.attention(none, none, none, causal=True).shape == none.shape


def test_opcheck() -> None:
    """Schema, fake, autograd registration and dynamic AOT dispatch of both ops."""
    ops = torch.ops.llmjp_ext
    shape = (5, 9, 4, 2, 8)
    for case in ({}, {"softcap": 1.0}, {"seqlens": lengths(9, 3)}, {"p": 0.2}):
        q, k, v = tensors(shape, "cpu", torch.bfloat16 if "p" in case else torch.float32)
        state = torch.tensor([5, 6]) if "p" in case else None
        masks = (None, None, case.get("seqlens"), state)
        numbers = (None, -1, 0, case.get("softcap", 0.0), case.get("p", 0.0))
        torch.library.opcheck(ops.attention_fwd, (q, k, v, *masks, *numbers))
        out, lse = ops.attention_fwd(q, k, v, *masks, *numbers)
        dlse = torch.randn_like(lse) if "softcap" in case else None
        arguments = (torch.randn_like(out), dlse, q, k, v, out, lse, *masks, *numbers, False)
        torch.library.opcheck(ops.attention_bwd, arguments)


def test_compiles_whole_without_recompiling() -> None:
    """No graph break, and one graph for three lengths."""
    counter = torch._dynamo.testing.CompileCounter()

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, lse = llmjp_ext.attention(q, k, v, causal=True, return_lse=True)
        return llmjp_ext.attention(out, k, v, window=(3, 0)) * lse.transpose(1, 2)[..., None]

    for length in (3, 5, 9):
        q, k, v = tensors((length, length, 4, 2, 16), "cpu", torch.float32)
        q.requires_grad_()
        out, lse = llmjp_ext.attention(q, k, v, causal=True, return_lse=True)
        expected = llmjp_ext.attention(out, k, v, window=(3, 0)) * lse.transpose(1, 2)[..., None]
        assert torch.allclose(function(q, k, v), expected)
    assert counter.frame_count == 1, "recompiled for another length"


@pytest.mark.parametrize("options", [{"causal": True}, {"softcap": 2.0, "window": (2, 1)}], ids=str)
def test_compiled_gradients_are_eager_ones(options: dict[str, object]) -> None:
    """Through AOT autograd, with the fakes' shapes standing in for the kernels'."""

    def op(*inputs: Tensor):
        return llmjp_ext.attention(*inputs, **options, return_lse=True)

    inputs = tensors((6, 8, 4, 2, 16), "cpu", torch.float32)
    dout, dlse = torch.randn_like(inputs[0]), torch.randn(2, 4, 6)
    compiled = torch.compile(op, fullgraph=True, dynamic=True, backend="aot_eager")
    for a, b in zip(run(op, inputs, dout, dlse), run(compiled, inputs, dout, dlse), strict=True):
        assert torch.equal(a, b)


def test_compiled_dropout_runs() -> None:
    """The draw of seed and offset is part of the graph; backward uses the same mask."""

    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return llmjp_ext.attention(q, k, v, dropout_p=0.5)

    q, k = tensors((8, 8, 2, 2, 16), "cpu", torch.float32)[:2]
    v = torch.ones_like(k, requires_grad=True)
    out = function(q, k, v)
    out.sum().backward()
    # With v of ones, out is the sum of a row's kept probabilities, as is the gradient of v's row.
    kept, seen_by_v = float(out.detach().sum()), float(v.grad.sum())
    assert kept > 0 and math.isclose(kept, seen_by_v, rel_tol=1e-4)


def test_autocast_casts_all(device: str) -> None:
    """q, k and v of different dtypes become autocast's; gradients keep their leaves' dtype."""
    q, k, v = tensors((6, 6, 2, 2, 16), device, torch.float32)
    q.requires_grad_()
    with torch.autocast(device, dtype=torch.bfloat16):
        out = llmjp_ext.attention(q, k.bfloat16(), v, softcap=5.0)
    expected = llmjp_ext.attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), softcap=5.0)
    assert out.dtype == torch.bfloat16 and torch.equal(out, expected)
    out.float().sum().backward()
    assert q.grad.dtype == torch.float32


def test_repeats_bit_for_bit() -> None:
    inputs = tensors((65, 65, 4, 2, 32), "cpu", torch.float32)
    dout = torch.randn_like(inputs[0])

    def op(*leaves: Tensor):
        return llmjp_ext.attention(*leaves, causal=True, return_lse=True)

    for a, b in zip(run(op, inputs, dout, None), run(op, inputs, dout, None), strict=True):
        assert torch.equal(a, b)


def good(**other: Tensor) -> dict[str, Tensor]:
    return {"q": torch.ones(2, 3, 4, 8), "k": torch.ones(2, 5, 2, 8), **other}


@pytest.mark.parametrize(
    ("given", "options", "error", "words"),
    [
        (good(q=torch.ones(2, 3, 4, 8).double()), {}, TypeError, "float16 or bfloat16, got.*64"),
        (good(q=torch.ones(3, 4, 8)), {}, ValueError, r"tokens, heads, head_dim\], got.*\[3, 4, 8"),
        (good(k=torch.ones(2, 5, 2, 8).half()), {}, TypeError, "k must have q's dtype"),
        (good(v=torch.ones(2, 5, 2, 8).half()), {}, TypeError, "v must have q's dtype"),
        (good(k=torch.ones(1, 5, 2, 8)), {}, ValueError, r"k must have shape \[2, keys"),
        (good(k=torch.ones(2, 5, 2, 9)), {}, ValueError, r"kv_heads, 8\].*got \[2, 5, 2, 9"),
        (good(v=torch.ones(2, 6, 2, 8)), {}, ValueError, r"one shape.*\[2, 6, 2, 8\]"),
        (good(k=torch.ones(2, 5, 3, 8)), {}, ValueError, "multiple of k's, got 4 and 3"),
        (good(k=torch.ones(2, 5, 2, 8, device="meta")), {}, ValueError, "device cpu, got meta"),
        (good(), {"window": (-2, 0)}, ValueError, r"at least -1, got \(-2, 0\)"),
        (good(), {"softcap": -1.0}, ValueError, "softcap must not be negative, got -1.0"),
        (good(), {"dropout_p": 1.0}, ValueError, "dropout_p must be.*below 1, got 1.0"),
        (good(), {"alibi_slopes": torch.ones(3)}, ValueError, r"\[4\] or \[2, 4\], got \[3\]"),
        (good(), {"alibi_slopes": torch.ones(4).half()}, TypeError, "must be float32"),
        (good(), {"starts_k": torch.ones(2)}, TypeError, "starts_k must be int32, got"),
        (good(), {"seqlens_k": lengths(1)}, ValueError, r"seqlens_k must have shape \[2\].*\[1\]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_name_what_was_given(given, options, error, words) -> None:
    v = given.get("v", given["k"])
    with pytest.raises(error, match=words):
        llmjp_ext.attention(given["q"], given["k"], v, **options)


def test_no_kernel_is_left_out_unseen() -> None:
    """Simulated, an op that has a kernel cannot be asked for in PyTorch."""
    refused = pytest.raises(ValueError, match="attention_fwd has a kernel")
    with refused, simulated_kernels(in_pytorch=("attention_fwd",)):
        pass
