"""layer_norm on every backend: the PyTorch implementation, the kernels' source simulated, a GPU.

Values and gradients follow the numerics rule of llmjp_ext.testing; failures print the seed.
"""

import math

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import llmjp_ext
from llmjp_ext import _library, nn
from llmjp_ext.reference import layer_norm as reference
from llmjp_ext.testing import GRADIENT_FACTOR, assert_accurate

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
# One of each kernel: tiles of every size, the looping ones for odd widths, wide rows.
WIDTHS = [1, 7, 1023, 1500, 2048, 5120, 12288, 24584]
# (x, residual, weight) beside one dtype for all.
MIXED = [
    (torch.bfloat16, torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.float32, torch.float32),
    (torch.bfloat16, torch.float32, torch.bfloat16),
    (torch.float16, torch.float16, torch.float32),
    (torch.float16, torch.float32, torch.float32),
]


def plain(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None
) -> tuple[Tensor, ...]:
    """What a PyTorch user writes without the op, in the op's dtypes."""
    r = x if residual is None else x + residual
    y = F.layer_norm(
        r, r.shape[-1:], weight.to(r.dtype), None if bias is None else bias.to(r.dtype)
    )
    return (y.to(x.dtype),) if residual is None else (y.to(x.dtype), r)


def run(function, inputs: list[Tensor | None], grads: list[Tensor]) -> list[Tensor]:
    """Outputs and then the gradients of all inputs."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    dtyped = [g.to(o.dtype) for g, o in zip(grads, outputs, strict=False)]
    torch.autograd.backward(outputs, dtyped)
    return [*outputs, *(t.grad for t in leaves if t is not None and t.grad is not None)]


def op(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None):
    return llmjp_ext.layer_norm(x, weight, bias, residual=residual)


def truth(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None):
    return reference.layer_norm(x, weight, bias, residual=residual)


def check(
    device: str,
    rows: int,
    width: int,
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype],
    with_residual: bool,
    with_bias: bool = True,
) -> None:
    x_dtype, row_dtype, weight_dtype = dtypes
    x = (torch.randn(rows, width) * 2 + 0.5).to(device, x_dtype)
    residual = torch.randn(rows, width).to(device, row_dtype) if with_residual else None
    weight = torch.randn(width).to(device, weight_dtype)
    bias = torch.randn(width).to(device, weight_dtype) if with_bias else None
    inputs = [x, weight, bias, residual]
    grads = [torch.randn(rows, width).to(device, t) for t in (x_dtype, row_dtype)]
    actual = run(op, inputs, grads)
    baseline = run(plain, inputs, grads)
    exact = run(truth, [None if t is None else t.double() for t in inputs], grads)
    outputs = 2 if with_residual else 1
    names = ["y", "r"][:outputs] + ["dx", "dweight"] + ["dbias"] * with_bias
    names += ["dresidual"] * with_residual
    assert len(actual) == len(names)
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
    check(device, 3, width, (dtype, dtype, dtype), with_residual)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [16400, 65528, 65536, 65544])
def test_wide_rows(
    device: str, width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that blocks share in backward: simulated, with room for eleven at once."""
    monkeypatch.setenv("LLMJP_SIMT_MULTIPROCESSORS", "11")
    check(device, 3, width, (dtype, dtype, torch.float32), with_residual=width != 65536)


