"""bias_dropout_add on every backend that implements it: values, gradients, masks, tracing, errors.

The mask is known, since the random state is: values and gradients follow the numerics rule of
llmjp_ext.testing beside the definition with that mask; failures print the seed.
"""

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import llmjp_ext
from llmjp_ext import _library
from llmjp_ext.ops import bias_dropout_add as module
from llmjp_ext.ops._support import row_dropout
from llmjp_ext.reference.bias_dropout_add import bias_dropout_add as definition
from llmjp_ext.testing import GRADIENT_FACTOR, assert_accurate

SHARE = 0.3
# Of x, bias and residual.
DTYPES = [
    (torch.float32,) * 3,
    (torch.float16,) * 3,
    (torch.bfloat16,) * 3,
    (torch.bfloat16, torch.float32, torch.bfloat16),
    (torch.float16, torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16, torch.float32),
]


def op(x: Tensor, bias: Tensor | None, residual: Tensor, share: float = SHARE) -> Tensor:
    return llmjp_ext.bias_dropout_add(x, bias, residual, dropout_p=share)


def plain(x: Tensor, bias: Tensor | None, residual: Tensor, scale: Tensor) -> Tensor:
    """What a PyTorch user writes, with a mask that is given."""
    u = x if bias is None else x + bias.to(x.dtype)
    return u * scale.to(x.dtype) + residual


def drawn_scale(device: str, shape: tuple[int, ...], share: float, seed: int) -> Tensor:
    """The mask of the next call of the op: it draws its random state as this does."""
    if share == 0:
        return torch.ones(shape, device=device)
    torch.manual_seed(seed)
    state = torch.randint(2**63 - 1, (2,), device=device, dtype=torch.int64)
    torch.manual_seed(seed)
    rows = torch.arange(torch.Size(shape[:-1]).numel(), device=device)
    return row_dropout(state, share, rows, shape[-1]).view(shape)


def check(x: Tensor, bias: Tensor | None, residual: Tensor, share: float, seed: int) -> None:
    """r and the three gradients."""
    inputs = [x, bias, residual]
    dr = torch.randn(x.shape, device=x.device).to(residual.dtype)
    scale = drawn_scale(x.device.type, tuple(x.shape), share, seed)
    results = []
    for function, wide in ((op, False), (definition, True), (plain, False)):
        leaves = [
            None if t is None else (t.detach().double() if wide else t.detach()).requires_grad_()
            for t in inputs
        ]
        if function is op:
            r = op(*leaves, share)
        elif wide:
            r = definition(*leaves, dropout_scale=scale.double())
        else:
            r = plain(*leaves, scale)
        grads = torch.autograd.grad(
            r, [leaf for leaf in leaves if leaf is not None], dr.to(r.dtype)
        )
        results.append([r.detach(), *grads])
    actual, exact, baseline = results
    assert actual[0].is_contiguous() and actual[0].dtype == residual.dtype
    names = ("r", "dx", "dresidual") if bias is None else ("r", "dx", "dbias", "dresidual")
    for name, a, e, b in zip(names, actual, exact, baseline, strict=True):
        what = f"{name} of {list(x.shape)}, share {share}, {x.dtype}, seed {seed}"
        assert_accurate(a, e, b, factor=GRADIENT_FACTOR if name.startswith("d") else 2.0, what=what)
    assert [g.dtype for g in actual[1:]] == [t.dtype for t in inputs if t is not None]
    assert not actual[1][scale == 0].any(), "dx is not dropped where x was"


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: ", ".join(str(t)[6:] for t in d))
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("share", [SHARE, 0.0])
def test_values_and_gradients(
    device: str, share: float, with_bias: bool, dtypes: tuple[torch.dtype, ...], seed: int
) -> None:
    """Aligned rows and others, one row and more than the groups of warps share out."""
    for shape in ((64, 3), (5, 7, 33), (37, 256), (1, 1023), (403, 40), (3, 4104)):
        x = (torch.randn(shape) * 3).to(device, dtypes[0])
        bias = torch.randn(shape[-1]).to(device, dtypes[1]) if with_bias else None
        residual = torch.randn(shape).to(device, dtypes[2])
        check(x, bias, residual, share, seed)


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
def test_the_mask_is_that_of_the_norms(device: str, with_bias: bool, seed: int) -> None:
    """One random state, one mask: of every backend, of the PyTorch formulation, of rms_norm."""
    for width in (1, 5, 64, 333):
        x = torch.ones(6, width, device=device)
        zeros, bias = torch.zeros_like(x), torch.ones(width, device=device) if with_bias else None
        scale = drawn_scale(device, (6, width), SHARE, seed)
        r = op(x, bias, zeros)
        torch.manual_seed(seed)
        _, stream = llmjp_ext.rms_norm(x, x[0], residual=zeros, dropout_p=SHARE)
        assert torch.equal(r != 0, scale != 0), f"width {width}, seed {seed}"
        assert torch.equal(stream != 0, scale != 0), f"width {width}, seed {seed}"


