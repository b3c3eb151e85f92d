"""attention_varlen on every backend that implements it: packed sequences of every kind of length.

Values and gradients follow the numerics rule of llmjp_ext.testing; failures print the seed.
"""

import dataclasses
import itertools
import math

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

import llmjp_ext
from attention_cases import FLOATS, SLOPES, compare, lengths, on, run, runs_kernels, sdpa
from llmjp_ext import _library
from llmjp_ext.ops._attention_torch import Dropout
from llmjp_ext.reference.attention_varlen import attention_varlen as reference

pytestmark = pytest.mark.usefixtures("sums_in_any_order")


@dataclasses.dataclass(frozen=True)
class Packing:
    """Lengths of the sequences, and how many rows lie before the first and behind the last."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    before: int = 0
    behind: int = 0

    @classmethod
    def same(cls, *tokens: int, before: int = 0, behind: int = 0) -> "Packing":
        """Self-attention: as many keys as queries."""
        return cls(tokens, tokens, before, behind)

    def boundaries(self, side: str, device: str) -> Tensor:
        """cu_seqlens of "queries" or "keys"."""
        steps = itertools.accumulate(getattr(self, side), initial=self.before)
        return lengths(*steps).to(device)

    def total(self, side: str) -> int:
        """Rows in all."""
        return self.before + sum(getattr(self, side)) + self.behind

    def arguments(self, device: str) -> tuple[Tensor, Tensor, int, int]:
        """What follows q, k and v in a call."""
        return (
            self.boundaries("queries", device),
            self.boundaries("keys", device),
            max(self.queries, default=0),
            max(self.keys, default=0),
        )

    def tensors(self, heads: tuple[int, int, int], device: str, dtype: torch.dtype) -> list[Tensor]:
        """q, k and v; heads is (heads, kv_heads, head_dim)."""
        q_sizes = (self.total("queries"), heads[0], heads[2])
        k_sizes = (self.total("keys"), heads[1], heads[2])
        return [torch.randn(s).to(device, dtype) for s in (q_sizes, k_sizes, k_sizes)]


# Packing, (heads, kv_heads, head_dim), options.
CASES = {
    "plain": (Packing.same(13, 5, 20), (4, 4, 16), {}),
    "causal": (Packing.same(1, 17, 9), (4, 2, 32), {"causal": True}),
    "one sequence": (Packing.same(21), (2, 1, 16), {"causal": True}),
    "rows of no sequence": (Packing.same(7, 9, before=5, behind=3), (2, 2, 16), {"causal": True}),
    "empty sequences": (Packing.same(0, 0, 6, 0, 11, 0), (2, 2, 16), {}),
    "no queries, no keys": (Packing((3, 0, 4, 5), (0, 8, 6, 0)), (2, 1, 16), {}),
    "fewer queries": (Packing((2, 5), (9, 14)), (2, 2, 16), {"causal": True}),
    "fewer keys": (Packing((9, 14), (2, 5), before=1), (2, 2, 16), {"causal": True}),
    "window": (Packing((19, 8), (25, 4)), (2, 1, 16), {"window": (4, 2)}),
    "softcap": (Packing.same(15, 3), (2, 2, 16), {"softcap": 1.5, "causal": True}),
    "alibi": (Packing((11, 6), (17, 6)), (4, 2, 16), {"alibi_slopes": SLOPES}),
    "alibi a sequence": (
        Packing.same(6, 9, before=2, behind=2),
        (2, 2, 16),
        {"alibi_slopes": torch.tensor([[0.5, 0.1], [0.3, 0.0]]), "causal": True},
    ),
    "all of it": (
        Packing((13, 4, 0), (18, 9, 3), before=3, behind=1),
        (4, 2, 20),
        {"window": (6, 1), "softcap": 2.0, "alibi_slopes": SLOPES, "scale": 0.4},
    ),
}


def sdpa_by_sequence(packing: Packing, q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
    """What a PyTorch user writes: a loop over the sequences."""
    out = torch.zeros_like(q)
    bounds = [packing.boundaries(side, "cpu").tolist() for side in ("queries", "keys")]
    for i in range(len(packing.queries)):
        rows, keys = (slice(*b[i : i + 2]) for b in bounds)
        if rows.start < rows.stop and keys.start < keys.stop:
            out[rows] = sdpa(q[None, rows], k[None, keys], v[None, keys], options)[0]
    return out


def check(
    device: str,
    dtype: torch.dtype,
    packing: Packing,
    heads: tuple[int, int, int],
    options: dict[str, object],
    with_dlse: bool = False,
    dropout_scale: Tensor | None = None,
    dropout_p: float = 0.0,
    inputs: list[Tensor] | None = None,
) -> list[Tensor]:
    """Compares with the reference in float64; returns what the op gave."""
    inputs = packing.tensors(heads, device, dtype) if inputs is None else inputs
    options = on(device, options)
    dout = torch.randn_like(inputs[0])
    dlse = torch.randn(heads[0], inputs[0].shape[0], device=device) if with_dlse else None
    arguments = packing.arguments(device)

    def op(*leaves: Tensor):
        if dropout_p:
            torch.manual_seed(7)
        return llmjp_ext.attention_varlen(
            *leaves, *arguments, **options, dropout_p=dropout_p, return_lse=True
        )

    def truth(*leaves: Tensor):
        scale = None if dropout_scale is None else dropout_scale.to(leaves[0].dtype)
        return reference(*leaves, *arguments[:2], **options, dropout_scale=scale)

    def plain_pytorch(*leaves: Tensor):
        out, lse = truth(*leaves)
        if not dropout_p and not with_dlse and not options.keys() & {"softcap", "alibi_slopes"}:
            out = sdpa_by_sequence(packing, *leaves, options)
        return out, lse

    actual = run(op, inputs, dout, dlse)
    plain = run(plain_pytorch, inputs, dout, dlse)
    exact = run(truth, [t.double() for t in inputs], dout, dlse)
    return compare(actual, exact, plain, f"{packing}, {heads}, {options}")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(device: str, case: str, dtype: torch.dtype) -> None:
    """Each mask within each kind of packing, in each dtype; the kernels take no float32."""
    if runs_kernels(device) and dtype == torch.float32:
        pytest.skip("attention takes float16 and bfloat16 on CUDA")
    check(device, dtype, *CASES[case])


# Sequences that begin, end and meet inside, at and behind the kernels' tiles, of every width.
TILE_CASES = {
    "whole tiles": (Packing.same(128, 256), (2, 2, 64), {"causal": True}),
    "edges": (Packing.same(63, 65, 127, 129, 1), (2, 1, 64), {"causal": True}),
    "narrow": (Packing((70, 3, 130), (33, 150, 97)), (2, 2, 40), {}),
    "wide": (Packing.same(97, 40, before=9, behind=140), (2, 1, 128), {"causal": True}),
    "widest": (Packing.same(33, 70), (2, 1, 256), {"causal": True}),
    "window over tiles": (Packing((150, 9), (260, 200)), (2, 1, 64), {"window": (90, 3)}),
    "general": (
        Packing.same(140, 20, before=3),
        (2, 1, 128),
        {"softcap": 1.5, "alibi_slopes": torch.tensor([0.05, 0.3]), "causal": True},
    ),
    "many short": (Packing.same(*([2, 0, 5, 1] * 10)), (2, 1, 64), {"causal": True}),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", TILE_CASES)
def test_edges_of_the_tiles(device: str, case: str, dtype: torch.dtype) -> None:
    check(device, dtype, *TILE_CASES[case])


@pytest.mark.parametrize("case", ["rows of no sequence", "fewer keys", "softcap"])
def test_lse_is_differentiable(device: str, case: str) -> None:
    """The gradient that reaches lse arrives at q and k beside that of out."""
    check(device, torch.bfloat16, *CASES[case], with_dlse=True)


def test_rows_of_no_sequence_are_written(device: str) -> None:
    """Outputs and gradients of rows that belong to no sequence, see no key or are not seen are 0
    (lse -inf), whatever such rows hold."""
    packing = Packing((4, 5, 3), (6, 0, 2), before=130, behind=70)
    inputs = packing.tensors((2, 1, 64), device, torch.bfloat16)
    dout = torch.randn_like(inputs[0])
    arguments = packing.arguments(device)

    def op(*leaves: Tensor):
        return llmjp_ext.attention_varlen(*leaves, *arguments, causal=True, return_lse=True)

    expected = run(op, inputs, dout, None)
    for tensor in (*inputs, dout):
        tensor[:130] = tensor[-70:] = torch.nan
    actual = run(op, inputs, dout, None)
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b), f"seed {torch.initial_seed()}"
    out, lse, dq, dk, dv = actual
    for rows in (slice(0, 130), slice(134, 139), slice(139, 140), slice(142, None)):
        assert not out[rows].any() and not dq[rows].any(), rows
        assert bool((lse[:, rows] == -math.inf).all()), rows
    for rows in (slice(0, 130), slice(138, None)):
        assert not dk[rows].any() and not dv[rows].any(), rows
    assert bool(out[130:134].any()) and bool(dq[140:142].any()) and bool(dk[130:138].any())


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_one_sequence_is_attention(device: str, dropout_p: float) -> None:
    """The same bits as attention of a batch of one, dropped keys included."""
    packing = Packing((70,), (130,))
    q, k, v = packing.tensors((2, 1, 64), device, torch.bfloat16)
    options = {"causal": True, "dropout_p": dropout_p, "return_lse": True}
    torch.manual_seed(7)
    out, lse = llmjp_ext.attention_varlen(q, k, v, *packing.arguments(device), **options)
    torch.manual_seed(7)
    expected = llmjp_ext.attention(q[None], k[None], v[None], **options)
    assert torch.equal(out, expected[0][0]) and torch.equal(lse, expected[1][0])


def test_dropout_is_philox_of_the_drawn_state(device: str) -> None:
    """Row head * total + row of q, as wide as all keys together."""
    packing, heads, p = Packing((21, 9), (30, 12), before=2), (4, 2, 16), 0.3
    torch.manual_seed(7)
    state = torch.randint(2**63 - 1, (2,), device=device)
    total_q, total_k = packing.total("queries"), packing.total("keys")
    first_row = torch.arange(4, device=device)[None] * total_q
    kept = Dropout(state, p, first_row, total_k).scale(range(total_q), total_k)[0]
    options = {"causal": True}
    check(device, torch.bfloat16, packing, heads, options, dropout_scale=kept, dropout_p=p)


def test_strided_inputs(device: str) -> None:
    """Slices of one projection of all rows, and heads before rows in memory."""
    packing = Packing.same(12, 7, behind=2)
    packed = torch.randn(21, 3, 4, 16, device=device, dtype=torch.bfloat16)
    inputs = list(packed.unbind(1))
    check(device, torch.bfloat16, packing, (4, 4, 16), {"causal": True}, inputs=inputs)
    heads_first = torch.randn(3, 4, 21, 16, device=device, dtype=torch.bfloat16)
    inputs = [t.transpose(0, 1) for t in heads_first]
    check(device, torch.bfloat16, packing, (4, 4, 16), {"softcap": 3.0}, inputs=inputs)
    odd = torch.randn(21, 3, 4, 17, device=device, dtype=torch.bfloat16)[..., 1:]
    check(device, torch.bfloat16, packing, (4, 4, 16), {}, inputs=list(odd.unbind(1)))


@pytest.mark.parametrize("layout", ["expanded", "heads first", "odd rows"])
def test_gradients_of_any_strides(device: str, layout: str) -> None:
    """What reaches out may be expanded, transposed or unaligned: it counts by its values."""
    packing = Packing.same(12, 5, before=2)
    inputs = packing.tensors((4, 2, 16), device, torch.bfloat16)
    dout = {
        "expanded": torch.randn(1, 1, 1).expand(19, 4, 16),
        "heads first": torch.randn(4, 19, 16).transpose(0, 1),
        "odd rows": torch.randn(19, 4, 17)[..., 1:],
    }[layout].to(device, torch.bfloat16)

    def gradients(dout: Tensor) -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in inputs]
        out = llmjp_ext.attention_varlen(*leaves, *packing.arguments(device), causal=True)
        return torch.autograd.grad(out, leaves, dout)

    for given, copied in zip(gradients(dout), gradients(dout.contiguous()), strict=True):
        assert torch.equal(given, copied)


def test_offsets_beyond_32_bits(device: str, monkeypatch) -> None:
    """Four rows spread over more than 2^31 elements, of which only their own are touched."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    step = 2**30
    if device == "cuda" and torch.cuda.mem_get_info()[0] < 8 * step:
        pytest.skip("needs 8 GiB of free GPU memory")
    memory = torch.empty(3 * step + 4 * 128, device=device, dtype=torch.bfloat16)
    *inputs, dout = (
        torch.as_strided(memory, (4, 2, 64), (step, 64, 1), 128 * i).normal_() for i in range(4)
    )
    arguments = Packing.same(1, 3).arguments(device)

    def results(inputs: list[Tensor], dout: Tensor) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in inputs]
        out = llmjp_ext.attention_varlen(*leaves, *arguments, causal=True)
        return [out, *torch.autograd.grad(out, leaves, dout)]

    near = [t.clone(memory_format=torch.contiguous_format) for t in (*inputs, dout)]
    for a, b in zip(results(inputs, dout), results(near[:3], near[3]), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "packing",
    [
        Packing((), ()),
        Packing((), (), behind=3),
        Packing((0, 0), (0, 0)),
        Packing((3, 2), (0, 0)),
        Packing((0, 0), (3, 2)),
    ],
    ids=str,
)
def test_nothing_to_do(device: str, packing: Packing) -> None:
    """No sequence, no row, no key or no query: zeros, -inf, and gradients of 0."""
    q, k, v = (t.requires_grad_() for t in packing.tensors((2, 1, 16), device, torch.bfloat16))
    arguments = packing.arguments(device)
    out, lse = llmjp_ext.attention_varlen(q, k, v, *arguments, return_lse=True)
    out.sum().backward()
    assert out.shape == q.shape and not out.any()
    assert lse.shape == (2, q.shape[0]) and bool((lse == -math.inf).all())
    assert not any(t.grad.any() for t in (q, k, v))


