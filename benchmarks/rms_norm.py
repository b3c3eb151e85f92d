"""rms_norm at the shapes of LLM-jp's and larger models: both directions, residual and dropout too.

Bytes: forward reads x (and residual) and writes y (and r); backward reads dy and r (and dr) and
writes dx; both touch rstd (one float32 a row) and the weight. The workspace of dweight is not
counted.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import llmjp_ext
from benchmarks.harness import OURS, Candidate, Case, accuracy_check, missing
from benchmarks.harness.norm_dropout import norm_dropout_backward_case, norm_dropout_case
from llmjp_ext.reference.rms_norm import rms_norm as definition
from llmjp_ext.testing import GRADIENT_FACTOR

CUDA_SHAPES = ((8192, 2048), (8192, 5120), (4096, 12288), (64, 2048), (512, 65536))
CPU_SHAPES = ((2048, 2048), (64, 2048))
QUICK_SHAPES = ((64, 256),)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EPS = 1e-6
LIGER = "Liger"
COMPILED = "torch.compile"

Function = Callable[..., Any]


def eager(x: Tensor, weight: Tensor) -> Tensor:
    """What PyTorch users write."""
    return F.rms_norm(x, x.shape[-1:], weight, EPS)


def eager_residual(x: Tensor, weight: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """The same after the addition of the residual stream."""
    r = x + residual
    return eager(r, weight), r


def ours(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> Any:
    """llmjp_ext's op, with the addition in the same kernel."""
    return llmjp_ext.rms_norm(x, weight, EPS, residual=residual)


def liger(x: Tensor, weight: Tensor) -> Tensor:
    """Liger's Triton kernel."""
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    return LigerRMSNormFunction.apply(x, weight, EPS)


def liger_residual(x: Tensor, weight: Tensor, residual: Tensor) -> tuple[Tensor, ...]:
    """Liger's kernel with the addition in it."""
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction

    return LigerFusedAddRMSNormFunction.apply(x, residual, weight, EPS)


def functions(device: torch.device, with_residual: bool) -> tuple[dict[str, Function], dict]:
    """The candidates by name, and the peers that this machine cannot run with the reason."""
    plain = eager_residual if with_residual else eager
    present: dict[str, Function] = {OURS: ours, "F.rms_norm": plain}
    absent: dict[str, str] = {}
    if device.type != "cuda":
        return present, {COMPILED: "measured on CUDA only", LIGER: "needs CUDA"}
    present[COMPILED] = torch.compile(plain, fullgraph=True, dynamic=False)
    reason = missing("liger_kernel", "liger-kernel")
    if reason is None:
        present[LIGER] = liger_residual if with_residual else liger
    else:
        absent[LIGER] = reason
    return present, absent


def inputs(
    rows: int, width: int, dtype: torch.dtype, device: torch.device, with_residual: bool
) -> list[Tensor]:
    """x, weight and, if asked for, residual."""
    x = torch.randn(rows, width, device=device, dtype=dtype) * 2 + 0.5
    residual = [torch.randn(rows, width, device=device, dtype=dtype)] if with_residual else []
    return [x, torch.randn(width, device=device, dtype=dtype), *residual]


def truth(tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """The definition in float64: y, or y and r."""
    x, weight, *residual = (t.double() for t in tensors)
    result = definition(x, weight, EPS, residual=residual[0] if residual else None)
    return result if isinstance(result, tuple) else (result,)


def forward_case(
    rows: int, width: int, dtype: torch.dtype, device: torch.device, with_residual: bool
) -> Case:
    """y of x; with a residual also r = x + residual, and y of r."""
    tensors = inputs(rows, width, dtype, device, with_residual)
    present, absent = functions(device, with_residual)
    expected = dict(zip(("y", "r"), truth(tensors), strict=False))
    plain = (eager_residual if with_residual else eager)(*tensors)
    passes = 4 if with_residual else 2
    return Case(
        name="forward + residual" if with_residual else "forward",
        shape=f"{rows} x {width}",
        dtype=str(dtype).removeprefix("torch."),
        # Without autograd, so that what is timed is the op.
        candidates={
            name: Candidate(torch.no_grad()(lambda f=function: f(*tensors)))
            for name, function in present.items()
        },
        check=accuracy_check(expected, [plain] if isinstance(plain, Tensor) else plain),
        bytes=(passes * rows + 1) * width * dtype.itemsize + 4 * rows,
        absent=absent,
    )


def backward_case(
    rows: int, width: int, dtype: torch.dtype, device: torch.device, with_residual: bool
) -> Case:
    """Gradients of all inputs; the forward pass before it is not timed."""
    tensors = inputs(rows, width, dtype, device, with_residual)
    present, absent = functions(device, with_residual)
    leaves = [t.requires_grad_() for t in tensors]
    gradients = [torch.randn_like(tensors[0]) for _ in range(1 + with_residual)]

    def backward(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(outputs, leaves, gradients)

    exact_leaves = [t.detach().double().requires_grad_() for t in leaves]
    names = ("dx", "dweight", *(["dresidual"] if with_residual else []))
    exact = torch.autograd.grad(truth(exact_leaves), exact_leaves, [g.double() for g in gradients])
    passes = 4 if with_residual else 3
    return Case(
        name="backward + residual" if with_residual else "backward",
        shape=f"{rows} x {width}",
        dtype=str(dtype).removeprefix("torch."),
        candidates={
            name: Candidate(backward, prepare=lambda f=function: f(*leaves))
            for name, function in present.items()
        },
        check=accuracy_check(
            dict(zip(names, exact, strict=True)),
            backward((eager_residual if with_residual else eager)(*leaves)),
            dict.fromkeys(names, GRADIENT_FACTOR),
        ),
        bytes=(passes * rows + 2) * width * dtype.itemsize + 4 * rows,
        absent=absent,
    )


def dropout_case(
    rows: int, width: int, dtype: torch.dtype, device: torch.device, backward: bool
) -> Case:
    """y and r of x and residual, of x a tenth dropped; or the gradients."""
    weight = torch.randn(width, device=device, dtype=dtype)
    make = norm_dropout_backward_case if backward else norm_dropout_case
    return make(
        rows,
        width,
        dtype,
        device,
        ours=lambda x, residual, share: llmjp_ext.rms_norm(
            x, weight, EPS, residual=residual, dropout_p=share
        ),
        plain_norm=eager,
        exact_norm=lambda r, scale: definition(r, scale, EPS),
        parameters=[weight],
        other_bytes=4 * rows,
    )


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Every direction at every shape and dtype."""
    torch.manual_seed(0)
    shapes = QUICK_SHAPES if quick else CUDA_SHAPES if device.type == "cuda" else CPU_SHAPES
    for rows, width in shapes:
        for dtype in DTYPES:
            yield forward_case(rows, width, dtype, device, with_residual=False)
            yield forward_case(rows, width, dtype, device, with_residual=True)
            yield dropout_case(rows, width, dtype, device, backward=False)
            yield backward_case(rows, width, dtype, device, with_residual=False)
        # In the dtype of training alone: GPU machines are lent for minutes.
        yield backward_case(rows, width, torch.bfloat16, device, with_residual=True)
        yield dropout_case(rows, width, torch.bfloat16, device, backward=True)
