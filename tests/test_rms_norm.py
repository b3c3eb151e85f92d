"""rms_norm on every backend: the PyTorch implementation, the kernels' source simulated, a GPU.

Values and gradients follow the numerics rule of llmjp_ext.testing; failures print the seed.
"""

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import llmjp_ext
from llmjp_ext import _library, nn
from llmjp_ext.reference import rms_norm as reference
from llmjp_ext.testing import GRADIENT_FACTOR, assert_accurate

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
# Tiles of one warp and of several, the looping kernels for odd widths, wide rows.
WIDTHS = [1, 7, 256, 1023, 1500, 5120, 12288, 24584]
# (x, residual, weight) beside one dtype for all.
MIXED = [
    (torch.bfloat16, torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.float32, torch.float32),
    (torch.bfloat16, torch.float32, torch.bfloat16),
    (torch.float16, torch.float16, torch.float32),
    (torch.float16, torch.float32, torch.float32),
]


def plain(x: Tensor, weight: Tensor, residual: Tensor | None) -> tuple[Tensor, ...]:
    """What a PyTorch user writes without the op, in the op's dtypes."""
    r = x if residual is None else x + residual
    y = F.rms_norm(r, r.shape[-1:], weight.to(r.dtype), 1e-6).to(x.dtype)
    return (y,) if residual is None else (y, r)


def op(x: Tensor, weight: Tensor, residual: Tensor | None):
    return llmjp_ext.rms_norm(x, weight, residual=residual)


def truth(x: Tensor, weight: Tensor, residual: Tensor | None):
    return reference.rms_norm(x, weight, residual=residual)


def run(function, inputs: list[Tensor | None], grads: list[Tensor]) -> list[Tensor]:
    """Outputs and then the gradients of all inputs."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    dtyped = [g.to(o.dtype) for g, o in zip(grads, outputs, strict=False)]
    torch.autograd.backward(outputs, dtyped)
    return [*outputs, *(t.grad for t in leaves if t is not None)]


def check(
    device: str, rows: int, width: int, dtypes: tuple[torch.dtype, ...], with_residual: bool
) -> None:
    x_dtype, row_dtype, weight_dtype = dtypes
    x = (torch.randn(rows, width) * 2 + 0.5).to(device, x_dtype)
    residual = torch.randn(rows, width).to(device, row_dtype) if with_residual else None
    inputs = [x, torch.randn(width).to(device, weight_dtype), residual]
    grads = [torch.randn(rows, width).to(device, t) for t in (x_dtype, row_dtype)]
    actual = run(op, inputs, grads)
    baseline = run(plain, inputs, grads)
    exact = run(truth, [None if t is None else t.double() for t in inputs], grads)
    names = ["y", "r", "dx", "dweight", "dresidual"] if with_residual else ["y", "dx", "dweight"]
    for name, a, e, b in zip(names, actual, exact, baseline, strict=True):
        assert a.is_contiguous(), name
        factor = GRADIENT_FACTOR if name.startswith("d") else 2.0
        assert_accurate(a, e, b, factor=factor, what=f"{name} of {rows} x {width}, {dtypes}")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
def test_values_and_gradients(
    device: str, width: int, dtype: torch.dtype, with_residual: bool
) -> None:
    """Every kind of kernel in every dtype."""
    check(device, 3, width, (dtype, dtype, dtype), with_residual)


@pytest.mark.parametrize("width", [16400, 65536])
def test_wide_rows(device: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that blocks share in backward: simulated, with room for eleven at once."""
    monkeypatch.setenv("LLMJP_SIMT_MULTIPROCESSORS", "11")
    check(device, 3, width, (torch.bfloat16,) * 3, with_residual=True)


@pytest.mark.parametrize("dtypes", MIXED, ids=str)
@pytest.mark.parametrize("width", [40, 1023, 2048])
def test_mixed_dtypes(device: str, width: int, dtypes: tuple[torch.dtype, ...]) -> None:
    """A float32 weight, a float32 residual stream, and a weight that must be widened for it."""
    check(device, 4, width, dtypes, with_residual=True)
    if dtypes[0] == dtypes[1]:
        check(device, 4, width, dtypes, with_residual=False)


@pytest.mark.parametrize("rows", [1, 2, 5, 67])
def test_any_number_of_rows(device: str, rows: int) -> None:
    """More rows than persistent groups, fewer, and blocks that are not full."""
    check(device, rows, 96, (torch.float32,) * 3, with_residual=True)
    check(device, rows, 600, (torch.bfloat16,) * 3, with_residual=False)


