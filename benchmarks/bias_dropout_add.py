"""bias_dropout_add at LLM-jp's widths: forward and backward.

Forward reads x and residual and writes r; backward reads dr and writes dx; bias and its gradient
come once more. Masks differ from peer to peer, so what is checked is the mask's share and, where
nothing is dropped, the values.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import llmjp_ext
from benchmarks.harness import OURS, Candidate, Case

# Tokens of a micro-batch (64 in decoding) by the widths of the 1.3B and 13B models.
CUDA_SHAPES = ((8192, 2048), (8192, 5120), (64, 2048))
CPU_SHAPES = ((2048, 2048), (64, 2048))
QUICK_SHAPES = ((64, 256),)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHARE = 0.1
COMPILED = "torch.compile"

Function = Callable[..., Any]


def ours(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """llmjp_ext's op."""
    return llmjp_ext.bias_dropout_add(x, bias, residual, dropout_p=SHARE)


def eager(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """What PyTorch users write."""
    return F.dropout(x + bias, SHARE) + residual


def functions(device: torch.device) -> tuple[dict[str, Function], dict[str, str]]:
    """The candidates by name, and the peers that this machine cannot run with the reason."""
    present: dict[str, Function] = {OURS: ours, "F.dropout": eager}
    if device.type != "cuda":
        return present, {COMPILED: "measured on CUDA only"}
    return {**present, COMPILED: torch.compile(eager, fullgraph=True, dynamic=False)}, {}


def check_share(dropped: Tensor) -> None:
    """Fails unless a tenth is dropped, within six standard deviations."""
    deviation = (SHARE * (1 - SHARE) / dropped.numel()) ** 0.5
    share = dropped.double().mean().item()
    assert abs(share - SHARE) < 6 * deviation, f"{share:.4f} of the elements dropped, not {SHARE}"


def case_of(name: str, rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Case:
    """One direction at one shape and dtype; the forward pass before a backward is not timed."""
    # Far from 0, so that a dropped element is known by its value.
    x, residual = (torch.rand(rows, width, device=device, dtype=dtype) + 1 for _ in range(2))
    bias = torch.rand(width, device=device, dtype=dtype)
    present, absent = functions(device)
    dr = torch.ones_like(x)
    leaves = [t.clone().requires_grad_() for t in (x, bias, residual)]
    sums = (x.double() + bias.double()) / (1 - SHARE) + residual.double()

    def check_forward(r: Tensor) -> None:
        dropped = r == residual
        check_share(dropped)
        largest = sums.abs().max().item() * 3 * torch.finfo(dtype).eps
        assert (r.double() - sums)[~dropped].abs().max().item() <= largest

    def check_backward(gradients: tuple[Tensor, ...]) -> None:
        dx, dbias, dresidual = gradients
        check_share(dx == 0)
        assert torch.equal(dresidual, dr)
        summed = dx.double().sum(0)
        # The bound of a sum of so many positive terms, added one by one.
        assert (dbias.double() - summed).abs().max() <= rows * torch.finfo(dtype).eps * summed.max()

    forward = name == "forward"
    candidates = {}
    for key, function in present.items():
        if forward:
            run = torch.no_grad()(lambda f=function: f(x, bias, residual))
            candidates[key] = Candidate(run)
        else:
            candidates[key] = Candidate(
                lambda r: torch.autograd.grad(r, leaves, dr), prepare=lambda f=function: f(*leaves)
            )
    return Case(
        name=name,
        shape=f"{rows} x {width}",
        dtype=str(dtype).removeprefix("torch."),
        candidates=candidates,
        check=check_forward if forward else check_backward,
        bytes=((3 if forward else 2) * rows + 1) * width * dtype.itemsize,
        absent=absent,
    )


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Both directions at every shape and dtype."""
    torch.manual_seed(0)
    shapes = QUICK_SHAPES if quick else CUDA_SHAPES if device.type == "cuda" else CPU_SHAPES
    for rows, width in shapes:
        for dtype in DTYPES:
            for name in ("forward", "backward"):
                yield case_of(name, rows, width, dtype, device)
