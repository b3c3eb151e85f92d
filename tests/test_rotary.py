"""rotary on every backend that implements it: values, gradients, layouts, in place, errors.

Values and gradients follow the numerics rule of llmjp_ext.testing; failures print the seed.
"""

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import llmjp_ext
from llmjp_ext import _library
from llmjp_ext.reference import rotary as reference
from llmjp_ext.testing import GRADIENT_FACTOR, assert_accurate

FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def angles(device: str, dtype: torch.dtype, *shape: int) -> tuple[Tensor, Tensor]:
    """cos and sin of random angles."""
    angle = torch.randn(shape, dtype=torch.float64) * 10
    return angle.cos().to(device, dtype), angle.sin().to(device, dtype)


def run(function, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, gradients, **options):
    """The turned q and k, and the gradients of q and k."""
    leaves = [t.detach().requires_grad_() for t in (q, k)]
    turned = function(*leaves, cos, sin, **options)
    torch.autograd.backward(turned, [g.to(q.dtype) for g in gradients])
    return [*(t.detach() for t in turned), *(leaf.grad for leaf in leaves)]


def check(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, **options: bool) -> None:
    """Against the definition in double, by the error of the definition in q's dtype."""
    gradients = [torch.randn_like(t) for t in (q, k)]
    actual = run(llmjp_ext.rotary, q, k, cos, sin, gradients, **options)
    baseline = run(reference.rotary, q, k, cos.to(q.dtype), sin.to(q.dtype), gradients, **options)
    wide = (t.double() for t in (q, k, cos, sin))
    exact = run(reference.rotary, *wide, gradients, **options)
    for name, a, e, b in zip(("q", "k", "dq", "dk"), actual, exact, baseline, strict=True):
        factor = GRADIENT_FACTOR if name.startswith("d") else 2.0
        what = f"{name} of {list(q.shape)}, {cos.shape[-1]} pairs, {options}"
        assert_accurate(a, e, b, factor=factor, what=what)
    for a, x in zip(actual, (q, k), strict=False):
        assert a.is_contiguous() and a.dtype == x.dtype


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
def test_values_and_gradients(device: str, interleaved: bool, dtype: torch.dtype) -> None:
    """Whole and partial rotation, head sizes of whole chunks and odd ones, MQA and many heads."""
    for batch, tokens, heads, kv_heads, head_dim, pairs in (
        (2, 3, 4, 2, 64, 32),
        (1, 5, 33, 1, 128, 64),
        (2, 2, 3, 3, 80, 16),
        (1, 3, 2, 1, 37, 9),
        (1, 2, 5, 0, 256, 128),
        (1, 1, 1, 1, 8, 0),
    ):
        q = torch.randn(batch, tokens, heads, head_dim).to(device, dtype)
        k = torch.randn(batch, tokens, kv_heads, head_dim).to(device, dtype)
        cos, sin = angles(device, dtype, tokens, pairs)
        check(q, k, cos, sin, interleaved=interleaved)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_float32_angles_of_each_batch(device: str, dtype: torch.dtype) -> None:
    """Batches at positions of their own, with angles that are not rounded to 16 bits."""
    q, k = (torch.randn(3, 4, heads, 64).to(device, dtype) for heads in (4, 2))
    check(q, k, *angles(device, torch.float32, 3, 4, 32))


def test_views_are_read_where_they_lie(device: str) -> None:
    """Slices of one projection, another order of dimensions, odd offsets, halved angles."""
    packed = torch.randn(2, 5, 8, 72, device=device, dtype=torch.bfloat16)
    cos, sin = angles(device, torch.bfloat16, 5, 64)
    cos, sin = cos[:, :32], sin[:, :32]
    check(packed[:, :, :5, :64], packed[:, :, 5:, :64], cos, sin)
    check(packed[:, :, :5, 1:66], packed[:, :, 5:, 3:68], cos, sin, interleaved=True)
    heads_first = packed[..., :64].transpose(1, 2).contiguous().transpose(1, 2)
    check(heads_first, heads_first[:, :, ::2], cos, sin)
    check(packed[..., :64].permute(0, 1, 3, 2)[..., :8].expand(2, 5, 64, 8), heads_first[..., :8],
          cos[:, :4], sin[:, :4])  # fmt: skip


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
def test_in_place_gives_the_same(device: str, interleaved: bool) -> None:
    """Bit for bit, over views of one projection, with and without autograd; the rest stays."""
    cos, sin = angles(device, torch.float32, 3, 12)
    leaf = torch.randn(2, 3, 6, 40, device=device, requires_grad=True)
    options = {"interleaved": interleaved}
    expected = llmjp_ext.rotary(leaf[:, :, :4], leaf[:, :, 4:], cos, sin, **options)
    expected_gradient = torch.autograd.grad(sum(t.square().sum() for t in expected), leaf)[0]

    packed = leaf.detach().clone()
    q, k = packed[:, :, :4], packed[:, :, 4:]
    turned = llmjp_ext.rotary(q, k, cos, sin, inplace=True, **options)
    assert turned[0] is q and turned[1] is k
    assert torch.equal(q, expected[0]) and torch.equal(k, expected[1])

    packed = leaf * 1
    turned = llmjp_ext.rotary(packed[:, :, :4], packed[:, :, 4:], cos, sin, inplace=True, **options)
    assert torch.equal(packed[:, :, :4], expected[0])
    gradient = torch.autograd.grad(sum(t.square().sum() for t in turned), leaf)[0]
    assert torch.equal(gradient, expected_gradient)


