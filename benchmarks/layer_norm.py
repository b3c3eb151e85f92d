"""layer_norm at LLM-jp's shapes: forward and backward, with a residual addition and dropout too.

The bytes are those that csrc/norm is written for. Forward reads x (and residual) and writes y (and
r); backward reads dy and r (and dr) and writes dx; both touch the statistics (two float32 a row),
weight and bias once more. The workspace of dweight and dbias is not counted: it is the kernel's own
choice.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import llmjp_ext
from benchmarks.harness import OURS, Candidate, Case, accuracy_check, missing
from benchmarks.harness.norm_dropout import norm_dropout_backward_case, norm_dropout_case
from llmjp_ext.reference.layer_norm import layer_norm as definition
from llmjp_ext.testing import GRADIENT_FACTOR

# Rows are tokens of a micro-batch (64 in decoding), widths those of the 1.3B and 13B models, of a
# large one, and the widest that is read once.
CUDA_SHAPES = ((8192, 2048), (8192, 5120), (4096, 12288), (64, 2048), (512, 65536))
CPU_SHAPES = ((2048, 2048), (1024, 5120), (64, 2048))
QUICK_SHAPES = ((64, 256),)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EPS = 1e-5
LIGER = "Liger"
COMPILED = "torch.compile"

Function = Callable[..., Any]


def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What PyTorch users write."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, EPS)


def eager_residual(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """The same after the addition of the residual stream."""
    r = x + residual
    return F.layer_norm(r, r.shape[-1:], weight, bias, EPS), r


def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """llmjp_ext's op."""
    return llmjp_ext.layer_norm(x, weight, bias, EPS)


def ours_residual(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """llmjp_ext's op with the addition in the same kernel."""
    return llmjp_ext.layer_norm(x, weight, bias, EPS, residual=residual)


def liger(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Liger's Triton kernel."""
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction

    return LigerLayerNormFunction.apply(x, weight, bias, EPS)


def liger_residual(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Liger's kernel after PyTorch's addition: it has no fused one with a bias."""
    r = x + residual
    return liger(r, weight, bias), r


def functions(device: torch.device, with_residual: bool) -> tuple[dict[str, Function], dict]:
    """The candidates by name, and the peers that this machine cannot run with the reason."""
    plain = eager_residual if with_residual else eager
    present: dict[str, Function] = {
        OURS: ours_residual if with_residual else ours,
        "F.layer_norm": plain,
    }
    absent: dict[str, str] = {}
    if device.type == "cuda":
        present[COMPILED] = torch.compile(plain, fullgraph=True, dynamic=False)
        reason = missing("liger_kernel", "liger-kernel")
    else:
        absent[COMPILED] = "measured on CUDA only"
        reason = "needs CUDA"
    if reason is None:
        present[LIGER] = liger_residual if with_residual else liger
    else:
        absent[LIGER] = reason
    return present, absent


def inputs(
    rows: int, width: int, dtype: torch.dtype, device: torch.device, with_residual: bool
) -> list[Tensor]:
    """x, residual if asked for, weight and bias."""
    x = torch.randn(rows, width, device=device, dtype=dtype) * 2 + 0.5
    residual = [torch.randn(rows, width, device=device, dtype=dtype)] if with_residual else []
    return [x, *residual, *(torch.randn(width, device=device, dtype=dtype) for _ in range(2))]


def truth(tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """The definition in float64: y, or y and r."""
    x, *residual, weight, bias = (t.double() for t in tensors)
    result = definition(x, weight, bias, EPS, residual=residual[0] if residual else None)
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
        bytes=(passes * rows + 2) * width * dtype.itemsize + 2 * 4 * rows,
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
    names = ("dx", *(["dresidual"] if with_residual else []), "dweight", "dbias")
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
        bytes=(passes * rows + 3) * width * dtype.itemsize + 2 * 4 * rows,
        absent=absent,
    )


def dropout_case(
    rows: int, width: int, dtype: torch.dtype, device: torch.device, backward: bool
) -> Case:
    """y and r of x and residual, of x a tenth dropped; or the gradients."""
    weight, bias = (torch.randn(width, device=device, dtype=dtype) for _ in range(2))
    make = norm_dropout_backward_case if backward else norm_dropout_case
    return make(
        rows,
        width,
        dtype,
        device,
        ours=lambda x, residual, share: llmjp_ext.layer_norm(
            x, weight, bias, EPS, residual=residual, dropout_p=share
        ),
        plain_norm=eager,
        exact_norm=lambda r, *affine: definition(r, *affine, EPS),
        parameters=[weight, bias],
        other_bytes=8 * rows,
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
