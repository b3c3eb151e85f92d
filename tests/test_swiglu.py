"""swiglu on every backend that implements it: values, gradients, tracing, errors.

Values and gradients follow the numerics rule of llmjp_ext.testing; failures print the seed.
"""

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import llmjp_ext
from llmjp_ext import _library
from llmjp_ext.reference import swiglu as reference
from llmjp_ext.testing import GRADIENT_FACTOR, assert_accurate

FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def plain(gate: Tensor, up: Tensor) -> Tensor:
    """What a PyTorch user writes without the op."""
    return F.silu(gate) * up


def run(function, gate: Tensor, up: Tensor, dy: Tensor) -> list[Tensor]:
    """y and the gradients of gate and up."""
    leaves = [t.detach().requires_grad_() for t in (gate, up)]
    y = function(*leaves)
    y.backward(dy.to(y.dtype))
    return [y.detach(), *(leaf.grad for leaf in leaves)]


def check(gate: Tensor, up: Tensor, dy: Tensor | None = None) -> None:
    dy = torch.randn_like(gate) if dy is None else dy
    actual = run(llmjp_ext.swiglu, gate, up, dy)
    baseline = run(plain, gate, up, dy)
    exact = run(reference.swiglu, gate.double(), up.double(), dy)
    assert actual[0].is_contiguous() and actual[0].dtype == gate.dtype
    for name, a, e, b in zip(("y", "dgate", "dup"), actual, exact, baseline, strict=True):
        factor = GRADIENT_FACTOR if name.startswith("d") else 2.0
        assert_accurate(a, e, b, factor=factor, what=f"{name} of {list(gate.shape)}")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_values_and_gradients(device: str, dtype: torch.dtype) -> None:
    """Each dtype, over widths odd and even, one row and many, and all parts of the function."""
    for shape in ((64, 3), (5, 7, 33), (64, 256), (1, 1023), (7, 2056), (403,)):
        gate, up = ((torch.randn(shape) * 3).to(device, dtype) for _ in range(2))
        check(gate, up)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_halves_of_one_layer(device: str, dtype: torch.dtype) -> None:
    """Views with strides of their own: halves, aligned and not, swapped dimensions, a broadcast
    gradient."""
    both = torch.randn(6, 5, 96, device=device, dtype=dtype)
    check(*both.chunk(2, dim=-1))
    check(both[..., 1:34], both[..., 40:73])
    check(both[..., :48].transpose(0, 1), both[..., 48:].transpose(0, 1).contiguous())
    gate, up = both.chunk(2, dim=-1)
    check(gate, up, torch.ones((), device=device, dtype=dtype).expand(gate.shape))


def test_far_tails(device: str) -> None:
    """Where the exponential overflows or vanishes, the gate is shut or open: slope 0 or 1."""
    gate = torch.tensor([[-1e4, -300.0, -100.0, 100.0, 300.0, 1e4, 0.0, -0.0]], device=device)
    up = torch.full_like(gate, 2.0)
    y, dgate, dup = run(llmjp_ext.swiglu, gate, up, torch.ones_like(gate))
    assert torch.equal(y, 2 * gate.clamp_min(0))
    assert torch.equal(dgate, torch.tensor([[0.0, 0, 0, 2, 2, 2, 1, 1]], device=device))
    assert torch.equal(dup, gate.clamp_min(0))


@pytest.mark.parametrize("shape", [(0, 8), (4, 0), (2, 0, 3)], ids=str)
def test_empty_inputs(device: str, shape: tuple[int, ...]) -> None:
    """Nothing in, nothing out."""
    gate = torch.ones(shape, device=device, requires_grad=True)
    y = llmjp_ext.swiglu(gate, torch.ones(shape, device=device))
    y.sum().backward()
    assert y.shape == gate.grad.shape == shape


