"""The cases that layer_norm's and rms_norm's benchmarks share: with a residual and dropout.

Masks differ from peer to peer, so what is checked is the share dropped, and y, or the gradients,
against the norm of the r that came with them.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.case import OURS, Candidate, Case
from llmjp_ext.testing import GRADIENT_FACTOR, assert_accurate

SHARE = 0.1
COMPILED = "torch.compile"


def norm_dropout_case(
    rows: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    ours: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]],
    plain_norm: Callable[..., Tensor],
    exact_norm: Callable[..., Tensor],
    parameters: Sequence[Tensor],
    other_bytes: int,
) -> Case:
    """y and r = dropout(x) + residual of x and residual.

    Args:
        rows, width, dtype, device: of x and residual.
        ours: the op, of x, residual and the share to drop.
        plain_norm: what PyTorch users write for the norm, of r and the parameters.
        exact_norm: its definition, of the same in float64.
        parameters: weight, and bias where there is one.
        other_bytes: what is moved besides rows and parameters.
    """
    x, residual = (torch.randn(rows, width, device=device, dtype=dtype) for _ in range(2))
    functions, absent = _functions(device, ours, lambda r: plain_norm(r, *parameters))

    def check(result: tuple[Tensor, Tensor]) -> None:
        y, r = result
        _check_share(r == residual, dtype)
        exact = exact_norm(*(t.double() for t in (r, *parameters)))
        assert_accurate(y, exact, plain_norm(r, *parameters), what="y")

    candidates = {
        name: Candidate(torch.no_grad()(lambda f=function: f(x, residual)))
        for name, function in functions.items()
    }
    return Case(
        name="forward + residual + dropout",
        shape=f"{rows} x {width}",
        dtype=str(dtype).removeprefix("torch."),
        candidates=candidates,
        check=check,
        bytes=(4 * rows + len(parameters)) * width * dtype.itemsize + other_bytes,
        absent=absent,
    )


def norm_dropout_backward_case(
    rows: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    ours: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]],
    plain_norm: Callable[..., Tensor],
    exact_norm: Callable[..., Tensor],
    parameters: Sequence[Tensor],
    other_bytes: int,
) -> Case:
    """Gradients of x, residual and the parameters; the forward pass is not timed.

    dy, dr and r are read, the gradients of x and residual written. Arguments are those of
    `norm_dropout_case`.
    """
    x, residual, dy, dr = (torch.randn(rows, width, device=device, dtype=dtype) for _ in range(4))
    leaves = [t.requires_grad_() for t in (x, residual, *parameters)]
    functions, absent = _functions(device, ours, lambda r: plain_norm(r, *parameters))

    def backward(y: Tensor, r: Tensor) -> tuple[Tensor, ...]:
        return (r.detach(), *torch.autograd.grad((y, r), leaves, (dy, dr)))

    def check(result: tuple[Tensor, ...]) -> None:
        r, dx, dresidual, *dparameters = result
        inputs = [r.requires_grad_(), *parameters]
        wide = [t.detach().double().requires_grad_() for t in inputs]
        plain = torch.autograd.grad(plain_norm(*inputs), inputs, dy)
        exact = torch.autograd.grad(exact_norm(*wide), wide, dy.double())
        _check_share(dx == 0, dtype)
        kept = (dx != 0).double() / (1 - SHARE)
        sums = (exact[0] + dr, plain[0] + dr)
        for what, actual, reference, baseline in (
            ("dx", dx, *((kept * each).to(each.dtype) for each in sums)),
            ("dresidual", dresidual, *sums),
            *zip(("dweight", "dbias"), dparameters, exact[1:], plain[1:], strict=False),
        ):
            assert_accurate(actual, reference, baseline, factor=GRADIENT_FACTOR, what=what)

    return Case(
        name="backward + residual + dropout",
        shape=f"{rows} x {width}",
        dtype=str(dtype).removeprefix("torch."),
        candidates={
            name: Candidate(
                lambda outputs: backward(*outputs), prepare=lambda f=function: f(x, residual)
            )
            for name, function in functions.items()
        },
        check=check,
        bytes=(5 * rows + 1 + len(parameters)) * width * dtype.itemsize + other_bytes,
        absent=absent,
    )


def _functions(
    device: torch.device,
    ours: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]],
    plain_norm: Callable[[Tensor], Tensor],
) -> tuple[dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]], dict[str, str]]:
    """The candidates, of x and residual, and those that this device cannot run."""

    def eager(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        r = F.dropout(x, SHARE) + residual
        return plain_norm(r), r

    present = {OURS: lambda x, residual: ours(x, residual, SHARE), "F.dropout": eager}
    if device.type != "cuda":
        return present, {COMPILED: "measured on CUDA only"}
    return {**present, COMPILED: torch.compile(eager, fullgraph=True, dynamic=False)}, {}


def _check_share(dropped: Tensor, dtype: torch.dtype) -> None:
    """Six standard deviations, and the elements too small to change what they are added to."""
    share = dropped.double().mean().item()
    allowed = 6 * (SHARE * (1 - SHARE) / dropped.numel()) ** 0.5 + 4 * torch.finfo(dtype).eps
    assert abs(share - SHARE) < allowed, f"{share:.4f} dropped, not {SHARE}"