def test_the_longest_length_changes_no_result(device: str) -> None:
    """A wrong max_seqlen, which a direct call may pass to the kernels, costs at most time."""
    if not runs_kernels(device):
        pytest.skip("the PyTorch implementation refuses a max_seqlen that is too small")
    packing = Packing.same(70, 3, 260, 140)
    q, k, v = packing.tensors((2, 1, 64), device, torch.bfloat16)
    *boundaries, _, _ = packing.arguments(device)
    results = [
        _library.ops.attention_varlen_fwd(
            q, k, v, *boundaries, None, None, longest, longest, None, -1, 0, 0.0, 0.0
        )
        for longest in (260, 0, 2**40)
    ]
    for out, lse in results[1:]:
        assert torch.equal(out, results[0][0]) and torch.equal(lse, results[0][1])


def test_opcheck() -> None:
    """Schema, fake, autograd registration and dynamic AOT dispatch of both ops."""
    ops = torch.ops.llmjp_ext
    packing = Packing((5, 3), (9, 2), before=1)
    for case in ({}, {"softcap": 1.0}, {"p": 0.2}):
        q, k, v = packing.tensors(
            (4, 2, 8), "cpu", torch.bfloat16 if "p" in case else torch.float32
        )
        *boundaries, longest_q, longest_k = packing.arguments("cpu")
        state = torch.tensor([5, 6]) if "p" in case else None
        numbers = (None, -1, 0, case.get("softcap", 0.0), case.get("p", 0.0))
        options = (*boundaries, None, state, longest_q, longest_k, *numbers)
        torch.library.opcheck(ops.attention_varlen_fwd, (q, k, v, *options))
        out, lse = ops.attention_varlen_fwd(q, k, v, *options)
        # Rows without keys have lse -inf, and no gradient to give.
        dlse = torch.randn_like(lse) if "softcap" in case else None
        arguments = (torch.randn_like(out), dlse, q, k, v, out, lse, *options, False)
        torch.library.opcheck(ops.attention_varlen_bwd, arguments)