def test_the_native_op_refuses_what_would_read_beyond_memory(device: str) -> None:
    """Called past the Python checks, the bindings still guard shapes and dtypes."""
    ops, gate = _library.ops, torch.ones(2, 8, device=device)
    with pytest.raises(RuntimeError, match=r"up must have shape \[2, 8\], got \[1, 8\]"):
        ops.swiglu_fwd(gate, gate[:1])
    with pytest.raises(RuntimeError, match="up must be float32 here, got float16"):
        ops.swiglu_fwd(gate, gate.half())
    with pytest.raises(RuntimeError, match=r"dy must have shape \[2, 8\], got \[2, 7\]"):
        ops.swiglu_bwd(gate[:, :7], gate, gate)
    with pytest.raises(RuntimeError, match="dy must be float32 here, got float16"):
        ops.swiglu_bwd(gate.half(), gate, gate)


def test_opcheck() -> None:
    """Schema, fake, autograd registration and dynamic AOT dispatch of both ops."""
    ops = torch.ops.llmjp_ext
    gate, up = torch.randn(2, 5, 48).chunk(2, dim=-1)
    for function, arguments in (
        (ops.swiglu_fwd, (gate, up)),
        (ops.swiglu_fwd, (gate[:0].bfloat16(), up[:0].bfloat16())),
        (ops.swiglu_bwd, (torch.ones(()).expand(gate.shape), gate, up)),
    ):
        torch.library.opcheck(function, arguments)


def test_compiles_whole_without_recompiling() -> None:
    """No graph break, one graph for three lengths, and AOT autograd gives eager's gradients."""
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(llmjp_ext.swiglu, fullgraph=True, dynamic=True, backend=counter)
    for length in (3, 5, 9):
        gate, up = torch.randn(2, 2, length, 32)
        assert torch.equal(compiled(gate, up), llmjp_ext.swiglu(gate, up))
    assert counter.frame_count == 1, "recompiled for another length"
    compiled = torch.compile(llmjp_ext.swiglu, fullgraph=True, dynamic=True, backend="aot_eager")
    arguments = torch.randn(3, 4, 32).unbind()
    eager = run(llmjp_ext.swiglu, *arguments)
    for a, b in zip(run(compiled, *arguments), eager, strict=True):
        assert torch.equal(a, b)


def test_autocast_keeps_the_dtype(device: str) -> None:
    """Activations stay in the dtype that the linear layers gave them."""
    gate = torch.randn(4, 32, device=device, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = llmjp_ext.swiglu(gate, gate.detach())
    y.float().sum().backward()
    assert y.dtype == gate.grad.dtype == torch.bfloat16


def test_activation_checkpointing(device: str) -> None:
    """Recomputing gives the same gradients."""
    gate, up = torch.randn(2, 4, 32, device=device).unbind()
    gate.requires_grad_()
    expected = torch.autograd.grad(llmjp_ext.swiglu(gate, up).square().sum(), gate)
    y = checkpoint(llmjp_ext.swiglu, gate, up, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(y.square().sum(), gate)[0], expected[0])


@pytest.mark.parametrize(
    ("gate", "up", "error", "words"),
    [
        (torch.ones(2).double(), torch.ones(2).double(), TypeError, "float16 or bfloat16, got"),
        (torch.ones(2), torch.ones(2).half(), TypeError, "up must be torch.float32 as gate"),
        (torch.tensor(1.0), torch.tensor(1.0), ValueError, "at least one dimension"),
        (torch.ones(2, 8), torch.ones(2, 7), ValueError, r"\[2, 8\], got \[2, 7\]"),
        (torch.ones(2), torch.ones(2, device="meta"), ValueError, "cpu, got meta"),
    ],
    ids=["float64", "two dtypes", "scalar", "shape", "device"],
)
def test_errors_name_what_was_given(gate, up, error, words) -> None:
    """One sentence with what was given and what is supported."""
    with pytest.raises(error, match=words):
        llmjp_ext.swiglu(gate, up)
