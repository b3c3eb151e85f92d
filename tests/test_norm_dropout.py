"""Dropout before the residual addition of layer_norm and rms_norm, on every backend.

The mask is known, since the random state is: values and gradients follow the numerics rule of
llmjp_ext.testing beside the definition with that mask; failures print the seed.
"""

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import llmjp_ext
from llmjp_ext import nn
from llmjp_ext.ops._support import row_dropout
from llmjp_ext.reference.layer_norm import layer_norm as layer_norm_definition
from llmjp_ext.reference.rms_norm import rms_norm as rms_norm_definition
from llmjp_ext.testing import GRADIENT_FACTOR, assert_accurate

OPS = ["layer_norm", "rms_norm"]
SHARE = 0.3
# Of x, residual and weight.
DTYPES = [
    (torch.float32,) * 3,
    (torch.float16,) * 3,
    (torch.bfloat16, torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.float32, torch.float32),
]


def op(name: str, x: Tensor, residual: Tensor, weight: Tensor, share: float = SHARE):
    """y and r of the op, which draws its own random state."""
    if name == "layer_norm":
        return llmjp_ext.layer_norm(x, weight, None, residual=residual, dropout_p=share)
    return llmjp_ext.rms_norm(x, weight, residual=residual, dropout_p=share)


def definition(name: str, x: Tensor, residual: Tensor, weight: Tensor, scale: Tensor):
    """y and r by the formulas, with a mask that is given."""
    options = {"residual": residual, "dropout_scale": scale.to(x.dtype)}
    if name == "layer_norm":
        y, r = layer_norm_definition(x, weight, None, **options)
    else:
        y, r = rms_norm_definition(x, weight, **options)
    return y.to(x.dtype), r


def drawn_scale(device: str, shape: torch.Size, seed: int) -> Tensor:
    """The mask of the next call of an op: it draws its random state as this does."""
    torch.manual_seed(seed)
    state = torch.randint(2**63 - 1, (2,), device=device, dtype=torch.int64)
    torch.manual_seed(seed)
    rows = torch.arange(shape[:-1].numel(), device=device)
    return row_dropout(state, SHARE, rows, shape[-1]).view(shape)


def gradients(outputs: tuple[Tensor, ...], leaves: list[Tensor], dy: Tensor, dr: Tensor):
    """Of x, residual and weight."""
    incoming = [g.to(o.dtype) for g, o in zip((dy, dr), outputs, strict=True)]
    return torch.autograd.grad(outputs, leaves, incoming)


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: ", ".join(str(t)[6:] for t in d))
@pytest.mark.parametrize("name", OPS)
def test_values_and_gradients(
    device: str, name: str, dtypes: tuple[torch.dtype, ...], seed: int
) -> None:
    """Tiles, looping kernels and rows that are not aligned, with the mask known."""
    for rows, width in ((6, 256), (2, 1023), (3, 2052), (2, 24584), (1, 5)):
        leaves = [
            torch.randn(shape).to(device, dtype).requires_grad_()
            for shape, dtype in zip(((rows, width), (rows, width), (width,)), dtypes, strict=True)
        ]
        dy, dr = torch.randn(2, rows, width, device=device)
        scale = drawn_scale(device, torch.Size((rows, width)), seed)
        actual = op(name, *leaves)
        baseline = definition(name, *leaves, scale)
        wide = [t.detach().double().requires_grad_() for t in leaves]
        exact = definition(name, *wide, scale)
        results = [
            (*outputs, *gradients(outputs, inputs, dy, dr))
            for outputs, inputs in ((actual, leaves), (exact, wide), (baseline, leaves))
        ]
        names = ("y", "r", "dx", "dresidual", "dweight")
        for what, a, e, b in zip(names, *results, strict=True):
            factor = GRADIENT_FACTOR if what.startswith("d") else 2.0
            what = f"{what} of {name}, {rows} x {width}, {dtypes}, seed {seed}"
            assert_accurate(a, e, b, factor=factor, what=what)
        assert not results[0][2][scale == 0].any(), "dx is not dropped where x was"