def test_large_seeds_and_positions(device: str) -> None:
    """Words of Philox above and below 2^32 count: of the seed, the offset and the position."""
    x = torch.ones(3, 128, device=device)
    zeros = torch.zeros_like(x)
    masks = set()
    for state in ([1, 2], [1, 2 + 2**40], [1 + 2**40, 2], [2**63 - 1, 2**63 - 1]):
        r = _library.ops.bias_dropout_add_fwd(
            x, None, zeros, torch.tensor(state, device=device), 0.5
        )
        rows = torch.arange(3, device=device)
        expected = row_dropout(torch.tensor(state, device=device), 0.5, rows, 128)
        assert torch.equal(r, expected), f"state {state}"
        masks.add(tuple((r != 0).flatten().tolist()))
    assert len(masks) == 4


def test_the_pytorch_formulation_agrees(seed: int) -> None:
    """What runs on CUDA without kernels, beside the native code of the CPU."""
    state = torch.tensor([3, 5])
    for x_dtype, bias_dtype, dtype in DTYPES[:5]:
        x, residual = torch.randn(9, 70).to(x_dtype), torch.randn(9, 70).to(dtype)
        bias = torch.randn(70).to(bias_dtype)
        native = torch.ops.llmjp_ext.bias_dropout_add_fwd(x, bias, residual, state, SHARE)
        other = module._torch_fwd(x, bias, residual, state, SHARE)
        torch.testing.assert_close(native, other, msg=f"seed {seed}")
        arguments = (residual, bias, state, SHARE, x_dtype)
        native_gradients = torch.ops.llmjp_ext.bias_dropout_add_bwd(*arguments)
        for a, b in zip(native_gradients, module._torch_bwd(*arguments), strict=True):
            torch.testing.assert_close(a, b, msg=f"seed {seed}")


def test_share_is_met(device: str, seed: int) -> None:
    """Within five standard deviations; two calls draw different masks."""
    x = torch.ones(64, 512, device=device)
    first, second = (op(x, None, torch.zeros_like(x)) == 0 for _ in range(2))
    deviation = (SHARE * (1 - SHARE) / x.numel()) ** 0.5
    for mask in (first, second):
        assert abs(mask.double().mean().item() - SHARE) < 5 * deviation, f"seed {seed}"
    assert not torch.equal(first, second)


def test_dropped_infinities_are_gone(device: str, seed: int) -> None:
    """Dropout puts 0 in their place, not 0 times them."""
    x = torch.full((4, 64), float("inf"), device=device)
    r = op(x, None, torch.zeros_like(x))
    assert (r == 0).any() and not r.isnan().any(), f"seed {seed}"