def test_wide_rows_repeat_bit_for_bit(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks add each other's sums in one order, whichever comes first."""
    monkeypatch.setenv("LLMJP_SIMT_MULTIPROCESSORS", "6")
    x, g = torch.randn(7, 16400, device=device), torch.randn(7, 16400, device=device)
    weight = torch.randn(16400, device=device)
    first, second = (run(op, [x, weight, None, None], [g]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.gpu
def test_wide_rows_in_a_cuda_graph() -> None:
    """Blocks that wait for each other count anew in every replay."""
    x, g = torch.randn(2, 70, 32768, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(32768, device="cuda", dtype=torch.bfloat16)
    leaf = x.clone().requires_grad_()
    stream = torch.cuda.Stream()  # as capture asks, the first call is on another stream
    with torch.cuda.stream(stream):
        torch.autograd.grad(op(leaf, weight, None, None), leaf, g)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = op(leaf, weight, None, None)
        (dx,) = torch.autograd.grad(y, leaf, g)
    for _ in range(3):
        with torch.no_grad():
            leaf.copy_(torch.randn_like(x))
        graph.replay()
        expected_y, expected_dx, *_ = run(op, [leaf, weight, None, None], [g])
        assert torch.equal(y, expected_y) and torch.equal(dx, expected_dx)


@pytest.mark.gpu
def test_wide_rows_on_two_streams() -> None:
    """Grids that each need all of their blocks at once do not keep each other from it."""
    weight = torch.randn(32768, device="cuda")
    tensors = [torch.randn(2, 200, 32768, device="cuda").unbind() for _ in range(2)]
    expected = [run(op, [x, weight, None, None], [g]) for x, g in tensors]
    streams = [torch.cuda.Stream() for _ in tensors]
    torch.cuda.synchronize()
    for _ in range(5):
        actual = []
        for stream, (x, g) in zip(streams, tensors, strict=True):
            with torch.cuda.stream(stream):
                actual.append(run(op, [x, weight, None, None], [g]))
        torch.cuda.synchronize()
        for mine, wanted in zip(actual, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, wanted, strict=True))


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
    check(device, rows, 600, (torch.bfloat16,) * 3, with_residual=False, with_bias=False)


@pytest.mark.parametrize("shape", [(0, 16), (2, 0, 8), (3, 0)], ids=str)
def test_empty(device: str, shape: tuple[int, ...]) -> None:
    """Empty inputs give empty outputs and zero weight gradients."""
    x = torch.randn(shape, device=device, requires_grad=True)
    weight, bias = (torch.randn(shape[-1], device=device, requires_grad=True) for _ in range(2))
    y, r = llmjp_ext.layer_norm(x, weight, bias, residual=torch.randn(shape, device=device))
    (y.sum() + r.sum()).backward()
    assert y.shape == r.shape == x.grad.shape == torch.Size(shape)
    assert bool((weight.grad == 0).all()) and bool((bias.grad == 0).all())


def test_strided_rows_and_gradients(device: str) -> None:
    """Row strides, column slices, transposed and expanded tensors give what contiguous ones do."""
    weight, bias = torch.randn(64, device=device), torch.randn(64, device=device)
    base = torch.randn(6, 10, 80, device=device)
    views = {
        "every second row": base[:, ::2, :64],
        "column slice": base[..., 8:72],
        "unaligned slice": base[..., 3:67],
        "one row of a batch": base[:, 4, 16:],
        "transposed": torch.randn(64, 6, device=device).t(),
        "expanded rows": torch.randn(64, device=device).expand(5, 64),
        "expanded columns": torch.randn(5, 1, device=device).expand(5, 64),
        "leading dimensions swapped": base.transpose(0, 1)[..., :64],
    }
    for name, view in views.items():
        for grad in (view.detach(), torch.ones((), device=device).expand(view.shape)):
            results = []
            for x, g in ((view, grad), (view.contiguous(), grad.contiguous())):
                results.append(run(op, [x, weight, bias, view], [g, g]))
            for strided, contiguous in zip(*results, strict=True):
                assert torch.allclose(strided, contiguous, rtol=1e-5, atol=1e-6), name


def test_gradient_through_one_output_only(device: str) -> None:
    """Using only r, or only y, of the pair gives the gradients of that part."""
    x, residual = (torch.randn(4, 24, device=device, requires_grad=True) for _ in range(2))
    weight = torch.randn(24, device=device, requires_grad=True)
    _, r = llmjp_ext.layer_norm(x, weight, None, residual=residual)
    (r * 3).sum().backward()
    assert bool((x.grad == 3).all()) and bool((residual.grad == 3).all()) and weight.grad is None
    x.grad = residual.grad = None
    y, _ = llmjp_ext.layer_norm(x, weight, None, residual=residual)
    (y * y).sum().backward()
    expected_x = x.detach().requires_grad_()
    z = F.layer_norm(expected_x + residual.detach(), (24,), weight.detach())
    (z * z).sum().backward()
    assert torch.allclose(x.grad, expected_x.grad, atol=1e-4)
    assert torch.equal(x.grad, residual.grad)


def test_repeats_bit_for_bit(device: str) -> None:
    """dweight and dbias are added in a fixed order: two runs agree in every bit."""
    x, g = torch.randn(50, 256, device=device), torch.randn(50, 256, device=device)
    weight, bias = torch.randn(256, device=device), torch.randn(256, device=device)
    first, second = (run(op, [x, weight, bias, None], [g]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_large_offset_does_not_cancel(device: str) -> None:
    """The variance is that of centred values: a mean of 10,000 leaves it right."""
    x = torch.randn(2, 2048, device=device) + 1e4
    y = llmjp_ext.layer_norm(x, torch.ones(2048, device=device), None)
    exact = F.layer_norm(x.double(), (2048,))
    assert_accurate(y, exact, F.layer_norm(x, (2048,)), what="y")


def test_nan_stays_in_its_row(device: str) -> None:
    x = torch.randn(3, 40, device=device)
    x[1, 7] = math.nan
    y = llmjp_ext.layer_norm(x, torch.ones(40, device=device), None)
    assert bool(y[1].isnan().all()) and not bool(y[[0, 2]].isnan().any())


def test_opcheck() -> None:
    """Schema, fake, autograd registration and dynamic AOT dispatch of the three ops."""
    x, r = torch.randn(2, 5, 24).transpose(0, 1), torch.randn(5, 2, 24)
    weight, bias = torch.randn(24), torch.randn(24)
    ops = torch.ops.llmjp_ext
    y, mean, rstd = ops.layer_norm_fwd(x, weight, bias, 1e-5)
    grad = torch.ones(()).expand(y.shape)
    for function, arguments in (
        (ops.layer_norm_fwd, (x, weight, bias, 1e-5)),
        (ops.layer_norm_fwd, (x.bfloat16(), weight, None, 1e-5)),
        (ops.layer_norm_fwd, (x[:0], weight, None, 1e-5)),
        (ops.add_layer_norm_fwd, (x, r, weight, bias, None, 1e-5, 0.0)),
        (ops.add_layer_norm_fwd, (x.half(), r, weight, bias, None, 1e-5, 0.0)),
        (ops.layer_norm_bwd, (grad, None, x, weight, mean, rstd, None, 0.0, True)),
        (ops.layer_norm_bwd, (grad, r, x, weight, mean, rstd, None, 0.0, False)),
    ):
        torch.library.opcheck(function, arguments)


def compiled_once(device: str) -> None:
    weight, bias = (torch.randn(32, device=device, requires_grad=True) for _ in range(2))
    residual_seen = torch._dynamo.testing.CompileCounter()

    @torch.compile(fullgraph=True, dynamic=True, backend=residual_seen)
    def function(x: Tensor, residual: Tensor) -> Tensor:
        y, r = llmjp_ext.layer_norm(x, weight, bias, residual=residual)
        return llmjp_ext.layer_norm(y, weight, bias) + r

    for length in (3, 5, 9):
        x, residual = (torch.randn(2, length, 32, device=device) for _ in range(2))
        y, r = llmjp_ext.layer_norm(x, weight, bias, residual=residual)
        assert torch.allclose(function(x, residual), llmjp_ext.layer_norm(y, weight, bias) + r)
    assert residual_seen.frame_count == 1, "recompiled for another length"


def test_compiles_whole_without_recompiling() -> None:
    """No graph break, and one graph for three lengths."""
    compiled_once("cpu")


@pytest.mark.gpu
def test_compiles_whole_without_recompiling_on_cuda() -> None:
    compiled_once("cuda")


def test_compiled_gradients_are_eager_ones() -> None:
    """Through AOT autograd, with the fakes' shapes standing in for the kernels'."""
    weight, bias = torch.randn(32), torch.randn(32)
    x, residual, g = (torch.randn(4, 32) for _ in range(3))
    compiled = torch.compile(op, fullgraph=True, dynamic=True, backend="aot_eager")
    for a, b in zip(
        run(op, [x, weight, bias, residual], [g, g]),
        run(compiled, [x, weight, bias, residual], [g, g]),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_autocast_keeps_the_dtype(device: str) -> None:
    """bfloat16 beside float32 weights stays bfloat16; gradients have their leaves' dtype."""
    x = torch.randn(4, 32, device=device, dtype=torch.bfloat16, requires_grad=True)
    module = nn.LayerNorm(32, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == torch.bfloat16 and module.weight.grad.dtype == torch.float32


def test_activation_checkpointing(device: str) -> None:
    weight = torch.randn(48, device=device, requires_grad=True)
    x = torch.randn(4, 48, device=device, requires_grad=True)
    grads = []
    for recompute in (False, True):
        x.grad = weight.grad = None
        y = checkpoint(op, x, weight, None, x, use_reentrant=False) if recompute else None
        y, r = y if y is not None else op(x, weight, None, x)
        (y.square().sum() + r.sum()).backward()
        grads.append((x.grad, weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_module_takes_torch_layer_norms_state() -> None:
    """nn.LayerNorm loads torch's state dict and gives torch's values."""
    ours, torchs = nn.LayerNorm(40), torch.nn.LayerNorm(40)
    torch.nn.init.normal_(torchs.weight)
    ours.load_state_dict(torchs.state_dict())
    x, residual = torch.randn(3, 40), torch.randn(3, 40)
    assert torch.allclose(ours(x), torchs(x), atol=1e-6)
    y, r = ours(x, residual)
    assert torch.allclose(y, torchs(x + residual), atol=1e-6) and torch.equal(r, x + residual)


def vector(length: int = 8, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(length, dtype=dtype)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (
            (torch.ones(2, 8).double(), vector(), None),
            {},
            TypeError,
            "float32, float16 or bfloat16",
        ),
        ((torch.tensor(1.0), vector(), None), {}, ValueError, "at least one dimension"),
        ((torch.ones(2, 8), vector(7), None), {}, ValueError, r"shape \[8\].*got \[7\]"),
        ((torch.ones(2, 8), vector(), vector(9)), {}, ValueError, r"bias must have shape \[8\]"),
        ((torch.ones(2, 8), vector(), vector().half()), {}, TypeError, "bias must have weight's"),
        ((torch.ones(2, 8), vector().half(), None), {}, TypeError, "weight must be torch.float32"),
        ((torch.ones(2, 8), vector(), None), {"eps": -1.0}, ValueError, "eps must not be negative"),
        (
            (torch.ones(2, 8), vector(), None),
            {"residual": torch.ones(3, 8)},
            ValueError,
            r"x's shape \[2, 8\], got \[3, 8\]",
        ),
        (
            (torch.ones(2, 8), vector(), None),
            {"residual": torch.ones(2, 8).half()},
            TypeError,
            "residual must be torch.float32",
        ),
        (
            (torch.ones(2, 8), vector().to("meta"), None),
            {},
            ValueError,
            "on x's device cpu, got meta",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_name_what_was_given(arguments, options, error, words) -> None:
    with pytest.raises(error, match=words):
        llmjp_ext.layer_norm(*arguments, **options)


def test_the_native_op_refuses_what_would_read_beyond_memory(device: str) -> None:
    """Called past the Python checks, the bindings still guard shapes and dtypes."""
    x, statistics = torch.ones(2, 8, device=device), torch.ones(2, device=device)
    with pytest.raises(RuntimeError, match=r"weight must have shape \[8\], got \[7\]"):
        _library.ops.layer_norm_fwd(x, vector(7).to(device), None, 1e-5)
    with pytest.raises(RuntimeError, match=r"float64|Double"):
        _library.ops.layer_norm_fwd(x.double(), vector().to(device), None, 1e-5)
    with pytest.raises(RuntimeError, match=r"mean must have shape \[2\]"):
        _library.ops.layer_norm_bwd(
            x, None, x, vector().to(device), statistics[:1], statistics, None, 0.0, True
        )