def test_compiles_whole_without_recompiling() -> None:
    """No graph break, and one graph for three packings, their longest lengths included."""
    counter = torch._dynamo.testing.CompileCounter()

    def function(q, k, v, cu_seqlens, longest) -> Tensor:
        out, lse = llmjp_ext.attention_varlen(
            q, k, v, cu_seqlens, cu_seqlens, longest, longest, causal=True, return_lse=True
        )
        return out * lse.transpose(0, 1)[..., None]

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for packing in (Packing.same(3, 4), Packing.same(5, 2, 6), Packing.same(9, 9, 3, 2)):
        q, k, v = packing.tensors((4, 2, 16), "cpu", torch.float32)
        q.requires_grad_()
        cu_seqlens, _, longest, _ = packing.arguments("cpu")
        expected = function(q, k, v, cu_seqlens, longest)
        assert torch.allclose(compiled(q, k, v, cu_seqlens, longest), expected)
    assert counter.frame_count == 1, "recompiled for another packing"


def test_compiled_gradients_are_eager_ones() -> None:
    """Through AOT autograd, with the fakes' shapes standing in for the kernels'."""
    packing = Packing.same(6, 8, before=1)
    arguments = packing.arguments("cpu")

    def op(*inputs: Tensor):
        return llmjp_ext.attention_varlen(*inputs, *arguments, window=(2, 1), return_lse=True)

    inputs = packing.tensors((4, 2, 16), "cpu", torch.float32)
    dout, dlse = torch.randn_like(inputs[0]), torch.randn(4, 15)
    compiled = torch.compile(op, fullgraph=True, dynamic=True, backend="aot_eager")
    for a, b in zip(run(op, inputs, dout, dlse), run(compiled, inputs, dout, dlse), strict=True):
        assert torch.equal(a, b)