@pytest.mark.parametrize("shape", [(0, 16), (2, 0, 8), (3, 0)], ids=str)
def test_empty(device: str, shape: tuple[int, ...]) -> None:
    """Empty inputs give empty outputs and zero weight gradients."""
    x = torch.randn(shape, device=device, requires_grad=True)
    weight = torch.randn(shape[-1], device=device, requires_grad=True)
    y, r = llmjp_ext.rms_norm(x, weight, residual=torch.randn(shape, device=device))
    (y.sum() + r.sum()).backward()
    assert y.shape == r.shape == x.grad.shape == torch.Size(shape)
    assert not weight.grad.any()


def test_strided_rows_and_gradients(device: str) -> None:
    """Row strides, column slices, transposed and expanded tensors give what contiguous ones do."""
    weight, base = torch.randn(64, device=device), torch.randn(6, 10, 80, device=device)
    views = {
        "every second row": base[:, ::2, :64],
        "unaligned slice": base[..., 3:67],
        "transposed": torch.randn(64, 6, device=device).t(),
        "expanded rows": torch.randn(64, device=device).expand(5, 64),
        "leading dimensions swapped": base.transpose(0, 1)[..., :64],
    }
    for name, view in views.items():
        for grad in (view.detach(), torch.ones((), device=device).expand(view.shape)):
            results = [
                run(op, [x, weight, view], [g, g])
                for x, g in ((view, grad), (view.contiguous(), grad.contiguous()))
            ]
            for strided, contiguous in zip(*results, strict=True):
                assert torch.allclose(strided, contiguous, rtol=1e-5, atol=1e-6), name


def test_gradient_through_one_output_only(device: str) -> None:
    """Using only r, or only y, of the pair gives the gradients of that part."""
    x, residual = (torch.randn(4, 24, device=device, requires_grad=True) for _ in range(2))
    weight = torch.randn(24, device=device, requires_grad=True)
    _, r = llmjp_ext.rms_norm(x, weight, residual=residual)
    (r * 3).sum().backward()
    assert bool((x.grad == 3).all()) and bool((residual.grad == 3).all()) and weight.grad is None
    x.grad = residual.grad = None
    y, _ = llmjp_ext.rms_norm(x, weight, residual=residual)
    y.square().sum().backward()
    z = F.rms_norm((leaf := (x + residual).detach().requires_grad_()), (24,), weight.detach(), 1e-6)
    z.square().sum().backward()
    assert torch.allclose(x.grad, leaf.grad, atol=1e-4) and torch.equal(x.grad, residual.grad)


