"""swiglu at the feed-forward widths of Llama-shaped models: forward and backward.

Forward reads gate and up and writes y; backward reads dy, gate and up and writes dgate and dup. Two
separate kernels, SiLU and a product, move 5/3 of that in forward.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import llmjp_ext
from benchmarks.harness import OURS, Candidate, Case, accuracy_check, missing
from llmjp_ext.reference.swiglu import swiglu as definition
from llmjp_ext.testing import GRADIENT_FACTOR

# Tokens of a micro-batch (64 in decoding) by the feed-forward widths of 7B and 13B models.
CUDA_SHAPES = ((8192, 11008), (4096, 13824), (64, 11008))
CPU_SHAPES = ((512, 11008), (64, 11008))
QUICK_SHAPES = ((64, 256),)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
COMPILED = "torch.compile"
LIGER = "Liger"

Function = Callable[..., Any]


def eager(gate: Tensor, up: Tensor) -> Tensor:
    """What PyTorch users write."""
    return F.silu(gate) * up


def liger(gate: Tensor, up: Tensor) -> Tensor:
    """Liger's Triton kernel, which copies what is not contiguous."""
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    return LigerSiLUMulFunction.apply(gate, up)


def functions(device: torch.device) -> tuple[dict[str, Function], dict[str, str]]:
    """The candidates by name, and the peers that this machine cannot run with the reason."""
    present: dict[str, Function] = {OURS: llmjp_ext.swiglu, "F.silu": eager}
    if device.type != "cuda":
        return present, {COMPILED: "measured on CUDA only", LIGER: "needs CUDA"}
    present[COMPILED] = torch.compile(eager, fullgraph=True, dynamic=False)
    reason = missing("liger_kernel", "liger-kernel")
    return ({**present, LIGER: liger}, {}) if reason is None else (present, {LIGER: reason})


def inputs(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """gate and up, the halves of one layer's output."""
    return list(torch.randn(rows, 2 * width, device=device, dtype=dtype).chunk(2, dim=-1))


def forward_case(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Case:
    """y of gate and up."""
    tensors = inputs(rows, width, dtype, device)
    present, absent = functions(device)
    exact = definition(*(t.double() for t in tensors))
    return Case(
        name="forward",
        shape=f"{rows} x {width}",
        dtype=str(dtype).removeprefix("torch."),
        # Without autograd, so that what is timed is the op.
        candidates={
            name: Candidate(torch.no_grad()(lambda f=function: f(*tensors)))
            for name, function in present.items()
        },
        check=accuracy_check({"y": exact}, [eager(*tensors)]),
        bytes=3 * rows * width * dtype.itemsize,
        absent=absent,
    )


def backward_case(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Case:
    """Gradients of both; the forward pass before it is not timed."""
    leaves = [t.detach().requires_grad_() for t in inputs(rows, width, dtype, device)]
    present, absent = functions(device)
    dy = torch.randn(rows, width, device=device, dtype=dtype)

    def backward(y: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, leaves, dy)

    exact_leaves = [t.detach().double().requires_grad_() for t in leaves]
    exact_y = definition(*exact_leaves)
    names = ("dgate", "dup")
    exact = torch.autograd.grad(exact_y, exact_leaves, dy.double())
    return Case(
        name="backward",
        shape=f"{rows} x {width}",
        dtype=str(dtype).removeprefix("torch."),
        candidates={
            name: Candidate(backward, prepare=lambda f=function: f(*leaves))
            for name, function in present.items()
        },
        check=accuracy_check(
            dict(zip(names, exact, strict=True)),
            backward(eager(*leaves)),
            dict.fromkeys(names, GRADIENT_FACTOR),
        ),
        bytes=5 * rows * width * dtype.itemsize,
        absent=absent,
    )


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Both directions at every shape and dtype."""
    torch.manual_seed(0)
    shapes = QUICK_SHAPES if quick else CUDA_SHAPES if device.type == "cuda" else CPU_SHAPES
    for rows, width in shapes:
        for dtype in DTYPES:
            yield forward_case(rows, width, dtype, device)
            yield backward_case(rows, width, dtype, device)