@pytest.mark.parametrize("name", OPS)
def test_share_and_independence(device: str, name: str) -> None:
    """The share is met within five standard deviations, and no two calls drop the same."""
    x = torch.ones(64, 512, device=device)
    zeros, weight = torch.zeros_like(x), torch.ones(512, device=device)
    first, second = (op(name, x, zeros, weight)[1] == 0 for _ in range(2))
    deviation = (SHARE * (1 - SHARE) / x.numel()) ** 0.5
    for mask in (first, second):
        assert abs(mask.double().mean().item() - SHARE) < 5 * deviation
    both = (first & second).double().mean().item()
    assert abs(both - SHARE**2) < 5 * (SHARE**2 / x.numel()) ** 0.5
    for lines in (first.unbind(0), first.unbind(1)):
        assert not torch.equal(lines[0], lines[1]), "rows or columns repeat"


@pytest.mark.parametrize("name", OPS)
def test_only_the_stream_used(device: str, name: str) -> None:
    """If y is not used, the gradient that reaches r goes on to x through the same mask."""
    x, residual = torch.randn(2, 5, 96, device=device).requires_grad_().unbind()
    weight = torch.ones(96, device=device)
    _, r = op(name, x, residual, weight)
    dx, dresidual = torch.autograd.grad(r.sum(), (x, residual))
    kept = ((r - residual).detach() != 0).float() / (1 - SHARE)
    assert torch.equal(dresidual, torch.ones_like(r))
    torch.testing.assert_close(dx, kept)


@pytest.mark.parametrize("name", OPS)
def test_checkpointing_draws_the_same(device: str, name: str, seed: int) -> None:
    """Recomputed activations have the mask of the first pass."""
    x, residual = torch.randn(2, 5, 96, device=device).unbind()
    x.requires_grad_()
    weight = torch.ones(96, device=device)
    torch.manual_seed(seed)
    expected = torch.autograd.grad(op(name, x, residual, weight)[0].square().sum(), x)
    torch.manual_seed(seed)
    y, _ = checkpoint(op, name, x, residual, weight, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(y.square().sum(), x)[0], expected[0])


@pytest.mark.parametrize("name", OPS)
def test_compiles_whole(name: str) -> None:
    """Forward and backward in one graph each, the random state drawn inside."""
    compiled = torch.compile(op, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (3, 5):
        x, residual = torch.randn(2, length, 32).unbind()
        x.requires_grad_()
        y, r = compiled(name, x, residual, torch.ones(32))
        (dx,) = torch.autograd.grad(y.sum() + r.sum(), x)
        assert torch.equal(dx == 0, (r - residual).detach() == 0)


def test_opcheck() -> None:
    """Schema and fakes of the ops with a random state."""
    ops, state = torch.ops.llmjp_ext, torch.tensor([3, 5])
    x, residual = torch.randn(2, 4, 32).unbind()
    weight, rows = torch.ones(32), torch.ones(4)
    for function, arguments in (
        (ops.add_layer_norm_fwd, (x, residual, weight, weight, state, 1e-5, 0.25)),
        (ops.layer_norm_bwd, (x, residual, x, weight, rows, rows, state, 0.25, True)),
        (ops.add_rms_norm_fwd, (x.half(), residual, weight, state, 1e-5, 0.25)),
        (ops.rms_norm_bwd, (x.half(), None, x, weight, rows, state, 0.25)),
    ):
        torch.library.opcheck(function, arguments)


@pytest.mark.parametrize("name", OPS)
def test_empty_inputs(device: str, name: str) -> None:
    """Nothing in, nothing out."""
    x = torch.ones(0, 8, device=device, requires_grad=True)
    y, _ = op(name, x, x.detach(), torch.ones(8, device=device))
    y.sum().backward()
    assert y.shape == x.grad.shape == (0, 8)


@pytest.mark.parametrize("name", OPS)
def test_errors_name_what_was_given(name: str) -> None:
    """A share that is none, and dropout with nothing to add to."""
    x, weight = torch.ones(2, 8), torch.ones(8)
    for share in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=f"at least 0 and below 1, got {share}"):
            op(name, x, x, weight, share)
    with pytest.raises(ValueError, match=r"dropout_p 0\.3 needs a residual"):
        op(name, x, None, weight)


@pytest.mark.parametrize("module", [nn.LayerNorm, nn.RMSNorm])
def test_modules_drop_in_training_only(module: type[torch.nn.Module]) -> None:
    """As torch.nn.Dropout does."""
    norm = module(64, dropout_p=0.5)
    x, residual = torch.ones(2, 3, 64).unbind()
    assert (norm(x, residual)[1] == 1).any()
    assert (norm.eval()(x, residual)[1] == 2).all()
    assert "dropout_p=0.5" in repr(norm)
