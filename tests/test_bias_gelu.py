"""bias_gelu on every backend that implements it: values, gradients, tracing, errors.

Values and gradients follow the numerics rule of llmjp_ext.testing; failures print the seed.
"""

import itertools

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import llmjp_ext
from llmjp_ext import _library
from llmjp_ext.reference import bias_gelu as reference
from llmjp_ext.testing import GRADIENT_FACTOR, assert_accurate

FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def plain(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    """What a PyTorch user writes without the op, in x's dtype."""
    return F.gelu(x if bias is None else x + bias.to(x.dtype), approximate=approximate)


def op(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    return llmjp_ext.bias_gelu(x, bias, approximate=approximate)


def truth(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    return reference.bias_gelu(x, bias, approximate=approximate)


def run(function, x: Tensor, bias: Tensor | None, approximate: str, dy: Tensor) -> list[Tensor]:
    """y and the gradients of x and bias."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, bias)]
    y = function(*leaves, approximate)
    y.backward(dy.to(y.dtype))
    return [y.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]


def check(x: Tensor, bias: Tensor | None, approximate: str) -> None:
    dy = torch.randn_like(x)
    actual = run(op, x, bias, approximate, dy)
    baseline = run(plain, x, bias, approximate, dy)
    wide = None if bias is None else bias.double()
    exact = run(truth, x.double(), wide, approximate, dy)
    assert actual[0].is_contiguous() and actual[0].dtype == x.dtype
    for name, a, e, b in zip(("y", "dx", "dbias"), actual, exact, baseline, strict=False):
        factor = GRADIENT_FACTOR if name.startswith("d") else 2.0
        what = f"{name} of {list(x.shape)}, {approximate}"
        assert_accurate(a, e, b, factor=factor, what=what)
    if bias is not None:
        assert actual[2].dtype == bias.dtype


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
def test_values_and_gradients(
    device: str, with_bias: bool, approximate: str, dtype: torch.dtype
) -> None:
    """Both functions in each dtype, over widths odd and even and values in all parts of GELU."""
    for shape in ((64, 3), (5, 7, 33), (64, 256), (1, 1023)):
        x = (torch.randn(shape) * 3).to(device, dtype)
        bias = torch.randn(shape[-1]).to(device, dtype) if with_bias else None
        check(x, bias, approximate)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_float32_bias_beside_16_bit_rows(device: str, dtype: torch.dtype) -> None:
    """Parameters kept in float32, as under autocast."""
    check(torch.randn(37, 48).to(device, dtype), torch.randn(48, device=device), "tanh")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_rows_and_wide_ones(device: str, dtype: torch.dtype) -> None:
    """More rows than groups of warps share out, rows of several tiles of columns, one row."""
    for shape in ((403, 40), (403, 33), (7, 4104), (1, 2056)):
        check(
            torch.randn(shape).to(device, dtype), torch.randn(shape[-1]).to(device, dtype), "none"
        )
        check(torch.randn(shape).to(device, dtype), None, "tanh")


def test_far_tails(device: str) -> None:
    """Where the exponentials overflow or vanish, GELU is 0 or its argument and its slope 0 or 1.

    So it is where squares and cubes of the argument overflow.
    """
    tails = (20.0, 300.0, 1e4, 1e13, 2e19, 1e38)
    values = [*(-tail for tail in tails), 0.0, -0.0, *tails]
    slopes = [0.0] * len(tails) + [0.5, 0.5] + [1.0] * len(tails)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.tensor([values], device=device, dtype=dtype)
        zeros, ones = torch.zeros(len(values), device=device, dtype=dtype), torch.ones_like(x)
        for approximate, bias, function in itertools.product(
            ("none", "tanh"), (zeros, None), (op, truth)
        ):
            y, dx, *_ = run(function, x, bias, approximate, ones)
            assert torch.equal(y, x.clamp_min(0)), f"{function.__name__}, {approximate}"
            expected = torch.tensor([slopes], device=device, dtype=dtype)
            assert torch.equal(dx, expected), f"{function.__name__}, {approximate}, {dtype}: {dx}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_16_bit_argument(device: str, dtype: torch.dtype) -> None:
    """The exact function is within one unit in the last place of the rounded truth, tails too; its
    slope, whose terms cancel where it is 0, by the rule of all gradients."""
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    x = bits.view(dtype)[None]
    x = x[:, (x.abs() < 100)[0]]
    y, dx = run(op, x.to(device), None, "none", torch.ones_like(x, device=device))
    y, exact = y.cpu(), truth(x.double(), None, "none")
    rounded = exact.to(dtype)
    above, below = (torch.nextafter(rounded, torch.full_like(x, end)) for end in (1e4, -1e4))
    near = (below <= y) & (y <= above)
    # Of a tail beyond an absolute error counts: kernels give up what is below 6 · Φ(−5.5), and the
    # CPU's native code is within 8e-9 of Φ.
    native = device == "cpu" and _library.ops is torch.ops.llmjp_ext
    far = x < (-4.0 if native else -5.5)
    near[far] = ((y.double() - exact).abs() < 1.2e-7 + torch.finfo(dtype).eps * exact.abs())[far]
    assert near.all(), f"at {x[~near][:4].tolist()}: {y[~near][:4].tolist()}"
    leaf = x.double().requires_grad_()
    (slope,) = torch.autograd.grad(truth(leaf, None, "none").sum(), leaf)
    theirs = run(plain, x, None, "none", torch.ones_like(x))[1]
    assert_accurate(dx.cpu(), slope, theirs, factor=GRADIENT_FACTOR, what="dx")


def test_bias_gradients_repeat(device: str) -> None:
    """Bit for bit, although simulated threads run in another order each time."""
    x, dy = torch.randn(2, 301, 72, device=device)
    bias = torch.randn(72, device=device)
    first, second = (run(op, x, bias, "none", dy) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_native_op_refuses_what_would_read_beyond_memory(device: str) -> None:
    """Called past the Python checks, the bindings still guard shapes and dtypes."""
    ops, x, bias = _library.ops, torch.ones(2, 8, device=device), torch.ones(8, device=device)
    with pytest.raises(RuntimeError, match=r"bias must have shape \[8\], got \[7\]"):
        ops.bias_gelu_fwd(x, bias[:7], "none")
    with pytest.raises(RuntimeError, match="'none' or 'tanh', got 'erf'"):
        ops.bias_gelu_fwd(x, bias, "erf")
    with pytest.raises(RuntimeError, match=r"bias must be float32 .* got float16"):
        ops.bias_gelu_fwd(x, bias.half(), "none")
    with pytest.raises(RuntimeError, match=r"dy must have shape \[2, 8\], got \[1, 8\]"):
        ops.bias_gelu_bwd(x[:1], x, bias, "none")
    with pytest.raises(RuntimeError, match="dy must be float32 here, got float16"):
        ops.bias_gelu_bwd(x.half(), x, bias, "none")


def test_the_sum_is_not_rounded(device: str) -> None:
    """x + bias is 0.5, which a bias rounded to bfloat16 (256) would make 0."""
    x = torch.full((1, 8), -256.0, device=device, dtype=torch.bfloat16)
    bias = torch.full((8,), 256.5, device=device)
    y = llmjp_ext.bias_gelu(x, bias)
    assert torch.equal(y, F.gelu(torch.full_like(y, 0.5)))


def test_strided_inputs(device: str) -> None:
    """A slice of columns, swapped leading dimensions, and a bias taken apart."""
    wide = torch.randn(4, 6, 50, device=device, dtype=torch.bfloat16)
    bias = torch.randn(64, device=device, dtype=torch.bfloat16)
    check(wide[..., 5:37], bias[::2], "none")
    check(wide.transpose(0, 1), None, "none")


@pytest.mark.parametrize("shape", [(0, 8), (4, 0), (2, 0, 3)], ids=str)
def test_empty_inputs(device: str, shape: tuple[int, ...]) -> None:
    """Nothing in, nothing out; the bias' gradient is the empty sum."""
    x = torch.ones(shape, device=device, requires_grad=True)
    bias = torch.ones(shape[-1], device=device, requires_grad=True)
    y = llmjp_ext.bias_gelu(x, bias)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape and not bias.grad.any()


def test_opcheck() -> None:
    """Schema, fake, autograd registration and dynamic AOT dispatch of both ops."""
    ops = torch.ops.llmjp_ext
    x, bias = torch.randn(2, 5, 24).transpose(0, 1), torch.randn(24)
    for function, arguments in (
        (ops.bias_gelu_fwd, (x, bias, "none")),
        (ops.bias_gelu_fwd, (x.bfloat16(), None, "tanh")),
        (ops.bias_gelu_fwd, (x[:0], bias, "tanh")),
        (ops.bias_gelu_bwd, (torch.ones(()).expand(x.shape), x, bias, "none")),
        (ops.bias_gelu_bwd, (x.half(), x.half(), None, "tanh")),
    ):
        torch.library.opcheck(function, arguments)


def test_compiles_whole_without_recompiling() -> None:
    """No graph break, and one graph for three lengths."""
    counter = torch._dynamo.testing.CompileCounter()
    bias = torch.randn(32, requires_grad=True)
    compiled = torch.compile(op, fullgraph=True, dynamic=True, backend=counter)
    for length in (3, 5, 9):
        x = torch.randn(2, length, 32)
        assert torch.equal(compiled(x, bias, "tanh"), op(x, bias, "tanh"))
    assert counter.frame_count == 1, "recompiled for another length"


def test_compiled_gradients_are_eager_ones() -> None:
    """Through AOT autograd, with the fakes' shapes standing in for the kernels'."""
    compiled = torch.compile(op, fullgraph=True, dynamic=True, backend="aot_eager")
    for bias in (torch.randn(32), None):
        arguments = (torch.randn(4, 32), bias, "none", torch.randn(4, 32))
        for a, b in zip(run(op, *arguments), run(compiled, *arguments), strict=True):
            assert torch.equal(a, b)


def test_autocast_keeps_the_dtype(device: str) -> None:
    """bfloat16 activations beside a float32 bias stay bfloat16; the bias' gradient is float32."""
    x = torch.randn(4, 32, device=device, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.zeros(32, device=device, requires_grad=True)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = llmjp_ext.bias_gelu(x, bias)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == torch.bfloat16 and bias.grad.dtype == torch.float32


def test_activation_checkpointing(device: str) -> None:
    x = torch.randn(4, 32, device=device, requires_grad=True)
    bias = torch.randn(32, device=device, requires_grad=True)
    expected = torch.autograd.grad(op(x, bias, "none").square().sum(), (x, bias))
    y = checkpoint(op, x, bias, "none", use_reentrant=False)
    for a, b in zip(torch.autograd.grad(y.square().sum(), (x, bias)), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("x", "bias", "approximate", "error", "words"),
    [
        (torch.ones(2, 8).double(), None, "none", TypeError, "float16 or bfloat16, got.*float64"),
        (torch.tensor(1.0), None, "none", ValueError, "at least one dimension"),
        (torch.ones(2, 8), None, "erf", ValueError, "'none' or 'tanh', got 'erf'"),
        (torch.ones(2, 8), torch.ones(7), "none", ValueError, r"\[8\].*got \[7\]"),
        (torch.ones(2, 8), torch.ones(8).half(), "none", TypeError, "bias must be torch.float32"),
        (torch.ones(2, 8), torch.ones(8, device="meta"), "none", ValueError, "cpu, got meta"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_name_what_was_given(x, bias, approximate, error, words) -> None:
    with pytest.raises(error, match=words):
        llmjp_ext.bias_gelu(x, bias, approximate=approximate)