def test_turning_back_gives_the_input(device: str) -> None:
    """A turn keeps the length of each pair, so that turning by the negative angle undoes it."""
    q, k = (torch.randn(1, 7, heads, 64, device=device) for heads in (3, 1))
    cos, sin = angles(device, torch.float32, 7, 32)
    back = llmjp_ext.rotary(*llmjp_ext.rotary(q, k, cos, sin), cos, -sin)
    torch.testing.assert_close(back, (q, k), rtol=0, atol=2e-6)


def test_equals_transformers_llama(device: str) -> None:
    """Its cos and sin hold every angle twice; half of them give the same q and k."""
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    q, k = torch.randn(2, 5, 4, 64, device=device), torch.randn(2, 5, 2, 64, device=device)
    cos, sin = angles(device, torch.float32, 2, 5, 32)
    doubled = (torch.cat([t, t], dim=-1) for t in (cos, sin))
    expected = llama.apply_rotary_pos_emb(q, k, *doubled, unsqueeze_dim=2)
    torch.testing.assert_close(llmjp_ext.rotary(q, k, cos, sin), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", [(0, 3, 2, 8), (2, 0, 2, 8), (2, 3, 0, 8), (1, 1, 1, 0)], ids=str)
def test_empty_inputs(device: str, shape: tuple[int, ...]) -> None:
    """Nothing in, nothing out."""
    q = torch.ones(shape, device=device, requires_grad=True)
    cos = torch.ones(shape[1], shape[3] // 2, device=device)
    turned = llmjp_ext.rotary(q, q.detach(), cos, cos)
    turned[0].sum().backward()
    assert turned[0].shape == turned[1].shape == q.grad.shape == shape


def test_the_native_op_refuses_what_would_read_beyond_memory(device: str) -> None:
    """Called past the Python checks, the bindings still guard shapes and dtypes."""
    turn, q, cos = _library.ops.rotary, torch.ones(2, 3, 4, 8, device=device), torch.ones(3, 4)
    cos = cos.to(device)
    for arguments, words in (
        ((q, q[:1], cos, cos), r"k must have shape \[2, 3, 4, 8\], got \[1, 3, 4, 8\]"),
        ((q, q.half(), cos, cos), "k must be float32 here, got float16"),
        ((q, q, cos[:2], cos), r"cos must have shape \[3, 4\], got \[2, 4\]"),
        ((q, q, cos, cos[:, :3]), r"sin must have shape \[3, 4\], got \[3, 3\]"),
        ((q, q, cos.repeat(1, 2), cos.repeat(1, 2)), "8 pairs, more than a head_dim of 8"),
        ((q[0], q[0], cos, cos), r"\[batch, tokens, heads, head_dim\], got \[3, 4, 8\]"),
    ):
        with pytest.raises(RuntimeError, match=words):
            turn(*arguments, False, False)
    crossed = torch.ones(2, 3, 8, 4, device=device).transpose(2, 3)
    with pytest.raises(RuntimeError, match="contiguous last dimension"):
        _library.ops.rotary_inplace(crossed, crossed, cos, cos, False, False)


def test_opcheck() -> None:
    """Schema, fakes, mutation and dynamic AOT dispatch of both ops."""
    q, k = torch.randn(2, 3, 4, 32).transpose(1, 2), torch.randn(2, 4, 1, 32)
    cos, sin = angles("cpu", torch.float32, 4, 8)
    for function in (torch.ops.llmjp_ext.rotary, torch.ops.llmjp_ext.rotary_inplace):
        torch.library.opcheck(function, (q, k, cos, sin, True, False))
        torch.library.opcheck(function, (q.bfloat16(), k.bfloat16(), cos, sin, False, True))


@pytest.mark.parametrize("inplace", [False, True])
def test_compiles_whole_without_recompiling(inplace: bool) -> None:
    """No graph break, and one graph for three lengths."""
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(llmjp_ext.rotary, fullgraph=True, dynamic=True, backend=counter)
    for length in (3, 5, 9):
        q, k = torch.randn(2, length, 4, 32), torch.randn(2, length, 2, 32)
        cos, sin = angles("cpu", torch.float32, length, 16)
        expected = llmjp_ext.rotary(q, k, cos, sin)
        for a, b in zip(compiled(q, k, cos, sin, inplace=inplace), expected, strict=True):
            assert torch.equal(a, b)
    assert counter.frame_count == 1, "recompiled for another length"


def test_compiled_gradients_are_eager_ones() -> None:
    """Through AOT autograd, with the fakes' shapes standing in for the kernels'."""
    compiled = torch.compile(llmjp_ext.rotary, fullgraph=True, dynamic=True, backend="aot_eager")
    q, k = torch.randn(2, 3, 4, 32), torch.randn(2, 3, 2, 32)
    gradients = [torch.randn_like(t) for t in (q, k)]
    arguments = (q, k, *angles("cpu", torch.float32, 3, 16), gradients)
    for a, b in zip(run(llmjp_ext.rotary, *arguments), run(compiled, *arguments), strict=True):
        assert torch.equal(a, b)


def test_autocast_keeps_the_dtype(device: str) -> None:
    """bfloat16 heads beside float32 angles stay bfloat16."""
    q = torch.randn(1, 3, 2, 32, device=device, dtype=torch.bfloat16, requires_grad=True)
    cos, sin = angles(device, torch.float32, 3, 16)
    with torch.autocast(device, dtype=torch.bfloat16):
        turned, _ = llmjp_ext.rotary(q, q.detach(), cos, sin)
    turned.float().sum().backward()
    assert turned.dtype == q.grad.dtype == torch.bfloat16


def test_activation_checkpointing(device: str) -> None:
    """Recomputing gives the same gradients."""
    q, k = torch.randn(2, 1, 3, 2, 32, device=device).unbind()
    q.requires_grad_()
    cos, sin = angles(device, torch.float32, 3, 16)
    expected = torch.autograd.grad(llmjp_ext.rotary(q, k, cos, sin)[0].square().sum(), q)
    turned, _ = checkpoint(llmjp_ext.rotary, q, k, cos, sin, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(turned.square().sum(), q)[0], expected[0])


Q, COS = torch.ones(2, 3, 4, 8), torch.ones(3, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((Q.double(), Q, COS, COS), TypeError, "float16 or bfloat16, got torch.float64"),
        ((Q, Q.half(), COS, COS), TypeError, "k must be torch.float32 as q"),
        ((Q, Q, COS.half(), COS), TypeError, "cos must be torch.float32 as q"),
        ((Q, Q, COS, COS.half()), TypeError, "sin must be torch.float32 as cos"),
        ((Q[0], Q, COS, COS), ValueError, r"q must have shape .* got \[3, 4, 8\]"),
        ((Q, Q[..., :6], COS, COS), ValueError, r"\[2, 3, heads, 8\] to fit q, got \[2, 3, 4, 6\]"),
        ((Q, Q, COS[:2], COS), ValueError, r"cos must have shape \[3, pairs\].* got \[2, 4\]"),
        ((Q, Q, COS.expand(3, 3, 4), COS), ValueError, r"\[2, 3, pairs\].* got \[3, 3, 4\]"),
        ((Q, Q, COS.repeat(1, 2), COS), ValueError, "at most 4 pairs, half of head_dim, got 8"),
        ((Q, Q, COS, COS[:, :2]), ValueError, r"cos' shape \[3, 4\], got \[3, 2\]"),
        ((Q, Q, COS.to("meta"), COS), ValueError, "cos must be on q's device cpu, got meta"),
        ((Q.repeat(1, 1, 1, 33),) * 2 + (COS, COS), ValueError, "at most 256, got 264"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_name_what_was_given(arguments, error, words) -> None:
    """One sentence with what was given and what is supported."""
    with pytest.raises(error, match=words):
        llmjp_ext.rotary(*arguments)


def test_what_cannot_be_overwritten_is_refused() -> None:
    """In place needs memory of its own for each element."""
    with pytest.raises(ValueError, match="q is expanded"):
        llmjp_ext.rotary(Q[:1].expand(2, 3, 4, 8), Q, COS, COS, inplace=True)
    with pytest.raises(ValueError, match="k must have a contiguous last dimension"):
        llmjp_ext.rotary(Q, Q.transpose(1, 3).contiguous().transpose(1, 3), COS, COS, inplace=True)