def test_bias_gradients_repeat(device: str, seed: int) -> None:
    """Bit for bit, although simulated threads run in another order each time."""
    x, residual, dr = torch.randn(3, 301, 72, device=device).unbind()
    bias = torch.randn(72, device=device, requires_grad=True)
    gradients = []
    for _ in range(2):
        torch.manual_seed(seed)
        gradients.append(torch.autograd.grad(op(x, bias, residual), bias, dr)[0])
    assert torch.equal(*gradients)


def test_threads_do_not_change_the_result() -> None:
    """On the CPU rows are summed in groups that follow from the shape alone."""
    dr, bias, state = torch.randn(501, 333), torch.zeros(333), torch.tensor([3, 5])
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(
                torch.ops.llmjp_ext.bias_dropout_add_bwd(dr, bias, state, SHARE, torch.float32)
            )
    finally:
        torch.set_num_threads(threads)
    for one, three in zip(*results, strict=True):
        assert torch.equal(one, three)


def test_the_sum_is_not_rounded(device: str) -> None:
    """x + bias is 0.5, which a bias rounded to bfloat16 (256) would make 0."""
    x = torch.full((1, 8), -256.0, device=device, dtype=torch.bfloat16)
    bias = torch.full((8,), 256.5, device=device)
    assert (op(x, bias, torch.zeros_like(x), 0.0) == 0.5).all()


def test_strided_inputs(device: str, seed: int) -> None:
    """Slices of columns, swapped leading dimensions, a bias taken apart."""
    wide = torch.randn(4, 6, 50, device=device, dtype=torch.bfloat16)
    bias = torch.randn(64, device=device, dtype=torch.bfloat16)
    check(wide[..., 5:37], bias[::2], wide[..., 8:40], SHARE, seed)
    check(wide.transpose(0, 1), None, wide.transpose(0, 1), SHARE, seed)


@pytest.mark.parametrize("shape", [(0, 8), (4, 0), (2, 0, 3)], ids=str)
def test_empty_inputs(device: str, shape: tuple[int, ...]) -> None:
    """Nothing in, nothing out; the bias' gradient is the empty sum."""
    x, residual = (torch.ones(shape, device=device, requires_grad=True) for _ in range(2))
    bias = torch.ones(shape[-1], device=device, requires_grad=True)
    op(x, bias, residual).sum().backward()
    assert x.grad.shape == residual.grad.shape == shape and not bias.grad.any()


def test_the_native_op_refuses_what_would_read_beyond_memory(device: str) -> None:
    """Called past the Python checks, the bindings still guard shapes, dtypes and the state."""
    ops, x, bias = _library.ops, torch.ones(2, 8, device=device), torch.ones(8, device=device)
    state = torch.tensor([3, 5], device=device)
    with pytest.raises(RuntimeError, match=r"bias must have shape \[8\], got \[7\]"):
        ops.bias_dropout_add_fwd(x, bias[:7], x, None, 0.0)
    with pytest.raises(RuntimeError, match=r"residual must have shape \[2, 8\], got \[1, 8\]"):
        ops.bias_dropout_add_fwd(x, bias, x[:1], None, 0.0)
    with pytest.raises(RuntimeError, match="x must be float32, float16 or bfloat16, got Double"):
        ops.bias_dropout_add_fwd(x.double(), None, x, None, 0.0)
    with pytest.raises(RuntimeError, match=r"dropout_p is 0\.5, and random_state is missing"):
        ops.bias_dropout_add_fwd(x, bias, x, None, 0.5)
    with pytest.raises(RuntimeError, match=r"random_state must have shape \[2\], got \[1\]"):
        ops.bias_dropout_add_bwd(x, None, state[:1], 0.5, torch.float32)