def test_repeats_bit_for_bit(device: str) -> None:
    """dweight is added in a fixed order: two runs agree in every bit."""
    x, g = torch.randn(2, 50, 256, device=device)
    weight = torch.randn(256, device=device)
    first, second = (run(op, [x, weight, None], [g]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_nan_stays_in_its_row(device: str) -> None:
    """The other rows of y and dx are those without it."""
    x = torch.randn(6, 40, device=device)
    x[2, 3] = float("nan")
    y, dx, _ = run(op, [x, torch.ones(40, device=device), None], [torch.ones_like(x)])
    for t in (y, dx):
        assert bool(t[2].isnan().all()) and bool(t[[0, 1, 3, 4, 5]].isfinite().all())


def test_zero_rows_are_finite(device: str) -> None:
    """eps keeps a row of zeros from dividing by nothing."""
    x = torch.zeros(2, 16, device=device)
    y, dx, dweight = run(op, [x, torch.ones(16, device=device), None], [torch.ones_like(x)])
    assert not y.any() and not dweight.any() and bool(dx.isfinite().all())


def test_opcheck() -> None:
    """Schema, fake, autograd registration and dynamic AOT dispatch of the three ops."""
    ops = torch.ops.llmjp_ext
    x, weight = torch.randn(2, 5, 24).transpose(0, 1), torch.randn(24)
    _, rstd = ops.rms_norm_fwd(x, weight, 1e-6)
    for function, arguments in (
        (ops.rms_norm_fwd, (x, weight, 1e-6)),
        (ops.rms_norm_fwd, (x[:0].half(), weight, 1e-6)),
        (ops.add_rms_norm_fwd, (x.bfloat16(), torch.randn(5, 2, 24), weight, None, 1e-6, 0.0)),
        (ops.rms_norm_bwd, (x, None, x, weight, rstd, None, 0.0)),
        (ops.rms_norm_bwd, (x.bfloat16(), x, x, weight, rstd, None, 0.0)),
    ):
        torch.library.opcheck(function, arguments)


def test_compiles_whole_without_recompiling() -> None:
    """No graph break, and one graph for three lengths."""
    counter = torch._dynamo.testing.CompileCounter()
    weight = torch.randn(32, requires_grad=True)
    compiled = torch.compile(op, fullgraph=True, dynamic=True, backend=counter)
    for length in (3, 5, 9):
        x, residual = torch.randn(2, 2, length, 32)
        for a, b in zip(compiled(x, weight, residual), op(x, weight, residual), strict=True):
            assert torch.equal(a, b)
    assert counter.frame_count == 1, "recompiled for another length"


def test_compiled_gradients_are_eager_ones() -> None:
    """Through AOT autograd, with the fakes' shapes standing in for the kernels'."""
    compiled = torch.compile(op, fullgraph=True, dynamic=True, backend="aot_eager")
    for residual in (torch.randn(4, 32), None):
        arguments = ([torch.randn(4, 32), torch.randn(32), residual], [torch.randn(4, 32)] * 2)
        for a, b in zip(run(op, *arguments), run(compiled, *arguments), strict=True):
            assert torch.equal(a, b)


def test_autocast_keeps_the_dtype(device: str) -> None:
    """bfloat16 activations beside a float32 weight stay bfloat16; dweight is float32."""
    x = torch.randn(4, 32, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.ones(32, device=device, requires_grad=True)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = llmjp_ext.rms_norm(x, weight)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == torch.bfloat16 and weight.grad.dtype == torch.float32


def test_activation_checkpointing(device: str) -> None:
    """Recomputed values and gradients are the first ones bit for bit."""
    x = torch.randn(4, 32, device=device, requires_grad=True)
    weight = torch.randn(32, device=device, requires_grad=True)
    expected = torch.autograd.grad(op(x, weight, None).square().sum(), (x, weight))
    y = checkpoint(op, x, weight, None, use_reentrant=False)
    for a, b in zip(torch.autograd.grad(y.square().sum(), (x, weight)), expected, strict=True):
        assert torch.equal(a, b)


def test_module_takes_the_place_of_torchs() -> None:
    """The same parameters, state dict and values as torch.nn.RMSNorm, and the residual pair."""
    torchs, ours = torch.nn.RMSNorm(40, eps=1e-6), nn.RMSNorm(40)
    torch.nn.init.normal_(torchs.weight)
    ours.load_state_dict(torchs.state_dict())
    x, residual = torch.randn(2, 3, 40)
    assert torch.allclose(ours(x), torchs(x), atol=1e-6)
    y, r = ours(x, residual)
    assert torch.allclose(y, torchs(x + residual), atol=1e-6) and torch.equal(r, x + residual)


ROWS, ONES = torch.ones(2, 8), torch.ones(8)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((ROWS.double(), ONES), {}, TypeError, "float32, float16 or bfloat16, got torch.float64"),
        ((torch.tensor(1.0), ONES), {}, ValueError, "at least one dimension"),
        ((ROWS, ONES[:7]), {}, ValueError, r"shape \[8\].*got \[7\]"),
        ((ROWS, ONES.half()), {}, TypeError, "weight must be torch.float32"),
        ((ROWS, ONES.to("meta")), {}, ValueError, "on x's device cpu, got meta"),
        ((ROWS, ONES), {"eps": -1.0}, ValueError, "rms_norm: eps must not be negative"),
        ((ROWS, ONES), {"residual": ROWS[:1]}, ValueError, r"shape \[2, 8\], got \[1, 8\]"),
        ((ROWS, ONES), {"residual": ROWS.half()}, TypeError, "residual must be torch.float32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_name_what_was_given(arguments, options, error, words) -> None:
    with pytest.raises(error, match=words):
        llmjp_ext.rms_norm(*arguments, **options)


def test_the_native_op_refuses_what_would_read_beyond_memory(device: str) -> None:
    """Called past the Python checks, the bindings still guard shapes and dtypes."""
    ops, x, weight = _library.ops, torch.ones(2, 8, device=device), torch.ones(8, device=device)
    with pytest.raises(RuntimeError, match=r"weight must have shape \[8\], got \[7\]"):
        ops.rms_norm_fwd(x, weight[:7], 1e-6)
    with pytest.raises(RuntimeError, match="x must be float32, float16 or bfloat16, got Double"):
        ops.rms_norm_fwd(x.double(), weight, 1e-6)
    with pytest.raises(RuntimeError, match=r"rstd must have shape \[2\], got \[1\]"):
        ops.rms_norm_bwd(x, None, x, weight, weight[:1], None, 0.0)
