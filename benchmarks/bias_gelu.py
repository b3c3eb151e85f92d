"""bias_gelu at LLM-jp's feed-forward widths: forward and backward.

Forward reads x and writes y; backward reads x and dy and writes dx; the bias and its gradient come
once more. Two separate kernels, an addition and a GELU, move twice as much in forward.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import llmjp_ext
from benchmarks.harness import OURS, Candidate, Case, accuracy_check
from llmjp_ext.reference.bias_gelu import bias_gelu as definition
from llmjp_ext.testing import GRADIENT_FACTOR

# Tokens of a micro-batch (64 in decoding) by the feed-forward widths of the 1.3B and 13B models.
CUDA_SHAPES = ((8192, 8192), (4096, 20480), (64, 8192))
CPU_SHAPES = ((512, 8192), (64, 8192))
QUICK_SHAPES = ((64, 256),)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
COMPILED = "torch.compile"

Function = Callable[..., Any]


def ours(x: Tensor, bias: Tensor) -> Tensor:
    """llmjp_ext's op."""
    return llmjp_ext.bias_gelu(x, bias, approximate="tanh")


def eager(x: Tensor, bias: Tensor) -> Tensor:
    """What PyTorch users write."""
    return F.gelu(x + bias, approximate="tanh")


def functions(device: torch.device) -> tuple[dict[str, Function], dict[str, str]]:
    """The candidates by name, and the peers that this machine cannot run with the reason."""
    present: dict[str, Function] = {OURS: ours, "F.gelu": eager}
    if device.type != "cuda":
        return present, {COMPILED: "measured on CUDA only"}
    return {**present, COMPILED: torch.compile(eager, fullgraph=True, dynamic=False)}, {}


def inputs(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """x and bias."""
    return [torch.randn(*shape, device=device, dtype=dtype) for shape in ((rows, width), (width,))]


def forward_case(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Case:
    """y of x and bias."""
    tensors = inputs(rows, width, dtype, device)
    present, absent = functions(device)
    exact = definition(*(t.double() for t in tensors), approximate="tanh")
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
        bytes=(2 * rows + 1) * width * dtype.itemsize,
        absent=absent,
    )


def backward_case(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Case:
    """dx and dbias of y's gradient; the forward pass before it is not timed."""
    leaves = [t.requires_grad_() for t in inputs(rows, width, dtype, device)]
    present, absent = functions(device)
    dy = torch.randn_like(leaves[0])

    def backward(y: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, leaves, dy)

    exact_leaves = [t.detach().double().requires_grad_() for t in leaves]
    exact_y = definition(*exact_leaves, approximate="tanh")
    names = ("dx", "dbias")
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
        bytes=(3 * rows + 2) * width * dtype.itemsize,
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