def test_autocast_casts_all(device: str) -> None:
    packing = Packing.same(6, 4)
    q, k, v = packing.tensors((2, 2, 16), device, torch.float32)
    arguments = packing.arguments(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        out = llmjp_ext.attention_varlen(q, k.bfloat16(), v, *arguments)
    expected = llmjp_ext.attention_varlen(*(t.bfloat16() for t in (q, k, v)), *arguments)
    assert out.dtype == torch.bfloat16 and torch.equal(out, expected)


def given(**other: object) -> dict[str, object]:
    return {
        "q": torch.ones(5, 4, 8),
        "k": torch.ones(6, 2, 8),
        "cu_seqlens_q": lengths(0, 2, 5),
        "cu_seqlens_k": lengths(0, 4, 6),
        "max_seqlen_q": 3,
        "max_seqlen_k": 4,
        **other,
    }


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (given(q=torch.ones(5, 4, 8).double()), TypeError, "float16 or bfloat16, got.*64"),
        (given(q=torch.ones(1, 5, 4, 8)), ValueError, r"\[total, heads, head_dim\], got.*\[1, 5"),
        (given(k=torch.ones(6, 2, 8).half()), TypeError, "k must have q's dtype"),
        (given(k=torch.ones(6, 2, 9)), ValueError, r"kv_heads, 8\].*got \[6, 2, 9"),
        (given(v=torch.ones(7, 2, 8)), ValueError, r"one shape.*\[7, 2, 8\]"),
        (given(k=torch.ones(6, 3, 8)), ValueError, "multiple of k's, got 4 and 3"),
        (given(k=torch.ones(6, 2, 8, device="meta")), ValueError, "device cpu, got meta"),
        (given(cu_seqlens_q=lengths(0, 2, 5).long()), TypeError, "cu_seqlens_q must be int32"),
        (given(cu_seqlens_k=torch.ones(2, 2).int()), ValueError, r"\[sequences \+ 1\], got \[2, 2"),
        (given(cu_seqlens_q=lengths()), ValueError, r"\[sequences \+ 1\], got \[0\]"),
        (given(cu_seqlens_k=lengths(0, 6)), ValueError, r"as many sequences.*\[3\] and \[2\]"),
        (given(cu_seqlens_q=lengths(0, 2, 6)), ValueError, r"at most 5, got \[0, 2, 6\]"),
        (given(cu_seqlens_k=lengths(-1, 2, 6)), ValueError, r"cu_seqlens_k must ascend.*\[-1, 2"),
        (given(cu_seqlens_q=lengths(0, 3, 2)), ValueError, r"cu_seqlens_q must ascend.*\[0, 3, 2"),
        (given(max_seqlen_k=3), ValueError, "max_seqlen_k is 3, but a sequence has 4 rows"),
        (given(max_seqlen_q=-1), ValueError, "max_seqlen_q must not be negative, got -1"),
        (given(max_seqlen_q=torch.tensor(3)), TypeError, "max_seqlen_q must be an int"),
        (given(window=(-2, 0)), ValueError, r"at least -1, got \(-2, 0\)"),
        (given(softcap=-1.0), ValueError, "softcap must not be negative, got -1.0"),
        (given(dropout_p=1.0), ValueError, "dropout_p must be.*below 1, got 1.0"),
        (given(alibi_slopes=torch.ones(5, 4)), ValueError, r"\[4\] or \[2, 4\], got \[5, 4\]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_name_what_was_given(call, error, words) -> None:
    call = {"v": call["k"], **call}
    with pytest.raises(error, match=f"attention_varlen: .*{words}"):
        llmjp_ext.attention_varlen(**call)