def test_opcheck() -> None:
    """Schema, fake, autograd registration and dynamic AOT dispatch of both ops."""
    ops, state = torch.ops.llmjp_ext, torch.tensor([3, 5])
    x, bias = torch.randn(2, 5, 24).transpose(0, 1), torch.randn(24)
    for function, arguments in (
        (ops.bias_dropout_add_fwd, (x, bias, x, state, 0.25)),
        (ops.bias_dropout_add_fwd, (x.bfloat16(), None, x, None, 0.0)),
        (ops.bias_dropout_add_fwd, (x[:0], bias, x[:0], state, 0.25)),
        (ops.bias_dropout_add_bwd, (x, bias, state, 0.25, torch.float32)),
        (ops.bias_dropout_add_bwd, (x, bias, None, 0.0, torch.float32)),
        (ops.bias_dropout_add_bwd, (x, None, None, 0.0, torch.bfloat16)),
        (ops.bias_dropout_add_bwd, (x.half(), bias, state, 0.25, torch.float16)),
    ):
        torch.library.opcheck(function, arguments)


def test_compiles_whole_without_recompiling() -> None:
    """No graph break, one graph for three lengths, the random state drawn inside."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def constant_share(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return llmjp_ext.bias_dropout_add(x, bias, residual, dropout_p=0.3)

    compiled = torch.compile(constant_share, fullgraph=True, dynamic=True, backend=counter)
    bias = torch.zeros(32, requires_grad=True)
    for length in (3, 5, 9):
        x, residual = torch.randn(2, length, 32, requires_grad=True), torch.randn(2, length, 32)
        r = compiled(x, bias, residual)
        (dx,) = torch.autograd.grad(r.sum(), x)
        assert torch.equal(dx == 0, (r - residual).detach() == 0)
    assert counter.frame_count == 1, "recompiled for another length"


def test_autocast_keeps_the_stream(device: str) -> None:
    """bfloat16 x beside a float32 bias and stream: the stream stays float32."""
    x = torch.randn(4, 32, device=device, dtype=torch.bfloat16, requires_grad=True)
    bias, residual = torch.zeros(32, device=device, requires_grad=True), torch.ones(4, 32)
    with torch.autocast(device, dtype=torch.bfloat16):
        r = op(x, bias, residual.to(device))
    assert r.dtype == torch.float32
    r.sum().backward()
    assert x.grad.dtype == torch.bfloat16 and bias.grad.dtype == torch.float32


def test_checkpointing_draws_the_same(device: str, seed: int) -> None:
    """Recomputed activations have the mask of the first pass."""
    x, residual = torch.randn(2, 5, 96, device=device).unbind()
    x.requires_grad_()
    torch.manual_seed(seed)
    expected = torch.autograd.grad(op(x, None, residual).square().sum(), x)
    torch.manual_seed(seed)
    r = checkpoint(op, x, None, residual, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(r.square().sum(), x)[0], expected[0])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.ones(2, 8).double()}, TypeError, "x must be float32.*got.*float64"),
        ({"x": torch.tensor(1.0)}, ValueError, "at least one dimension"),
        ({"bias": torch.ones(7)}, ValueError, r"bias must have shape \[8\].*got \[7\]"),
        ({"bias": torch.ones(8).half()}, TypeError, "bias must be torch.float32.*got.*float16"),
        ({"residual": torch.ones(8)}, ValueError, r"residual must have shape \[2, 8\].*got \[8\]"),
        ({"residual": torch.ones(2, 8).half()}, TypeError, "residual must be.*got.*float16"),
        ({"residual": torch.ones(2, 8, device="meta")}, ValueError, "device cpu, got meta"),
        ({"share": 1.0}, ValueError, r"at least 0 and below 1, got 1\.0"),
        ({"share": float("nan")}, ValueError, "at least 0 and below 1, got nan"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_name_what_was_given(change: dict, error: type[Exception], words: str) -> None:
    """One line each, before anything is computed."""
    arguments = {"x": torch.ones(2, 8), "bias": None, "residual": torch.ones(2, 8), **change}
    with pytest.raises(error, match=words):
        op(**arguments)
