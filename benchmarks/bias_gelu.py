"""bias_gelu at LLM-jp's feed-forward widths: forward and backward.

Forward reads x and writes y; backward reads x and dy and writes dx; the bias and its gradient come
once more. Two separate kernels, an addition and a GELU, move twice as much in forward.

The cases of a linear layer tell where its bias is best added: by this op, or by the matrix product,
whose epilogue (cuBLASLt's) adds it on the way out and in inference can apply the GELU, too.
"""

from collections.abc import Callable, Iterator
from functools import partial
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
BIAS_IN_PRODUCT = f"{OURS} bias in the product"
EPILOGUE = "cuBLASLt's epilogue"

Function = Callable[..., Any]


def ours(x: Tensor, bias: Tensor, approximate: str = "tanh") -> Tensor:
    """llmjp_ext's op."""
    return llmjp_ext.bias_gelu(x, bias, approximate=approximate)


def eager(x: Tensor, bias: Tensor, approximate: str = "tanh") -> Tensor:
    """What PyTorch users write."""
    return F.gelu(x + bias, approximate=approximate)


def functions(device: torch.device, approximate: str) -> tuple[dict[str, Function], dict[str, str]]:
    """The candidates by name, and the peers that this machine cannot run with the reason."""
    op, plain = (partial(function, approximate=approximate) for function in (ours, eager))
    present: dict[str, Function] = {OURS: op, "F.gelu": plain}
    if device.type != "cuda":
        return present, {COMPILED: "measured on CUDA only"}
    return {**present, COMPILED: torch.compile(plain, fullgraph=True, dynamic=False)}, {}


def case_name(direction: str, approximate: str) -> str:
    """The direction alone stands for the tanh approximation."""
    return direction if approximate == "tanh" else f"{direction}, exact function"


def inputs(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """x and bias."""
    return [torch.randn(*shape, device=device, dtype=dtype) for shape in ((rows, width), (width,))]


def forward_case(
    rows: int, width: int, dtype: torch.dtype, device: torch.device, approximate: str
) -> Case:
    """y of x and bias."""
    tensors = inputs(rows, width, dtype, device)
    present, absent = functions(device, approximate)
    exact = definition(*(t.double() for t in tensors), approximate=approximate)
    return Case(
        name=case_name("forward", approximate),
        shape=f"{rows} x {width}",
        dtype=str(dtype).removeprefix("torch."),
        # Without autograd, so that what is timed is the op.
        candidates={
            name: Candidate(torch.no_grad()(lambda f=function: f(*tensors)))
            for name, function in present.items()
        },
        check=accuracy_check({"y": exact}, [eager(*tensors, approximate)]),
        bytes=(2 * rows + 1) * width * dtype.itemsize,
        absent=absent,
    )


def backward_case(
    rows: int, width: int, dtype: torch.dtype, device: torch.device, approximate: str
) -> Case:
    """dx and dbias of y's gradient; the forward pass before it is not timed."""
    leaves = [t.requires_grad_() for t in inputs(rows, width, dtype, device)]
    present, absent = functions(device, approximate)
    dy = torch.randn_like(leaves[0])

    def backward(y: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, leaves, dy)

    exact_leaves = [t.detach().double().requires_grad_() for t in leaves]
    exact_y = definition(*exact_leaves, approximate=approximate)
    names = ("dx", "dbias")
    exact = torch.autograd.grad(exact_y, exact_leaves, dy.double())
    return Case(
        name=case_name("backward", approximate),
        shape=f"{rows} x {width}",
        dtype=str(dtype).removeprefix("torch."),
        candidates={
            name: Candidate(backward, prepare=lambda f=function: f(*leaves))
            for name, function in present.items()
        },
        check=accuracy_check(
            dict(zip(names, exact, strict=True)),
            backward(eager(*leaves, approximate)),
            dict.fromkeys(names, GRADIENT_FACTOR),
        ),
        bytes=(3 * rows + 2) * width * dtype.itemsize,
        absent=absent,
    )


def bias_in_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The matrix product adds the bias; the op is left with the GELU."""
    return llmjp_ext.bias_gelu(torch.addmm(bias, x, weight), approximate="tanh")


def linear_case(
    rows: int, width: int, dtype: torch.dtype, device: torch.device, train: bool
) -> Case:
    """GELU of a linear layer from a quarter of the width: in inference, or with all gradients."""
    shapes = ((rows, width // 4), (width // 4, width), (width,))
    scales = (1.0, (width // 4) ** -0.5, 1.0)
    leaves = [
        (torch.randn(shape, device=device) * scale).to(dtype).requires_grad_(train)
        for shape, scale in zip(shapes, scales, strict=True)
    ]
    layers: dict[str, Function] = {
        OURS: lambda x, w, b: ours(x @ w, b),
        BIAS_IN_PRODUCT: bias_in_product,
        "F.gelu": lambda x, w, b: F.gelu(torch.addmm(b, x, w), approximate="tanh"),
    }
    absent = {}
    if train:
        absent[EPILOGUE] = "torch has no gradient of it: it keeps no argument of the GELU"
    elif device.type != "cuda":
        absent[EPILOGUE] = "needs CUDA"
    else:
        layers[EPILOGUE] = lambda x, w, b: torch._addmm_activation(b, x, w, use_gelu=True)
    dy = torch.randn(rows, width, device=device).to(dtype)

    def results(layer: Function, tensors: list[Tensor]) -> list[Tensor]:
        if train:
            return list(torch.autograd.grad(layer(*tensors), tensors, dy.to(tensors[0])))
        return [layer(*tensors)]

    wide = [t.detach().double().requires_grad_(train) for t in leaves]
    exact = results(lambda x, w, b: definition(x @ w, b, approximate="tanh"), wide)
    names = ("dx", "dweight", "dbias") if train else ("y",)
    return Case(
        name="linear, forward + backward" if train else "linear, forward",
        shape=f"{rows} x {width // 4} x {width}",
        dtype=str(dtype).removeprefix("torch."),
        candidates={
            name: Candidate(lambda f=layer: results(f, leaves)) for name, layer in layers.items()
        },
        check=accuracy_check(
            dict(zip(names, exact, strict=True)),
            results(layers["F.gelu"], leaves),
            dict.fromkeys(names, GRADIENT_FACTOR) if train else None,
        ),
        flops=(6 if train else 2) * rows * (width // 4) * width,
        absent=absent,
    )


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Both directions at every shape and dtype; in bfloat16 the exact function and a layer, too."""
    torch.manual_seed(0)
    shapes = QUICK_SHAPES if quick else CUDA_SHAPES if device.type == "cuda" else CPU_SHAPES
    for rows, width in shapes:
        for dtype in DTYPES:
            yield forward_case(rows, width, dtype, device, "tanh")
            yield backward_case(rows, width, dtype, device, "tanh")
        # That of the LLM-jp v1.0 models.
        yield forward_case(rows, width, torch.bfloat16, device, "none")
        yield backward_case(rows, width, torch.bfloat16, device, "none")
        for train in (False, True):
            yield linear_case(rows, width, torch.bfloat16, device, train)
